"""PostgreSQL: results by a cursor on the server, tables replaced in one transaction. No Django."""

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.csv
from psycopg import errors, sql

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
LOCK_S = 60  # how long a write waits for those who hold the table
LEDGER = "flowml_writes"
REPLACED = "(replaced)"  # stands there for the run, where a table got other rows as a whole
BATCH_BYTES = 16 << 20
SSL_MODES = ("prefer", "require", "verify-full", "disable")
# PostgreSQL's own numbers of types (pg_type.dat). Anything else comes as text.
TYPES: dict[int, pa.DataType] = {
    16: pa.bool_(), 21: pa.int16(), 23: pa.int32(), 20: pa.int64(), 26: pa.int64(),
    700: pa.float32(), 701: pa.float64(), 1082: pa.date32(), 1114: pa.timestamp("us"),
    1184: pa.timestamp("us", "UTC"),
}  # fmt: skip
NUMERIC, BYTEA = 1700, 17


class Postgres:
    """A Warehouse. ``settings``: host, port, database, user, sslmode. ``secrets``: password.

    Only what ``rules`` allow is reached, at the address that was judged. Connects when first used.
    Nothing is taken from the environment or from files of the machine.
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
        self._open: psycopg.Connection[Any] | None = None

    @property
    def _where(self) -> str:
        return f"{self._settings['host']}:{self._settings.get('port') or 5432}"

    def check(self) -> str:
        """Raises WorkError with what to change, where it can't be used."""
        with self._transaction(read_only=True) as cursor:
            cursor.execute("SELECT current_setting('server_version'), current_user::text")
            version, user = cursor.fetchone() or ("", "")
            tls = "encrypted" if self._connected().pgconn.ssl_in_use else "not encrypted"
        return f"PostgreSQL {version} at {self._where} answers {user}. The connection is {tls}."

    def stream(self, sql: str, params: Mapping[str, Any] | Sequence[Any] = ()) -> Result:
        """Values are ``%s`` or ``%(name)s`` in ``sql``. The transaction can only read."""
        stack = contextlib.ExitStack()
        with stack:
            stack.enter_context(self._transaction(read_only=True))
            cursor = stack.enter_context(self._connected().cursor(name="flowml_query"))
            with self._in_words():
                # Declared by the extended protocol: a second statement in the text is refused.
                cursor.execute(sql.encode(), params or None)
                columns = [_Column(one) for one in cursor.description or ()]
            for column in columns:
                column.refuse_bytes()
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
        """A table that is there keeps its columns, keys, indexes, grants and views, and gets other
        rows; one that is not is made. All in one transaction."""
        ledger = self._ledger(table, needed=False) if token else None
        with self._writing(table, run_id) as (cursor, target):
            self._refuse_older(cursor, ledger, table, token)
            staging, sent = self._staged(cursor, table, target, schema, batches)
            # Those who read meanwhile see the old rows until the commit, and wait for nothing.
            cursor.execute(sql.SQL("DELETE FROM {}").format(target))
            _move(cursor, staging, target, schema)
            cursor.execute(sql.SQL("SELECT count(*) FROM {}").format(target))
            [arrived] = cursor.fetchone() or (0,)
            if arrived != sent:
                raise RowsLost(sent, arrived)
            self._note(cursor, ledger, table, REPLACED, sent, token)
        return sent

    def append(
        self,
        table: str,
        schema: pa.Schema,
        batches: Iterable[pa.RecordBatch],
        run_id: str,
        token: int = 0,
    ) -> int:
        """Beside the table stands ``flowml_writes``, which remembers what was added to it by whom:
        a run that is tried again adds nothing twice."""
        ledger = self._ledger(table, needed=True)
        assert ledger is not None
        with self._writing(table, run_id) as (cursor, target):
            name = table_parts(table)[-1]
            before = "SELECT rows FROM {} WHERE table_name = %s AND run_id = %s"
            cursor.execute(sql.SQL(before).format(ledger), [name, run_id])
            if found := cursor.fetchone():
                return int(found[0])
            self._refuse_older(cursor, ledger, table, token)
            staging, sent = self._staged(cursor, table, target, schema, batches)
            _move(cursor, staging, target, schema)
            if cursor.rowcount != sent:
                raise RowsLost(sent, cursor.rowcount)
            self._note(cursor, ledger, table, run_id, sent, None)
        return sent

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    # --- Within ---

    def _connected(self) -> psycopg.Connection[Any]:
        if self._open is not None and not self._open.closed:
            return self._open
        settings = self._settings
        host, port = str(settings["host"]), int(settings.get("port") or 5432)
        mode = str(settings.get("sslmode") or "prefer")
        if mode not in SSL_MODES:
            raise WorkError(f"sslmode is one of {', '.join(SSL_MODES)}.", code="connection")
        try:
            target = reach.reach(self._rules, host, port, self._resolve)
        except reach.Refused as refused:
            raise WorkError(str(refused), code="not-allowed") from None
        count = len(target.addresses)
        try:
            self._open = psycopg.connect(
                host=",".join([target.host] * count),  # what TLS compares its certificate with
                hostaddr=",".join(target.addresses),  # and this is where it really connects
                port=str(port),
                dbname=str(settings.get("database") or ""),
                user=str(settings.get("user") or ""),
                password=str(self._secrets.get("password") or ""),
                sslmode=mode,
                sslrootcert="system" if mode == "verify-full" else "",
                connect_timeout=CONNECT_S,
                client_encoding="UTF8",
                application_name="flowml",
                passfile="/dev/null",
                gssencmode="disable",
                prepare_threshold=None,
            )
        except psycopg.Error as error:
            raise WorkError(
                f"PostgreSQL at {self._where} can't be used: {_why(error)}. Check host, port, "
                "database, user and password.",
                code="connection",
            ) from None
        for kind in ("json", "jsonb", "interval", "time", "timetz"):
            self._open.adapters.register_loader(kind, psycopg.types.string.TextLoader)
        return self._open

    @contextlib.contextmanager
    def _transaction(self, *, read_only: bool) -> Iterator[psycopg.Cursor[Any]]:
        with self._in_words():
            connection = self._connected()
            connection.read_only = read_only
            with connection.transaction(), connection.cursor() as cursor:
                limit = f"{max(1, int(self._time_s * 1000))}ms"
                cursor.execute("SELECT set_config('statement_timeout', %s, true)", [limit])
                yield cursor

    @contextlib.contextmanager
    def _writing(
        self, table: str, run_id: str
    ) -> Iterator[tuple[psycopg.Cursor[Any], sql.Identifier]]:
        """A transaction that alone of FlowML's writes to ``table``."""
        parts = table_parts(table)
        with self._transaction(read_only=False) as cursor:
            name = f"flowml {run_id}"[:63]  # to be seen in pg_stat_activity
            cursor.execute("SELECT set_config('application_name', %s, true)", [name])
            cursor.execute("SELECT set_config('lock_timeout', %s, true)", [f"{LOCK_S}s"])
            key = ".".join(parts)
            cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [key])
            yield cursor, sql.Identifier(*parts)

    def _ledger(self, table: str, *, needed: bool) -> sql.Identifier | None:
        """The table that remembers the writes, made if need be; None where this user may not and
        it is not ``needed``: who may only write to one table can still replace it, unfenced.

        In a transaction of its own, for others need not wait for a whole write to see it.
        """
        ledger = sql.Identifier(*table_parts(table)[:-1], LEDGER)
        make = (
            "CREATE TABLE IF NOT EXISTS {} (table_name text, run_id text, rows bigint, "
            "at timestamptz DEFAULT now(), token bigint, PRIMARY KEY (table_name, run_id))"
        )
        rights = "SELECT bool_and(has_table_privilege(%s, one)) FROM unnest(%s::text[]) AS one"
        with self._transaction(read_only=False) as cursor:
            try:
                with self._connected().transaction():
                    # Two who make it at once would trip over each other, IF NOT EXISTS or not.
                    lock = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 1))"
                    cursor.execute(lock, [LEDGER])
                    columns = self._columns_of(cursor, ledger)
                    if columns is None:
                        cursor.execute(sql.SQL(make).format(ledger))
                    elif "token" not in columns:  # of an older FlowML
                        more = sql.SQL("ALTER TABLE {} ADD COLUMN IF NOT EXISTS token bigint")
                        cursor.execute(more.format(ledger))
                    wanted = [ledger.as_string(cursor), ["SELECT", "INSERT", "UPDATE"]]
                    cursor.execute(rights, wanted)
                    if cursor.fetchone() != (True,):
                        raise errors.InsufficientPrivilege(f"permission denied for table {LEDGER}")
            except errors.InsufficientPrivilege:
                if needed:
                    raise
                return None
        return ledger

    def _refuse_older(
        self,
        cursor: psycopg.Cursor[Any],
        ledger: sql.Identifier | None,
        table: str,
        token: int,
    ) -> None:
        """Raise Superseded where a later attempt has replaced the table. Held by the lock of the
        table's writes, so that what is found here is true until the commit."""
        if ledger is None or not token:
            return
        ask = "SELECT token FROM {} WHERE table_name = %s AND run_id = %s"
        cursor.execute(sql.SQL(ask).format(ledger), [table_parts(table)[-1], REPLACED])
        found = cursor.fetchone()
        if found and (found[0] or 0) > token:
            raise Superseded(table)

    def _note(
        self,
        cursor: psycopg.Cursor[Any],
        ledger: sql.Identifier | None,
        table: str,
        run_id: str,
        rows: int,
        token: int | None,
    ) -> None:
        if ledger is None or token == 0:
            return
        note = (
            "INSERT INTO {} (table_name, run_id, rows, token) VALUES (%s, %s, %s, %s) "
            "ON CONFLICT (table_name, run_id) "
            "DO UPDATE SET rows = excluded.rows, token = excluded.token, at = now()"
        )
        cursor.execute(sql.SQL(note).format(ledger), [table_parts(table)[-1], run_id, rows, token])

    def _staged(
        self,
        cursor: psycopg.Cursor[Any],
        table: str,
        target: sql.Identifier,
        schema: pa.Schema,
        batches: Iterable[pa.RecordBatch],
    ) -> tuple[sql.Identifier, int]:
        """The rows in a temporary table with the types of ``target``, which is made if need be.

        Returns its name and how many they are. Meanwhile nobody is kept from the target.
        """
        found = self._columns_of(cursor, target)
        if found is None:
            cursor.execute(_create(target, schema))
        else:
            compare_columns(table, found, schema.names)
        staging, names = sql.Identifier("pg_temp", "flowml_staging"), _names(schema)
        cursor.execute(
            sql.SQL(
                "CREATE TEMPORARY TABLE flowml_staging ON COMMIT DROP AS "
                "SELECT {} FROM {} WITH NO DATA"
            ).format(names, target)
        )
        sent = 0
        options = pyarrow.csv.WriteOptions(include_header=False, quoting_style="all_valid")
        copy_in = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT csv, ENCODING 'UTF8')")
        with cursor.copy(copy_in.format(staging, names)) as copy:
            for batch in batches:
                text = io.BytesIO()
                pyarrow.csv.write_csv(_plain(batch), text, options)
                copy.write(text.getbuffer())
                sent += batch.num_rows
        return staging, sent

    def _columns_of(self, cursor: psycopg.Cursor[Any], target: sql.Identifier) -> list[str] | None:
        """The columns of a table, or None where there is none. Raises WorkError for a view."""
        cursor.execute("SELECT to_regclass(%s)::oid", [target.as_string(cursor)])
        [oid] = cursor.fetchone() or (None,)
        if oid is None:
            return None
        cursor.execute("SELECT relkind::text FROM pg_class WHERE oid = %s", [oid])
        if cursor.fetchone() not in {("r",), ("p",)}:
            raise WorkError("Rows can only be written to a table, not to a view.", code="no-table")
        cursor.execute(
            "SELECT attname::text FROM pg_attribute "
            "WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            [oid],
        )
        return [name for (name,) in cursor.fetchall()]

    def _batches(
        self,
        cursor: psycopg.ServerCursor[Any],
        columns: list["_Column"],
        schema: pa.Schema,
        open_: contextlib.ExitStack,
    ) -> Iterator[pa.RecordBatch]:
        count = 1000
        with open_, self._in_words():
            while rows := cursor.fetchmany(count):
                arrays = [
                    column.array(values)
                    for column, values in zip(columns, zip(*rows, strict=True), strict=True)
                ]
                batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
                yield batch
                # Wide rows come by fewer: what counts is their size.
                fitting = BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)
                count = max(10, min(BATCH_ROWS, count * 4, fitting))

    @contextlib.contextmanager
    def _in_words(self) -> Iterator[None]:
        """The server's errors as sentences."""
        try:
            yield
        except errors.LockNotAvailable:
            raise WorkError(
                f"Others held the table for longer than {LOCK_S} s: it was left as it was.",
                code="table-locked",
            ) from None
        except errors.QueryCanceled:
            raise OutOfTime(self._time_s) from None
        except errors.ReadOnlySqlTransaction:
            raise WorkError(
                "A query here reads, and does nothing else: write a SELECT.", code="query-refused"
            ) from None
        except psycopg.OperationalError as error:
            if error.sqlstate is not None and not isinstance(error, errors.AdminShutdown):
                raise QueryFailed(_said(error)) from None
            raise WorkError(
                f"The connection to {self._where} was lost. Nothing was changed.",
                code="connection-lost",
            ) from None
        except psycopg.Error as error:
            raise QueryFailed(_said(error)) from None


class _Column:
    """One column of a result, on its way to Arrow."""

    def __init__(self, told: psycopg.Column) -> None:
        self.name = told.name
        self.is_bytes = told.type_code == BYTEA
        self.type = TYPES.get(told.type_code, pa.string())
        if told.type_code == NUMERIC:
            # Without a declared precision, exact digits could be any number of them.
            digits, scale = told.precision, told.scale
            known = digits is not None and scale is not None and 0 <= scale <= digits <= 38
            self.type = pa.decimal128(digits, scale) if known else pa.float64()
        self.is_text = pa.types.is_string(self.type)

    def refuse_bytes(self) -> None:
        if self.is_bytes:
            raise WorkError(
                f"Column '{self.name}' holds bytes, which no table here can keep: leave it out.",
                code="column-type",
                columns=[self.name],
            )

    def array(self, values: Sequence[Any]) -> pa.Array:
        if self.is_text:
            values = [one if one is None or isinstance(one, str) else _text(one) for one in values]
        elif pa.types.is_float64(self.type):
            values = [None if one is None else float(one) for one in values]
        return pa.array(values, self.type)


def _text(value: Any) -> str:
    if isinstance(value, list | dict):
        return json.dumps(value, default=str, ensure_ascii=False)
    return str(value)


def _why(error: psycopg.Error) -> str:
    """Why no connection came about, in short: libpq tells a line for every address."""
    lines = [one.strip() for one in str(error).splitlines() if one.strip()]
    told = [one for one in lines if "failed: " in one] or lines or ["no reason was given"]
    return told[-1].rpartition("failed: ")[2].removeprefix("FATAL:").strip().rstrip(".")


def _said(error: psycopg.Error) -> str:
    """The server's words, with its hint."""
    told = error.diag
    text = told.message_primary or str(error)
    parts = [text, told.message_detail, told.message_hint]
    return " ".join(part.rstrip(".") + "." for part in parts if part)


def _names(schema: pa.Schema) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, schema.names))


def _move(
    cursor: psycopg.Cursor[Any], staging: sql.Identifier, target: sql.Identifier, schema: pa.Schema
) -> None:
    names = _names(schema)
    move = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}")
    cursor.execute(move.format(target, names, names, staging))


def _create(target: sql.Identifier, schema: pa.Schema) -> sql.Composed:
    columns = [
        sql.SQL("{} {}").format(sql.Identifier(field.name), sql.SQL(_type_of(field)))  # type: ignore[arg-type]
        for field in schema
    ]
    return sql.SQL("CREATE TABLE {} ({})").format(target, sql.SQL(", ").join(columns))


def _type_of(field: pa.Field) -> str:
    """PostgreSQL's type for a column of Arrow's. Raises WorkError for lists and the like."""
    kind, is_ = field.type, pa.types
    if is_.is_dictionary(kind):
        kind = kind.value_type
    if is_.is_decimal(kind):
        return f"numeric({int(kind.precision)}, {int(kind.scale)})"
    for test, name in (
        (is_.is_boolean, "boolean"),
        (lambda one: is_.is_int8(one) or is_.is_int16(one) or is_.is_uint8(one), "smallint"),
        (lambda one: is_.is_int32(one) or is_.is_uint16(one), "integer"),
        (lambda one: is_.is_int64(one) or is_.is_uint32(one), "bigint"),
        (is_.is_uint64, "numeric(20, 0)"),
        (lambda one: is_.is_float16(one) or is_.is_float32(one), "real"),
        (is_.is_float64, "double precision"),
        (lambda one: is_.is_string(one) or is_.is_large_string(one) or is_.is_null(one), "text"),
        (is_.is_string_view, "text"),
        (is_.is_date, "date"),
        (lambda one: is_.is_timestamp(one) and one.tz, "timestamptz"),
        (is_.is_timestamp, "timestamp"),
        (is_.is_time, "time"),
    ):
        if test(kind):
            return name
    raise WorkError(
        f"Column '{field.name}' holds {field.type} values, which a table of PostgreSQL can't take "
        "from here: leave it out.",
        code="column-type",
        columns=[field.name],
    )


def _plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch as pyarrow can write it to CSV: no dictionaries, no views of strings."""
    arrays, fields = [], []
    for field, array in zip(batch.schema, batch.columns, strict=True):
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if pa.types.is_string_view(kind):
            kind = pa.large_string()
        arrays.append(array.cast(kind))
        fields.append(pa.field(field.name, kind))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
