"""Whether a connection works: the handler of ``pipeline.test``. No Django."""

from collections.abc import Mapping
from typing import Any

from pipelines.stages import warehouse


def run(task: Mapping[str, Any], channel: Any) -> dict[str, Any]:
    """Reach the far side and say in a sentence what was found. Raises WorkError with another."""
    with warehouse.opened(task) as found:
        return {"data": {"sentence": found.check()}, "files": {}}
