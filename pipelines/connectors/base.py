"""What every connector to a warehouse offers, and what they share. Runs on nodes; no Django."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from workers.node.channel import WorkError

BATCH_ROWS = 16_384


class Warehouse(Protocol):
    """A place that answers SQL and keeps tables.

    Every method raises WorkError with a sentence when the far side, or the query, is at fault.
    """

    def check(self) -> str:
        """Reach it and ask it something small. Returns a sentence on what was found."""
        ...

    def stream(self, sql: str, params: Mapping[str, Any] | Sequence[Any]) -> "Result":
        """Run one query that only reads."""
        ...

    def replace(
        self,
        table: str,
        schema: pa.Schema,
        batches: Iterable[pa.RecordBatch],
        run_id: str,
        token: int = 0,
    ) -> int:
        """Put a table with these rows in place of ``table`` (``name`` or ``schema.name``).

        Readers see the old table or the new one, never a part. The same ``run_id`` again leaves
        what it wrote. ``token`` grows with each attempt that control begins: a writer that was
        cut off and comes back late raises Superseded where a later one has replaced the table.
        Returns the rows, counted in the warehouse.
        """
        ...

    def append(
        self,
        table: str,
        schema: pa.Schema,
        batches: Iterable[pa.RecordBatch],
        run_id: str,
        token: int = 0,
    ) -> int:
        """Add these rows to ``table``, once for each ``run_id``. Returns how many they are."""
        ...

    def close(self) -> None: ...


class Result:
    """What a query gives: its columns now, its rows in batches of bounded size as they come."""

    def __init__(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
        self.schema = schema
        self._batches = batches

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self._batches


class QueryFailed(WorkError):
    """The warehouse refused a query. ``detail`` is its own word."""

    def __init__(self, detail: str) -> None:
        text = " ".join(detail.split())[:600].rstrip(".")
        super().__init__(f"The query failed: {text}.", code="query-failed")


class OutOfTime(WorkError):
    def __init__(self, limit_s: float) -> None:
        super().__init__(
            f"The query took longer than {limit_s:g} s and was stopped. Let it read less, or give "
            "the stage more time.",
            code="query-time",
        )


class RowsLost(WorkError):
    """What arrived in a table is not what was sent. Nothing was changed."""

    def __init__(self, sent: int, found: int) -> None:
        super().__init__(
            f"{sent:,} rows were sent and {found:,} arrived: the table was left as it was. Run it "
            "again.",
            code="rows-lost",
            sent=sent,
            found=found,
        )


class Superseded(WorkError):
    """A later attempt has written to the table. Nothing was changed."""

    def __init__(self, table: str) -> None:
        super().__init__(
            f"A later run has written to {table} meanwhile, so it was left as it is.",
            code="superseded",
        )


def compare_columns(table: str, there: Sequence[str], ours: Sequence[str]) -> None:
    """Raise WorkError, with their names, for columns that only one of the two has."""
    lacking = [name for name in ours if name not in there]
    more = [name for name in there if name not in ours]
    if lacking or more:
        said = []
        if lacking:
            said.append(f"it lacks {', '.join(lacking[:20])}")
        if more:
            said.append(f"it has {', '.join(more[:20])}, of which nothing is known here")
        raise WorkError(
            f'The table "{table}" has other columns than what is to be written: '
            f"{'; '.join(said)}. Change either, or write to another table.",
            code="columns-differ",
            lacking=lacking,
            more=more,
        )


def table_parts(table: str) -> tuple[str, ...]:
    """``schema.name`` or ``name`` as its parts. Raises WorkError for what names no table.

    Whatever a part holds, it is quoted where it is used: this only finds mistakes early.
    """
    parts = tuple(table.split("."))
    if not (1 <= len(parts) <= 2) or not all(
        part and len(part) <= 200 and part.isprintable() and part.strip() == part for part in parts
    ):
        raise WorkError(
            f'"{table[:100]}" names no table: write "name" or "schema.name".', code="table-name"
        )
    return parts
