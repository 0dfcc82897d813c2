"""How many requests of a deployment wait for an answer, counted over all web processes in Valkey.

A sorted set per deployment: each request under the time at which it is over at the latest, so that
one whose web process was killed counts no longer than that. With Valkey away everybody gets in.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from uuid import UUID, uuid4

import redis

from accounts.errors import FlowError
from clusters.queue import valkey
from organizations import rls

log = logging.getLogger(__name__)

WAIT_S = 0.5  # for one of those in front to be answered, before a request is refused
AGAIN_S = 0.02
MORE_S = 10.0  # than its time limit, at most, until a request is over

_ENTER = """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[4])
redis.call('EXPIREAT', KEYS[1], math.ceil(ARGV[3]) + 1)
return 1
"""


class Busy(FlowError):
    code = "too-many-predictions"
    status = 429


@cache
def _enter() -> Any:
    return valkey().register_script(_ENTER)


def key(deployment: UUID) -> str:
    return f"flowml:deployment:{deployment}:inflight"


@contextmanager
def slot(
    deployment: UUID, most: int, within_s: float, said: list[tuple[Any, ...]] | None = None
) -> Iterator[None]:
    """Be one of the ``most`` requests of a deployment that wait at a time, for ``within_s`` each.

    Where ``said`` is given (``watch.telling``), it is counted out by what is sent with that.
    Raises Busy when that many wait already and none is answered within half a second.
    """
    mine = uuid4().hex
    if not _in(deployment, most, within_s, mine):
        with rls.waiting():
            entered = _try_again(deployment, most, within_s, mine)
        if not entered:
            raise Busy(
                f"{most} requests of this deployment wait for an answer already. Try again in a "
                "moment, send many rows in one request, or add replicas and raise max_in_flight.",
                retry_after_s=1,
            )
    try:
        yield
    finally:
        if said is not None:
            said.append(("zrem", key(deployment), mine))
        else:
            _out(deployment, mine)


def _out(deployment: UUID, mine: str) -> None:
    try:
        valkey().zrem(key(deployment), mine)
    except redis.RedisError as problem:
        log.warning("a request was not counted out", extra={"problem": str(problem)})


def _try_again(deployment: UUID, most: int, within_s: float, mine: str) -> bool:
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        time.sleep(AGAIN_S)
        if _in(deployment, most, within_s, mine):
            return True
    return False


def _in(deployment: UUID, most: int, within_s: float, mine: str) -> bool:
    now = time.time()
    try:
        return bool(_enter()([key(deployment)], [now, most, now + within_s + MORE_S, mine]))
    except redis.RedisError as problem:
        log.warning("a request was not counted", extra={"problem": str(problem)})
        return True
