"""The node: one supervisor per machine. It claims work, sees it through in children, and answers
predictions. Imports neither Django nor an ML library, and never computes anything itself.
"""

import asyncio
import fcntl
import functools
import logging
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from workers.node import handlers, identity, probe, procs
from workers.node.api import Api, Gone, Refused, Unauthorized, Unreachable, backoff_s
from workers.node.attempt import Attempt
from workers.node.bell import Bell
from workers.node.cache import trim
from workers.node.containers import Containers
from workers.node.delivery import recover
from workers.node.gpus import Gpus
from workers.node.parents import EngineBroken, Parents
from workers.node.relay import Relay
from workers.node.replicas import Replicas
from workers.node.serving import Serving
from workers.node.settings import PROTOCOL, VERSION, Settings
from workers.node.spool import Spool

log = logging.getLogger("flowml.node")

POLL_S = 1.0  # how often to ask for work where no broker rings
QUICK_S = 0.5  # least time between two heartbeats
TEND_S = 1.0
TEND_SLOWLY_S = 30.0
REFUSED_PATIENCE_S = 30.0
GOODBYE_S = 3.0
UPDATE_FIRST = 426  # the status that a node of another protocol gets
RESTART = 75  # exit status that asks to be started again


class CannotJoin(Exception):
    """The web side does not want this node, or another one uses its folder. Tells why."""


class Supervisor:
    """One node. ``run`` returns the exit status once ``stop`` was called."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.cores = probe.cores()
        self.ram_mib = probe.ram_mib()
        self.api = Api(settings.url)
        self.parents = Parents(settings)
        self.gpus = Gpus()
        self.attempts: dict[str, Attempt] = {}
        self.recovering: dict[tuple[str, int], asyncio.Task[None]] = {}
        self.bell = Bell(settings, self._on_bell)
        self.serving = Serving(settings, self.api, self.parents, self.register_again)
        self.containers = Containers(settings)
        self.replicas = Replicas(
            settings, self.api, self.parents, self.serving, self.gpus, self.containers,
            self._beat_soon,
        )  # fmt: skip
        self.serving.of_replica = self.replicas.answer
        self.serving.of_container = self.replicas.forward
        self.relay = Relay(self.api, self.serving.answer, self._beat_soon)
        self.engines: list[str] = []
        self.heartbeat_s = 5.0
        self.broker_url: str | None = None
        self.queues: list[str] = []
        self.concurrency = settings.concurrency
        self.claim_wait_s = 0.0
        self.draining = False
        self._capabilities: dict[str, Any] = {}
        self._status = 0
        self._claim_now = asyncio.Event()
        self._beat_now = asyncio.Event()
        self._stopping = asyncio.Event()
        self._registering = asyncio.Lock()
        self._runs: set[asyncio.Task[None]] = set()
        self._working: set[asyncio.Task[None]] = set()
        # What the claim loop was last woken by: the watchdog of the bell wants to know.
        self._woken_by_heartbeat = False
        self._disk_is_full = False

    def stop(self, status: int = 0) -> None:
        """End soon: what runs is handed back, children are killed."""
        self._status = status
        self.draining = True
        self._stopping.set()

    async def run(self) -> int:
        """Be a node until stopped. Raises CannotJoin when that is impossible."""
        folder = self.settings.folder
        for name in ("work", "spool", "cache", "models"):
            (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = _only_one(folder)
        procs.become_reaper()
        left = await asyncio.to_thread(procs.kill_marked, self.settings.mark)
        if left:
            log.warning("killed %d processes that an earlier node had left", left)
        await asyncio.to_thread(_empty, folder / "work")
        self._capabilities = await asyncio.to_thread(
            functools.partial(probe.probe, use_gpu=self.settings.use_gpu),
            self.settings.venvs,
            self.settings.engines,
            folder,
        )
        self._capabilities["containers"] = await asyncio.to_thread(self.containers.open)
        self.engines = list(self._capabilities["engines"])
        log.info(
            "node %s: %d cores, %d MiB, engines: %s",
            *(
                self.settings.name,
                self.cores,
                self.ram_mib,
                ", ".join(self.engines) or "none",
            ),
        )
        loops: list[asyncio.Task[Any]] = []
        try:
            await self.serving.start()
            loops.append(asyncio.create_task(self._prewarm()))
            joined = asyncio.create_task(self._join())
            ended = asyncio.create_task(self._stopping.wait())
            await asyncio.wait({joined, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not joined.done():
                joined.cancel()
                return self._status
            joined.result()
            works = (self._heartbeats, self._claims, self._tending, self.relay.run)
            loops += [asyncio.create_task(self._for_ever(work)) for work in works]
            await self._stopping.wait()
        finally:
            for loop in loops:
                loop.cancel()
            await self._shut_down()
            os.close(lock)
        return self._status

    # --- joining -----------------------------------------------------------------------------

    async def _join(self) -> None:
        """Deliver what is left from last time, then register."""
        # Before registering, since the web side may take that as the end of the old process.
        left = [
            self._run(self._recover(path)) for path in (self.settings.folder / "spool").iterdir()
        ]
        online_s = 0.0
        while left and online_s < 5.0:
            _, pending = await asyncio.wait(left, timeout=0.5)
            left = list(pending)
            online_s += 0.5 if self.api.online else 0.0
        await self.register()

    async def _recover(self, folder: Path) -> None:
        try:
            spool = Spool.open(folder)
        except (OSError, ValueError, KeyError) as error:
            log.warning("%s cannot be read (%s); removing it", folder, error)
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            return
        delivery = asyncio.create_task(recover(spool, self.api))
        self.recovering[spool.task, spool.attempt] = delivery
        try:
            await delivery
        except asyncio.CancelledError:
            if not delivery.cancelled():
                delivery.cancel()
                raise  # the node is ending; the spool stays for its next start
            spool.discard()  # the web side wants no more of it
        finally:
            del self.recovering[spool.task, spool.attempt]

    async def register(self) -> None:
        """Make this node known. Waits out an absent web side; raises CannotJoin when refused."""
        body = {
            "join_token": self.settings.join_token,
            "name": self.settings.name,
            "version": VERSION,
            "protocol": PROTOCOL,
            "capabilities": self._capabilities,
            "address": self.serving.address,
            "concurrency": self.settings.concurrency,
            "poll": self.settings.poll,
        }
        if self.settings.queues:
            body["queues"] = list(self.settings.queues)
        failures, refused_at = 0, 0.0
        known = identity.load(self.settings)
        while True:
            try:
                answer = await self.api.register(body, known)
                break
            except Unauthorized:
                log.warning("the server does not know this node any more; joining anew")
                known = ""
                continue
            except Refused as error:
                refused_at = refused_at or time.monotonic()
                log.error("the server does not let this node in: %s", error)
                # What only an update can change is not waited for.
                patience_s = 0.0 if error.status == UPDATE_FIRST else REFUSED_PATIENCE_S
                if time.monotonic() - refused_at >= patience_s and not self._runs:
                    raise CannotJoin(f"The server does not let this node in: {error}") from error
            except Unreachable as error:
                if not failures:
                    log.warning("waiting for the server at %s (%s)", self.settings.url, error)
            failures += 1
            await asyncio.sleep(backoff_s(failures, 0.5))
        await asyncio.to_thread(identity.save, self.settings, self.api.token)
        self.heartbeat_s = float(answer.get("heartbeat_s") or self.heartbeat_s)
        self.claim_wait_s = float(answer.get("claim_wait_s") or 0)
        self._set_concurrency(answer.get("concurrency"))
        self.serving.organization = str(answer.get("organization") or "")
        self.broker_url = answer.get("broker_url") or None
        self.queues = list(answer.get("queues") or [])
        self.serving.signing_key = str(answer.get("signing_key") or "")
        log.info("registered as %s, queues: %s", self.settings.name, ", ".join(self.queues))
        await self.bell.want(self.broker_url, self.queues)
        self._claim_now.set()

    def _set_concurrency(self, said: Any) -> None:
        """The server may have another number set for this node than it would choose itself."""
        wanted = int(said or self.settings.concurrency)
        if wanted != self.concurrency:
            log.info("heavy tasks at a time are now: %d", wanted)
            self.concurrency = wanted
            self._claim_now.set()

    async def register_again(self, refused: str) -> None:
        """Register because the token ``refused`` is void. Several callers at once register once."""
        async with self._registering:
            if self.api.token == refused:
                log.warning("registering again")
                await self.register()

    # --- the heart ---------------------------------------------------------------------------

    async def _heartbeats(self) -> None:
        while True:
            began = time.monotonic()
            self._beat_now.clear()
            try:
                await self._beat()
            except Unreachable as error:
                # Children go on: what they finish is kept until the web side is back.
                log.debug("no heartbeat: %s", error)
            except Unauthorized as error:
                await self.register_again(error.token)
                continue
            except Refused as error:
                log.error("the heartbeat was refused: %s", error)
            await asyncio.sleep(QUICK_S)
            rest = self.heartbeat_s - (time.monotonic() - began)
            if not self.api.online:
                rest = min(rest, 1.0)
            try:
                await asyncio.wait_for(self._beat_now.wait(), max(0.0, rest))
            except TimeoutError:
                pass

    async def _beat(self) -> None:
        usage = probe.usage(self.settings.folder)
        usage["gpus"] = await asyncio.to_thread(probe.gpu_usage)
        running = dict(self.recovering.keys())
        running |= {a.task: a.number for a in self.attempts.values()}
        answer = await self.api.heartbeat(
            {
                "running": [{"task": task, "attempt": n} for task, n in running.items()],
                "replicas": self.replicas.report(),
                "usage": usage,
                "engines": self.engines,
                "draining": self.draining,
            }
        )
        for task, wish in (answer.get("tasks") or {}).items():
            attempt = self.attempts.get(task)
            if attempt is not None and attempt.number == running.get(task):
                attempt.wish(str(wish))
            elif wish == "gone" and (left := self.recovering.get((task, running.get(task, 0)))):
                left.cancel()
        if not self._stopping.is_set():
            self.replicas.wanted(list(answer.get("replicas") or []))
        queues = answer.get("queues")
        if queues is not None and list(queues) != self.queues:
            self.queues = list(queues)
            log.info("queues are now: %s", ", ".join(self.queues))
            await self.bell.want(self.broker_url, self.queues)
        self._set_concurrency(answer.get("concurrency"))
        if answer.get("restart") and not self.draining:
            log.info("the server asks for a restart")
            self.draining = True
            self._run(self._restart_when_idle())
        # Where web holds our question until there is work, it looks for itself.
        asks = not self.broker_url and self.claim_wait_s
        if answer.get("waiting") and not self.draining and not asks:
            self._woken_by_heartbeat = not self._claim_now.is_set()
            self._claim_now.set()

    def _beat_soon(self) -> None:
        self._beat_now.set()

    async def _restart_when_idle(self) -> None:
        while self._working:
            await asyncio.wait(self._working)
        self.stop(RESTART)

    # --- claiming ----------------------------------------------------------------------------

    def _on_bell(self) -> None:
        self._woken_by_heartbeat = False
        self._claim_now.set()
        if self.attempts:
            # The web side rings for a cancel, too, which a heartbeat learns of.
            self._beat_now.set()

    async def _claims(self) -> None:
        while True:
            try:
                timeout = None if self.broker_url else POLL_S
                await asyncio.wait_for(self._claim_now.wait(), timeout)
            except TimeoutError:
                pass
            self._claim_now.clear()
            by_heartbeat, self._woken_by_heartbeat = self._woken_by_heartbeat, False
            try:
                while not self.draining and self._has_disk():
                    room = await self.room()
                    if not room["slots"] and not room["light_slots"]:
                        break
                    asked_at = time.monotonic()
                    claim = await self._claim(room)
                    if claim is None:
                        if time.monotonic() - asked_at > POLL_S:  # web has waited for us
                            self._claim_now.set()
                        break
                    if by_heartbeat and self.broker_url:
                        self.bell.watchdog.found_unrung(time.monotonic())
                    by_heartbeat = False
                    self._begin(claim)
                    if self.broker_url and not claim.get("more", True):
                        break  # what comes from now on rings
            except Unreachable:
                await asyncio.sleep(POLL_S)
                self._claim_now.set()
            except Unauthorized as error:
                await self.register_again(error.token)
            except Refused as error:
                log.error("the claim was refused: %s", error)
                await asyncio.sleep(POLL_S)

    async def _claim(self, room: dict[str, Any]) -> dict[str, Any] | None:
        """The next task. Without a broker the web side is asked to wait until there is one.

        A wait ends early when this node has more room than it told, since nobody waits for that.
        """
        if self.broker_url or not self.claim_wait_s:
            return await self.api.claim(room)
        self._claim_now.clear()
        asking = asyncio.create_task(self.api.claim(room, self.claim_wait_s))
        more = asyncio.create_task(self._claim_now.wait())
        try:
            await asyncio.wait({asking, more}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                return asking.result()
            return None
        finally:
            for task in (asking, more):
                task.cancel()

    async def room(self) -> dict[str, Any]:
        """What is free now: slots by class, processor (millicores), memory (MiB), GPUs (MiB)."""
        gpus = await self.gpus.room()  # first, since attempts end meanwhile
        working = [a for a in self.attempts.values() if a.working]
        heavy = sum(not a.is_light for a in working)
        light = len(working) - heavy
        taken_mib = sum(int(a.limits.get("ram_mib") or 0) for a in working if not a.is_light)
        taken_cpu = sum(a.cpu_millis for a in working if not a.is_light)
        # Light work beyond its own slots sits in a heavy one.
        spill = max(0, light - self.settings.light_slots)
        return {
            "slots": max(0, self.concurrency - heavy - spill),
            "light_slots": max(0, self.settings.light_slots - light),
            "cpu_millis": max(0, self.cores * 1000 - taken_cpu),
            "ram_mib": max(0, int(self.ram_mib * 0.9) - taken_mib),
            "gpus": gpus,
        }

    def _has_disk(self) -> bool:
        if probe.disk_free_mib(self.settings.folder) < self.settings.min_disk_mib:
            if not self._disk_is_full:
                log.error("the disk is nearly full: no more work until there is room")
                trim(self.settings.folder / "cache", 0)
            self._disk_is_full = True
            return False
        self._disk_is_full = False
        return True

    def _begin(self, claim: dict[str, Any]) -> None:
        task = str(claim["task"])
        old = self.attempts.get(task)
        if old is not None:
            if old.number == int(claim["attempt"]) and old.working:
                return  # the same claim, answered twice
            old.wish("gone")
        try:
            attempt = Attempt(
                claim,
                api=self.api,
                parents=self.parents,
                gpus=self.gpus,
                settings=self.settings,
                cores=max(1, self.cores // self.concurrency),
            )
        except OSError as error:
            log.error("task %s cannot be kept here: %s", task, error)
            self._run(self._hand_back(claim, f"The node cannot write to its disk: {error}"))
            return
        self.attempts[task] = attempt
        log.info(
            "task %s attempt %d: %s %s",
            task,
            attempt.number,
            attempt.kind,
            attempt.engine,
        )
        run = self._run(self._see_through(attempt))
        self._working.add(run)
        run.add_done_callback(self._working.discard)

    async def _hand_back(self, claim: dict[str, Any], why: str) -> None:
        body = {"attempt": claim["attempt"], "outcome": "returned", "error": why}
        try:
            await self.api.end(str(claim["task"]), str(claim["token"]), body)
        except (Gone, Refused) as error:
            log.warning("task %s: %s", claim["task"], error)
        await asyncio.sleep(POLL_S)  # or it would come again at once

    async def _see_through(self, attempt: Attempt) -> None:
        try:
            await attempt.run(freed=self._claim_now.set)
        finally:
            if self.attempts.get(attempt.task) is attempt:
                del self.attempts[attempt.task]
            self._claim_now.set()

    # --- upkeep ------------------------------------------------------------------------------

    async def _prewarm(self) -> None:
        """Have the engines imported before the first task asks, one at a time.

        Large ones, and versions of others (sklearn-1.4), wait until somebody asks for one.
        """
        late = {name for name in self.engines if name in handlers.LATE or "-" in name}
        for engine in ["", *(name for name in self.engines if name not in late)]:
            try:
                await self.parents.warm(engine)
            except EngineBroken as error:
                log.error("the engine %s cannot run on this node: %s", engine or "(none)", error)
                self.engines = [name for name in self.engines if name != engine]
        if self.engines != self._capabilities["engines"]:
            self._capabilities["engines"] = self.engines
            if self.api.token:
                await self.register_again(self.api.token)  # its queues are not ours to serve

    async def _tending(self) -> None:
        slowly_at, suspects = time.monotonic() + TEND_SLOWLY_S, set[procs.Process]()
        while True:
            await asyncio.sleep(TEND_S)
            await self.bell.tend()
            await self.serving.tend()
            if time.monotonic() < slowly_at:
                continue
            slowly_at = time.monotonic() + TEND_SLOWLY_S
            await self.parents.tend()
            known = {*self.parents.pids(), self.bell.pid}
            found = set(await asyncio.to_thread(procs.strays, [os.getpid()], known))
            # Seen twice: the first time it may have been one of ours that was just starting.
            await asyncio.to_thread(procs.end_strays, found & suspects)
            suspects = found
            await asyncio.to_thread(self.serving.forget)
            await asyncio.to_thread(trim, self.settings.folder / "cache", self.settings.cache_mib)

    async def _for_ever(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run one of the loops; a fault of ours in it is logged and must not end the node."""
        while True:
            try:
                await work()
            except CannotJoin as error:
                log.error("%s", error)
                self.stop(3)
                return
            except Exception:
                log.exception("a fault in the node's %s", work.__name__)
                await asyncio.sleep(1)

    def _run(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._runs.add(task)
        task.add_done_callback(self._ran)
        return task

    def _ran(self, task: "asyncio.Task[None]") -> None:
        self._runs.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a fault in the node", exc_info=task.exception())

    async def _shut_down(self) -> None:
        """Hand back what runs, within a few seconds; what cannot be said now stays in the spool."""
        await self.bell.stop()
        for attempt in self.attempts.values():
            attempt.wish("returned")
        if self._runs:
            await asyncio.wait(self._runs, timeout=GOODBYE_S)
        for task in list(self._runs):
            task.cancel()
        await asyncio.gather(*self._runs, return_exceptions=True)
        await self.replicas.end(comes_back=self._status == RESTART)
        await self.serving.stop()
        await self.parents.stop()
        await asyncio.to_thread(procs.kill_marked, self.settings.mark)
        await self.api.close()


def _only_one(folder: Path) -> int:
    """Take the folder's lock for as long as this process lives. Raises CannotJoin if taken."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        other = os.read(handle, 100).decode(errors="replace").strip()
        os.close(handle)
        raise CannotJoin(
            f"Another node{f' (process {other})' if other else ''} uses the folder {folder}. "
            "Give this one its own: FLOWML_NODE_DIR."
        ) from None
    os.ftruncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
    return handle


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path, ignore_errors=True)
