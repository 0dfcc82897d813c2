"""One attempt at a task, from the claim to the moment when the web side knows how it ended."""

import asyncio
import contextlib
import errno
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from workers.node import child as entry
from workers.node import handlers, spool
from workers.node.api import Api, Gone, Refused
from workers.node.channel import MAX_MESSAGE_BYTES
from workers.node.checkpoints import Checkpoints
from workers.node.delivery import deliver
from workers.node.gpus import Gpus, NoRoom, need_of, visible
from workers.node.loglines import LogLines, Mask
from workers.node.outcome import (
    DISK_FULL,
    End,
    Seen,
    judge,
    should_start_again,
    wants_smaller_batch,
)
from workers.node.parents import Child, EngineBroken, Parents
from workers.node.settings import Settings
from workers.node.spool import Spool

log = logging.getLogger("flowml.node.attempt")

Wish = Literal["ok", "stop", "cancel", "gone", "returned"]
# A later wish only counts when it goes further: what is to be cancelled is not stopped any more.
RANK: dict[Wish, int] = {"ok": 0, "stop": 1, "returned": 2, "cancel": 3, "gone": 4}

MEMORY_CHECK_S = 1.0
MAX_LINE = 2000
TAIL_BYTES = 8000


class Attempt:
    """One claimed attempt. ``run`` sees it through; ``wish`` tells it what the web side wants."""

    def __init__(
        self,
        claim: dict[str, Any],
        *,
        api: Api,
        parents: Parents,
        gpus: Gpus,
        settings: Settings,
        cores: int,
    ) -> None:
        # Kept in memory alone: the spool is on disk, and outlives the work.
        self._confidential = claim.pop("confidential", None)
        self._mask = Mask((self._confidential or {}).get("secrets") or {})
        self.claim = claim
        self.task = str(claim["task"])
        self.number = int(claim["attempt"])
        self.kind = str(claim["kind"])
        self.engine = str(claim.get("engine") or "")
        self.limits: dict[str, Any] = dict(claim.get("limits") or {})
        self.way = handlers.way_for(self.kind)
        self.is_light = bool(claim.get("light", self.way is not None and self.way.light))
        self.cpu_millis = int(claim.get("cpu_millis") or 0)
        self.wished: Wish = "ok"
        self.working = True  # still takes room; False once the child has ended
        self.child: Child | None = None
        self._settings = settings
        self._api = api
        self._parents = parents
        self._gpus = gpus
        self._cores = cores
        self._wish_changed = asyncio.Event()
        self._out = Spool.create(settings.folder / "spool", claim)
        self._work = settings.folder / "work" / self._out.folder.name
        self._checkpoints = Checkpoints(api, self.task, self.number, str(claim["token"]))
        self._said: dict[str, Any] | None = None
        self._tail = ""
        self._lines = LogLines()
        self._devices: list[str] = []
        self._smaller_batch = False
        self._cpu_s = 0.0
        self._peak_mib = 0.0
        self._began = time.monotonic()
        self._started_at = 0.0

    @property
    def _holder(self) -> str:
        return self._out.folder.name  # a task may be here twice: once ending, once begun anew

    def wish(self, wish: str) -> None:
        """Take in what the web side wants with this attempt. A weaker wish changes nothing."""
        if wish in RANK and RANK[wish] > RANK[self.wished]:
            self.wished = wish
            self._wish_changed.set()

    async def run(self, freed: Callable[[], None]) -> None:
        """See the attempt through. ``freed`` is called once its room is free again."""
        delivery = asyncio.create_task(deliver(self._out, self._api, self.wish))
        delivery.add_done_callback(self._delivery_ended)
        try:
            try:
                end = await self._do()
            except Gone:
                end = None
            except NoRoom as why:
                end = End("returned", error=str(why), code="gpu_busy")
            except EngineBroken as error:
                text = f"The engine {self.engine or 'environment'} cannot run on this node: {error}"
                end = End("failed", error=text, code="engine_broken", fault="platform")
            except Refused as error:
                text = f"Its input could not be fetched: {error.detail}"
                end = End("failed", error=text, code="input", fault="platform")
            except Exception as error:
                log.exception("task %s: the node could not see it through", self.task)
                text = f"The node could not do it: {type(error).__name__}: {error}"
                code = "node"
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    text, code = DISK_FULL, "disk_full"
                end = End("failed", error=text, code=code, fault="platform")
            finally:
                if self.child is not None and not self.child.exited.done():
                    await self.child.kill()
                self._checkpoints.end()
                self._gpus.give_back(self._holder)
                self.working = False
                freed()
            if end is not None and self.wished != "gone":
                self._finish(end)
                await self._delivered(delivery)
            else:
                log.info("task %s attempt %d: dropped", self.task, self.number)
        except Gone as gone:
            log.warning(
                "task %s attempt %d: not ours any more (%s)",
                self.task,
                self.number,
                gone,
            )
        finally:
            delivery.cancel()
            await asyncio.to_thread(shutil.rmtree, self._work, ignore_errors=True)
        # Not reached when the node is cancelled in the middle: the spool stays for its next start.
        self._out.discard()

    async def _delivered(self, delivery: "asyncio.Task[None]") -> None:
        """Until the web side has everything. Raises Gone when it wants nothing more of it."""
        while not delivery.done():
            if self.wished == "gone":
                raise Gone("told so")
            self._wish_changed.clear()
            wish = asyncio.create_task(self._wish_changed.wait())
            await asyncio.wait({delivery, wish}, return_when=asyncio.FIRST_COMPLETED)
            wish.cancel()
        delivery.result()

    def _delivery_ended(self, delivery: "asyncio.Task[None]") -> None:
        if delivery.cancelled() or (error := delivery.exception()) is None:
            return
        if not isinstance(error, Gone):
            log.error("task %s: what it says cannot be delivered", self.task, exc_info=error)
        self.wish("gone")

    def _finish(self, end: End) -> None:
        try:
            files = spool.inside(self._work, end.files)
        except spool.BadFile as error:
            end, files = End("failed", error=str(error), code="crash", fault="work"), {}
        body = {
            "outcome": end.outcome,
            "data": end.data,
            "error": end.error,
            "code": end.code,
            "fault": end.fault or None,
            "usage": {
                "cpu_s": round(self._cpu_s, 3),
                "ram_peak_mib": round(self._peak_mib, 1),
                "wall_s": round(time.monotonic() - self._began, 3),
            },
        }
        log.info(
            "task %s attempt %d: %s %s",
            *(self.task, self.number, end.outcome, end.error or ""),
        )
        try:
            self._out.finish(body, files)
        except OSError as error:
            # What the work left takes the room that its end needs.
            log.error("task %s: its end cannot be written: %s", self.task, error)
            shutil.rmtree(self._work, ignore_errors=True)
            if end.outcome == "succeeded":
                body |= {"outcome": "failed", "data": {}, "error": DISK_FULL, "code": "disk_full"}
                body["fault"] = "platform"
            with contextlib.suppress(OSError):  # then it is told now, or lost with this process
                self._out.finish(body)

    async def _do(self) -> End | None:
        """Do the work in a child, again if something from outside killed it. None: drop it."""
        if self.way is None:
            text = f'This node does not know work of the kind "{self.kind}".'
            return End("failed", error=text, code="unknown_kind", fault="platform")
        fetching = asyncio.create_task(self._fetch_inputs())
        if not await self._unless_ended(fetching):
            return judge(Seen(reason="returned" if self.wished == "returned" else "cancel"))
        inputs = fetching.result()
        need = need_of(self.claim)
        if need is not None:
            # Last of all before the start: what is free now is what it will find.
            taking = asyncio.create_task(self._gpus.take(self._holder, need))
            if not await self._unless_ended(taking):
                return judge(Seen(reason="returned" if self.wished == "returned" else "cancel"))
            self._devices = taking.result()
        starts = 0
        while True:
            starts += 1
            starting = asyncio.create_task(self._start(self.way, inputs))
            if not await self._unless_ended(starting):
                return judge(Seen(reason="returned" if self.wished == "returned" else "cancel"))
            child = self.child = starting.result()
            if starts == 1:
                self._out.add("started", {"pid": child.pid, "node": self._settings.name})
            seen, orphaned = await self._watch(child, self.way)
            if not self._smaller_batch and wants_smaller_batch(seen):
                self._smaller_batch = True
                text = "The GPU ran out of memory; it is tried once more with a smaller batch."
                self._out.add("notice", {"message": text, "level": "warning"})
                continue
            if not should_start_again(seen, starts, orphaned=orphaned):
                return None if self.wished == "gone" else judge(seen)
            done = len(self._out.candidates)
            text = f"The process was killed from outside; it goes on after {done} finished models."
            self._out.add("notice", {"message": text, "level": "warning"})

    async def _unless_ended(self, step: "asyncio.Task[Any]") -> bool:
        """Wait for a step before the work, unless a wish makes it pointless. True: it is done."""
        while RANK[self.wished] < RANK["returned"]:
            self._wish_changed.clear()
            wish = asyncio.create_task(self._wish_changed.wait())
            await asyncio.wait({step, wish}, return_when=asyncio.FIRST_COMPLETED)
            wish.cancel()
            if step.done():
                step.result()  # raises what it raised
                return True
        step.cancel()
        await asyncio.wait({step})
        if not step.cancelled() and step.exception() is None and isinstance(step.result(), Child):
            self.child = step.result()  # it started after all; run() ends it
        if self.wished == "gone":
            raise Gone("told so")
        return False

    async def _fetch_inputs(self) -> dict[str, str]:
        """Download what the task reads, link it into the work folder. Returns local paths."""
        folder = self._work / "inputs"
        shutil.rmtree(self._work, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
        paths = {}
        for name, what in (self.claim.get("inputs") or {}).items():
            cached = await self._api.download(
                what["artifact"],
                what["sha256"],
                self._settings.folder / "cache",
                token=str(self.claim["token"]),
                patience_s=None,
            )
            target = folder / Path(str(name)).name
            try:
                os.link(cached, target)
            except OSError:
                await asyncio.to_thread(shutil.copyfile, cached, target)
            paths[str(name)] = str(target)
        await self._fetch_checkpoints(folder)
        return paths

    async def _fetch_checkpoints(self, folder: Path) -> None:
        """How far earlier attempts came, maybe on other nodes. Without one a fit begins anew."""
        for number, (name, what) in enumerate((self.claim.get("checkpoints") or {}).items()):
            target = folder / f"checkpoint-{number}"
            try:
                cached = await self._api.download(
                    what["artifact"],
                    what["sha256"],
                    self._settings.folder / "cache",
                    token=str(self.claim["token"]),
                    patience_s=None,
                )
                await asyncio.to_thread(shutil.copyfile, cached, target)
                cached.unlink(missing_ok=True)  # nobody asks for it again
            except (Gone, Refused, OSError) as why:  # gone is the file, or the attempt: it will see
                log.warning("task %s: a checkpoint cannot be fetched: %s", self.task, why)
                continue
            self._checkpoints.newest[str(name)] = target

    async def _start(self, way: handlers.Way, inputs: dict[str, str]) -> Child:
        engine = self.engine if way.venv == "engine" else ""
        payload = self.claim.get("payload") or {}
        task = {
            "task": self.task,
            "attempt": self.number,
            "kind": self.kind,
            "engine": self.engine,
            "payload": payload,
            "inputs": inputs,
            "limits": self.limits,
            "done": self._out.candidates,
            "checkpoints": {name: str(file) for name, file in self._checkpoints.newest.items()},
            "smaller_batch": self._smaller_batch,
            "spent_s": float(self.claim.get("spent_s") or 0) + time.monotonic() - self._began,
        }
        (self._work / "task.json").write_text(json.dumps(task))
        scratch = self._work / "tmp"
        scratch.mkdir(exist_ok=True)
        threads = int(self.limits.get("threads") or payload.get("threads") or self._cores)
        return await self._parents.fork(
            engine,
            "workers.node.child:main",
            self._work,
            env={
                "HOME": str(self._work),
                "TMPDIR": str(scratch),
                "JOBLIB_TEMP_FOLDER": str(scratch),
                "FLOWML_TASK": f"{self.task}.{self.number}",
                **self._told_in_confidence(),
                **visible(self._devices),
            },
            threads=threads,
            ram_mib=int(self.limits.get("ram_mib") or 0),
            nice=0 if self.is_light else 5,
            network=way.network,
        )

    def _told_in_confidence(self) -> dict[str, str]:
        """The variable that the child takes its secrets from, and removes (see child.py)."""
        if self._confidential is None:
            return {}
        return {entry.CONFIDENTIAL: json.dumps(self._confidential)}

    async def _watch(self, child: Child, way: handlers.Way) -> tuple[Seen, bool]:
        """Be with a child until it and all that it started are gone. Also: was it orphaned."""
        self._said, self._tail = None, ""
        listening = asyncio.create_task(self._listen(child))
        reading = asyncio.create_task(self._read_output(child))
        guarding = asyncio.create_task(self._guard(child))
        try:
            reason = await self._wait_for_end(child, guarding)
            ended = await child.exited
            # Those that the child left behind hold copies of its channel, and burn processor time.
            await self._parents.clear_up_after(child)
            await asyncio.wait({listening, reading}, timeout=2)
            self._say(self._lines.end())
        finally:
            for task in (listening, reading, guarding):
                task.cancel()
            await asyncio.gather(listening, reading, guarding, return_exceptions=True)
            child.channel.close()
            os.close(child.output)
        self._cpu_s += ended.cpu_s
        self._peak_mib = max(self._peak_mib, ended.ram_mib)
        seen = Seen(
            reason=reason,
            signal=ended.signal,
            said=self._said,
            candidates=len(self._out.candidates),
            keeps=way.keeps,
            engine=self.engine,
            ram_mib=int(self.limits.get("ram_mib") or 0),
            time_s=float(self.limits.get("time_s") or 0),
            tail=self._tail,
        )
        return seen, ended.orphaned

    async def _wait_for_end(
        self, child: Child, guarding: "asyncio.Task[None]"
    ) -> Literal["", "cancel", "returned", "stop", "time", "memory"]:
        """Until the child ends by itself or for a reason of ours, which is returned."""
        limit_s = float(self.limits.get("time_s") or 0)
        self._started_at = self._started_at or child.started_at  # a second child has no more time
        limit_at = self._started_at + limit_s if limit_s else None
        kill_at: float | None = None
        reason: Literal["", "cancel", "returned", "stop", "time", "memory"] = ""
        while True:
            now = time.monotonic()
            if self.wished in ("cancel", "gone", "returned"):
                await child.kill()
                return "returned" if self.wished == "returned" else "cancel"
            if guarding.done():
                await child.kill()
                return "memory"
            if self.wished == "stop" and not reason:
                reason, kill_at = "stop", now + self._settings.grace_s
                self._tell_stop(child)
            if limit_at is not None and now >= limit_at and reason != "time":
                soon = now + min(self._settings.grace_s, max(1.0, limit_s / 10))
                if not reason:
                    self._tell_stop(child)
                    reason = "time"
                kill_at, limit_at = min(soon, kill_at or soon), None
            if kill_at is not None and now >= kill_at:
                await child.kill()
                return reason
            if self._said is not None and kill_at is None:
                kill_at = now + 2.0  # it has said its last word; what lingers is cut off
            self._wish_changed.clear()
            if RANK[self.wished] > (RANK["stop"] if reason else RANK["ok"]):
                continue
            moments = [at for at in (limit_at, kill_at) if at is not None]
            wish = asyncio.create_task(self._wish_changed.wait())
            waited: set[asyncio.Future[Any]] = {child.exited, wish, guarding}
            await asyncio.wait(
                waited,
                timeout=max(0.0, min(moments) - time.monotonic()) if moments else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            wish.cancel()
            if child.exited.done():
                return reason

    def _tell_stop(self, child: Child) -> None:
        try:
            child.channel.send(b'{"type": "stop"}\n')
        except OSError:
            pass  # it does not listen; it will be killed

    async def _listen(self, child: Child) -> None:
        """Take in what the child says, to the last byte of its channel."""
        loop, buffer = asyncio.get_running_loop(), bytearray()
        while data := await _recv(loop, child.channel):
            buffer += data
            while (end := buffer.find(b"\n")) >= 0:
                line = bytes(buffer[:end])
                del buffer[: end + 1]
                self._take(line)
            if len(buffer) > MAX_MESSAGE_BYTES:
                self._said = {
                    "type": "error",
                    "error": "It sent a message without end.",
                }
                return

    def _take(self, line: bytes) -> None:
        try:
            self._take_in(line)
        except OSError as error:
            log.error("task %s: what it says cannot be kept: %s", self.task, error)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            text = DISK_FULL if full else f"The node cannot write to its disk: {error.strerror}"
            code = "disk_full" if full else "node"
            self._said = {"type": "error", "error": text, "code": code, "fault": "platform"}
            self._wish_changed.set()

    def _take_in(self, line: bytes) -> None:
        try:
            message = json.loads(line)
            what = message["type"]
            for name in ("data", "error"):
                if name in message:
                    message[name] = self._mask.plain(message[name])
            data = message.get("data") or {}
        except (ValueError, KeyError, TypeError, AttributeError):
            log.warning("task %s: a message that makes no sense: %r", self.task, line[:200])
            return
        if what in ("result", "error"):
            self._said = message
            self._wish_changed.set()
        elif what == "candidate":
            try:
                files = spool.inside(self._work, message.get("files") or {})
                self._out.add("candidate", data, key=str(message["key"]), files=files)
                for path in files.values():  # the spool has it under a name of its own
                    path.unlink(missing_ok=True)
            except (spool.BadFile, KeyError) as error:
                log.error("task %s: a candidate is lost: %s", self.task, error)
                self._out.add(
                    "notice",
                    {"message": f"A model was lost: {error}", "level": "error"},
                )
        elif what == "checkpoint":
            try:
                (file,) = spool.inside(self._work, message.get("files") or {}).values()
                self._checkpoints.take(str(message["key"]), file, self._work / "checkpoints")
            except (spool.BadFile, KeyError, ValueError) as error:
                log.warning("task %s: a checkpoint is lost: %s", self.task, error)
        elif what == "log":
            self._log([str(item) for item in data.get("lines", [])])
        elif what in ("progress", "notice"):
            self._out.add(what, data)

    async def _read_output(self, child: Child) -> None:
        """Turn what is printed into log lines, and keep the last of it for the verdict."""
        rest = b""
        while data := await _read(child.output):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > MAX_LINE * 4:
                lines, rest = [*lines, rest], b""
            self._log([line.decode(errors="replace").rstrip("\r") for line in lines])
        if rest:
            self._log([rest.decode(errors="replace")])

    def _log(self, lines: list[str]) -> None:
        if lines:
            lines = [self._mask.text(line) for line in lines]
            self._tail = (self._tail + "\n" + "\n".join(lines))[-TAIL_BYTES:]
            self._say(self._lines.take([line[:MAX_LINE] for line in lines], time.monotonic()))

    def _say(self, lines: list[str]) -> None:
        if lines:
            self._out.add("log", {"lines": lines})

    async def _guard(self, child: Child) -> None:
        """Return once the child and its descendants together hold more memory than they may.

        Each process also has a limit of its own (see procs.limit_memory); this adds them up.
        """
        limit_mib = int(self.limits.get("ram_mib") or 0)
        while True:
            await asyncio.sleep(MEMORY_CHECK_S)
            used = await asyncio.to_thread(child.memory_mib)
            self._peak_mib = max(self._peak_mib, used)
            if limit_mib and used > limit_mib * 1.05:
                return


async def _recv(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bytes:
    try:
        return await loop.sock_recv(sock, 256 * 1024)
    except OSError:
        return b""


async def _read(fd: int) -> bytes:
    """The next bytes of a non-blocking pipe, b"" at its end."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return os.read(fd, 64 * 1024)
        except BlockingIOError:
            ready = asyncio.Event()
            loop.add_reader(fd, ready.set)
            try:
                await ready.wait()
            finally:
                loop.remove_reader(fd)
        except OSError:
            return b""
