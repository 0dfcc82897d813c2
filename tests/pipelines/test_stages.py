"""The data stages, done by a real node: what the web side hears of them."""

import io
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.stages.warehouse import opened
from tests.node.conftest import Node, shared_node  # noqa: F401 - a fixture
from tests.pipelines.postgres import PASSWORD, Server, running
from workers.node.child import PlatformError

pytestmark = pytest.mark.xdist_group("pipeline-stages")

DUCKDB = {"kind": "duckdb", "settings": {}, "secrets": {}, "reach": "", "max_bytes": 2**30}


@pytest.fixture(scope="module")
def server():
    with tempfile.TemporaryDirectory(prefix="flowml-warehouse-") as folder:
        Path(folder).chmod(0o755)
        with running(Path(folder) / "pg") as found:
            found.run(
                "CREATE TABLE sales AS SELECT i AS id, i % 3 AS shop "
                "FROM generate_series(1, 50000) i"
            )
            yield found


def postgres(server: Server, **more) -> dict:
    return {
        "kind": "postgres",
        "settings": server.settings,
        "secrets": {"password": PASSWORD},
        "reach": f"localhost:{server.port}",
        "max_bytes": 2**30,
        **more,
    }


def parquet(**columns) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def do(node: Node, kind: str, payload: dict, told: dict, **inputs: bytes) -> dict:
    task = node.web.add(
        f"pipeline.{kind}", {"run_id": "run-1", **payload}, inputs=inputs, engine="",
        confidential=told,
    )  # fmt: skip
    end = node.web.wait_end(task, 60)
    assert PASSWORD not in str(end) + str(node.web.events[task])
    return end


def table(node: Node, end: dict) -> pa.Table:
    assert end["outcome"] == "succeeded", end
    return pq.read_table(io.BytesIO(node.web.artifacts[end["result"]["files"]["data"]][0]))


def test_data_sets_are_queried_and_written_by_the_embedded_warehouse(shared_node: Node) -> None:  # noqa: F811
    sales = parquet(shop=["a", "b", "a"], n=[1, 2, 3])
    payload = {
        "sql": "SELECT shop, sum(n)::BIGINT AS n FROM sales GROUP BY ALL ORDER BY shop",
        "tables": {"sales": "table0"},
    }
    end = do(shared_node, "sql", payload, DUCKDB, table0=sales)
    found = table(shared_node, end)
    assert found.to_pydict() == {"shop": ["a", "b"], "n": [4, 2]}
    assert end["result"]["data"]["rows"] == 2
    end = do(shared_node, "write-back", {"table": "totals"}, DUCKDB, data=parquet(x=[1, 2]))
    assert table(shared_node, end).to_pydict() == {"x": [1, 2]}
    end = do(shared_node, "test", {}, DUCKDB)
    assert "answers" in end["result"]["data"]["sentence"]


@pytest.mark.parametrize(
    ("sql", "code", "said"),
    [
        ("SELECT * FROM sales WHERE n > 9", "no-rows", "no rows"),
        ("SELECT * FROM read_text('task.json')", "query-refused", "read_text"),
        ("SELECT n, n FROM sales", "column-names", "more than one column called n"),
        ("SELECT nn FROM sales", "query-failed", "nn"),
        ("SELECT range AS i, hash(range) AS h FROM range(3000000)", "too-large", "larger than"),
    ],
)
def test_a_query_that_gives_nothing_useful_says_why(shared_node: Node, sql, code, said) -> None:  # noqa: F811
    payload = {"sql": sql, "tables": {"sales": "table0"}}
    told = {**DUCKDB, "max_bytes": 2**20}
    end = do(shared_node, "sql", payload, told, table0=parquet(n=[1]))
    assert (end["outcome"], end["code"], end["fault"]) == ("failed", code, "work")
    assert said in end["error"]


def test_rows_go_from_one_database_to_another_table_of_it(shared_node: Node, server) -> None:  # noqa: F811
    told = postgres(server)
    end = do(shared_node, "test", {}, told)
    assert "answers postgres" in end["result"]["data"]["sentence"]
    end = do(shared_node, "sql", {"sql": "SELECT id, shop FROM sales"}, told)
    found = table(shared_node, end)
    assert (found.num_rows, end["result"]["data"]["rows"]) == (50_000, 50_000)
    content = shared_node.web.artifacts[end["result"]["files"]["data"]][0]
    for _ in range(2):  # as after an end that was never heard
        end = do(shared_node, "write-back", {"table": "copy"}, told, data=content)
        assert end["result"]["data"]["rows"] == 50_000
        assert server.run("SELECT count(*), sum(id) FROM copy") == [(50_000, 1_250_025_000)]
    append = {"table": "copy", "mode": "append", "run_id": "run-7"}
    for _ in range(2):
        do(shared_node, "write-back", append, told, data=parquet(id=[0], shop=[9]))
    assert server.run("SELECT count(*) FROM copy") == [(50_001,)]


def test_what_may_not_be_reached_is_not(shared_node: Node, server) -> None:  # noqa: F811
    end = do(shared_node, "sql", {"sql": "SELECT 1 AS x"}, postgres(server, reach=""))
    assert end["code"] == "not-allowed"
    assert "FLOWML_REACH" in end["error"]
    wrong = postgres(server, secrets={"password": PASSWORD[::-1]})
    end = do(shared_node, "test", {}, wrong)
    assert "password authentication failed" in end["error"]
    assert PASSWORD[::-1] not in str(end)
    end = do(shared_node, "test", {}, {"problem": "The connection was deleted."})
    assert end["error"] == "The connection was deleted."


def test_a_node_whose_virtualenv_is_too_old_is_at_fault_and_not_the_query(monkeypatch) -> None:
    told = {"kind": "postgres", "settings": {}, "secrets": {}, "reach": ""}
    monkeypatch.setitem(sys.modules, "pipelines.connectors.postgres", None)
    with (
        pytest.raises(PlatformError, match=r"tools/venvs\.py node"),
        opened({"confidential": told}),
    ):
        pass
