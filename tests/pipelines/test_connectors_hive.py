"""Hive as a warehouse, against a real server of its protocol."""

import datetime as dt
import time
from decimal import Decimal

import pyarrow as pa
import pytest

from pipelines import reach
from pipelines.connectors.base import Superseded
from pipelines.connectors.hive import NEW, OLD, Hive, only_reads
from tests.node.conftest import Node, shared_node  # noqa: F401 - a fixture
from tests.pipelines.hive import Server, running
from tests.pipelines.test_stages import parquet, table
from workers.node.channel import WorkError

NOON, LONG_AGO, AT_TEN = (
    dt.datetime.fromisoformat(at)
    for at in ("2024-01-01 12:00:00.000005", "0001-01-01", "2024-01-01 10:00:00.125")
)
WEIRD = "we`ird'; DROP TABLE victim; --"
real = [pytest.mark.heavy, pytest.mark.xdist_group("hive"), pytest.mark.timeout(400)]


def real_server(test):
    for mark in real:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("hive")) as found:
        yield found


@pytest.fixture
def warehouse(server: Server):
    found = Hive(server.settings, {"password": "any"}, server.rules, time_s=300)
    yield found
    found.close()


def told(warehouse, *statements: str) -> list[tuple]:
    """What the warehouse's own people see, past everything that is tested."""
    with warehouse._working() as cursor:
        for one in statements:
            warehouse._run(cursor, one)
        return cursor.fetchall() if statements[-1].startswith("SHOW") else []


def rows(result) -> list[dict]:
    return pa.Table.from_batches(list(result), schema=result.schema).to_pylist()


def batch(**columns) -> pa.RecordBatch:
    return pa.record_batch({name: pa.array(values) for name, values in columns.items()})


# --- Judging, without a server ---


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "select * from t where s = 'insert; drop' -- it's fine\n;",
        "WITH a AS (SELECT 1 AS x) SELECT x FROM a /* 'odd */",
        "(SELECT 1) UNION ALL (SELECT 2)",
        'SELECT `insert` FROM t JOIN u USING (id) WHERE r = "a\\"b"',
    ],
)
def test_a_select_is_taken_as_it_is(sql):
    assert only_reads(sql).rstrip() == sql.rstrip().removesuffix(";").rstrip()


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "DROP TABLE victim",
        "INSERT INTO victim SELECT 1",
        "FROM victim INSERT OVERWRITE TABLE other SELECT *",
        "WITH a AS (SELECT 1) INSERT INTO victim SELECT * FROM a",
        "/* SELECT */ DROP TABLE victim",
        "SELECT 1; DROP TABLE victim",
        "SET hive.exec.script.trust=true",
        "ADD JAR /tmp/x.jar",
        "SELECT TRANSFORM (x) USING 'sh -c id' AS (y) FROM victim",
        "SELECT reflect('java.lang.System', 'exit', 1)",
        # Read in one way by one server, and in another by the next.
        "WITH a AS (SELECT r'\\' AS x) INSERT INTO victim SELECT * FROM a WHERE x = ''",
        "WITH a AS (SELECT 1) /* /* */ ' */ INSERT INTO victim SELECT * FROM a -- '",
        "WITH a AS (SELECT 1) -- \\\n ' \n INSERT INTO victim SELECT * FROM a -- '",
        "SELECT 'without end",
    ],
)
def test_what_is_no_plain_select_is_refused(sql):
    with pytest.raises(WorkError) as refused:
        only_reads(sql)
    assert refused.value.code == "query-refused"


def test_only_what_the_operator_allows_is_reached():
    settings = {"host": "localhost", "port": 1}
    for change, rules, said in (
        ({}, (), "FLOWML_REACH"),
        ({}, reach.parse("localhost:1"), "can't be used"),
        ({"host": "/tmp"}, (), "no name or address"),
        ({"auth": "kerberos"}, (), "auth is one of"),
        ({"sslmode": "prefer"}, reach.parse("localhost:1"), "sslmode is one of"),
    ):
        with pytest.raises(WorkError) as failed:
            Hive({**settings, **change}, {"password": "pw-1"}, rules).check()
        assert said in failed.value.sentence
        assert "pw-1" not in failed.value.sentence


# --- Against the server ---


@real_server
def test_a_test_goes_to_the_address_that_was_judged(server):
    settings = {**server.settings, "host": "warehouse.example.org"}
    rules = reach.parse(f"localhost:{server.port} 127.0.0.1:{server.port} {settings['host']}:*")
    found = Hive(settings, {}, rules, resolve=lambda host, port: ["127.0.0.1"])
    assert "answers ann" in found.check()
    found.close()
    lost = Hive({**server.settings, "database": "no'where"}, {}, server.rules)
    with pytest.raises(WorkError, match="database no'where can't be used"):
        lost.check()


@real_server
def test_values_keep_their_types_and_mistakes_are_told(warehouse):
    result = warehouse.stream(
        "SELECT 1 AS a, CAST(2 AS BIGINT) AS b, CAST(1.5 AS DOUBLE) AS c, "
        "CAST('12.30' AS DECIMAL(8, 2)) AS d, true AS e, 'ü' AS f, CAST(NULL AS INT) AS g, "
        "DATE '2024-02-29' AS h, TIMESTAMP '2024-01-01 10:00:00.125' AS i, array(1, 2) AS j"
    )
    assert result.schema.field("d").type == pa.decimal128(8, 2)
    assert rows(result) == [{
        "a": 1, "b": 2, "c": 1.5, "d": Decimal("12.30"), "e": True, "f": "ü", "g": None,
        "h": dt.date(2024, 2, 29), "i": AT_TEN, "j": "[1,2]",
    }]  # fmt: skip
    none = warehouse.stream("SELECT 1 AS x, 'a' AS y WHERE 1 = 0")
    assert (none.schema.names, rows(none)) == (["x", "y"], [])
    for sql, said in (("SELECT * FROM nowhere", "nowhere"), ("SELECT FROM FROM", "FROM")):
        with pytest.raises(WorkError) as failed:
            warehouse.stream(sql)
        assert failed.value.code == "query-failed"
        assert said in failed.value.sentence
        assert "org.apache" not in failed.value.sentence
        assert "\tat " not in failed.value.sentence


@real_server
def test_a_large_result_comes_in_pieces(warehouse):
    count, most = 0, 0
    for one in warehouse.stream("SELECT id, repeat('x', 200) AS s FROM range(60000)"):
        count += one.num_rows
        most = max(most, one.nbytes)
    assert count == 60_000
    assert most < 6 << 20  # of 12 MB


@real_server
def test_a_query_that_takes_too_long_is_cancelled_at_the_server(server, warehouse):
    slow = "SELECT count(*) AS n FROM range(100000000) a JOIN range(100000000) b ON a.id % 7 < b.id"
    quick = Hive(server.settings, {}, server.rules, time_s=3)
    with pytest.raises(WorkError, match="longer than 3 s"):
        quick.stream(slow)
    # One task at a time runs there: had it gone on, nobody else would get an answer.
    began = time.monotonic()
    assert rows(warehouse.stream("SELECT count(*) AS n FROM range(10)")) == [{"n": 10}]
    assert time.monotonic() - began < 200


@real_server
def test_a_table_is_replaced_whole_and_holds_what_was_sent(warehouse):
    sent = pa.record_batch({
        "id": pa.array([1, 2, 3], pa.int64()),
        "text": ["it's '); DROP TABLE scores; --\\ ü,/\n", "", None],
        "score": [float("nan"), 1e-300, None],
        "at": pa.array([NOON, LONG_AGO, None]),
        "day": [dt.date(2024, 2, 29), None, dt.date(1, 1, 1)],
        "yes": [True, False, None],
        "sum": pa.array([Decimal("-1.25"), None, Decimal("0.00")], pa.decimal128(8, 2)),
        WEIRD: ["a", "b", "c"],
    })  # fmt: skip
    assert warehouse.replace("Scores", sent.schema, [sent], "run1", token=5) == 3
    found = rows(warehouse.stream("SELECT * FROM scores ORDER BY id"))
    assert str(found[0].pop("score")) == "nan"
    # Names of columns have no case there.
    wanted = [{name.lower(): value for name, value in row.items()} for row in sent.to_pylist()]
    del wanted[0]["score"]
    assert found == wanted
    assert warehouse.replace("default.scores", sent.schema, [sent.slice(1)], "run2", token=6) == 2
    assert rows(warehouse.stream("SELECT min(id) AS id FROM scores")) == [{"id": 2}]
    for token, said in ((5, "A later run"), (7, "")):  # a writer that was cut off comes back
        if said:
            with pytest.raises(Superseded, match=said):
                warehouse.replace("scores", sent.schema, [sent], "run1", token=token)
    assert rows(warehouse.stream("SELECT count(*) AS n FROM scores")) == [{"n": 2}]


@real_server
def test_rows_are_added_once_for_each_run(warehouse):
    one, two = batch(id=[1, 2]), batch(id=[3])
    assert warehouse.append("log", one.schema, [one], "runa", token=1) == 2
    assert warehouse.append("log", two.schema, [two], "runb", token=2) == 1
    assert warehouse.append("log", one.schema, [one], "runa", token=3) == 2  # tried again
    assert rows(warehouse.stream("SELECT id FROM log ORDER BY id")) == [
        {"id": 1}, {"id": 2}, {"id": 3},
    ]  # fmt: skip


@real_server
def test_a_write_that_does_not_come_to_its_end_leaves_the_table(warehouse, server):
    told(
        warehouse, "CREATE TABLE kept (id TINYINT, name STRING)", "INSERT INTO kept VALUES (7, 'a')"
    )

    def breaks():
        yield batch(id=[1], name=["b"])
        raise RuntimeError("the source went away")

    good = batch(id=[1], name=["b"])
    with pytest.raises(RuntimeError):
        warehouse.replace("kept", good.schema, breaks(), "run1", token=1)
    for bad, said in (
        (batch(id=[1], points=[1.0]), "it lacks points; it has name"),
        (batch(id=[1000], name=["x"]), "id|overflow|1000"),
    ):
        with pytest.raises(WorkError, match=said):
            warehouse.replace("kept", bad.schema, [bad], "run1", token=2)
    assert rows(warehouse.stream("SELECT * FROM kept")) == [{"id": 7, "name": "a"}]

    # Killed between the two renames, or while it filled its own table: the next puts it right.
    told(warehouse, f"ALTER TABLE kept RENAME TO kept{OLD}", f"CREATE TABLE kept{NEW}3 (x INT)")
    assert warehouse.append("kept", good.schema, [good], "run2", token=4) == 1
    found = rows(warehouse.stream("SELECT id FROM kept ORDER BY id"))
    assert found == [{"id": 1}, {"id": 7}]
    assert {row[1] for row in told(warehouse, "SHOW TABLES LIKE 'kept*'")} == {"kept"}

    def overtaken():
        yield good
        other = Hive(server.settings, {}, server.rules, time_s=300)
        assert other.replace("kept", good.schema, [good, good], "run4", token=9) == 2
        other.close()

    with pytest.raises(WorkError):  # the later one has dropped what this one fills
        warehouse.replace("kept", good.schema, overtaken(), "run3", token=8)
    assert rows(warehouse.stream("SELECT count(*) AS n FROM kept")) == [{"n": 2}]


@real_server
def test_what_is_no_plain_table_is_not_written_to(warehouse):
    told(
        warehouse,
        "CREATE VIEW seen AS SELECT 1 AS x",
        "CREATE TABLE parted (x INT, p STRING) PARTITIONED BY (p) STORED AS PARQUET",
    )
    one = batch(x=[1])
    for name, said in (
        ("seen", "not to a view"),
        ("parted", "partitioned"),
        ("we`ird", "can't be a table"),
        ("a.b.c", "names no table"),
    ):
        with pytest.raises(WorkError, match=said):
            warehouse.replace(name, one.schema, [one], "run1", token=1)
    lists = pa.record_batch({"tags": [["a"]]})
    with pytest.raises(WorkError, match="'tags' holds list"):
        warehouse.replace("other", lists.schema, [lists], "run1", token=1)


@real_server
def test_a_node_writes_to_it_and_reads_from_it(shared_node: Node, server) -> None:  # noqa: F811
    told_it = {
        "kind": "hive",
        "settings": server.settings,
        "secrets": {"password": "s3cret-of-hive"},
        "reach": f"localhost:{server.port}",
        "max_bytes": 2**30,
    }

    def done(kind: str, payload: dict, **inputs: bytes) -> dict:
        task = shared_node.web.add(
            f"pipeline.{kind}", {"run_id": "run1", **payload}, inputs=inputs, engine="",
            confidential=told_it,
        )  # fmt: skip
        end = shared_node.web.wait_end(task, 240)
        assert "s3cret-of-hive" not in str(end) + str(shared_node.web.events[task])
        return end

    content = parquet(id=[1, 2], name=["a", None])
    end = done("write-back", {"table": "nodes", "began": 7}, data=content)
    assert end["outcome"] == "succeeded", end
    assert end["result"]["data"]["rows"] == 2
    end = done("sql", {"sql": "SELECT * FROM nodes ORDER BY id"})
    assert table(shared_node, end).to_pylist() == [
        {"id": 1, "name": "a"}, {"id": 2, "name": None},
    ]  # fmt: skip
    end = done("sql", {"sql": "SELECT * FROM nodes WHERE id > 9"})
    assert (end["code"], end["fault"]) == ("no-rows", "work")
