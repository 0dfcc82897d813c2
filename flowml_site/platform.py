"""A whole installation on one machine: services, web, control, beat and a node.

``Supervisor`` runs it in this process (``manage.py up``). ``Platform`` starts and stops that
command for a program that needs an installation beside it: the demo, the tests. No Django here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from flowml_site import embedded, processes
from flowml_site.embedded import BASE_DIR, ServiceError, Services
from flowml_site.processes import Process

if TYPE_CHECKING:
    from redis import Redis

TAG = "FLOWML_UP"  # in the environment of every process that belongs to an installation
SPARE_IDLE_S = 60.0  # how long the spare node stays after it was wanted last
STATIC_STAMP = Path("run", "static.stamp")  # what the collected static files were made from
LOG_MIB = 32  # a log that grows past this becomes <name>.log.1
NOT_FOR_NODES = (
    "DATABASE_URL", "REDIS_URL", "SECRET_KEY", "FLOWML_SIGNING_KEY", "DEMO_PASSWORD",
    "METRICS_TOKEN",
)  # fmt: skip


@dataclass
class Child:
    """A process that is kept running."""

    name: str
    args: list[str]
    env: dict[str, str]
    grace_s: float = 5.0  # how long it may take to end when asked to
    pass_fds: tuple[int, ...] = ()
    death_signal: int = signal.SIGTERM  # what it gets when this process dies
    running: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    failures: int = 0  # in a row
    due_at: float = 0.0  # when to start it again

    @property
    def process(self) -> Process | None:
        """What runs now, if anything does."""
        if self.running is None or self.running.poll() is not None:
            return None
        return Process.of(self.running.pid)


def say(name: str, text: str) -> None:
    """One status line on the terminal."""
    with contextlib.suppress(OSError):  # the terminal may be gone; the platform goes on
        sys.stdout.write(f"{name:<10} {text}\n")
        sys.stdout.flush()


@dataclass
class Supervisor:
    """Starts everything, starts again what dies, and stops everything.

    ``say(name, text)`` gets a short line for each thing that happens. All methods belong to one
    thread, the one that lives longest: children die with the thread that started them.
    """

    var: Path
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any that is free
    debug: bool = False
    without: frozenset[str] = frozenset()
    say: Callable[[str, str], None] = field(default_factory=lambda: say)
    children: dict[str, Child] = field(default_factory=dict)
    url: str = ""
    _services: Services | None = None
    _listening: socket.socket | None = None
    _lock: IO[str] | None = None
    _stops: int = 0  # how often we were asked to stop
    _ready: bool = False
    _mend_at: float = 0.0
    _next_look: float = 0.0
    _spare: Child | None = None  # the node that runs only while nobody else can do the work
    _spare_leaves_at: float = 0.0  # by when it must have ended; 0: it was not asked to

    def run(self) -> None:
        """Start, watch until SIGINT or SIGTERM, stop. Raises ServiceError in one sentence."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._asked_to_stop)
        try:
            self.start()
            while not self._stops:
                self.watch()
                time.sleep(0.1)
        except _Stopped:
            pass
        finally:
            self.stop()

    def _asked_to_stop(self, number: int, frame: object) -> None:
        self._stops += 1

    # --- start

    def start(self) -> None:
        """Start everything and wait until web answers."""
        embedded.make_private(self.var)
        embedded.make_private(self.var / "run")
        self._take_lock()
        self._end_leftovers()
        # What processes counted that are no more: their numbers may soon be somebody else's.
        shutil.rmtree(self.var / "metrics", ignore_errors=True)
        made = embedded.make_secrets(self.var)
        self._listen()
        embedded.check_given()
        env = self._environment(made)
        began = time.monotonic()
        self._services = Services(
            self.var,
            postgres=not embedded.is_given("DATABASE_URL"),
            valkey=not embedded.is_given("REDIS_URL"),
        )
        self._services.start()
        for name in self._services.children:
            self.say(name, f"ready after {time.monotonic() - began:.1f} s")
        self._check_stop()
        self._prepare(env)
        for child in self._plan(env):
            self.children[child.name] = child
            self._launch(child)
        self._await_web()
        self._ready = True
        self._write_state()
        self.say("flowml", f"is up at {self.url}")

    def _take_lock(self) -> None:
        handle = (self.var / "run" / "up.lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.close()
            state = read_state(self.var)
            where = state.get("url") or "an address of its own"
            raise ServiceError(
                f"FlowML runs already in {self.var}: process {state.get('pid', '?')}, at {where}. "
                "Stop it with Ctrl-C there, or set FLOWML_VAR to another folder."
            ) from error
        self._lock = handle

    def _end_leftovers(self) -> None:
        """Processes of an earlier ``up`` that was killed, and that outlived it all the same."""
        found = set(of_installation(self.var))
        for pid, started in read_state(self.var).get("processes", {}).values():
            found.add(Process(pid, started))
        found = {process for process in found if process.is_alive}
        if found:
            self.say("flowml", f"stopping {len(found)} processes that an earlier start left behind")
            processes.end(found, signal.SIGTERM, grace=5)

    def _listen(self) -> None:
        """Open the one socket that all web processes accept from.

        It stays open here: while they are started again, callers wait and are not refused.
        """
        if not 0 <= self.port < 65536:
            raise ServiceError(f"There is no port {self.port}: choose one from 1 to 65535.")
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listening = socket.socket(family, kind, protocol)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(1024)
        except socket.gaierror as error:
            raise ServiceError(
                f"HOST is {self.host}, and no such address is known here."
            ) from error
        except PermissionError as error:
            raise ServiceError(
                f"Port {self.port} is for privileged programs: choose one above 1023, for example "
                "with `make up PORT=8000`."
            ) from error
        except OSError as error:
            by = processes.listener(self.port)
            who = f"process {by[0]} ({by[1]})" if by else "another program"
            raise ServiceError(
                f"Port {self.port} of {self.host} is taken by {who}: stop that, or choose another "
                f"port, for example with `make up PORT={self.port + 1}`."
                if error.errno in {98, 48}
                else f"{self.host}:{self.port} can't be listened on: {error.strerror}."
            ) from error
        self._listening = listening
        self.port = listening.getsockname()[1]
        # Where this machine's own processes reach web, whatever address it listens on.
        near = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)  # noqa: S104
        self.url = f"http://{f'[{near}]' if ':' in near and near[0] != '[' else near}:{self.port}"

    def _environment(self, made: Mapping[str, str]) -> dict[str, str]:
        """What web, control and beat get."""
        defaults = {
            **{k: made[k] for k in ("SECRET_KEY", "FLOWML_SIGNING_KEY", "FLOWML_JOIN_TOKEN")},
            "PUBLIC_URL": self.url,
            "INTERNAL_URL": self.url,
            "DJANGO_SETTINGS_MODULE": "flowml_site.settings",
        }
        # A secret that comes as a file must not be beaten by one that we made.
        defaults = {k: v for k, v in defaults.items() if not embedded.is_given(k)}
        return {
            **os.environ,
            **defaults,
            "FLOWML_VAR": str(self.var),
            "HOST": self.host,
            "PORT": str(self.port),
            "PYTHONUNBUFFERED": "1",
            "FLOWML_SPARE_FILE": str(self._spare_file) if self._may_have_spare() else "",
            TAG: tag_of(self.var),
        }

    def _prepare(self, env: dict[str, str]) -> None:
        """Migrate, and collect static files when they have changed."""
        began = time.monotonic()
        manage = [sys.executable, str(BASE_DIR / "manage.py")]
        steps = {"migrate": [*manage, "migrate", "--noinput", "-v", "1"]}
        stamp, now = self.var / STATIC_STAMP, static_fingerprint()
        if not self.debug and not (stamp.is_file() and stamp.read_text(encoding="ascii") == now):
            steps["static"] = [*manage, "collectstatic", "--noinput", "-v", "0"]
        # So that manage.py starts no services of its own, nor waits for anybody's.
        if not embedded.is_given("DATABASE_URL"):
            env = {**env, "DATABASE_URL": embedded.database_url(self.var)}
        if not embedded.is_given("REDIS_URL"):
            env = {**env, "REDIS_URL": embedded.redis_url(self.var) or ""}
        running = {
            name: processes.spawn(args, log=self._log(name), env=env, cwd=BASE_DIR)
            for name, args in steps.items()
        }
        try:
            while any(child.poll() is None for child in running.values()):
                self._check_stop()
                time.sleep(0.05)
        finally:
            for child in running.values():
                if child.poll() is None:
                    child.terminate()
                    child.wait()
        for name, child in running.items():
            if child.returncode:
                what = {"migrate": "The database", "static": "The static files"}[name]
                raise ServiceError(f"{what} could not be prepared: {last_line(self._log(name))}")
        if "static" in steps:
            stamp.write_text(now, encoding="ascii")
        self.say("database", f"migrated after {time.monotonic() - began:.1f} s")

    def _plan(self, env: dict[str, str]) -> list[Child]:
        """The processes of this installation, in the order of their start."""
        assert self._listening is not None
        python, celery = sys.executable, [sys.executable, "-m", "celery", "-A", "flowml_site"]
        fd = self._listening.fileno()
        daphne = [python, "-m", "daphne", "-v", "0", "--no-server-name", "--fd", str(fd)]
        plan = [
            Child(f"web-{n}", [*daphne, "flowml_site.asgi:application"], env, pass_fds=(fd,))
            for n in range(1, _count("WEB_PROCESSES", 2) + 1)
        ]
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "INFO"]
        size = ["-c", str(_count("CONTROL_PROCESSES", 2))]
        plan.append(
            Child("control", [*celery, "worker", "-Q", "control", *size, *quiet], env, grace_s=10)
        )
        # What may take hours (exports, deleting organizations), one at a time.
        long = ["-Q", "control-long", "-n", "long@%h", "-c", "1"]
        plan.append(Child("control-long", [*celery, "worker", *long, *quiet], env, grace_s=10))
        # On SIGTERM it writes to the database first, and goes on where that has died as well.
        beat = [*celery, "beat", "--pidfile", "", "-l", "INFO"]
        plan.append(Child("beat", beat, env, death_signal=signal.SIGKILL))
        if "node" not in self.without:
            if _node_python().exists():
                plan.append(self._node(env))
            else:
                self.say("node", "left out: .venvs/node is missing (`make venvs` makes it)")
        elif self._may_have_spare():
            self._spare = self._node(env)
            self._spare_file.unlink(missing_ok=True)
        return plan

    def _node(self, env: dict[str, str]) -> Child:
        node_env = {
            key: value
            for key, value in env.items()
            if key.removesuffix("_FILE") not in NOT_FOR_NODES
        }
        node_env |= {
            "FLOWML_URL": self.url,
            "FLOWML_NODE_DIR": str(self.var / "node"),
            "PYTHONPATH": str(BASE_DIR),
        }
        node_env.setdefault("FLOWML_NODE_NAME", "local")
        return Child("node", [str(_node_python()), "-m", "workers.cli"], node_env, grace_s=15)

    # --- the spare node (workers/spare.py)

    @property
    def _spare_file(self) -> Path:
        return self.var / "run" / "spare-wanted"

    def _may_have_spare(self) -> bool:
        """Whether a node may start here although it was left out, as nobody else can do the work.

        By default where the services are ours: that is somebody's own machine.
        """
        ours = not embedded.is_given("DATABASE_URL") and not embedded.is_given("REDIS_URL")
        on = os.environ.get("FLOWML_LOCAL_FALLBACK", "") or str(int(ours))
        if on not in {"0", "1"}:
            raise ServiceError(f"FLOWML_LOCAL_FALLBACK must be 1 or 0, not {on!r}.")
        return on == "1" and "node" in self.without and _node_python().exists()

    def _tend_spare(self, now: float) -> None:
        if self._spare is None:
            return
        try:
            wanted = time.time() - self._spare_file.stat().st_mtime < _spare_idle_s()
        except OSError:
            wanted = False
        node = self._spare
        runs = node.name in self.children
        if wanted:
            self._spare_leaves_at = 0.0
        if wanted and not runs:
            self.say("node", "starts: work waits, and no other node can do it")
            self.children[node.name] = node
            node.failures, node.due_at = 0, 0.0
        elif runs and not wanted:
            if node.running is None:
                del self.children[node.name]
                self._write_state()
                self.say("node", "has ended: nothing waits for it any more")
            elif not self._spare_leaves_at:
                node.running.terminate()  # what it might have begun it hands back
                self._spare_leaves_at = now + node.grace_s
            elif now > self._spare_leaves_at:
                node.running.kill()

    def _launch(self, child: Child) -> None:
        self._rotate(child.name)
        child.running = processes.spawn(
            child.args,
            log=self._log(child.name),
            env=child.env,
            cwd=BASE_DIR,
            death_signal=child.death_signal,
            pass_fds=child.pass_fds,
        )
        child.started_at = time.monotonic()
        self._write_state()

    def _await_web(self) -> None:
        deadline = time.monotonic() + 120
        while not answers(self.url):
            self._check_stop()
            self.watch()
            for child in self.children.values():
                if child.name.startswith("web") and child.failures >= 3:
                    raise ServiceError(
                        f"Web does not start: {last_line(self._log(child.name))} "
                        f"(see {self._log(child.name)})"
                    )
            if time.monotonic() > deadline:
                raise ServiceError(f"Web did not answer within 120 s (see {self._log('web-1')}).")
            time.sleep(0.05)

    def _check_stop(self) -> None:
        if self._stops:
            raise _Stopped

    # --- watch

    def watch(self) -> None:
        """Start again what has ended. Call it a few times a second."""
        now = time.monotonic()
        if self._services is not None and now >= self._mend_at:
            try:
                for name in self._services.mend():
                    self.say(name, "had ended; started again")
                    self._write_state()
            except (ServiceError, OSError) as error:
                self.say("services", f"{error} Trying again in 5 s.")
                self._mend_at = now + 5
        for child in self.children.values():
            if child.running is None:
                if now >= child.due_at:
                    self._launch(child)
            elif (status := child.running.poll()) is not None:
                self._has_ended(child, status, now)
        self._tend_spare(now)
        if now >= self._next_look:
            self._next_look = now + 60
            for name in [*self.children, "postgres", "valkey", "up"]:
                self._rotate(name)

    def _has_ended(self, child: Child, status: int, now: float) -> None:
        assert child.running is not None
        leader = Process(child.running.pid, -1)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader.pid, signal.SIGKILL)  # what it left of its group
        for gauge in (self.var / "metrics").glob(f"gauge_live*_{leader.pid}.db"):
            gauge.unlink(missing_ok=True)  # its open sockets are closed; its counts stay
        child.running = None
        if child is self._spare and self._spare_leaves_at:
            return  # it was asked to
        child.failures = 0 if now - child.started_at > 60 else child.failures
        wait = 0.0 if child.failures == 0 else min(0.5 * 2 ** (child.failures - 1), 30)
        child.failures += 1
        child.due_at = now + wait
        how = f"signal {-status}" if status < 0 else f"status {status}"
        when = f"in {wait:.0f} s" if wait >= 1 else "now"
        self.say(
            child.name, f"ended ({how}); starting it again {when}, see {self._log(child.name)}"
        )

    def _log(self, name: str) -> Path:
        return self.var / "logs" / f"{name}.log"

    def _rotate(self, name: str) -> None:
        """Copy and empty: the child goes on writing to the same open file (it appends)."""
        log = self._log(name)
        with contextlib.suppress(OSError):
            if log.stat().st_size > LOG_MIB * 2**20:
                shutil.copyfile(log, log.with_suffix(".log.1"))
                os.truncate(log, 0)

    def _write_state(self) -> None:
        known = {name: child.process for name, child in self.children.items()}
        if self._services is not None:
            known |= {
                name: Process.of(child.pid) for name, child in self._services.children.items()
            }
        running = {name: (p.pid, p.started) for name, p in known.items() if p is not None}
        state = {"pid": os.getpid(), "url": self.url, "ready": self._ready, "processes": running}
        embedded.write_private(self.var / "run" / "up.json", json.dumps(state, indent=1))
        embedded.write_private(self.var / "run" / "up.pid", f"{os.getpid()}\n")

    # --- stop

    def stop(self) -> None:
        """Stop everything; asked to stop a second time meanwhile, at once."""
        if self._lock is None:
            return
        if self.children:
            self.say("flowml", "stopping")
        # The node first, so that it can still give its work back; then what serves it.
        for names in (("beat", "node"), ("control",), ("web",)):
            group = [c for c in self.children.values() if c.name.partition("-")[0] in names]
            self._stop(group)
        self.children.clear()
        if self._services is not None:
            self._services.stop()
            self._services = None
        processes.end(of_installation(self.var), signal.SIGKILL, grace=5)
        if self._listening is not None:
            self._listening.close()
        for name in ("up.pid", "up.json"):
            (self.var / "run" / name).unlink(missing_ok=True)
        if self._ready:
            self.say("flowml", "has stopped")
        self._lock.close()
        self._lock = None

    def _stop(self, group: list[Child]) -> None:
        for child in group:
            if child.running is not None and child.running.poll() is None:
                child.running.terminate()
        asked, before = time.monotonic(), self._stops
        for child in group:
            if child.running is None:
                continue
            while child.running.poll() is None:
                if time.monotonic() > asked + child.grace_s or self._stops > max(before, 1):
                    break
                time.sleep(0.02)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.running.pid, signal.SIGKILL)
            child.running.wait()


class _Stopped(Exception):
    """Asked to stop while starting."""


def of_installation(var: Path) -> list[Process]:
    """Every process that the ``up`` of this folder, an earlier one too, has started."""
    from workers.node import settings as node

    # The node's children have a clean environment, and a mark of its own in it.
    settings = {"FLOWML_URL": "http://localhost", "FLOWML_NODE_DIR": str(var / "node")}
    name, _, value = node.read(settings, 1).mark.partition("=")
    return [*processes.tagged(TAG, tag_of(var)), *processes.tagged(name, value)]


def tag_of(var: Path) -> str:
    """What an installation's processes have as TAG."""
    return hashlib.sha256(os.fsencode(var)).hexdigest()[:24]


def _node_python() -> Path:
    venvs = Path(os.environ.get("FLOWML_VENVS") or BASE_DIR / ".venvs")
    return venvs / "node" / "bin" / "python"


def _spare_idle_s() -> float:
    return float(os.environ.get("FLOWML_SPARE_IDLE_SECONDS") or SPARE_IDLE_S)


def _count(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if text and not (text.isdigit() and int(text) > 0):
        raise ServiceError(f"{name} must be a whole number above 0, not {text!r}.")
    return int(text or default)


def static_fingerprint() -> str:
    """Changes when a static file of ours, or a package that brings some, does."""
    digest = hashlib.sha256((BASE_DIR / "requirements" / "web.txt").read_bytes())
    for path in sorted((BASE_DIR / "static").rglob("*")):
        if path.is_file():
            status = path.stat()
            digest.update(f"{path}\0{status.st_mtime_ns}\0{status.st_size}\n".encode())
    return digest.hexdigest()


def last_line(log: Path) -> str:
    """The last line of a log that says something: mostly the error."""
    with contextlib.suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return "it said nothing"


def answers(url: str) -> bool:
    """Whether a web process answers at ``url``."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
    try:
        connection.request("GET", "/health/live")
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def read_state(var: Path) -> dict[str, Any]:
    """What the ``up`` of this folder wrote last; empty when there is none, or a damaged one."""
    try:
        return dict(json.loads((var / "run" / "up.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


# --- From outside --------------------------------------------------------------------------------


class Platform:
    """An installation in ``var``, run by a ``manage.py up`` of its own.

    A context manager, or ``start()`` and ``stop()``. It ends when this process does.
    """

    def __init__(
        self,
        var: Path,
        port: int = 0,
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
    ) -> None:
        self.var = var.resolve()
        self.args = list(args)  # for `manage.py up`
        self.port = port
        self.env = dict(env or {})
        self._up: subprocess.Popen[bytes] | None = None
        self._heard = 0  # how far up.log has been passed on

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Web's address on this machine, without a slash at the end."""
        return str(read_state(self.var)["url"])

    def is_running(self) -> bool:
        """Whether somebody's ``up`` runs this folder now, started by us or not."""
        state = read_state(self.var)
        return bool(state.get("ready")) and Process.of(int(state.get("pid", 0))) is not None

    def _is_ours(self) -> bool:
        return self._up is not None and read_state(self.var).get("pid") == self._up.pid

    def start(
        self, timeout: float = 180, *, nodes: int = 1, say: Callable[[str], None] | None = None
    ) -> None:
        """Start, and wait until web answers and ``nodes`` nodes are alive. Raises ServiceError.

        ``say`` gets the lines that ``up`` prints meanwhile.
        """
        embedded.make_private(self.var)
        inherited = dict(os.environ)
        if "PYTEST_VERSION" in inherited:
            # Tests have services and secrets of their own, which are not for this installation.
            dropped = {*NOT_FOR_NODES, "FLOWML_JOIN_TOKEN"}
            dropped |= {name for name in inherited if name.startswith("PYTEST_")}
            inherited = {k: v for k, v in inherited.items() if k not in dropped}
        env = {**inherited, "FLOWML_VAR": str(self.var), "PORT": str(self.port), **self.env}
        log = self.var / "logs" / "up.log"
        self._heard = log.stat().st_size if log.exists() else 0
        self._up = processes.spawn(
            [sys.executable, str(BASE_DIR / "manage.py"), "up", *self.args],
            log=log,
            env=env,
            cwd=BASE_DIR,
        )
        deadline = time.monotonic() + timeout
        while not (self._is_ours() and self.is_running() and self.nodes_alive() >= nodes):
            self.pass_on(say)
            if self._up.poll() is not None:
                raise ServiceError(last_line(log).removeprefix("CommandError: "))
            if time.monotonic() > deadline:
                self.stop()
                raise ServiceError(f"FlowML was not up within {timeout:.0f} s (see {log}).")
            time.sleep(0.1)
        self.pass_on(say)

    def pass_on(self, say: Callable[[str], None] | None) -> None:
        """Give ``say`` the lines that our ``up`` has printed since the last time."""
        if say is None or self._up is None:
            return
        with contextlib.suppress(OSError), (self.var / "logs" / "up.log").open("rb") as log:
            log.seek(self._heard)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self._heard += len(line)
                if not line.startswith(b"CommandError: "):  # that one is raised
                    say(line.decode(errors="replace").rstrip())

    def stop(self, say: Callable[[str], None] | None = None) -> None:
        """Stop everything and wait for it; nothing happens when it is not ours."""
        if self._up is None:
            return
        if self._up.poll() is None:
            self._up.terminate()
        try:
            self._up.wait(90)
        except subprocess.TimeoutExpired:
            self._up.kill()
            self._up.wait()
        self.pass_on(say)
        self._up = None

    def process(self, name: str) -> Process:
        """The process that runs as ``name`` now: web-1, web-2, control, control-long, beat, node,
        postgres, valkey, up. Raises LookupError when there is none at the moment."""
        state = read_state(self.var)
        if name == "up":
            found = Process.of(state.get("pid", 0))
        else:
            known = state.get("processes", {}).get(name)
            found = Process(*known) if known else None
        if found is None or not found.is_alive:
            raise LookupError(f"{name} does not run")
        return found

    def log(self, name: str) -> str:
        """What ``name`` has written so far."""
        return (self.var / "logs" / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def nodes_alive(self) -> int:
        """How many nodes web hears; -1 when it does not say."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
        try:
            connection.request("GET", "/health")
            return int(json.loads(connection.getresponse().read())["parts"]["nodes"]["alive"])
        except (OSError, http.client.HTTPException, ValueError, LookupError):
            return -1
        finally:
            connection.close()

    def redis(self) -> Redis:
        """A client of its Valkey."""
        from redis import Redis

        return Redis.from_url(embedded.redis_url(self.var) or "")
