"""Short jobs of the control process."""

import logging
from datetime import timedelta
from typing import Any
from uuid import UUID

from celery import shared_task
from django.db import transaction
from django.utils import timezone

from accounts import mail
from accounts.errors import FlowError
from pipelines import actions, doing, driving, hooks, logs
from pipelines.models import Pipeline, Run, Step

log = logging.getLogger(__name__)
TOLD_WITHIN = timedelta(days=1)  # the end of a run that nobody was told of by then is old news


@shared_task(name="pipelines.tasks.advance")
def advance(run: str) -> None:
    driving.advance(UUID(run))


@shared_task(name="pipelines.tasks.sweep")
def sweep() -> None:
    """Every run that is going gets its look, whoever forgot to ask for it; and what waits, and the
    mails that were not sent, their turn."""
    for run in Run.objects.filter(state=Run.State.RUNNING).values_list("pk", flat=True):
        try:
            driving.advance(run)
        except Exception:  # what is wrong with one run is no other's trouble
            log.exception("a run was not looked at", extra={"run": str(run)})
    for going in Run.objects.filter(state=Run.State.RUNNING):
        logs.write(going)
    waiting = Run.objects.filter(state=Run.State.QUEUED).values_list("pipeline", flat=True)
    for pipeline in waiting.distinct().order_by("pipeline"):
        actions.begin_next(pipeline)
    untold = Run.objects.filter(told_at=None, finished_at__gt=timezone.now() - TOLD_WITHIN)
    for run in untold.values_list("pk", flat=True):
        ended(str(run))


@shared_task(name="pipelines.tasks.tidy")
def tidy() -> None:
    """Let old log files go."""
    logs.tidy()


@shared_task(name="pipelines.tasks.scheduled")
def scheduled(pipeline: str) -> None:
    """A pipeline's time has come."""
    found = Pipeline.objects.filter(pk=pipeline, is_enabled=True).exclude(schedule={}).first()
    if found is None or found.organization.delete_after is not None:
        return
    try:
        overlap = found.schedule.get("overlap", "skip")
        actions.start_run(None, found, trigger=Run.Trigger.SCHEDULE, overlap=overlap)
    except FlowError as refusal:
        log.warning("no run by schedule", extra={"pipeline": pipeline, "why": refusal.detail})


@shared_task(name="pipelines.tasks.ended")
def ended(run: str) -> None:
    """A run has ended: the next begins, and who wants to know is told, once."""
    found = Run.objects.select_related("pipeline", "version", "organization").get(pk=run)
    if not found.has_ended:
        return
    actions.begin_next(found.pipeline_id)
    logs.write(found)
    mine = Run.objects.filter(pk=run, told_at=None)
    if not mine.update(told_at=timezone.now()):
        return
    wanted = found.version.definition.get("notify") or {}
    if found.state not in wanted.get("on", ()):
        return
    text = f"The run {found} has {_WORDS[found.state]}.\n{found.why}\n\n{_link(found)}"
    try:
        hooks.run_ended(found, wanted.get("hooks", []))
    except Exception:  # nor are the hooks the addresses'
        log.exception("an end was not told", extra={"run": run})
    for to in wanted["to"]:
        try:
            doing.members(found.organization, [to])
            mail.send_text(to, f"{found} has {_WORDS[found.state]}", text)
        except Exception:  # one address that takes no mail is not the others' trouble
            log.exception("an end was not told", extra={"run": run})


@shared_task(name="pipelines.tasks.tell")
def tell(step: str) -> None:
    """Send the message of a stage, which is done then."""
    found = (
        Step.objects.filter(pk=step, stage="notify", state=Step.State.RUNNING)
        .select_related("run__pipeline", "run__version", "run__organization")
        .first()
    )
    if found is None or "told" in found.output:
        return
    run = found.run
    stage = next(one for one in run.version.definition["stages"] if one["key"] == found.key)
    to = stage["params"]["to"]
    done = [f"- {one.key}: {_summary(one)}" for one in run.steps.order_by("position") if one.output]
    text = "\n".join([stage["params"].get("message", ""), "", *done, "", _link(run)]).strip()
    output: dict[str, Any] = {"told": len(to)}
    try:
        for address in doing.members(run.organization, to):
            mail.send_text(address, f"{run} has come to {found.key}", text)
    except Exception as problem:  # whatever the mail server makes of it
        log.exception("a message was not sent", extra={"run": str(run.pk)})
        output = {"problem": f"The message was not sent. {doing.refused(problem)}"}
    with transaction.atomic():
        Step.objects.filter(pk=found.pk, state=Step.State.RUNNING).update(output=output)
        driving.ask(run.pk)


_WORDS: dict[str, str] = {
    Run.State.SUCCEEDED: "succeeded",
    Run.State.FAILED: "failed",
    Run.State.CANCELLED: "been cancelled",
}


def _summary(step: Step) -> str:
    said = step.output
    if "deployed" in said:
        return f"{said['name']}: {said['why']}"
    if "promoted" in said:
        what = "promoted" if said["promoted"] else "not promoted"
        return f"{what}: {said['name']}@{said['alias']} is version {said['number']}. {said['why']}"
    parts = [f"{name} {said[name]}" for name in ("name", "metric", "score", "rows") if name in said]
    return ", ".join(parts) or step.state


def _link(run: Run) -> str:
    return mail.address(run.get_absolute_url())
