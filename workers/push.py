"""Tell listeners that a topic has news. Only "up to number N": the events they read themselves.

Pushes of one topic within a short while become one. A lost push does no harm: a listener that
reads by sequence number finds what it missed with the next one, or with its slow poll.
"""

import asyncio
import logging
import os
import threading

from channels.layers import get_channel_layer

log = logging.getLogger(__name__)

COALESCE_S = 0.05


def group_name(topic: str) -> str:
    """The channel layer's name of a topic: its alphabet has no colon."""
    return "live." + topic.replace(":", ".")


class _Pusher:
    """A kept event loop in a thread: `async_to_sync` for each message is six times slower."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pending: dict[str, int] = {}

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The kept loop, started when it is first needed."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="push", daemon=True).start()
            return self._loop

    def notify(self, topic: str, seq: int) -> None:
        with self._lock:
            first = not self._pending
            self._pending[topic] = max(seq, self._pending.get(topic, 0))
        if first:
            asyncio.run_coroutine_threadsafe(self._flush(), self.loop)

    async def _flush(self) -> None:
        await asyncio.sleep(COALESCE_S)
        with self._lock:
            pending, self._pending = self._pending, {}
        layer = get_channel_layer()
        for topic, seq in pending.items():
            try:
                await layer.group_send(
                    group_name(topic), {"type": "live.push", "topic": topic, "seq": seq}
                )
            except Exception as problem:
                # The broker is away; listeners poll meanwhile.
                log.warning("push failed", extra={"topic": topic, "problem": str(problem)})


_pusher = _Pusher()


def notify(topic: str, seq: int) -> None:
    """Push "``topic`` has events up to ``seq``". Returns at once, never raises."""
    _pusher.notify(topic, seq)


def bell(queue: str) -> None:
    """Tell the nodes that wait with their claim (``longpoll``) of work on ``queue``. Never raises.

    A lost one does no harm: they look again by themselves every few seconds.
    """

    async def send() -> None:
        try:
            await get_channel_layer().group_send("bells", {"type": "bell", "queue": queue})
        except Exception as problem:
            log.warning("bell not pushed", extra={"queue": queue, "problem": str(problem)})

    asyncio.run_coroutine_threadsafe(send(), _pusher.loop)


def loop() -> asyncio.AbstractEventLoop:
    """The process's kept event loop, in which other threads may run what talks to the layer."""
    return _pusher.loop


def _forget() -> None:
    global _pusher
    _pusher = _Pusher()


os.register_at_fork(after_in_child=_forget)  # threads don't live on in a fork
