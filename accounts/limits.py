"""How often somebody may guess a password or make accounts, counted in the cache.

Tries count by name and address, so that nobody guesses one password quickly; by address, so that
nobody tries one password on many names; and by name alone, against many addresses at once. A try
is counted before the password is looked at and forgiven when it was right, so that many at once
get no further than one after the other. When the cache is away, each process counts for itself.
"""

import hashlib
import ipaddress
import logging
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from django.core.cache import cache, caches
from redis.exceptions import RedisError

from accounts.addresses import address_of
from accounts.errors import FlowError

WINDOW_S = 15 * 60
FAILURES = {"name and address": 10, "name": 100, "address": 100}
SIGN_UPS = 60  # in a window, from one address
MAILS = {"address": 20, "to": 3}  # links, to an address that need not be of who asks
NOTICES = 20  # in a window, to one address
log = logging.getLogger(__name__)


class TooManyTries(FlowError):
    code: ClassVar[str] = "too-many-tries"
    status: ClassVar[int] = 429


class Tries:
    """Something that may be tried so often in a window: by key, how often."""

    def __init__(self, limits: Mapping[str, int], sentence: str) -> None:
        self.limits, self.sentence = limits, sentence

    def count(self) -> None:
        """Count one more. Raises TooManyTries past a limit, with the seconds left to wait."""
        over = [key for key, most in self.limits.items() if _add(key, 1) > most]
        if over:
            wait = max(_left(key) for key in over)
            raise TooManyTries(f"{self.sentence} {_when(wait)}", retry_after_s=wait)

    def forgive(self) -> None:
        """Take back the last one: it was none of those that are limited."""
        for key in self.limits:
            _add(key, -1)


def sign_in_tries(request: Any, name: str) -> Tries:
    """Tries of ``name``'s password. Without a request (a command, a shell) nothing is limited."""
    if request is None:
        return Tries({}, "")
    who, address = _digest(name), _network(request)
    keys = {
        f"sign-in:{who}:{address}": FAILURES["name and address"],
        f"sign-in:{who}": FAILURES["name"],
        f"sign-in:{address}": FAILURES["address"],
    }
    return Tries(keys, "Too many sign-ins failed.")


def count_sign_up(request: Any) -> None:
    """Remember that an account is about to be made. Raises TooManyTries past the limit."""
    keys = {f"sign-up:{_network(request)}": SIGN_UPS}
    Tries(keys, "Too many accounts were made from here.").count()


def count_mail(request: Any, to: str) -> None:
    """Remember that a link was asked for, be there such an account or not. Raises TooManyTries.

    Without a request (a command, a shell) nothing is limited.
    """
    if request is None:
        return
    keys = {f"mail:{_network(request)}": MAILS["address"], f"mail-to:{_digest(to)}": MAILS["to"]}
    Tries(keys, "Too many messages were asked for.").count()


def may_notify(to: str) -> bool:
    """Count a notice to an address; False when it has had many. An account may be made with the
    address of somebody who wants none of its notices."""
    return _add(f"notice-to:{_digest(to)}", 1) <= NOTICES


def _when(wait: int) -> str:
    minutes = -(-wait // 60)
    return f"Wait {'a minute' if minutes == 1 else f'{minutes} minutes'} and try again."


def _digest(name: str) -> str:
    # A name may hold anything, and is nobody's business in a cache.
    return hashlib.sha256(name.casefold().encode("utf-8", "replace")).hexdigest()[:32]


def _network(request: Any) -> str:
    """The caller's address; of IPv6 the network, since a machine has a whole one to itself."""
    address = address_of(request)
    if address and ":" in address:
        return str(ipaddress.ip_network((address, 64), strict=False))
    return address or "unknown"


def _add(key: str, by: int) -> int:
    """The count after adding ``by``; the first one opens the window."""
    for store in (cache, caches["process"]):
        try:
            if store.add(key, 0, WINDOW_S):
                store.set(f"{key}:ends", time.time() + WINDOW_S, WINDOW_S)
            return int(store.incr(key, by))
        except ValueError:  # it ran out in between
            return 1
        except RedisError as problem:
            log.warning("tries are counted in this process alone", extra={"problem": str(problem)})
    return 1


def _left(key: str) -> int:
    """Whole seconds until the window of ``key`` ends."""
    for store in (cache, caches["process"]):
        try:
            ends = store.get(f"{key}:ends")
        except RedisError:
            continue
        if ends is not None:
            return max(1, min(WINDOW_S, round(ends - time.time())))
    return WINDOW_S
