"""PostgreSQL as a warehouse, against a real one."""

import datetime as dt
import resource
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines import reach
from pipelines.connectors.postgres import Postgres
from tests.pipelines.postgres import PASSWORD, Server, running
from workers.node.channel import WorkError

NOON, LONG_AGO = (dt.datetime.fromisoformat(at) for at in ("2024-01-01 12:00", "0001-01-01"))
WEIRD = 'we"ird; DROP TABLE victim; --'


@pytest.fixture(scope="module")
def server():
    # Not pytest's folder: PostgreSQL runs as another user, who can't enter it.
    with tempfile.TemporaryDirectory(prefix="flowml-warehouse-") as folder:
        Path(folder).chmod(0o755)
        with running(Path(folder) / "pg") as found:
            yield found


@pytest.fixture
def warehouse(server: Server):
    server.run("DROP SCHEMA public CASCADE")
    server.run("CREATE SCHEMA public")
    server.run("CREATE TABLE victim AS SELECT 1 AS x")
    found = Postgres(server.settings, {"password": PASSWORD}, server.rules, time_s=60)
    yield found
    found.close()


def rows(result) -> list[dict]:
    return pa.Table.from_batches(list(result), schema=result.schema).to_pylist()


def batch(**columns) -> pa.RecordBatch:
    return pa.record_batch({name: pa.array(values) for name, values in columns.items()})


# --- Reaching it ---


def test_a_test_says_what_was_found_or_what_to_change(server, warehouse):
    assert "answers postgres" in warehouse.check()
    for change, secret, rules, said in (
        ({}, "wrong", server.rules, "password authentication failed"),
        ({"database": "nowhere"}, PASSWORD, server.rules, '"nowhere" does not exist'),
        ({"port": 1}, PASSWORD, reach.parse("localhost:1"), "refused"),
        ({"sslmode": "require"}, PASSWORD, server.rules, "SSL"),
        ({}, PASSWORD, (), "FLOWML_REACH"),
        ({"host": "/tmp"}, PASSWORD, server.rules, "no name or address"),
        ({"sslmode": "allow' host='x"}, PASSWORD, server.rules, "sslmode is one of"),
        ({"database": "x host=example.org"}, PASSWORD, server.rules, "does not exist"),
    ):
        other = Postgres({**server.settings, **change}, {"password": secret}, rules)
        with pytest.raises(WorkError) as failed:
            other.check()
        assert said in failed.value.sentence
        assert PASSWORD not in failed.value.sentence


def test_it_connects_to_the_address_that_was_judged(server):
    """The name is known to nobody but the resolver here: libpq asks no other."""
    settings = {**server.settings, "host": "warehouse.example.org"}
    asked = []

    def resolve(host, port):
        asked.append(host)
        return ["127.0.0.1"]

    found = Postgres(settings, {"password": PASSWORD}, server.rules, resolve=resolve)
    assert "answers" in found.check()
    found.close()
    assert asked == ["warehouse.example.org"]
    inside = Postgres(
        settings, {"password": PASSWORD}, reach.parse(f"warehouse.example.org:{server.port}"),
        resolve=resolve,
    )  # fmt: skip
    with pytest.raises(WorkError, match="this machine itself"):
        inside.check()


# --- Reading ---


def test_values_keep_their_types(warehouse):
    result = warehouse.stream(
        "SELECT 1::smallint AS a, 2::bigint AS b, 1.5::float8 AS c, 12.30::numeric(8, 2) AS d, "
        "1.25::numeric AS e, true AS f, 'x'::text AS g, NULL::int AS h, '2024-02-29'::date AS i, "
        "'2024-01-01 10:00+02'::timestamptz AS j, '{\"k\": 1}'::jsonb AS k, ARRAY[1, 2] AS l, "
        "'10:30'::time AS m, gen_random_uuid() IS NOT NULL AS n, '1 day'::interval AS o"
    )
    [row] = rows(result)
    assert result.schema.field("d").type == pa.decimal128(8, 2)
    assert (row["a"], row["b"], row["c"], str(row["d"]), row["e"]) == (1, 2, 1.5, "12.30", 1.25)
    assert (row["f"], row["g"], row["h"], row["i"]) == (True, "x", None, dt.date(2024, 2, 29))
    assert row["j"] == dt.datetime(2024, 1, 1, 8, tzinfo=dt.UTC)
    assert (row["k"], row["l"], row["m"]) == ('{"k": 1}', "[1, 2]", "10:30:00")
    with pytest.raises(WorkError, match="'raw' holds bytes"):
        warehouse.stream("SELECT 'x'::bytea AS raw")


def test_no_rows_still_have_columns(warehouse):
    result = warehouse.stream("SELECT x, 'a' AS y FROM victim WHERE false")
    assert result.schema.names == ["x", "y"]
    assert rows(result) == []


def test_parameters_are_never_part_of_the_text(warehouse, server):
    evil = "'; DROP TABLE victim; --"
    assert rows(warehouse.stream("SELECT %s::text AS said", [evil])) == [{"said": evil}]
    found = warehouse.stream("SELECT x FROM victim WHERE x = %(x)s AND 5 %% 2 = 1", {"x": 1})
    assert rows(found) == [{"x": 1}]
    assert rows(warehouse.stream("SELECT 5 % 2 AS odd")) == [{"odd": 1}]
    assert server.run("SELECT x FROM victim") == [(1,)]


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE victim",
        "UPDATE victim SET x = 2 RETURNING x",
        "SELECT 1; DROP TABLE victim",
        "SELECT 1; COMMIT; DROP TABLE victim",
        "COMMIT; DROP TABLE victim",
        "WITH gone AS (DELETE FROM victim RETURNING x) SELECT * FROM gone",
        "SELECT set_config('transaction_read_only', 'off', false)",
        "SELECT nextval('counter')",
        "SELECT x INTO other FROM victim",
        "CALL something()",
        "",
    ],
)
def test_a_query_only_reads(warehouse, server, sql):
    server.run("CREATE SEQUENCE IF NOT EXISTS counter")
    with pytest.raises(WorkError) as refused:
        rows(warehouse.stream(sql))
    assert refused.value.code in {"query-refused", "query-failed"}
    assert server.run("SELECT x FROM victim") == [(1,)]
    # And the connection is good for another.
    assert rows(warehouse.stream("SELECT 1 AS one")) == [{"one": 1}]


def test_mistakes_are_told_in_the_servers_words(warehouse):
    with pytest.raises(WorkError, match='column "y" does not exist'):
        warehouse.stream("SELECT y FROM victim")
    with pytest.raises(WorkError, match="division by zero"):
        rows(warehouse.stream("SELECT 1 / (x - 1) FROM victim"))


def test_a_query_that_takes_too_long_is_stopped(server):
    quick = Postgres(server.settings, {"password": PASSWORD}, server.rules, time_s=0.3)
    with pytest.raises(WorkError, match=r"longer than 0\.3 s"):
        rows(quick.stream("SELECT pg_sleep(60)"))
    quick.close()


def test_a_large_result_never_sits_in_memory(warehouse):
    sql = "SELECT i, repeat('x', 500) AS s FROM generate_series(1, 400000) i"
    result = warehouse.stream(sql)
    count = next(iter(result)).num_rows
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for one in result:
        count += one.num_rows
        assert one.nbytes < 64 << 20
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert count == 400_000
    assert grown_mib < 150  # the rows are over 200 MB, and twice that as Python's objects


# --- Writing ---


def test_a_new_table_holds_what_was_sent(warehouse, server):
    sent = batch(
        id=[1, 2, 3],
        text=["", None, 'a "quote", a\nline, an ü and \\N'],
        score=[1.5, None, float("nan")],
        at=[NOON, None, LONG_AGO],
        day=[dt.date(2024, 1, 1), None, None],
        yes=[True, False, None],
    )
    assert warehouse.replace("scores", sent.schema, [sent, sent], "run-1") == 6
    found = server.run(
        "SELECT DISTINCT id, text, score::text, at, day, yes FROM scores ORDER BY id"
    )
    assert found == [
        (1, "", "1.5", NOON, dt.date(2024, 1, 1), True),
        (2, None, None, None, None, False),
        (3, 'a "quote", a\nline, an ü and \\N', "NaN", LONG_AGO, None, None),
    ]


def test_the_same_run_again_writes_nothing_twice(warehouse, server):
    sent = batch(id=[1, 2])
    for _ in range(2):
        assert warehouse.replace("public.scores", sent.schema, [sent], "run-1") == 2
    assert server.run("SELECT id FROM scores ORDER BY id") == [(1,), (2,)]


def test_a_table_that_is_there_keeps_all_but_its_rows(warehouse, server):
    server.run("CREATE TABLE scores (id bigint PRIMARY KEY, score numeric(5, 1) NOT NULL)")
    server.run("INSERT INTO scores VALUES (7, 7)")
    server.run("CREATE VIEW best AS SELECT max(score) AS score FROM scores")
    server.run("GRANT SELECT ON scores TO pg_monitor")
    sent = batch(score=[1.25, 2.0], id=[1, 2])
    assert warehouse.replace("scores", sent.schema, [sent], "run-1") == 2
    assert server.run("SELECT id, score::text FROM scores ORDER BY 1") == [(1, "1.3"), (2, "2.0")]
    assert server.run("SELECT score::int FROM best") == [(2,)]
    assert server.run("SELECT has_table_privilege('pg_monitor', 'scores', 'SELECT')") == [(True,)]
    assert server.run("SELECT count(*) FROM pg_indexes WHERE tablename = 'scores'") == [(1,)]
    for bad, said in (
        (batch(id=[3, 3], score=[1.0, 1.0]), "duplicate key"),
        (batch(id=[3], score=[None]), "null value"),
        (batch(id=[3], score=["much"]), "invalid input syntax"),
        (batch(id=[3], points=[1.0]), "it lacks points; it has score"),
    ):
        with pytest.raises(WorkError) as failed:
            warehouse.replace("scores", bad.schema, [bad], "run-2")
        assert said in failed.value.sentence
        assert server.run("SELECT id FROM scores ORDER BY 1") == [(1,), (2,)]


def test_rows_are_added_once_for_each_run(warehouse, server):
    one, two = batch(id=[1, 2]), batch(id=[3])
    assert warehouse.append("public.log", one.schema, [one], "run-1") == 2
    assert warehouse.append("public.log", two.schema, [two], "run-2") == 1
    assert warehouse.append("public.log", one.schema, [one], "run-1") == 2  # tried again
    assert server.run("SELECT id FROM log ORDER BY id") == [(1,), (2,), (3,)]
    assert warehouse.append("other", one.schema, [one], "run-1") == 2  # another table of that run

    def breaks():
        yield two
        raise RuntimeError("the source went away")

    with pytest.raises(RuntimeError):
        warehouse.append("log", two.schema, breaks(), "run-3")
    assert warehouse.append("public.log", two.schema, [two], "run-3") == 1
    assert server.run("SELECT count(*) FROM log") == [(4,)]
    wrong = batch(id=[1], more=["x"])
    with pytest.raises(WorkError, match="it lacks more"):
        warehouse.append("log", wrong.schema, [wrong], "run-4")


def test_a_writer_that_was_cut_off_and_comes_back_late_changes_nothing(warehouse, server):
    """Its node had lost the network: a later run has replaced the table by then."""
    old, new = batch(id=[1]), batch(id=[2, 3])
    late = Postgres(server.settings, {"password": PASSWORD}, server.rules, time_s=60)
    assert warehouse.replace("public.scores", old.schema, [old], "run-1", token=5) == 1
    assert warehouse.replace("public.scores", new.schema, [new], "run-2", token=6) == 2
    for write in (late.replace, late.append):
        with pytest.raises(WorkError) as refused:
            write("public.scores", old.schema, [old], "run-1", token=5)
        assert refused.value.code == "superseded"
    assert server.run("SELECT id FROM scores ORDER BY id") == [(2,), (3,)]
    # What comes after, and what is added by several at once, is not kept out.
    for run, token in (("run-4", 8), ("run-3", 7)):
        assert late.append("public.scores", old.schema, [old], run, token=token) == 1
    assert late.replace("public.scores", new.schema, [new], "run-1", token=9) == 2
    late.close()


def test_who_may_write_to_one_table_alone_can_replace_it(warehouse, server):
    server.run("DROP ROLE IF EXISTS clerk")
    server.run(f"CREATE ROLE clerk LOGIN PASSWORD '{PASSWORD}'")
    server.run("CREATE TABLE scores (id bigint)")
    server.run("GRANT USAGE ON SCHEMA public TO clerk")
    server.run("GRANT SELECT, INSERT, DELETE ON scores TO clerk")
    clerk = Postgres({**server.settings, "user": "clerk"}, {"password": PASSWORD}, server.rules)
    one = batch(id=[1])
    assert clerk.replace("scores", one.schema, [one], "run-1", token=5) == 1
    with pytest.raises(WorkError, match="permission denied"):
        clerk.append("scores", one.schema, [one], "run-2", token=6)
    clerk.close()


def test_a_write_that_breaks_off_changes_nothing(warehouse, server):
    one = batch(id=[1])
    warehouse.replace("scores", one.schema, [one], "run-1")

    def breaks():
        yield batch(id=[2])
        # Others see the old table while the new rows are on their way.
        assert server.run("SELECT id FROM scores") == [(1,)]
        raise RuntimeError("the source went away")

    for table in ("scores", "other"):
        with pytest.raises(RuntimeError):
            warehouse.replace(table, one.schema, breaks(), "run-2")
    assert server.run("SELECT id FROM scores") == [(1,)]
    assert server.run("SELECT to_regclass('other')") == [(None,)]
    assert server.run("SELECT count(*) FROM pg_class WHERE relname LIKE 'flowml%'") == [(0,)]

    def cut():
        yield batch(id=[2])
        server.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'flowml run-3'"
        )
        for _ in range(50):
            yield batch(id=list(range(100_000)))

    with pytest.raises(WorkError) as lost:
        warehouse.replace("scores", one.schema, cut(), "run-3")
    assert lost.value.code == "connection-lost"
    assert server.run("SELECT id FROM scores") == [(1,)]
    assert warehouse.replace("scores", one.schema, [one], "run-3") == 1  # it connects anew


def test_rows_that_a_trigger_swallows_are_noticed(warehouse, server):
    server.run("CREATE TABLE scores (id int)")
    server.run("INSERT INTO scores VALUES (7)")
    server.run("CREATE RULE none AS ON INSERT TO scores DO INSTEAD NOTHING")
    one = batch(id=[1])
    with pytest.raises(WorkError, match="1 rows were sent and 0 arrived"):
        warehouse.replace("scores", one.schema, [one], "run-1")
    assert server.run("SELECT id FROM scores") == [(7,)]


def test_names_are_quoted_whatever_they_hold(warehouse, server):
    one = pa.record_batch({WEIRD: [1], "Select": [2], "%s": [3]})
    for table in (WEIRD, f"public.{WEIRD}"):
        assert warehouse.replace(table, one.schema, [one], "run-1") == 1
    quoted = '"' + WEIRD.replace('"', '""') + '"'
    assert server.run(f'SELECT {quoted}, "Select" FROM {quoted}') == [(1, 2)]
    assert server.run("SELECT x FROM victim") == [(1,)]
    for bad in ("a.b.c", "", "a.", "x" * 300, " x"):
        with pytest.raises(WorkError, match="names no table"):
            warehouse.replace(bad, one.schema, [one], "run-1")


def test_what_no_table_can_take_is_named(warehouse, server):
    lists = pa.record_batch({"tags": [["a"]]})
    with pytest.raises(WorkError, match="'tags' holds list"):
        warehouse.replace("scores", lists.schema, [lists], "run-1")
    server.run("CREATE VIEW seen AS SELECT 1 AS x")
    one = batch(x=[1])
    with pytest.raises(WorkError, match="not to a view"):
        warehouse.replace("seen", one.schema, [one], "run-1")
