"""How long a claim takes, and that it stays flat while the queue grows.

On a PostgreSQL of its own (or DATABASE_URL's server, in a database of its own): 1,000 organizations
of which some run something, 200 nodes, and first one, then ten, then a hundred waiting tasks for
each organization. One node claims over and over; what it gets is put back between two claims, so
that every claim sees the same queue.

    python -m benchmarks.claim [--claims 200] [--organizations 1000]

Limits: p95 of a claim under 20 ms with 100,000 tasks, the time at 100,000 within 20% of that at
1,000, the pure choice under 2 ms. On a machine that does other work too a clock tells little; so
the processor time of a claim (this process's and the database's) is measured as well, and growth is
told of that. The load is printed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import psutil

from benchmarks.common import django_here, p95, tell_load

LIMIT_MS, LIMIT_CHOICE_MS, LIMIT_GROWTH = 20.0, 2.0, 1.2


def timed(times: int, work: Callable[[], object]) -> list[float]:
    took = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return took


def cpu_s() -> float:
    """Processor time (s) of this process and of the database process that serves it."""
    from django.db import connection

    connection.ensure_connection()
    theirs = psutil.Process(connection.connection.info.backend_pid).cpu_times()
    return time.process_time() + theirs.user + theirs.system


def row(name: str, took: Sequence[float], limit: str = "") -> None:
    print(
        f"{name:<44} median {1000 * statistics.median(took):7.2f} ms   "
        f"p95 {1000 * p95(took):7.2f} ms   {limit}",
        flush=True,
    )


def fill(organizations: int) -> None:
    """Organizations, nodes, and something that runs for each tenth organization."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO organizations_organization (id, name, created_at)
            SELECT gen_random_uuid(), 'org ' || n, now() FROM generate_series(1, %s) n
            """,
            [organizations],
        )
        cursor.execute(
            """
            INSERT INTO workers_stream (topic, organization_id, last_seq)
            SELECT 'bench:' || id, id, 0 FROM organizations_organization
            """
        )


def add_nodes(count: int) -> None:
    from workers.models import Worker

    capabilities = {"cpu": 16, "ram_mib": 65536, "engines": ["pycaret"], "gpus": []}
    Worker.objects.bulk_create(
        Worker(
            name=f"node {n}",
            token_hash=f"hash {n}",
            capabilities=capabilities,
            concurrency=1000,
            queues=["priority", "pycaret.cpu", "cpu"],
        )
        for n in range(count)
    )


def add_tasks(each: int) -> None:
    """``each`` more waiting tasks for every organization."""
    from django.db import connection

    from workers.models import Task

    columns = {field.column: field for field in Task._meta.concrete_fields}
    given = {
        "id": "gen_random_uuid()",
        "created_at": "now()",
        "organization_id": "s.organization_id",
        "stream_id": "s.topic",
        "kind": "'bench'",
        "subject": "gen_random_uuid()",
        "queue": "'pycaret.cpu'",
        "engine": "'pycaret'",
        "queued_at": "now() - random() * interval '10 minutes'",
        "line_at": "now() - random() * interval '10 minutes'",
    }
    for name, field in columns.items():
        if name not in given and not field.null:
            value = field.get_default()
            plain = "'{}'::jsonb" if isinstance(value, dict) else str(value)
            given[name] = f"'{value}'" if isinstance(value, str) else plain
    sql = (
        f"INSERT INTO workers_task ({', '.join(given)}) SELECT {', '.join(given.values())} "
        "FROM workers_stream s, generate_series(1, %s)"
    )
    with connection.cursor() as cursor:
        cursor.execute(sql, [each])
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE workers_task")


def measure(claims: int, organizations: int) -> bool:
    from django.db import connection
    from django.utils import timezone

    from workers import actions, claiming, fairshare
    from workers.models import Task, Worker

    fill(organizations)
    add_nodes(200)
    node = Worker.objects.get(name="node 0")
    room = fairshare.Room(slots=1000, light_slots=2, cpu_millis=16000, ram_mib=58982)
    per_claim: dict[int, float] = {}
    kept, before = True, 0
    for each in (1, 10, 100):
        add_tasks(each - before)
        before = each
        if each == 1:  # a tenth of the organizations run something, elsewhere
            others = Worker.objects.exclude(pk=node.pk)
            for other in others[: organizations // 10]:
                actions.claim(other, room)
        waiting = Task.objects.filter(state="queued").count()

        took: list[float] = []
        spent = 0.0
        for n in range(claims + 20):
            if n == 20:
                spent = -cpu_s()
            began = time.perf_counter()
            task = actions.claim(node, room)
            if n >= 20:
                took.append(time.perf_counter() - began)
            assert task is not None
            task.allocation.delete()
            task.move_to(Task.State.QUEUED, worker=None, lease_expires_at=None)
        spent += cpu_s()
        per_claim[waiting] = spent / claims
        name = f"claim, {waiting:,} tasks of {organizations:,} organizations"
        row(name, took, f"limit: p95 20 ms   processor {1000 * spent / claims:5.2f} ms with undo")
        kept = kept and (waiting < 90_000 or p95(took) * 1000 < LIMIT_MS)

    Worker.objects.update(last_seen_at=timezone.now())
    now = claiming.running_now()
    at = timezone.now()
    overdue = at - timedelta(seconds=fairshare.PATIENCE_S)
    seen = claiming.Snapshot(node, [True, False], room, room, now, overdue)
    heads, _ = claiming.heads(seen, None)
    choice = timed(
        200,
        lambda: fairshare.choose(
            heads,
            now.shares,
            room,
            node=str(node.pk),
            freed=room,
            overdue=overdue.timestamp(),
        ),
    )
    row(f"  the pure choice among {len(heads):,} heads", choice, "limit: 2 ms")
    row("  the heads that can be next", timed(50, lambda: claiming.heads(seen)))
    row("  what runs, and the fleet", timed(50, claiming.running_now))

    def nothing() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    row("  beside it: SELECT 1", timed(200, nothing))
    first, *_, last = per_claim.values()
    growth = last / first
    print(f"from {min(per_claim):,} to {max(per_claim):,} tasks: x {growth:.2f}   limit: x 1.20")
    tell_load()
    return kept and statistics.median(choice) * 1000 < LIMIT_CHOICE_MS and growth < LIMIT_GROWTH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--claims", type=int, default=200)
    parser.add_argument("--organizations", type=int, default=1000)
    asked = parser.parse_args()
    with django_here(SCHEDULER_BACKEND="poll"):
        kept = measure(asked.claims, asked.organizations)
    sys.exit(0 if kept else "A limit was missed.")


if __name__ == "__main__":
    main()
