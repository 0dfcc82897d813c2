"""The node's calls to the web side. Nodes dial out; nothing here listens."""

import asyncio
import hashlib
import logging
import os
import random
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

log = logging.getLogger("flowml.node.api")

CHUNK = 256 * 1024
# After a cut network an old connection may stay silent for ever. A heartbeat that is late is worth
# nothing, and must be tried on another connection before the lease is over.
JSON_TIMEOUT_S = 30.0
BEAT_TIMEOUT_S = 4.0
# Words of the protocol for "this attempt is not yours any more": 401 is a revoked task token.
GONE = frozenset({401, 404, 409, 410})
TRANSIENT = frozenset({408, 425, 429})


class Unreachable(Exception):
    """The web side did not answer, or answered that it cannot now."""


class Unauthorized(Exception):
    """The worker's ``token`` is unknown or revoked: register again."""

    def __init__(self, detail: str, token: str) -> None:
        super().__init__(detail)
        self.token = token


class Gone(Exception):
    """The attempt belongs to this node no more. Drop it and change nothing."""


class Refused(Exception):
    """The web side understood and said no; asking again would not help."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.detail = detail


def backoff_s(failures: int, spread: float) -> float:
    """Seconds to wait after so many failures in a row (1 or more), ``spread`` in 0..1.

    Doubles from 0.2 s to at most 5 s, half of it random, so that nodes do not return in step.
    """
    full = min(5.0, 0.2 * 2.0 ** min(failures - 1, 10))
    return float(full * (0.5 + 0.5 * spread))


class Api:
    """One node's session with the web side."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.token = ""
        self.online = True
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """The connection pool, opened on first use inside the running loop."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=32, keepalive_timeout=25),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=60),
            )
        return self._session

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def register(self, body: Mapping[str, Any], token: str = "") -> dict[str, Any]:
        """Make this node known; keeps the token that comes back. Raises Refused, Unreachable.

        ``token`` is one that this node was given earlier, and shows who it is; Unauthorized: void.
        """
        auth = f"Worker {token}" if token else None
        answer = await self._json("POST", "/api/workers/register", body, auth=auth)
        self.token = str(answer["token"])
        return answer

    async def heartbeat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Renew the leases of what runs here and hear what to do with it."""
        path = "/api/workers/heartbeat"
        return await self._json("POST", path, body, auth=self._worker(), timeout_s=BEAT_TIMEOUT_S)

    async def claim(self, room: Mapping[str, Any], wait_s: float = 0) -> dict[str, Any] | None:
        """The best task that fits ``room``, or None. After a lost answer the lease just ends.

        The web side may take up to ``wait_s`` seconds to find one.
        """
        path = f"/api/workers/claim?wait_s={wait_s:.0f}" if wait_s else "/api/workers/claim"
        return await self._json("POST", path, {"room": room}, auth=self._worker()) or None

    async def replica(self, replica: str) -> dict[str, Any]:
        """All that is needed to run a replica of a deployment. Raises Refused: it is not ours."""
        return await self._json(
            "GET", f"/api/workers/replicas/{quote(replica, safe='')}", None, auth=self._worker()
        )

    async def replica_log(
        self, replica: str, generation: int, lines: Sequence[tuple[str, str]]
    ) -> None:
        """Hand in what a replica has printed: (time, text) of each line."""
        path = f"/api/workers/replicas/{quote(replica, safe='')}/log"
        body = {"generation": generation, "lines": [list(line) for line in lines]}
        await self._json("POST", path, body, auth=self._worker())

    async def events(
        self, task: str, attempt: int, token: str, events: list[dict[str, Any]]
    ) -> str:
        """Append events in order. Returns the wish: "ok", "cancel" or "stop"."""
        path = f"/api/workers/tasks/{task}/events"
        body = {"attempt": attempt, "events": events}
        answer = await self._json("POST", path, body, auth=f"Task {token}", patience_s=None)
        return str(answer.get("state") or (answer.get("tasks") or {}).get(task) or "ok")

    async def end(self, task: str, token: str, body: Mapping[str, Any]) -> None:
        """Report the attempt's outcome. Safe to repeat."""
        path = f"/api/workers/tasks/{task}/end"
        await self._json("POST", path, body, auth=f"Task {token}", patience_s=None)

    async def upload(
        self, task: str, attempt: int, token: str, name: str, file: Path
    ) -> dict[str, Any]:
        """Stream a file up; repeating it gives the same artifact. Returns {"artifact": id, ...}."""
        digest = await asyncio.to_thread(sha256_of, file)
        path = f"/api/workers/tasks/{task}/artifacts/{quote(name, safe='')}?attempt={attempt}"
        headers = {"X-SHA256": digest, "Content-Type": "application/octet-stream"}
        failures = 0
        while True:
            try:
                with file.open("rb") as body:  # aiohttp reads it piece by piece, in a thread
                    return await self._once(
                        "PUT", path, f"Task {token}", data=body, headers=headers
                    )
            except Unreachable as error:
                failures += 1
                await self._wait(failures, error)

    async def download(
        self,
        artifact: str,
        sha256: str,
        cache: Path,
        *,
        token: str = "",
        patience_s: float | None,
    ) -> Path:
        """Fetch an artifact into ``cache`` under its hash, unless it is there. Returns the file.

        ``token`` is a task's; without one the worker's is used. Raises Refused when the bytes that
        came are not those that ``sha256`` names.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise Refused(422, "The artifact's hash is not a SHA-256 in hexadecimal.")
        target = cache / sha256
        if target.exists():
            os.utime(target)  # the cache forgets what was used longest ago
            return target
        auth = f"Task {token}" if token else self._worker()
        path = f"/api/workers/artifacts/{quote(artifact, safe='')}"
        began, failures = time.monotonic(), 0
        while True:
            try:
                return await self._fetch(path, auth, sha256, target)
            except Unreachable as error:
                failures += 1
                if patience_s is not None and time.monotonic() - began > patience_s:
                    raise
                await self._wait(failures, error)

    async def _fetch(self, path: str, auth: str, sha256: str, target: Path) -> Path:
        os.makedirs(target.parent, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=target.parent, prefix=".part-")
        digest = hashlib.sha256()
        try:
            with os.fdopen(handle, "wb") as file:
                try:
                    request = self.session.get(self.url + path, headers={"Authorization": auth})
                    async with request as response:
                        await _check(response, worker=auth.startswith("Worker"))
                        async for chunk in response.content.iter_chunked(CHUNK):
                            digest.update(chunk)
                            file.write(chunk)
                except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                    raise Unreachable(_words(error)) from error
            if digest.hexdigest() != sha256:
                raise Refused(422, "The artifact's bytes do not fit its hash.")
            os.chmod(part, 0o400)
            os.rename(part, target)
        except BaseException:
            os.unlink(part)
            raise
        return target

    def _worker(self) -> str:
        return f"Worker {self.token}"

    async def _json(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        *,
        auth: str | None,
        patience_s: float | None = 0.0,
        timeout_s: float = JSON_TIMEOUT_S,
    ) -> dict[str, Any]:
        """One call with a JSON body, repeated for ``patience_s`` seconds (None: for ever)."""
        began, failures = time.monotonic(), 0
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(5, timeout_s))
        while True:
            try:
                return await self._once(method, path, auth, json=body, timeout=timeout)
            except Unreachable as error:
                failures += 1
                if patience_s is not None and time.monotonic() - began >= patience_s:
                    raise
                await self._wait(failures, error)

    async def _once(
        self,
        method: str,
        path: str,
        auth: str | None,
        *,
        headers: Mapping[str, str] | None = None,
        **what: Any,
    ) -> dict[str, Any]:
        sent = dict(headers or {}) | ({"Authorization": auth} if auth else {})
        try:
            request = self.session.request(method, self.url + path, headers=sent, **what)
            async with request as response:
                await _check(response, worker=bool(auth and auth.startswith("Worker")))
                answer = await response.json() if response.status != 204 else {}
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            self._mark(False, error)
            raise Unreachable(_words(error)) from error
        self._mark(True)
        return answer if isinstance(answer, dict) else {}

    async def _wait(self, failures: int, error: Exception) -> None:
        self._mark(False, error)
        await asyncio.sleep(backoff_s(failures, random.random()))

    def _mark(self, online: bool, why: Exception | None = None) -> None:
        if online != self.online:
            self.online = online
            if online:
                log.info("the web side answers again")
            else:
                log.warning("the web side cannot be reached (%s); keeping results", _words(why))


async def _check(response: aiohttp.ClientResponse, *, worker: bool) -> None:
    """Turn a status other than 2xx into the exception that tells what to do about it."""
    status = response.status
    if status < 300:
        return
    try:
        detail = str((await response.json(content_type=None))["detail"])
    except (ValueError, KeyError, TypeError, aiohttp.ClientError):
        detail = response.reason or "no reason given"
    if status >= 500 or status in TRANSIENT:
        raise Unreachable(f"{status}: {detail}")
    authorization = response.request_info.headers.get("Authorization", "")
    if worker and status == 401:
        raise Unauthorized(detail, authorization.removeprefix("Worker "))
    if authorization.startswith("Task ") and status in GONE:
        raise Gone(f"{status}: {detail}")
    raise Refused(status, detail)


def _words(error: BaseException | None) -> str:
    return str(error) or type(error).__name__


def sha256_of(file: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
