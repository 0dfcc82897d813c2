"""The pages of pipelines and their runs."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from accounts.errors import FlowError
from accounts.pagination import Paginator
from accounts.templatetags.ui import score
from organizations.access import OrgRequest, org_role
from organizations.models import Role
from pipelines import actions, chunks, doing, drawing, gallery, graph, logs, schedules
from pipelines.api.views import with_last_run
from pipelines.models import Pipeline, Run, Step
from training.evaluation import METRICS
from training.views.common import PER_PAGE, last_seq

RUNS = 20
LINES = 500


# --- Pipelines -----------------------------------------------------------------------------------


@require_GET
@org_role(Role.VIEWER)
def pipelines(request: OrgRequest) -> HttpResponse:
    mine = Pipeline.objects.of(request.membership.organization).select_related("version", "beat")
    page = Paginator(with_last_run(mine).order_by("name"), PER_PAGE).get_page(
        request.GET.get("page")
    )
    rows = [_row(one) for one in page]
    page.object_list = rows  # type: ignore[assignment]
    moving = any(row["last"] and row["last"]["state"] in Run.ACTIVE for row in rows)
    context = {
        "section": "pipelines",
        "page": page,
        "moving": moving,
        "templates": gallery.TEMPLATES,
        "may_change": request.membership.may(Role.DEVELOPER),
    }
    return render(request, "pipelines/pipelines.html", context)


def _row(one: Any) -> dict[str, Any]:
    stages = one.version.definition["stages"] if one.version else []
    return {
        "pk": one.pk,
        "name": one.name,
        "description": one.description,
        "stages": [stage["key"] for stage in stages],
        "last": one.last_run,
        "schedule": schedules.in_words(one.schedule) if one.is_enabled else "",
        "next_at": schedules.next_at(one),
    }


def _pipeline(request: OrgRequest, pipeline: UUID) -> Pipeline:
    mine = Pipeline.objects.of(request.membership.organization)
    return get_object_or_404(mine.select_related("version", "beat"), pk=pipeline)


@require_GET
@org_role(Role.VIEWER)
def pipeline(request: OrgRequest, pipeline: UUID) -> HttpResponse:
    one = _pipeline(request, pipeline)
    runs = one.runs.select_related("version").order_by("-number")
    page = Paginator(runs, RUNS).get_page(request.GET.get("page"))
    context = {
        "section": "pipelines",
        "one": one,
        "schedule": schedules.in_words(one.schedule),
        "next_at": schedules.next_at(one),
        "graph": drawing.drawn(one.version.definition["stages"] if one.version else [], {}),
        "definition": _text(one.version.definition if one.version else {}),
        "page": page,
        "moving": any(run.state in Run.ACTIVE for run in page),
        "may_change": request.membership.may(Role.DEVELOPER),
    }
    return render(request, "pipelines/pipeline.html", context)


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


@require_POST
@org_role(Role.DEVELOPER)
def start(request: OrgRequest, pipeline: UUID) -> HttpResponse:
    one = _pipeline(request, pipeline)
    try:
        return redirect(actions.start_run(request.membership, one))
    except FlowError as refusal:
        messages.error(request, str(refusal.detail))
        return redirect(one)


@require_POST
@org_role(Role.DEVELOPER)
def switch(request: OrgRequest, pipeline: UUID) -> HttpResponse:
    """Let its schedule rest, or count again."""
    one = _pipeline(request, pipeline)
    actions.change(request.membership, one, is_enabled=not one.is_enabled)
    messages.success(
        request, f"The schedule of {one} {'rests' if one.is_enabled else 'counts again'}."
    )
    return redirect(one)


@require_POST
@org_role(Role.DEVELOPER)
def delete(request: OrgRequest, pipeline: UUID) -> HttpResponse:
    one = _pipeline(request, pipeline)
    try:
        actions.delete(request.membership, one)
    except FlowError as refusal:
        messages.error(request, str(refusal.detail))
        return redirect(one)
    messages.success(request, f"{one} is deleted.")
    return redirect("pipelines:pipelines")


# --- Runs ----------------------------------------------------------------------------------------


def _run(request: OrgRequest, run: UUID) -> Run:
    mine = Run.objects.of(request.membership.organization)
    return get_object_or_404(mine.select_related("pipeline", "version"), pk=run)


@require_GET
@org_role(Role.VIEWER)
def run(request: OrgRequest, run: UUID) -> HttpResponse:
    one = _run(request, run)
    after = last_seq(one.topic)
    context = {"section": "pipelines", "after": after, **_shown(request, one)}
    return render(request, "pipelines/run.html", context)


@require_GET
@org_role(Role.VIEWER)
def live(request: OrgRequest, run: UUID) -> HttpResponse:
    """What of a run's page moves."""
    return render(request, "pipelines/_run_live.html", _shown(request, _run(request, run)))


def _shown(request: OrgRequest, one: Run) -> dict[str, Any]:
    steps = list(one.steps.order_by("position"))
    stages = one.version.definition["stages"]
    chosen = request.GET.get("step", "")
    if chosen not in {step.key for step in steps}:
        chosen = ""
    events = list(logs.events_of(one, step=chosen).order_by("-seq")[:LINES])[::-1]
    standing = chunks.standing(steps)
    transfers = [
        {"key": step.key, "state": step.state, **standing[step.pk]}
        for step in steps
        if step.pk in standing and (step.state == Step.State.RUNNING or step.key == chosen)
    ]
    state = "cancelling" if one.cancel_requested_at and not one.has_ended else one.state
    return {
        "one": one,
        "state": state,
        "graph": drawing.drawn(stages, {step.key: step.state for step in steps}),
        "steps": [_step(step, _span(steps)) for step in steps],
        "waits": doing.waits(one, steps),
        "transfers": transfers,
        "lines": list(logs.lines(one, events)),
        "chosen": chosen,
        "may_change": request.membership.may(Role.DEVELOPER),
    }


def _span(steps: list[Step]) -> tuple[datetime, datetime]:
    """From the first start to the last end, or now."""
    now = timezone.now()
    begun = [step.started_at for step in steps if step.started_at]
    ends = [step.finished_at or now for step in steps if step.started_at]
    return min(begun, default=now), max(ends, default=now)


def _bar(step: Step, span: tuple[datetime, datetime]) -> dict[str, Any] | None:
    """When it ran, as a bar in a picture 100 wide."""
    if step.started_at is None:
        return None
    first, last = span
    whole = max(1e-6, (last - first).total_seconds())
    begins = (step.started_at - first).total_seconds()
    ends = ((step.finished_at or last) - first).total_seconds()
    left = min(98.0, 100 * begins / whole)
    return {
        "x": f"{left:.1f}",
        "width": f"{max(2.0, min(100 - left, 100 * (ends - begins) / whole)):.1f}",
        "look": drawing.LOOKS[step.state][0],
    }


def _step(step: Step, span: tuple[datetime, datetime]) -> dict[str, Any]:
    made = step.output
    known = graph.STAGES.get(step.stage)
    facts = [f"{made['rows']:,} rows"] if isinstance(made.get("rows"), int) else []
    if made.get("score") is not None:
        metric = METRICS.get(str(made.get("metric")))
        facts.append(f"{metric.title if metric else 'Score'} {score(made['score'])}")
    if made.get("by"):
        facts.append(f"by the experiment {made['by']}")
    if "promoted" in made:
        verb = "Promoted" if made["promoted"] else "Not promoted"
        facts = [f"{verb}. {made.get('why', '')}"]
    if "deployed" in made:
        facts = [made.get("why", "")]
    took = None
    if step.started_at and step.finished_at:
        took = (step.finished_at - step.started_at).total_seconds()
    return {
        "key": step.key,
        "title": known.title if known else step.stage,
        "state": step.state,
        "attempt": step.attempt,
        "started_at": step.started_at,
        "took": took,
        "bar": _bar(step, span),
        "why": step.error or step.skipped_because,
        "not_before": step.not_before if step.state == Step.State.PENDING else None,
        "facts": ", ".join(facts),
        "job": made.get("job"),
        "model": made.get("model"),
        "dataset": made.get("dataset"),
    }


@require_POST
@org_role(Role.DEVELOPER)
def cancel(request: OrgRequest, run: UUID) -> HttpResponse:
    one = _run(request, run)
    try:
        actions.cancel_run(request.membership, one)
    except FlowError as refusal:
        messages.error(request, str(refusal.detail))
    return redirect(one)


@require_POST
@org_role(Role.DEVELOPER)
def retry(request: OrgRequest, run: UUID) -> HttpResponse:
    one = _run(request, run)
    try:
        actions.retry_run(request.membership, one, request.POST.get("step", ""))
    except FlowError as refusal:
        messages.error(request, str(refusal.detail))
    return redirect(one)
