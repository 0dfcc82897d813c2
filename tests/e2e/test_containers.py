"""A container with everything real: web, a node of the organization's own, and Podman."""

import json
import threading
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from flowml_site.platform import Platform
from tests.e2e.conftest import Person, free_port
from tests.e2e.test_own_node import start_node
from tests.node.podman import IMAGE, podman, why_not

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(400),
    pytest.mark.xdist_group("own-node"),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]
OTHER = IMAGE.replace(":1", ":2")


def test_it_is_rolled_out_while_it_is_asked_and_comes_back_when_it_is_killed(
    bare: Platform, tmp_path: Path
) -> None:
    with podman() as engine, closing(Person(bare.url, "shipper")) as owner:
        engine("tag", IMAGE, OTHER)
        # Here containers have the machine's network, so that each revision needs a port of its own.
        more = {"FLOWML_CONTAINERS": engine.url, "FLOWML_CONTAINER_NETWORK": "host"}
        token = owner.ok("POST", "/api/workers/join-tokens", json={})["token"]
        node = start_node(bare.url, tmp_path, "--token", token, name="boxes", more=more)
        try:
            nodes = owner.until(
                "/api/workers", lambda found: [n["state"] for n in found["results"]] == ["online"]
            )
            ids = [one["id"] for one in nodes["results"]]
            owner.ok("POST", "/api/clusters/", json={"name": "boxes", "node_ids": ids})
            wish = {"name": "page", "docker_image": IMAGE, "port": free_port(),
                    "required_ram_gb": 0.25, "required_cpu_cores": 0.1,
                    "env": {"MODE": "blue"}}  # fmt: skip
            made = owner.ok("POST", "/api/deployments/", json=wish)
            path = f"/api/deployments/{made['id']}"
            owner.until(path, lambda one: one["state"] == "running")
            answers: list[tuple[int, str]] = []
            over = threading.Event()

            def ask() -> None:
                headers = {"Authorization": owner.headers["Authorization"]}
                with httpx.Client(base_url=bare.url, headers=headers, timeout=60) as client:
                    while not over.is_set():
                        answer = client.get(f"{path}/http/")
                        answers.append((answer.status_code, answer.text.strip()))

            asker = threading.Thread(target=ask)
            asker.start()
            try:
                new = {"docker_image": OTHER, "port": free_port(), "env": {"MODE": "green"}}
                owner.ok("PATCH", path, json=new)
                owner.until(
                    path,
                    lambda one: [r["revision"] for r in one["placed"] if not r["ended_at"]] == [2],
                )
                deadline = time.monotonic() + 60
                while answers[-1:] != [(200, "mode green")] and time.monotonic() < deadline:
                    time.sleep(0.1)
            finally:
                over.set()
                asker.join(70)
            bad = [answer for answer in answers if answer[0] != 200]
            assert not bad, bad[:3]
            assert answers[0] == (200, "mode blue")
            assert answers[-1] == (200, "mode green")
            told = json.loads(engine("inspect", *engine("ps", "-q").split()))
            assert [one["ImageName"] for one in told] == [OTHER]
            engine("kill", told[0]["Id"])
            owner.until(path, lambda one: one["failures"] == 1)
            owner.until(path, lambda one: one["state"] == "running" and one["ready"] == 1)
            assert owner.get(f"{path}/http/").text.strip() == "mode green"
            owner.ok("DELETE", path)
            deadline = time.monotonic() + 60
            while engine.running():
                assert time.monotonic() < deadline, "its container is still there"
                time.sleep(0.2)
        finally:
            node.terminate()
            node.wait(30)
