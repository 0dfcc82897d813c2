"""A data set's rows as a file somewhere else: the handler of ``pipeline.upload``. No Django."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines import transfers
from pipelines.stages import places


def run(task: Mapping[str, Any], channel: Any) -> dict[str, Any]:
    """Bring ``inputs["data"]`` to ``payload["path"]``: Parquet, or CSV where the name ends so.

    The file has its name once all of it is there and right. What an earlier try brought is not
    sent again. Raises WorkError.
    """
    path = str((task.get("payload") or {})["path"])
    place, rules = places.opened(task)
    source = Path(task["inputs"]["data"])
    if path.lower().endswith(".csv"):
        channel.progress(0.0, "The rows are written as CSV")
        source = _as_csv(source)
    tell = places.teller(channel, "Sending")
    sent = places.wait_for(
        lambda: transfers.send(source, place.file(path), path, rules, tell),
    )
    tell(sent)
    how = "It was there already" if sent.was_there else f"{sent.moved >> 10:,} KiB were sent"
    channel.progress(1.0, f"{path} is at {place.where}. {how}.")
    return {"data": {"path": path, "bytes": sent.size, "transfer": sent.told()}, "files": {}}


def _as_csv(source: Path) -> Path:
    import pyarrow.csv
    import pyarrow.parquet as pq

    target = Path("rows.csv")
    with (
        pq.ParquetFile(source) as rows,
        pyarrow.csv.CSVWriter(target, rows.schema_arrow) as writer,
    ):
        for batch in rows.iter_batches():
            writer.write_batch(batch)
    return target
