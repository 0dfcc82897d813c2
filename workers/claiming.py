"""The claim: one snapshot, one pure choice (`workers.fairshare`), one plan that is checked again.

It costs a fixed number of queries. What it reads grows with the lines that wait and with what
runs, and not with how many tasks wait in a line.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone

from workers import fairshare, metrics
from workers.models import Allocation, Pause, Task, Turn, Worker

State = Task.State

# The head of each line, by hopping along the index `task_lines`: from a line's first task straight
# to the next line's (a "loose index scan", which PostgreSQL has no plan for by itself).
_COLUMNS = """t.id, t.organization_id, t.queue, t.light, t.priority, t.queued_at, t.line_at,
       t.cpu_millis, t.ram_mib, t.gpus, t.gpu_ram_mib, t.held_on_id"""
# As text and floats: the driver reads a thousand rows in a third of the time.
_AS_READ = """line.id::text, line.organization_id::text, line.queue, line.light, line.priority,
       extract(epoch FROM line.queued_at)::float8, extract(epoch FROM line.line_at)::float8,
       line.cpu_millis, line.ram_mib, line.gpus, line.gpu_ram_mib, line.held_on_id::text,
       coalesce(extract(epoch FROM turn.at), 0)::float8,
       coalesce(extract(epoch FROM latest.at), 0)::float8"""
_TURNS = """
LEFT JOIN workers_turn turn USING (organization_id, queue, light, priority)
LEFT JOIN (SELECT organization_id, light, max(at) AS at FROM workers_turn GROUP BY 1, 2) latest
       ON latest.organization_id = line.organization_id AND latest.light = line.light
"""
_HEADS = f"""
WITH RECURSIVE line AS (
  SELECT head.* FROM unnest(%(queues)s::text[]) AS q(queue), unnest(%(light)s::bool[]) AS l(light),
  LATERAL (
    SELECT {_COLUMNS} FROM workers_task t
     WHERE t.state = 'queued' AND t.queue = q.queue AND t.light = l.light
     ORDER BY t.queue, t.light, t.organization_id, t.priority, t.line_at LIMIT 1
  ) head
  UNION ALL
  SELECT head.* FROM line, LATERAL (
    SELECT {_COLUMNS} FROM workers_task t
     WHERE t.state = 'queued' AND t.queue = line.queue AND t.light = line.light
       AND (t.organization_id, t.priority) > (line.organization_id, line.priority)
     ORDER BY t.queue, t.light, t.organization_id, t.priority, t.line_at LIMIT 1
  ) head
)
SELECT {_AS_READ} FROM line {_TURNS}
"""  # noqa: S608 - the names of columns, above

# The same for one organization: its own node asks, or it may only go on with jobs that run already.
_HEADS_OF = f"""
SELECT {_AS_READ} FROM (
SELECT DISTINCT ON (t.queue, t.light, t.organization_id, t.priority) {_COLUMNS}
  FROM workers_task t
 WHERE t.state = 'queued' AND t.queue = ANY(%(queues)s) AND t.light = ANY(%(light)s)
   AND (%(organization)s::uuid IS NULL OR t.organization_id = %(organization)s)
   AND (%(subjects)s::uuid[] IS NULL OR t.subject = ANY(%(subjects)s))
 ORDER BY t.queue, t.light, t.organization_id, t.priority, t.line_at
) line {_TURNS}
"""  # noqa: S608 - the same

# What runs, by organization. A node of an organization's own is no part of what is shared.
_RUNNING = """
SELECT a.organization_id::text,
       array_agg(DISTINCT t.subject::text) FILTER (WHERE NOT a.light),
       coalesce(sum(a.cpu_millis) FILTER (WHERE w.organization_id IS NULL), 0)::float,
       coalesce(sum(a.ram_mib) FILTER (WHERE w.organization_id IS NULL), 0)::float,
       coalesce(sum(a.gpus) FILTER (WHERE w.organization_id IS NULL), 0)::float,
       coalesce(o.max_concurrent_jobs, %(limit)s)
  FROM workers_allocation a
 CROSS JOIN LATERAL (  -- by the key of each, whatever the planner thinks that the tables hold
    SELECT subject FROM workers_task WHERE id = a.task_id LIMIT 1) t
  JOIN workers_worker w ON w.id = a.worker_id
  JOIN organizations_organization o ON o.id = a.organization_id
 GROUP BY a.organization_id, o.max_concurrent_jobs
"""

_FLEET = """
SELECT coalesce(sum((capabilities ->> 'cpu')::float * 1000), 0),
       coalesce(sum((capabilities ->> 'ram_mib')::float), 0),
       coalesce(sum(jsonb_array_length(coalesce(capabilities -> 'gpus', '[]'))), 0)::float
  FROM workers_worker WHERE organization_id IS NULL AND last_seen_at >= %(alive)s
"""
_TAKEN = ("light", "cpu_millis", "ram_mib", "gpus", "gpu_ram_mib")
_RESOURCES = ("cpu_millis", "ram_mib", "gpus")


@dataclass
class Running:
    """What runs now, for a choice, per organization."""

    shares: dict[str, float] = field(default_factory=dict)
    jobs: dict[str, set[str]] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)

    @property
    def full(self) -> set[str]:
        """Organizations that run as many jobs as they may."""
        counts = {one: len(jobs) for one, jobs in self.jobs.items()}
        return fairshare.full_organizations(counts, self.limits)


def _query(sql: str, **values: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return list(cursor.fetchall())


def running_now() -> Running:
    """The shares in use and the jobs that run, of every organization."""
    now = Running()
    total = dict(zip(_RESOURCES, _query(_FLEET, alive=Worker.alive_since())[0], strict=True))
    used: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(_RESOURCES, 0.0))
    for row in _query(_RUNNING, limit=settings.MAX_CONCURRENT_JOBS):
        one, subjects, *takes, limit = row
        now.limits[one] = limit
        now.jobs.setdefault(one, set()).update(subjects or ())
        for name, amount in zip(_RESOURCES, takes, strict=True):
            used[one][name] += amount
    for one, takes_all in used.items():
        # An organization that may run twice as many jobs is due twice as much.
        weight = max(now.limits[one], 1) / settings.MAX_CONCURRENT_JOBS
        now.shares[one] = fairshare.dominant_share(takes_all, total, weight)
    return now


def heads(
    queues: Sequence[str], *, of: str | None, light: Sequence[bool], now: Running
) -> list[fairshare.Waiting[str]]:
    """The first task of each line that may start: of one organization, or of all."""
    asked: dict[str, Any] = {"queues": list(queues), "light": list(light)}
    if of is not None:
        rows = _query(_HEADS_OF, organization=of, subjects=None, **asked)
    else:
        rows = _query(_HEADS, **asked)
    full = now.full
    found = [
        head
        for row in rows
        if (head := fairshare.Waiting(*row)).light or head.organization not in full
    ]
    going_on = [job for one in full if of in {None, one} for job in now.jobs[one]]
    if going_on and False in light:
        rows = _query(
            _HEADS_OF, organization=of, subjects=going_on, queues=list(queues), light=[False]
        )
        found += [fairshare.Waiting(*row) for row in rows]
    return found


@metrics.timed_claim
def claim(worker: Worker, said: fairshare.Room) -> Task | None:
    """Give the node the best-ranked waiting task that fits, with a lease, or None.

    What fits is decided by what the node says it has left and by the ledger, whichever is less.
    """
    with transaction.atomic():
        node = Worker.objects.select_for_update(no_key=True).filter(pk=worker.pk).first()
        if node is None or node.draining or node.restart_asked_at is not None:
            return None
        paused = pauses()
        queues = [name for name in node.queues if not paused & {("", None), (name, None)}]
        if not queues:
            return None
        empty = fairshare.Room.of_empty(node.capabilities, node.concurrency)
        ours = [fairshare.Taken(*row) for row in node.allocations.values_list(*_TAKEN)]
        room = fairshare.room_left(said, empty, ours)
        light = [*([True] if room.light_slots > 0 else []), *([False] if room.slots > 0 else [])]
        if not light:
            return None
        now = running_now()
        mine = str(node.organization_id) if node.organization_id else None
        lines = [
            head
            for head in heads(queues, of=mine, light=light, now=now)
            if not paused & {("", head.organization), (head.queue, head.organization)}
        ]
        freed = fairshare.room_once_freed(said, empty, ours)
        _let_go(node, freed)
        found = _take(node, lines, now, room, freed)
        if found is None:
            return None
        task, out_of_turn = found
        at = timezone.now()
        task.move_to(
            State.RUNNING,
            by=node.name,
            worker=node,
            started_at=at,
            held_on=None,
            lease_expires_at=at + timedelta(seconds=settings.LEASE_S),
        )
        Allocation.objects.create(
            worker=node,
            task=task,
            organization_id=task.organization_id,
            cpu_millis=task.cpu_millis,
            ram_mib=task.ram_mib,
            gpus=task.gpus,
            gpu_ram_mib=task.gpu_ram_mib,
            light=task.light,
        )
        line = ("organization_id", "queue", "light", "priority")
        Turn.objects.bulk_create(
            [Turn(at=at, out_of_turn=out_of_turn, **{name: getattr(task, name) for name in line})],
            update_conflicts=True,
            unique_fields=line,
            update_fields=["at", "out_of_turn"],
        )
    return task


def pauses() -> set[tuple[str, str | None]]:
    """What an operator paused: (queue, organization), each empty for all of them."""
    return {
        (pause.queue, str(pause.organization_id) if pause.organization_id else None)
        for pause in Pause.objects.all()
    }


def _let_go(node: Worker, freed: fairshare.Room) -> None:
    """Hold the node no more for what will not fit it: another program uses its GPU by now."""
    for task in Task.objects.filter(held_on=node, state=State.QUEUED):
        if not _waiting(task).fits(freed):
            Task.objects.filter(pk=task.pk, held_on=node).update(held_on=None)


def _take(
    node: Worker,
    lines: list[fairshare.Waiting[str]],
    now: Running,
    room: fairshare.Room,
    freed: fairshare.Room,
) -> tuple[Task, bool] | None:
    """The chosen task, locked, and whether it went first because it waited long.

    Other nodes choose at the same time: what they took is passed by.
    """
    latest = Turn.objects.order_by("-at").values_list("out_of_turn", flat=True).first()
    overdue = time.time() - fairshare.PATIENCE_S
    waited_for: str | None = None
    while lines:
        best, hold, out_of_turn = fairshare.choose(
            lines,
            now.shares,
            room,
            node=str(node.pk),
            freed=freed,
            overdue=overdue,
            in_turn=bool(latest),
        )
        if hold is not None and hold.held_on != str(node.pk):
            Task.objects.filter(pk=hold.task, state=State.QUEUED).update(held_on=node)
        if best is None:
            return None
        one = best.organization
        going_on = now.jobs.get(one, set()) if one in now.full else None
        if not best.light and going_on is None:
            # Two nodes must not start an organization's last job at once. Only the first such
            # lock is waited for: who holds one never waits for another.
            if waited_for not in {None, one} and not _lock(one, wait=False):
                lines = [head for head in lines if head.organization != one]
                continue
            if waited_for is None:
                _lock(one, wait=True)
                waited_for = one
            now.jobs[one] = _jobs_of(one)
            if one in now.full:
                lines = [head for head in lines if head.light or head.organization != one]
                continue
        task = _first_unlocked(best, going_on)
        if task is not None and (str(task.pk) == best.task or _waiting(task).fits(room)):
            return task, out_of_turn
        lines = [head for head in lines if head is not best]
    return None


def _lock(organization: str, *, wait: bool) -> bool:
    """Lock the organization's count of jobs until the transaction's end; whether that was done."""
    function = "pg_advisory_xact_lock" if wait else "pg_try_advisory_xact_lock"
    sql = f"SELECT {function}(hashtextextended(%(key)s, 0))"
    (got,) = _query(sql, key=f"jobs of {organization}")[0]
    return wait or bool(got)


def _jobs_of(organization: str) -> set[str]:
    running = Allocation.objects.filter(organization=UUID(organization), light=False)
    return {str(job) for job in running.values_list("task__subject", flat=True)}


def _first_unlocked(line: fairshare.Waiting[str], going_on: set[str] | None) -> Task | None:
    """The first task of ``line`` that no other node is taking at this moment."""
    one, queue, light, priority = line.line
    tasks = Task.objects.select_for_update(no_key=True, skip_locked=True).filter(
        state=State.QUEUED, queue=queue, light=light, organization=UUID(one), priority=priority
    )
    if going_on is not None and not light:
        tasks = tasks.filter(subject__in=going_on)
    return tasks.order_by("line_at")[:1].first()


def _waiting(task: Task) -> fairshare.Waiting[str]:
    return fairshare.Waiting(
        task=str(task.pk),
        organization=str(task.organization_id),
        queue=task.queue,
        light=task.light,
        priority=task.priority,
        queued_at=task.queued_at.timestamp(),
        line_at=task.line_at.timestamp(),
        cpu_millis=task.cpu_millis,
        ram_mib=task.ram_mib,
        gpus=task.gpus,
        gpu_ram_mib=task.gpu_ram_mib,
    )
