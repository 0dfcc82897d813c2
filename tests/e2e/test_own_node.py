"""An organization's own machine: joined by a token, it does everything over its own connections.

Two web processes, no node of the platform. The node has no password of the broker and no address
that web could open: it long-polls its work, and predictions reach it over its own WebSocket.
"""

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

from flowml_site.embedded import BASE_DIR
from flowml_site.platform import Platform
from tests.e2e.conftest import Person

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400), pytest.mark.xdist_group("own-node")]


def start_node(
    url: str, folder: Path, *args: str, name: str = "ours", more: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FLOWML_", "PYTEST"))}
    env |= {
        "FLOWML_NODE_DIR": str(folder / "node"),
        "FLOWML_VAR": str(folder),
        "FLOWML_VENVS": str(BASE_DIR / ".venvs"),
        "PYTHONPATH": str(BASE_DIR),
        **(more or {}),
    }
    command = [str(BASE_DIR / ".venvs/node/bin/python"), "-m", "workers.cli"]
    with (folder / "node.log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--register", url, "--name", name, *args],
            env=env, cwd=folder, stdout=log, stderr=log,
        )  # fmt: skip


def test_an_organizations_own_node_does_all_its_work(bare: Platform, tmp_path: Path) -> None:
    with closing(Person(bare.url, "owner")) as owner, closing(Person(bare.url, "other")) as other:
        token = owner.ok("POST", "/api/workers/join-tokens", json={})["token"]
        node = start_node(bare.url, tmp_path, "--token", token)
        try:
            seen = owner.until(
                "/api/workers", lambda found: found["count"] == 1 and found["results"][0]
            )["results"][0]
            assert seen["organization"] is not None
            data = owner.dataset("penguins")
            assert data["state"] == "ready", (tmp_path / "node.log").read_text()
            job = owner.train(data["id"], "species", time_budget=5)
            assert owner.ended(job)["state"] == "succeeded"
            model = owner.leaderboard(job)[0]
            rows = owner.ok("GET", f"/api/datasets/{data['id']}/preview")["rows"][:3]
            rows = [{k: v for k, v in row.items() if k != "species"} for row in rows]
            path = f"/api/results/model/{model['id']}/predict"

            def predict() -> list[object]:
                return list(owner.ok("POST", path, json={"rows": rows})["predictions"])

            first = predict()
            assert len(first) == 3
            for _ in range(8):  # whichever of the two web processes is asked
                assert predict() == first

            # Its socket is lost with a web process; predictions go on after a moment.
            for web in ("web-1", "web-2"):
                os.kill(bare.process(web).pid, signal.SIGKILL)
                assert predict() == first

            # Nobody else's work comes here.
            foreign = other.ok("POST", "/api/datasets/samples/iris")
            waits = other.ok("GET", f"/api/datasets/{foreign['id']}")
            assert waits["state"] == "ingesting"

            # A restarted node needs no join token: that one is used up.
            node.terminate()
            assert node.wait(30) == 0
            node = start_node(bare.url, tmp_path, "--token", token)
            assert owner.until("/api/workers", lambda found: found["results"][0])["count"] == 1
            assert predict() == first

            log = (tmp_path / "node.log").read_text()
            assert token not in log
            identity = json.loads((tmp_path / "node" / "identity.json").read_text())
            assert identity["token"] not in log
            for name in ("web-1", "web-2", "control"):
                assert identity["token"] not in bare.log(name)
        finally:
            node.terminate()
            node.wait(30)


def test_a_wrong_token_joins_nothing(bare: Platform, tmp_path: Path) -> None:
    node = start_node(bare.url, tmp_path, "--token", "guessed")
    assert node.wait(90) == 3
    assert "join token is wrong" in (tmp_path / "node.log").read_text()
