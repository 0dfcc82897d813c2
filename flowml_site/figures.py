"""The figures that findings are made of: a fixed number of queries, however much there is."""

import shutil
from collections import Counter, defaultdict
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import redis
from django.conf import settings
from django.core.files.storage import FileSystemStorage, default_storage
from django.db import connection
from django.db.models import Count, Min, OuterRef, Subquery, Sum
from django.db.models.functions import Coalesce
from django.utils import timezone

from flowml_site.findings import (
    USUAL_TIMES,
    Failures,
    Hour,
    Node,
    Paused,
    Queue,
    Quota,
    Slow,
    Snapshot,
    hours_before,
)
from organizations import quotas, usage
from organizations.models import Organization, UsageMonth
from workers.models import Allocation, Artifact, Event, Pause, Pulse, Task, Worker

BROKER_S = 1.0
REACT_S = 60  # the sweep makes up for a lost message within a few seconds
MOST_SLOW = 500

State = Task.State

# How long each kind of task took lately: 95% took less. Fewer than five tell nothing.
_USUAL = """
SELECT kind, engine, percentile_cont(0.95) WITHIN GROUP (
         ORDER BY extract(epoch FROM finished_at - started_at))
  FROM workers_task
 WHERE state = 'succeeded' AND started_at IS NOT NULL AND finished_at > %s
 GROUP BY kind, engine HAVING count(*) >= 5
"""
_FAILED = """
SELECT fault, code, count(*), left((array_agg(error ORDER BY finished_at DESC))[1], 160)
  FROM workers_task
 WHERE state = 'failed' AND finished_at > %s
 GROUP BY fault, code ORDER BY count(*) DESC LIMIT 20
"""
_ENDS = """
SELECT date_trunc('hour', finished_at AT TIME ZONE 'UTC'),
       count(*) FILTER (WHERE state = 'succeeded'),
       count(*) FILTER (WHERE state = 'failed' AND fault <> 'platform'),
       count(*) FILTER (WHERE state = 'failed' AND fault = 'platform'),
       count(*) FILTER (WHERE state = 'cancelled')
  FROM workers_task WHERE finished_at >= %s GROUP BY 1
"""
# What came into the lines and left them. A task that was queued again counts as if it had waited
# since it first was; that is what its owner sees.
_CAME = """
SELECT date_trunc('hour', queued_at AT TIME ZONE 'UTC'), count(*)
  FROM workers_task WHERE queued_at >= %s GROUP BY 1
"""
_LEFT = """
SELECT date_trunc('hour', coalesce(started_at, finished_at) AT TIME ZONE 'UTC'), count(*)
  FROM workers_task
 WHERE state <> 'queued' AND coalesce(started_at, finished_at) >= %s GROUP BY 1
"""


def look(now: datetime | None = None) -> Snapshot:
    """Everything that the dashboard shows. Raises DatabaseError without a database."""
    now = now or timezone.now()
    lines = queues(now)
    free, total = disk()
    stored = {
        organization: int(total)
        for organization, total in Artifact.objects.values_list("organization")
        .annotate(total=Sum("size"))
        .order_by()
    }
    failures = [Failures(*row) for row in _rows(_FAILED, [now - timedelta(days=1)])]
    hours = _hours(now, sum(queue.waiting for queue in lines))
    return Snapshot(
        at=now,
        version=settings.VERSION,
        queues=lines,
        nodes=nodes(now),
        running=sum(queue.running for queue in lines),
        slow=_slow(now),
        failures=failures,
        ended=sum(h.succeeded + h.failed_work + h.failed_platform + h.cancelled for h in hours),
        unhandled=unhandled(now),
        swept_s=swept_s(now),
        broker=broker_trouble(),
        stored_bytes=sum(stored.values()),
        disk_free_bytes=free,
        disk_total_bytes=total,
        quotas=_quotas(stored),
        pauses=_pauses(now, lines),
        hours=hours,
    )


def _rows(sql: str, values: list[Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return list(cursor.fetchall())


def queues(now: datetime) -> list[Queue]:
    """The lines that have anything in them, the worst first."""
    waiting = (
        Task.objects.filter(state=State.QUEUED)
        .values("queue", "organization")
        .annotate(count=Count("pk"), oldest=Min("queued_at"))
        .order_by()
    )
    running = dict(
        Task.objects.filter(state=State.RUNNING)
        .values_list("queue")
        .annotate(count=Count("pk"))
        .order_by()
    )
    serving: dict[str, Counter[Any]] = defaultdict(Counter)  # queue -> organization or None
    takers = Worker.objects.filter(last_seen_at__gte=Worker.alive_since(), draining=False)
    for organization, names in takers.values_list("organization", "queues"):
        for queue in names:
            serving[queue][organization] += 1
    paused = {queue for queue in Pause.objects.values_list("queue", "organization") if queue[0]}
    count: Counter[str] = Counter()
    unserved: Counter[str] = Counter()
    oldest: dict[str, datetime] = {}
    for line in waiting:
        name = line["queue"]
        count[name] += line["count"]
        oldest[name] = min(oldest.get(name, line["oldest"]), line["oldest"])
        if not (serving[name][None] or serving[name][line["organization"]]):
            unserved[name] += line["count"]
    everywhere = {queue for queue, organization in paused if organization is None}
    found = [
        Queue(
            name=name,
            waiting=count[name],
            unserved=unserved[name],
            oldest_s=(now - oldest[name]).total_seconds() if name in oldest else 0.0,
            nodes=sum(serving[name].values()),
            running=running.get(name, 0),
            paused=name in everywhere,
        )
        for name in {*count, *running, *everywhere}
    ]
    return sorted(found, key=lambda one: (-one.unserved, -one.oldest_s, one.name))


def nodes(now: datetime) -> list[Node]:
    """All nodes, by name."""
    busy: dict[Any, dict[str, Any]] = {
        row["worker"]: dict(row)
        for row in Allocation.objects.values("worker")
        .annotate(running=Count("task"), gpus_used=Sum("gpus"))
        .order_by()
    }
    alive_since = Worker.alive_since()
    found = []
    for node in Worker.objects.only(
        "name", "version", "capabilities", "queues", "usage", "draining", "last_seen_at"
    ).order_by("name"):
        held = busy.get(node.pk, {})
        state = "draining" if node.draining else "alive"
        clock = node.usage.get("clock")
        found.append(
            Node(
                id=str(node.pk),
                name=node.name,
                state=state if node.last_seen_at >= alive_since else "gone",
                silent_s=(now - node.last_seen_at).total_seconds(),
                running=held.get("running") or 0,
                version=node.version,
                gpus=len(node.capabilities.get("gpus") or ()),
                gpus_busy=held.get("gpus_used") or 0,
                disk_free_mib=node.usage.get("disk_free_mib"),
                ahead_s=clock - node.last_seen_at.timestamp()
                if isinstance(clock, int | float)
                else None,
                queues=tuple(node.queues),
            )
        )
    return found


def _slow(now: datetime) -> list[Slow]:
    usual = {(k, e): float(s) for k, e, s in _rows(_USUAL, [now - timedelta(days=7)])}
    running = (
        Task.objects.filter(state=State.RUNNING, started_at__lt=now - timedelta(seconds=30))
        .order_by("started_at")
        .values_list("pk", "kind", "engine", "worker__name", "started_at", "time_limit_s")
    )
    found = []
    for pk, kind, engine, node, started_at, limit_s in running[:MOST_SLOW]:
        assert started_at is not None  # the filter says so
        runs_s = (now - started_at).total_seconds()
        # Its budget may be longer than that of the others: half of its limit is its own matter.
        usual_s = usual.get((kind, engine), float(limit_s))
        bound = max(USUAL_TIMES * usual_s, 0.5 * limit_s) if (kind, engine) in usual else limit_s
        if runs_s > bound:
            name = f"{kind} {str(pk)[:8]}"
            found.append(Slow(str(pk), name, kind, node or "", runs_s, usual_s, float(limit_s)))
    return found


def unhandled(now: datetime) -> int:
    """Ends and events that nothing reacted to for a minute."""
    since = now - timedelta(seconds=REACT_S)
    ends = Task.objects.filter(handled_at=None, finished_at__lt=since).count()
    return ends + Event.objects.filter(handled_at=None, at__lt=since).count()


def swept_s(now: datetime) -> float | None:
    """Seconds since control last swept; None: never."""
    swept_at = Pulse.objects.values_list("swept_at", flat=True).first()
    return None if swept_at is None else (now - swept_at).total_seconds()


def broker_trouble() -> str:
    """Why the broker can't be used; empty when it can."""
    if not settings.REDIS_URL:
        return "REDIS_URL is not set."
    try:
        with redis.Redis.from_url(
            settings.REDIS_URL, socket_connect_timeout=BROKER_S, socket_timeout=BROKER_S
        ) as broker:
            broker.set("flowml:console", 1, ex=60)  # a full disk refuses writes only
    except (redis.RedisError, OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"[:200]
    return ""


def disk() -> tuple[int | None, int | None]:
    """Free bytes and size of the disk that files are stored on; None where it isn't a disk."""
    if not isinstance(default_storage, FileSystemStorage):
        return None, None
    for folder in (default_storage.location, settings.FLOWML_VAR):
        with suppress(OSError):  # the first upload makes the folder
            known = shutil.disk_usage(folder)
            return known.free, known.total
    return None, None


def _quotas(stored: dict[UUID, int]) -> list[Quota]:
    """What organizations use of what has a limit, where they use anything."""
    busy = Task.objects.filter(
        organization=OuterRef("pk"), state=State.RUNNING, light=False
    ).order_by()
    count = busy.values("organization").annotate(n=Count("subject", distinct=True)).values("n")
    month = UsageMonth.objects.filter(
        organization=OuterRef("pk"), month=usage.month_of(timezone.now())
    )
    found = []
    for one in Organization.objects.annotate(
        running=Coalesce(Subquery(count), 0),
        cpu_s=Coalesce(Subquery(month.values("cpu_s")), 0.0),
        gpu_s=Coalesce(Subquery(month.values("gpu_s")), 0.0),
    ).order_by("name"):
        used = {
            "concurrent_jobs": one.running,
            "storage_bytes": stored.get(one.pk, 0),
            "cpu_hours": one.cpu_s / 3600,
            "gpu_hours": one.gpu_s / 3600,
        }
        for name, has in used.items():
            limit = quotas.limit_of(one, name)
            if has and limit:
                told = quotas.QUOTAS[name]
                found.append(Quota(str(one.pk), one.name, told.title, has, limit, told.unit))
    return found


def _pauses(now: datetime, lines: list[Queue]) -> list[Paused]:
    waiting = {queue.name: queue.waiting for queue in lines}
    return [
        Paused(
            what=str(pause),
            by=pause.by,
            reason=pause.reason,
            since_s=(now - pause.since).total_seconds(),
            waiting=waiting.get(pause.queue, 0) if pause.queue else sum(waiting.values()),
        )
        for pause in Pause.objects.select_related("organization").order_by("since")
    ]


def _hours(now: datetime, waiting: int) -> list[Hour]:
    """The last 24 hours. The lines are reckoned backwards from how long they are now."""
    begins = hours_before(now)
    first = [begins[0]]
    ends = {row[0]: row[1:] for row in _rows(_ENDS, first)}
    came, left = dict(_rows(_CAME, first)), dict(_rows(_LEFT, first))
    found: list[Hour] = []
    for at in reversed(begins):
        key = at.replace(tzinfo=None)
        well, work, platform, cancelled = ends.get(key, (0, 0, 0, 0))
        found.append(Hour(at, well, work, platform, cancelled, max(0, waiting)))
        waiting += left.get(key, 0) - came.get(key, 0)
    return found[::-1]
