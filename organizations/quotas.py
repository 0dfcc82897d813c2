"""What an organization may use. The operator sets it; reaching it is told with what frees it.

Who measures what is used lies further right (files, jobs, deployments) and says so here by
``register_meter`` in its ``AppConfig.ready``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Any, ClassVar

from django.conf import settings
from django.db import connection
from django.utils import timezone

from accounts.errors import FlowError
from organizations import usage
from organizations.models import Organization

Meter = Callable[[Organization], float]
_meters: dict[str, list[Meter]] = {}


class QuotaReached(FlowError):
    code: ClassVar[str] = "quota-reached"
    status: ClassVar[int] = 429


@dataclass(frozen=True)
class Quota:
    """``column`` of Organization holds the limit; where it is null, ``setting`` does (None: no
    limit). ``frees`` says what a person can do."""

    name: str
    title: str
    unit: str  # "", "bytes" or "hours"
    column: str
    setting: str
    frees: str

    @property
    def monthly(self) -> bool:
        return self.unit == "hours"


QUOTAS = {
    quota.name: quota
    for quota in (
        Quota("concurrent_jobs", "Trainings at once", "", "max_concurrent_jobs",
              "MAX_CONCURRENT_JOBS", "More of them wait until one has ended."),
        Quota("queued_jobs", "Trainings that wait", "", "max_queued_jobs", "MAX_QUEUED_JOBS",
              "Wait until some have started, or cancel one that waits."),
        Quota("storage_bytes", "Storage", "bytes", "max_storage_bytes", "MAX_STORAGE_BYTES",
              "Delete data sets, or an export, that nobody needs any more."),
        Quota("upload_bytes", "One upload", "bytes", "max_upload_bytes", "MAX_UPLOAD_SIZE_MB",
              "Upload a smaller file, or several."),
        Quota("cpu_hours", "CPU hours this month", "hours", "max_cpu_hours", "MAX_CPU_HOURS",
              "It starts anew with the month."),
        Quota("gpu_hours", "GPU hours this month", "hours", "max_gpu_hours", "MAX_GPU_HOURS",
              "It starts anew with the month. Training on CPUs goes on."),
        Quota("deployments", "Deployments", "", "max_deployments", "MAX_DEPLOYMENTS",
              "Stop a deployment that nobody needs any more."),
    )
}  # fmt: skip


def register_meter(name: str, meter: Meter) -> None:
    """Say how much of a quota an organization uses now; what several say is added up."""
    if meter not in _meters.setdefault(name, []):
        _meters[name].append(meter)


def limit_of(organization: Organization, name: str) -> int | None:
    """The organization's own limit, or else the installation's; None: there is none."""
    quota = QUOTAS[name]
    own: int | None = getattr(organization, quota.column)
    usual: int | None = getattr(settings, quota.setting)
    if name == "upload_bytes":
        usual = (usual or 0) * 2**20  # which nobody gets past
        return usual if own is None else min(own, usual)
    return usual if own is None else own


def used(organization: Organization, name: str) -> float:
    if QUOTAS[name].monthly:
        cpu_hours, gpu_hours = usage.this_month(organization)
        return cpu_hours if name == "cpu_hours" else gpu_hours
    return sum(meter(organization) for meter in _meters.get(name, ()))


def reserve(organization: Organization, **wanted: float) -> None:
    """Raise QuotaReached unless each quota named has room for what is wanted.

    Call it in the transaction that uses it up: the organization's row stays locked until its end,
    so that of two who come for the last room, the second sees what the first took. What is wanted
    of hours can't be known: 0 asks whether any are left.
    """
    assert connection.in_atomic_block, "who reserves uses it up in the same transaction"
    if all(limit_of(organization, name) is None for name in wanted):
        return
    fresh = Organization.objects.select_for_update(no_key=True).get(pk=organization.pk)
    check(fresh, **wanted)


def check(organization: Organization, **wanted: float) -> None:
    """The same as a look ahead, before something that takes long; it holds nothing."""
    for name, more in wanted.items():
        limit = limit_of(organization, name)
        if limit is None:
            continue
        has = 0 if name == "upload_bytes" else used(organization, name)
        if has + more > limit or (not more and has >= limit):
            raise _reached(QUOTAS[name], has, more, limit)


def _reached(quota: Quota, has: float, more: float, limit: int) -> QuotaReached:
    extra: dict[str, Any] = {
        "quota": quota.name, "used": round(has, 3), "limit": limit, "unit": quota.unit or "count",
        "frees": quota.frees,
    }  # fmt: skip
    if quota.monthly:
        extra["resets_at"] = resets_at().isoformat()
    if quota.name == "upload_bytes":
        sentence = (
            f"The file has {in_words(more, 'bytes')}, and your organization uploads at most "
            f"{in_words(limit, 'bytes')} at a time."
        )
        return QuotaReached(
            f"{sentence} {quota.frees}", errors={"file": [sentence]}, status=413, **extra
        )
    sentence = (
        f'Your organization has reached its quota "{quota.title}": '
        f"{in_words(has, quota.unit)} of {in_words(limit, quota.unit)} are used"
    )
    if more and quota.unit == "bytes":
        sentence += f", and this needs {in_words(more, 'bytes')} more"
    again = f" It starts anew on {resets_at():%-d %B}." if quota.monthly else ""
    frees = quota.frees.removeprefix("It starts anew with the month.").strip()
    return QuotaReached(
        f"{sentence}.{again}{f' {frees}' if frees else ''} The operator can raise it.", **extra
    )


def resets_at() -> datetime:
    month = usage.next_month(usage.month_of(timezone.now()))
    return datetime.combine(month, time.min, UTC)


def in_words(amount: float, unit: str) -> str:
    """ "1.2 GB", "3.5 hours", "4"."""
    if unit == "hours":
        return f"{amount:,.1f} hours" if amount != int(amount) else f"{int(amount):,} hours"
    if unit != "bytes":
        return f"{int(amount):,}"
    for name in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{int(amount)} {name}" if amount == int(amount) else f"{amount:.1f} {name}"
        amount /= 1000
    return f"{amount:,.1f} TB"


def report(organization: Organization) -> list[dict[str, Any]]:
    """Every quota with what is used of it."""
    hours = dict(zip(("cpu_hours", "gpu_hours"), usage.this_month(organization), strict=True))
    rows = []
    for quota in QUOTAS.values():
        limit = limit_of(organization, quota.name)
        if quota.name == "upload_bytes":
            has = None
        else:
            has = hours[quota.name] if quota.monthly else used(organization, quota.name)
        rows.append(
            {
                "quota": quota.name,
                "title": quota.title,
                "unit": quota.unit or "count",
                "used": has,
                "limit": limit,
                "share": min(1.0, has / limit) if limit and has is not None else None,
                "resets_at": resets_at() if quota.monthly else None,
                "frees": quota.frees,
            }
        )
    return rows
