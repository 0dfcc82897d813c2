"""Whose X-Forwarded-* headers are believed: those of TRUSTED_PROXIES and of nobody else."""

import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponseBase

FORWARDED = ("HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO", "HTTP_X_FORWARDED_HOST")


class ProxyMiddleware:
    """Put the client's own address into REMOTE_ADDR, and drop what strangers forward."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        # A coroutine where the next one is: it is handed on as it is.
        heed(request.META)
        answer: HttpResponseBase | Awaitable[HttpResponseBase] = self.get_response(request)
        return answer


def heed(meta: dict[str, Any]) -> None:
    """Read the forwarded headers of a trusted proxy; forget those of anybody else."""
    if not _trusted(meta.get("REMOTE_ADDR", "")):
        for name in FORWARDED:
            meta.pop(name, None)
        return
    hops = [hop.strip() for hop in meta.get("HTTP_X_FORWARDED_FOR", "").split(",")]
    # From the right: what stands further left, the client may have written itself.
    client = next((hop for hop in reversed(hops) if hop and not _trusted(hop)), None)
    if client is not None:
        meta["REMOTE_ADDR"] = client


def _trusted(address: str) -> bool:
    try:
        one = ipaddress.ip_address(address)
        networks = [ipaddress.ip_network(each, strict=False) for each in settings.TRUSTED_PROXIES]
    except ValueError:
        return False
    return any(one in network for network in networks)
