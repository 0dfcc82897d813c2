"""Replicas of deployments on this node: what should run is told with each heartbeat's answer, and
made so here; how they are is told with the next heartbeat, again and again.

A replica is model servers of its own, forked from its engine's warm parent with its limits, or a
container. It is asked how it is every few seconds. One that ends, or takes more memory than it may,
is reported with the reason and not started again: the platform decides when, and where. What it
prints goes to the log of its deployment.
"""

import asyncio
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from workers.node.api import Api, Refused, Unauthorized, Unreachable
from workers.node.containers import (
    AGAIN_S,
    PULL_S,
    START_S,
    Container,
    ContainerBroken,
    Containers,
    Lines,
    NoAnswer,
)
from workers.node.gpus import Gpus, Need, NoRoom, visible
from workers.node.parents import EngineBroken, Parents
from workers.node.serving import Failed, Model, ModelServer, ServerDied, Serving
from workers.node.settings import Settings

log = logging.getLogger("flowml.node.replicas")

CHECK_S = 2.0
ANSWER_S = 30.0  # a replica that does not answer how it is for so long counts as hung
LOAD_S = 110.0
LATE_S = 1.5  # whoever asks web meanwhile may still be sent here
FETCH_S = 30.0
TELL_S = 1.0  # between two reports of what replicas print


class Broken(Exception):
    """It can't run, or does not any more. The text says why."""


class Replica:
    """One replica: its task goes from fetching what it is to the end of its processes."""

    def __init__(self, id: str, generation: int) -> None:
        self.id = id
        self.generation = generation
        self.state = "starting"
        self.why = ""
        self.servers: dict[str, ModelServer] = {}  # by engine
        self.models: dict[str, tuple[str, str]] = {}  # artifact -> engine, folder
        self.container: Container | None = None
        self.sick_since: float | None = None
        self.lines = Lines({})
        self.stop_s: float | None = None  # told to stop, within so many seconds
        self.stopping = asyncio.Event()
        self.busy = 0
        self.is_free = asyncio.Event()  # nobody waits for an answer
        self.is_free.set()
        self.ram_mib = 0
        self.task: asyncio.Task[None] | None = None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Somebody waits for its answer."""
        self.busy += 1
        self.is_free.clear()
        try:
            yield
        finally:
            self.busy -= 1
            if not self.busy:
                self.is_free.set()

    def told(self) -> dict[str, Any]:
        """What the heartbeat reports of it."""
        return {
            "replica": self.id,
            "generation": self.generation,
            "state": self.state,
            "why": self.why[:2000],
        }


class Replicas:
    """All that this node keeps running for deployments."""

    def __init__(
        self,
        settings: Settings,
        api: Api,
        parents: Parents,
        serving: Serving,
        gpus: Gpus,
        containers: Containers,
        changed: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._api = api
        self._parents = parents
        self._serving = serving
        self._gpus = gpus
        self._containers = containers
        self._cleared = False  # containers of an earlier life that nobody wants are gone
        self._leaving = False  # this process ends, and another takes its place
        self._changed = changed  # there is something to report
        self.all: dict[str, Replica] = {}

    def report(self) -> list[dict[str, Any]]:
        """How each is, for the heartbeat."""
        return [one.told() for one in self.all.values()]

    def wanted(self, told: list[dict[str, Any]]) -> None:
        """Make it so: start what is new, stop what should go, forget what nobody asks about."""
        named = {str(one["replica"]): one for one in told}
        if not self._cleared:
            self._cleared = True
            wanted = [key for key, one in named.items() if one.get("wish") != "stop"]
            self._clearing = asyncio.create_task(self._containers.forget(wanted))
        for key, one in named.items():
            known = self.all.get(key)
            if one.get("wish") == "stop":
                if known is None:
                    known = self.all[key] = Replica(key, int(one["generation"]))
                    known.state = "gone"
                    self._changed()
                self._stop(known, float(one.get("grace_s") or 0.0))
            elif known is None:
                self._start(key, int(one["generation"]))
        for key, known in list(self.all.items()):
            if key in named:
                continue
            if known.task is None or known.task.done():
                del self.all[key]  # its end was heard
            else:
                self._stop(known, 0.0)  # it is somewhere else by now

    def _start(self, id: str, generation: int) -> None:
        one = self.all[id] = Replica(id, generation)
        one.task = asyncio.create_task(self._see_through(one))

    def _stop(self, one: Replica, grace_s: float) -> None:
        if one.stop_s is None:
            one.stop_s = grace_s
            one.stopping.set()

    async def end(self, *, comes_back: bool = False) -> None:
        """The node ends: everything does, at once. Containers stay where it ``comes_back``."""
        self._leaving = comes_back
        for one in self.all.values():
            self._stop(one, 0.0)
        running = [one.task for one in self.all.values() if one.task and not one.task.done()]
        if running:
            await asyncio.wait(running, timeout=5.0)

    # --- one replica ---------------------------------------------------------------------------

    async def _see_through(self, one: Replica) -> None:
        log.info("replica %s: starting", one.id)
        telling = asyncio.create_task(self._tell_lines(one))
        try:
            starting = asyncio.create_task(self._load(one))
            stopping = asyncio.create_task(one.stopping.wait())
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not starting.done():
                starting.cancel()
                await asyncio.wait({starting})
            else:
                starting.result()
                self._now(one, "running")
                await self._watch(one, stopping)
            stopping.cancel()
            await self._finish(one)
            state, why = "gone", ""
        except asyncio.CancelledError:
            raise
        except Broken as error:
            state, why = "failed", str(error)
        except Exception as error:
            log.exception("replica %s: a fault of the node", one.id)
            state, why = "failed", f"The node could not run it: {type(error).__name__}: {error}"
        finally:
            await asyncio.gather(*(server.stop() for server in one.servers.values()))
            if one.container is not None:
                stays = self._leaving and one.stopping.is_set()
                await (one.container.let_go() if stays else one.container.remove())
            self._gpus.give_back(_holder(one))
            telling.cancel()
        await self._tell_once(one)  # its last words, before its end
        self._now(one, state, why)
        folder = self._settings.folder / "work" / f"replica-{one.id}"
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _now(self, one: Replica, state: str, why: str = "") -> None:
        one.state, one.why = state, why
        log.info("replica %s: %s%s", one.id, state, f" ({why})" if why else "")
        self._changed()

    async def _tell_lines(self, one: Replica) -> None:
        while True:
            await asyncio.sleep(TELL_S)
            await self._tell_once(one)

    async def _tell_once(self, one: Replica) -> None:
        """Send what it has printed to the log of its deployment."""
        lines = one.lines.give()
        if not lines:
            return
        try:
            await self._api.replica_log(one.id, one.generation, lines)
        except (Unreachable, Unauthorized):
            one.lines.put_back(lines)
        except Refused as error:
            log.debug("replica %s: nobody keeps what it prints: %s", one.id, error.detail)

    async def _load(self, one: Replica) -> None:
        """Start what it is, and wait until that can answer. Raises Broken."""
        spec = await self._spec(one)
        is_container = spec.get("runtime") == "container"
        within_s = PULL_S + START_S if is_container else LOAD_S
        try:
            async with asyncio.timeout(within_s):
                await (self._contain(one, spec) if is_container else self._load_all(one, spec))
        except TimeoutError:
            raise Broken(f"It was not loaded within {within_s:.0f} s.") from None
        except (Failed, EngineBroken, NoRoom, ContainerBroken) as error:
            raise Broken(str(error)) from error
        except ServerDied:
            raise Broken(await self._last_words(one)) from None

    async def _contain(self, one: Replica, spec: dict[str, Any]) -> None:
        """Find its container, or make one, and wait until it is healthy. Raises Broken."""
        one.lines = Lines(spec.get("env") or {})
        gpus = int(spec["limits"].get("gpus") or 0)
        devices = await self._gpus.take(_holder(one), Need(gpus)) if gpus else []
        making = asyncio.create_task(self._containers.run(one.id, spec, devices))
        try:
            one.container = await asyncio.shield(making)
        except asyncio.CancelledError:
            # It is told to stop while the engine is at work: what that makes must not stay.
            making.add_done_callback(self._undo)
            raise
        last = str(spec.get("logged_until") or "")
        after = datetime.fromisoformat(last) if last and not one.container.is_new else None
        one.container.follow(one.lines.take, after)
        began = time.monotonic()
        while not await one.container.is_healthy():
            if ended := await one.container.end():
                raise Broken(ended)
            if time.monotonic() - began > START_S:
                raise Broken(
                    f"It did not become healthy within {START_S:.0f} s: port {spec['port']} must "
                    f"answer {spec['health_path']} with a status below 400."
                )
            await asyncio.sleep(AGAIN_S)

    def _undo(self, made: "asyncio.Task[Container]") -> None:
        if not made.cancelled() and made.exception() is None:
            self._undoing = asyncio.create_task(made.result().remove())

    async def _load_all(self, one: Replica, spec: dict[str, Any]) -> None:
        limits = spec.get("limits") or {}
        ram_mib, gpus = int(limits.get("ram_mib") or 0), int(limits.get("gpus") or 0)
        one.lines = Lines(spec.get("env") or {})
        devices = await self._gpus.take(_holder(one), Need(gpus)) if gpus else []
        models = [Model.read(said) for said in spec["models"]]
        for model in models:
            folder = await self._serving.folder(model)
            one.models[model.artifact] = (model.engine, str(folder))
            if model.engine not in one.servers:
                one.servers[model.engine] = await self._fork(
                    one, model.engine, limits, dict(spec.get("env") or {}), devices
                )
            answer = await one.servers[model.engine].ask(
                {"model": model.artifact, "folder": str(folder), "columns": None}
            )
            if "error" in answer:
                raise Broken(str(answer["error"]))
        one.ram_mib = ram_mib

    async def _spec(self, one: Replica) -> dict[str, Any]:
        began = time.monotonic()
        while True:
            try:
                return await self._api.replica(one.id)
            except Unauthorized as error:
                await self._serving.register_again(error.token)
            except Refused as error:
                raise Broken(f"The platform does not say what it is: {error.detail}") from None
            except Unreachable as error:
                if time.monotonic() - began > FETCH_S:
                    raise Broken(f"The platform did not say what it is: {error}") from None
                await asyncio.sleep(1.0)

    async def _fork(
        self,
        one: Replica,
        engine: str,
        limits: dict[str, Any],
        env: dict[str, str],
        devices: list[str],
    ) -> ModelServer:
        if not self._settings.python(engine).exists():
            raise EngineBroken(f"The engine {engine} is not installed on this node.")
        folder = self._settings.folder / "work" / f"replica-{one.id}" / engine
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        ram_mib = int(limits.get("ram_mib") or 0)
        child = await self._parents.fork(
            engine,
            "workers.node.model_server:main",
            folder,
            env={
                **env,
                "HOME": str(folder),
                "TMPDIR": str(folder),
                "FLOWML_MODEL_SERVER_MIB": str(ram_mib or self._settings.model_server_mib),
                **visible(devices),
            },
            threads=max(1, math.floor(int(limits.get("cpu_millis") or 0) / 1000)),
            ram_mib=ram_mib,
            network=False,
        )
        return ModelServer(child, f"{engine} of replica {one.id[:8]}", told=one.lines.take)

    async def _watch(self, one: Replica, stopping: "asyncio.Task[bool]") -> None:
        """Be with it until it is told to stop. Raises Broken when it ends before that."""
        while not stopping.done():
            await asyncio.wait({stopping}, timeout=CHECK_S)
            if stopping.done():
                return
            if one.container is not None:
                await self._look_at(one, one.container)
            for server in one.servers.values():
                if server.closed:
                    raise Broken(await self._last_words(one))
            used = 0.0
            for server in one.servers.values():
                used += await asyncio.to_thread(server.child.memory_mib)
            if one.ram_mib and used > one.ram_mib:
                raise Broken(
                    f"It took {used / 1024:.1f} GB of memory and may take {one.ram_mib / 1024:.1f}."
                )
            await self._ask_how_it_is(one)

    async def _look_at(self, one: Replica, container: Container) -> None:
        """Raises Broken where it has ended, or was not healthy for long."""
        try:
            if ended := await container.end():
                raise Broken(ended)
        except ContainerBroken as error:
            log.warning("replica %s: %s", one.id, error)  # the engine may just be restarting
            return
        if await container.is_healthy():
            one.sick_since = None
            return
        one.sick_since = one.sick_since or time.monotonic()
        if time.monotonic() - one.sick_since > ANSWER_S:
            raise Broken(f"{container.health_path} did not answer well for {ANSWER_S:.0f} s.")

    async def _ask_how_it_is(self, one: Replica) -> None:
        for artifact, (engine, folder) in one.models.items():
            if one.busy:
                return  # whoever waits for an answer sees whether it comes
            try:
                async with asyncio.timeout(ANSWER_S):
                    answer = await one.servers[engine].ask(
                        {"model": artifact, "folder": folder, "columns": None}
                    )
            except TimeoutError:
                raise Broken(f"It gave no sign of life for {ANSWER_S:.0f} s.") from None
            except ServerDied:
                raise Broken(await self._last_words(one)) from None
            if "error" in answer:
                raise Broken(str(answer["error"]))

    async def _last_words(self, one: Replica) -> str:
        """How its process ended, and what it said last."""
        for server in one.servers.values():
            if not server.closed:
                continue
            try:
                ended = await asyncio.wait_for(asyncio.shield(server.child.exited), 2.0)
            except TimeoutError:
                continue
            how = f"was killed by signal {ended.signal}" if ended.signal else "ended"
            tail = server.tail.strip()
            return f"Its process {how}." + (f" It said last: {tail}" if tail else "")
        return "Its process ended."

    async def _finish(self, one: Replica) -> None:
        """Let those be answered who wait, and those who were sent here in the last second."""
        until = time.monotonic() + (one.stop_s or 0.0)
        if one.state == "running":
            await asyncio.sleep(min(LATE_S, one.stop_s or 0.0))
        try:
            await asyncio.wait_for(one.is_free.wait(), max(0.0, until - time.monotonic()))
        except TimeoutError:
            log.warning("replica %s: its time is over while somebody waits", one.id)
        if one.container is not None and not self._leaving:
            await one.container.stop(max(0.0, until - time.monotonic()))
        for server in one.servers.values():
            server.hang_up()  # it ends by itself; what does not is killed
        ends = [server.child.exited for server in one.servers.values()]
        if ends:
            await asyncio.wait(ends, timeout=max(0.5, until - time.monotonic()))

    # --- predictions ---------------------------------------------------------------------------

    async def answer(self, id: str, model: Model, ask: dict[str, Any]) -> dict[str, Any]:
        """A prediction by one of its model servers. Raises Failed."""
        one = self.all.get(id)
        if one is None or one.state != "running":
            raise Failed(410, "This replica is not here any more.", code="replica-gone")
        engine, folder = one.models.get(model.artifact, ("", ""))
        server = one.servers.get(engine)
        if server is None:
            raise Failed(410, "This replica has another model.", code="replica-gone")
        with one.at_work():
            try:
                return await server.ask({"model": model.artifact, "folder": folder, **ask})
            except ServerDied:
                raise Failed(502, "This replica ended before it answered.") from None
            except TimeoutError:
                raise Failed(504, "This replica gave no answer in time.") from None

    async def forward(self, id: str, asked: dict[str, Any]) -> dict[str, Any]:
        """The answer of its container to an HTTP request. Raises Failed."""
        one = self.all.get(id)
        if one is None or one.state != "running" or one.container is None:
            raise Failed(410, "This replica is not here any more.", code="replica-gone")
        with one.at_work():
            try:
                return await one.container.forward(asked, float(asked.get("within_s") or ANSWER_S))
            except NoAnswer as error:
                code = "broke-off" if error.sent else "replica-gone"
                raise Failed(502 if error.sent else 410, str(error), code=code) from None
            except TimeoutError:
                raise Failed(504, "The container gave no answer in time.") from None


def _holder(one: Replica) -> str:
    return f"replica {one.id}"
