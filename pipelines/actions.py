"""What people, schedules and programs do with pipelines. What follows from it, driving.py does."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Max
from django.utils import timezone

from accounts.errors import Conflict, Invalid, NotFound
from organizations import quotas
from organizations.audit import record
from organizations.models import Membership, Organization
from organizations.naming import unique
from pipelines import doing, driving, experimenting, graph, hooks, schedules
from pipelines.models import Connection, Pipeline, PipelineVersion, Run, Step
from workers.actions import open_stream
from workers.models import emit

KEEP = object()  # no schedule was given, which is not the same as none
OVERLAPS = {
    "queue": "wait until it has ended",
    "skip": "leave this one out",
    "cancel": "cancel the old one",
}
MOST_PIPELINES = 500  # of one organization
MOST_QUEUED = 20  # runs of one pipeline that wait


class StillRuns(Conflict):
    code = "pipeline-runs"


# --- Pipelines -----------------------------------------------------------------------------------


@transaction.atomic
def make(
    by: Membership,
    *,
    name: str,
    definition: Any,
    description: str = "",
    schedule: Any = None,
    is_enabled: bool = True,
) -> Pipeline:
    """A pipeline and its first version. Raises Invalid by field, NameTaken."""
    when, checked = schedules.check(schedule), check(by.organization, definition)
    if Pipeline.objects.of(by.organization).count() >= MOST_PIPELINES:
        raise Conflict(f"There are {MOST_PIPELINES} pipelines already: delete what nobody needs.")
    with unique("pipeline", name):
        made = Pipeline.objects.create(
            organization=by.organization,
            name=name,
            description=description,
            created_by=by.author,
            schedule=when,
            is_enabled=is_enabled,
        )
    _add_version(by, made, checked)
    if when:
        schedules.apply(made)
    record("pipeline.made", made, by=by, changes=_told(checked))
    return made


def _told(definition: Mapping[str, Any]) -> dict[str, Any]:
    return {"stages": [f"{one['key']} ({one['stage']})" for one in definition["stages"]]}


def check(home: Organization, definition: Any) -> dict[str, Any]:
    """The definition as it is stored. Raises Invalid, by field, also for what the organization
    lacks: a connection of a kind that fits, a member to whom a message goes."""
    known = dict(Connection.objects.of(home).values_list("name", "kind"))
    try:
        checked = graph.check(definition, known)
    except graph.Refused as refused:
        raise Invalid(str(refused), errors=refused.errors) from None
    errors: dict[str, list[str]] = {}
    for n, stage in enumerate(checked["stages"]):
        if experiment := stage["params"].get("experiment"):
            try:
                experimenting.find(home, experiment)
            except NotFound as refused:
                errors[f"stages[{n}].params.experiment"] = [str(refused.detail)]
        if stage["stage"] == "notify":
            errors |= _strangers(home, stage["params"]["to"], f"stages[{n}].params.to")
    if "notify" in checked:
        errors |= _strangers(home, checked["notify"]["to"], "notify.to")
        wanted = checked["notify"].get("hooks", [])
        there = set(hooks.of(home).filter(name__in=wanted).values_list("name", flat=True))
        if gone := [name for name in wanted if name not in there]:
            sentence = f"There is no web hook {', '.join(gone)[:200]} among the connections."
            errors["notify.hooks"] = [sentence]
    if errors:
        text = " ".join(sentence for sentences in errors.values() for sentence in sentences)
        raise Invalid(text, errors=errors)
    return checked


def _strangers(home: Organization, to: list[str], place: str) -> dict[str, list[str]]:
    try:
        doing.members(home, to)
    except Invalid as refused:
        return {place: [str(refused.detail)]}
    return {}


@transaction.atomic
def change(
    by: Membership,
    pipeline: Pipeline,
    *,
    name: str | None = None,
    description: str | None = None,
    definition: Any = None,
    schedule: Any = KEEP,
    is_enabled: bool | None = None,
) -> Pipeline:
    """Rename it, change when it runs, or give it another definition, which makes a new version:
    runs keep theirs.

    Raises Invalid by field, NameTaken, NotFound.
    """
    stored = lock(pipeline)
    changes: dict[str, Any] = {}
    if name is not None and name != stored.name:
        changes["name"] = stored.name = name
    if description is not None and description != stored.description:
        changes["description"] = stored.description = description
    with unique("pipeline", stored.name):
        stored.save(update_fields=["name", "description"])
    if definition is not None:
        checked = check(by.organization, definition)
        if stored.version is None or stored.version.definition != checked:
            _add_version(by, stored, checked)
            assert stored.version is not None
            changes |= {"version": stored.version.number, **_told(checked)}
    when = stored.schedule if schedule is KEEP else schedules.check(schedule)
    enabled = stored.is_enabled if is_enabled is None else is_enabled
    if (when, enabled) != (stored.schedule, stored.is_enabled):
        stored.schedule, stored.is_enabled = when, enabled
        stored.save(update_fields=["schedule", "is_enabled"])
        schedules.apply(stored)
        changes |= {"schedule": schedules.in_words(when), "is_enabled": enabled}
    if changes:
        record("pipeline.changed", stored, by=by, changes=changes)
    return stored


def _add_version(by: Membership, pipeline: Pipeline, definition: Mapping[str, Any]) -> None:
    last = pipeline.versions.aggregate(last=Max("number"))["last"] or 0
    pipeline.version = PipelineVersion.objects.create(
        pipeline=pipeline, number=last + 1, definition=dict(definition), made_by=by.name[:160]
    )
    pipeline.save(update_fields=["version"])


@transaction.atomic
def delete(by: Membership, pipeline: Pipeline) -> None:
    """Forget it, with its runs; what they made stays. Raises StillRuns while it runs."""
    stored = lock(pipeline)
    if stored.runs.filter(state__in=Run.ACTIVE).exists():
        raise StillRuns("A run of this pipeline is going or waits: cancel it first.")
    record("pipeline.deleted", stored, by=by)
    stored.schedule = {}
    schedules.apply(stored)
    stored.delete()


def lock(pipeline: Pipeline) -> Pipeline:
    """The pipeline's row, locked: whoever starts one of its runs holds it."""
    found = (
        Pipeline.objects.select_for_update(no_key=True, of=("self",))
        .select_related("version", "organization", "beat")
        .filter(pk=pipeline.pk)
        .first()
    )
    if found is None:
        raise NotFound("There is no such pipeline.")
    return found


# --- Runs ----------------------------------------------------------------------------------------


@transaction.atomic
def start_run(
    by: Membership | None,
    pipeline: Pipeline,
    *,
    trigger: Run.Trigger = Run.Trigger.PERSON,
    overlap: str = "queue",
) -> Run:
    """Start its current version. ``overlap`` says what happens while another run of it is going:
    this one waits ("queue"), is left out ("skip"), or takes its place ("cancel").

    ``by``: None for a schedule. Raises Conflict when too many wait, QuotaReached.
    """
    if overlap not in OVERLAPS:
        sentence = f"Use one of: {', '.join(OVERLAPS)}."
        raise Invalid(sentence, errors={"overlap": [sentence]})
    stored = lock(pipeline)
    if stored.version is None:
        raise Conflict("This pipeline has no stages yet.")
    quotas.reserve(stored.organization, cpu_hours=0)
    active = list(stored.runs.filter(state__in=Run.ACTIVE).order_by("number"))
    last = stored.runs.aggregate(last=Max("number"))["last"] or 0
    run = Run(
        organization=stored.organization,
        pipeline=stored,
        version=stored.version,
        number=last + 1,
        trigger=trigger,
        started_by=by.author if by else None,
        by_name=by.name[:160] if by else "its schedule",
    )
    if active and overlap == "skip":
        run.state, run.finished_at = Run.State.SKIPPED, timezone.now()
        run.told_at = run.finished_at
        run.why = f"Run {active[0].number} was still going."
    elif active and len(active) > MOST_QUEUED:
        raise Conflict(f"{MOST_QUEUED} runs of this pipeline wait already: cancel some.")
    elif active:
        run.why = f"It waits until run {active[-1].number} has ended."
        if overlap == "cancel":
            for old in active:
                _cancel(old, by.name if by else "its schedule")
    else:
        run.state, run.started_at = Run.State.RUNNING, timezone.now()
    run.save(force_insert=True)
    Step.objects.bulk_create(
        Step(run=run, key=one["key"], stage=one["stage"], position=n)
        for n, one in enumerate(stored.version.definition["stages"])
    )
    open_stream(run.topic, stored.organization)
    emit(run.topic, f"run.{run.state}", {"state": run.state, "by": run.by_name, "why": run.why})
    record("pipeline-run.started", run, by=by or None, changes={"state": str(run.state)})
    if run.state == Run.State.RUNNING:
        driving.ask(run.pk)
    return run


@transaction.atomic
def cancel_run(by: Membership | str, run: Run) -> Run:
    """End it: what runs is cancelled, the rest is never begun. Conflict when it has ended."""
    name = by.name if isinstance(by, Membership) else by
    stored = _lock_run(run)
    if stored.has_ended:
        raise Conflict(f"This run is {stored.state} already.", code="run-ended")
    _cancel(stored, name)
    record("pipeline-run.cancelled", stored, by=by)
    return stored


def _lock_run(run: Run) -> Run:
    found = (
        Run.objects.select_for_update(no_key=True, of=("self",))
        .select_related("pipeline", "version", "organization")
        .filter(pk=run.pk)
        .first()
    )
    if found is None:
        raise NotFound("There is no such run.")
    return found


def _cancel(run: Run, name: str) -> None:
    stored = _lock_run(run)
    if stored.has_ended or stored.cancel_requested_at is not None:
        return
    if stored.state == Run.State.QUEUED:
        stored.steps.update(state=Step.State.NOT_RUN)
        why = f"{name} cancelled it."
        stored.move_to(Run.State.CANCELLED, reason=why, why=why, cancelled_by=name[:160])
        return
    stored.cancel_requested_at, stored.cancelled_by = timezone.now(), name[:160]
    stored.save(update_fields=["cancel_requested_at", "cancelled_by"])
    emit(stored.topic, "run.cancelling", {"state": stored.state, "by": name})
    driving.ask(stored.pk)


@transaction.atomic
def retry_run(by: Membership, run: Run, step: str = "") -> Run:
    """Let a run that has ended go on: from ``step`` and with all that wait for it, or from what
    failed. What is done stays done. Raises Conflict while it runs, Invalid for an unknown step."""
    stored = _lock_run(run)
    if not stored.has_ended:
        raise Conflict("This run is still going: cancel it first, or wait.", code="run-active")
    if stored.state == Run.State.SKIPPED:
        raise Conflict("This run was left out: start a new one.", code="run-skipped")
    steps = {one.key: one for one in stored.steps.all()}
    if step and step not in steps:
        sentence = f"There is no step '{step[:40]}'. There are: {', '.join(steps)}."
        raise Invalid(sentence, errors={"step": [sentence]})
    again = {key for key, one in steps.items() if one.state not in Step.DONE}
    stages = stored.version.definition["stages"]
    for key in [step] if step else sorted(again):
        again |= graph.from_step(stages, key)
    if not again:
        raise Conflict("All of it is done: say from which step to begin again.", code="run-done")
    stored.steps.filter(key__in=again).update(
        state=Step.State.PENDING, retry_count=0, not_before=None, finished_at=None, error="",
        output={}, subject=None, task=None, skipped_because="",
    )  # fmt: skip
    stored.move_to(
        Run.State.RUNNING,
        reason=f"{by.name} let it go on.",
        why="",
        cancel_requested_at=None,
        cancelled_by="",
        told_at=None,
        started_at=stored.started_at or timezone.now(),
    )
    emit(stored.topic, "run.retried", {"by": by.name, "steps": sorted(again), "state": "running"})
    record("pipeline-run.retried", stored, by=by, changes={"steps": sorted(again)})
    driving.ask(stored.pk)
    return stored


@transaction.atomic
def begin_next(pipeline: UUID) -> Run | None:
    """Start the run that has waited longest, if none is going. Runs in control."""
    Pipeline.objects.select_for_update(no_key=True).filter(pk=pipeline).first()
    active = Run.objects.filter(pipeline=pipeline, state__in=Run.ACTIVE).order_by("number")
    first: Run | None = active.first()
    if first is None or active.filter(state=Run.State.RUNNING).exists():
        return None
    first.move_to(Run.State.RUNNING, why="", started_at=timezone.now())
    driving.ask(first.pk)
    return first
