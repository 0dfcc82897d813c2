"""Web hooks: a signed POST to an address of the organization's choice. Standard library; no Django.

The signature is HMAC-SHA256 over ``<X-FlowML-Timestamp>.<body>`` with the connection's key, as
``sha256=<hex>`` in ``X-FlowML-Signature``: who gets it can tell that it is FlowML that speaks, and
that it is not an old message once more. ``X-FlowML-Delivery`` is the same in each try.
"""

import hashlib
import hmac
import http.client
import json
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines import reach
from workers.node.channel import WorkError

CONNECT_S, ANSWER_S = 10, 15
TRIES, FIRST_PAUSE_S = 6, 5.0  # over some two and a half minutes
LATER = frozenset({408, 425, 429})  # besides 5xx: worth another try


class WebHook:
    """``settings``: host, port, path, tls ("no": plain HTTP). ``secrets``: key.

    Only what ``rules`` allow is reached, at the address that was judged. No redirect is followed.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        secrets: Mapping[str, str],
        rules: Sequence[reach.Rule],
        *,
        resolve: reach.Resolver | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings
        self._key = str(secrets.get("key") or "")
        self._rules = rules
        self._resolve = resolve
        self._pause = pause

    @property
    def _where(self) -> str:
        return f"{self._settings['host']}:{self._settings.get('port') or 443}"

    def check(self) -> str:
        """Send a ping, once. Raises WorkError with what to change."""
        status = self._post("ping", {"event": "ping"}, "ping")
        if not 200 <= status < 300:
            raise self._refused(status)
        return f"{self._where} took a message (status {status})."

    def send(self, event: str, body: Mapping[str, Any], delivery: str) -> int:
        """Tell of an event, again with growing pauses while the far side fails. Returns the tries.

        Raises WorkError when it is refused, or none of the tries came through.
        """
        problem = WorkError("Nothing was sent.")
        for number in range(1, TRIES + 1):
            try:
                status = self._post(event, body, delivery)
            except Unreached as unreached:
                problem = unreached
            else:
                if 200 <= status < 300:
                    return number
                problem = self._refused(status)
                if status < 500 and status not in LATER:
                    raise problem
            if number < TRIES:
                self._pause(FIRST_PAUSE_S * 2 ** (number - 1))
        raise problem

    def _refused(self, status: int) -> WorkError:
        return WorkError(
            f"{self._where} answered {status} instead of taking the message: look at its path, "
            "and at what it says of itself.",
            code="hook-refused",
            status=status,
        )

    def _post(self, event: str, body: Mapping[str, Any], delivery: str) -> int:
        """The status of the answer. Raises Unreached, and WorkError for what never works."""
        if not self._key:
            raise WorkError("The connection has no signing key: enter one.", code="connection")
        host, port = str(self._settings["host"]), int(self._settings.get("port") or 443)
        path = str(self._settings.get("path") or "/")
        if not path.startswith("/") or not path.isascii() or " " in path:
            raise WorkError('The path begins with "/" and has no spaces.', code="connection")
        try:
            target = reach.reach(self._rules, host, port, self._resolve)
        except reach.Refused as refused:
            raise WorkError(str(refused), code="not-allowed") from None
        content = json.dumps(body, sort_keys=True).encode()
        stamp = str(int(time.time()))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "FlowML",
            "X-FlowML-Event": event,
            "X-FlowML-Delivery": delivery,
            "X-FlowML-Timestamp": stamp,
            "X-FlowML-Signature": f"sha256={signature(self._key, stamp, content)}",
        }
        try:
            sock = self._reached(target)
            kind = http.client.HTTPConnection if self._plain else http.client.HTTPSConnection
            line = kind(target.host, port, timeout=ANSWER_S)
            line.sock = sock  # to the address that was judged: it connects nowhere by itself
            try:
                line.request("POST", path, content, headers)
                return int(line.getresponse().status)
            finally:
                line.close()
        except (OSError, http.client.HTTPException) as error:
            raise Unreached(self._where, error) from None

    @property
    def _plain(self) -> bool:
        return self._settings.get("tls") == "no"

    def _reached(self, target: reach.Target) -> socket.socket:
        problem: OSError = OSError("nobody answers")
        for address in target.addresses:
            try:
                sock = socket.create_connection((address, target.port), CONNECT_S)
            except OSError as error:
                problem = error
                continue
            sock.settimeout(ANSWER_S)
            if self._plain:
                return sock
            try:
                context = ssl.create_default_context()
                return context.wrap_socket(sock, server_hostname=target.host)
            except OSError:
                sock.close()
                raise
        raise problem


class Unreached(WorkError):
    """Nobody took the message, this time."""

    def __init__(self, where: str, error: Exception) -> None:
        told = getattr(error, "strerror", None) or str(error) or type(error).__name__
        super().__init__(f"{where} was not reached: {told}.", code="hook-unreached")


def signature(key: str, stamp: str, content: bytes) -> str:
    return hmac.new(key.encode(), stamp.encode() + b"." + content, hashlib.sha256).hexdigest()
