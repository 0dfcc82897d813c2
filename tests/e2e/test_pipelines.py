"""A pipeline with real processes: a query, a training, a batch prediction, and a table again."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.conftest import Person

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), pytest.mark.xdist_group("e2e")]
ENDS = {"succeeded", "failed", "cancelled"}
SQL = "SELECT * FROM Palmer_penguins WHERE body_mass_g IS NOT NULL"


def steps_of(run: Any) -> dict[str, Any]:
    return {step["key"]: step for step in run["steps"]}


def test_from_a_query_to_a_table_and_the_second_time_only_what_is_new(person: Person) -> None:
    person.dataset("penguins")
    house = person.ok("POST", "/api/connections", json={"name": "house", "kind": "duckdb"})
    assert house["kind"] == "duckdb"
    train = {"data": "$fetch", "target": "species", "engines": ["sklearn"], "time_budget": 6}
    stages = [
        {
            "key": "fetch",
            "stage": "sql",
            "params": {"connection": "house", "sql": SQL, "dataset": "fetched"},
        },
        {"key": "train", "stage": "train", "params": train},
        {"key": "promote", "stage": "promote", "params": {"model": "$train", "name": "species"}},
        {
            "key": "score",
            "stage": "score",
            "params": {"model": "$promote", "data": "$fetch", "dataset": "scored"},
        },
        {
            "key": "write",
            "stage": "write_back",
            "params": {"connection": "house", "data": "$score", "table": "predictions"},
        },
    ]
    made = person.ok(
        "POST", "/api/pipelines/", json={"name": "nightly", "definition": {"stages": stages}}
    )
    runs = f"/api/pipelines/{made['id']}/runs/"
    first = person.ok("POST", runs, json={})
    first = person.until(f"{runs}{first['id']}/", lambda r: r["state"] in ENDS, within=200)
    steps = steps_of(first)
    assert first["state"] == "succeeded", first
    assert {step["state"] for step in steps.values()} == {"succeeded"}
    assert steps["fetch"]["output"]["rows"] == 342, "two penguins were never weighed"
    assert steps["promote"]["output"]["promoted"] is True
    assert steps["write"]["output"]["rows"] == 342
    there = person.ok("GET", f"/api/datasets/{steps['write']['output']['dataset']}/preview")
    assert there["rows"][0]["prediction"] in {"Adelie", "Chinstrap", "Gentoo"}
    log = person.ok("GET", f"{runs}{first['id']}/logs?page_size=200")["results"]
    assert {"fetch", "train", "promote", "score", "write"} <= {line["step"] for line in log}

    # The same again: the query gives the same rows, so nothing is trained or scored anew.
    second = person.ok("POST", runs, json={})
    second = person.until(f"{runs}{second['id']}/", lambda r: r["state"] in ENDS, within=120)
    states = {key: step["state"] for key, step in steps_of(second).items()}
    assert second["state"] == "succeeded", second
    assert states == {
        "fetch": "succeeded",
        "train": "skipped",
        "promote": "succeeded",
        "score": "skipped",
        "write": "succeeded",
    }
    assert steps_of(second)["promote"]["output"]["promoted"] is False
