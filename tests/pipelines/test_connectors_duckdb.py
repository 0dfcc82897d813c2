"""The embedded warehouse: it answers SQL over the given files, and reaches nothing else."""

import os
import resource
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.connectors.duckdb import DuckDB
from workers.node.channel import WorkError


@pytest.fixture
def sales(tmp_path: Path) -> Path:
    path = tmp_path / "it's.parquet"
    pq.write_table(pa.table({"shop": ["a", "b", "a"], "sum": [1.5, 2.0, None]}), path)
    return path


@pytest.fixture
def warehouse(sales: Path, tmp_path: Path):
    found = DuckDB({"sales": sales, 'we"ird': sales}, tmp_path / "work", ram_mib=256, time_s=60)
    yield found
    found.close()


def rows(result) -> list[dict]:
    return pa.Table.from_batches(list(result), schema=result.schema).to_pylist()


def test_sql_reads_the_tables_by_name(warehouse):
    found = warehouse.stream(
        "WITH s AS (FROM sales) SELECT shop, sum(sum) AS n FROM s GROUP BY 1 ORDER BY 1"
    )
    assert found.schema.names == ["shop", "n"]
    assert rows(found) == [{"shop": "a", "n": 1.5}, {"shop": "b", "n": 2.0}]
    assert rows(warehouse.stream('SELECT count(*) AS n FROM "we""ird"')) == [{"n": 3}]
    assert "answers" in warehouse.check()


def test_values_are_parameters(warehouse):
    evil = "a' OR 1=1 --"
    assert rows(warehouse.stream("SELECT * FROM sales WHERE shop = ?", [evil])) == []
    found = warehouse.stream("SELECT count(*) AS n FROM sales WHERE shop = $shop", {"shop": "a"})
    assert rows(found) == [{"n": 2}]


# What is no SELECT over tables is refused before it runs.
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM sales WHERE shop IN (SELECT content FROM read_text('/etc/passwd'))",
        "WITH x AS (SELECT * FROM read_blob('/proc/self/environ')) SELECT * FROM x",
        "SELECT (SELECT count(*) FROM glob('/*'))",
        "SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')",
        "SELECT * FROM query_table(['sales'])",
        "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
        "SELECT * FROM arrow_scan(1, 2, 3)",
        "SELECT * FROM pandas_scan(1)",
        "SELECT * FROM sales, LATERAL (SELECT * FROM sniff_csv('/etc/passwd'))",
        "SELECT * FROM PaRqUeT_sCaN('/etc/passwd')",
        "COPY sales TO '{here}/out.csv'",
        "COPY sales TO '{sales}' (FORMAT parquet, USE_TMP_FILE false)",
        "EXPORT DATABASE '{here}/out'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "ATTACH '{here}/other.db'",
        "SET enable_external_access = true",
        "RESET enable_external_access",
        "PRAGMA enable_external_access = true",
        "SET lock_configuration = false",
        "CREATE TABLE x AS SELECT 1",
        "CREATE MACRO f(x) AS x",
        "DROP VIEW sales",
        "CREATE SECRET (TYPE s3, KEY_ID 'a', SECRET 'b')",
        "CALL enable_logging()",
        "SELECT 1; COPY sales TO '{here}/out.csv'",
        "EXPLAIN ANALYZE SELECT 1",
        "",
        ";",
    ],
)
def test_anything_else_is_refused(warehouse, sales, tmp_path, sql):
    before = sales.read_bytes()
    with pytest.raises(WorkError) as refused:
        rows(warehouse.stream(sql.format(here=tmp_path, sales=str(sales).replace("'", "''"))))
    assert refused.value.code == "query-refused"
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [sales.name]
    assert sales.read_bytes() == before
    assert rows(warehouse.stream("SELECT count(*) AS n FROM sales")) == [{"n": 3}]


# And should the first line ever let something through, DuckDB itself would not do it.
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_blob('/proc/self/environ')",
        "SELECT * FROM glob('/etc/*')",
        "FROM '/etc/passwd'",
        "FROM 'https://example.org/x.csv'",
        "FROM read_parquet('s3://bucket/x.parquet')",
        "COPY sales TO '{here}/out.csv'",
        "EXPORT DATABASE '{here}/out'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "LOAD '{here}/own.so'",
        "ATTACH '{here}/other.db'",
        "SET enable_external_access = true",
        "RESET enable_external_access",
        "PRAGMA enable_external_access = true",
        "SET allowed_paths = ['/etc/passwd']",
        "SET allowed_directories = ['/']",
        "SET lock_configuration = false",
        "SET memory_limit = '100GB'",
        "SET temp_directory = '/'",
        "SET python_enable_replacements = true",
        "SELECT * FROM os",
        "SELECT getenv('PATH')",
    ],
)
def test_the_engine_itself_is_locked(warehouse, tmp_path, sql):
    os.environ["HOME"], home = str(tmp_path), os.environ.get("HOME", "")
    try:
        with pytest.raises(duckdb.Error):
            warehouse._db.execute(sql.format(here=tmp_path)).fetchall()
    finally:
        os.environ["HOME"] = home
    assert not (tmp_path / "out.csv").exists()


def test_a_query_without_end_is_stopped(sales, tmp_path):
    quick = DuckDB({"sales": sales}, tmp_path / "work", ram_mib=256, time_s=0.3)
    with pytest.raises(WorkError, match=r"longer than 0\.3 s"):
        rows(
            quick.stream(
                "SELECT count(*) FROM range(1000000) a, range(1000000) b "
                "WHERE hash(a.range) % 7 = hash(b.range) % 11"
            )
        )
    assert rows(quick.stream("SELECT 1 AS one")) == [{"one": 1}]  # the clock was for that query


def test_a_query_that_needs_too_much_memory_says_so(warehouse):
    with pytest.raises(WorkError) as failed:
        rows(warehouse.stream("SELECT list(range) AS l FROM range(100000000)"))
    assert failed.value.code == "query-memory"


def test_a_large_result_never_sits_in_memory(warehouse):
    sql = "SELECT range AS i, 'number ' || range AS s, range / 3 AS f FROM range(10000000)"
    result = warehouse.stream(sql)
    count = next(iter(result)).num_rows
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count += sum(batch.num_rows for batch in result)
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert count == 10_000_000
    assert grown_mib < 200  # the whole table takes some 350


def test_mistakes_are_told_with_the_engines_word(warehouse):
    for sql, said in (
        ("SELECT * FROM sails", "sails"),
        ("SELECT cost FROM sales", "cost"),
        ("SELEC 1", "SELEC"),
        ("SELECT shop::INTEGER FROM sales", "convert"),
    ):
        with pytest.raises(WorkError) as failed:
            rows(warehouse.stream(sql))
        assert failed.value.code == "query-failed"
        assert said in failed.value.sentence


def test_a_table_is_written_whole_or_not_at_all(warehouse, tmp_path):
    one = pa.record_batch({"x": [1, 2]})
    assert warehouse.replace("scores", one.schema, [one, one], "run-1") == 4
    assert pq.read_table(tmp_path / "work" / "scores.parquet").num_rows == 4

    def breaks():
        yield one
        raise RuntimeError("the source went away")

    with pytest.raises(RuntimeError):
        warehouse.replace("scores", one.schema, breaks(), "run-2")
    assert pq.read_table(tmp_path / "work" / "scores.parquet").num_rows == 4
    with pytest.raises(WorkError, match="names no table"):
        warehouse.replace("a.b.c", one.schema, [one], "run-3")


def test_rows_are_added_to_those_that_are_there(tmp_path):
    before = tmp_path / "before.parquet"
    pq.write_table(pa.table({"x": pa.array([1, 2], pa.int64()), "s": ["a", None]}), before)
    house = DuckDB({"before": before}, tmp_path / "work")
    more = pa.record_batch({"s": ["b"], "x": pa.array([3], pa.int8())})
    assert house.append("log", more.schema, [more], "run-1") == 1
    found = pq.read_table(tmp_path / "work" / "log.parquet")
    assert found.to_pydict() == {"x": [1, 2, 3], "s": ["a", None, "b"]}
    for bad, said in (
        (pa.record_batch({"x": [1]}), "has s"),
        (pa.record_batch({"x": [1.5], "s": ["b"]}), "'x' fit the data set's column"),
    ):
        with pytest.raises(WorkError, match=said):
            house.append("log", bad.schema, [bad], "run-2")
    assert pq.read_table(tmp_path / "work" / "log.parquet").num_rows == 3
    house.close()
    new = DuckDB({}, tmp_path / "new")
    assert new.append("log", more.schema, [more], "run-1") == 1
    new.close()
