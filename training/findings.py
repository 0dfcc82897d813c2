"""The data gate as people meet it: asked for, kept, and heeded when a job starts.

What is looked for, and how, is training/gate.py's; it runs on a node. Here a check is a row, one
for all that its answer depends on, so that asking again costs one query and a start never waits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from django.db import transaction
from django.utils import timezone

from accounts.errors import Conflict, Invalid
from datasets.models import DatasetVersion
from organizations import quotas
from organizations.models import Membership
from training.checks import Plan
from training.models import CHECK, DataCheck
from workers.actions import add_task, emit
from workers.models import Task

RULES = 1  # of training/gate.py: what older ones found is looked at again
CHECK_RAM_MIB = 2048
CHECK_TIME_S = 300
MOST_REASON = 1_000
State = DataCheck.State


class SevereFindings(Conflict):
    code = "severe-findings"


def ask(
    by: Membership, version: DatasetVersion, plan: Plan, column_types: Mapping[str, str]
) -> DataCheck:
    """The check of this version for this plan: the one there is, else a new one that is queued.

    One that failed is tried again. Call it with the version locked.
    """
    columns = _columns(version, plan.target, column_types)
    key = _key(plan, columns)
    check: DataCheck | None = version.checks.filter(key=key).select_related("work").first()
    if check is not None and check.state != State.FAILED:
        return check
    assert version.data is not None
    quotas.reserve(by.organization, cpu_hours=0)
    if check is None:
        check = DataCheck(organization=by.organization, dataset_version=version, key=key)
    check.target, check.task, check.split = plan.target, plan.task, plan.split
    check.state, check.error, check.finished_at = State.RUNNING, "", None
    check.created_by = by.author
    check.save()
    check.work = add_task(
        by.organization,
        kind=CHECK,
        subject=check.pk,
        topic=check.topic,
        payload={
            "target": plan.target,
            "task": plan.task,
            "classes": plan.classes,
            "split": plan.split,
            "columns": columns,
        },
        inputs={"data": version.data},
        light=True,
        ram_mib=CHECK_RAM_MIB + _size_mib(version),
        time_limit_s=CHECK_TIME_S,
    )
    check.save(update_fields=["work"])
    return check


def _size_mib(version: DatasetVersion) -> int:
    """One column is held at a time, and a few numbers for each row."""
    return int(version.rows * 100 // 2**20)


def _columns(
    version: DatasetVersion, target: str, column_types: Mapping[str, str]
) -> list[dict[str, Any]]:
    """What the gate has to know of every column but the target. Those that the request leaves out
    are looked at as well: leaving one out then changes what is shown, and needs no new check."""
    return [
        {
            "name": column["name"],
            "dtype": column["dtype"],
            "role": column_types.get(column["name"], column["role"]),
            "distinct": column.get("distinct") or 0,
            "missing": column.get("missing") or 0,
        }
        for column in version.columns
        if column["name"] != target
    ]


def _key(plan: Plan, columns: list[dict[str, Any]]) -> str:
    roles = [(column["name"], column["role"]) for column in columns]
    said = [RULES, plan.target, plan.task, plan.split, roles]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


@transaction.atomic
def finish(task: Task) -> None:
    """Keep what a node found, or why it could not look. Doing it again changes nothing."""
    check = (
        DataCheck.objects.select_for_update(no_key=True, of=("self",))
        .filter(pk=task.subject, work=task, state=State.RUNNING)
        .first()
    )
    if check is None:
        return
    data = task.result.get("data") or {}
    if task.state == Task.State.SUCCEEDED and isinstance(data.get("findings"), list):
        check.state, check.findings = State.SUCCEEDED, data["findings"]
        check.rows, check.sample = int(data.get("rows") or 0), int(data.get("sample") or 0)
        check.seconds = float(data.get("seconds") or 0.0)
    else:
        check.state = State.FAILED
        check.error = task.error or "The check was cancelled before it was done."
    check.finished_at = timezone.now()
    check.save()
    emit(check.topic, f"check.{check.state}", {"findings": len(check.findings)})


def admit(
    by: Membership,
    version: DatasetVersion,
    plan: Plan,
    *,
    exclude: Collection[str],
    column_types: Mapping[str, str],
    accept: bool,
    reason: str,
) -> dict[str, Any] | None:
    """Let a job start, or refuse it for what an earlier check of the same has found.

    Returns None where there is nothing severe, or nothing known; where somebody takes it upon
    themselves: who, why, and the findings. Raises SevereFindings, and Invalid for an override
    without a reason.
    """
    key = _key(plan, _columns(version, plan.target, column_types))
    check = version.checks.filter(key=key, state=State.SUCCEEDED).first()
    severe = check.severe(exclude) if check is not None else []
    if not severe:
        return None
    if not accept:
        first, more = severe[0], len(severe) - 1
        raise SevereFindings(
            f"{first['message']} {first['advice']}"
            + (f" And {more} more like it." if more else "")
            + " To start all the same, send accept_findings: true and a reason.",
            findings=severe,
        )
    if not reason.strip():
        raise Invalid(
            "Say why the findings are accepted.",
            errors={"reason": ["Say why the findings are accepted: it is kept with the job."]},
        )
    return {
        "by": by.name,
        "reason": reason.strip()[:MOST_REASON],
        "at": timezone.now().isoformat(),
        "findings": severe,
    }


def in_words(accepted: Mapping[str, Any]) -> str:
    """What a job tells of findings with which it was started all the same."""
    about = ", ".join(
        sorted({f"'{name}'" for one in accepted["findings"] for name in one["columns"]})
    )
    what = f" about {about}" if about else ""
    return f"Started in spite of severe findings{what}. {accepted['by']}: {accepted['reason']}"
