"""A file from somewhere else: the handler of ``pipeline.download``. No Django."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines import transfers
from pipelines.stages import places


def run(task: Mapping[str, Any], channel: Any) -> dict[str, Any]:
    """Fetch ``payload["path"]``. File: ``data``, as it was there.

    The web side makes a data set's version of it, by the way that an upload takes. Raises
    WorkError for a file that is not there, or is larger than a data set may be.
    """
    path = str((task.get("payload") or {})["path"])
    most_bytes = int((task.get("confidential") or {}).get("max_bytes") or 0)
    place, rules = places.opened(task)
    target = Path("fetched")
    tell = places.teller(channel, "Fetching")
    made = places.wait_for(
        lambda: transfers.fetch(
            place.file(path, reading=True), path, target, rules, tell, most_bytes=most_bytes
        )
    )
    tell(made)
    channel.progress(1.0, f"{path}: {made.size >> 10:,} KiB from {place.where}")
    return {
        "data": {"path": path, "bytes": made.size, "transfer": made.told()},
        "files": {"data": target.name},
    }
