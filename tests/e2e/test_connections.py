"""Somebody's PostgreSQL, reached by real processes: from its table to a data set and back."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest

from flowml_site.platform import Platform
from tests.e2e.conftest import Person
from tests.pipelines.postgres import PASSWORD, running

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), pytest.mark.xdist_group("e2e")]
ENDS = {"succeeded", "failed", "cancelled"}


def test_rows_come_from_a_warehouse_and_go_back_and_its_password_stays_where_it_is(
    platform: Platform, person: Person
) -> None:
    # Not pytest's folder: PostgreSQL runs as another user, who can't enter it.
    with tempfile.TemporaryDirectory(prefix="flowml-warehouse-") as folder:
        Path(folder).chmod(0o755)
        with running(Path(folder) / "pg") as server:
            server.run("CREATE TABLE sales AS SELECT i % 3 AS shop FROM generate_series(1, 3000) i")
            connection = {
                "name": "shop", "kind": "postgres", "settings": server.settings,
                "secrets": {"password": "mistyped"},
            }  # fmt: skip
            made = person.ok("POST", "/api/connections", json=connection)
            path = f"/api/connections/{made['id']}"
            for password, state, said in (
                (None, "fails", "password authentication failed"),
                (PASSWORD, "works", "answers postgres"),
            ):
                if password:
                    person.ok("PATCH", path, json={"secrets": {"password": password}})
                person.ok("POST", f"{path}/test")
                ended = person.until(f"{path}/test", lambda t: t["state"] in {"works", "fails"})
                assert ended["state"] == state, ended
                assert said in ended["sentence"]
            query = "SELECT shop, count(*) AS n FROM sales GROUP BY shop"
            stages = [
                {
                    "key": "fetch",
                    "stage": "sql",
                    "params": {"connection": "shop", "sql": query, "dataset": "totals of shops"},
                },
                {
                    "key": "write",
                    "stage": "write_back",
                    "params": {"connection": "shop", "data": "$fetch", "table": "public.totals"},
                },
            ]
            body = {"name": "shops", "definition": {"stages": stages}}
            pipeline = person.ok("POST", "/api/pipelines/", json=body)
            runs = f"/api/pipelines/{pipeline['id']}/runs/"
            run = person.ok("POST", runs, json={})
            run = person.until(f"{runs}{run['id']}/", lambda r: r["state"] in ENDS, within=120)
            assert run["state"] == "succeeded", run
            assert server.run("SELECT shop, n FROM totals ORDER BY shop") == [
                (0, 1000),
                (1, 1000),
                (2, 1000),
            ]
            fetched = run["steps"][0]["output"]["dataset"]
            origin = person.ok("GET", f"/api/datasets/{fetched}")["newest"]["origin"]
            assert (origin["connection"], origin["sql"]) == ("shop", query)
            # In no log, no spool, no page of the database.
            found = subprocess.run(
                ["grep", "-rlF", PASSWORD, str(platform.var)], capture_output=True, check=False
            )
            assert found.stdout == b""
