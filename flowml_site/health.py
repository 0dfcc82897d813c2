"""GET /health: which parts are up. Open to everybody, so it says nothing about how they are built.

503 when web can't do its work (database, broker or channel layer away). A fleet without nodes is
``degraded`` and 200: pages, uploads and the API still answer, a balancer must not take web away.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypedDict

import psycopg
import redis
from channels.layers import get_channel_layer
from django.conf import settings
from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from workers.models import Worker

TIMEOUT_S = 2
log = logging.getLogger(__name__)


class Part(TypedDict, total=False):
    ok: bool
    detail: str
    ms: float
    alive: int


class Down(Exception):
    """A part is not up; its text is for everybody's eyes."""


@never_cache
@require_safe
def health(request: HttpRequest) -> JsonResponse:
    """The state of each part, within a few seconds whatever is broken."""
    # Each in a thread with its own time limit; a hung one does not make the answer wait.
    checks: dict[str, Callable[[], str]] = {
        "database": database_answers,
        "broker": _broker,
        "channel_layer": _channel_layer,
    }
    pool = ThreadPoolExecutor(len(checks), thread_name_prefix="health")
    running = {name: pool.submit(_timed, name, check) for name, check in checks.items()}
    deadline = time.monotonic() + 2 * TIMEOUT_S
    parts: dict[str, Part] = {}
    for name, future in running.items():
        try:
            parts[name] = future.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            parts[name] = Part(ok=False, detail="does not answer", ms=2000.0 * TIMEOUT_S)
    pool.shutdown(wait=False, cancel_futures=True)
    able = all(part["ok"] for part in parts.values())
    parts["nodes"] = _nodes(parts["database"]["ok"])
    status = "down" if not able else "ok" if parts["nodes"]["ok"] else "degraded"
    body = {"status": status, "version": settings.VERSION, "parts": parts}
    return JsonResponse(body, status=200 if able else 503)


def _timed(name: str, check: Callable[[], str]) -> Part:
    started = time.perf_counter()
    try:
        detail, ok = check(), True
    except Down as error:
        detail, ok = str(error), False
    except Exception:
        # Its own words may hold addresses: they go to the log and not to a stranger.
        log.warning("health: %s is down", name, exc_info=True)
        detail, ok = "does not answer", False
    return Part(ok=ok, detail=detail, ms=round((time.perf_counter() - started) * 1000, 1))


def database_answers() -> str:
    """Ask over a connection of its own: the pool would wait much longer for one that is dead.

    Raises psycopg.Error.
    """
    parameters = dict(connection.get_connection_params())
    for key in ("cursor_factory", "context", "pool", "prepare_threshold", "server_side_binding"):
        parameters.pop(key, None)
    parameters["connect_timeout"] = TIMEOUT_S
    parameters["options"] = f"-c statement_timeout={TIMEOUT_S * 1000}"
    with psycopg.connect(**parameters) as probe:
        probe.execute("SELECT 1")
    return "answers"


def _broker() -> str:
    if not settings.CELERY_BROKER_URL:
        raise Down("is not set up")
    with redis.Redis.from_url(
        settings.CELERY_BROKER_URL, socket_connect_timeout=TIMEOUT_S, socket_timeout=TIMEOUT_S
    ) as broker:
        # A full disk makes it refuse writes while it still answers a PING.
        broker.set("flowml:health", int(time.time()), ex=60)
    return "takes writes"


def _channel_layer() -> str:
    asyncio.run(asyncio.wait_for(_round_trip(), TIMEOUT_S))
    return "delivers"


async def _round_trip() -> None:
    """A message to a channel of our own and back, as a socket's would go."""
    layer = get_channel_layer()
    if layer is None:
        raise Down("is not set up")
    name = await layer.new_channel()
    sent = {"type": "health.check", "id": uuid.uuid4().hex}
    try:
        # Pub/Sub forgets what nobody listens to yet, so it is sent until it comes.
        receiving = asyncio.ensure_future(layer.receive(name))
        while not receiving.done():
            await layer.send(name, sent)
            await asyncio.wait([receiving], timeout=0.02)
        if receiving.result()["id"] != sent["id"]:
            raise Down("delivered something else")
    finally:
        if hasattr(layer, "close_pools"):
            await layer.close_pools()
        elif hasattr(layer, "flush"):
            await layer.flush()


def _nodes(database_is_up: bool) -> Part:
    if not database_is_up:
        return Part(ok=False, alive=0, detail="unknown without the database", ms=0.0)
    started = time.perf_counter()
    try:
        alive = Worker.objects.filter(last_seen_at__gte=Worker.alive_since()).count()
    except DatabaseError:
        log.warning("health: nodes can't be counted", exc_info=True)
        return Part(ok=False, alive=0, detail="unknown without the database", ms=0.0)
    ms = round((time.perf_counter() - started) * 1000, 1)
    detail = f"{alive} alive" if alive else "none alive: nothing is trained until one comes"
    return Part(ok=alive > 0, alive=alive, detail=detail, ms=ms)


@never_cache
@require_safe
def live(request: HttpRequest) -> JsonResponse:
    """GET /health/live: this process answers. What a supervisor asks before it restarts it."""
    return JsonResponse({"status": "ok", "version": settings.VERSION})
