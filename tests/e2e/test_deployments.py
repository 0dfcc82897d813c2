"""Deployments with real processes: they answer while they are replaced, killed, moved and evicted.

An organization with two machines of its own, in one cluster. Nothing of this may fail a request.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from flowml_site.platform import Platform
from tests.e2e.conftest import Person
from tests.e2e.test_own_node import start_node

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(500), pytest.mark.xdist_group("own-node")]


class Site:
    """The platform, its owner, two machines in a cluster, and a model."""

    def __init__(self, platform: Platform, owner: Person, folder: Path) -> None:
        self.owner = owner
        self.folder = folder
        self.url = platform.url
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.join("first")
        data = owner.dataset("penguins")
        job = owner.train(data["id"], "species", time_budget=5)
        assert owner.ended(job)["state"] == "succeeded", self.log("first")
        self.model, self.other = [one["id"] for one in owner.leaderboard(job)][:2]
        rows = owner.ok("GET", f"/api/datasets/{data['id']}/preview")["rows"][:2]
        self.rows = [{k: v for k, v in row.items() if k != "species"} for row in rows]
        ids = [node["id"] for node in owner.ok("GET", "/api/workers")["results"]]
        made = owner.ok("POST", "/api/clusters/", json={"name": "ours", "node_ids": ids})
        self.cluster = made["id"]

    def join(self, name: str) -> None:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        token = self.owner.ok("POST", "/api/workers/join-tokens", json={})["token"]
        self.nodes[name] = start_node(self.url, folder, "--token", token, name=name)
        self.owner.until(
            "/api/workers",
            lambda found: any(
                node["name"] == name and node["state"] == "online" for node in found["results"]
            ),
        )

    def log(self, name: str) -> str:
        return (self.folder / name / "node.log").read_text()

    def deploy(self, name: str, **wish: Any) -> str:
        usual = {"required_ram_gb": 0.5, "required_cpu_cores": 0.1, "model": self.model}
        made = self.owner.ok("POST", "/api/deployments/", json={"name": name, **usual, **wish})
        return f"/api/deployments/{made['id']}"

    def running(self, path: str, ready: int = 1, within: float = 90) -> Any:
        return self.owner.until(
            path, lambda one: one["state"] == "running" and one["ready"] == ready, within=within
        )

    def there(self, path: str) -> list[Any]:
        """Its replicas that have not ended."""
        return [one for one in self.owner.ok("GET", path)["placed"] if not one["ended_at"]]

    @contextmanager
    def load(self, path: str) -> Iterator[list[Any]]:
        """Ask again and again from two clients; yields what was answered, each as it came."""
        answers: list[Any] = []
        over = threading.Event()

        def ask() -> None:
            headers = {"Authorization": self.owner.headers["Authorization"]}
            with httpx.Client(base_url=self.url, headers=headers, timeout=60) as client:
                while not over.is_set():
                    answer = client.post(f"{path}/predict", json={"rows": self.rows})
                    answers.append((answer.status_code, answer.json()))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            yield answers
        finally:
            over.set()
            for thread in threads:
                thread.join(70)
        bad = [body for status, body in answers if status != 200]
        assert not bad, bad[:3]
        assert len(answers) > 10


@pytest.fixture(scope="module")
def site(bare: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made: Site | None = None
    try:
        with closing(Person(bare.url, "deployer")) as owner:
            made = Site(bare, owner, tmp_path_factory.mktemp("deployments"))
            yield made
    finally:
        for node in made.nodes.values() if made else ():
            node.terminate()
        for node in made.nodes.values() if made else ():
            node.wait(30)


def pids_of(replica: str) -> list[int]:
    """Its model servers: their working folder tells them."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if f"replica-{replica}/" in os.readlink(f"/proc/{pid}/cwd"):
                found.append(int(pid))
        except OSError:
            continue
    return found


def test_no_request_fails_while_replicas_are_killed_and_replaced(site: Site) -> None:
    path = site.deploy("steady", replicas=2)
    site.running(path, 2)
    with site.load(path) as answers:
        until(lambda: {one[1].get("replica") for one in answers} == {0, 1})
        # One dies; it is tried again after a while, and the other answers.
        victim = site.there(path)[0]
        [pid] = pids_of(victim["id"])
        os.kill(pid, signal.SIGKILL)
        site.owner.until(path, lambda one: one["failures"] == 1 and one["ready"] == 1)
        site.running(path, 2)
        # A new revision comes up beside the old one.
        site.owner.ok("PATCH", path, json={"env": {"GREETING": "hello"}})
        site.owner.until(
            path,
            lambda one: (
                one["ready"] == 2
                and {r["revision"] for r in one["placed"] if not r["ended_at"]} == {2}
            ),
        )
        seen = {body["revision"] for _, body in list(answers)}
        until(lambda: answers[-1][1].get("revision") == 2)
    assert seen >= {1}
    site.owner.ok("POST", f"{path}/rollback", json={})
    site.owner.until(
        path,
        lambda one: {r["revision"] for r in one["placed"] if r["state"] == "running"} == {1},
    )
    site.owner.ok("DELETE", path)
    assert site.owner.get(path).status_code == 404


def test_no_request_fails_while_a_canary_comes_answers_and_is_promoted(site: Site) -> None:
    path = site.deploy("tried")
    site.running(path)
    with site.load(path) as answers:
        site.owner.ok("PATCH", path, json={"canary": {"model": site.other, "percent": 40}})
        site.owner.until(path, lambda one: one["canary"]["ready"] == 1)
        until(lambda: {body.get("revision") for _, body in answers[-50:]} == {1, 2})
        site.owner.ok("POST", f"{path}/promote")
        site.owner.until(
            path,
            lambda one: [r["revision"] for r in one["placed"] if not r["ended_at"]] == [2],
        )
        until(lambda: {body.get("revision") for _, body in answers[-5:]} == {2})
    names = list(site.rows[0])
    told = site.owner.ok("GET", "/v2/models/tried")
    assert [one["name"] for one in told["inputs"]] == names
    inputs = [
        {**one, "shape": [len(site.rows)], "data": [row[one["name"]] for row in site.rows]}
        for one in told["inputs"]
    ]
    answer = site.owner.ok("POST", "/v2/models/tried/infer", json={"id": "7", "inputs": inputs})
    same = site.owner.ok("POST", f"{path}/predict", json={"rows": site.rows})
    assert (answer["id"], answer["outputs"][0]["data"]) == ("7", same["predictions"])
    counted = site.owner.until(
        f"{path}/metrics",
        lambda found: sum(one["requests"] for one in found["revisions"]) >= len(answers) + 2,
    )
    assert {one["revision"] for one in counted["revisions"]} == {1, 2}
    assert all(one["errors"] == 0 and one["p50_ms"] > 0 for one in counted["revisions"])
    assert site.owner.ok("GET", f"{path}/drift")["kept"] >= 2
    site.owner.ok("DELETE", path)


def test_the_urgent_evicts_and_its_victim_comes_back(site: Site) -> None:
    free = site.owner.ok("GET", f"/api/clusters/{site.cluster}")["free"]["ram_gb"]
    most = {"required_ram_gb": max(0.5, free - 0.2)}
    low = site.deploy("patient", priority="LOW", **most)
    replica = site.running(low)["placed"][0]["id"]
    assert pids_of(replica)
    high = site.deploy("urgent", priority="CRITICAL", **most)
    site.running(high)
    assert not pids_of(replica)
    waiting = site.owner.ok("GET", low)
    assert (waiting["state"], waiting["preempted_by"]) == ("preempted", "urgent")
    assert "lacks" in waiting["waits"]["reason"]
    told = site.owner.ok("GET", f"{low}/events?page_size=200")["results"]
    assert any("makes room for urgent" in event["data"].get("why", "") for event in told)
    site.owner.ok("POST", f"{high}/stop")
    site.running(low)
    answer = site.owner.ok("POST", f"{low}/predict", json={"rows": site.rows})
    assert len(answer["predictions"]) == 2
    refused = site.owner.post(f"{high}/predict", json={"rows": site.rows})
    assert (refused.status_code, refused.json()["code"]) == (503, "stopped")
    for path in (low, high):
        site.owner.ok("DELETE", path)


def test_a_node_that_is_killed_costs_no_request_and_its_replicas_run_elsewhere(site: Site) -> None:
    site.join("second")
    nodes = {one["name"]: one["id"] for one in site.owner.ok("GET", "/api/workers")["results"]}
    where = f"/api/clusters/{site.cluster}/nodes"
    site.owner.ok("POST", where, json={"node_id": nodes["second"]})
    path = site.deploy("spread", replicas=2, spread=True)
    site.running(path, 2)
    assert {one["node"] for one in site.there(path)} == {"first", "second"}
    with site.load(path):
        site.nodes["second"].kill()
        began = time.monotonic()
        site.owner.until(
            path,
            lambda one: (
                one["ready"] == 2
                and all(r["node"] == "first" for r in one["placed"] if not r["ended_at"])
            ),
            within=120,
        )
        took_s = time.monotonic() - began
    lost = [one for one in site.owner.ok("GET", path)["placed"] if one["fault"] == "node"]
    assert len(lost) == 1
    assert "does not answer" in lost[0]["why"]
    assert site.owner.ok("GET", path)["failures"] == 0
    print(f"running elsewhere after {took_s:.1f} s")


def until(holds: Any, within: float = 60) -> None:
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, f"not within {within} s"
        time.sleep(0.1)
