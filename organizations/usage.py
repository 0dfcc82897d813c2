"""The ledger of what organizations used: exact, however often an end is reported."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Count, F, Q, Sum
from django.db.models.functions import Greatest, TruncDate
from django.utils import timezone

from organizations.models import Organization, UsageEntry, UsageMonth

MONTHS, DAYS = 12, 30
HOUR = 3600.0
GOES_ON = "deployment"  # the kind of entries of what goes on: see ``note_held``
DAY_0 = date(2020, 1, 1)  # such an entry's attempt is its day, counted from here
_storage: list[Callable[[], dict[UUID, int]]] = []


def register_storage(measure: Callable[[], dict[UUID, int]]) -> None:
    """Add what measures the bytes that organizations store, all of them at once."""
    if measure not in _storage:
        _storage.append(measure)


def month_of(moment: datetime) -> date:
    return moment.astimezone(UTC).date().replace(day=1)


def next_month(month: date) -> date:
    return (month + timedelta(days=32)).replace(day=1)


@transaction.atomic
def note(
    organization: UUID,
    *,
    task: UUID,
    attempt: int,
    kind: str,
    cpu_s: float,
    gpu_s: float,
    wall_s: float,
    ended_at: datetime,
) -> bool:
    """Enter what an attempt used, once; whether it was new. A month has it in which it ended."""
    _, new = UsageEntry.objects.get_or_create(
        task=task,
        attempt=attempt,
        defaults={
            "organization_id": organization, "kind": kind, "cpu_s": cpu_s, "gpu_s": gpu_s,
            "wall_s": wall_s, "ended_at": ended_at,
        },
    )  # fmt: skip
    if new:
        month, _ = UsageMonth.objects.get_or_create(
            organization_id=organization, month=month_of(ended_at)
        )
        UsageMonth.objects.filter(pk=month.pk).update(
            cpu_s=F("cpu_s") + cpu_s, gpu_s=F("gpu_s") + gpu_s, tasks=F("tasks") + 1
        )
    return new


class Held(NamedTuple):
    """What a replica of a deployment held between two moments."""

    organization: UUID
    replica: UUID
    cores: float
    gpus: int
    since: datetime
    until: datetime


def days_of(since: datetime, until: datetime) -> Iterator[tuple[datetime, datetime]]:
    """The parts of a time that lie on one day (UTC) each."""
    since, until = since.astimezone(UTC), until.astimezone(UTC)
    while since < until:
        midnight = datetime.combine(since.date() + timedelta(days=1), time.min, UTC)
        yield since, min(until, midnight)
        since = midnight


_ADD_ENTRIES = """
INSERT INTO organizations_usageentry AS mine
       (id, created_at, organization_id, task, attempt, kind, cpu_s, gpu_s, wall_s, ended_at)
SELECT gen_random_uuid(), now(), *
  FROM unnest(%s::uuid[], %s::uuid[], %s::int[], %s::text[], %s::float8[], %s::float8[],
              %s::float8[], %s::timestamptz[])
    ON CONFLICT (task, attempt) DO UPDATE
   SET cpu_s = mine.cpu_s + excluded.cpu_s, gpu_s = mine.gpu_s + excluded.gpu_s,
       wall_s = mine.wall_s + excluded.wall_s, ended_at = excluded.ended_at
"""
_ADD_TO_MONTHS = """
INSERT INTO organizations_usagemonth AS mine
       (id, created_at, organization_id, month, cpu_s, gpu_s, tasks, storage_bytes)
SELECT gen_random_uuid(), now(), organization, month, sum(cpu_s), sum(gpu_s), 0, 0
  FROM unnest(%s::uuid[], %s::date[], %s::float8[], %s::float8[])
       AS added(organization, month, cpu_s, gpu_s)
 GROUP BY organization, month ORDER BY organization, month
    ON CONFLICT (organization_id, month) DO UPDATE
   SET cpu_s = mine.cpu_s + excluded.cpu_s, gpu_s = mine.gpu_s + excluded.gpu_s
"""


def note_held(those: Sequence[Held]) -> None:
    """Add what goes on to the ledger: an entry for each replica and day, which grows.

    Whoever calls this keeps in the same transaction up to when it has, and asks for what follows
    alone: that is why nothing is counted twice.
    """
    assert connection.in_atomic_block, "what is noted and up to when go together"
    entries, months = [], []
    for one in those:
        for since, until in days_of(one.since, one.until):
            wall_s = (until - since).total_seconds()
            cpu_s, gpu_s = one.cores * wall_s, one.gpus * wall_s
            day = since.date()
            ended_at = min(until, datetime.combine(day, time.max, UTC))
            number = (day - DAY_0).days
            entries.append(
                (one.organization, one.replica, number, GOES_ON, cpu_s, gpu_s, wall_s, ended_at)
            )
            months.append((one.organization, day.replace(day=1), cpu_s, gpu_s))
    if not entries:
        return
    with connection.cursor() as cursor:
        for statement, rows in ((_ADD_ENTRIES, entries), (_ADD_TO_MONTHS, months)):
            cursor.execute(statement, [list(column) for column in zip(*rows, strict=True)])


def note_storage() -> None:
    """Keep the most that each organization stored this month. Once a day is enough."""
    month = month_of(timezone.now())
    total: dict[UUID, int] = {}
    for measure in _storage:
        for organization, size in measure().items():
            total[organization] = total.get(organization, 0) + size
    for organization, size in total.items():
        made, _ = UsageMonth.objects.get_or_create(organization_id=organization, month=month)
        UsageMonth.objects.filter(pk=made.pk).update(storage_bytes=Greatest("storage_bytes", size))


def this_month(organization: Organization) -> tuple[float, float]:
    """CPU and GPU hours of the current month."""
    found = UsageMonth.objects.of(organization).filter(month=month_of(timezone.now()))
    cpu_s, gpu_s = found.values_list("cpu_s", "gpu_s").first() or (0.0, 0.0)
    return cpu_s / HOUR, gpu_s / HOUR


def history(organization: Organization) -> dict[str, list[dict[str, Any]]]:
    """The last twelve months and thirty days, oldest first, none left out."""
    today = timezone.now().astimezone(UTC).date()
    months = [today.replace(day=1)]
    while len(months) < MONTHS:
        months.insert(0, (months[0] - timedelta(days=1)).replace(day=1))
    kept = UsageMonth.objects.of(organization).filter(month__gte=months[0])
    by_month = {row.month: row for row in kept}
    first = today - timedelta(days=DAYS - 1)
    entries = UsageEntry.objects.of(organization).filter(
        ended_at__gte=datetime.combine(first, datetime.min.time(), UTC)
    )
    by_day: dict[Any, dict[str, Any]] = {
        row["day"]: dict(row)
        for row in entries.order_by()
        .annotate(day=TruncDate("ended_at", tzinfo=UTC))
        .values("day")
        .annotate(
            cpu_s=Sum("cpu_s"), gpu_s=Sum("gpu_s"), tasks=Count("pk", filter=~Q(kind=GOES_ON))
        )
    }
    nothing = UsageMonth()  # all zeros
    return {
        "months": [
            {
                "month": month,
                "cpu_hours": by_month.get(month, nothing).cpu_s / HOUR,
                "gpu_hours": by_month.get(month, nothing).gpu_s / HOUR,
                "tasks": by_month.get(month, nothing).tasks,
                "storage_bytes": by_month.get(month, nothing).storage_bytes,
            }
            for month in months
        ],
        "days": [
            {
                "day": day,
                "cpu_hours": by_day.get(day, {}).get("cpu_s", 0.0) / HOUR,
                "gpu_hours": by_day.get(day, {}).get("gpu_s", 0.0) / HOUR,
                "tasks": by_day.get(day, {}).get("tasks", 0),
            }
            for day in (first + timedelta(days=n) for n in range(DAYS))
        ],
    }
