"""Predictions: HTTP on a Unix socket, answered by model servers that keep models loaded.

One model server per engine and organization, forked from the engine's warm parent when it is first
needed and again when it has died. Nothing is loaded that the web side did not sign for that
organization.
"""

import asyncio
import itertools
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from aiohttp import web

from workers.node.api import Api, Gone, Refused, Unauthorized, Unreachable
from workers.node.cache import NotTrusted, hash_fits, trim, unpack, verify
from workers.node.handlers import ENGINE_NAME
from workers.node.parents import Child, EngineBroken, Parents
from workers.node.settings import Settings

log = logging.getLogger("flowml.node.serving")

MAX_BODY = 64 * 1024 * 1024
ANSWER_S = 120.0
FETCH_S = 20.0
IDLE_S = 1800.0


class Failed(Exception):
    """A request that gets a problem as its answer: its status and what else the answer holds."""

    def __init__(self, status: int, detail: str, **more: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.body = {"detail": detail, **more}


class ServerDied(Exception):
    """The model server ended before it answered."""


class Model(NamedTuple):
    """Which model is asked, as the web side names it. Ids are checked to be UUIDs."""

    artifact: str
    sha256: str
    signature: str
    engine: str
    organization: str

    @classmethod
    def read(cls, said: Any) -> "Model":
        """Check a request's "model". Raises Failed with 400."""
        try:
            artifact, organization = (
                str(UUID(str(said[key]))) for key in ("artifact", "organization")
            )
            sha256, signature, engine = (
                str(said[key]) for key in ("sha256", "signature", "engine")
            )
        except (KeyError, TypeError, ValueError):
            raise Failed(400, "The request does not name its model rightly.") from None
        return cls(artifact, sha256, signature, engine, organization)


class ModelServer:
    """One model server process, and the requests that wait for its answers."""

    def __init__(
        self, child: Child, what: str, *, told: Callable[[str], None] | None = None
    ) -> None:
        """``told`` gets each line that it prints."""
        self.child = child
        self._told = told
        self.used_at = time.monotonic()
        self._what = what
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._writing = asyncio.Lock()
        self._output = b""
        self.tail = ""  # the last line that it wrote
        self.closed = False
        loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        loop.add_reader(child.channel.fileno(), self._read)
        loop.add_reader(child.output, self._read_output)
        child.exited.add_done_callback(lambda _: self._close())

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for it and nobody has for half an hour."""
        return not self._waiting and time.monotonic() - self.used_at > IDLE_S

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer. Raises ServerDied, TimeoutError."""
        if self.closed:
            raise ServerDied(self._what)
        number = next(self._numbers)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[dict[str, Any]] = loop.create_future()
        self._waiting[number] = answer
        self.used_at = time.monotonic()
        line = json.dumps({"id": number, **request}, separators=(",", ":")).encode() + b"\n"
        try:
            async with self._writing:
                await loop.sock_sendall(self.child.channel, line)
            async with asyncio.timeout(ANSWER_S):
                return await answer
        except OSError as error:
            if isinstance(error, TimeoutError):
                await self.stop()  # it is stuck, and so is everybody behind this request
                raise
            raise ServerDied(self._what) from error
        finally:
            self._waiting.pop(number, None)

    async def stop(self) -> None:
        """End the process."""
        await self.child.kill()
        self._close()

    def hang_up(self) -> None:
        """Let the process end by itself: it reads that nobody will ask any more."""
        if not self.closed:
            try:
                self.child.channel.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has ended

    def _read(self) -> None:
        try:
            data = self.child.channel.recv(1024 * 1024)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close()
            return
        self._buffer += data
        while (end := self._buffer.find(b"\n")) >= 0:
            answer = json.loads(self._buffer[:end])
            del self._buffer[: end + 1]
            future = self._waiting.get(answer["id"])
            if future is not None and not future.done():
                future.set_result(answer)
            if answer.get("last"):
                self._close()
                return

    def _read_output(self) -> None:
        try:
            data = os.read(self.child.output, 64 * 1024)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self.child.output)
            return
        *lines, self._output = (self._output + data).split(b"\n")
        self._output = self._output[-4096:]
        for line in lines:
            self.tail = line.decode(errors="replace")[-500:] or self.tail
            log.info("model server %s: %s", self._what, line.decode(errors="replace")[:2000])
            if self._told is not None:
                self._told(line.decode(errors="replace"))

    def _close(self) -> None:
        if self.closed:
            return
        self.closed = True
        loop = asyncio.get_running_loop()
        loop.remove_reader(self.child.channel.fileno())
        loop.remove_reader(self.child.output)
        self.child.channel.close()
        os.close(self.child.output)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ServerDied(self._what))


def _read(body: bytes) -> dict[str, Any]:
    """A request as JSON. Raises Failed."""
    try:
        said = json.loads(body)
        if said.get("http") or ("columns" in said and "rows" in said):
            return dict(said)
    except (ValueError, AttributeError):
        pass
    raise Failed(400, 'Send {"model", "columns", "rows"} as JSON.')


class Serving:
    """The node's HTTP server for predictions."""

    def __init__(
        self,
        settings: Settings,
        api: Api,
        parents: Parents,
        register_again: Callable[[str], Awaitable[None]],
    ) -> None:
        self.signing_key = ""
        self.organization = ""  # whose node this is; empty: the platform's
        self._settings = settings
        self._api = api
        self._parents = parents
        self.register_again = register_again
        # Answers of replicas of deployments, which have model servers of their own.
        self.of_replica: Callable[[str, Model, dict[str, Any]], Awaitable[dict[str, Any]]]
        # Answers of their containers.
        self.of_container: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
        self._trusted: dict[Model, Path] = {}
        self._fetching: dict[Model, asyncio.Task[Path]] = {}
        self._servers: dict[tuple[str, str], ModelServer] = {}
        self._starting: dict[tuple[str, str], asyncio.Lock] = {}
        self._runner: web.AppRunner | None = None

    @property
    def address(self) -> str:
        """What the node advertises."""
        return f"unix:{self._settings.socket_path}"

    async def start(self) -> None:
        """Listen. Only this user may connect."""
        app = web.Application(client_max_size=MAX_BODY)
        app.add_routes([web.post("/predict", self._predict), web.get("/health", self._health)])
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=1.0
        )
        await self._runner.setup()
        path = self._settings.socket_path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            await web.UnixSite(self._runner, str(path)).start()
        finally:
            os.umask(mask)

    async def stop(self) -> None:
        """Stop listening and end the model servers."""
        await asyncio.gather(*(server.stop() for server in self._servers.values()))
        self._servers.clear()
        if self._runner is not None:
            await self._runner.cleanup()
            self._settings.socket_path.unlink(missing_ok=True)

    async def tend(self) -> None:
        """End idle model servers; keep the folder of unpacked models within bounds."""
        for key, server in list(self._servers.items()):
            if server.closed or server.is_idle:
                del self._servers[key]
                await server.stop()

    def forget(self) -> None:
        """Trim the unpacked models to the cache's size. Blocks."""
        trim(self._settings.folder / "models", self._settings.cache_mib)

    async def _health(self, _: web.Request) -> web.Response:
        servers = [
            {"engine": engine, "organization": organization, "pid": server.child.pid}
            for (engine, organization), server in self._servers.items()
            if not server.closed
        ]
        return web.json_response({"status": "ok", "model_servers": servers})

    async def _predict(self, request: web.Request) -> web.Response:
        status, body = await self.answer(await request.read())
        return web.Response(body=body, status=status, content_type="application/json")

    async def answer(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to a prediction request. Never raises."""
        began = time.perf_counter()
        try:
            said = _read(request)
            if asked := said.get("http"):
                found = await self.of_container(str(said.get("replica")), asked)
                return 200, json.dumps(found).encode()
            answer = await self._answer(said)
        except Failed as problem:
            return problem.status, json.dumps(problem.body).encode()
        except Exception as error:
            log.exception("a prediction failed")
            detail = f"The node could not answer: {type(error).__name__}: {error}"
            return 500, json.dumps({"detail": detail}).encode()
        total_ms = (time.perf_counter() - began) * 1000
        body = {
            "probabilities": None,
            "classes": None,
            **answer["answer"],
            "ms": {"model": answer["ms"], "node": round(total_ms, 3)},
        }
        return 200, json.dumps(body).encode()

    async def _answer(self, said: dict[str, Any]) -> dict[str, Any]:
        columns, rows = said["columns"], said["rows"]
        model = Model.read(said.get("model"))
        if replica := said.get("replica"):
            ask = {"columns": columns, "rows": rows}
            answer = await self.of_replica(str(replica), model, ask)
        else:
            folder = await self.folder(model)
            ask = {
                "model": f"{model.artifact}.{model.sha256}",
                "folder": str(folder),
                "columns": columns,
                "rows": rows,
            }
            if background := said.get("background"):
                if not isinstance(rows, list) or len(rows) != 1:
                    raise Failed(400, "One row is explained at a time.")
                ask["background"] = background
            answer = await self._ask(model, ask)
        if "error" in answer:
            more = {key: answer[key] for key in ("code",) if key in answer}
            raise Failed(
                int(answer["status"]),
                answer["error"],
                **more,
                **(answer.get("data") or {}),
            )
        return answer

    async def _ask(self, model: Model, ask: dict[str, Any]) -> dict[str, Any]:
        """Ask the model server; a dead one is replaced and asked once more."""
        for last_try in (False, True):
            try:
                server = await self._server(model)
                return await server.ask(ask)
            except ServerDied:
                log.warning("the model server of %s died", model.engine)
                if last_try:
                    raise Failed(
                        502,
                        "The model ends its process whenever it is asked; its log says more.",
                    ) from None
            except TimeoutError:
                raise Failed(504, f"The model did not answer within {ANSWER_S:.0f} s.") from None
            except EngineBroken as error:
                raise Failed(
                    503, f"The engine {model.engine} cannot run on this node: {error}"
                ) from None
        raise AssertionError

    async def _server(self, model: Model) -> ModelServer:
        key = (model.engine, model.organization)
        server = self._servers.get(key)
        if server is not None and not server.closed:
            return server
        async with self._starting.setdefault(key, asyncio.Lock()):
            server = self._servers.get(key)
            if server is not None and not server.closed:
                return server
            folder = self._settings.folder / "work" / f"serving-{model.engine}-{model.organization}"
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not self._settings.python(model.engine).exists():
                raise EngineBroken("it is not installed here")
            child = await self._parents.fork(
                model.engine,
                "workers.node.model_server:main",
                folder,
                env={
                    "HOME": str(folder),
                    "TMPDIR": str(folder),
                    "FLOWML_MODEL_SERVER_MIB": str(self._settings.model_server_mib),
                },
                # More threads would make one row slower, and much slower on a busy machine.
                threads=1,
                network=False,
            )
            server = self._servers[key] = ModelServer(child, model.engine)
            return server

    async def folder(self, model: Model) -> Path:
        """The unpacked model, fetched and verified once. Concurrent requests share the work."""
        folder = self._trusted.get(model)
        if folder is not None:
            try:
                os.utime(folder)  # those used longest ago are removed when space is short
                return folder
            except FileNotFoundError:
                del self._trusted[model]
        fetching = self._fetching.get(model)
        if fetching is None:
            fetching = self._fetching[model] = asyncio.create_task(self._fetch(model))
            fetching.add_done_callback(lambda _: self._fetching.pop(model, None))
        return await asyncio.shield(fetching)

    async def _fetch(self, model: Model) -> Path:
        if not ENGINE_NAME.fullmatch(model.engine):
            raise Failed(400, "The request does not name its engine rightly.")
        if not self.signing_key:
            raise Failed(503, "This node has not joined the server yet.")
        try:
            verify(
                self.signing_key,
                artifact=model.artifact,
                sha256=model.sha256,
                organization=model.organization,
                signature=model.signature,
                own=self.organization,
            )
            archive = await self._download(model)
            target = self._settings.folder / "models" / f"{model.artifact}.{model.sha256[:16]}"
            if target.is_dir():  # left by an earlier process: take nothing on trust
                await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)
            await asyncio.to_thread(unpack, archive, target)
        except NotTrusted as error:
            raise Failed(403, str(error), code="not-trusted") from None
        except (Refused, Gone) as error:
            raise Failed(404, f"The model's files could not be fetched: {error}") from None
        except Unreachable as error:
            raise Failed(503, f"The model's files could not be fetched: {error}") from None
        except OSError as error:
            raise Failed(507, f"The model's files could not be stored: {error.strerror}") from None
        self._trusted[model] = target
        return target

    async def _download(self, model: Model) -> Path:
        cache = self._settings.folder / "cache"
        for again in (True, False):
            try:
                archive = await self._api.download(
                    model.artifact, model.sha256, cache, patience_s=FETCH_S
                )
                if await asyncio.to_thread(hash_fits, archive, model.sha256):
                    return archive
                archive.unlink(missing_ok=True)  # it was changed after it had been fetched
            except Unauthorized as error:
                if not again:
                    raise Refused(401, "this node is not known any more") from None
                await asyncio.wait_for(self.register_again(error.token), FETCH_S)
        raise NotTrusted("The model's bytes change on this node; it is not loaded.")
