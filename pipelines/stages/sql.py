"""A query's result as a Parquet file: the handler of ``pipeline.sql``.

Runs on a node, in a child with limits. The web side makes a data set's version of the file, by the
way that an upload takes. Imports no Django.
"""

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.stages import warehouse
from workers.node.channel import WorkError

if TYPE_CHECKING:
    from pipelines.connectors.base import Result

GROUP_ROWS, GROUP_BYTES = 65_536, 64 << 20
TELL_S = 1.0


def run(task: Mapping[str, Any], channel: Any) -> dict[str, Any]:
    """Run ``payload["sql"]`` with ``payload["params"]``. File: ``data`` (Parquet).

    Raises WorkError for a query that fails, that gives no rows, or too many bytes.
    """
    payload = task.get("payload") or {}
    most_bytes = int((task.get("confidential") or {}).get("max_bytes") or 0)
    target = Path("result.parquet")
    with warehouse.opened(task) as source:
        channel.progress(0.0, "The query runs")
        result = source.stream(str(payload["sql"]), payload.get("params") or ())
        _check_names(result.schema.names)
        rows = _store(result, target, channel, most_bytes)
    if not rows:
        raise WorkError(
            "The query returned no rows, so nothing was stored. Look at its conditions, or at "
            "whether the table was filled yet.",
            code="no-rows",
            columns=result.schema.names,
        )
    channel.progress(1.0, f"{rows:,} rows")
    return {
        "data": {"rows": rows, "columns": result.schema.names, "bytes": target.stat().st_size},
        "files": {"data": target.name},
    }


def _check_names(names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise WorkError(
            f"The query gives more than one column called {', '.join(twice[:10])}: name them "
            "apart with AS.",
            code="column-names",
            columns=twice,
        )


def _store(result: "Result", target: Path, channel: Any, most_bytes: int) -> int:
    """Write the rows as they come, a group of some 65,000 in memory at once. Returns how many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, told_at = 0, time.monotonic()
    waiting: list[Any] = []
    waiting_rows = waiting_bytes = 0
    with pq.ParquetWriter(target, result.schema, compression="zstd") as writer:
        for batch in result:
            rows += batch.num_rows
            waiting.append(batch)
            waiting_rows += batch.num_rows
            waiting_bytes += batch.nbytes
            if waiting_rows >= GROUP_ROWS or waiting_bytes >= GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(waiting))
                waiting, waiting_rows, waiting_bytes = [], 0, 0
                if most_bytes and target.stat().st_size > most_bytes:
                    raise WorkError(
                        f"The result is larger than a data set may be ({most_bytes >> 20:,} MB as "
                        f"Parquet, passed after {rows:,} rows). Let the query return less.",
                        code="too-large",
                        limit_bytes=most_bytes,
                    )
            if time.monotonic() - told_at > TELL_S:
                told_at = time.monotonic()
                channel.progress(0.5, f"{rows:,} rows so far", rows=rows)
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting))
    return rows
