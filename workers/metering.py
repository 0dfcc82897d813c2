"""What tasks and files mean to organizations: what was used, and what goes with a whole one."""

import math
from typing import Any
from uuid import UUID

from django.db.models import Sum

from organizations import parts, quotas, usage
from organizations.models import Organization
from workers.actions import cancel_task
from workers.models import Artifact, Event, Stream, Task, Worker
from workers.signals import task_ended


def connect() -> None:
    task_ended.connect(_ended, dispatch_uid="workers.metering")
    quotas.register_meter("storage_bytes", stored)
    usage.register_storage(stored_by_all)
    parts.register(export=_export, stop=_stop, purge=_purge)


def stored(organization: Organization) -> int:
    """Bytes of all the organization's files."""
    return Artifact.objects.of(organization).aggregate(n=Sum("size"))["n"] or 0


def stored_by_all() -> dict[UUID, int]:
    rows = Artifact.objects.order_by().values_list("organization").annotate(n=Sum("size"))
    return dict(rows)


def _ended(task: Task, **_: Any) -> None:
    """Note what the attempt that ended used. One that was lost, by nobody's fault, costs nothing.

    Nor does work on a node of the organization's own.
    """
    if task.started_at is None or task.finished_at is None:
        return
    if task.worker is not None and task.worker.organization_id is not None:
        return
    wall_s = max(0.0, (task.finished_at - task.started_at).total_seconds())
    said = _seconds(task.usage.get("wall_s"))
    if said is not None:
        wall_s = min(wall_s, said)  # what went by until the node was heard isn't theirs
    usage.note(
        task.organization_id,
        task=task.pk,
        attempt=task.attempt,
        kind=task.kind,
        cpu_s=_seconds(task.usage.get("cpu_s")) or 0.0,
        gpu_s=task.gpus * wall_s,
        wall_s=wall_s,
        ended_at=task.finished_at,
    )


def _seconds(said: Any) -> float | None:
    """A number of seconds as a node tells it, or None where it is none."""
    if isinstance(said, bool) or not isinstance(said, int | float) or not math.isfinite(said):
        return None
    return max(0.0, float(said))


# --- A whole organization ------------------------------------------------------------------------


def _export(home: Organization, bundle: parts.Bundle) -> None:
    nodes = Worker.objects.filter(organization=home)
    bundle.add_table("nodes", nodes, "token_hash", "broker_hash")
    bundle.add_table("tasks", Task.objects.of(home), "payload")
    bundle.add_table("events", Event.objects.filter(stream__organization=home))
    bundle.add_table("files", Artifact.objects.of(home), "signature", "file")


def _stop(home: Organization) -> None:
    for task in Task.objects.of(home).exclude(state__in=Task.ENDED).order_by("pk"):
        cancel_task(task, by="the organization's deletion")


def _purge(home: Organization) -> None:
    """The files first: a row that is left says what is still to be deleted."""
    for artifact in Artifact.objects.of(home).iterator(1000):
        artifact.file.delete(save=False)
    Artifact.objects.of(home).delete()
    Task.objects.of(home).delete()
    Stream.objects.filter(organization=home).delete()
