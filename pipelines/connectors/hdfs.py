"""Files in HDFS by WebHDFS: written in pieces to another name, and renamed at the end. No Django.

The name node sends to data nodes by redirects: each address that one leads to is judged, too.
"""

import asyncio
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx

from pipelines import reach
from pipelines.connectors.judged import judged
from pipelines.transfers import PART, Away, Chunk, Damaged, below
from workers.node.channel import WorkError

CONNECT_S, ANSWER_S = 10, 60
MOST_HOPS = 3
SAYS = {
    "AccessControlException": ("permission", "This user may not do that"),
    "SecurityException": ("connection", "It wants another way to sign in"),
    "DSQuotaExceededException": ("disk-full", "The folder's quota is used up"),
    "NSQuotaExceededException": ("disk-full", "The folder's quota is used up"),
    "QuotaExceededException": ("disk-full", "The folder's quota is used up"),
}


class Hdfs:
    """``settings``: host, port, tls, user, folder. ``secrets``: token (a delegation token)."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        secrets: Mapping[str, str],
        rules: Sequence[reach.Rule],
        *,
        resolve: reach.Resolver | None = None,
    ) -> None:
        host, port = str(settings["host"]), int(settings.get("port") or 9870)
        scheme = "http" if settings.get("tls") == "no" else "https"
        shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
        user = str(settings.get("user") or "")
        self.where = f"{host}:{port}"
        self.folder = posixpath.join("/", str(settings.get("folder") or f"user/{user}/flowml"))
        self._root = f"{scheme}://{shown}:{port}/webhdfs/v1"
        self._scheme = scheme
        token = str(secrets.get("token") or "")
        self._who = {"delegation": token} if token else {"user.name": user}
        self._rules = rules
        self._resolve = resolve
        # Nothing is taken from the node's own environment, and no redirect is followed unseen.
        limits = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
        self._client = httpx.Client(trust_env=False, follow_redirects=False, timeout=limits)

    async def ask(
        self, method: str, op: str, path: str, body: bytes | None = None, **wanted: Any
    ) -> httpx.Response:
        """One operation. Raises Away, WorkError, Damaged, or KeyError for what is not there."""

        def call() -> httpx.Response:
            with judged(self._rules, self._resolve):
                url: Any = self._root + quote(path)
                wish: Any = {"op": op, **self._who, **wanted}
                for _ in range(MOST_HOPS):
                    # The name node gets no data: it says where they go.
                    sent = body if wish is None else None
                    answer = self._client.request(method, url, params=wish, content=sent)
                    if answer.status_code not in {301, 302, 303, 307, 308}:
                        return answer
                    url, wish = httpx.URL(url).join(answer.headers["location"]), None
                    if url.scheme != self._scheme:
                        raise reach.Refused(f"{self.where} sends to {url.scheme}, not encrypted.")
                return answer

        try:
            answer = await asyncio.to_thread(call)
        except reach.Refused as refused:
            raise WorkError(str(refused), code="not-allowed") from None
        except (httpx.HTTPError, OSError) as error:
            text = " ".join(str(error).split())[:200] or type(error).__name__
            raise Away(f"{self.where} can't be reached ({text}).") from None
        if answer.status_code < 300:
            return answer
        raise self._told(answer)

    def _told(self, answer: httpx.Response) -> Exception:
        try:
            said = answer.json()["RemoteException"]
            name, text = str(said["exception"]), " ".join(str(said["message"]).split())[:300]
        except (ValueError, KeyError, TypeError):
            name, text = f"status {answer.status_code}", answer.reason_phrase
        if name == "FileNotFoundException" or answer.status_code == 404:
            return KeyError(text)
        if name in SAYS:
            code, why = SAYS[name]
            return WorkError(f"{why} ({self.where}): {text}.", code=code)
        if name in {"StandbyException", "RetriableException", "SafeModeException"}:
            return Away(f"{self.where} can't do it now ({name}).")
        if answer.status_code in {401, 403}:
            return WorkError(f"{self.where} does not allow it: {text}.", code="connection")
        return Damaged(f"{self.where} said: {name}: {text}.")

    async def check(self) -> str:
        path = below(self.folder, ".flowml-test")
        await self.ask("PUT", "MKDIRS", self.folder)
        await self.ask("PUT", "CREATE", path, b"FlowML was here.\n", overwrite="true")
        await self.ask("DELETE", "DELETE", path)
        return f"HDFS at {self.where} takes files in {self.folder}."

    def file(self, name: str, *, reading: bool = False) -> "HdfsFile":
        return HdfsFile(self, below(self.folder, name), reading=reading)


class HdfsFile:
    """A transfers.Far and its own lane: HDFS only ever adds to a file's end, so one at a time."""

    most_lanes = 1
    compares = False

    def __init__(self, hdfs: Hdfs, path: str, *, reading: bool) -> None:
        self._hdfs = hdfs
        self._path = path
        self._part = path + PART
        self._open = path if reading else self._part

    async def lane(self) -> "HdfsFile":
        return self

    async def close(self) -> None:
        pass

    async def leave(self) -> None:
        pass

    async def size(self) -> int | None:
        return await self._length(self._path)

    async def _length(self, path: str) -> int | None:
        try:
            answer = await self._hdfs.ask("GET", "GETFILESTATUS", path)
        except KeyError:
            return None
        status = answer.json()["FileStatus"]
        return int(status["length"]) if status["type"] == "FILE" else None

    async def digest(self, *, partial: bool) -> str:
        return ""  # its own checksum is of another kind; the chunks were read again

    async def begin(self, size: int, sha256: str) -> int:
        await self._hdfs.ask("PUT", "MKDIRS", posixpath.dirname(self._part))
        left = await self._length(self._part)
        if left is None or left > size:
            await self._hdfs.ask("PUT", "CREATE", self._part, b"", overwrite="true")
            return 0
        return left

    async def has(self, chunk: Chunk, data: bytes) -> bool:
        return await self.read(chunk) == data

    async def read(self, chunk: Chunk) -> bytes:
        try:
            answer = await self._hdfs.ask(
                "GET", "OPEN", self._open, offset=chunk.offset, length=chunk.size
            )
        except KeyError:
            return b""
        return answer.content

    async def write(self, chunk: Chunk, data: bytes) -> None:
        there = await self._length(self._part) or 0
        if there < chunk.offset:
            raise Away("a part of the file is gone; run it again.")
        if there > chunk.offset:  # of a try that was cut short, or damaged
            await self._hdfs.ask("POST", "TRUNCATE", self._part, newlength=chunk.offset)
            for _ in range(50):
                if await self._length(self._part) == chunk.offset:
                    break
                await asyncio.sleep(0.2)
        await self._hdfs.ask("POST", "APPEND", self._part, data)

    async def finish(self) -> None:
        wanted: Any = {"destination": self._path, "renameoptions": "OVERWRITE"}
        try:
            await self._hdfs.ask("PUT", "RENAME", self._part, **wanted)
        except KeyError:
            if await self._length(self._path) is None:  # else it is done, and the answer was lost
                raise Away("the file is gone; run it again.") from None
