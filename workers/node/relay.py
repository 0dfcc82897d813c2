"""The node's own WebSocket to web: requests that could not reach it come this way.

The node opens it and opens it again whenever it is lost. Binary messages, a line of head and then
the body: ``<id>`` with a prediction request comes, ``<id> <status>`` with the answer goes. Text is
JSON: {"forget": id} says that nobody waits for an answer any more, {"beat": true} that the next
heartbeat had better come now.
"""

import asyncio
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable

import aiohttp

from workers.node.api import Api, backoff_s

log = logging.getLogger("flowml.node.relay")

MAX_MESSAGE = 1024 * 1024  # web takes no larger ones, and sends none
MAX_ANSWER = 1_000_000
MAX_IN_FLIGHT = 32
STEADY_S = 30.0  # a connection that held this long was a good one: begin the waits anew

TOO_LARGE = (
    "The answer is too large for one request to a node on another machine. Send the rows as a "
    "file: then they become a task, and the answer a file."
)


class Relay:
    """Keeps the socket open for as long as ``run`` runs. ``answer`` gives status and body."""

    def __init__(
        self,
        api: Api,
        answer: Callable[[bytes], Awaitable[tuple[int, bytes]]],
        beat_soon: Callable[[], None],
    ) -> None:
        self._beat_soon = beat_soon
        self._api = api
        self._answer = answer
        self._asked: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Connect, answer, and connect again, for ever."""
        failures = 0
        while True:
            began = time.monotonic()
            try:
                await self._connected()
                why = "web has closed it"
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                # A token that is void ends here, too: the next heartbeat will register again.
                why = str(error) or type(error).__name__
            failures = 1 if time.monotonic() - began > STEADY_S else failures + 1
            log.log(
                logging.INFO if failures < 3 else logging.DEBUG, "no socket to web now: %s", why
            )
            await asyncio.sleep(backoff_s(failures, random.random()))

    async def _connected(self) -> None:
        url = f"ws{self._api.url.removeprefix('http')}/ws/node"
        headers = {"Authorization": f"Worker {self._api.token}"}
        opening = self._api.session.ws_connect(
            url, headers=headers, heartbeat=15, max_msg_size=MAX_MESSAGE + 100
        )
        async with opening as socket:
            log.debug("the socket to web is open")
            try:
                async for message in socket:
                    if message.type == aiohttp.WSMsgType.BINARY:
                        self._begin(socket, message.data)
                    elif message.type == aiohttp.WSMsgType.TEXT:
                        said = json.loads(message.data)
                        self._forget(said.get("forget"))
                        if said.get("beat"):
                            self._beat_soon()
            finally:
                for number in list(self._asked):
                    self._forget(number)

    def _begin(self, socket: aiohttp.ClientWebSocketResponse, data: bytes) -> None:
        head, _, body = data.partition(b"\n")
        number = head.decode("latin-1")
        task = asyncio.create_task(self._see_through(socket, number, body))
        self._asked[number] = task
        task.add_done_callback(lambda _: self._asked.pop(number, None))

    def _forget(self, number: str | None) -> None:
        if number and (task := self._asked.get(number)):
            task.cancel()

    async def _see_through(
        self, socket: aiohttp.ClientWebSocketResponse, number: str, body: bytes
    ) -> None:
        if len(self._asked) > MAX_IN_FLIGHT:
            status, answer = 503, b'{"detail": "The node has too many requests waiting."}'
        else:
            status, answer = await self._answer(body)
        if len(answer) > MAX_ANSWER:
            status, answer = 413, json.dumps({"detail": TOO_LARGE}).encode()
        try:
            await socket.send_bytes(f"{number} {status}\n".encode() + answer)
        except (aiohttp.ClientError, OSError):
            pass  # the socket is lost, and with it whoever waited
