"""Hive by the HiveServer2 protocol (Spark's Thrift server speaks it, too). No Django.

The protocol knows neither transactions nor parameters. So a query is looked at before it is sent,
what is written goes through a table of its own that takes the other's place by its name, and rows
go as one text of digits and letters: nothing that comes from data is ever part of a statement.
"""

import contextlib
import datetime as dt
import itertools
import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import impala.error
import pyarrow as pa
from impala import hiveserver2
from impala._thrift_api import ThriftClient, get_transport
from thrift.protocol.TBinaryProtocol import TBinaryProtocolAccelerated
from thrift.Thrift import TException
from thrift.transport.TSocket import TSocket
from thrift.transport.TSSLSocket import TSSLSocket

from pipelines import reach
from pipelines.connectors.base import (
    BATCH_ROWS,
    OutOfTime,
    QueryFailed,
    Result,
    RowsLost,
    Superseded,
    compare_columns,
    table_parts,
)
from workers.node.channel import WorkError

CONNECT_S = 10
PORT = 10000
AUTHS = ("plain", "nosasl")
TLS_MODES = ("disable", "require", "verify-full")
TEXT_BYTES = 1 << 20  # of rows, in one statement
ROWS_BYTES = 4 << 20  # of a result, in one answer
TABLE = re.compile(r"[a-z0-9_]{1,100}")
PLAIN_TYPE = re.compile(r"[a-z]+( *\( *\d+( *, *\d+)? *\))?")
NEW, OLD = "__flowml_", "__flowml_old"  # what stands behind a table's name while it is written
MOST_RUNS = 100  # that a table remembers

# What HiveServer2 calls the columns of a result. Anything else comes as text.
TYPES: dict[str, pa.DataType] = {
    "BOOLEAN": pa.bool_(), "TINYINT": pa.int8(), "SMALLINT": pa.int16(), "INT": pa.int32(),
    "BIGINT": pa.int64(), "FLOAT": pa.float32(), "DOUBLE": pa.float64(), "DATE": pa.date32(),
    "TIMESTAMP": pa.timestamp("us"),
}  # fmt: skip


@dataclass
class _Table:
    """What the warehouse tells of a table: type by column, and what FlowML noted with it."""

    columns: dict[str, str]
    notes: dict[str, str]

    @property
    def token(self) -> int:
        # Not called a token: Spark shows no property whose name sounds like a secret.
        text = self.notes.get("flowml.order", "")
        return int(text) if text.isdecimal() else 0

    @property
    def runs(self) -> dict[str, int]:
        """The rows that each run has appended."""
        pairs = (one.partition("=") for one in self.notes.get("flowml.runs", "").split())
        return {run: int(rows) for run, _, rows in pairs if rows.isdecimal()}


class Hive:
    """A Warehouse. ``settings``: host, port, database, user, auth, sslmode. ``secrets``: password.

    Only what ``rules`` allow is reached, at the address that was judged. Connects when first used.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        secrets: Mapping[str, str],
        rules: Sequence[reach.Rule],
        *,
        time_s: float = 600.0,
        resolve: reach.Resolver | None = None,
    ) -> None:
        self._settings = settings
        self._secrets = secrets
        self._rules = rules
        self._time_s = time_s
        self._resolve = resolve
        self._ends_at = 0.0
        self._open: Any = None
        self._cursor: Any = None

    @property
    def _where(self) -> str:
        return f"{self._settings['host']}:{self._settings.get('port') or PORT}"

    @property
    def _database(self) -> str:
        return str(self._settings.get("database") or "default").lower()

    def check(self) -> str:
        """Raises WorkError with what to change, where it can't be used."""
        with self._working() as cursor:
            self._run(cursor, "SELECT 1")
            cursor.fetchmany(1)
        tls = "not encrypted" if self._mode == "disable" else "encrypted"
        return f"HiveServer2 at {self._where} answers {self._user}. The connection is {tls}."

    def stream(self, sql: str, params: Mapping[str, Any] | Sequence[Any] = ()) -> Result:
        """One SELECT. There are no parameters: the protocol would have them pasted."""
        if params:
            raise WorkError("Queries of Hive take no parameters.", code="query-refused")
        sql = only_reads(sql)
        stack = contextlib.ExitStack()
        with stack:
            cursor = stack.enter_context(self._working())
            self._run(cursor, sql)
            told = cursor.description or ()
            columns = [_Column(*one[:2], *one[4:6]) for one in _short(told)]
            rest = stack.pop_all()
        schema = pa.schema([(column.name, column.type) for column in columns])
        return Result(schema, self._batches(cursor, columns, schema, rest))

    def replace(
        self,
        table: str,
        schema: pa.Schema,
        batches: Iterable[pa.RecordBatch],
        run_id: str,
        token: int = 0,
    ) -> int:
        """A new table takes the name of the old one. Between the two renames that this takes, for
        some milliseconds, there is no table of that name; never a part of one."""
        with self._writing(table, token) as (cursor, target, there):
            staging = self._staging(cursor, target, there, schema, token)
            sent = self._fill(cursor, staging, there, schema, batches)
            self._swap(cursor, target, staging, token, there.runs if there else {})
        return sent

    def append(
        self,
        table: str,
        schema: pa.Schema,
        batches: Iterable[pa.RecordBatch],
        run_id: str,
        token: int = 0,
    ) -> int:
        """A copy of the table with the new rows takes its place: an INSERT can't be taken back.

        The table remembers in its properties which runs were added.
        """
        with self._writing(table, token) as (cursor, target, there):
            if there and run_id in there.runs:
                return there.runs[run_id]
            staging = self._staging(cursor, target, there, schema, token)
            before = 0
            if there is not None:
                before = self._count(cursor, target)
                # Names within statements are checked and quoted: no statement takes them apart.
                self._run(cursor, f"INSERT INTO TABLE {staging} SELECT * FROM {target}")  # noqa: S608
            sent = self._fill(cursor, staging, there, schema, batches, copied=there is not None)
            if there is not None and (now := self._count(cursor, target)) != before:
                raise WorkError(
                    f"Others wrote to {table} meanwhile ({before:,} rows became {now:,}): it was "
                    "left as it is. Run it again.",
                    code="table-changed",
                )
            runs = {**(there.runs if there else {}), run_id: sent}
            self._swap(cursor, target, staging, there.token if there else 0, runs)
        return sent

    def close(self) -> None:
        cursor, self._cursor = self._cursor, None
        service, self._open = self._open, None
        with contextlib.suppress(Exception):  # it may be the far side that is gone
            if cursor is not None:
                cursor.close()  # cancels what runs
        with contextlib.suppress(Exception):
            if service is not None:
                service.close()

    # --- The connection ---

    @property
    def _user(self) -> str:
        return str(self._settings.get("user") or "flowml")

    @property
    def _mode(self) -> str:
        mode = str(self._settings.get("sslmode") or "disable")
        if mode not in TLS_MODES:
            raise WorkError(f"sslmode is one of {', '.join(TLS_MODES)}.", code="connection")
        return mode

    def _connected(self) -> Any:
        """An open session, as impyla's cursor."""
        if self._cursor is not None:
            return self._cursor
        host, port = str(self._settings["host"]), int(self._settings.get("port") or PORT)
        auth = str(self._settings.get("auth") or "plain")
        if auth not in AUTHS:
            raise WorkError(f"auth is one of {', '.join(AUTHS)}.", code="connection")
        try:
            target = reach.reach(self._rules, host, port, self._resolve)
        except reach.Refused as refused:
            raise WorkError(str(refused), code="not-allowed") from None
        problem: Exception = OSError("nobody answers")
        for address in target.addresses:
            try:
                self._cursor = self._session(target.host, address, port, auth)
                break
            except (OSError, TException, impala.error.Error, EOFError) as error:
                problem = error
                self.close()
        if self._cursor is None:
            raise WorkError(
                f"HiveServer2 at {self._where} can't be used: {_first_line(problem)}. Check host, "
                "port, user, password, and how it wants users to sign in.",
                code="connection",
            ) from None
        try:
            self._run(self._cursor, f"USE {_quoted(self._database)}")
        except impala.error.Error as error:
            self.close()
            raise WorkError(
                f"The database {self._database} can't be used: {_said(str(error))[:300]}",
                code="connection",
            ) from None
        return self._cursor

    def _session(self, host: str, address: str, port: int, auth: str) -> Any:
        # impyla's own connect() would look the name up once more.
        if self._mode == "disable":
            sock: Any = TSocket(address, port)
        else:
            context = ssl.create_default_context()
            if self._mode == "require":
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            sock = TSSLSocket(address, port, ssl_context=context, server_hostname=host)
        sock.setTimeout(CONNECT_S * 1000)
        password = str(self._secrets.get("password") or "") or "none"  # SASL wants some
        transport = get_transport(sock, host, "hive", auth.upper(), self._user, password)
        transport.open()
        service = hiveserver2.HS2Service(
            ThriftClient(TBinaryProtocolAccelerated(transport)), retries=1
        )
        self._open = service
        made = hiveserver2.HiveServer2Connection(service).cursor(user=self._user)
        sock.setTimeout((self._time_s + CONNECT_S) * 1000)
        return made

    @contextlib.contextmanager
    def _working(self) -> Iterator[Any]:
        """A session, with its errors as sentences. A query that goes on is cancelled at the end."""
        self._ends_at = time.monotonic() + self._time_s
        with self._in_words():
            cursor = self._connected()
            try:
                yield cursor
            except BaseException:
                self.close()
                raise

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except impala.error.Error as error:
            raise QueryFailed(_said(str(error))) from None
        except (TimeoutError, TException, OSError, EOFError):
            if time.monotonic() > self._ends_at:
                raise OutOfTime(self._time_s) from None
            raise WorkError(
                f"The connection to {self._where} was lost. Nothing was changed.",
                code="connection-lost",
            ) from None

    def _run(self, cursor: Any, sql: str) -> None:
        """Run one statement to its end, or cancel it when the time is over."""
        cursor.execute_async(sql)
        pause = 0.01
        while True:
            if not cursor.is_executing():
                break
            if time.monotonic() > self._ends_at:
                cursor.cancel_operation()
                raise OutOfTime(self._time_s)
            time.sleep(pause)
            pause = min(0.5, pause * 1.5)
        cursor._wait_to_finish()  # raises what the server says of a failure

    def _rows(self, cursor: Any, sql: str) -> list[tuple[Any, ...]]:
        self._run(cursor, sql)
        found: list[tuple[Any, ...]] = cursor.fetchall()
        return found

    def _count(self, cursor: Any, table: str) -> int:
        [[count]] = self._rows(cursor, f"SELECT count(*) FROM {table}")  # noqa: S608
        return int(count)

    def _batches(
        self,
        cursor: Any,
        columns: list["_Column"],
        schema: pa.Schema,
        open_: contextlib.ExitStack,
    ) -> Iterator[pa.RecordBatch]:
        count = 1000
        with open_:
            while True:
                cursor.arraysize = count
                rows = cursor.fetchmany(count)
                if not rows:
                    break
                arrays = [
                    column.array(values)
                    for column, values in zip(columns, zip(*rows, strict=True), strict=True)
                ]
                batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
                yield batch
                if time.monotonic() > self._ends_at:
                    raise OutOfTime(self._time_s)
                fitting = ROWS_BYTES * batch.num_rows // max(1, batch.nbytes)
                count = max(10, min(BATCH_ROWS, count * 4, fitting))

    # --- Writing ---

    @contextlib.contextmanager
    def _writing(self, table: str, token: int) -> Iterator[tuple[Any, str, _Table | None]]:
        """A session, the table's quoted name and what is there, with traces of writes that were cut
        off put right. Raises Superseded where a newer run has written or is about to."""
        parts = tuple(part.lower() for part in table_parts(table))
        if not all(TABLE.fullmatch(part) for part in parts):
            raise WorkError(
                f'"{table[:100]}" can\'t be a table of Hive: use letters, digits and "_".',
                code="table-name",
            )
        database, name = (self._database, *parts)[-2:]
        target = f"{_quoted(database)}.{_quoted(name)}"
        with self._working() as cursor:
            tables = self._tables(cursor, database, name)
            old = f"{_quoted(database)}.{_quoted(name + OLD)}"
            if name + OLD in tables:
                if name in tables:
                    self._run(cursor, f"DROP TABLE {old}")
                else:  # a swap was cut off between its renames
                    self._run(cursor, f"ALTER TABLE {old} RENAME TO {target}")
                    tables[name] = tables.pop(name + OLD)
            for other in tables:
                number = other.removeprefix(name + NEW)
                if number != other and number.isdecimal():
                    if int(number) > token:
                        raise Superseded(table)
                    # Who still writes to it is an older attempt, and finds it gone.
                    self._run(cursor, f"DROP TABLE {_quoted(database)}.{_quoted(other)}")
            if "VIEW" in tables.get(name, ""):
                raise WorkError(
                    "Rows can only be written to a table, not to a view.", code="no-table"
                )
            there = self._told_of(cursor, target) if name in tables else None
            if there and there.token > token > 0:
                raise Superseded(table)
            try:
                yield cursor, target, there
            except BaseException:
                self._ends_at = time.monotonic() + CONNECT_S
                with contextlib.suppress(Exception):  # else the next write drops it
                    self._run(cursor, f"DROP TABLE IF EXISTS {target[:-1]}{NEW}{token}`")
                raise

    def _tables(self, cursor: Any, database: str, name: str) -> dict[str, str]:
        """The kind of each table that is called ``name``, or so with more behind it."""

        def ask() -> None:
            cursor._last_operation_string = "tables"
            like = f"{_pattern(name)}%"
            cursor._last_operation = cursor.session.get_tables(_pattern(database), like)

        cursor._execute_async(ask)
        cursor._wait_to_finish()
        return {
            str(row[2]).lower(): str(row[3]).upper()
            for row in cursor.fetchall()
            if str(row[1]).lower() == database and str(row[2]).lower().startswith(name)
        }

    def _told_of(self, cursor: Any, target: str) -> _Table:
        columns: dict[str, str] = {}
        for name, kind, *_ in self._rows(cursor, f"DESCRIBE {target}"):
            if not name or str(name).startswith("#"):
                if columns and "artition" in str(name or ""):
                    raise WorkError(
                        "The table is partitioned, which FlowML can't write to: name another, and "
                        "let the warehouse distribute its rows.",
                        code="no-table",
                    )
                continue
            columns[str(name).strip().lower()] = str(kind).strip().lower()
        notes = self._rows(cursor, f"SHOW TBLPROPERTIES {target}")
        return _Table(columns, {str(key): str(value or "") for key, value, *_ in notes})

    def _staging(
        self, cursor: Any, target: str, there: _Table | None, schema: pa.Schema, token: int
    ) -> str:
        """An empty table of the right columns, beside the target. Returns its quoted name."""
        names = [name.lower() for name in schema.names]
        if len(set(names)) < len(names):
            raise WorkError("Hive knows no columns that differ by case alone.", code="column-names")
        staging = f"{target[:-1]}{NEW}{token}`"
        if there is None:
            columns = ", ".join(f"{_quoted(one.name.lower())} {_type_of(one)}" for one in schema)
            self._run(cursor, f"CREATE TABLE {staging} ({columns}) STORED AS PARQUET")
        else:
            compare_columns(target.replace("`", ""), list(there.columns), names)
            for name, kind in there.columns.items():
                if not PLAIN_TYPE.fullmatch(kind) or kind == "binary":
                    raise WorkError(
                        f"Column '{name}' of the table holds {kind[:60]}, which can't be written.",
                        code="column-type",
                        columns=[name],
                    )
            self._run(cursor, f"CREATE TABLE {staging} LIKE {target}")
        return staging

    def _fill(
        self,
        cursor: Any,
        staging: str,
        there: _Table | None,
        schema: pa.Schema,
        batches: Iterable[pa.RecordBatch],
        *,
        copied: bool = False,
    ) -> int:
        """Insert the rows, and count them and the values of each column. Returns how many."""
        place = {name.lower(): n for n, name in enumerate(schema.names)}
        kinds = there.columns if there else {f.name.lower(): _type_of(f) for f in schema}
        picked = [
            _picked(place[name], schema.field(place[name]).type, kind)
            for name, kind in kinds.items()
        ]
        start = "SELECT {} FROM (SELECT split(r, ',') AS c FROM (SELECT explode(split('"
        head = f"INSERT INTO TABLE {staging} {start.format(', '.join(picked))}"
        counts = ", ".join(["count(*)", *(f"count({_quoted(name)})" for name in kinds)])
        ask = f"SELECT {counts} FROM {staging}"  # noqa: S608
        before: Sequence[Any] = [0] * (len(kinds) + 1)
        if copied:
            [before] = self._rows(cursor, ask)
        writers = [_writer(field) for field in schema]
        values = [0] * len(schema)
        sent, waiting, size = 0, list[str](), 0
        for batch in batches:
            cells = [
                ["N" if one is None else write(one) for one in column.to_pylist()]
                for write, column in zip(writers, batch.columns, strict=True)
            ]
            for n, column in enumerate(batch.columns):
                values[n] += len(column) - column.null_count
            for row in zip(*cells, strict=True):
                waiting.append(",".join(row))
                size += len(waiting[-1]) + 1
                if size >= TEXT_BYTES:
                    self._insert(cursor, head, waiting)
                    waiting, size = [], 0
            sent += batch.num_rows
        if waiting:
            self._insert(cursor, head, waiting)
        [after] = self._rows(cursor, ask)
        found, *counted = (int(b) - int(a) for a, b in zip(before, after, strict=True))
        if found != sent:
            raise RowsLost(sent, found)
        for name, count in zip(kinds, counted, strict=True):
            # A value that does not fit its column becomes NULL there, without a word.
            if count != values[place[name]]:
                raise WorkError(
                    f"Not all values of '{name}' fit the table's column, which is {kinds[name]}: "
                    "nothing was changed.",
                    code="column-type",
                    columns=[name],
                )
        return sent

    def _insert(self, cursor: Any, head: str, rows: list[str]) -> None:
        self._run(cursor, f"{head}{'/'.join(rows)}', '/')) AS r) t) u")

    def _swap(
        self, cursor: Any, target: str, staging: str, token: int, runs: Mapping[str, int]
    ) -> None:
        """Let ``staging`` take the target's name; a newer run's attempt has dropped it by then."""
        kept = dict(list(runs.items())[-MOST_RUNS:])
        told = " ".join(f"{run}={rows}" for run, rows in kept.items() if run.isalnum())
        note = f"('flowml.order' = '{int(token)}', 'flowml.runs' = '{told}')"
        self._run(cursor, f"ALTER TABLE {staging} SET TBLPROPERTIES {note}")
        database, name = (part.strip("`") for part in target.split("."))
        old = f"{target[:-1]}{OLD}`"
        tables = self._tables(cursor, database, name)
        if staging.rpartition(".")[2].strip("`") not in tables:
            raise Superseded(name)
        if name not in tables:
            self._run(cursor, f"ALTER TABLE {staging} RENAME TO {target}")
            return
        self._run(cursor, f"ALTER TABLE {target} RENAME TO {old}")
        try:
            self._run(cursor, f"ALTER TABLE {staging} RENAME TO {target}")
        except BaseException:
            self._run(cursor, f"ALTER TABLE {old} RENAME TO {target}")
            raise
        self._run(cursor, f"DROP TABLE {old}")


# --- Judging a query -----------------------------------------------------------------------------

_PIECE = re.compile(
    r"""(?P<comment>--[^\n]*|/\*.*?\*/)
    |(?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    |(?P<quoted>`(?:[^`]|``)*`)
    |(?P<word>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<other>\s+|.)""",
    re.DOTALL | re.VERBOSE,
)
# Run programs on the machines of the warehouse, or make Java do it.
_BARRED = frozenset({"reflect", "java_method", "try_reflect", "reflect2"})


def only_reads(sql: str) -> str:
    """The query without a semicolon at its end. Raises WorkError unless it is one SELECT.

    What the servers themselves read in two ways (comments within comments, raw strings) is refused.
    It is a belt: what the user of the connection may do is what counts.
    """
    pieces = [(one.lastgroup, one.group()) for one in _PIECE.finditer(sql)]
    code = [(kind, text) for kind, text in pieces if kind != "comment" and not text.isspace()]
    doubtful = any(
        kind == "comment" and ("/*" in text[2:] or text.endswith("\\")) for kind, text in pieces
    ) or any(
        text in {"'", '"', "`"} or (text == "/" and after.startswith("*"))
        for (_, text), (_, after) in itertools.pairwise([*pieces, ("", "")])
    )
    words = [text.lower() if kind == "word" else text for kind, text in code]
    while code and code[-1][1] == ";":
        code.pop()
        words.pop()
    first = next((word for word in words if word != "("), "")
    runs_programs = False
    for n, (word, (_, text)) in enumerate(zip(words, code, strict=True)):
        kind_after = code[n + 1][0] if n + 1 < len(code) else ""
        if kind_after == "string" and text.lower() == "r":
            doubtful = True
        runs_programs |= word == "using" and kind_after == "string"
    if runs_programs or _BARRED.intersection(words):
        raise WorkError(
            "A query here reads, and runs no programs in the warehouse.", code="query-refused"
        )
    if doubtful or first not in {"select", "with"} or ";" in words or "insert" in words:
        raise WorkError(
            "Write one SELECT (WITH is fine), with plain comments and strings: a query here reads, "
            "and does nothing else.",
            code="query-refused",
        )
    return sql.rstrip().rstrip(";").rstrip() if sql.rstrip().endswith(";") else sql


# --- Values --------------------------------------------------------------------------------------


class _Column:
    """One column of a result, on its way to Arrow."""

    def __init__(self, name: str, kind: str, digits: int | None, scale: int | None) -> None:
        self.name = name
        if kind == "BINARY":
            raise WorkError(
                f"Column '{name}' holds bytes, which no table here can keep: leave it out.",
                code="column-type",
                columns=[name],
            )
        self.type = TYPES.get(kind, pa.string())
        if kind == "DECIMAL":
            self.type = pa.decimal128(digits or 38, scale or 0)

    def array(self, values: Sequence[Any]) -> pa.Array:
        if pa.types.is_string(self.type):
            values = [one if one is None else _text(one) for one in values]
        elif pa.types.is_date(self.type):
            values = [dt.date.fromisoformat(one) if isinstance(one, str) else one for one in values]
        return pa.array(values, self.type)


def _text(value: Any) -> str:
    if isinstance(value, bytes):  # not UTF-8
        return value.decode(errors="replace")
    return str(value)


def _short(told: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """A result's columns by their own names: Hive puts the table's before them, with a dot."""
    short = [str(one[0]).rpartition(".")[2] for one in told]
    if all("." in str(one[0]) for one in told) and len(set(short)) == len(short):
        return [(name, *one[1:]) for name, one in zip(short, told, strict=True)]
    return list(told)


def _picked(place: int, given: pa.DataType, kind: str) -> str:
    """The SQL that takes a cell of a row's text as a value of the type ``kind``."""
    cell = f"c[{place}]"
    value = f"decode(unhex(substr({cell}, 2)), 'UTF-8')" if _is_text(given) else cell
    if kind != "string":
        value = f"CAST({value} AS {kind})"
    return f"IF({cell} = 'N', NULL, {value})"


def _is_text(kind: pa.DataType) -> bool:
    is_ = pa.types
    if is_.is_dictionary(kind):
        kind = kind.value_type
    return (
        is_.is_string(kind) or is_.is_large_string(kind) or is_.is_string_view(kind)
        or is_.is_time(kind) or is_.is_null(kind)
    )  # fmt: skip


def _writer(field: pa.Field) -> Callable[[Any], str]:
    """How a value of the column becomes letters and digits, with + - . : and spaces at most."""
    kind = field.type
    if _is_text(kind):
        return lambda one: "s" + str(one).encode().hex()
    if pa.types.is_boolean(kind):
        return lambda one: "true" if one else "false"
    if pa.types.is_timestamp(kind):
        return _moment
    if pa.types.is_floating(kind):
        return _number
    return lambda one: format(one, "f") if isinstance(one, Decimal) else str(one)


def _number(value: float) -> str:
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    return repr(value)


def _moment(value: dt.datetime) -> str:
    if value.tzinfo is not None:
        value = value.astimezone(dt.UTC)
    return value.strftime("%Y-%m-%d %H:%M:%S.%f").rjust(26, "0")


def _type_of(field: pa.Field) -> str:
    """Hive's type for a column of Arrow's. Raises WorkError for lists and the like."""
    kind, is_ = field.type, pa.types
    if _is_text(kind):
        return "string"
    if is_.is_decimal(kind):
        return f"decimal({int(kind.precision)},{int(kind.scale)})"
    for test, name in (
        (is_.is_boolean, "boolean"),
        (is_.is_int8, "tinyint"),
        (lambda one: is_.is_int16(one) or is_.is_uint8(one), "smallint"),
        (lambda one: is_.is_int32(one) or is_.is_uint16(one), "int"),
        (lambda one: is_.is_int64(one) or is_.is_uint32(one), "bigint"),
        (is_.is_uint64, "decimal(20,0)"),
        (lambda one: is_.is_float32(one) or is_.is_float16(one), "float"),
        (is_.is_float64, "double"),
        (is_.is_date, "date"),
        (is_.is_timestamp, "timestamp"),
    ):
        if test(kind):
            return name
    raise WorkError(
        f"Column '{field.name}' holds {field.type} values, which a table of Hive can't take from "
        "here: leave it out.",
        code="column-type",
        columns=[field.name],
    )


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _pattern(name: str) -> str:
    """A name as the protocol looks for it; what else it finds is left out afterwards."""
    return name.replace("_", "\\_")


def _said(text: str) -> str:
    """The server's words without its stack and the names of its classes."""
    text = re.split(r"\n\s*at |\tat |; Query ID", text)[0]
    text = re.sub(r"\b(?:[a-z]\w*\.){2,}[A-Z]\w*(?:Exception|Error):\s*", "", text)
    text = re.sub(r"^(Error running query|Error while compiling statement|FAILED):\s*", "", text)
    return text.partition("== SQL")[0].strip() or "no reason was given"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return _said(lines[0]).rstrip(".")
