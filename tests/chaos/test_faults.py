"""What may happen to a fleet, each with real processes: no task is lost, none is done twice."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from flowml_site import embedded
from tests.chaos.conftest import LEASE_S
from tests.chaos.desk import ROOT
from tests.chaos.fleet import Fleet, Node, Proxy, until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.chaos,
    pytest.mark.timeout(240),
    pytest.mark.xdist_group("fleet"),
]


def work(fleet: Fleet, organization: str, *, s: float = 0.1, models: int = 1) -> str:
    payload = {"s": s, "models": models, "answer": 42}
    return str(fleet.desk("add", organization, payload=payload))


def refused_late(fleet: Fleet, name: str) -> bool:
    """Whether the node was told that an attempt is not its own any more, and dropped it."""
    node = fleet.nodes[name]
    said = "not ours any more" in node.log or "dropped" in node.log
    return said and not list((node.folder / "spool").iterdir())


def test_a_node_frozen_beyond_its_lease_writes_nothing_late(
    fleet: Fleet, organization: str
) -> None:
    fleet.only("a")
    task = work(fleet, organization, s=3, models=3)
    assert fleet.running(task) == "a"
    # Its child goes on, and finishes; the supervisor will find that in its hands when it wakes.
    fleet.nodes["a"].send(signal.SIGSTOP)
    fleet.node("b")
    ended = fleet.ended(task)
    assert (ended["worker"], ended["attempt"], ended["losses"]) == ("b", 2, 1)
    before = fleet.events(task)
    fleet.nodes["a"].send(signal.SIGCONT)
    until(lambda: refused_late(fleet, "a"), "its late result is refused and dropped")
    fleet.check_once([task])
    assert fleet.events(task) == before, "it changed nothing"
    assert fleet.task(task)["result"]["data"] == {"answer": 42}
    fleet.only("a")
    assert fleet.ended(work(fleet, organization))["worker"] == "a", "it is as good as before"


def test_a_cut_network_costs_no_result(fleet: Fleet, organization: str) -> None:
    """Longer than the lease; and the old connections never answer again."""
    fleet.only()
    proxy = Proxy(fleet.platform.url)
    node = fleet.node("far", FLOWML_URL=proxy.url)
    task = work(fleet, organization, s=2, models=2)
    fleet.running(task)
    proxy.cut()
    fleet.node("near")
    ended = fleet.ended(task)
    assert (ended["worker"], ended["losses"]) == ("near", 1)
    proxy.mend()
    mended = time.time()
    until(lambda: fleet.seen("far", since=mended), "it is heard again on a new connection", 30)
    until(lambda: refused_late(fleet, "far"), f"what it kept is refused: {node.log[-2000:]}")
    fleet.check_once([task])
    fleet.only("far")
    assert fleet.ended(work(fleet, organization))["worker"] == "far"


def test_web_away_for_several_leases_costs_no_result(fleet: Fleet, organization: str) -> None:
    fleet.only("a")
    task = work(fleet, organization, s=2, models=2)
    fleet.running(task)
    web = [fleet.platform.process(name).pid for name in ("web-1", "web-2")]
    for pid in web:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(3 * LEASE_S)
    assert fleet.task(task)["state"] == "running", "the silence is the platform's own"
    for pid in web:
        os.kill(pid, signal.SIGCONT)
    ended = fleet.ended(task)
    assert (ended["attempt"], ended["losses"]) == (1, 0), "what the node kept was delivered"
    fleet.check_once([task])


def test_valkey_away_for_several_leases_costs_nothing(fleet: Fleet, organization: str) -> None:
    """Frozen and not killed: nobody is refused, everybody waits for an answer that never comes."""
    fleet.only("a")
    first = work(fleet, organization, s=3)
    fleet.running(first)
    valkey = fleet.platform.process("valkey").pid
    os.kill(valkey, signal.SIGSTOP)
    try:
        began = time.monotonic()
        meanwhile = fleet.desk.rows("SELECT 1")
        assert meanwhile
        # A broker without a limit to its silence took a minute of each report.
        assert fleet.ended(first, within=40)["attempt"] == 1, "work ends without a broker"
        while time.monotonic() < began + 3 * LEASE_S:
            assert fleet.seen("a", since=time.time() - LEASE_S), "nodes are heard all the while"
            time.sleep(0.5)
    finally:
        os.kill(valkey, signal.SIGCONT)
    second = work(fleet, organization)
    assert fleet.ended(second)["attempt"] == 1
    fleet.check_once([first, second])


def test_a_node_whose_clock_is_wrong_is_as_good_as_any(fleet: Fleet, organization: str) -> None:
    fleet.only()
    now = time.time()
    for name, hours in (("early", -1), ("late", 1)):
        skewed = fleet.folder / f"clock-{name}"
        skewed.mkdir()
        (skewed / "sitecustomize.py").write_text(SKEW.format(seconds=hours * 3600))
        fleet.node(name, PYTHONPATH=f"{skewed}:{ROOT}")
        assert f"{hours * 3600}" in fleet.nodes[name].log
        task = work(fleet, organization, s=1, models=2)
        ended = fleet.ended(task)
        assert (ended["worker"], ended["attempt"]) == (name, 1)
        fleet.check_once([task])
        stamps = [at for _, at, _ in fleet.events(task)]
        assert stamps == sorted(stamps), "its events are in order"
        assert all(now - 1 < at < time.time() + 1 for at in stamps), "and of today"
        fleet.only()


SKEW = """
import datetime, sys, time
real, kind = time.time, datetime.datetime
time.time = lambda: real() + {seconds}
class Skewed(kind):
    @classmethod
    def now(cls, tz=None):
        return kind.now(tz) + datetime.timedelta(seconds={seconds})
    @classmethod
    def utcnow(cls):
        return kind.utcnow() + datetime.timedelta(seconds={seconds})
datetime.datetime = Skewed
print("clock: {seconds}", file=sys.stderr)
"""


def test_the_same_message_ten_times_does_no_harm(fleet: Fleet, organization: str) -> None:
    fleet.only("a", "b")
    task = work(fleet, organization, s=0.5)
    fleet.desk("ring", "cpu", 10)
    ended = fleet.ended(task)
    fleet.desk("react", task, 10)
    fleet.desk("ring", "cpu", 10)
    assert fleet.ended(work(fleet, organization))["attempt"] == 1
    assert ended["attempt"] == 1
    fleet.check_once([task])
    assert [kind for kind, _, _ in fleet.events(task)].count("task.running") == 1


def test_cancel_ends_what_does_not_listen_and_what_never_began(
    fleet: Fleet, organization: str
) -> None:
    fleet.only("a")
    task = str(fleet.desk("add", organization, "toy.stubborn"))
    fleet.running(task)
    [pids] = until(
        lambda: fleet.desk.rows(
            "SELECT data->'pids'->0, data->'pids'->1 FROM workers_event "
            "WHERE task_id = %s AND type = 'notice'",
            task,
        ),
        "it tells its processes",
    )
    began = time.monotonic()
    fleet.desk("cancel", task)
    until(lambda: not any(psutil.pid_exists(int(pid)) for pid in pids), "all of it is gone", 30)
    took = time.monotonic() - began
    assert fleet.ended(task)["state"] == "cancelled"
    assert took < 15, f"{took:.1f} s; on an idle machine it takes less than one"
    fleet.only()
    never = work(fleet, organization)
    fleet.desk("cancel", never)
    assert fleet.task(never)["state"] == "cancelled", "at once"
    fleet.only("a")
    assert fleet.ended(work(fleet, organization))["state"] == "succeeded"
    assert not any(kind == "started" for kind, _, _ in fleet.events(never))


def test_a_node_that_dies_before_its_first_heartbeat_loses_its_task(
    fleet: Fleet, organization: str
) -> None:
    fleet.only()
    task = work(fleet, organization)
    token = embedded.secrets(fleet.platform.var)["FLOWML_JOIN_TOKEN"]
    with httpx.Client(base_url=fleet.platform.url) as ghost:
        capabilities = {"cpu": 2, "ram_mib": 4096, "gpus": [], "engines": [], "llm": False}
        joined = ghost.post(
            "/api/workers/register",
            json={
                "join_token": token,
                "name": "ghost",
                "version": fleet.desk.rows("SELECT version FROM workers_worker LIMIT 1")[0][0],
                "capabilities": capabilities,
                "concurrency": 1,
            },
        )
        assert joined.status_code == 201, joined.text
        room = {"slots": 1, "light_slots": 1, "cpu_millis": 2000, "ram_mib": 4096, "gpus": []}
        claimed = ghost.post(
            "/api/workers/claim",
            json={"room": room},
            headers={"Authorization": f"Worker {joined.json()['token']}"},
        )
        assert claimed.status_code == 200, claimed.text
    fleet.node("a")
    ended = fleet.ended(task)
    assert (ended["worker"], ended["losses"]) == ("a", 1)
    fleet.check_once([task])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_told_and_the_node_lives_on(
    fleet: Fleet, organization: str, small_disk: Path
) -> None:
    fleet.only()
    fleet.node("small", FLOWML_NODE_DIR=str(small_disk), FLOWML_NODE_MIN_DISK_MIB="4")
    task = str(fleet.desk("add", organization, "toy.fill", payload={"mib": 64}))
    ended = fleet.ended(task)
    assert (ended["state"], ended["fault"]) == ("failed", "platform"), ended
    assert "disk is full" in ended["error"]
    assert "small" in ended["error"]
    # Full before the task comes: then it is not taken, and waits.
    with (small_disk / "hoard").open("wb") as file:
        file.write(b"x" * shutil.disk_usage(small_disk).free)
    waiting = work(fleet, organization)
    time.sleep(2)
    row = fleet.task(waiting)
    assert (row["state"], row["losses"]) == ("queued", 0), row
    assert fleet.seen("small", since=time.time() - LEASE_S), "the node lives on"
    (small_disk / "hoard").unlink()
    assert fleet.ended(waiting)["losses"] == 0
    fleet.check_once([waiting])


def other_code(folder: Path, old: str, new: str) -> Path:
    """A node's code as another release would have it: with ``new`` for ``old`` in its settings."""
    code = shutil.ignore_patterns("__pycache__")
    for package in ("workers", "tests/chaos", "training/engines"):
        shutil.copytree(ROOT / package, folder / package, ignore=code)
    for package in ("tests", "training"):
        (folder / package / "__init__.py").touch()
    settings = folder / "workers" / "node" / "settings.py"
    assert old in settings.read_text()
    settings.write_text(settings.read_text().replace(old, new))
    return folder


def test_a_node_that_is_too_old_says_so_and_ends(
    fleet: Fleet, organization: str, tmp_path: Path
) -> None:
    fleet.only("a")
    old = Node(fleet, "old")
    old.root = other_code(tmp_path / "old", "PROTOCOL = 1", "PROTOCOL = 0")
    old.start()
    assert old.process is not None
    assert old.process.wait(60) == 3
    assert "too old for this server" in old.log
    assert "Update the node" in old.log
    assert fleet.ended(work(fleet, organization))["worker"] == "a"


def test_nodes_are_updated_one_by_one_and_no_task_is_lost(
    fleet: Fleet, organization: str, tmp_path: Path
) -> None:
    newer = other_code(tmp_path / "newer", 'VERSION = "0.1.0"', 'VERSION = "0.1.99"')
    fleet.only("a", "b")
    payloads = [{"s": 0.5, "models": 2, "answer": 42}] * 24
    tasks = fleet.desk("add_many", [organization], payloads)
    for name in ("a", "b"):
        node = fleet.nodes[name]
        fleet.desk("drain", name, True)
        until(
            lambda name=name: (
                not fleet.desk.rows(
                    "SELECT 1 FROM workers_task t JOIN workers_worker w ON w.id = t.worker_id "
                    "WHERE w.name = %s AND t.state = 'running'",
                    name,
                )
            ),
            "it runs nothing any more",
        )
        assert node.stop() == 0
        node.root = newer
        fleet.node(name)
    for task in tasks:
        assert fleet.ended(task)["losses"] == 0
    fleet.check_once(tasks)
    versions = fleet.desk.rows("SELECT version FROM workers_worker WHERE name IN ('a', 'b')")
    assert versions == [["0.1.99"], ["0.1.99"]]
    for name in ("a", "b"):
        fleet.nodes[name].root = ROOT
        fleet.nodes[name].stop()
