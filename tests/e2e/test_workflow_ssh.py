"""The six stages with real processes: on somebody's machine by SSH with somebody's PostgreSQL, and
on the embedded default with a folder of the node."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from flowml_site.platform import Platform
from tests.e2e.conftest import Person
from tests.pipelines import sshd
from tests.pipelines.postgres import PASSWORD, running

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400), pytest.mark.xdist_group("e2e")]
ENDS = {"completed", "failed"}
# Somebody's own training: the mean of y by shop.
MODEL = """
import csv, json, sys
rows = list(csv.DictReader(open(sys.argv[2])))
if sys.argv[1] == "train":
    sums = {}
    for row in rows:
        sums.setdefault(row["shop"], []).append(float(row["y"]))
    json.dump({shop: sum(ys) / len(ys) for shop, ys in sums.items()}, open("model.json", "w"))
    print("trained on", len(rows), "rows")
else:
    means = json.load(open("model.json"))
    with open("result.csv", "w", newline="") as file:
        out = csv.DictWriter(file, ["id", "shop", "prediction"])
        out.writeheader()
        for row in rows:
            out.writerow({"id": row["id"], "shop": row["shop"], "prediction": means[row["shop"]]})
"""


def programs(folder: Path) -> dict[str, str]:
    (folder / "model.py").write_text(MODEL)
    start = f"{sys.executable} {folder}/model.py"
    return {
        "train_command": f"{start} train sample.csv",
        "infer_command": f"{start} infer infer.csv",
    }


def ended(person: Person, told: Any) -> Any:
    path = f"/api/workflow/tasks/{told['task_id']}"
    last = person.until(path, lambda task: task["status"] in ENDS, within=240)
    assert last["status"] == "completed", last
    assert [step["status"] for step in last["steps"]] == ["completed"] * 6
    return last


def test_from_a_table_to_a_machine_and_back_into_a_table(
    platform: Platform, person: Person
) -> None:
    # Not pytest's folder: PostgreSQL runs as another user, who can't enter it.
    with tempfile.TemporaryDirectory(prefix="flowml-warehouse-") as folder, sshd.running() as there:
        Path(folder).chmod(0o755)
        with running(Path(folder) / "pg") as server:
            server.run(
                "CREATE TABLE sales AS SELECT i AS id, i % 3 AS shop, (i % 3) * 10 AS y "
                "FROM generate_series(1, 3000) i"
            )
            shop = {"kind": "postgres", "settings": server.settings}
            shop["secrets"] = {"password": PASSWORD}
            person.ok("POST", "/api/connections", json={"name": "shop", **shop})
            # Whoever has not compared the host key reads it, and enters it then.
            unknown = {"kind": "ssh", "settings": there.settings(host_key="")}
            unknown["secrets"] = there.secrets
            made = person.ok("POST", "/api/connections", json={"name": "gpu", **unknown})
            path = f"/api/connections/{made['id']}"
            for change, state, said in (
                (None, "fails", there.fingerprint),
                ({"host_key": there.fingerprint}, "works", "Programs can run there"),
            ):
                if change:
                    person.ok("PATCH", path, json={"settings": change})
                person.ok("POST", f"{path}/test")
                told = person.until(f"{path}/test", lambda t: t["state"] in {"works", "fails"})
                assert (told["state"], said in told["sentence"]) == (state, True), told
            body = {
                "name": "daily",
                "sample_sql": "SELECT shop, y FROM sales",
                "infer_sql": "SELECT id, shop FROM sales WHERE id <= 300",
                "hive_table": "public.predictions",
                "connection": "shop",
                "machine": "gpu",
                **programs(there.files),
            }
            first = ended(person, person.ok("POST", "/api/workflow/tasks", json=body))
            rows = (
                "SELECT shop, prediction::int, count(*) FROM predictions GROUP BY 1, 2 ORDER BY 1"
            )
            assert server.run(rows) == [(0, 0, 100), (1, 10, 100), (2, 20, 100)]
            runs = f"/api/pipelines/{first['pipeline_id']}/runs/{first['task_id']}"
            log = person.ok("GET", f"{runs}/logs?page_size=200")["results"]
            assert any("trained on 3000 rows" in line["message"] for line in log)
            # Once more: the rows are the same, so the machine has the files already.
            again = ended(person, person.ok("POST", "/api/workflow/tasks", json=body))
            runs = f"/api/pipelines/{again['pipeline_id']}/runs/{again['task_id']}"
            log = person.ok("GET", f"{runs}/logs?page_size=200")["results"]
            assert sum("It was there already" in line["message"] for line in log) == 2
            assert server.run(rows) == [(0, 0, 100), (1, 10, 100), (2, 20, 100)]
            key = there.key.splitlines()[1].encode()
            assert not [one for one in platform.var.rglob("*") if holds(one, key)]


def holds(path: Path, key: bytes) -> bool:
    try:
        return path.is_file() and key in path.read_bytes()
    except OSError:
        return False


def test_on_the_embedded_default_with_nothing_but_a_folder(person: Person) -> None:
    folder = Path(os.environ["FLOWML_LOCAL_ROOTS"]) / "share"
    folder.mkdir()
    table = "id,shop,y\n" + "".join(f"{n},{n % 3},{n % 3 * 10}\n" for n in range(600))
    person.ok("POST", "/api/datasets/upload", files={"file": ("sales.csv", table.encode())})
    share = {"name": "share", "kind": "local", "settings": {"folder": str(folder)}}
    for one in ({"name": "house", "kind": "duckdb"}, share):
        person.ok("POST", "/api/connections", json=one)
    person.until("/api/datasets", lambda d: d["results"][0]["state"] == "ready")
    body = {
        "name": "daily",
        "sample_sql": "SELECT shop, y FROM sales",
        "infer_sql": "SELECT id, shop FROM sales WHERE id < 90",
        "hive_table": "predictions",
        "machine": "share",
        **programs(folder),
    }
    ended(person, person.ok("POST", "/api/workflow/tasks", json=body))
    found = {one["name"]: one for one in person.ok("GET", "/api/datasets?page_size=50")["results"]}
    rows = person.ok("GET", f"/api/datasets/{found['predictions']['id']}/preview")["rows"]
    assert {(int(row["shop"]), float(row["prediction"])) for row in rows} <= {
        (0, 0.0), (1, 10.0), (2, 20.0),
    }  # fmt: skip
    assert (folder / "workflow/daily/sample.csv").read_text().count("\n") == 601
