"""Containers on a node: what is asked of the engine, and what real ones of Podman do."""

import base64
import contextlib
import json
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any, ClassVar

import pytest
from aiohttp import web

from tests.e2e.conftest import free_port
from tests.node.conftest import Node
from tests.node.fakeweb import FakeWeb, until
from tests.node.podman import IMAGE, Podman, podman, why_not
from tests.node.test_serving import Client
from workers.node import settings
from workers.node.containers import Container, ContainerBroken, Containers, Lines, NoAnswer

ORGANIZATION = "6a1f0d5c-3a53-4cf0-9d3e-6f5a8a0f3f11"


def spec(port: int = 8080, **more: Any) -> dict[str, Any]:
    return {
        "runtime": "container",
        "image": IMAGE,
        "organization": ORGANIZATION,
        "limits": {"ram_mib": 256, "cpu_millis": 500, "gpus": 0},
        "env": {},
        "port": port,
        "health_path": "/health",
        **more,
    }


# --- What is asked of the engine -----------------------------------------------------------------


class FakeDocker(BaseHTTPRequestHandler):
    """The few calls of Docker's API that starting a container takes; keeps what is created."""

    created: ClassVar[list[dict[str, Any]]] = []
    networks: ClassVar[list[dict[str, Any]]] = []
    pulled: ClassVar[list[str]] = []
    images: ClassVar[set[str]] = set()
    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.endswith("/version"):
            self.say({"ApiVersion": "1.44", "Version": "27.1", "Components": [{"Name": "Engine"}]})
        elif path.endswith(("/containers/json", "/networks")):
            self.say([])
        elif "/images/" in path:
            known = any(one in path for one in self.images)
            if known:
                self.say({"Id": "sha256:1"})
            else:
                self.say({"message": "no such image"}, 404)
        elif path.endswith("/networks/n1"):
            self.say({"Id": "n1", "Name": "one"})
        elif path.endswith("/containers/c1/json"):
            bound = {"9000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "49153"}]}
            self.say(
                {
                    "Id": "c1", "Name": "/one", "State": {"Running": True},
                    "HostConfig": {"NetworkMode": "bridge"}, "NetworkSettings": {"Ports": bound},
                }
            )  # fmt: skip
        else:
            self.say({"message": f"nothing at {path}"}, 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, _, query = self.path.partition("?")
        if path.endswith("/containers/create"):
            self.created.append(json.loads(body))
            self.say({"Id": "c1", "Warnings": []}, 201)
        elif path.endswith("/networks/create"):
            self.networks.append(json.loads(body))
            self.say({"Id": "n1", "Warning": ""}, 201)
        elif path.endswith("/images/create"):
            self.pulled.append(query)
            self.say({"error": "pull access denied"} if "secret" in query else {"status": "done"})
        else:
            self.say(None, 204)

    def say(self, what: Any, status: int = 200) -> None:
        body = b"" if what is None else json.dumps(what).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def docker() -> Iterator[str]:
    for kept in (FakeDocker.created, FakeDocker.networks, FakeDocker.pulled, FakeDocker.images):
        kept.clear()  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory(prefix="fd") as folder:
        path = f"{folder}/docker.sock"
        with ThreadingUnixStreamServer(path, FakeDocker) as server:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"unix://{path}"
            server.shutdown()


def containers(url: str, **env: str) -> Containers:
    given = {"FLOWML_URL": "http://web", "FLOWML_CONTAINERS": url, **env}
    return Containers(settings.read(given, 2))


async def test_a_container_gets_its_limits_and_nothing_of_the_machine(docker: str) -> None:
    engine = containers(docker)
    assert engine.open() == "docker 27.1"
    wish = spec(9000, image="ghcr.io/acme/scorer:1", env={"MODE": "fast"})
    made = await engine.run("r1", wish, ["GPU-1"])
    assert made.address == "127.0.0.1:49153"
    assert FakeDocker.pulled == ["tag=1&fromImage=ghcr.io%2Facme%2Fscorer"]
    [asked] = FakeDocker.created
    host = asked["HostConfig"]
    assert not host.get("Privileged")
    assert host["CapDrop"] == ["ALL"]
    assert not host.get("CapAdd")
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert not host.get("Binds")
    assert not host.get("Mounts")
    assert not host.get("PidMode")
    assert host["IpcMode"] == "private"
    assert host["Memory"] == host["MemorySwap"] == 256 * 1024 * 1024
    assert host["NanoCpus"] == 500_000_000
    assert host["PidsLimit"] == 512
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["PortBindings"] == {"9000/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}
    assert host["DeviceRequests"][0]["DeviceIDs"] == ["GPU-1"]
    assert sorted(asked["Env"]) == ["MODE=fast", "PORT=9000"]
    assert asked["Labels"]["flowml.replica"] == "r1"
    # One network for each organization: nobody else's containers are on it.
    assert [one["Name"] for one in FakeDocker.networks] == [f"flowml-{ORGANIZATION}"]
    assert host["NetworkMode"] == f"flowml-{ORGANIZATION}"


async def test_an_image_that_is_here_is_not_fetched_and_one_that_can_not_be_says_why(
    docker: str,
) -> None:
    engine = containers(docker)
    engine.open()
    FakeDocker.images.add("acme/scorer")
    await engine.run("r1", spec(9000, image="ghcr.io/acme/scorer:1"), [])
    assert not FakeDocker.pulled
    await engine.run("r1", spec(9000, image="ghcr.io/acme/scorer:latest"), [])
    assert len(FakeDocker.pulled) == 1  # it may be another by now
    with pytest.raises(ContainerBroken, match="pull access denied"):
        await engine.run("r2", spec(9000, image="ghcr.io/acme/secret:1"), [])


async def test_a_node_without_an_engine_says_so(tmp_path: Path) -> None:
    for url in ("off", f"unix://{tmp_path}/none.sock"):
        engine = containers(url)
        assert engine.open() == ""
        with pytest.raises(ContainerBroken, match="no Docker or Podman"):
            await engine.run("r1", spec(), [])
        await engine.forget([])


async def test_an_answer_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node of many tenants keeps what a container answers in memory."""

    async def endless(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(10_000):
                await answer.write(b"x" * 1000)
        return answer

    monkeypatch.setattr("workers.node.containers.MOST_ANSWERED", 50_000)
    app = web.Application()
    app.add_routes([web.get("/", endless)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    address = "{}:{}".format(*runner.addresses[0])
    one = Container("", None, address, "/", is_new=True)
    try:
        with pytest.raises(NoAnswer, match="answered more than") as problem:
            await one.forward({"method": "GET", "path": "/"}, 30)
        assert problem.value.sent
    finally:
        await one.let_go()
        await runner.cleanup()


def test_what_is_printed_is_bounded_and_tells_no_secret() -> None:
    lines = Lines({"TOKEN": "a long secret", "MODE": "fast"})
    for number in range(300):
        lines.take(f"{number}: a long secret, fast")
    told = [text for _, text in lines.give()]
    assert told[0] == "... 100 lines left out here"
    assert told[-1] == "299: [secret], fast"
    assert len(told) == 201
    assert lines.give() == []
    lines.put_back([("then", "older")])
    lines.take("newer")
    assert [text for _, text in lines.give()] == ["older", "newer"]


# --- Real ones -----------------------------------------------------------------------------------

real = [
    pytest.mark.chaos,  # with what `make test-rest` runs: it takes Podman, and seconds
    pytest.mark.skipif(bool(why_not()), reason=f"no real containers: {why_not()}"),
    pytest.mark.xdist_group("containers"),
]


@pytest.fixture(scope="module")
def engine() -> Iterator[Podman]:
    with podman() as started:
        yield started


@pytest.fixture
def able(engine: Podman) -> Iterator[Node]:
    """A node of the test's own that may use Podman. Its ports are the machine's."""
    with tempfile.TemporaryDirectory(prefix="fn") as folder, FakeWeb() as web:
        node = Node(web, Path(folder))
        node.env = {"FLOWML_CONTAINERS": engine.url, "FLOWML_CONTAINER_NETWORK": "host"}
        try:
            yield node.start()
        finally:
            node.stop(30)


def deploy(web: FakeWeb, **more: Any) -> tuple[str, int]:
    port = free_port()
    replica = web.deploy()
    web.specs[replica] = spec(port, **more)
    return replica, port


def ask(node: Node, replica: str, path: str) -> tuple[int, Any]:
    asked = {"method": "GET", "path": path, "headers": [["X-A", "b"]], "body": "", "within_s": 10}
    status, told = Client(node).post({"replica": replica, "http": asked})
    return (status, told) if status != 200 else (told["status"], base64.b64decode(told["body"]))


def printed(web: FakeWeb, replica: str) -> str:
    return "\n".join(text for _, text in web.printed[replica])


def test_a_real_container_runs_answers_prints_outlives_its_node_and_ends(
    able: Node, engine: Podman
) -> None:
    web = able.web
    assert web.registrations[-1]["capabilities"]["containers"].startswith("podman")
    replica, port = deploy(web, env={"MODE": "swift"})
    until(lambda: web.state_of(replica) == "running", f"it runs; {able.log}", 60)
    assert ask(able, replica, "/")[1] == b"mode swift\n"
    assert ask(able, replica, "/nothing")[0] == 404
    until(lambda: f"listening on {port}" in printed(web, replica), "its log came", 20)
    told = json.loads(engine("inspect", f"flowml-{replica}"))[0]
    assert told["HostConfig"]["Memory"] == 256 * 1024 * 1024
    assert told["HostConfig"]["Privileged"] is False
    assert not told["Mounts"]
    assert not told.get("EffectiveCaps")
    began = told["State"]["StartedAt"]
    # The node is killed; the container goes on, and is found again.
    able.kill()
    assert engine.running() == [replica]
    web.specs[replica]["logged_until"] = web.printed[replica][-1][0]
    before = len(web.printed[replica])
    able.start()
    until(lambda: web.state_of(replica) == "running", f"it is found; {able.log}", 60)
    again = json.loads(engine("inspect", f"flowml-{replica}"))[0]["State"]["StartedAt"]
    assert again == began
    assert ask(able, replica, "/")[0] == 200
    assert len(web.printed[replica]) == before  # nothing is told twice
    # It is told to stop, and hears of it.
    web.replicas[replica] |= {"wish": "stop", "grace_s": 5.0}
    until(lambda: web.state_of(replica) == "gone", "it is gone", 30)
    assert "stopping" in printed(web, replica)
    assert engine.running() == []
    assert ask(able, replica, "/")[0] == 410


def test_a_real_container_that_ends_says_how_and_what_it_said_last(
    able: Node, engine: Podman
) -> None:
    web = able.web
    replica, _ = deploy(web, env={"MODE": "crash"})
    until(lambda: web.state_of(replica) == "failed", f"it failed; {able.log}", 60)
    assert web.why_of(replica) == "Its container ended with status 3."
    assert "no such table" in printed(web, replica)
    absent, _ = deploy(web, image="localhost/flowml/absent:1")
    until(lambda: web.state_of(absent) == "failed", f"it failed; {able.log}", 60)
    assert "localhost/flowml/absent:1 can't be fetched" in web.why_of(absent)


def test_what_nobody_wants_any_more_is_removed_when_the_node_is_back(
    able: Node, engine: Podman
) -> None:
    web = able.web
    replica, _ = deploy(web)
    until(lambda: web.state_of(replica) == "running", f"it runs; {able.log}", 60)
    able.kill()
    del web.replicas[replica]  # it runs elsewhere by now
    able.start()
    until(lambda: engine.running() == [], f"it is removed; {able.log}", 30)
    # A node that ends for good takes its containers along.
    other, _ = deploy(web)
    until(lambda: web.state_of(other) == "running", f"it runs; {able.log}", 60)
    assert able.stop(30) == 0
    assert engine.running() == []
