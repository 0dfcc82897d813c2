"""How often somebody may guess a password or make accounts, counted in the cache.

Failures count by name and address, so that nobody guesses one password quickly; by address, so
that nobody tries one password on many names; and by name alone, against many addresses at once.
When the cache is away, nothing is counted and people can still sign in.
"""

import hashlib
import ipaddress
import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from django.core.cache import cache
from redis.exceptions import RedisError

from accounts.errors import FlowError

WINDOW_S = 15 * 60
FAILURES = {"name and address": 10, "name": 100, "address": 100}
SIGN_UPS = 60  # in a window, from one address
log = logging.getLogger(__name__)


class TooManyTries(FlowError):
    code: ClassVar[str] = "too-many-tries"
    status: ClassVar[int] = 429


def check_sign_in(request: Any, name: str) -> None:
    """Raise TooManyTries when ``name``, or who asks, has failed too often lately."""
    keys = _keys(request, name)
    try:
        counts = cache.get_many(keys.values())
    except RedisError as problem:
        log.warning("sign-ins can't be limited", extra={"problem": str(problem)})
        return
    if any(counts.get(key, 0) >= FAILURES[kind] for kind, key in keys.items()):
        _refuse("Too many sign-ins failed. Wait a quarter of an hour and try again.")


def count_failure(request: Any, name: str) -> None:
    """Remember that a sign-in failed."""
    for key in _keys(request, name).values():
        _count(key)


def count_sign_up(request: Any) -> None:
    """Remember that an account is about to be made. Raises TooManyTries past the limit."""
    if _count(f"sign-up:{_address(request)}") > SIGN_UPS:
        _refuse("Too many accounts were made from here. Wait a quarter of an hour and try again.")


def _refuse(sentence: str) -> None:
    raise TooManyTries(sentence, retry_after_s=WINDOW_S)


def _keys(request: Any, name: str) -> Mapping[str, str]:
    # A name may hold anything, and is nobody's business in a cache.
    who = hashlib.sha256(name.casefold().encode("utf-8", "replace")).hexdigest()[:32]
    address = _address(request)
    return {
        "name and address": f"sign-in:{who}:{address}",
        "name": f"sign-in:{who}",
        "address": f"sign-in:{address}",
    }


def _address(request: Any) -> str:
    """The caller's address; of IPv6 the network, since a machine has a whole one to itself."""
    try:
        address = ipaddress.ip_address(request.META.get("REMOTE_ADDR", ""))
    except ValueError:
        return "unknown"
    if address.version == 6:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _count(key: str) -> int:
    try:
        cache.add(key, 0, WINDOW_S)
        return int(cache.incr(key))
    except ValueError:  # it ran out in between
        return 1
    except RedisError as problem:
        log.warning("tries can't be counted", extra={"problem": str(problem)})
        return 0
