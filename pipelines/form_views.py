"""The pages where a pipeline is made and edited: as a graph whose stages have forms, or as text.

The form carries the whole definition. What its buttons do (add a stage, remove one, open another)
changes what the form carries, on this side, and shows it anew; nothing is kept before it is saved.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods

from accounts.errors import FlowError, Invalid
from datasets.models import Dataset
from organizations.access import OrgRequest, org_role
from organizations.models import Organization, Role
from pipelines import actions, drawing, editing, gallery, graph, kinds
from pipelines.api import serializers as said
from pipelines.models import Connection, Experiment, Pipeline
from training import presets
from training.checks import TASK_TYPES
from training.evaluation import METRICS
from training.names import NamedAlias

GRAPH, TEXT = "graph", "text"
MOST_OFFERED = 200  # names in a list to choose from
_ENDS = (("failed", "failed"), ("succeeded", "succeeded"), ("cancelled", "was cancelled"))


@dataclass
class Draft:
    """What the form carries. ``open``: the place of the stage whose form is shown."""

    values: dict[str, Any]
    definition: dict[str, Any] | None = None  # None: the text can't be read
    view: str = GRAPH
    open: int | None = None
    errors: dict[str, list[str]] = field(default_factory=dict)
    is_new: bool = False  # the open stage was just added: what it lacks is not wrong yet


@require_http_methods(["GET", "POST"])
@org_role(Role.DEVELOPER)
def new(request: OrgRequest) -> HttpResponse:
    if request.method == "POST":
        return _posted(request, None)
    wanted = request.GET.get("template")
    chosen = next((one for one in gallery.TEMPLATES if one.key == wanted), None)
    values = {"name": chosen.name if chosen else "", **_schedule(chosen.schedule if chosen else {})}
    definition = chosen.definition if chosen else {"stages": []}
    return _form(request, _begun(request, values, definition), None)


@require_http_methods(["GET", "POST"])
@org_role(Role.DEVELOPER)
def edit(request: OrgRequest, pipeline: UUID) -> HttpResponse:
    mine = Pipeline.objects.of(request.membership.organization)
    one = get_object_or_404(mine.select_related("version", "beat"), pk=pipeline)
    if request.method == "POST":
        return _posted(request, one)
    values = {"name": one.name, "description": one.description, **_schedule(one.schedule)}
    definition = one.version.definition if one.version else {"stages": []}
    return _form(request, _begun(request, values, definition), one)


def _begun(request: OrgRequest, values: dict[str, Any], definition: Mapping[str, Any]) -> Draft:
    made = Draft(values, editing.drawable(definition))
    if request.GET.get("view") == TEXT:
        made.view = TEXT
    return made


def _posted(request: OrgRequest, one: Pipeline | None) -> HttpResponse:
    """Save it, or do with the draft what a button says."""
    draft = _read(request)
    if act := request.POST.get("act", ""):
        _do(request, draft, act)
        return _form(request, draft, one)
    if not draft.errors:
        body = _body(draft)
        form = said.PipelineChange(data=body) if one else said.NewPipeline(data=body)
        if form.is_valid():
            try:
                if one is None:
                    return redirect(actions.make(request.membership, **form.validated_data))
                actions.change(request.membership, one, **form.validated_data)
                messages.success(request, f"{body['name']} is changed. Runs keep what they ran.")
                return redirect(one)
            except FlowError as refusal:
                draft.errors = refusal.errors or {"": [str(refusal.detail)]}
        else:
            draft.errors = {key: [str(one) for one in ones] for key, ones in form.errors.items()}
    if draft.view == GRAPH and draft.definition is not None:
        wrong, _ = editing.by_stage(draft.errors)
        if wrong and draft.open not in wrong:
            draft.open = min(wrong)
    return _form(request, draft, one, status=400)


# --- What the form said --------------------------------------------------------------------------


def _schedule(schedule: Mapping[str, Any]) -> dict[str, Any]:
    every = schedule.get("every_s")
    return {
        "when": "cron" if "cron" in schedule else "every" if every else "",
        "cron": schedule.get("cron", "0 3 * * *"),
        "every_min": str((every or 3600) // 60),
        "time_zone": schedule.get("time_zone", "UTC"),
        "overlap": schedule.get("overlap", "skip"),
    }


def _read(request: OrgRequest) -> Draft:
    """The draft as it was sent, with what was typed into the open stage's form."""
    names = (
        "name", "description", "definition", "when", "cron", "every_min", "time_zone", "overlap",
    )  # fmt: skip
    values = {name: request.POST.get(name, "").strip() for name in names}
    draft = Draft(values, view=GRAPH if request.POST.get("view") == GRAPH else TEXT)
    try:
        draft.definition = json.loads(values["definition"] or "{}")
    except (ValueError, RecursionError) as problem:
        where = ""
        if isinstance(problem, json.JSONDecodeError):
            where = f" Line {problem.lineno}, column {problem.colno}: {problem.msg}."
        draft.errors["definition"] = [f"This is no JSON.{where}"]
        draft.view = TEXT
    minutes = values["every_min"]
    if values["when"] == "every" and not (minutes.isascii() and minutes.isdecimal()):
        draft.errors["schedule.every_s"] = ["Give whole minutes."]
    if draft.view == GRAPH:
        try:
            draft.definition = editing.drawable(draft.definition)
        except graph.Refused as refused:
            draft.errors |= refused.errors
            draft.view = TEXT
            return draft
        draft.open = _place(draft, request.POST.get("open", ""))
        if draft.open is not None:
            editing.fill(draft.definition, draft.open, request.POST)
        editing.fill_notify(draft.definition, request.POST)
    return draft


def _place(draft: Draft, text: str) -> int | None:
    """The place of a stage that is there."""
    stages = draft.definition["stages"] if draft.definition else []
    good = text.isascii() and text.isdecimal() and len(text) < 4 and int(text) < len(stages)
    return int(text) if good else None


def _body(draft: Draft) -> dict[str, Any]:
    """As the API would have it."""
    values, schedule = draft.values, None
    if values["when"] == "cron":
        schedule = {"cron": values["cron"]}
    elif values["when"] == "every":
        schedule = {"every_s": int(values["every_min"]) * 60}
    if schedule is not None:
        schedule |= {"time_zone": values["time_zone"], "overlap": values["overlap"]}
    return {
        "name": values["name"],
        "description": values["description"],
        "definition": draft.definition,
        "schedule": schedule,
    }


def _do(request: OrgRequest, draft: Draft, act: str) -> None:
    """What a button of the form says: "add", "open-2", "remove-2", "shut", "graph" or "text"."""
    what, _, number = act.partition("-")
    if what in {GRAPH, TEXT}:
        _turn(draft, what)
    if draft.view == TEXT or draft.definition is None:
        return
    if what == "add" and (stage := request.POST.get("add-stage", "")) in graph.STAGES:
        if len(draft.definition["stages"]) < graph.MOST_STAGES:
            draft.open = editing.add(draft.definition, stage, draft.open)
            draft.is_new = True
    elif what == "open":
        draft.open = _place(draft, number)
    elif what == "shut":
        draft.open = None
    elif what == "remove" and (place := _place(draft, number)) is not None:
        editing.remove(draft.definition, place)
        draft.open = None
    try:
        actions.check(request.membership.organization, draft.definition)
    except Invalid as refused:
        draft.errors = refused.errors
    if not draft.definition["stages"]:
        draft.errors = {}


def _turn(draft: Draft, view: str) -> None:
    """From the graph to the text, or back where the text can be drawn."""
    draft.open = None
    if view == TEXT:
        draft.view = TEXT
    elif draft.definition is not None:
        try:
            draft.definition = editing.drawable(draft.definition)
            draft.view = GRAPH
        except graph.Refused as refused:
            draft.errors = refused.errors


# --- How it is shown -----------------------------------------------------------------------------


def _form(
    request: OrgRequest, draft: Draft, one: Pipeline | None, *, status: int = 200
) -> HttpResponse:
    errors, values = draft.errors, draft.values
    was_open = request.POST.get("open") == str(draft.open)
    context = {
        "section": "pipelines",
        "one": one,
        "values": values,
        "view": draft.view,
        # The keyboard goes on in the form of a stage that has just been opened.
        "focus": "HX-Request" in request.headers and not was_open,
        "name_errors": errors.get("name"),
        "cron_errors": errors.get("schedule.cron"),
        "every_errors": errors.get("schedule.every_s"),
        "zone_errors": errors.get("schedule.time_zone"),
        "overlaps": actions.OVERLAPS,
    }
    home = request.membership.organization
    if draft.view == TEXT or draft.definition is None:
        context |= _as_text(home, draft)
    else:
        context |= _as_graph(home, draft, refused=status != 200)
    return render(request, "pipelines/form.html", context, status=status)


_ELSEWHERE = frozenset(
    {"name", "description", "schedule.cron", "schedule.every_s", "schedule.time_zone"}
)


def _text(definition: Mapping[str, Any]) -> str:
    try:
        definition = editing.bare(definition)
    except (TypeError, AttributeError):
        pass  # then as it was typed
    return json.dumps(definition, indent=2, ensure_ascii=False)


def _as_text(home: Organization, draft: Draft) -> dict[str, Any]:
    if draft.definition is not None and not (draft.errors and draft.values.get("definition")):
        draft.values["definition"] = _text(draft.definition)
    texts = [
        (place, sentence)
        for place, sentences in draft.errors.items()
        if place not in _ELSEWHERE
        for sentence in sentences
    ]
    stages = [
        {
            "name": name,
            "title": stage.title,
            "params": [
                {"name": key, "required": param.required, "help": param.help}
                for key, param in stage.params.items()
            ],
        }
        for name, stage in graph.STAGES.items()
    ]
    connections = Connection.objects.of(home).order_by("name")
    return {"definition_errors": texts, "stages": stages, "connections": connections}


def _as_graph(home: Organization, draft: Draft, *, refused: bool) -> dict[str, Any]:
    assert draft.definition is not None
    stages = draft.definition["stages"]
    wrong, others = editing.by_stage(
        {place: texts for place, texts in draft.errors.items() if place not in _ELSEWHERE}
    )
    faults = {place: sum(map(len, fields.values())) for place, fields in wrong.items()}
    draft.values["definition"] = json.dumps(editing.bare(draft.definition), ensure_ascii=False)
    connections = list(Connection.objects.of(home).order_by("name"))
    told = draft.definition.get("notify") or {}
    told_errors = [
        text for place, texts in draft.errors.items() if place.startswith("notify")
        for text in texts
    ]  # fmt: skip
    context: dict[str, Any] = {
        "graph": drawing.drawn(stages, {}, faults=faults),
        "open": draft.open,
        "other_errors": others,
        "refused": refused and bool(wrong),
        "adds": [(name, stage.title) for name, stage in graph.STAGES.items()],
        "notify_to": "\n".join(map(str, told.get("to") or ())),
        "notify_hooks": _ticks(
            [one.name for one in connections if one.kind == Connection.Kind.WEBHOOK],
            told.get("hooks") or (),
        ),
        "notify_on": [
            {"name": name, "words": words, "on": name in (told.get("on") or ["failed"])}
            for name, words in _ENDS
        ],
        "notify_errors": told_errors,
        "notifies": bool(told) or bool(told_errors),
    }
    if draft.open is not None:
        fields = {} if draft.is_new else wrong.get(draft.open, {})
        context["stage"] = _stage(home, stages, draft.open, fields, connections)
    return context


def _ticks(names: Iterable[str], ticked: Iterable[Any]) -> list[dict[str, Any]]:
    """Boxes to tick: all names, and those that are ticked and not there any more."""
    chosen = [str(one) for one in ticked]
    known = list(names)
    return [
        {"name": name, "on": name in chosen}
        for name in (*known, *(one for one in chosen if one not in known))
    ]


def _stage(
    home: Organization,
    stages: list[dict[str, Any]],
    place: int,
    errors: Mapping[str, list[str]],
    connections: list[Connection],
) -> dict[str, Any]:
    """The form of one stage, with its errors at their fields."""
    stage = stages[place]
    known = graph.STAGES.get(stage["stage"])
    rows = [
        {
            "name": f"p-{name}",
            "title": editing.title(name),
            "kind": param.kind,
            "required": param.required,
            # What is chosen from a list needs no word on how to write it.
            "help": "" if param.kind in {"data", "model", "connection"} else param.help,
            "value": editing.shown(param, stage["params"].get(name)),
            "errors": errors.get(f"params.{name}"),
            "choices": _choices(home, stages, place, name, param, connections),
        }
        for name, param in (known.params.items() if known else ())
    ]
    downstream = editing.later(stages, place)
    waits = set(graph.references(stage).values())
    others = [
        {"key": one["key"], "on": one["key"] in stage["after"]}
        for n, one in enumerate(stages)
        if one["key"]
        and n != place
        and (one["key"] in stage["after"] or (n not in downstream and one["key"] not in waits))
    ]
    gone = [one for one in stage["after"] if one not in {other["key"] for other in others}]
    seen = {"key", "after", "retries", "backoff_s", "fresh"}
    seen |= {f"params.{name}" for name in (known.params if known else ())}
    return {
        "place": place,
        "key": stage["key"],
        "title": known.title if known else stage["stage"],
        "rows": rows,
        "waits": sorted(waits),
        "others": others + [{"key": one, "on": True} for one in gone],
        "retries": stage.get("retries", 0),
        "backoff_s": stage.get("backoff_s", 30),
        "fresh": bool(stage.get("fresh")),
        "is_same": bool(known and known.is_same),
        "errors": {name: errors.get(name) for name in ("key", "after", "retries", "backoff_s")},
        "more": any(name in errors for name in ("retries", "backoff_s")),
        "other_errors": [
            text for name, texts in errors.items() if name not in seen for text in texts
        ],
    }


def _choices(
    home: Organization,
    stages: list[dict[str, Any]],
    place: int,
    name: str,
    param: graph.Param,
    connections: list[Connection],
) -> list[dict[str, Any]]:
    """What can be chosen for a parameter: groups of (value, words); none where it is typed."""
    groups: list[tuple[str, list[tuple[str, str]]]] = []
    value = str(stages[place]["params"].get(name) or "")
    if param.kind in {"data", "model"}:
        downstream = editing.later(stages, place)
        givers = [
            (f"${one['key']}", f"{one['key']} ({graph.STAGES[one['stage']].title})")
            for n, one in enumerate(stages)
            if n not in downstream
            and one["stage"] in graph.STAGES
            and graph.STAGES[one["stage"]].gives == param.kind
        ]
        groups.append(("What a stage gives", givers))
        groups.append(
            ("Data sets", _datasets(home)) if param.kind == "data" else ("Models", _models(home))
        )
    elif param.kind == "connection":
        fit = [
            (one.name, f"{one.name} ({kinds.KINDS[one.kind].title})")
            for one in connections
            if one.kind in param.choices
        ]
        groups.append(("Connections that fit", fit))
    elif param.kind == "experiment":
        mine = Experiment.objects.of(home).order_by("name").values_list("name", flat=True)
        groups.append(("", [(one, one) for one in mine[:MOST_OFFERED]]))
    elif param.kind == "flag":
        groups.append(("", [("yes", "Yes"), ("no", "No")]))
    elif param.kind == "choice":
        groups.append(("", [(one, one) for one in param.choices]))
    elif offered := _OFFERED.get((stages[place]["stage"], name)):
        groups.append(("", list(offered)))
    else:
        return []
    is_known = any(value == one for _, some in groups for one, _ in some)
    if value and not is_known and param.kind not in {"flag", "choice"}:
        groups.append(("Not among these", [(value, value)]))
    return [{"title": title, "options": some} for title, some in groups if some]


_OFFERED: Mapping[tuple[str, str], Iterable[tuple[str, str]]] = {
    ("train", "preset"): [(one, one) for one in presets.PRESETS],
    ("train", "budget_mode"): [(one, one.replace("_", " ")) for one in presets.BUDGET_MODES],
    ("train", "task_type"): [(one, one) for one in TASK_TYPES],
    ("train", "metric"): [(name, metric.title) for name, metric in METRICS.items()],
}


def _datasets(home: Organization) -> list[tuple[str, str]]:
    """By name; those that share one, by id."""
    found = Dataset.objects.of(home).order_by("-created_at").values_list("pk", "name")
    rows = list(found[:MOST_OFFERED])
    names = [name for _, name in rows]
    return [
        (name, name) if names.count(name) == 1 else (str(pk), f"{name} ({str(pk)[:8]})")
        for pk, name in rows
    ]


def _models(home: Organization) -> list[tuple[str, str]]:
    found = NamedAlias.objects.filter(named__organization=home).select_related("named")
    return [(str(one), str(one)) for one in found.order_by("named__name", "name")[:MOST_OFFERED]]
