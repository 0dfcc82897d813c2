"""Whose X-Forwarded-* headers are believed: those of TRUSTED_PROXIES and of nobody else."""

import ipaddress
from typing import Any

from django.conf import settings
from django.http import HttpRequest

from accounts.middleware import Around, Steps

FORWARDED = ("HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO", "HTTP_X_FORWARDED_HOST")


class ProxyMiddleware(Around):
    """Put the client's own address into REMOTE_ADDR, and drop what strangers forward."""

    def around(self, request: HttpRequest) -> Steps:
        heed(request.META)
        yield


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
