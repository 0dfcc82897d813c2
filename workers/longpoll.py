"""A claim that waits. Around Django and not in it, so that a node that waits holds no thread.

``POST /api/workers/claim?wait_s=25``: while the answer would be "nothing", the request is kept and
asked again when a bell rings for a queue of the node. Each time it is the whole request, with its
token, so a node that long-polls gets the same answers as one that is rung by Celery.

A claim whose node has gone away is seen through all the same, and what it was granted handed back.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

from channels.db import database_sync_to_async
from channels.layers import get_channel_layer

from workers import actions

log = logging.getLogger(__name__)

PATH = "/api/workers/claim"
QUEUES = "X-Queues"  # in an empty answer: what the node waits for
MAX_S = 25.0  # proxies give up on an answer after 30 s or more
AGAIN_S = 5.0  # how soon a lost bell is made up for
MAX_BODY = 64 * 1024
AT_ONCE = 4  # nodes that are woken together: a bell is for one task
GROUP = "bells"

Message = MutableMapping[str, Any]
Application = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass(eq=False)
class _Waiting:
    who: bytes
    queues: frozenset[str]
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    asked: "asyncio.Future[bool]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def done(self, took: bool) -> None:
        """Tell whoever woke it whether it took something."""
        if not self.asked.done():
            self.asked.set_result(took)


class _Bells:
    """Those that wait in this process, and the bells that it hears."""

    def __init__(self) -> None:
        self.waiting: list[_Waiting] = []  # the one that has waited longest first
        self.rung: dict[str, int] = {}  # how often each queue was
        self._listener: asyncio.Task[None] | None = None
        self._passing: set[asyncio.Task[None]] = set()

    def listen(self) -> None:
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        layer = get_channel_layer()
        channel = await layer.new_channel()
        await layer.group_add(GROUP, channel)
        while True:
            try:
                message = await layer.receive(channel)
            except Exception as problem:  # the broker is away: AGAIN_S goes on
                log.warning("no bells for those that wait", extra={"problem": str(problem)})
                await asyncio.sleep(1)
                continue
            task = asyncio.create_task(self.ring(str(message["queue"])))
            self._passing.add(task)
            task.add_done_callback(self._passing.discard)

    async def wait(self, me: _Waiting, gone: "asyncio.Task[None]", seconds: float) -> None:
        """Wait for a bell, for the end of the connection, or for so long."""
        self.waiting.append(me)
        woken = asyncio.create_task(me.woken.wait())
        try:
            await asyncio.wait({woken, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
            self.waiting.remove(me)

    async def ring(self, queue: str) -> None:
        """Wake a few that serve the queue, and others if none of them took what there is."""
        self.rung[queue] = self.rung.get(queue, 0) + 1
        heard: set[bytes] = set()
        while True:
            some = [w for w in self.waiting if queue in w.queues and w.who not in heard][:AT_ONCE]
            if not some:
                return
            for one in some:
                heard.add(one.who)
                one.woken.set()
            asked, _ = await asyncio.wait([one.asked for one in some], timeout=AGAIN_S)
            if any(one.result() for one in asked):
                return


_bells: dict[asyncio.AbstractEventLoop, _Bells] = {}


def waiting_claims(application: Application) -> Application:
    """``application`` with claims that wait, and that lose nothing when their node goes away."""

    async def held(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] != PATH:
            await application(scope, receive, send)
            return
        body = await _body(receive)
        if body is None:
            return  # the node is gone already
        wait_s = _wait_s(scope)
        gone = asyncio.create_task(_until_gone(receive))
        try:
            if wait_s > 0:
                until = time.monotonic() + wait_s
                answer = await _hold(application, scope, body, gone, until)
            else:
                answer = await _ask(application, scope, body)
            if gone.done():
                await _hand_back(answer)
                return
            for message in answer:
                await send(message)
        finally:
            gone.cancel()

    return held


async def _hold(
    application: Application, scope: Any, body: bytes, gone: "asyncio.Task[None]", until: float
) -> list[Message]:
    bells = _bells.setdefault(asyncio.get_running_loop(), _Bells())
    bells.listen()
    who = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    me = _Waiting(who, frozenset())
    took = False
    try:
        while True:
            rung = dict(bells.rung)
            answer = await _ask(application, scope, body)
            status, queues = _read(answer)
            took = status == 200
            left = until - time.monotonic()
            if gone.done() or status != 204 or left <= 0:
                return answer
            if any(bells.rung.get(queue) != rung.get(queue) for queue in queues):
                continue  # something was queued while we asked
            me.done(took)
            me = _Waiting(who, queues)
            await bells.wait(me, gone, min(left, AGAIN_S))
    finally:
        me.done(took)


def _read(answer: list[Message]) -> tuple[int, frozenset[str]]:
    """Status of an answer, and the queues that it names."""
    if not answer:
        return 0, frozenset()
    names = {name.lower(): value for name, value in answer[0].get("headers", ())}
    queues = names.get(QUEUES.lower().encode(), b"").decode("latin-1")
    return answer[0]["status"], frozenset(queues.split(","))


async def _ask(application: Application, scope: Any, body: bytes) -> list[Message]:
    """The messages of the application's answer.

    Seen through to its end, whoever goes away meanwhile: a claim that is broken off may have been
    granted all the same, and then nobody would know of it.
    """
    asking = asyncio.create_task(_answer(application, scope, body))
    _keep(asking)
    try:
        return await asyncio.shield(asking)
    except asyncio.CancelledError:
        _keep(asyncio.create_task(_give_up(asking)))
        raise


async def _answer(application: Application, scope: Any, body: bytes) -> list[Message]:
    answer: list[Message] = []
    told = False

    async def receive() -> Message:
        nonlocal told
        if told:
            await asyncio.Event().wait()  # for ever: it must not hear that the node is gone
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        answer.append(message)

    await application(dict(scope), receive, send)
    return answer


_kept: set["asyncio.Task[Any]"] = set()


def _keep(task: "asyncio.Task[Any]") -> None:
    _kept.add(task)
    task.add_done_callback(_kept.discard)


async def _give_up(asking: "asyncio.Task[list[Message]]") -> None:
    await _hand_back(await asking)


async def _hand_back(answer: list[Message]) -> None:
    """Give a task that was granted to nobody any more back to its queue, as a node would."""
    if _read(answer)[0] != 200:
        return
    claim = json.loads(b"".join(message.get("body", b"") for message in answer))
    try:
        await database_sync_to_async(actions.end_task)(
            UUID(claim["task"]),
            claim["attempt"],
            outcome="returned",
            result={},
            error="its node was gone when it was granted",
        )
    except actions.NotYours:
        pass
    except Exception:  # the next heartbeat of the node that doesn't name it mends this
        log.exception("a task was not handed back", extra={"task_id": claim["task"]})


def _wait_s(scope: Any) -> float:
    said = parse_qs(scope["query_string"].decode("latin-1")).get("wait_s", ["0"])[0]
    with contextlib.suppress(ValueError):
        return min(max(float(said), 0.0), MAX_S)
    return 0.0


async def _body(receive: Any) -> bytes | None:
    """The whole body, which is small; of one that is not, more than is taken is let go of."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        if len(body) <= MAX_BODY:
            body += message.get("body", b"")
        if not message.get("more_body"):
            return body[:MAX_BODY]


async def _until_gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
