"""A Parquet file as a table of the warehouse: the handler of ``pipeline.write-back``. No Django."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.stages import warehouse
from pipelines.stages.sql import TELL_S
from workers.node.channel import WorkError


def run(task: Mapping[str, Any], channel: Any) -> dict[str, Any]:
    """Write ``inputs["data"]`` to ``payload["table"]``, in ``mode`` replace or append.

    The same ``run_id`` again writes nothing twice. With the embedded warehouse the table is the
    file ``data``, of which the web side makes a data set's version.
    """
    payload = task.get("payload") or {}
    table, run_id = str(payload["table"]), str(payload["run_id"])
    with warehouse.opened(task) as target:
        import pyarrow.parquet as pq

        with pq.ParquetFile(task["inputs"]["data"]) as source:
            channel.progress(0.0, f"Writing {source.metadata.num_rows:,} rows to {table}")
            write = target.append if payload.get("mode") == "append" else target.replace
            rows = write(
                table, source.schema_arrow, _batches(source, channel), run_id, _token(task)
            )
            expected = source.metadata.num_rows
    if rows != expected:
        raise WorkError(
            f"{expected:,} rows were to be written and {rows:,} are there.", code="rows-lost"
        )
    files = {}
    if (task.get("confidential") or {}).get("kind") == "duckdb":
        [written] = Path("duckdb").glob("*.parquet")
        files = {"data": str(written)}
    return {"data": {"rows": rows, "table": table}, "files": files}


def _token(task: Mapping[str, Any]) -> int:
    """Grows with each start that control makes of a write, and with each attempt of a node at it.
    0: none, of a control process that is older than this node."""
    began = int((task.get("payload") or {}).get("began") or 0)
    return began and began * 100 + min(99, int(task.get("attempt") or 0))


def _batches(source: Any, channel: Any) -> Iterator[Any]:
    """The rows in pieces, telling how far they are."""
    total, done, told_at = max(1, source.metadata.num_rows), 0, time.monotonic()
    for batch in source.iter_batches():
        yield batch
        done += batch.num_rows
        if time.monotonic() - told_at > TELL_S:
            told_at = time.monotonic()
            channel.progress(0.95 * done / total, f"{done:,} of {total:,} rows", rows=done)
