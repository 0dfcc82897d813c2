"""A whole platform with real processes: PostgreSQL, Valkey, web, control, beat and one node."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest

from flowml_site.platform import Platform
from tests.seeds import seed


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Started once; a test that hurts it must leave it able to heal."""
    var = tmp_path_factory.mktemp("e2e") / "var"
    os.environ.setdefault("FLOWML_REACH", "localhost:*")  # the warehouses of tests are here
    os.environ.setdefault("FLOWML_LOCAL_ROOTS", str(tmp_path_factory.mktemp("roots")))
    os.environ.setdefault("FLOWML_LOCAL_PROGRAMS", "1")
    seed(var)
    running = Platform(var, port=free_port())
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Without a node and without work being done here: organizations bring their own machines."""
    var = tmp_path_factory.mktemp("bare") / "var"
    seed(var)
    # The images are those of tests/node/podman.py.
    env = {"FLOWML_LOCAL_FALLBACK": "0", "FLOWML_CONTAINER_REGISTRIES": "localhost/flowml"}
    running = Platform(var, port=free_port(), args=["--without-node"], env=env)
    running.start(nodes=0)
    yield running
    running.stop()


class Person(httpx.Client):
    """Somebody with an account of their own, who talks to the API."""

    def __init__(self, base_url: str, name: str) -> None:
        super().__init__(base_url=base_url, timeout=30)
        answer = self.post(
            "/api/auth/register",
            json={
                "username": name,
                "email": f"{name}@example.org",
                "password": "a long enough phrase",
            },
        )
        assert answer.status_code == 201, answer.text
        self.headers["Authorization"] = f"Bearer {answer.json()['tokens']['access']}"

    def ok(self, method: str, path: str, **kwargs: Any) -> Any:
        """The answer's JSON. Retries while web is away: the tests take it away on purpose."""
        deadline = time.monotonic() + 60
        while True:
            try:
                answer = self.request(method, path, **kwargs)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code < 500:
                assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
                return answer.json() if answer.content else None
            assert time.monotonic() < deadline, f"{method} {path} is not answered"
            time.sleep(0.5)

    def until(self, path: str, good: Callable[[Any], bool], *, within: float = 90) -> Any:
        """Ask until ``good`` holds of the answer, and return that answer."""
        deadline = time.monotonic() + within
        while True:
            body = self.ok("GET", path)
            if good(body):
                return body
            assert time.monotonic() < deadline, f"{path} did not come to it in {within} s: {body}"
            time.sleep(0.2)

    def dataset(self, sample: str = "penguins") -> Any:
        """A sample data set, ready to train on."""
        made = self.ok("POST", f"/api/datasets/samples/{sample}")
        return self.until(
            f"/api/datasets/{made['id']}", lambda d: d["state"] in {"ready", "failed"}
        )

    def train(self, dataset: str, target: str, **settings: Any) -> str:
        usual = {"time_budget": 15, "engines": ["pycaret"]}
        body = {"dataset": dataset, "target": target, **usual, **settings}
        return str(self.ok("POST", "/api/training/start", json=body)["id"])

    def ended(self, job: str, *, within: float = 120) -> Any:
        ends = {"succeeded", "failed", "cancelled"}
        return self.until(f"/api/training/{job}", lambda j: j["state"] in ends, within=within)

    def leaderboard(self, job: str) -> list[Any]:
        rows = self.ok("GET", f"/api/results/job/{job}/leaderboard")
        return list(rows["results"])


@pytest.fixture
def person(platform: Platform, request: pytest.FixtureRequest) -> Iterator[Person]:
    name = f"{request.node.name[:60]}".replace("[", "-").replace("]", "")
    with closing(Person(platform.url, f"{name}-{time.time_ns()}")) as someone:
        yield someone
