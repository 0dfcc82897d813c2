"""How long a person waits: job start, first leaderboard row, one prediction.

Starts a whole platform in a temporary folder and measures from outside, over HTTP, as clients do:

* from ``POST /api/training/start`` until the child runs on an idle, warm node, beside the round
  trip of a task that returns at once on a bare Celery worker at the same broker;
* until the first leaderboard row on a table of 1,000 rows;
* one row predicted over a kept connection, beside the time that the model itself took.

    python -m benchmarks.latency [--jobs 20] [--predictions 300]
"""

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from websockets.sync.client import connect

from benchmarks.common import ONE_ROW, ROOT, installation, p95, table, tell_load, upload
from flowml_site import embedded
from flowml_site.platform import Platform
from tests.e2e.conftest import Person


def spread(name: str, seconds: Sequence[float], limit: str) -> None:
    print(
        f"{name:<52} median {1000 * statistics.median(seconds):7.1f} ms   "
        f"p95 {1000 * p95(seconds):7.1f} ms   n={len(seconds)}   limit: {limit}",
        flush=True,
    )


def started_at(platform: Platform, person: Person, job: str) -> float:
    """When the child ran, by the node's clock, which is ours: seconds since the epoch."""
    ticket = person.ok("POST", "/api/live-ticket")["ticket"]
    with connect(f"{platform.url.replace('http', 'ws', 1)}/ws?ticket={ticket}") as socket:
        socket.send(json.dumps({"subscribe": f"job:{job}", "after": 0}))
        while True:
            event = json.loads(socket.recv(timeout=20))
            if event["type"] == "started":
                return datetime.fromisoformat(event["at"]).timestamp()


def measure_jobs(platform: Platform, person: Person, data: str, jobs: int) -> None:
    running, first_row = [], []
    for _ in range(jobs):
        sent = time.time()
        job = person.train(data, "label", time_budget=60)
        person.until(f"/api/results/job/{job}/leaderboard", lambda rows: rows["count"] >= 1)
        first_row.append(time.time() - sent)
        running.append(started_at(platform, person, job) - sent)
        person.ok("POST", f"/api/training/{job}/cancel")
        person.ended(job)
        time.sleep(0.5)  # idle again
    spread("POST start -> child running", running, "150 ms, p95 400 ms")
    spread("POST start -> first leaderboard row (polled at 200 ms)", first_row, "3 s, aim 1 s")


def measure_celery(platform: Platform, count: int) -> None:
    os.environ["BARE_BROKER"] = embedded.redis_url(platform.var) or ""
    from benchmarks.bare import app, echo

    worker = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "benchmarks.bare",
            "worker",
            "-P",
            "solo",
            "-Q",
            "bare",
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        echo.delay(0).get(timeout=30)
        trips = []
        for number in range(count):
            sent = time.perf_counter()
            echo.delay(number).get(timeout=10)
            trips.append(time.perf_counter() - sent)
            time.sleep(0.02)
        spread("  peer: bare Celery round trip", trips, "-")
    finally:
        worker.terminate()
        worker.wait(20)
        app.close()


def measure_predict(platform: Platform, person: Person, data: str, count: int) -> None:
    job = person.train(data, "label", time_budget=20)
    ended = person.ended(job, within=180)
    body = json.dumps({"rows": [ONE_ROW]})
    headers = {"Authorization": person.headers["Authorization"], "Content-Type": "application/json"}
    board = person.leaderboard(job)
    for model in [board[0], *[m for m in board if m["id"] != board[0]["id"]][:2]]:
        connection = http.client.HTTPConnection(urlsplit(platform.url).netloc, timeout=30)
        whole, inside = [], []
        for number in range(count + 20):
            sent = time.perf_counter()
            connection.request(
                "POST", f"/api/results/model/{model['id']}/predict", body=body, headers=headers
            )
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
            took = time.perf_counter() - sent
            if number >= 20:
                whole.append(took)
                inside.append(answer["ms"]["model"] / 1000)
        spread(f"predict one row over HTTP: {model['name']}", whole, "15 ms")
        spread("  of which the model", inside, "-")
        relayed = measure_relay(platform, connection, model["id"], body, headers, count)
        ratio = statistics.median(relayed) / statistics.median(whole)
        spread("  over the node's WebSocket", relayed, "-")
        print(f"  the relay takes {ratio:.1f} times as long as the socket", flush=True)
        share = 1 - statistics.median(inside) / statistics.median(whole)
        print(f"  FlowML's own share: {share:.0%}", flush=True)
    assert ended["state"] == "succeeded"


def measure_relay(
    platform: Platform,
    connection: http.client.HTTPConnection,
    model: str,
    body: str,
    headers: dict[str, str],
    count: int,
) -> list[float]:
    """The same predictions while web can't reach the node's Unix socket. Seconds."""
    (socket,) = (platform.var / "run").glob("node-*.sock")
    away = socket.with_suffix(".away")
    socket.rename(away)
    try:
        taken = []
        for number in range(count + 20):
            sent = time.perf_counter()
            connection.request(
                "POST", f"/api/results/model/{model}/predict", body=body, headers=headers
            )
            answer = connection.getresponse()
            told = answer.read()
            assert answer.status == 200, told
            if number >= 20:
                taken.append(time.perf_counter() - sent)
        return taken
    finally:
        away.rename(socket)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--predictions", type=int, default=300)
    asked = parser.parse_args()
    with installation() as (platform, person):
        data = upload(person, table(1000))
        person.ended(person.train(data, "label", time_budget=5))  # everything is warm now
        measure_jobs(platform, person, data, asked.jobs)
        measure_celery(platform, 200)
        measure_predict(platform, person, data, asked.predictions)
    tell_load()


if __name__ == "__main__":
    main()
