"""Whether a connection works: the handler of ``pipeline.test``. No Django."""

from collections.abc import Mapping
from typing import Any

from pipelines import kinds
from pipelines.stages import hook, places, warehouse


def run(task: Mapping[str, Any], channel: Any) -> dict[str, Any]:
    """Reach the far side and say in a sentence what was found. Raises WorkError with another."""
    kind = (task.get("confidential") or {}).get("kind")
    if kind == hook.KIND:
        return {"data": {"sentence": hook.opened(task).check()}, "files": {}}
    if kind in kinds.PLACES:
        place, _ = places.opened(task)
        return {"data": {"sentence": places.wait_for(place.check)}, "files": {}}
    with warehouse.opened(task) as found:
        return {"data": {"sentence": found.check()}, "files": {}}
