"""What 1,000 nodes cost web that only say that they live.

One web process (daphne) on a PostgreSQL and a Valkey of its own; 1,000 nodes, half of which run a
task, each send a heartbeat every 5 s, spread evenly, over kept connections. Told are the processor
time that web spends, as a share of a core and for each heartbeat, and how long an answer takes.

    python -m benchmarks.heartbeats [--nodes 1000] [--every 5] [--seconds 30]
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from typing import Any

import psutil

from benchmarks.common import ROOT, await_port, cpu_s, django_here, free_port, p95, tell_load


def prepare(count: int) -> list[bytes]:
    """Nodes, every other with a task that runs; the request of each."""
    from datetime import timedelta

    from django.utils import timezone

    from organizations.models import Organization
    from workers.models import Stream, Task, Worker

    organization = Organization.objects.create(name="bench")
    stream = Stream.objects.create(topic="bench", organization=organization)
    nodes = Worker.objects.bulk_create(
        Worker(
            name=f"node{n}",
            token_hash=Worker.hash_token(f"token{n}"),
            capabilities={"cpu": 16, "ram_mib": 65536},
            queues=["priority", "pycaret.cpu", "cpu"],
        )
        for n in range(count)
    )
    lease = timezone.now() + timedelta(hours=1)
    tasks = Task.objects.bulk_create(
        Task(
            organization=organization,
            stream=stream,
            kind="bench",
            subject=organization.pk,
            queue="cpu",
            state="running",
            worker=node,
            lease_expires_at=lease,
        )
        for node in nodes[::2]
    )
    running = {task.worker_id: str(task.pk) for task in tasks}
    requests = []
    for n, node in enumerate(nodes):
        held = [{"task": running[node.pk], "attempt": 1}] if node.pk in running else []
        body = json.dumps({"running": held, "usage": {"load": 1.5, "ram_used_mib": 4096}})
        requests.append(
            (
                f"POST /api/workers/heartbeat HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                f"Authorization: Worker token{n}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n{body}"
            ).encode()
        )
    return requests


async def node(port: int, request: bytes, every: float, until: float, took: list[float]) -> None:
    await asyncio.sleep(random.random() * every)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.monotonic() < until:
        began = time.monotonic()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head.split(b"\r\n")[0], head
        length = next(
            int(line.split(b":")[1])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length")
        )
        await reader.readexactly(length)
        took.append(time.monotonic() - began)
        await asyncio.sleep(max(0.0, every - took[-1]))
    writer.close()


def measure(port: int, web: psutil.Process, database: psutil.Process, asked: Any) -> None:
    requests = prepare(asked.nodes)
    took: list[float] = []

    async def everybody() -> tuple[float, float, float]:
        until = time.monotonic() + asked.every + asked.seconds
        nodes = [asyncio.create_task(node(port, one, asked.every, until, took)) for one in requests]
        await asyncio.sleep(asked.every)  # all are connected
        took.clear()
        began, spent, theirs = time.monotonic(), cpu_s(web), cpu_s(database)
        await asyncio.sleep(asked.seconds)
        lasted = time.monotonic() - began
        result = (len(took) / lasted, (cpu_s(web) - spent) / lasted, cpu_s(database) - theirs)
        await asyncio.gather(*nodes)
        return result[0], result[1], result[2] / lasted

    rate, share, theirs = asyncio.run(everybody())
    print(
        f"{asked.nodes:,} nodes every {asked.every:g} s: {rate:.0f} heartbeats a second\n"
        f"web: {share:.0%} of a core, {1000 * share / rate:.1f} ms each   database {theirs:.0%}\n"
        f"answer: median {1000 * statistics.median(took):.1f} ms   p95 {1000 * p95(took):.1f} ms   "
        f"n={len(took)}   (of it 20 ms are the gathering)",
        flush=True,
    )
    tell_load()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--every", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    asked = parser.parse_args()
    port = free_port()
    with django_here(PUBLIC_URL=f"http://127.0.0.1:{port}") as services:
        command = [sys.executable, "-m", "daphne", "-v", "0", "-p", str(port)]
        web = subprocess.Popen([*command, "flowml_site.asgi:application"], cwd=ROOT)
        try:
            await_port(port, web)
            database = psutil.Process(services.children["postgres"].pid)
            measure(port, psutil.Process(web.pid), database, asked)
        finally:
            web.terminate()
            web.wait(20)


if __name__ == "__main__":
    main()
