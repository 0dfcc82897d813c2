"""How quickly a deployment answers, beside a bare app with the same model.

Starts a whole platform in a temporary folder, trains on a table of 1,000 rows, deploys the best
model that is no blend, and asks for one row a request over 1, 16 and 64 kept connections: FlowML
with all that it does (sign-in, tenancy, limits, counting, samples), and a Starlette app under
uvicorn that does nothing but predict with the very same files in the engine's virtualenv.

    python -m benchmarks.serving [--seconds 10]
"""

import argparse
import asyncio
import io
import json
import os
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.common import (
    ONE_ROW,
    PREFIX,
    ROOT,
    at,
    await_port,
    free_port,
    installation,
    own_node,
    table,
    tell_load,
    upload,
)
from flowml_site.platform import Platform
from tests.e2e.conftest import Person

CONNECTIONS = (1, 16, 64)


async def load(
    host: str, request: bytes, connections: int, seconds: float
) -> tuple[list[float], list[bytes]]:
    """Seconds that each request took, of so many connections that ask without a pause; and the
    bodies of those that failed, which don't count."""
    name, port = host.split(":")
    taken: list[float] = []
    failed: list[bytes] = []
    until = time.perf_counter() + seconds

    async def ask() -> None:
        reader, writer = await asyncio.open_connection(name, int(port))
        while (began := time.perf_counter()) < until:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            lower = head.lower()
            length = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
            answer = await reader.readexactly(length)
            if head.split(b" ", 2)[1] == b"200":
                taken.append(time.perf_counter() - began)
            else:
                failed.append(answer)
        writer.close()

    await asyncio.gather(*(ask() for _ in range(connections)))
    return taken, failed


def report(name: str, host: str, path: str, body: bytes, token: str, seconds: float) -> float:
    """Print how it did; returns the median of one connection, in ms."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    head += f"Authorization: {token}\r\n" if token else ""
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    asyncio.run(load(host, request, 4, 2))  # warm
    first = 0.0
    for connections in CONNECTIONS:
        taken, failed = asyncio.run(load(host, request, connections, seconds))
        p50, p95, p99 = (1000 * at(share, taken) for share in (0.5, 0.95, 0.99))
        first = first or p50
        print(
            f"{name:<24} {connections:>3} connections  {len(taken) / seconds:8.0f} rows/s   "
            f"p50 {p50:7.1f}   p95 {p95:7.1f}   p99 {p99:7.1f} ms",
            flush=True,
        )
        if failed:
            print(f"  {len(failed)} failed, the first with {failed[0][:300]!r}", flush=True)
    return first


@contextmanager
def bare(engine: str, artifact: bytes, folder: Path) -> Iterator[str]:
    """The host of a bare app with the model of a downloaded artifact."""
    peers = folder / "peers"
    uv = ROOT / ".venvs" / "tools" / "bin" / "uv"
    python = ROOT / ".venvs" / engine / "bin" / "python"
    lock = ROOT / "benchmarks" / "peers.txt"
    subprocess.run(
        [uv, "pip", "install", "-q", "--python", python, "--target", peers, "-r", lock], check=True
    )
    with zipfile.ZipFile(io.BytesIO(artifact)) as found:
        found.extractall(folder / "model")
    (schema,) = (folder / "model").rglob("schema.json")
    port = free_port()
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{peers}"}
    command = [python, ROOT / "benchmarks" / "bare_model.py", schema.parent, str(port)]
    app = subprocess.Popen(command, env=env)
    try:
        await_port(port, app)
        yield f"127.0.0.1:{port}"
    finally:
        app.terminate()
        app.wait(20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    seconds = parser.parse_args().seconds
    tell_load()
    with installation(node=False) as (platform, person), own_node(platform, person):
        measure(platform, person, seconds)
    tell_load()


def measure(platform: Platform, person: Person, seconds: float) -> None:
    data = upload(person, table(1000))
    job = person.train(data, "label", time_budget=20)
    person.ended(job, within=180)
    model: Any = next(one for one in person.leaderboard(job) if one["engine"] != "ensemble")
    print(f"model: {model['name']}, {model['engine']}", flush=True)
    path = deploy(person, model["id"])
    body = json.dumps({"rows": [ONE_ROW]}).encode()
    token = person.headers["Authorization"]
    ours = report("FlowML", urlsplit(platform.url).netloc, f"{path}/predict", body, token, seconds)
    answer = person.ok("POST", f"{path}/predict", json={"rows": [ONE_ROW]})
    artifact = person.get(f"/api/results/model/{model['id']}/download").content
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX) as place,
        bare(model["engine"], artifact, Path(place)) as host,
    ):
        peer = report("peer: bare Starlette", host, "/predict", body, "", seconds)
    print(f"of FlowML's time: {answer['ms']}   p50, FlowML beside bare: {ours / peer:.1f}")


def deploy(person: Person, model: str) -> str:
    """The address of a deployment of the model, once it runs."""
    nodes = [node["id"] for node in person.ok("GET", "/api/workers")["results"]]
    person.ok("POST", "/api/clusters/", json={"name": "lab", "node_ids": nodes})
    wish = {"name": "bench", "model": model, "required_ram_gb": 0.5, "required_cpu_cores": 0.1,
            "max_in_flight": 1000}  # fmt: skip
    made = person.ok("POST", "/api/deployments/", json=wish)
    path = f"/api/deployments/{made['id']}"
    person.until(path, lambda one: one["state"] == "running", within=120)
    return path


if __name__ == "__main__":
    main()
