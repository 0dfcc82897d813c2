"""Ring a queue: a Celery message that says only "there is work here".

Nothing depends on it. A lost bell is made up for by the sweep and by the nodes' heartbeats, a
doubled one finds nothing to claim.
"""

import logging

import redis
from celery import current_app as app
from django.conf import settings
from kombu.exceptions import OperationalError

log = logging.getLogger(__name__)

BELL = "workers.ring"


def ring(queue: str) -> None:
    """Ring ``queue``. Never raises: without a broker, nodes find work by their heartbeats."""
    if settings.SCHEDULER_BACKEND != "celery":
        return
    try:
        app.send_task(BELL, queue=queue, expires=30, ignore_result=True, retry=False)
    except (OperationalError, redis.RedisError, OSError) as problem:
        log.warning("bell not rung", extra={"queue": queue, "problem": str(problem)})


def unanswered(queues: set[str]) -> set[str]:
    """Those of ``queues`` on which a bell still lies, so that another would only pile up."""
    try:
        with redis.Redis.from_url(settings.REDIS_URL, socket_timeout=2) as client:
            return {queue for queue in queues if client.llen(queue)}
    except redis.RedisError:
        return set(queues)
