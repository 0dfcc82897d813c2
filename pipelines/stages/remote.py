"""A program on another machine: the handlers of ``pipeline.remote`` and ``pipeline.remote-end``.

The program goes on when the connection, or this node, is lost, and is found again. No Django.
"""

import asyncio
import re
import time
from collections.abc import Mapping
from typing import Any

from pipelines.stages import places
from pipelines.stages.warehouse import _connector as connector
from pipelines.transfers import Away
from workers.node.channel import WorkError

LOOK_S = 0.5
AWAY_S = 3600.0  # how long a machine may be away while its program goes on


def run(task: Mapping[str, Any], channel: Any) -> dict[str, Any]:
    """Run ``payload["command"]`` in ``payload["folder"]`` and wait for its end. Raises WorkError
    where it ends with another status than 0. What it prints goes to the log."""
    payload = task.get("payload") or {}
    place, _ = places.opened(task)
    if not hasattr(place, "connect"):
        return _here(place, payload, channel)
    following = _Following(place, task, channel)
    return {"data": places.wait_for(following.run), "files": {}}


def end(task: Mapping[str, Any], channel: Any) -> dict[str, Any]:
    """End the program of a step that was cancelled."""
    place: Any = places.opened(task)[0]

    async def stop() -> None:
        async with place.session() as connection:
            program = await _program(place, connection, task)
            await program.end()

    if hasattr(place, "connect"):
        places.wait_for(stop)
    return {"data": {}, "files": {}}


async def _program(place: Any, connection: Any, task: Mapping[str, Any]) -> Any:
    run_id = re.sub(r"[^A-Za-z0-9]", "", str((task.get("payload") or {})["run_id"]))
    return await connector("programs").Program.at(place, connection, f"flowml{run_id}")


class _Following:
    """Is with one program, over as many connections as it takes."""

    def __init__(self, place: Any, task: Mapping[str, Any], channel: Any) -> None:
        self._place = place
        self._task = task
        self._id = str(task["task"])
        self._payload = task.get("payload") or {}
        self._channel = channel
        self._began = time.monotonic()
        self._was_told = False

    async def run(self) -> dict[str, Any]:
        gone_at: float | None = None
        while True:
            try:
                async with self._place.session() as connection:
                    program = await _program(self._place, connection, self._task)
                    if gone_at is not None:
                        self._channel.notice("The machine answers again.", level="info")
                    gone_at = None
                    return await self._be_with(program)
            except Away as error:
                now = time.monotonic()
                if gone_at is None:
                    gone_at = now
                    text = f"{error} The program, if it was started, goes on there."
                    self._channel.notice(text[:1].upper() + text[1:], level="warning")
                if self._channel.stopping or now - gone_at > AWAY_S:
                    raise
                await asyncio.sleep(1.0)

    async def _be_with(self, program: Any) -> dict[str, Any]:
        seen = await program.look()
        if seen.state == "none" or (seen.state != "runs" and seen.taken not in ("", self._id)):
            work = str(self._payload.get("folder") or "")
            if work:
                self._place.path(work)  # refuses what lies elsewhere
            await program.start(str(self._payload["command"]), work)
            self._channel.notice(f"The program runs on {self._place.where}.", level="info")
        elif not self._was_told:
            self._channel.notice(
                f"The program was found again on {self._place.where}.", level="info"
            )
        self._was_told = True
        while True:
            seen = await program.look()
            while data := await program.news(final=seen.state != "runs"):
                self._channel.log(data.decode(errors="replace").rstrip("\n"))
                await program.heard(data)
            if seen.state != "runs":
                return await self._ended(program, seen)
            if self._channel.stopping:
                await program.end()
                await program.take(self._id)
                raise WorkError(
                    "The program was ended: its time was over, or somebody stopped it. Give the "
                    "stage more time_limit_s, or the program less to do.",
                    code="time_limit",
                )
            minutes = (time.monotonic() - self._began) / 60
            text = f"It runs on {self._place.where} ({minutes:.0f} min here)"
            self._channel.progress(0.5, text)
            await asyncio.sleep(LOOK_S)

    async def _ended(self, program: Any, seen: Any) -> dict[str, Any]:
        last = await program.last()
        await program.take(self._id)
        if seen.state == "gone":
            raise WorkError(
                f"The program is not running any more on {self._place.where} and left no status: "
                "the machine was started anew, or somebody killed it.",
                code="remote-gone",
            )
        if seen.status:
            raise WorkError(
                f"The program ended with the status {seen.status}. It said last: {_tail(last)}",
                code="remote-status",
                status=seen.status,
            )
        return {"status": 0, "seconds": round(time.monotonic() - self._began, 1)}


def _tail(text: str) -> str:
    return " ".join(text.split())[-400:] or "nothing"


def _here(place: Any, payload: Mapping[str, Any], channel: Any) -> dict[str, Any]:
    """On this very node, where its operator allows it: it ends with the task."""
    began, last = time.monotonic(), ""
    for line in place.program(str(payload["command"]), str(payload.get("folder") or "")):
        if isinstance(line, int):
            if line:
                raise WorkError(
                    f"The program ended with the status {line}. It said last: {_tail(last)}",
                    code="remote-status",
                    status=line,
                )
            break
        channel.log(line)
        last = (last + "\n" + line)[-2000:]
    return {"data": {"status": 0, "seconds": round(time.monotonic() - began, 1)}, "files": {}}
