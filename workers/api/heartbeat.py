"""The heartbeat's address. Async and gathered, since every node asks it every few seconds."""

import json
from io import BytesIO
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from rest_framework.exceptions import ParseError

from accounts.errors import problem
from accounts.parsers import MendingJSONParser
from workers import beats
from workers.api import serializers as said
from workers.models import Worker


async def respond(method: str, authorization: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
    """Status, JSON body and headers."""
    scheme, _, token = authorization.partition(" ")
    if scheme == "Task":
        return _problem(403, "This is for nodes.", "permission-denied")
    if scheme != "Worker":
        return _problem(401, "Send this node's token.", "not-authenticated")
    if method != "POST":
        return _problem(405, "Heartbeats are sent with POST.", "method-not-allowed")
    try:
        form = said.Heartbeat(data=MendingJSONParser().parse(BytesIO(body)))
    except ParseError as error:
        return _problem(400, str(error.detail), "parse-error")
    if not form.is_valid():
        return _problem(400, "The heartbeat is malformed.", "invalid", form.errors)
    running = [(one["task"], one["attempt"]) for one in form.validated_data["running"]]
    beat = beats.Beat(Worker.hash_token(token), running, form.validated_data["usage"])
    answer = await beats.answer(beat)
    if answer is None:
        return _problem(401, "This node's token is void: register again.", "not-authenticated")
    return 200, answer, {"Content-Type": "application/json"}


def _problem(
    status: int, detail: str, code: str, errors: Any = None
) -> tuple[int, Any, dict[str, str]]:
    headers = {"Content-Type": "application/problem+json"}
    if status == 401:
        headers["WWW-Authenticate"] = "Worker"
    if status == 405:
        headers["Allow"] = "POST"
    return status, problem(status, detail, code=code, errors=errors), headers


@csrf_exempt
async def heartbeat(request: HttpRequest) -> HttpResponse:
    """A node tells that it lives and what it runs; it is told what to do about that."""
    authorization = request.headers.get("Authorization", "")
    status, answer, headers = await respond(request.method or "", authorization, request.body)
    return HttpResponse(json.dumps(answer), status=status, headers=headers)
