"""How a run gets on: look at what its steps wait for, plan (graph.py), carry it out.

All under the lock of the run's row, so that two who come at once do it once. It is asked for
whenever something may have ended, and by a sweep every few seconds for what nobody told: to lose
such a message loses nothing. Locks go run -> job -> tasks -> stream; reactions to the end of a
task, which may hold a job's lock, only ask.
"""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from accounts.errors import FlowError
from organizations.audit import record
from pipelines import doing, graph
from pipelines.doing import Said, Work
from pipelines.models import Run, Step
from workers import bells
from workers.models import emit

log = logging.getLogger(__name__)
State = Step.State
MOST_TURNS = 4 * graph.MOST_STAGES


def ask(run: UUID) -> None:
    """Have control look at a run once this transaction is committed."""
    transaction.on_commit(
        lambda: bells.send("pipelines.tasks.advance", args=[str(run)], queue="control")
    )


@transaction.atomic
def advance(pk: UUID) -> Run | None:
    """Do all for a run that can be done now. Doing it again changes nothing."""
    run = (
        Run.objects.select_for_update(no_key=True, of=("self",))
        .select_related("organization", "pipeline", "version", "started_by")
        .filter(pk=pk)
        .first()
    )
    if run is None or run.state != Run.State.RUNNING:
        return run
    stages = run.version.definition["stages"]
    steps = {step.key: step for step in run.steps.select_related("task")}
    by = doing.on_behalf(run)
    works = {one["key"]: Work(run, steps[one["key"]], one, steps, by) for one in stages}
    for _ in range(MOST_TURNS):
        for work in works.values():
            if work.step.state == State.RUNNING:
                _look(work)
        cancelled = run.cancel_requested_at is not None
        same = {} if cancelled else {key: _same_as(works[key]) for key in _ready(stages, steps)}
        now = timezone.now()
        plan = graph.plan(
            stages,
            {key: _as_seen(step, same.get(key)) for key, step in steps.items()},
            now.timestamp(),
            cancelled=cancelled,
        )
        for key in plan.skip:
            earlier = same[key]
            assert earlier is not None
            _end(works[key], Said(State.SKIPPED, earlier.output), skipped_because=_because(earlier))
        for key in plan.start:
            _start(works[key])
        for key, at in plan.again.items():
            _again(works[key], datetime.fromtimestamp(at, UTC))
        for key in plan.give_up:
            _end(works[key], Said(State.NOT_RUN))
        for key in plan.cancel:
            _cancel(works[key])
        if plan.end:
            _end_run(run, plan.end, steps)
            break
        gone = [key for key in plan.cancel if steps[key].state != State.RUNNING]
        if not (plan.skip or plan.start or plan.again or plan.give_up or gone):
            break
    return run


def _ready(stages: Any, steps: Mapping[str, Step]) -> list[str]:
    """Pending steps all of whose inputs are there."""
    return [
        one["key"]
        for one in stages
        if steps[one["key"]].state == State.PENDING
        and all(steps[key].state in Step.DONE for key in graph.before(one))
    ]


def _as_seen(step: Step, same: Step | None) -> graph.StepNow:
    return graph.StepNow(
        state=step.state,
        retry_count=step.retry_count,
        not_before=step.not_before.timestamp() if step.not_before else 0,
        finished_at=step.finished_at.timestamp() if step.finished_at else 0,
        same_as=str(same.pk) if same else "",
    )


def _same_as(work: Work) -> Step | None:
    """The last step of the pipeline that did the same with the same, if what it gave is there."""
    if not graph.STAGES[work.step.stage].is_same or work.step.attempt:
        return None  # one that was begun in this run is wanted again
    try:
        digest = graph.digest(work.stage, work.inputs())
    except Exception:  # its start will say what is wrong
        return None
    found = Step.objects.filter(
        run__pipeline=work.run.pipeline_id, inputs_digest=digest, state=State.SUCCEEDED
    ).select_related("run")
    earlier: Step | None = found.exclude(pk=work.step.pk).order_by("-finished_at").first()
    return earlier if earlier is not None and doing.is_there(work, earlier) else None


def _because(earlier: Step) -> str:
    return f"Run {earlier.run.number} did the same with the same data: what it made is used."


def _look(work: Work) -> None:
    before = dict(work.step.output)
    try:
        with transaction.atomic():
            said = doing.look(work)
    except Exception as error:
        _note(work, error)
        said = Said(State.FAILED, error=doing.refused(error))
    if said is not None:
        _end(work, said)
    elif work.step.output != before:
        work.step.save(update_fields=["output", "subject", "task"])


def _start(work: Work) -> None:
    step = work.step
    step.state, step.started_at, step.finished_at = State.RUNNING, timezone.now(), None
    step.attempt += 1
    step.error, step.not_before, step.task, step.subject, step.output = "", None, None, None, {}
    step.skipped_because = ""
    step.save()
    _tell(work, "step.running", {"attempt": step.attempt})
    try:
        with transaction.atomic():
            step.inputs_digest = graph.digest(work.stage, work.inputs())
            doing.start(work)
            step.save()
    except Exception as error:
        _note(work, error)
        step.task, step.subject, step.output = None, None, {}
        _end(work, Said(State.FAILED, error=doing.refused(error)))


def _note(work: Work, error: Exception) -> None:
    if not isinstance(error, FlowError):
        about = {"step": work.step.pk, "run": str(work.run.pk)}
        log.error("a step failed", extra=about, exc_info=error)


def _end(work: Work, said: Said, **fields: Any) -> None:
    step = work.step
    step.state, step.error = said.state, said.error
    if said.state in Step.DONE:
        step.output = dict(said.output)
    step.finished_at = timezone.now()
    for name, value in fields.items():
        setattr(step, name, value)
    step.save()
    told = {"error": said.error} if said.error else {}
    _tell(work, f"step.{said.state}", told | fields)


def _again(work: Work, at: datetime) -> None:
    step = work.step
    step.state, step.not_before, step.retry_count = State.PENDING, at, step.retry_count + 1
    step.finished_at = None
    step.save()
    _tell(work, "step.again", {"at": at.isoformat(), "retry": step.retry_count})


def _cancel(work: Work) -> None:
    doing.cancel(work.step, work.run.cancelled_by or "somebody")
    if not doing.waits_for_others(work.step):
        _end(work, Said(State.CANCELLED))


def _tell(work: Work, type: str, data: Mapping[str, Any]) -> None:
    about = {"step": work.step.key, "stage": work.step.stage, "state": work.step.state}
    emit(work.run.topic, type, about | dict(data))


def _end_run(run: Run, end: str, steps: Mapping[str, Step]) -> None:
    failed = next((step for step in steps.values() if step.state == State.FAILED), None)
    why = f"{failed.key}: {failed.error}" if failed else ""
    run.move_to(Run.State(end), reason=why, why=why)
    record(f"pipeline-run.{end}", run)
    transaction.on_commit(
        lambda: bells.send("pipelines.tasks.ended", args=[str(run.pk)], queue="control")
    )
