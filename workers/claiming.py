"""The claim: one snapshot, one pure choice (`workers.fairshare`), one plan that is checked again.

It costs a fixed number of queries. Of what waits it reads the first task of a few lines, those that
can be next; what else it reads grows with the number of lines and with what runs.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone

from workers import fairshare, metrics
from workers.models import Task, Turn, Worker

State = Task.State

_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
PREFIX = 16  # lines of a class that are looked at first, in the order of their ranks
_COLUMNS = """t.id, t.organization_id, t.queue, t.light, t.priority, t.queued_at, t.line_at,
       t.cpu_millis, t.ram_mib, t.gpus, t.gpu_ram_mib, t.held_on_id"""
# As text and floats: the driver reads them in a third of the time.
_AS_READ = """id::text, organization_id::text, queue, light, priority,
       extract(epoch FROM queued_at)::float8, extract(epoch FROM line_at)::float8,
       cpu_millis, ram_mib, gpus, gpu_ram_mib, held_on_id::text,
       coalesce(extract(epoch FROM since), 0)::float8,
       coalesce(log_used, 0),
       coalesce(extract(epoch FROM turn_at), 0)::float8"""
# `Waiting.fits`, less what only it can tell (which GPUs).
_FITS = """(head.light OR head.ram_mib <= %({0}_ram)s AND CASE WHEN head.gpus > 0
      THEN head.cpu_millis <= %({0}_cpu)s AND head.gpus <= %({0}_gpus)s
           AND head.gpu_ram_mib * %(forgiven)s::float8 <= %({0}_gpu_ram)s
      ELSE head.cpu_millis <= %({0}_plain_cpu)s END)"""
_PAUSED = """EXISTS (SELECT 1 FROM workers_pause p WHERE p.queue IN ('', {0}.queue)
              AND (p.organization_id IS NULL OR p.organization_id = {0}.organization_id))"""
# The lines in the order in which `fairshare.choose` looks at them, and each one's first task by the
# index `task_lines`, until there are enough that fit. Sorted below the join (hence OFFSET), so that
# the join can end there: the planner would rather join all and sort then. It takes a table that was
# empty at night for empty: so there are no other joins of it, which it might do row by row.
_HEAD = f"""
CROSS JOIN LATERAL (
  SELECT {_COLUMNS} FROM workers_task t
   WHERE t.state = 'queued' AND t.queue = line.queue AND t.light = line.light
     AND t.organization_id = line.organization_id AND t.priority = line.priority
   ORDER BY t.line_at LIMIT 1
) head"""  # noqa: S608 - the names of columns, above
_HEADS = f"""
WITH line AS MATERIALIZED (
  SELECT * FROM (
    SELECT organization_id, queue, light, priority, since,
           max(log_used) OVER whole AS log_used,
           max(at) OVER whole AS turn_at,
           coalesce((%(shares)s::jsonb ->> organization_id::text)::float8, 0) AS share
      FROM workers_turn WINDOW whole AS (PARTITION BY organization_id, light)
  ) one
   WHERE one.queue = ANY(%(queues)s) AND one.light = ANY(%(light)s)
     AND (%(organization)s::uuid IS NULL OR one.organization_id = %(organization)s)
     AND (one.light OR one.organization_id <> ALL(%(full)s::uuid[]))
     AND NOT {_PAUSED.format("one")}
)
SELECT {_AS_READ} FROM unnest(%(light)s::bool[]) AS class(kind) CROSS JOIN LATERAL (
  (SELECT head.*, line.since, line.log_used, line.turn_at FROM (
     SELECT * FROM line WHERE light = class.kind AND since < %(overdue)s ORDER BY since OFFSET 0
   ) line {_HEAD}
    WHERE head.queued_at < %(overdue)s
      AND ({_FITS.format("whole")} OR {_FITS.format("freed")}
           AND (head.held_on_id IS NULL OR head.held_on_id = %(node)s::uuid))
    LIMIT %(most)s)
  UNION ALL
  (SELECT head.*, line.since, line.log_used, line.turn_at FROM (
     SELECT * FROM line WHERE light = class.kind
      ORDER BY priority DESC, share, log_used NULLS FIRST, turn_at NULLS FIRST, since OFFSET 0
   ) line {_HEAD}
    WHERE {_FITS.format("room")}
    LIMIT %(most)s)
) found
"""  # noqa: S608 - the same

# The first of each line that goes on with a job that runs already.
_GOING_ON = f"""
SELECT {_AS_READ} FROM (
SELECT DISTINCT ON (t.queue, t.organization_id, t.priority) {_COLUMNS}
  FROM workers_task t
 WHERE t.state = 'queued' AND t.queue = ANY(%(queues)s) AND NOT t.light
   AND t.subject = ANY(%(subjects)s::uuid[]) AND NOT {_PAUSED.format("t")}
 ORDER BY t.queue, t.organization_id, t.priority, t.line_at
) head
LEFT JOIN LATERAL (
  SELECT max(log_used) AS log_used, max(at) AS turn_at,
         max(since) FILTER (WHERE t.queue = head.queue AND t.priority = head.priority) AS since
    FROM workers_turn t WHERE t.organization_id = head.organization_id AND t.light = head.light
) line ON true
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

_JOBS = """
SELECT coalesce(o.max_concurrent_jobs, %(limit)s), ARRAY(
  SELECT t.subject::text FROM workers_allocation a JOIN workers_task t ON t.id = a.task_id
   WHERE a.organization_id = o.id AND NOT a.light)
  FROM organizations_organization o WHERE o.id = %(organization)s::uuid
"""
_FLEET = """
SELECT coalesce(sum((capabilities ->> 'cpu')::float * 1000), 0),
       coalesce(sum((capabilities ->> 'ram_mib')::float), 0),
       coalesce(sum(jsonb_array_length(coalesce(capabilities -> 'gpus', '[]'))), 0)::float
  FROM workers_worker WHERE organization_id IS NULL AND last_seen_at >= %(alive)s
"""
# What a start writes down: what it takes of its node, and its line's turn.
_START = """
WITH taken AS (
  INSERT INTO workers_allocation (worker_id, task_id, organization_id, cpu_millis, ram_mib, gpus,
                                  gpu_ram_mib, light, share, since)
  VALUES (%(worker)s, %(task)s, %(organization_id)s, %(cpu_millis)s, %(ram_mib)s, %(gpus)s,
          %(gpu_ram_mib)s, %(light)s, %(share)s, %(at)s)
)
INSERT INTO workers_turn (organization_id, queue, light, priority, since, at, out_of_turn)
VALUES (%(organization_id)s, %(queue)s, %(light)s, %(priority)s, %(at)s, %(at)s, %(out_of_turn)s)
ON CONFLICT (organization_id, queue, light, priority) DO UPDATE
  SET since = EXCLUDED.since, at = EXCLUDED.at, out_of_turn = EXCLUDED.out_of_turn
RETURNING id
"""
_TAKEN = ("light", "cpu_millis", "ram_mib", "gpus", "gpu_ram_mib")
_RESOURCES = ("cpu_millis", "ram_mib", "gpus")
_STARTED = (*_TAKEN, "organization_id", "queue", "priority")
# Of a model's whole row, without a query being built for each claim.
_NODE = """
SELECT w.*, EXISTS (
  SELECT 1 FROM workers_task t WHERE t.held_on_id = w.id AND t.state = 'queued') AS holds
  FROM workers_worker w WHERE id = %(node)s FOR NO KEY UPDATE OF w
"""
_FIRST = """
SELECT * FROM workers_task
 WHERE state = 'queued' AND queue = %(queue)s AND light = %(light)s
   AND organization_id = %(organization)s::uuid AND priority = %(priority)s
   AND (%(subjects)s::uuid[] IS NULL OR subject = ANY(%(subjects)s::uuid[]))
 ORDER BY line_at LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
"""


@dataclass
class Running:
    """What runs now, for a choice, per organization."""

    shares: dict[str, float] = field(default_factory=dict)
    jobs: dict[str, set[str]] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    total: dict[str, float] = field(default_factory=dict)  # of the fleet that is shared

    def weight(self, organization: str) -> float:
        """One that may run twice as many jobs is due twice as much."""
        usual = settings.MAX_CONCURRENT_JOBS
        return max(self.limits.get(organization, usual), 1) / usual

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
    total = dict(zip(_RESOURCES, _query(_FLEET, alive=Worker.alive_since())[0], strict=True))
    now = Running(total=total)
    used: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(_RESOURCES, 0.0))
    for row in _query(_RUNNING, limit=settings.MAX_CONCURRENT_JOBS):
        one, subjects, *takes, limit = row
        now.limits[one] = limit
        now.jobs.setdefault(one, set()).update(subjects or ())
        for name, amount in zip(_RESOURCES, takes, strict=True):
            used[one][name] += amount
    for one, takes_all in used.items():
        now.shares[one] = fairshare.dominant_share(takes_all, total, now.weight(one))
    return now


@dataclass(frozen=True)
class Snapshot:
    """What a claim knows when it chooses."""

    node: Worker
    light: Sequence[bool]  # the classes for which there is a slot
    room: fairshare.Room
    freed: fairshare.Room
    now: Running
    overdue: datetime


def heads(seen: Snapshot, most: int | None = PREFIX) -> tuple[list[fairshare.Waiting[str]], bool]:
    """The first tasks of the lines that can be next, and whether there may be more.

    Of each class at most ``most`` (None: all) of those that waited long, and as many by rank.
    """
    node, now = seen.node, seen.now
    mine = str(node.organization_id) if node.organization_id else None
    full = now.full
    asked = {
        "queues": node.queues,
        "light": list(seen.light),
        "organization": mine,
        "shares": json.dumps(now.shares),
        "full": list(full),
        "node": str(node.pk),
        "overdue": seen.overdue,
        "forgiven": fairshare.FORGIVEN,
        "most": most,
    }
    for name, room in (
        ("room", seen.room),
        ("whole", seen.room.without_reserve()),
        ("freed", seen.freed),
    ):
        plain_cpu = room.cpu_millis - room.gpu_millis if room.slots > room.gpu_slots else -1
        limits = {
            "ram": room.ram_mib,
            "cpu": room.cpu_millis,
            "plain_cpu": plain_cpu,
            "gpus": len(room.gpus),
            "gpu_ram": max(room.gpus, default=0),
        }
        asked |= {f"{name}_{what}": limit for what, limit in limits.items()}
    rows = _query(_HEADS, **asked)
    cut = most is not None and len(rows) >= most
    going_on = [job for one in full if mine in {None, one} for job in now.jobs[one]]
    if going_on and False in seen.light:
        rows += _query(_GOING_ON, subjects=going_on, queues=node.queues)
    found = {row[0]: fairshare.Waiting(*row) for row in rows}  # one may be there by two rules
    return list(found.values()), cut


@metrics.timed_claim
def claim(worker: Worker, said: fairshare.Room) -> Task | None:
    """Give the node the best-ranked waiting task that fits, with a lease, or None.

    What fits is decided by what the node says it has left and by the ledger, whichever is less.
    The task's ``more`` says whether asking again at once may bring another.
    """
    with transaction.atomic():
        node: Any = next(iter(Worker.objects.raw(_NODE, {"node": worker.pk})), None)
        if node is None or node.draining or node.restart_asked_at is not None:
            return None
        empty = fairshare.Room.of_empty(node.capabilities, node.concurrency)
        ours: list[fairshare.Taken] = []
        kept: list[fairshare.Taken] = []
        for task_id, *takes in node.allocations.values_list("task_id", *_TAKEN):
            (ours if task_id else kept).append(fairshare.Taken(*takes))
        # What deployments hold never ends by itself: to tasks the node is that much smaller.
        empty = empty.without(kept)
        room = fairshare.room_left(said, empty, ours)
        light = [*([True] if room.light_slots > 0 else []), *([False] if room.slots > 0 else [])]
        if not light:
            return None
        freed = fairshare.room_once_freed(said, empty, ours)
        if node.holds:
            _let_go(node, freed)
        at = timezone.now()
        overdue = at - timedelta(seconds=fairshare.PATIENCE_S)
        now = running_now()
        found = _take(Snapshot(node, light, room, freed, now, overdue))
        if found is None:
            return None
        task, out_of_turn = found
        task.move_to(
            State.RUNNING,
            by=node.name,
            worker=node,
            started_at=at,
            held_on=None,
            lease_expires_at=at + timedelta(seconds=settings.LEASE_S),
        )
        _query(
            _START,
            **{name: getattr(task, name) for name in _STARTED},
            task=task.pk,
            worker=node.pk,
            share=_share(task, node, now),
            at=at,
            out_of_turn=out_of_turn,
        )
    return task


def _share(task: Task, node: Worker, now: Running) -> float:
    """What the task takes of the fleet, for its organization's weight; 0 of a node of its own."""
    if node.organization_id is not None:
        return 0.0
    weight = now.weight(str(task.organization_id))
    if task.light:
        return 1 / weight
    takes = {name: getattr(task, name) for name in _RESOURCES}
    return fairshare.dominant_share(takes, now.total, weight)


def seconds_of(at: datetime) -> float:
    """The time as `fairshare.log_use` has it."""
    return (at - _YEAR).total_seconds()


def free(task: Task) -> None:
    """Give back what ``task`` takes of its node, and note that its organization has used it.

    After `Task.move_to`, as in a claim: the stream's row is locked before that of the line.
    """
    [*gone] = _query("DELETE FROM workers_allocation WHERE task_id = %(task)s"
                     " RETURNING light, share", task=task.pk)  # fmt: skip
    for light, share in gone:
        if share <= 0 or task.started_at is None:
            continue
        now = timezone.now()
        more = fairshare.log_use(share, (now - task.started_at).total_seconds(), seconds_of(now))
        lines = Turn.objects.filter(organization=task.organization_id, light=light)
        # Its own row has the sum of all of them: the largest of the organization's is the latest.
        own = lines.filter(queue=task.queue, priority=task.priority)
        sums = (
            lines.select_for_update(no_key=True).order_by("pk").values_list("log_used", flat=True)
        )
        before = max((one for one in sums if one is not None), default=None)
        own.update(log_used=more if before is None else fairshare.added(before, more))


def _let_go(node: Worker, freed: fairshare.Room) -> None:
    """Hold the node no more for what will not fit it: another program uses its GPU by now."""
    for task in Task.objects.filter(held_on=node, state=State.QUEUED):
        if not _waiting(task).fits(freed):
            Task.objects.filter(pk=task.pk, held_on=node).update(held_on=None)


def _take(seen: Snapshot) -> tuple[Task, bool] | None:
    """The chosen task, locked, and whether it went first because it waited long.

    Other nodes choose at the same time: what they took is passed by.
    """
    now, node = seen.now, str(seen.node.pk)
    overdue = seen.overdue.timestamp()
    lines, cut = heads(seen)
    in_turn = any(one.is_late(overdue) for one in lines) and _last_was_out_of_turn()
    waited_for: str | None = None
    passed: set[str] = set()  # tasks that others took
    closed: set[str] = set()  # organizations that start no further job now
    while True:
        best, hold, out_of_turn = fairshare.choose(
            [
                head
                for head in lines
                if head.task not in passed and (head.light or head.organization not in closed)
            ],
            now.shares,
            seen.room,
            node=node,
            freed=seen.freed,
            overdue=overdue,
            in_turn=in_turn,
        )
        if best is None and cut:
            lines, cut = heads(seen, None)
            continue
        if hold is not None and hold.held_on != node:
            Task.objects.filter(pk=hold.task, state=State.QUEUED).update(held_on=seen.node)
        if best is None:
            return None
        one = best.organization
        going_on = now.jobs.get(one, set()) if one in now.full else None
        if not best.light and going_on is None:
            # Two nodes must not start an organization's last job at once. Only the first such
            # lock is waited for: who holds one never waits for another.
            if waited_for not in {None, one} and not _lock(one, wait=False):
                closed.add(one)
                continue
            if waited_for is None:
                _lock(one, wait=True)
                waited_for = one
            _recount(now, one)
            if one in now.full:
                closed.add(one)
                continue
        task = _first_unlocked(best, going_on)
        if task is not None and (str(task.pk) == best.task or _waiting(task).fits(seen.room)):
            task.more = _may_be_more(best, lines, seen.room)
            return task, out_of_turn
        passed.add(best.task)


def _may_be_more(
    taken: fairshare.Waiting[str], lines: Sequence[fairshare.Waiting[str]], room: fairshare.Room
) -> bool:
    """Whether a slot is left for a line of which there was something, the one taken from included.

    What comes later rings. So a node whose last slot of a class was filled need not ask for
    nothing.
    """
    slots = {True: room.light_slots, False: room.slots}
    slots[taken.light] -= 1
    return any(slots[line.light] > 0 for line in lines)


def _last_was_out_of_turn() -> bool:
    last = Turn.objects.filter(at__isnull=False).order_by("-at")
    return bool(last.values_list("out_of_turn", flat=True).first())


def _lock(organization: str, *, wait: bool) -> bool:
    """Lock the organization's count of jobs until the transaction's end; whether that was done."""
    function = "pg_advisory_xact_lock" if wait else "pg_try_advisory_xact_lock"
    sql = f"SELECT {function}(hashtextextended(%(key)s, 0))"
    (got,) = _query(sql, key=f"jobs of {organization}")[0]
    return wait or bool(got)


def _recount(now: Running, organization: str) -> None:
    """Count the organization's jobs again, under its lock. It may have had none before."""
    (now.limits[organization], jobs) = _query(
        _JOBS, organization=organization, limit=settings.MAX_CONCURRENT_JOBS
    )[0]
    now.jobs[organization] = set(jobs)


def _first_unlocked(line: fairshare.Waiting[str], going_on: set[str] | None) -> Task | None:
    """The first task of ``line`` that no other node is taking at this moment."""
    one, queue, light, priority = line.line
    asked = {
        "organization": one,
        "queue": queue,
        "light": light,
        "priority": priority,
        "subjects": None if going_on is None or light else list(going_on),
    }
    return next(iter(Task.objects.raw(_FIRST, asked)), None)


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
