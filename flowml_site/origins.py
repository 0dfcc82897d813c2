"""Which pages may open a socket: our own, by scheme, host and port.

Another port of the same host is another program, perhaps one of a stranger, yet the browser sends
it our cookies: so the host alone proves nothing. No browser leaves the Origin out; programs may,
and get no further by a cookie than anonymous people do (LiveConsumer sees to it).
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from channels.security.websocket import WebsocketDenier
from django.conf import settings
from django.http.request import split_domain_port, validate_host

from flowml_site import proxies

PORTS = {"http": 80, "https": 443}
Origin = tuple[str, str, int]


def own_origins_only(application: Any) -> Any:
    """``application`` for sockets, closed to pages of others."""

    async def guarded(scope: Mapping[str, Any], receive: Any, send: Any) -> Any:
        if is_ours(scope):
            return await application(scope, receive, send)
        return await WebsocketDenier()(scope, receive, send)

    return guarded


def is_ours(scope: Mapping[str, Any]) -> bool:
    """Whether the page that opens the socket is one of ours, or it is no page at all."""
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    if b"origin" not in headers:
        return True
    origin = _parsed(headers[b"origin"])
    if origin is None:
        return False
    known = [*settings.CSRF_TRUSTED_ORIGINS, settings.PUBLIC_URL]
    if origin in {_parsed(one) for one in known}:
        return True
    host = headers.get(b"host", "").lower()
    if not validate_host(split_domain_port(host)[0], settings.ALLOWED_HOSTS):
        return False
    return origin == _parsed(f"{_scheme(scope, headers)}://{host}")


def _scheme(scope: Mapping[str, Any], headers: Mapping[bytes, str]) -> str:
    """As the browser sees it: a proxy that we trust may have taken the TLS away."""
    client = scope.get("client") or [""]
    meta = {"REMOTE_ADDR": client[0]}
    if forwarded := headers.get(b"x-forwarded-proto"):
        meta["HTTP_X_FORWARDED_PROTO"] = forwarded
    proxies.heed(meta)
    scheme = meta.get("HTTP_X_FORWARDED_PROTO") or scope.get("scheme", "ws")
    return "https" if scheme in {"https", "wss"} else "http"


def _parsed(text: str) -> Origin | None:
    """Scheme, host and port of an origin; None for what is none, such as ``null``."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in PORTS or not parts.hostname:
        return None
    return parts.scheme, parts.hostname, port or PORTS[parts.scheme]
