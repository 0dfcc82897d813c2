"""The supervisor's side of the doorbell: keeps the Celery process alive and awake.

A Celery worker that looks connected but consumes nothing after its broker was restarted is a known
failure (celery issues 8030, 8091, 10205), so that it runs proves nothing. The proof is that it
rings: work that had to be found without it, more than once, gets it replaced.
"""

import asyncio
import logging
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workers.node import procs
from workers.node.settings import ROOT, Settings

log = logging.getLogger("flowml.node.bell")


@dataclass
class Watchdog:
    """Decides whether the bell has gone deaf. Times are seconds of one monotonic clock.

    Work found on the heartbeat's word, although the bell has not rung for ``quiet_s``, counts as
    missed; ``patience`` in a row mean deaf. After a restart the next verdict needs twice as long,
    up to ten minutes, since it may be the web side that does not ring.
    """

    patience: int = 2
    quiet_s: float = 3.0
    missed: int = 0
    rang_at: float = float("-inf")
    not_before: float = float("-inf")
    wait_s: float = 15.0

    def rang(self, now: float) -> None:
        """The bell works."""
        self.missed, self.rang_at, self.wait_s = 0, now, 15.0

    def found_unrung(self, now: float) -> None:
        """A claim that only the heartbeat had asked for brought work."""
        if now - self.rang_at >= self.quiet_s:
            self.missed += 1

    def is_deaf(self, now: float) -> bool:
        """Whether to replace the bell now."""
        return self.missed >= self.patience and now >= self.not_before

    def restarted(self, now: float) -> None:
        """It was replaced."""
        self.missed, self.not_before = 0, now + self.wait_s
        self.wait_s = min(600.0, self.wait_s * 2)


class Bell:
    """The Celery process of one node. ``on_ring`` is called for each bell."""

    def __init__(self, settings: Settings, on_ring: Callable[[], None]) -> None:
        self.watchdog = Watchdog()
        self.is_ready = False
        self._settings = settings
        self._on_ring = on_ring
        self._wanted: tuple[str, tuple[str, ...]] = ("", ())
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None
        self._failures = 0
        self._started_at = 0.0
        self._next_start_at = 0.0
        self._lock = asyncio.Lock()

    @property
    def pid(self) -> int:
        """The process's id, 0 when there is none."""
        return self._process.pid if self._process else 0

    async def want(self, broker_url: str | None, queues: Sequence[str]) -> None:
        """Listen to these queues of this broker. None means: there is no broker to listen to."""
        wanted = (broker_url or "", tuple(queues))
        if wanted != self._wanted:
            self._wanted = wanted
            self._failures, self._next_start_at = 0, 0.0
            await self._stop()
        await self.tend()

    async def tend(self) -> None:
        """Start the process if it should run and does not, or if it has gone deaf."""
        broker_url, queues = self._wanted
        if not broker_url or not queues:
            return
        async with self._lock:
            now = time.monotonic()
            if self._process is not None and self._process.returncode is not None:
                log.warning("the bell ended with status %s", self._process.returncode)
                self._failures = 1 if now - self._started_at > 60 else self._failures + 1
                self._next_start_at = now + min(30.0, 0.5 * 2.0 ** min(self._failures, 8))
                await self._stop()
            elif self._process is not None and self.watchdog.is_deaf(now):
                log.warning("work waits but the bell does not ring; replacing it")
                await self._stop()
                self.watchdog.restarted(now)
            if self._process is None and now >= self._next_start_at:
                await self._start(broker_url, queues)

    async def stop(self) -> None:
        """End the process."""
        self._wanted = ("", ())
        async with self._lock:
            await self._stop()

    async def _start(self, broker_url: str, queues: tuple[str, ...]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setblocking(False)
        worker = "-W ignore -m celery -A workers.node.celery_app worker -P solo"
        # Celery workers need not know of each other; leases tell who is alive.
        quiet = "--without-gossip --without-mingle --without-heartbeat --loglevel WARNING"
        name = f"{self._settings.name}@flowml"
        command = [
            sys.executable,
            *worker.split(),
            *quiet.split(),
            "-n",
            name,
            "-Q",
            ",".join(queues),
        ]
        # The address holds a password: it goes into the environment, not onto the command line.
        env = self._settings.child_environment() | {
            "FLOWML_BROKER_URL": broker_url,
            "FLOWML_BELL_QUEUES": ",".join(queues),
            "FLOWML_BELL_FD": str(theirs.fileno()),
        }
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,  # a banner
                env=env,
                cwd=ROOT,
                start_new_session=True,
            )
        finally:
            theirs.close()
        self._started_at = time.monotonic()
        self._socket = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._read)

    async def _stop(self) -> None:
        self.is_ready = False
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            # Nothing to finish: a bell holds no work. A frozen one would not hear SIGTERM anyway.
            await asyncio.to_thread(procs.kill_tree, process.pid)
            await process.wait()

    def _read(self) -> None:
        rang = False
        while self._socket is not None:
            try:
                word = self._socket.recv(64)
            except (BlockingIOError, ConnectionError):
                break
            rang = rang or word == b"ring"
            if word == b"ready":
                self.is_ready = True
                self._on_ring()  # what was rung while nobody listened is still waiting
        if rang:
            self.watchdog.rang(time.monotonic())
            self._on_ring()
