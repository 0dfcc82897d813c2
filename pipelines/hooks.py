"""Who is told by web hook that a run or a long training has ended. Runs in control.

A message is a light task: a node sends it, for only nodes go out of the house, and tries again
when the far side fails. It waits where no node is there, and is in the connection's log.
"""

import logging
from collections.abc import Mapping
from typing import Any

from django.utils import timezone

from accounts import mail
from pipelines.models import Connection, Run
from training.models import TrainingJob
from workers.actions import add_task
from workers.models import Task

HOOK = "pipeline.hook"
TIME_S = 600
log = logging.getLogger(__name__)


def of(home: Any) -> Any:
    """The organization's web hooks."""
    return Connection.objects.of(home).filter(kind=Connection.Kind.WEBHOOK)


def send(hook: Connection, event: str, about: Mapping[str, Any]) -> Task:
    """Have a node tell of ``event``, once this transaction is through."""
    return add_task(
        hook.organization,
        kind=HOOK,
        subject=hook.pk,
        topic=f"connection:{hook.pk}",
        payload={
            "connection": {"id": str(hook.pk)},
            "event": event,
            "body": {
                "event": event,
                "at": timezone.now().isoformat(),
                "organization": str(hook.organization_id),
                **about,
            },
        },
        light=True,
        cpu_millis=250,
        ram_mib=256,
        time_limit_s=TIME_S,
    )


def run_ended(run: Run, names: list[str]) -> None:
    """Tell the hooks of these names; one that is gone meanwhile is nobody's trouble."""
    for hook in of(run.organization).filter(name__in=names).order_by("name"):
        about = {
            "pipeline": {"id": str(run.pipeline_id), "name": run.pipeline.name},
            "run": {
                "id": str(run.pk),
                "number": run.number,
                "state": run.state,
                "error": run.why if run.state == Run.State.FAILED else "",
                "started_at": run.started_at.isoformat() if run.started_at else None,
                "finished_at": run.finished_at.isoformat() if run.finished_at else None,
            },
            "url": mail.address(run.get_absolute_url()),
        }
        send(hook, f"pipeline-run.{run.state}", about)


def training_ended(job: TrainingJob) -> None:
    """Tell the organization's hooks that want to know of trainings as long as this one."""
    if job.finished_at is None:
        return
    took = (job.finished_at - (job.started_at or job.created_at)).total_seconds()
    for hook in of(job.organization).order_by("name"):
        least = hook.settings.get("training_min")
        if least is None or took < 60 * least:
            continue
        best = job.best_model
        about = {
            "training": {
                "id": str(job.pk),
                "name": job.name,
                "target": job.target,
                "dataset": job.dataset["name"],
                "state": job.state,
                "error": "" if best else job.error,
                "seconds": round(took),
                "model": {"id": str(best.pk), "name": best.name} if best else None,
                "metric": job.metric,
                "score": best.ranked_score if best else None,
            },
            "url": mail.address(job.get_absolute_url()),
        }
        send(hook, f"training.{job.state}", about)
