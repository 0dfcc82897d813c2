"""The line of those that wait, as a sorted set in Valkey: the order, for whoever asks for a place.

It is a cache: made anew from PostgreSQL after each cycle, read by nobody who decides, and when it
is lost, or Valkey is away, the place is counted in the database.
"""

import logging
from collections.abc import Iterable
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

import redis
from django.conf import settings

from clusters.models import Deployment

log = logging.getLogger(__name__)
CLASS = 1e11  # more than any time of ours in seconds
KEPT_S = 3600


def valkey() -> "redis.Redis":
    """The connections of this process, which wait a second for an answer at most."""
    return _valkey(settings.REDIS_URL)


@cache
def _valkey(url: str) -> "redis.Redis":
    return redis.Redis.from_url(url, socket_timeout=1, socket_connect_timeout=1)


def key(cluster: UUID) -> str:
    return f"flowml:cluster:{cluster}:waiting"


def score(one: Any) -> float:
    """The smaller, the sooner: by urgency, then since when it waits, then when it was submitted."""
    since: datetime = one.waiting_since or one.created_at
    return -one.priority * CLASS + since.timestamp() + one.created_at.timestamp() * 1e-9


def rebuild(cluster: UUID, waiting: Iterable[Any]) -> None:
    """Put the line in place of what was there. Never raises."""
    places = {str(one.id): score(one) for one in waiting}
    try:
        with valkey().pipeline(transaction=True) as pipe:
            pipe.delete(key(cluster))
            if places:
                pipe.zadd(key(cluster), places)
                pipe.expire(key(cluster), KEPT_S)
            pipe.execute()
    except redis.RedisError as problem:
        log.warning("the line was not written", extra={"problem": str(problem)})


def place(one: Deployment) -> tuple[int, int] | None:
    """Its place in its cluster's line, from 1, and how many wait; None: it does not."""
    if one.waiting_since is None or not one.is_started:
        return None
    try:
        with valkey().pipeline() as pipe:
            pipe.zrank(key(one.cluster_id), str(one.pk))
            pipe.zcard(key(one.cluster_id))
            rank, count = pipe.execute()
        if rank is not None:
            return int(rank) + 1, int(count)
    except redis.RedisError as problem:
        log.warning("the line was not read", extra={"problem": str(problem)})
    line = sorted(
        Deployment.objects.filter(
            cluster=one.cluster_id, is_started=True, deleted_at=None, waiting_since__isnull=False
        ).only("priority", "waiting_since", "created_at"),
        key=score,
    )
    return next((i for i, other in enumerate(line, 1) if other.pk == one.pk), 1), len(line)
