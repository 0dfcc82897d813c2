"""Ring a queue: a Celery message that says only "there is work here".

Nothing depends on it. A lost bell is made up for by the sweep and by the nodes' heartbeats, a
doubled one finds nothing to claim.
"""

import logging
import time
from typing import Any

import redis
from celery import current_app as app
from django.conf import settings

from workers import push

log = logging.getLogger(__name__)

BELL = "workers.ring"
AWAY_S = 5.0

_away_until = 0.0


def ring(queue: str) -> None:
    """Ring ``queue``. Never raises: without a broker, nodes find work by their heartbeats."""
    push.bell(queue)
    if settings.SCHEDULER_BACKEND == "celery":
        send(BELL, queue=queue, expires=30)


def send(name: str, **how: Any) -> bool:
    """Send a message that only hastens something. Never raises; returns whether it was sent.

    A broker that did not answer is left alone for a moment: it costs a timeout to find out, and
    those who report their work meanwhile must not pay it each.
    """
    global _away_until
    if time.monotonic() < _away_until:
        return False
    try:
        app.send_task(name, ignore_result=True, retry=False, **how)
    except Exception as problem:  # whatever the broker, its transport or the network makes of it
        _away_until = time.monotonic() + AWAY_S
        log.warning("broker not reached", extra={"task": name, "problem": str(problem)})
        return False
    return True


def unanswered(queues: set[str]) -> set[str]:
    """Those of ``queues`` on which a bell still lies, so that another would only pile up."""
    try:
        with redis.Redis.from_url(settings.REDIS_URL, socket_timeout=2) as client:
            return {queue for queue in queues if client.llen(queue)}
    except redis.RedisError:
        return set(queues)
