"""How quickly a deployment answers, beside MLflow's scoring server and a bare app.

Starts a whole platform in a temporary folder, trains scikit-learn's network on a table of 1,000
rows, deploys it, and asks for one row a request over 1, 16 and 64 kept connections:

* bare: a Starlette app under uvicorn that does nothing but predict with the very same files;
* MLflow: ``mlflow models serve`` of a pyfunc model that makes the same call, with a signature;
* model server: the node's own socket, as web asks it, without web;
* FlowML: through web, with all that it does (sign-in, tenancy, limits, counting, samples), a
  replica on the platform's node, whose socket web opens;
* FlowML, own node: the same on a node of the organization, which web asks over its WebSocket.

They take turns, so that what else the machine does falls on all alike; and beside the clock stands
the processor time that a request takes of all the processes that serve it.

    python -m benchmarks.serving [--seconds 12] [--turns 4] [--connections 1,16,64]

Limits: p50 of one connection ahead of MLflow's by 3 times, the model server alone within 1.5 times
of the bare app, and web adds at most 8 ms, aiming at 2.
"""

import argparse
import asyncio
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg

from benchmarks.common import (
    ONE_ROW,
    PREFIX,
    ROOT,
    at,
    await_port,
    cpu_s,
    free_port,
    installation,
    own_node,
    table,
    tell_load,
    upload,
)
from flowml_site import embedded
from flowml_site.platform import Platform
from tests.e2e.conftest import Person

ENGINE = "sklearn"
UV = ROOT / ".venvs" / "tools" / "bin" / "uv"
AHEAD, OF_BARE, ADDED_MS = 3.0, 1.5, 8.0


@dataclass
class Server:
    """Who is asked: ``where`` is host:port or the path of a Unix socket."""

    name: str
    where: str
    path: str
    body: Mapping[str, Any]
    processes: Sequence[psutil.Process]
    token: str = ""
    took: list[float] = field(default_factory=list)  # s, of the connections that are measured now
    failed: list[bytes] = field(default_factory=list)
    asked_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def request(self) -> bytes:
        body = json.dumps(self.body).encode()
        head = f"POST {self.path} HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\n"
        head = head if self.where.startswith("/") else head.replace("node", self.where)
        head += f"Authorization: {self.token}\r\n" if self.token else ""
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    async def load(self, connections: int, seconds: float) -> None:
        """Ask over so many connections, without a pause."""
        request = self.request
        until = time.perf_counter() + seconds

        async def ask() -> None:
            if self.where.startswith("/"):
                reader, writer = await asyncio.open_unix_connection(self.where)
            else:
                reader, writer = await asyncio.open_connection(*self.where.split(":"))
            while (began := time.perf_counter()) < until:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                answer = await reader.readexactly(length)
                if head.split(b" ", 2)[1] == b"200":
                    self.took.append(time.perf_counter() - began)
                else:
                    self.failed.append(answer)
            writer.close()

        before = sum(map(cpu_s, self.processes))
        await asyncio.gather(*(ask() for _ in range(connections)))
        self.cpu_s += sum(map(cpu_s, self.processes)) - before
        self.asked_s += seconds

    def forget(self) -> None:
        self.took, self.failed, self.asked_s, self.cpu_s = [], [], 0.0, 0.0

    def report(self, connections: int) -> float:
        """Print how it did; returns the median, in ms."""
        if not self.took:
            sys.exit(f"{self.name} did not answer: {self.failed[:1]!r}")
        p50, p95, p99 = (1000 * at(share, self.took) for share in (0.5, 0.95, 0.99))
        print(
            f"{self.name:<22} {connections:>3} connections {len(self.took) / self.asked_s:7.0f} "
            f"rows/s   p50 {p50:7.2f}   p95 {p95:7.2f}   p99 {p99:7.2f} ms   "
            f"cpu {1000 * self.cpu_s / len(self.took):6.2f} ms",
            flush=True,
        )
        if self.failed:
            print(f"  {len(self.failed)} failed, the first with {self.failed[0][:300]!r}")
        return p50


# --- Peers ----------------------------------------------------------------------------------------


@contextmanager
def bare(model: Path) -> Iterator[Server]:
    """A bare app with the unpacked model, in the engine's virtualenv."""
    with tempfile.TemporaryDirectory(prefix=PREFIX) as peers:
        python = ROOT / ".venvs" / ENGINE / "bin" / "python"
        lock = ROOT / "benchmarks" / "peers.txt"
        install = ["--python", python, "--target", peers, "-r", lock]
        subprocess.run([UV, "pip", "install", "-q", *install], check=True)
        command = [python, ROOT / "benchmarks" / "bare_model.py", model]
        with listening(command, f"{ROOT}:{peers}") as (port, process):
            where = f"127.0.0.1:{port}"
            body = {"rows": [ONE_ROW]}
            yield Server("peer: bare Starlette", where, "/predict", body, [process])


@contextmanager
def mlflow(model: Path) -> Iterator[Server]:
    """MLflow's scoring server with the unpacked model, in a virtualenv made for it."""
    with tempfile.TemporaryDirectory(prefix=PREFIX) as place:
        python = Path(place) / "venv" / "bin" / "python"
        base = ROOT / ".venvs" / ENGINE / "bin" / "python"
        subprocess.run([UV, "venv", "-q", "--python", base, python.parents[1]], check=True)
        locks = [ROOT / "requirements" / f"engine-{ENGINE}.txt", ROOT / "benchmarks" / "mlflow.txt"]
        install = ["--python", python, "-r", locks[0], "-r", locks[1]]
        subprocess.run([UV, "pip", "install", "-q", *install], check=True)
        made = Path(place) / "model"
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        make = [python, ROOT / "benchmarks" / "mlflow_model.py", model, made, json.dumps(ONE_ROW)]
        subprocess.run(make, check=True, env=env, cwd=place, stderr=subprocess.DEVNULL)
        serve = [python, "-m", "mlflow", "models", "serve", "-m", made, "--env-manager", "local"]
        env["PATH"] = f"{python.parent}:{env['PATH']}"
        with listening([*serve, "-p"], str(ROOT), env["PATH"], place) as (port, process):
            body = {"dataframe_split": {"columns": [*ONE_ROW], "data": [[*ONE_ROW.values()]]}}
            where = f"127.0.0.1:{port}"
            yield Server("peer: MLflow", where, "/invocations", body, [process])


@contextmanager
def listening(
    command: Sequence[Any], pythonpath: str, path: str = "", cwd: Any = None
) -> Iterator[tuple[int, psutil.Process]]:
    """The command with a port as its last argument, once it listens there."""
    port = free_port()
    env = {**os.environ, "PYTHONPATH": pythonpath} | ({"PATH": path} if path else {})
    log = subprocess.DEVNULL
    process = subprocess.Popen([*command, str(port)], env=env, cwd=cwd, stdout=log, stderr=log)
    try:
        await_port(port, process)
        yield port, psutil.Process(process.pid)
    finally:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.terminate()
        process.wait(20)


# --- FlowML ---------------------------------------------------------------------------------------


def trained(person: Person) -> tuple[str, bytes]:
    """A network's id and its files, as they are downloaded."""
    data = upload(person, table(1000))
    body = {"model_type": "mlp", "dataset": data, "hyperparameters": {}, "target": "label"}
    job = person.ok("POST", "/api/jobs/training", json=body)["training_job"]
    assert person.ended(job, within=180)["state"] == "succeeded"
    model: Any = next(one for one in person.leaderboard(job) if "mlp" in one["key"])
    print(f"model: {model['name']}, {model['engine']}", flush=True)
    return model["id"], person.get(f"/api/results/model/{model['id']}/download").content


def deploy(person: Person, name: str, model: str, node: str) -> str:
    """The address of a deployment of the model on this node alone, once it runs."""
    cluster = person.ok("POST", "/api/clusters/", json={"name": name, "node_ids": [node]})["id"]
    wish = {"name": name, "model": model, "cluster_id": cluster, "required_ram_gb": 0.5,
            "required_cpu_cores": 0.1, "max_in_flight": 1000}  # fmt: skip
    made = person.ok("POST", "/api/deployments/", json=wish)
    path = f"/api/deployments/{made['id']}"
    person.until(path, lambda one: one["state"] == "running", within=120)
    return path


def asked_of_node(database: Any, deployment: str) -> dict[str, Any]:
    """What web sends to the node for one row: see clusters/serving.py."""
    found = database.execute(
        "SELECT r.id, a.id, a.sha256, a.signature, m.engine, m.organization_id"
        "  FROM clusters_replica r JOIN clusters_revision v ON v.id = r.revision_id"
        "  JOIN training_trainedmodel m ON m.id = v.model_id"
        "  JOIN workers_artifact a ON a.id = m.artifact_id WHERE r.deployment_id = %s",
        [deployment],
    ).fetchone()
    names = ("replica", "artifact", "sha256", "signature", "engine", "organization")
    said = dict(zip(names, map(str, found), strict=True))
    rows = {"columns": [*ONE_ROW], "rows": [[*ONE_ROW.values()]]}
    return {"replica": said.pop("replica"), "model": said, **rows}


def ours(platform: Platform, person: Person, stack: ExitStack) -> tuple[list[Server], Path]:
    """The model server and web with either kind of node; and the folder of the model."""
    database = stack.enter_context(
        psycopg.connect(embedded.database_url(platform.var), autocommit=True)
    )
    # Only an operator puts the platform's own nodes into a cluster.
    database.execute("UPDATE accounts_user SET is_staff = true, is_superuser = true")
    model, artifact = trained(person)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX)))
    with zipfile.ZipFile(io.BytesIO(artifact)) as found:
        found.extractall(folder)
    (schema,) = folder.rglob("schema.json")
    [(theirs, socket)] = database.execute("SELECT id, address FROM workers_worker").fetchall()
    joined = stack.enter_context(own_node(platform, person))
    [(mine,)] = database.execute(
        "SELECT id FROM workers_worker WHERE organization_id IS NOT NULL"
    ).fetchall()
    shared, own = (
        deploy(person, "shared", model, str(theirs)),
        deploy(person, "own", model, str(mine)),
    )
    token, where = person.headers["Authorization"], urlsplit(platform.url).netloc
    web = [
        psutil.Process(platform.process(name).pid)
        for name in ("web-1", "web-2", "postgres", "valkey")
    ]
    node = psutil.Process(platform.process("node").pid)
    ask = asked_of_node(database, shared.rsplit("/", 1)[1])
    rows = {"rows": [ONE_ROW]}
    servers = [
        Server("model server", socket.removeprefix("unix:"), "/predict", ask, [node]),
        Server("FlowML", where, f"{shared}/predict", rows, [*web, node], token),
        Server("FlowML, own node", where, f"{own}/predict", rows, [*web, joined], token),
    ]
    return servers, schema.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=12, help="of each line")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--connections", default="1,16,64")
    asked = parser.parse_args()
    tell_load()
    first: dict[str, float] = {}
    with installation() as (platform, person), ExitStack() as stack:
        mine, model = ours(platform, person, stack)
        servers = [stack.enter_context(bare(model)), stack.enter_context(mlflow(model)), *mine]
        for one in servers:
            asyncio.run(one.load(4, 2))  # warm
        for connections in map(int, asked.connections.split(",")):
            for one in servers:
                one.forget()
            for _ in range(asked.turns):
                for one in servers:
                    asyncio.run(one.load(connections, asked.seconds / asked.turns))
            for one in servers:
                p50 = one.report(connections)
                first.setdefault(one.name, p50)
    tell_load()
    base, theirs, alone, web, _ = first.values()
    print(
        f"MLflow / FlowML: x {theirs / web:.1f} through web, x {theirs / alone:.1f} the model "
        f"server   limit: x {AHEAD:g}\n"
        f"model server / bare: x {alone / base:.2f}   limit: x {OF_BARE:g}\n"
        f"web adds {web - alone:.1f} ms   limit: {ADDED_MS:g} ms, aim 2"
    )
    kept = theirs / web >= AHEAD and alone / base <= OF_BARE and web - alone <= ADDED_MS
    sys.exit(0 if kept else "A limit was missed.")


if __name__ == "__main__":
    main()
