"""A PostgreSQL that listens on loopback and wants a password: somebody's warehouse."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from flowml_site import embedded, processes
from pipelines import reach

PASSWORD = "s3cret-of-the-warehouse"


class Server:
    def __init__(self, port: int) -> None:
        self.port = port
        self.rules = reach.parse(f"localhost:{port} warehouse.example.org:{port}")
        self.settings: dict[str, Any] = {
            "host": "localhost", "port": port, "database": "postgres", "user": "postgres",
        }  # fmt: skip

    def run(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        """As its own people would, past everything that is tested."""
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", password=PASSWORD, autocommit=True
        ) as db:
            cursor = db.execute(sql, params or None)
            return cursor.fetchall() if cursor.description else []


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    data, secret, log = folder / "data", folder / "password", folder / "log"
    data.mkdir(mode=0o700)
    secret.write_text(PASSWORD)
    identity = embedded.Services(folder, postgres=True, valkey=False)._postgres_identity()
    if identity is not None:
        for path in (data, secret):
            os.chown(path, identity.uid, identity.gid)
    at, env = embedded._postgres_bin(), embedded._plain_env()
    command = [str(at / "initdb"), "-D", str(data), "-U", "postgres", "--no-sync"]
    command += ["--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8", "--locale=C"]
    assert processes.spawn(command, log=log, identity=identity, env=env).wait() == 0, (
        log.read_text()
    )
    port = processes.free_port()
    command = [str(at / "postgres"), "-D", str(data), "-p", str(port)]
    for setting in ("listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"):
        command += ["-c", setting]
    child = processes.spawn(
        command, log=log, identity=identity, env=env, death_signal=signal.SIGINT
    )
    server = Server(port)
    try:
        for _ in range(600):
            try:
                server.run("SELECT 1")
                break
            except psycopg.OperationalError:
                time.sleep(0.1)
        yield server
    finally:
        child.send_signal(signal.SIGINT)
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
