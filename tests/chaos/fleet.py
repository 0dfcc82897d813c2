"""A platform with several nodes, all real processes, that can be killed, frozen and cut off."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import psutil

from flowml_site import embedded, processes
from flowml_site.platform import NOT_FOR_NODES, Platform
from tests.chaos.desk import ROOT, Desk
from tests.seeds import seed

T = TypeVar("T")


def until(holds: Callable[[], T], what: str, within: float = 60) -> T:
    """Wait until ``holds()`` is true, and return what it gave."""
    deadline = time.monotonic() + within
    while True:
        if value := holds():
            return value
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.1)


class Node:
    """One ``python -m workers.cli``, started and stopped at will on the same folder."""

    def __init__(self, fleet: "Fleet", name: str, **env: str) -> None:
        self.fleet, self.name = fleet, name
        self.env = env
        self.folder = fleet.folder / name
        self.root = ROOT  # where its code lies
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.fleet.folder / f"{self.name}.log").read_text(errors="replace")

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> Self:
        inherited = {k: v for k, v in os.environ.items() if k not in NOT_FOR_NODES}
        env = {
            **inherited,
            "PYTHONPATH": str(self.root),
            "FLOWML_URL": self.fleet.platform.url,
            "FLOWML_JOIN_TOKEN": embedded.secrets(self.fleet.platform.var)["FLOWML_JOIN_TOKEN"],
            "FLOWML_NODE_NAME": self.name,
            "FLOWML_NODE_DIR": str(self.folder),
            "FLOWML_VAR": str(self.fleet.folder / f"{self.name}.var"),
            "FLOWML_VENVS": str(self.fleet.folder / "venvs"),  # no engine: the toys need none
            "FLOWML_TEST_HANDLERS": "tests.chaos.toy",
            "FLOWML_CONCURRENCY": "2",
            "LOG_FORMAT": "text",
            **self.env,
        }
        python = ROOT / ".venvs" / "node" / "bin" / "python"
        log = self.fleet.folder / f"{self.name}.log"
        args = [str(python), "-m", "workers.cli"]
        self.process = processes.spawn(args, log=log, env=env, cwd=self.root)
        return self

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """As the machine's power does: no goodbye. What it started dies with it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        assert self.process is not None
        if self.runs:
            self.process.terminate()
        return self.process.wait(30)

    def children(self) -> list[psutil.Process]:
        """The tasks' own processes, youngest last: what its warm parents have forked."""
        found = []
        with contextlib.suppress(psutil.Error):
            assert self.process is not None
            for parent in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.Error):
                    if "workers.node.warm" in " ".join(parent.cmdline()):
                        found += parent.children()
        return found

    def warm_parents(self) -> list[psutil.Process]:
        """What its children are forked from."""
        found = []
        with contextlib.suppress(psutil.Error):
            assert self.process is not None
            for parent in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.Error):
                    if "workers.node.warm" in " ".join(parent.cmdline()):
                        found.append(parent)
        return found


class Fleet:
    """Start with ``with Fleet(folder, heartbeat_s=…, lease_s=…) as fleet``."""

    def __init__(self, folder: Path, *, heartbeat_s: float = 2, lease_s: float = 10) -> None:
        self.folder = folder
        self.heartbeat_s, self.lease_s = heartbeat_s, lease_s
        env = {
            "FLOWML_LOCAL_FALLBACK": "0",
            "HEARTBEAT_SECONDS": str(heartbeat_s),
            "LEASE_SECONDS": str(lease_s),
            "MAX_CONCURRENT_JOBS": "1000",
        }
        self.platform = Platform(folder / "var", env=env, args=["--without-node"])
        self.nodes: dict[str, Node] = {}

    def __enter__(self) -> Self:
        (self.folder / "venvs").mkdir(parents=True, exist_ok=True)
        seed(self.platform.var)
        self.platform.start(nodes=0)
        var = self.platform.var
        self.desk = Desk(
            {
                **{k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
                "FLOWML_VAR": str(var),
                "DATABASE_URL": embedded.database_url(var),
                "REDIS_URL": embedded.redis_url(var) or "",
                "SECRET_KEY": embedded.secrets(var)["SECRET_KEY"],
                "FLOWML_SIGNING_KEY": embedded.secrets(var)["FLOWML_SIGNING_KEY"],
                "FLOWML_JOIN_TOKEN": embedded.secrets(var)["FLOWML_JOIN_TOKEN"],
                "DJANGO_SETTINGS_MODULE": "flowml_site.settings",
                "LEASE_SECONDS": str(self.lease_s),
            }
        )
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes.values():
            if node.runs:
                node.send(signal.SIGCONT)
                node.process.terminate()  # type: ignore[union-attr]
        for node in self.nodes.values():
            if node.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    node.process.wait(20)
                node.kill()
        self.desk.close()
        self.platform.stop()

    def node(self, name: str, **env: str) -> Node:
        """A node of this name, started and heard of."""
        if name not in self.nodes:
            self.nodes[name] = Node(self, name, **env)
        node = self.nodes[name]
        if not node.runs:
            node.env |= env
            began = time.time()
            node.start()
            until(lambda: self.seen(name, since=began), f"{name} joins; {node.log[-2000:]}")
        return node

    def seen(self, name: str, *, since: float) -> bool:
        """Whether web has heard of the node since then."""
        found = self.desk.rows("SELECT last_seen_at FROM workers_worker WHERE name = %s", name)
        return bool(found) and found[0][0] > since

    def only(self, *names: str) -> None:
        """Have these nodes and no others."""
        for name, node in self.nodes.items():
            if name not in names and node.runs:
                node.send(signal.SIGCONT)
                node.stop()
        for name in names:
            self.node(name)

    # --- tasks ---

    def task(self, task: str) -> dict[str, Any]:
        """A task's row as it is now."""
        names = ("state", "attempt", "losses", "fault", "code", "error", "result", "worker")
        [row] = self.desk.rows(
            "SELECT t.state, t.attempt, t.losses, t.fault, t.code, t.error, t.result, w.name "
            "FROM workers_task t LEFT JOIN workers_worker w ON w.id = t.worker_id WHERE t.id = %s",
            task,
        )
        found = dict(zip(names, row, strict=True))
        return found | {"result": json.loads(found["result"])}

    def events(self, task: str) -> list[tuple[str, float, str]]:
        """(type, at, key) of all its events, in order."""
        sql = "SELECT type, at, key FROM workers_event WHERE task_id = %s ORDER BY seq"
        return [(kind, at, key) for kind, at, key in self.desk.rows(sql, task)]

    def running(self, task: str, within: float = 60) -> str:
        """Wait until a node runs it; which."""
        until(
            lambda: any(kind == "started" for kind, _, _ in self.events(task)),
            f"{task} starts: {self.task(task)}",
            within,
        )
        return str(self.task(task)["worker"])

    def ended(self, task: str, within: float = 90) -> dict[str, Any]:
        """Wait for its end; the row."""
        ends = {"succeeded", "failed", "cancelled"}
        until(lambda: self.task(task)["state"] in ends, f"{task}: {self.task(task)}", within)
        return self.task(task)

    def check_once(self, tasks: list[str]) -> None:
        """Each has succeeded, once, with its own result, and no model twice or missing."""
        for task in tasks:
            row, events = self.task(task), self.events(task)
            assert row["state"] == "succeeded", row
            assert [kind for kind, _, _ in events].count("task.succeeded") == 1, events
            keys = [key for kind, _, key in events if kind == "candidate"]
            assert len(keys) == len(set(keys)), events


class Proxy:
    """A TCP proxy before web that can be cut: then nothing passes, and nobody is told.

    Connections of before the cut stay silent for ever, as behind a firewall that forgot them.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._to = (parts.hostname, parts.port)
        self._cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        ).result(10)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        self._cut = True

    def mend(self) -> None:
        self._cut = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        dead = [self._cut]
        if self._cut:
            await self._swallow(reader)
        else:
            far_reader, far_writer = await asyncio.open_connection(*self._to)
            await asyncio.gather(
                self._pump(reader, far_writer, dead), self._pump(far_reader, writer, dead)
            )
        writer.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, dead: list[bool]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                dead[0] = dead[0] or self._cut
                if dead[0]:
                    await self._swallow(reader)
                    break
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _swallow(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(65536):
                pass
