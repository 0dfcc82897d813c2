"""SQL over Parquet files by an embedded DuckDB that can reach nothing else.

Its SQL is code that somebody sent. Three lines stand around it: only one statement is taken, which
must be a SELECT whose FROM uses nothing but tables and a few harmless functions (judged by
DuckDB's own parser); then DuckDB itself is locked (no external access but to the given files, no
extensions, no change of settings, a memory and a time limit); and the process it runs in has left
the network before (stages/sql.py). Imports no Django.
"""

import contextlib
import itertools
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.connectors.base import (
    BATCH_ROWS,
    OutOfTime,
    QueryFailed,
    Result,
    RowsLost,
    compare_columns,
    table_parts,
)
from workers.node.channel import WorkError

# Functions of FROM that read nothing but their arguments. Others read files, run SQL from text, or
# take addresses in memory (arrow_scan).
HARMLESS = frozenset({
    "range", "generate_series", "unnest", "repeat", "repeat_row", "json_each", "json_tree",
})  # fmt: skip
BEFORE = "before"  # among the tables of a write: what rows are added to
LOCKED = {
    "allow_community_extensions": False,
    "allow_persistent_secrets": False,
    "allow_unsigned_extensions": False,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    # Else names in SQL could be variables of this Python program.
    "python_enable_replacements": False,
}


class DuckDB:
    """A Warehouse over ``tables``: name in SQL -> Parquet file. Writes go to files in ``work``."""

    def __init__(
        self,
        tables: Mapping[str, Path],
        work: Path,
        *,
        ram_mib: int = 1024,
        time_s: float = 600.0,
        disk_mib: int = 4096,
        threads: int = 2,
    ) -> None:
        self._work = work
        self._files = dict(tables)
        self._time_s = time_s
        self._expired = False
        spill = work / "spill"
        spill.mkdir(parents=True, exist_ok=True)
        self._db = duckdb.connect(
            ":memory:",
            config={
                **LOCKED,
                "memory_limit": f"{ram_mib}MiB",
                "threads": threads,
                "temp_directory": str(spill),
                "max_temp_directory_size": f"{disk_mib}MiB",
                "extension_directory": str(work / "no-extensions"),
            },
        )
        files = [str(path.resolve()) for path in tables.values()]
        self._db.execute("SET TimeZone = 'UTC'")
        self._db.execute("SET allowed_paths = ?", [files])
        self._db.execute("SET enable_external_access = false")
        for name, file in zip(tables, files, strict=True):
            # A view is text: neither its name nor its file can be a parameter.
            source = f"SELECT * FROM read_parquet({_literal(file)})"  # noqa: S608
            self._db.execute(f"CREATE VIEW {_quoted(name)} AS {source}")
        self._db.execute("SET lock_configuration = true")

    def check(self) -> str:
        """Raises WorkError when the engine can't be used."""
        with self._in_words(), self._in_time():
            self._db.sql("SELECT 1").fetchall()
        return f"DuckDB {duckdb.__version__} answers. Queries read your organization's data sets."

    def stream(self, sql: str, params: Mapping[str, Any] | Sequence[Any] = ()) -> Result:
        with self._in_words():
            self._judge(sql)
            asked = params if isinstance(params, Mapping) else list(params)
            relation = self._db.sql(sql, params=asked or None)
        if relation is None:  # nothing that gives rows
            raise _only_select()
        clock = self._in_time()
        with self._in_words():
            clock.__enter__()
            try:
                reader = relation.to_arrow_reader(BATCH_ROWS)
            except BaseException:
                clock.__exit__(None, None, None)
                raise
        return Result(reader.schema, self._batches(reader, clock))

    def replace(
        self,
        table: str,
        schema: pa.Schema,
        batches: Iterable[pa.RecordBatch],
        run_id: str,
        token: int = 0,
    ) -> int:
        """Write ``table`` as ``<work>/<table>.parquet``; the web side makes a data set of it.

        ``token`` means nothing here: the web side takes the file of the one attempt that it has
        accepted, and no other.
        """
        return self._write(table, schema, batches)

    def append(
        self,
        table: str,
        schema: pa.Schema,
        batches: Iterable[pa.RecordBatch],
        run_id: str,
        token: int = 0,
    ) -> int:
        """The rows of the table BEFORE, if there is one, and then these. Returns how many these
        are. Raises WorkError for other columns, and for values that do not fit those there."""
        before = self._files.get(BEFORE)
        if before is None:
            return self._write(table, schema, batches)
        with pq.ParquetFile(before) as old:
            there = old.schema_arrow
            compare_columns(table, there.names, schema.names)
            rows = itertools.chain(old.iter_batches(), (_fitted(one, there) for one in batches))
            return self._write(table, there, rows) - int(old.metadata.num_rows)

    def _write(self, table: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
        name = ".".join(table_parts(table)).replace("/", "_")
        target, staging = self._work / f"{name}.parquet", self._work / f"{name}.staging"
        sent = 0
        with pq.ParquetWriter(staging, schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
                sent += batch.num_rows
        found = int(pq.read_metadata(staging).num_rows)
        if found != sent:
            staging.unlink()
            raise RowsLost(sent, found)
        staging.rename(target)
        return found

    def close(self) -> None:
        self._db.close()

    def _judge(self, sql: str) -> None:
        """Raise WorkError unless ``sql`` is one SELECT over tables and harmless functions."""
        statements = self._db.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise _only_select()
        [[text]] = self._db.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()
        tree = json.loads(text)
        if tree.get("error"):
            raise QueryFailed(str(tree.get("error_message") or "it can't be read as a SELECT"))
        for node in _nodes(tree):
            if node.get("type") == "TABLE_FUNCTION":
                name = str((node.get("function") or {}).get("function_name", "")).lower()
                if name not in HARMLESS:
                    raise WorkError(
                        f"FROM {name}(…) is not allowed here: name your data sets as tables.",
                        code="query-refused",
                        function=name,
                    )

    def _batches(
        self, reader: pa.RecordBatchReader, clock: contextlib.AbstractContextManager[None]
    ) -> Iterator[pa.RecordBatch]:
        try:
            with self._in_words():
                yield from reader
        finally:
            clock.__exit__(None, None, None)

    @contextlib.contextmanager
    def _in_time(self) -> Iterator[None]:
        """Interrupt what runs when its time is over."""

        def end() -> None:
            self._expired = True
            self._db.interrupt()

        self._expired = False
        timer = threading.Timer(self._time_s, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        """DuckDB's errors as sentences for the one who wrote the query."""
        try:
            yield
        except duckdb.InterruptException:
            raise OutOfTime(self._time_s) from None
        except duckdb.OutOfMemoryException:
            raise WorkError(
                "The query needs more memory than it may have. Let it read fewer columns, or sort "
                "and join less.",
                code="query-memory",
            ) from None
        except (duckdb.Error, pa.ArrowException) as error:
            if self._expired:
                raise OutOfTime(self._time_s) from None
            raise QueryFailed(str(error)) from None


def _fitted(batch: pa.RecordBatch, there: pa.Schema) -> pa.RecordBatch:
    """The batch with the columns of ``there``, in its order and of its types."""
    arrays = []
    for field in there:
        try:
            arrays.append(batch.column(field.name).cast(field.type))
        except pa.ArrowException:
            raise WorkError(
                f"Not all values of '{field.name}' fit the data set's column, which is "
                f"{field.type}: nothing was changed.",
                code="column-type",
                columns=[field.name],
            ) from None
    return pa.RecordBatch.from_arrays(arrays, schema=there)


def _only_select() -> WorkError:
    return WorkError(
        "Write one SELECT (WITH is fine): a query here reads, and does nothing else.",
        code="query-refused",
    )


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON tree, however deep."""
    todo = [tree]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            yield one
            todo.extend(one.values())
        elif isinstance(one, list):
            todo.extend(one)


def _quoted(name: str) -> str:
    """A name as SQL's quoted identifier."""
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
