"""The node of a run dies in each of its stages: the run goes on, and no row is lost or doubled."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from flowml_site.platform import Platform
from tests.e2e.conftest import Person
from tests.pipelines.postgres import PASSWORD, Server, running

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.chaos,
    pytest.mark.timeout(500),
    pytest.mark.xdist_group("e2e"),
]
ENDS = {"succeeded", "failed", "cancelled"}
# Long enough to be met at work, on any machine.
SLOW = (
    "SELECT p.* FROM Palmer_penguins p, (SELECT count(*) AS n FROM range(40000) a, range(40000) b "
    "WHERE hash(a.range) % 7 = hash(b.range) % 11) AS long WHERE n > 0"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # Not pytest's folder: PostgreSQL runs as another user, who can't enter it.
    with tempfile.TemporaryDirectory(prefix="flowml-warehouse-") as folder:
        Path(folder).chmod(0o755)
        with running(Path(folder) / "pg") as found:
            yield found


def steps_of(run: Any) -> dict[str, Any]:
    return {step["key"]: step for step in run["steps"]}


def at_work(person: Person, path: str, step: Any) -> bool:
    """Whether a node does the step, or it is over already."""
    if step["state"] == "running" and step["key"] == "train":
        return bool(
            person.ok("GET", f"/api/training/{step['output']['job']}")["state"] == "running"
        )
    if step["state"] == "running" and step["key"] == "fetch":
        log = person.ok("GET", f"{path}logs?step=fetch&page_size=200")["results"]
        return any("The query runs" in line["message"] for line in log)
    return step["state"] != "pending"


def kill_the_node(platform: Platform) -> None:
    """With all that it has started, as a machine that loses its power."""
    node = psutil.Process(platform.process("node").pid)
    children = node.children(recursive=True)
    os.kill(node.pid, signal.SIGKILL)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def test_a_run_survives_the_death_of_its_node_in_each_stage(
    platform: Platform, person: Person, server: Server
) -> None:
    person.dataset("penguins")
    person.ok("POST", "/api/connections", json={"name": "house", "kind": "duckdb"})
    shop = {
        "name": "shop",
        "kind": "postgres",
        "settings": server.settings,
        "secrets": {"password": PASSWORD},
    }
    person.ok("POST", "/api/connections", json=shop)
    fetch = {"connection": "house", "sql": SLOW, "dataset": "fetched"}
    train = {"data": "$fetch", "target": "species", "engines": ["sklearn"], "time_budget": 8}
    score = {"model": "$train", "data": "$fetch", "dataset": "scored"}
    write = {"connection": "shop", "data": "$score", "table": "predictions"}
    stages = [
        {"key": "fetch", "stage": "sql", "params": fetch},
        {"key": "train", "stage": "train", "params": train},
        {"key": "score", "stage": "score", "params": score},
        {"key": "write", "stage": "write_back", "params": write},
    ]
    made = person.ok(
        "POST", "/api/pipelines/", json={"name": "nightly", "definition": {"stages": stages}}
    )
    runs = f"/api/pipelines/{made['id']}/runs/"
    # Somebody's table of that name, of other columns.
    server.run("CREATE TABLE predictions AS SELECT 1 AS x")
    run = person.ok("POST", runs, json={})
    path = f"{runs}{run['id']}/"
    for stage in ("fetch", "train", "score"):
        found = person.until(path, lambda r, s=stage: at_work(person, path, steps_of(r)[s]))
        assert found["state"] == "running", found
        kill_the_node(platform)
    ended = person.until(path, lambda r: r["state"] in ENDS, within=200)
    assert ended["state"] == "failed", "the table that is there has other columns"
    steps = steps_of(ended)
    assert {key: steps[key]["state"] for key in steps} == {
        "fetch": "succeeded", "train": "succeeded", "score": "succeeded", "write": "failed",
    }  # fmt: skip
    assert "it lacks" in steps["write"]["error"]
    assert server.run("SELECT x FROM predictions") == [(1,)], "nothing was touched"

    # Put right, it goes on where it stopped; and the node dies in the middle of the write.
    server.run("DROP TABLE predictions")
    with psycopg.connect(
        host="127.0.0.1", port=server.port, user="postgres", password=PASSWORD
    ) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(hashtextextended('predictions', 0))")
        person.ok("POST", f"{path}retry", json={})
        waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        deadline = time.monotonic() + 90
        while server.run(waits) == [(0,)]:
            assert time.monotonic() < deadline, "the write does not come to the table"
            time.sleep(0.2)
        kill_the_node(platform)
    ended = person.until(path, lambda r: r["state"] in ENDS, within=150)
    assert ended["state"] == "succeeded", ended
    steps = steps_of(ended)
    assert server.run("SELECT count(*) FROM predictions") == [(344,)]
    assert steps["write"]["output"]["rows"] == 344
    assert steps["train"]["attempt"] == 1, "what was done is not done again"
    versions = person.ok("GET", f"/api/datasets/{steps['score']['output']['dataset']}/versions")
    assert versions["count"] == 1, "no version came twice"

    log = person.ok("GET", f"{path}logs?page_size=200")["results"]
    begun = Counter(line["step"] for line in log if line["message"].startswith("A node has begun"))
    assert begun["fetch"] >= 2, "the node was killed while it did this"
    assert begun["write"] >= 2, log

    # A query without rows ends in a sentence, and the table stays.
    fetch["sql"] = "SELECT * FROM Palmer_penguins WHERE body_mass_g < 0"
    person.ok("PATCH", f"/api/pipelines/{made['id']}", json={"definition": {"stages": stages}})
    run = person.ok("POST", runs, json={})
    ended = person.until(f"{runs}{run['id']}/", lambda r: r["state"] in ENDS, within=90)
    assert ended["state"] == "failed"
    assert "returned no rows" in ended["why"]
    assert steps_of(ended)["write"]["state"] == "not_run"
    assert server.run("SELECT count(*) FROM predictions") == [(344,)]
