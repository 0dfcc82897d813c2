"""Asking a node that web cannot reach, over the WebSocket that the node has opened.

    asker (any web process) ──channel layer──▶ the web process that holds the socket ──▶ node
                            ◀─────────────────                                       ◀──

The layer is Pub/Sub and tells nobody whether somebody listens. So the one that holds the socket
says at once that it has taken the question, and until then it is asked again: a node that is just
connecting anew costs a moment and no answer. Who no longer waits says so, and is forgotten on the
whole way. Questions carry a number of their own, which tells only the asker which answer is whose.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import secrets
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from channels.layers import get_channel_layer

from workers import push

log = logging.getLogger(__name__)

# Valkey drops a subscriber that lags by 8 MiB for long, and daphne takes messages of 1 MiB.
MAX_ASKED = 1_000_000  # bytes
MAX_ANSWERED = 1_000_000
MAX_IN_FLIGHT = 32  # per node and web process
AGAIN_S = 0.5  # a node's web process says within this that it has taken a question, mostly in 5 ms


class NotConnected(Exception):
    """No web process holds a socket of this node."""


class TooLarge(Exception):
    """The question is larger than the relay takes."""


@dataclass
class _Waiting:
    taken: asyncio.Event
    answer: "asyncio.Future[tuple[int, bytes]]"


def group(node: UUID) -> str:
    """The channel layer's name for whoever holds this node's socket."""
    return f"node.{node}"


class _Asker:
    """One process's questions, in the kept loop of ``push``: threads wait for it."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}
        self._channel: asyncio.Future[str] | None = None
        self._listener: asyncio.Task[None] | None = None

    async def ask(self, node: UUID, body: bytes, tries: int, timeout_s: float) -> tuple[int, bytes]:
        layer = get_channel_layer()
        reply = await self._reply_channel(layer)
        number = secrets.token_hex(8)
        answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        waiting = self._waiting[number] = _Waiting(asyncio.Event(), answer)
        question = {"type": "relay.ask", "id": number, "reply": reply, "body": body}
        try:
            async with asyncio.timeout(timeout_s):
                await self._until_taken(layer, node, question, waiting, tries)
                return await answer
        finally:
            del self._waiting[number]
            if waiting.taken.is_set() and (not answer.done() or answer.cancelled()):
                with contextlib.suppress(Exception):
                    await layer.group_send(group(node), {"type": "relay.forget", "id": number})

    async def _until_taken(
        self, layer: Any, node: UUID, question: dict[str, Any], waiting: _Waiting, tries: int
    ) -> None:
        for _ in range(tries):
            await layer.group_send(group(node), question)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(waiting.taken.wait(), AGAIN_S)
                return
        raise NotConnected

    async def _reply_channel(self, layer: Any) -> str:
        """This process's own channel, on which all its answers come."""
        if self._channel is None:
            self._channel = asyncio.get_running_loop().create_future()
            try:
                channel = await layer.new_channel()
            except BaseException as problem:
                failed, self._channel = self._channel, None
                failed.set_exception(problem)
                failed.exception()  # seen, though perhaps nobody else waits for it
                raise
            self._channel.set_result(channel)
            self._listener = asyncio.create_task(self._listen(layer, channel))
        return await asyncio.shield(self._channel)

    async def _listen(self, layer: Any, channel: str) -> None:
        while True:
            try:
                message = await layer.receive(channel)
                waiting = self._waiting.get(message["id"])
                if waiting is None:
                    continue  # given up meanwhile
                waiting.taken.set()
                if message["type"] == "relay.answer" and not waiting.answer.done():
                    waiting.answer.set_result((message["status"], message["body"]))
            except Exception:
                log.exception("an answer over the relay could not be read")
                await asyncio.sleep(0.1)


_asker = _Asker()


def ask(node: UUID, body: bytes, *, tries: int, timeout_s: float) -> tuple[int, bytes]:
    """Status and body of the node's answer to a prediction request. Blocks this thread.

    Raises TooLarge at once, NotConnected after ``tries`` times half a second in which nobody had
    the node's socket, TimeoutError after ``timeout_s``, and OSError when the broker is away.
    """
    if len(body) > MAX_ASKED:
        raise TooLarge(f"{len(body)} bytes")
    asked = asyncio.run_coroutine_threadsafe(_asker.ask(node, body, tries, timeout_s), push.loop())
    try:
        return asked.result(timeout_s + 5)
    except concurrent.futures.TimeoutError:
        asked.cancel()
        raise TimeoutError from None
    except (NotConnected, TimeoutError, OSError):
        raise
    except Exception as problem:  # what the layer raises when the broker is away
        raise OSError(str(problem)) from problem


def tell(node: UUID, message: dict[str, Any]) -> None:
    """Send a message to whoever holds the node's socket. Returns at once, never raises."""

    async def send() -> None:
        try:
            await get_channel_layer().group_send(group(node), message)
        except Exception as problem:
            log.warning("node not told", extra={"node": str(node), "problem": str(problem)})

    asyncio.run_coroutine_threadsafe(send(), push.loop())


def _forget() -> None:
    global _asker
    _asker = _Asker()


os.register_at_fork(after_in_child=_forget)  # threads don't live on in a fork
