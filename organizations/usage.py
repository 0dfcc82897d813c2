"""The ledger of what organizations used: exact, however often an end is reported."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Count, F, Sum
from django.db.models.functions import Greatest, TruncDate
from django.utils import timezone

from organizations.models import Organization, UsageEntry, UsageMonth

MONTHS, DAYS = 12, 30
HOUR = 3600.0
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
        .annotate(cpu_s=Sum("cpu_s"), gpu_s=Sum("gpu_s"), tasks=Count("pk"))
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
