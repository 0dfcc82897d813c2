"""How many tasks that do nothing go through, from the submission to the end.

A whole installation with one node of two slots, all real processes: each task is submitted by
``workers.actions.add_task`` in a process of its own, rung, claimed over HTTP, run in a child forked
for it, reported and ended. Beside it a bare Celery worker with two processes on the same Valkey,
which stores its results there; and the same with a process forked for each task, as FlowML's are.

    python -m benchmarks.throughput [--tasks 200]

Limit: at most 5 times the time of Celery. Also told is the processor time for each task, by
process, since the clock of a machine that does other work says little.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.common import PREFIX, ROOT, tell_load
from flowml_site import embedded
from tests.chaos.fleet import Fleet, until

LIMIT = 5.0


def celery(fleet: Fleet, tasks: int, *how: str) -> float:
    """Seconds from the first submission to the last result."""
    os.environ["BARE_BROKER"] = embedded.redis_url(fleet.platform.var) or ""
    from benchmarks.bare import echo

    command = [sys.executable, "-m", "celery", "-A", "benchmarks.bare", "worker"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    worker = subprocess.Popen([*command, "-Q", "bare", "-c", "2", *how], cwd=ROOT, **quiet)
    try:
        for number in range(4):
            echo.delay(number).get(timeout=60)
        began = time.perf_counter()
        for result in [echo.delay(number) for number in range(tasks)]:
            result.get(timeout=120)
        return time.perf_counter() - began
    finally:
        worker.terminate()
        worker.wait(30)


def spent(fleet: Fleet) -> dict[str, float]:
    """Processor time (s) so far by kind of process, of the platform and the node."""
    found: dict[str, float] = {}
    node = fleet.nodes["n1"].process
    assert node is not None
    roots = {"node": psutil.Process(node.pid), "desk": psutil.Process(fleet.desk._process.pid)}
    for name in ("web-1", "web-2", "control", "postgres", "valkey"):
        roots[name] = psutil.Process(fleet.platform.process(name).pid)
    for name, root in roots.items():
        for one in [root, *root.children(recursive=True)]:
            try:
                times = one.cpu_times()
            except psutil.Error:
                continue
            key = name.partition("-")[0]
            gone = times.children_user + times.children_system  # of children that have ended
            found[key] = found.get(key, 0.0) + times.user + times.system + gone
    return found


def flowml(fleet: Fleet, tasks: int) -> tuple[float, dict[str, float]]:
    """Seconds from the first submission to the last end; and processor time (s) by process."""
    [organization] = fleet.desk("organizations", 1)
    fleet.node("n1")
    payloads = [{} for _ in range(tasks)]
    for task in fleet.desk("add_many", [organization], payloads[:4], kind="toy.nothing"):
        fleet.ended(task)
    before = spent(fleet)
    began = time.perf_counter()
    done = fleet.desk("add_many", [organization], payloads, kind="toy.nothing")
    left = "SELECT count(*) FROM workers_task WHERE id = ANY(%s::uuid[]) AND finished_at IS NULL"
    until(lambda: fleet.desk.rows(left, done)[0][0] == 0, "all end", 60 + tasks)
    took = time.perf_counter() - began
    after = spent(fleet)
    [[well]] = fleet.desk.rows(
        "SELECT count(*) FROM workers_task WHERE id = ANY(%s::uuid[]) AND state = 'succeeded'", done
    )
    assert well == tasks, f"{well} of {tasks} succeeded"
    return took, {name: after[name] - before.get(name, 0.0) for name in after}


def told(name: str, seconds: float, tasks: int) -> None:
    print(f"{name:<44} {1000 * seconds / tasks:7.2f} ms a task   {tasks / seconds:6.0f} a second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=200)
    tasks = parser.parse_args().tasks
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX) as folder,
        Fleet(Path(folder), heartbeat_s=5, lease_s=30) as fleet,
    ):
        took, processors = flowml(fleet, tasks)
        plain = celery(fleet, tasks)
        forked = celery(fleet, tasks, "--max-tasks-per-child", "1")
    told("FlowML", took, tasks)
    told("peer: bare Celery, two processes", plain, tasks)
    told("peer: Celery, a process forked for each", forked, tasks)
    each = ", ".join(f"{name} {1000 * s / tasks:.1f}" for name, s in sorted(processors.items()))
    whole = 1000 * sum(processors.values()) / tasks
    print(f"FlowML's processor time (ms a task): {each}; all {whole:.1f}")
    print(f"FlowML / bare Celery: x {took / plain:.1f}   limit: x {LIMIT:.0f}")
    print(f"FlowML / Celery that forks: x {took / forked:.1f}")
    tell_load()
    sys.exit(0 if took / plain <= LIMIT else "A limit was missed.")


if __name__ == "__main__":
    main()
