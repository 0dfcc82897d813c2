"""Bodies of requests and answers: kept out of memory, and within the limit.

What daphne does with a body doesn't do for uploads (a form with a file of 300 MB took 3.6 GB of
memory and 12 s of the event loop):

* Twisted parses the body of every posted form by itself, whole in memory, though nothing uses the
  outcome: switched off.
* The body, which lies in a temporary file by then, is put into a queue whole: instead the
  application reads it from the file, in pieces.
* It is taken in whole, however large, before the application hears of it: instead the limit is
  held where the bytes arrive.
* Of an answer, all is taken that the application can give, however slowly the client reads:
  instead the application waits until the connection has room again.
"""

import asyncio
import io
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from daphne.http_protocol import WebRequest
from daphne.server import Server
from twisted.internet import reactor

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Application = Callable[[Any, Any, Any], Awaitable[None]]

# As accounts.errors would say it, which can't be imported before Django is set up.
TOO_LARGE = {
    "type": "/problems/too-large",
    "title": "Too large",
    "status": 413,
    "detail": "The request is larger than this installation takes.",
    "code": "too-large",
}
CLOSE_AFTER_S = 10  # what a client still sends is let go of meanwhile, so that it reads the answer
PIECE = 1 << 18  # bytes
LOOK_AGAIN_S = 0.002
_BODY = "flowml.body"


def guard_bodies(application: Application, most: Callable[[str], int]) -> Application:
    """Have daphne answer 413 to a body of more than ``most(path)`` bytes, and ``application`` read
    any other from the disk. Under another server it gets its bodies as that server gives them."""
    _patch_daphne(most)

    async def guarded(scope: Any, receive: Receive, send: Any) -> None:
        body = scope.pop(_BODY, None)
        if body is None:
            await application(scope, receive, send)
        else:
            with body:
                await application(scope, _from_file(body, receive), send)

    return guarded


def _from_file(body: io.BufferedIOBase, receive: Receive) -> Receive:
    begun = ended = False

    async def pieces() -> Message:
        nonlocal begun, ended
        if not begun:
            begun = True
            first = await receive()  # the empty body that daphne saw, or that the client is gone
            if first["type"] != "http.request":
                return first
        if ended:
            return await receive()
        piece = body.read(PIECE)
        ended = len(piece) < PIECE
        return {"type": "http.request", "body": piece, "more_body": not ended}

    return pieces


def _patch_daphne(most: Callable[[str], int]) -> None:
    WebRequest.flowml_most = staticmethod(most)
    if hasattr(WebRequest.process, "guarded"):
        return
    got_length = WebRequest.gotLength
    handle_chunk = WebRequest.handleContentChunk
    process = WebRequest.process
    create_application = Server.create_application
    handle_reply = Server.handle_reply

    def guarded_length(self: Any, length: int | None) -> None:
        self._parsePOSTFormSubmission = False
        path = bytes(getattr(self.channel, "_path", b"")).split(b"?")[0]
        self.flowml_room = self.flowml_most(path.decode("latin-1"))
        self.flowml_refused = False
        if length is not None and length > self.flowml_room:
            _refuse(self)
            length = 0
        got_length(self, length)

    def guarded_chunk(self: Any, data: bytes) -> None:
        self.flowml_room -= len(data)
        if self.flowml_room < 0 and not self.flowml_refused:
            _refuse(self)  # sent in chunks: nobody said how much would come
        if not self.flowml_refused:
            handle_chunk(self, data)

    def guarded_process(self: Any) -> Any:
        if self.flowml_refused:
            self.channel.loseConnection()
            return None
        if not isinstance(self.content, io.BytesIO):  # large, and so in a file
            self.flowml_body, self.content = self.content, io.BytesIO()
        return process(self)

    def guarded_application(self: Any, protocol: Any, scope: Any) -> Any:
        body = getattr(protocol, "flowml_body", None)
        if body is not None:
            scope[_BODY] = body
        return create_application(self, protocol, scope)

    async def guarded_reply(self: Any, protocol: Any, message: Message) -> None:
        await handle_reply(self, protocol, message)
        if message["type"] != "http.response.body" or not message.get("more_body"):
            return
        channel = getattr(protocol, "channel", None)
        while getattr(channel, "_waitingForTransport", False):
            known = self.connections.get(protocol)
            if known is None or known.get("disconnected"):
                return
            await asyncio.sleep(LOOK_AGAIN_S)

    guarded_process.guarded = True  # type: ignore[attr-defined]
    WebRequest.gotLength = guarded_length
    WebRequest.handleContentChunk = guarded_chunk
    WebRequest.process = guarded_process
    Server.create_application = guarded_application
    Server.handle_reply = guarded_reply


def _refuse(request: Any) -> None:
    request.flowml_refused = True
    body = json.dumps(TOO_LARGE).encode()
    request.channel.transport.write(
        b"HTTP/1.1 413 Content Too Large\r\nContent-Type: application/problem+json\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    reactor.callLater(CLOSE_AFTER_S, _give_up, request.channel)  # type: ignore[attr-defined]


def _give_up(channel: Any) -> None:
    if channel is not None and channel.transport is not None:
        channel.forceAbortClient()
