"""The web side of the node protocol, in memory, in a thread: the node's peer in its tests.

It can go down and come back on the same port, take attempts away, and wish things of tasks.
"""

import asyncio
import hashlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Self, TypeVar
from uuid import UUID, uuid4

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from workers.node.cache import signed_bytes

T = TypeVar("T")
ORGANIZATION = str(uuid4())


class FakeWeb:
    """Start with ``with FakeWeb() as web``. Everything public may be called from the test."""

    def __init__(self, *, heartbeat_s: float = 0.5, broker_url: str | None = None) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.heartbeat_s = heartbeat_s
        self.broker_url = broker_url
        self.queues = ["cpu", "toy.cpu"]
        self.tokens: set[str] = set()
        self.queue: list[dict[str, Any]] = []
        self.tasks: dict[str, dict[str, Any]] = {}
        self.wishes: dict[str, str] = {}
        self.events: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.ends: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.late: list[tuple[str, str]] = []  # writes that were refused with 409
        self.artifacts: dict[str, tuple[bytes, str]] = {}
        self.registrations: list[dict[str, Any]] = []
        self.heartbeats: list[dict[str, Any]] = []
        self.claims = 0
        self.rooms: list[dict[str, Any]] = []  # what the claims said is free
        self.hide_waiting = False
        self.replicas: dict[str, dict[str, Any]] = {}  # what should run: as the answer names it
        self.specs: dict[str, dict[str, Any]] = {}
        self.printed: dict[str, list[list[str]]] = defaultdict(list)  # by replica: time and line
        self.refuse_candidates = False
        self.refuse_checkpoints = False
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        self._call(self._up())

    def down(self) -> None:
        """Stop listening and drop all connections, as a killed server does."""
        self._call(self._down())

    def _call(self, work: Any) -> Any:
        done: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return done.result(10)

    async def _up(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.add_routes(
            [
                web.post("/api/workers/register", self._register),
                web.post("/api/workers/heartbeat", self._heartbeat),
                web.post("/api/workers/claim", self._claim),
                web.post("/api/workers/tasks/{task}/events", self._take_events),
                web.put("/api/workers/tasks/{task}/artifacts/{name}", self._upload),
                web.get("/api/workers/artifacts/{artifact}", self._download),
                web.post("/api/workers/tasks/{task}/end", self._end),
                web.get("/api/workers/replicas/{replica}", self._replica),
                web.post("/api/workers/replicas/{replica}/log", self._take_log),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def _down(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # --- what tests do -------------------------------------------------------------------------

    def add(self, kind: str, payload: Any = None, *, inputs: Any = None, **fields: Any) -> str:
        """Queue a task. Returns its id. ``inputs`` maps names to bytes."""
        task = str(uuid4())
        given = {name: self.store(content) for name, content in (inputs or {}).items()}
        self.tasks[task] = {
            "task": task,
            "attempt": 1,
            "kind": kind,
            "engine": "toy",
            "organization": ORGANIZATION,
            "payload": payload or {},
            "inputs": given,
            "limits": {"time_s": 60, "ram_mib": 1024},
            "done": [],
            "checkpoints": {},
            "spent_s": 0,
            "token": f"{task}:1",
            "lease_s": 10,
            "state": "queued",
            **fields,
        }
        self.queue.append(self.tasks[task])
        return task

    def store(self, content: bytes, organization: str = ORGANIZATION) -> dict[str, Any]:
        artifact, sha256 = str(uuid4()), hashlib.sha256(content).hexdigest()
        message = signed_bytes(UUID(artifact), sha256, UUID(organization))
        self.artifacts[artifact] = (content, self.key.sign(message).hex())
        return {"artifact": artifact, "sha256": sha256, "size": len(content)}

    def deploy(self, *models: dict[str, Any], ram_mib: int = 1024, **spec: Any) -> str:
        """Let a replica run on the node. Returns its id."""
        replica = str(uuid4())
        self.specs[replica] = {
            "models": list(models),
            "limits": {"ram_mib": ram_mib, "cpu_millis": 500, "gpus": 0},
            "env": {},
            **spec,
        }
        self.replicas[replica] = {"replica": replica, "generation": 1, "wish": "run"}
        return replica

    def state_of(self, replica: str) -> str:
        """What the node reported of it last."""
        said = self.heartbeats[-1].get("replicas") or []
        return next((one["state"] for one in said if one["replica"] == replica), "")

    def why_of(self, replica: str) -> str:
        said = self.heartbeats[-1].get("replicas") or []
        return next((one["why"] for one in said if one["replica"] == replica), "")

    def take_away(self, task: str) -> None:
        """The lease is lost: the attempt's writes are refused from now on."""
        self.tasks[task]["attempt"] += 1
        self.tasks[task]["state"] = "lost"

    def give_again(self, task: str) -> None:
        """The lease of an attempt has run out, and the task waits for its next one."""
        held = self.tasks[task]
        held["attempt"] += 1
        held |= {"state": "queued", "token": f"{task}:{held['attempt']}"}
        self.queue.append(held)

    def of(self, task: str, type: str) -> list[dict[str, Any]]:
        return [event for event in self.events[task] if event["type"] == type]

    def wait_event(self, task: str, type: str, count: int = 1) -> dict[str, Any]:
        until(lambda: len(self.of(task, type)) >= count, f"{count} {type} of {self.events[task]}")
        return self.of(task, type)[count - 1]

    def wait_end(self, task: str, timeout_s: float = 15) -> dict[str, Any]:
        until(lambda: bool(self.ends[task]), f"the end of {self.tasks[task]}", timeout_s)
        return self.ends[task][-1]

    def log(self, task: str) -> str:
        return "\n".join(line for e in self.of(task, "log") for line in e["data"]["lines"])

    # --- the protocol --------------------------------------------------------------------------

    def _worker(self, request: web.Request) -> None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Worker" or token not in self.tokens:
            raise problem(401, "unknown worker")

    def _held(self, request: web.Request, attempt: int) -> dict[str, Any]:
        task = self.tasks.get(request.match_info["task"])
        if task is None:
            raise problem(404, "no such task")
        if request.headers.get("Authorization") != f"Task {task['task']}:{attempt}":
            raise problem(401, "bad task token")
        if task["attempt"] != attempt or task["state"] != "running":
            self.late.append((task["task"], request.path.rpartition("/")[2]))
            raise problem(409, "this attempt is lost")
        return task

    async def _register(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["join_token"] != "join":
            raise problem(401, "wrong join token")
        self.registrations.append(body)
        token = uuid4().hex
        self.tokens = {token}
        return web.json_response(
            {
                "worker_id": str(uuid4()),
                "token": token,
                "heartbeat_s": self.heartbeat_s,
                "lease_s": 10,
                "queues": self.queues,
                "broker_url": self.broker_url,
                "signing_key": self.key.public_key().public_bytes_raw().hex(),
            },
            status=201,
        )

    async def _heartbeat(self, request: web.Request) -> web.Response:
        self._worker(request)
        body = await request.json()
        self.heartbeats.append(body)
        words = {}
        for held in body["running"]:
            task = self.tasks.get(held["task"])
            ours = task and (task["attempt"], task["state"]) == (held["attempt"], "running")
            words[held["task"]] = self.wishes.get(held["task"], "ok") if ours else "gone"
        waiting = bool(self.queue) and not self.hide_waiting
        return web.json_response(
            {
                "tasks": words,
                "waiting": waiting,
                "queues": self.queues,
                "restart": False,
                "replicas": list(self.replicas.values()),
            }
        )

    async def _replica(self, request: web.Request) -> web.Response:
        self._worker(request)
        spec = self.specs.get(request.match_info["replica"])
        if spec is None:
            raise problem(404, "not for this node")
        return web.json_response(spec)

    async def _take_log(self, request: web.Request) -> web.Response:
        self._worker(request)
        self.printed[request.match_info["replica"]] += (await request.json())["lines"]
        return web.Response(status=204)

    async def _claim(self, request: web.Request) -> web.Response:
        self._worker(request)
        room = (await request.json())["room"]
        self.claims += 1
        self.rooms.append(room)
        for task in self.queue:
            light = task["kind"] in ("toy.echo", "toy.bare", "toy.fail", "toy.network")
            if room["light_slots" if light else "slots"] > 0:
                self.queue.remove(task)
                task["state"] = "running"
                task["claimed_at"] = time.monotonic()
                claim = {key: value for key, value in task.items() if key != "state"}
                return web.json_response({**claim, "light": light})
        return web.Response(status=204)

    async def _take_events(self, request: web.Request) -> web.Response:
        body = await request.json()
        task = self._held(request, body["attempt"])
        self._take(task, body["events"])
        return web.json_response({"state": self.wishes.get(task["task"], "ok")})

    def _take(self, task: dict[str, Any], events: list[dict[str, Any]]) -> None:
        for event in events:
            if event["type"] == "candidate":
                if self.refuse_candidates:
                    raise problem(400, "no room for models")
                assert all(artifact in self.artifacts for artifact in event["files"].values())
                if any(e["key"] == event["key"] for e in self.of(task["task"], "candidate")):
                    continue
            self.events[task["task"]].append({**event, "heard_at": time.monotonic()})

    async def _upload(self, request: web.Request) -> web.Response:
        self._held(request, int(request.query["attempt"]))
        content = await request.read()
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 != request.headers["X-SHA256"]:
            raise problem(400, "hash differs")
        name = request.match_info["name"]
        if self.refuse_checkpoints and name.startswith("checkpoint:"):
            raise problem(413, "no room for checkpoints")
        stored = self.store(content)
        if name.startswith("checkpoint:"):
            task = self.tasks[request.match_info["task"]]
            task["checkpoints"][name.removeprefix("checkpoint:")] = stored
        return web.json_response(stored, status=201)

    async def _download(self, request: web.Request) -> web.Response:
        scheme = request.headers["Authorization"].partition(" ")[0]
        if scheme == "Worker":
            self._worker(request)
        found = self.artifacts.get(request.match_info["artifact"])
        if found is None:
            raise problem(404, "no such artifact")
        return web.Response(body=found[0], headers={"X-Signature": found[1]})

    async def _end(self, request: web.Request) -> web.Response:
        body = await request.json()
        task = self.tasks[request.match_info["task"]]
        if self.ends[task["task"]] and task["attempt"] == body["attempt"]:
            return web.json_response({})
        self._held(request, body["attempt"])
        self._take(task, body.get("events", []))
        self.ends[task["task"]].append(body)
        task["state"] = body["outcome"]
        return web.json_response({})


def problem(status: int, detail: str) -> web.HTTPException:
    kinds = {400: web.HTTPBadRequest, 401: web.HTTPUnauthorized, 404: web.HTTPNotFound}
    kind = kinds.get(status, web.HTTPConflict)
    return kind(text=f'{{"detail": "{detail}"}}', content_type="application/problem+json")


def until(holds: Callable[[], T], what: str, timeout_s: float = 15) -> T:
    """Wait until ``holds()`` is true. Returns what it gave."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(KeyError, IndexError):
            if value := holds():
                return value
        time.sleep(0.01)
    raise AssertionError(f"did not happen within {timeout_s} s: {what}")
