"""``manage.py up``, from outside: it starts, mends and stops everything, and says what is wrong."""

import json
import os
import signal
import socket
import stat
import time
import urllib.request

import pytest

from flowml_site import embedded, processes
from flowml_site.embedded import ServiceError
from flowml_site.platform import Platform, answers, of_installation
from flowml_site.processes import Process, wait_ended
from tests.seeds import seed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240), pytest.mark.xdist_group("up")]
NAMES = ("web-1", "web-2", "control", "control-long", "beat", "postgres", "valkey")


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    """One without a node: tests/e2e have that."""
    var = tmp_path_factory.mktemp("up") / "var"
    running = Platform(var, args=["--without-node"])
    running.start(nodes=0)
    yield running
    running.stop()


def everything(platform) -> list[Process]:
    return [platform.process(name) for name in (*NAMES, "up")]


def wait_for(what, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := what():
                return found
        except (LookupError, OSError):
            pass
        time.sleep(0.1)
    raise AssertionError("it did not come to it")


def health(platform):
    with urllib.request.urlopen(f"{platform.url}/health", timeout=10) as answer:
        return json.load(answer)


def test_all_parts_are_up(platform):
    parts = health(platform)["parts"]
    assert [name for name, part in parts.items() if not part["ok"]] == ["nodes"]
    assert len(set(everything(platform))) == 8


def test_its_secrets_are_its_owners_alone(platform):
    made = platform.var / "secrets.json"
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert stat.S_IMODE(platform.var.stat().st_mode) == 0o700
    for process in everything(platform):
        line = processes.Path(f"/proc/{process.pid}/cmdline").read_text()
        assert not [value for value in json.loads(made.read_text()).values() if value in line]


@pytest.mark.parametrize("name", ["web-1", "control", "control-long", "beat", "valkey", "postgres"])
def test_what_is_killed_is_started_again(platform, name):
    before = platform.process(name)
    os.kill(before.pid, signal.SIGKILL)
    wait_for(lambda: platform.process(name) != before)
    wait_for(lambda: health(platform)["parts"]["database"]["ok"])
    assert answers(platform.url)


def test_nobody_is_refused_while_web_starts_again(platform):
    for name in ("web-1", "web-2"):
        os.kill(platform.process(name).pid, signal.SIGKILL)
    with urllib.request.urlopen(f"{platform.url}/health/live", timeout=60) as answer:
        assert answer.status == 200


def test_a_second_up_of_the_same_folder_is_refused_and_harms_nothing(platform):
    before = everything(platform)
    with pytest.raises(ServiceError, match=f"FlowML runs already in .* {platform.url}"):
        Platform(platform.var, args=["--without-node"]).start(nodes=0)
    assert everything(platform) == before


def test_a_port_that_is_taken_is_named_with_who_has_it(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        second = Platform(tmp_path / "var", port=port, args=["--without-node"])
        with pytest.raises(ServiceError) as caught:
            second.start(nodes=0)
    said = str(caught.value)
    assert f"Port {port} of 127.0.0.1 is taken by process {os.getpid()} " in said
    assert f"make up PORT={port + 1}" in said


def test_killed_and_started_again_it_finds_its_data_and_leaves_nothing(tmp_path):
    var = tmp_path / "var"
    seed(var)
    first = Platform(var, args=["--without-node"])
    first.start(nodes=0)
    secrets, running = embedded.secrets(var), everything(first)
    os.kill(first.process("up").pid, signal.SIGKILL)
    assert wait_ended(running, 30) == []
    first.stop()

    second = Platform(var, args=["--without-node"])
    second.start(nodes=0)
    assert embedded.secrets(var) == secrets
    assert not [process for process in running if process.is_alive]
    running = everything(second)
    second.stop()
    assert not [process for process in running if process.is_alive]
    assert not (var / "run" / "up.pid").exists()
    assert of_installation(var) == []
