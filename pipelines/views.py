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
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.errors import FlowError
from accounts.pagination import Paginator
from accounts.templatetags.ui import score
from organizations.access import OrgRequest, org_role
from organizations.models import Role
from pipelines import actions, doing, gallery, graph, logs, schedules
from pipelines.api import serializers as said
from pipelines.api.views import with_last_run
from pipelines.models import Connection, Pipeline, Run, Step
from training.evaluation import METRICS
from training.views.common import PER_PAGE, last_seq

RUNS = 20
LINES = 500
BOX_W, BOX_H, GAP_X, GAP_Y = 184, 62, 56, 22  # px, of the drawn graph
LOOKS = {  # state of a step -> class of its colour, word
    "pending": ("waiting", "Waiting"),
    "running": ("running", "Running"),
    "succeeded": ("succeeded", "Succeeded"),
    "skipped": ("early", "Skipped"),
    "failed": ("failed", "Failed"),
    "not_run": ("cancelled", "Not run"),
    "cancelled": ("cancelled", "Cancelled"),
}


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
        "graph": drawn(one.version.definition["stages"] if one.version else [], {}),
        "definition": _text(one.version.definition if one.version else {}),
        "page": page,
        "moving": any(run.state in Run.ACTIVE for run in page),
        "may_change": request.membership.may(Role.DEVELOPER),
    }
    return render(request, "pipelines/pipeline.html", context)


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _bare(definition: dict[str, Any]) -> dict[str, Any]:
    """Without what is as usual, to be read and edited."""
    usual = {"after": [], "retries": 0, "backoff_s": 30, "fresh": False}
    stages = [
        {key: value for key, value in stage.items() if key not in usual or value != usual[key]}
        for stage in definition.get("stages", [])
    ]
    return {**definition, "stages": stages}


@require_http_methods(["GET", "POST"])
@org_role(Role.DEVELOPER)
def new(request: OrgRequest) -> HttpResponse:
    chosen = next(
        (one for one in gallery.TEMPLATES if one.key == request.GET.get("template")), None
    )
    values: dict[str, Any] = {
        "name": chosen.name if chosen else "",
        "definition": _text(chosen.definition if chosen else {"stages": []}),
        **_schedule_values(chosen.schedule if chosen else {}),
    }
    if request.method == "GET":
        return _form(request, values, {}, None)
    values, body, errors = _sent(request)
    if not errors:
        form = said.NewPipeline(data=body)
        if form.is_valid():
            try:
                return redirect(actions.make(request.membership, **form.validated_data))
            except FlowError as refusal:
                errors = refusal.errors or {"": [str(refusal.detail)]}
        else:
            errors = _flat(form.errors)
    return _form(request, values, errors, None)


@require_http_methods(["GET", "POST"])
@org_role(Role.DEVELOPER)
def edit(request: OrgRequest, pipeline: UUID) -> HttpResponse:
    one = _pipeline(request, pipeline)
    values: dict[str, Any] = {
        "name": one.name,
        "description": one.description,
        "definition": _text(_bare(one.version.definition if one.version else {})),
        **_schedule_values(one.schedule),
    }
    if request.method == "GET":
        return _form(request, values, {}, one)
    values, body, errors = _sent(request)
    if not errors:
        form = said.PipelineChange(data=body)
        if form.is_valid():
            try:
                actions.change(request.membership, one, **form.validated_data)
                messages.success(request, f"{body['name']} is changed. Runs keep what they ran.")
                return redirect(one)
            except FlowError as refusal:
                errors = refusal.errors or {"": [str(refusal.detail)]}
        else:
            errors = _flat(form.errors)
    return _form(request, values, errors, one)


def _flat(errors: Any) -> dict[str, list[str]]:
    return {key: [str(one) for one in ones] for key, ones in errors.items()}


def _schedule_values(schedule: dict[str, Any]) -> dict[str, Any]:
    every = schedule.get("every_s")
    return {
        "when": "cron" if "cron" in schedule else "every" if every else "",
        "cron": schedule.get("cron", "0 3 * * *"),
        "every_min": str((every or 3600) // 60),
        "time_zone": schedule.get("time_zone", "UTC"),
        "overlap": schedule.get("overlap", "skip"),
    }


def _sent(request: OrgRequest) -> tuple[dict[str, Any], dict[str, Any], dict[str, list[str]]]:
    """What the form said: to show again, as the API would have it, and what can't be read."""
    names = (
        "name", "description", "definition", "when", "cron", "every_min", "time_zone", "overlap",
    )  # fmt: skip
    values = {name: request.POST.get(name, "").strip() for name in names}
    errors: dict[str, list[str]] = {}
    definition: Any = None
    try:
        definition = json.loads(values["definition"] or "{}")
    except (ValueError, RecursionError) as problem:
        where = ""
        if isinstance(problem, json.JSONDecodeError):
            where = f" Line {problem.lineno}, column {problem.colno}: {problem.msg}."
        errors["definition"] = [f"This is no JSON.{where}"]
    schedule: dict[str, Any] | None = None
    if values["when"] == "cron":
        schedule = {"cron": values["cron"]}
    elif values["when"] == "every":
        minutes = values["every_min"]
        if minutes.isascii() and minutes.isdecimal() and len(minutes) < 8:
            schedule = {"every_s": int(minutes) * 60}
        else:
            errors["schedule.every_s"] = ["Give whole minutes."]
    if schedule is not None:
        schedule |= {"time_zone": values["time_zone"], "overlap": values["overlap"]}
    body = {
        "name": values["name"],
        "description": values["description"],
        "definition": definition,
        "schedule": schedule,
    }
    return values, body, errors


def _form(
    request: OrgRequest, values: dict[str, Any], errors: dict[str, Any], one: Pipeline | None
) -> HttpResponse:
    fields = {"name", "description", "schedule.cron", "schedule.every_s", "schedule.time_zone"}
    texts = [
        (place, sentence)
        for place, sentences in errors.items()
        if place not in fields
        for sentence in sentences
    ]
    context = {
        "section": "pipelines",
        "one": one,
        "values": values,
        "name_errors": errors.get("name"),
        "cron_errors": errors.get("schedule.cron"),
        "every_errors": errors.get("schedule.every_s"),
        "zone_errors": errors.get("schedule.time_zone"),
        "definition_errors": texts,
        "stages": [
            {
                "name": name,
                "title": stage.title,
                "params": [
                    {"name": key, "required": param.required, "help": param.help}
                    for key, param in stage.params.items()
                ],
            }
            for name, stage in graph.STAGES.items()
        ],
        "connections": Connection.objects.of(request.membership.organization).order_by("name"),
    }
    return render(request, "pipelines/form.html", context, status=400 if errors else 200)


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
    state = "cancelling" if one.cancel_requested_at and not one.has_ended else one.state
    return {
        "one": one,
        "state": state,
        "graph": drawn(stages, {step.key: step.state for step in steps}),
        "steps": [_step(step, _span(steps)) for step in steps],
        "waits": doing.waits(one, steps),
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
        "look": LOOKS[step.state][0],
    }


def _step(step: Step, span: tuple[datetime, datetime]) -> dict[str, Any]:
    made = step.output
    known = graph.STAGES.get(step.stage)
    facts = [f"{made['rows']:,} rows"] if isinstance(made.get("rows"), int) else []
    if made.get("score") is not None:
        metric = METRICS.get(str(made.get("metric")))
        facts.append(f"{metric.title if metric else 'Score'} {score(made['score'])}")
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


# --- The graph, drawn ----------------------------------------------------------------------------


def drawn(stages: list[dict[str, Any]], states: dict[str, str]) -> dict[str, Any]:
    """Boxes and lines of an SVG, in px: each stage right of all that it waits for."""
    columns = graph.layers(stages)
    tallest = max(map(len, columns), default=0)
    height = max(1, tallest) * (BOX_H + GAP_Y) - GAP_Y + 4
    by_key = {one["key"]: one for one in stages}
    boxes: dict[str, dict[str, Any]] = {}
    for n, keys in enumerate(columns):
        top = (height - (len(keys) * (BOX_H + GAP_Y) - GAP_Y)) / 2
        for m, key in enumerate(keys):
            known = graph.STAGES.get(by_key[key]["stage"])
            look, word = LOOKS.get(states.get(key, ""), ("", ""))
            x, y = 2 + n * (BOX_W + GAP_X), top + m * (BOX_H + GAP_Y)
            title = known.title if known else by_key[key]["stage"]
            boxes[key] = {
                "key": key if len(key) <= 20 else f"{key[:19]}…",
                "full": key,
                "title": title,
                "look": look,
                "word": word,
                "x": x,
                "y": round(y),
                "text_x": x + 12,
                "text_y": round(y) + 24,
                "below_y": round(y) + 45,
                "word_x": x + BOX_W - 12,
            }
    lines = []
    for stage in stages:
        to = boxes[stage["key"]]
        for key in graph.before(stage):
            at = boxes[key]
            x1, y1 = at["x"] + BOX_W, at["y"] + BOX_H // 2
            x2, y2 = to["x"], to["y"] + BOX_H // 2
            half = (x1 + x2) // 2
            lines.append(f"M{x1},{y1} C{half},{y1} {half},{y2} {x2 - 6},{y2}")
    return {
        "boxes": list(boxes.values()),
        "lines": lines,
        "width": max(1, len(columns)) * (BOX_W + GAP_X) - GAP_X + 4,
        "height": round(height),
        "box_w": BOX_W,
        "box_h": BOX_H,
        "words": "; ".join(
            f"{one['full']} ({one['title']}){': ' + one['word'] if one['word'] else ''}"
            for one in boxes.values()
        ),
    }
