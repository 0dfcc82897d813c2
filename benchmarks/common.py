"""What benchmarks share: somewhere to measure, something to train on, and how it is told."""

import csv
import io
import os
import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil

from flowml_site import embedded
from flowml_site.platform import Platform
from tests.e2e.conftest import Person, free_port
from tests.e2e.test_own_node import start_node

ROOT = Path(__file__).resolve().parents[1]
PREFIX = "flowml-bench-"  # of temporary folders


# --- Somewhere to measure -------------------------------------------------------------------------


@contextmanager
def installation(*, node: bool = True) -> Iterator[tuple[Platform, Person]]:
    """A whole installation in a temporary folder, with a node or without, and who talks to it."""
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        args = [] if node else ["--without-node"]
        platform = Platform(Path(folder) / "var", port=free_port(), args=args)
        platform.start(nodes=int(node))
        try:
            with closing(Person(platform.url, "bench")) as person:
                yield platform, person
        finally:
            platform.stop()


@contextmanager
def own_node(platform: Platform, person: Person) -> Iterator[psutil.Process]:
    """A node of the person's organization, which may put it into a cluster."""
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        token = person.ok("POST", "/api/workers/join-tokens", json={})["token"]
        node = start_node(platform.url, Path(folder), "--token", token, name="bench")
        try:
            person.until(
                "/api/workers",
                lambda found: any(
                    n["state"] == "online" and n["name"] == "bench" for n in found["results"]
                ),
            )
            yield psutil.Process(node.pid)
        finally:
            node.terminate()
            node.wait(30)


@contextmanager
def django_here(**settings: str) -> Iterator[embedded.Services]:
    """Django in this process, set up and migrated, on a PostgreSQL and a Valkey of its own.

    ``settings`` go into the environment, which processes that are started meanwhile inherit.
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        var = Path(folder) / "var"
        for name in ("DATABASE_URL", "REDIS_URL"):
            os.environ.pop(name, None)
        os.environ |= {"FLOWML_VAR": str(var), "SECRET_KEY": "k" * 60, "LOG_LEVEL": "ERROR"}
        os.environ |= {"DEBUG": "0", "DJANGO_SETTINGS_MODULE": "flowml_site.settings", **settings}
        with embedded.Services(var) as services:
            os.environ["DATABASE_URL"] = embedded.database_url(var)
            os.environ["REDIS_URL"] = embedded.redis_url(var) or ""
            import django
            from django.core.management import call_command
            from django.db import connection

            django.setup()
            call_command("migrate", verbosity=0)
            try:
                yield services
            finally:
                connection.close()
                connection.close_pool()


def await_port(port: int, process: "subprocess.Popen[Any]", within_s: float = 120) -> None:
    """Wait until the process listens. Raises RuntimeError where it ends or doesn't."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args!r} does not listen on {port}") from None
            time.sleep(0.1)


# --- Something to train on ------------------------------------------------------------------------


def table(rows: int) -> bytes:
    """A table of 1,000 rows or so, with numbers, a category and missing values."""
    rng = random.Random(7)
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([*(f"x{i}" for i in range(8)), "colour", "label"])
    for _ in range(rows):
        x = [rng.gauss(0, 1) for _ in range(8)]
        colour = rng.choice(["red", "green", "blue"])
        label = "yes" if x[0] + x[1] * x[2] + (colour == "red") + rng.gauss(0, 0.5) > 0 else "no"
        writer.writerow([*(f"{v:.4f}" if rng.random() > 0.02 else "" for v in x), colour, label])
    return out.getvalue().encode()


ONE_ROW: dict[str, Any] = {f"x{i}": 0.5 for i in range(8)} | {"colour": "red"}  # of such a table


def upload(person: Person, content: bytes) -> str:
    """The data set's id, once it is ready."""
    made = person.ok("POST", "/api/datasets/upload", files={"file": ("table.csv", content)})
    ready = person.until(f"/api/datasets/{made['id']}", lambda d: d["state"] != "ingesting")
    assert ready["state"] == "ready", ready
    return str(made["id"])


# --- How it is told -------------------------------------------------------------------------------


def at(share: float, seconds: Sequence[float]) -> float:
    """The percentile of what was measured: 0.95 is what one in twenty passes."""
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def p95(seconds: Sequence[float]) -> float:
    return at(0.95, seconds)


def cpu_s(process: psutil.Process) -> float:
    """Processor time (s) that a process and its children have taken."""
    total = 0.0
    for one in [process, *process.children(recursive=True)]:
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def tell_load() -> None:
    """What else the machine does decides what a clock is worth: stands with every measurement."""
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
