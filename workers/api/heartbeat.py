"""The heartbeat: a node tells that it lives and what it runs, and is told what to do about that.

Every node asks this every few seconds, so it is answered around Django's request and not in it
(``thin``): all the middleware does nothing for a node, and would cost several times what the answer
does. Only what a node regularly sends is answered there. Anything else, and other servers than
ours, come to the view, which answers the same.
"""

import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from io import BytesIO
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from rest_framework.exceptions import ParseError

from accounts.errors import FlowError, TooLarge, problem
from accounts.parsers import MendingJSONParser
from workers import beats
from workers.api import serializers as said
from workers.models import Worker

log = logging.getLogger(__name__)

PATH = "/api/workers/heartbeat"
MOST_BYTES = 2**20
OUR_FAULT = "This is our fault. The log tells more, under the X-Request-ID of this answer."

Message = MutableMapping[str, Any]
Application = Callable[[Any, Any, Any], Awaitable[None]]


def read(method: str, authorization: str, body: bytes) -> beats.Beat:
    """What a node says. Raises FlowError for what can't be answered."""
    scheme, _, token = authorization.partition(" ")
    if scheme == "Task":
        raise FlowError("This is for nodes.", code="permission-denied", status=403)
    if scheme != "Worker":
        raise FlowError("Send this node's token.", code="not-authenticated", status=401)
    if method != "POST":
        raise FlowError("Heartbeats are sent with POST.", code="method-not-allowed", status=405)
    if len(body) > MOST_BYTES:
        raise TooLarge(f"A heartbeat has at most {MOST_BYTES:,} bytes.")
    try:
        form = said.Heartbeat(data=MendingJSONParser().parse(BytesIO(body)))
    except ParseError as error:
        raise FlowError(str(error.detail), code="parse-error") from None
    if not form.is_valid():
        raise FlowError("The heartbeat is malformed.", code="invalid", errors=form.errors)
    running = [(one["task"], one["attempt"]) for one in form.validated_data["running"]]
    told = form.validated_data
    return beats.Beat(Worker.hash_token(token), running, told["usage"], told["replicas"])


def _known(answer: dict[str, Any] | None) -> dict[str, Any]:
    if answer is None:
        raise FlowError(
            "This node's token is void: register again.", code="not-authenticated", status=401
        )
    return answer


def _refusal(error: FlowError) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers."""
    headers = {"Content-Type": "application/problem+json"}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Worker"
    if error.status == 405:
        headers["Allow"] = "POST"
    told = problem(error.status, error.detail, code=error.code, errors=error.errors)
    return error.status, json.dumps(told).encode(), headers


@csrf_exempt
def heartbeat(request: HttpRequest) -> HttpResponse:
    """The same through Django: one node's heartbeat by itself."""
    try:
        authorization = request.headers.get("Authorization", "")
        beat = read(request.method or "", authorization, request.body)
        answer = _known(beats.renew([beat])[0])
    except FlowError as error:
        status, body, headers = _refusal(error)
        return HttpResponse(body, status=status, headers=headers)
    return HttpResponse(json.dumps(answer), headers={"Content-Type": "application/json"})


def thin(application: Application, count: Callable[[str, str, int, float], None]) -> Application:
    """``application`` with nodes' heartbeats answered before it.

    ``count`` gets the method, the route, the status and the seconds of each.
    """

    async def answered(scope: Any, receive: Any, send: Any) -> None:
        authorization = _authorization(scope)
        if authorization is None:
            await application(scope, receive, send)
            return
        began, request_id = time.perf_counter(), uuid.uuid4().hex
        body = await _body(receive)
        if body is None:
            return  # the node is gone
        try:
            answer = _known(await beats.answer(read("POST", authorization, body)))
            status, content = 200, json.dumps(answer).encode()
            headers = {"Content-Type": "application/json"}
        except FlowError as error:
            status, content, headers = _refusal(error)
        except Exception:
            log.exception("a heartbeat could not be answered", extra={"request_id": request_id})
            status, content, headers = _refusal(FlowError(OUR_FAULT, code="internal", status=500))
        headers["Content-Length"] = str(len(content))
        headers["X-Content-Type-Options"] = "nosniff"
        headers["X-Request-ID"] = request_id
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
            }
        )
        await send({"type": "http.response.body", "body": content})
        took_s = time.perf_counter() - began
        count("POST", PATH, status, took_s)
        if status >= 400:
            told = {"method": "POST", "path": PATH, "status": status, "request_id": request_id}
            log.info("request", extra=told | {"ms": round(1000 * took_s, 1)})

    return answered


def _authorization(scope: Any) -> str | None:
    """The node's, if this is a heartbeat as nodes send it."""
    if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] != PATH:
        return None
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(found) != 1 or not found[0].startswith(b"Worker "):
        return None
    return str(found[0], "latin-1")


async def _body(receive: Any) -> bytes | None:
    """The body, of which no more than a byte too many is kept; None: the connection has ended."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body = (body + message.get("body", b""))[: MOST_BYTES + 1]
        if not message.get("more_body"):
            return body
