"""The supervisor's side of the warm parents: start them, ask for children, hear of their ends."""

import asyncio
import itertools
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workers.node import procs
from workers.node.settings import ROOT, Settings, thread_variables

log = logging.getLogger("flowml.node.parents")

START_TIMEOUT_S = 120.0
FORK_TIMEOUT_S = 20.0
GROWTH_MIB = 512.0  # a parent never computes; one that grew by this much is replaced
IDLE_S = 900.0  # an engine that nobody used for so long gives its memory back


class EngineBroken(Exception):
    """The engine's virtualenv cannot be used on this node. The text says why."""


class ParentLost(Exception):
    """The warm parent died before it could fork."""


@dataclass(frozen=True)
class Exit:
    """How a child ended. ``status`` is as wait(2) gives it; ``orphaned``: its parent died first."""

    status: int
    cpu_s: float = 0.0
    ram_mib: float = 0.0
    orphaned: bool = False

    @property
    def signal(self) -> int:
        """The signal that ended it, or 0."""
        return os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else 0


@dataclass
class Child:
    """One forked process and the supervisor's ends of its channel and output."""

    pid: int
    start: int
    channel: socket.socket
    output: int
    exited: "asyncio.Future[Exit]"
    shared_mib: float = 0.0  # what it shares with its warm parent, at most
    started_at: float = field(default_factory=time.monotonic)

    async def kill(self) -> bool:
        """End it and everything below it. Returns False if something outlived four seconds."""
        return await asyncio.to_thread(procs.kill_tree, self.pid, self.start)

    def family(self) -> list[int]:
        """Its pid and those of its descendants, now."""
        return [self.pid, *procs.tree(procs.processes(), self.pid)]

    def memory_mib(self) -> float:
        """What it and its descendants hold, beside what its warm parent held before."""
        return procs.memory_mib(self.family(), shared_mib=self.shared_mib)


class WarmParent:
    """One warm parent process (see warm.py) and what it forked."""

    def __init__(self, engine: str, settings: Settings) -> None:
        self.engine = engine
        self.children: dict[int, Child] = {}
        self.ram_mib = 0.0
        self.import_s = 0.0
        self.used_at = time.monotonic()
        self._settings = settings
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[int, int]]] = {}
        self._early: dict[int, Exit] = {}
        self._unwanted: set[int] = set()
        loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = loop.create_future()
        self.gone = asyncio.Event()
        self._control: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The parent's own pid, 0 before it runs."""
        return self._process.pid if self._process else 0

    @property
    def is_ready(self) -> bool:
        """Whether a fork would be answered at once."""
        return self._ready.done() and not self._ready.cancelled() and not self._ready.exception()

    @property
    def is_forking(self) -> bool:
        """Whether there may be a child whose pid nobody here knows yet."""
        return bool(self._waiting)

    async def start(self) -> None:
        """Start the process and wait until it has imported its engine."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        python = self._settings.python(self.engine or "node")
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(
                    str(python),
                    "-m",
                    "workers.node.warm",
                    str(theirs.fileno()),
                    self.engine,
                ),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=2,
                env=self._settings.child_environment(self.engine or "node"),
                cwd=ROOT,
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise EngineBroken(f"{python} cannot be started: {error.strerror}") from error
        finally:
            theirs.close()
        self._control = ours
        asyncio.get_running_loop().add_reader(ours.fileno(), self._read)
        try:
            await asyncio.wait_for(asyncio.shield(self._ready), START_TIMEOUT_S)
        except TimeoutError:
            await self.stop()
            raise EngineBroken(f"its import took longer than {START_TIMEOUT_S:.0f} s") from None

    async def fork(
        self,
        entry: str,
        folder: Path,
        *,
        env: Mapping[str, str],
        threads: int,
        ram_mib: int = 0,
        nice: int = 0,
        network: bool = True,
    ) -> Child:
        """Fork a child that runs ``entry`` in ``folder``. Raises ParentLost if that failed."""
        if self._control is None or self.gone.is_set():
            raise ParentLost(self.engine)
        self.used_at = time.monotonic()
        number = next(self._numbers)
        request = {
            "fork": number,
            "entry": entry,
            "cwd": str(folder),
            "env": {
                **self._settings.child_environment(),
                **env,
                **thread_variables(threads),
            },
            "threads": threads,
            "ram_mib": ram_mib,
            "nice": nice,
            "network": network,
        }
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        output_read, output_write = os.pipe()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[int, int]] = loop.create_future()
        self._waiting[number] = answer
        try:
            packet = json.dumps(request).encode()
            socket.send_fds(self._control, [packet], [theirs.fileno(), output_write])
            pid, start = await asyncio.wait_for(answer, FORK_TIMEOUT_S)
        except BaseException as error:
            ours.close()
            os.close(output_read)
            if isinstance(error, (OSError, TimeoutError)):
                raise ParentLost(self.engine) from error
            raise
        finally:
            self._waiting.pop(number, None)
            theirs.close()
            os.close(output_write)
        ours.setblocking(False)
        os.set_blocking(output_read, False)
        child = Child(pid, start, ours, output_read, loop.create_future(), self.ram_mib)
        if pid in self._early:
            child.exited.set_result(self._early.pop(pid))
        elif self.gone.is_set():
            child.exited.set_result(Exit(signal.SIGKILL, orphaned=True))
        else:
            self.children[pid] = child
        return child

    async def stop(self) -> None:
        """End the parent and all its children."""
        for child in list(self.children.values()):
            await child.kill()
        if self._control is not None and not self.gone.is_set():
            # Hanging up would do, but a parent in the middle of an import would not notice.
            self._hang_up()
        if self._process is not None and self._process.returncode is None:
            await asyncio.to_thread(procs.kill_tree, self._process.pid)
            await self._process.wait()

    def has_grown(self) -> bool:
        """Whether it takes so much more memory than after its import that it should be replaced."""
        return bool(self.ram_mib) and procs.memory_mib([self.pid]) > self.ram_mib + GROWTH_MIB

    def _read(self) -> None:
        assert self._control is not None
        while True:
            try:
                packet = self._control.recv(64 * 1024)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self._hang_up()
                return
            self._take(json.loads(packet))

    def _take(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self.ram_mib, self.import_s = message["ram_mib"], message["import_s"]
            # The memory allocator that Arrow brings minds forks itself.
            threads = [name for name in message["threads"] if name != "jemalloc_bg_thd"]
            if threads:
                log.warning(
                    "engine %s has threads after its import (%s); forks of it may hang",
                    *(self.engine, ", ".join(threads)),
                )
            if not self._ready.done():
                self._ready.set_result(None)
        elif "broken" in message:
            if not self._ready.done():
                self._ready.set_exception(EngineBroken(message["broken"]))
        elif "forked" in message:
            answer = self._waiting.get(message["forked"])
            if answer is not None and not answer.done():
                answer.set_result((message["pid"], message["start"]))
            else:  # whoever asked for it has given up, and nobody else would ever end it
                self._unwanted.add(message["pid"])
                procs.kill_tree(message["pid"], message["start"], timeout_s=1)
        elif "exited" in message:
            end = Exit(message["status"], message["cpu_s"], message["ram_mib"])
            pid = message["exited"]
            child = self.children.pop(pid, None)
            if pid in self._unwanted:
                self._unwanted.remove(pid)
            elif child is None:  # it ended before the fork's answer was looked at
                self._early[pid] = end
            elif not child.exited.done():
                child.exited.set_result(end)

    def _hang_up(self) -> None:
        """The parent is gone. The kernel has killed its children with it (see warm.py)."""
        if self.gone.is_set() or self._control is None:
            return
        self.gone.set()
        asyncio.get_running_loop().remove_reader(self._control.fileno())
        self._control.close()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ParentLost(self.engine))
        if not self._ready.done():
            self._ready.set_exception(EngineBroken("its import ended the process"))
            self._ready.exception()  # looked at, so that nobody warns if no one waits
        for child in self.children.values():
            if not child.exited.done():
                child.exited.set_result(Exit(signal.SIGKILL, orphaned=True))
        self.children.clear()


class Parents:
    """All warm parents of a node, one per engine, started when first needed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._parents: dict[str, WarmParent] = {}
        self._starting: dict[str, asyncio.Task[WarmParent]] = {}
        self._retired: list[WarmParent] = []
        self._new: list[WarmParent] = []

    def pids(self) -> set[int]:
        """The parents' own pids and those of their children."""
        everyone = [*self._parents.values(), *self._retired, *self._new]
        return {p.pid for p in everyone} | {pid for p in everyone for pid in p.children}

    async def fork(self, engine: str, entry: str, folder: Path, **how: Any) -> Child:
        """Fork from the engine's warm parent ("" for a bare one), which is started if need be.

        Raises EngineBroken when that engine cannot run here.
        """
        for attempt in range(3):
            parent = await self.warm(engine)
            try:
                return await parent.fork(entry, folder, **how)
            except ParentLost:
                log.warning("the warm parent of %s died; starting another", engine or "the node")
                if attempt == 2:
                    raise EngineBroken("its warm parent dies again and again") from None
        raise AssertionError

    async def warm(self, engine: str) -> WarmParent:
        """The engine's parent, ready. Several callers at once share one start."""
        parent = self._parents.get(engine)
        if parent is not None and not parent.gone.is_set() and parent.is_ready:
            return parent
        task = self._starting.get(engine)
        if task is None:
            task = asyncio.create_task(self._start(engine))
            self._starting[engine] = task
            task.add_done_callback(lambda _: self._starting.pop(engine, None))
        return await asyncio.shield(task)

    async def _start(self, engine: str) -> WarmParent:
        parent = WarmParent(engine, self._settings)
        self._new.append(parent)
        try:
            await parent.start()
            self._parents[engine] = parent
        except BaseException:
            await parent.stop()
            raise
        finally:
            self._new.remove(parent)
        log.info(
            "%s is warm after %.1f s (%.0f MiB)",
            *(engine or "the node's own parent", parent.import_s, parent.ram_mib),
        )
        return parent

    async def tend(self) -> None:
        """Replace parents that grew, let go of those that nobody uses and of retired ones."""
        for engine, parent in list(self._parents.items()):
            if not parent.gone.is_set() and await asyncio.to_thread(parent.has_grown):
                log.warning(
                    "the warm parent of %s has grown; replacing it",
                    engine or "the node",
                )
                self._retired.append(self._parents.pop(engine))
        for engine in self._idle():
            log.info("%s was not used for a while; it starts again when it is needed", engine)
            self._retired.append(self._parents.pop(engine))
        for parent in list(self._retired):
            if parent.gone.is_set() or not (parent.children or parent.is_forking):
                self._retired.remove(parent)
                await parent.stop()

    def _idle(self) -> list[str]:
        """Engines to let go of. The one that was used last stays warm, however long ago."""
        for parent in self._parents.values():
            if parent.children or parent.is_forking:
                parent.used_at = time.monotonic()
        engines = sorted((p.used_at, name) for name, p in self._parents.items() if name)
        since = time.monotonic() - IDLE_S
        return [name for used_at, name in engines[:-1] if used_at < since]

    async def clear_up_after(self, child: Child) -> None:
        """End what a dead child left behind: its session, and orphans that its reaper inherited."""
        await asyncio.to_thread(self._sweep, child)

    def _sweep(self, child: Child) -> None:
        reapers = {p.pid: p for p in [*self._parents.values(), *self._retired]}
        for row in procs.processes().values():
            parent = reapers.get(row.parent)
            # Looked at again and not once for all: a fork may come in between.
            stray = parent is not None and not (row.pid in parent.children or parent.is_forking)
            if (stray or row.session == child.pid) and not row.is_dead:
                procs.kill_tree(row.pid, row.start)

    async def stop(self) -> None:
        """End everything."""
        for task in list(self._starting.values()):
            task.cancel()
        everyone = [*self._parents.values(), *self._retired]
        await asyncio.gather(*(parent.stop() for parent in everyone))
        self._parents.clear()
        self._retired.clear()
