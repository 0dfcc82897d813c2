"""Clients that look names up by themselves, held to the addresses that were judged. No Django.

Whatever a client connects to (also where a redirect sends it), it asks ``socket.getaddrinfo`` for
the address. Within ``judged`` that asks the allow-list first and answers only what was judged.
"""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from pipelines import reach

_look_up = socket.getaddrinfo
_rules: ContextVar[tuple[Sequence[reach.Rule], reach.Resolver | None] | None] = ContextVar(
    "rules", default=None
)


@contextmanager
def judged(rules: Sequence[reach.Rule], resolve: reach.Resolver | None = None) -> Iterator[None]:
    """Hold this thread (and what it runs) to ``rules``. A look-up raises reach.Refused."""
    if socket.getaddrinfo is not _judge:
        socket.getaddrinfo = _judge
    token = _rules.set((rules, resolve))
    try:
        yield
    finally:
        _rules.reset(token)


def _judge(host: Any, port: Any, *more: Any, **options: Any) -> Any:
    held = _rules.get()
    if held is None:
        return _look_up(host, port, *more, **options)
    rules, resolve = held
    name = host.decode() if isinstance(host, bytes) else str(host)
    target = reach.reach(rules, name, int(port), resolve or _addresses)
    return [row for one in target.addresses for row in _look_up(one, port, *more, **options)]


def _addresses(host: str, port: int) -> list[str]:
    try:
        found = _look_up(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        return []
    return [str(row[4][0]) for row in found]
