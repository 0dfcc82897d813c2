"""The form of a new training, and what it says while it is filled in."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.paginator import Paginator
from django.http import Http404, HttpResponse, QueryDict
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods

from accounts.errors import FlowError
from accounts.pages import tells_problems
from datasets.cards import card
from datasets.models import Dataset, DatasetVersion
from organizations.access import OrgRequest, org_role
from organizations.models import Role
from training import actions, catalog, pages, presets
from training.checks import Refused, Wish, check
from training.evaluation import metrics_for
from training.models import TrainingJob
from training.views.common import PER_PAGE, job_of, last_seq

OWN = "own"  # in a preset's place: a time of one's own
YES, NO = "1", "0"


@require_http_methods(["GET", "POST"])
@org_role(Role.DEVELOPER)
@tells_problems
def new(request: OrgRequest) -> HttpResponse:
    """The form of a new training; a POST starts it, or gives the form back with what is wrong."""
    data = request.POST if request.method == "POST" else request.GET
    again = None
    if request.method == "GET" and "again" in data:
        again = job_of(request, _uuid(data["again"]))
    if not (again or data.get("dataset")):
        return _choose_data(request)
    dataset_id = _uuid(str(again.dataset["id"]) if again else data["dataset"])
    dataset = get_object_or_404(
        Dataset.objects.of(request.membership.organization).select_related("latest"),
        pk=dataset_id,
    )
    version = _version(dataset, data.get("version"))
    values = _asked_before(again) if again else _values(data)
    errors: dict[str, list[str]] = {}
    problem = ""
    if request.method == "POST" and "look" not in data:
        try:
            started = _start(request, version, values)
        except FlowError as error:
            errors, problem = error.errors, "" if error.errors else error.detail
        else:
            return redirect(started)
    context = {
        "section": "training",
        "dataset": dataset,
        "version": version,
        "after": last_seq(dataset.topic),
        "columns": version.columns,
        "values": values,
        "errors": errors,
        "problem": problem,
        "other_errors": _elsewhere(errors),
        "finding": _finding(version, values),
        "presets": _presets(),
        "max_minutes": settings.MAX_TIME_BUDGET,
        "task_types": pages.TASK_TYPES,
        "engines": list(catalog.engines().values()),
        "open_more": bool(
            {"task_type", "engines", "exclude"} & errors.keys()
            or values["exclude"]
            or values["engines"]
            or values["budget_mode"]
            or values["ensemble"]
            or values["refit"]
        ),
    }
    return render(request, "training/new.html", context, status=422 if errors or problem else 200)


def _elsewhere(errors: dict[str, list[str]]) -> list[tuple[str, list[str]]]:
    """Errors of fields that the form has no place for: no message may get lost."""
    shown = {
        "target", "time_budget", "preset", "budget_mode", "task_type", "engines", "exclude",
        "metric", "positive_class",
    }  # fmt: skip
    return [(name, texts) for name, texts in errors.items() if name not in shown]


@require_GET
@org_role(Role.DEVELOPER)
def finding(request: OrgRequest) -> HttpResponse:
    """The fragment that tells what choosing this target means."""
    dataset = get_object_or_404(
        Dataset.objects.of(request.membership.organization).select_related("latest"),
        pk=_uuid(request.GET.get("dataset", "")),
    )
    version = _version(dataset, request.GET.get("version"))
    found = _finding(version, _values(request.GET))
    return render(request, "training/_finding.html", {"finding": found, "errors": {}})


def _choose_data(request: OrgRequest) -> HttpResponse:
    ready = (
        Dataset.objects.of(request.membership.organization)
        .filter(latest__isnull=False)
        .select_related("latest")
        .defer("latest__columns")
    )
    page = Paginator(ready, PER_PAGE).get_page(request.GET.get("page"))
    context = {"section": "training", "page": page}
    return render(request, "training/choose_data.html", context)


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise Http404 from None


def _version(dataset: Dataset, wanted: str | None) -> DatasetVersion:
    """The version asked for, else the newest that can be used, else the newest."""
    if wanted:
        return get_object_or_404(dataset.versions, pk=_uuid(wanted))
    version = dataset.latest or dataset.versions.order_by("-number").first()
    if version is None:
        raise Http404
    return version


def _presets() -> list[presets.Preset]:
    """Those that this installation has the time for."""
    most = settings.MAX_TIME_BUDGET * 60
    return [one for one in presets.PRESETS.values() if one.time_budget_s <= most]


def _values(data: QueryDict) -> dict[str, Any]:
    """What the form was given, as it has to be shown again."""
    named = [line.strip() for line in data.get("exclude_text", "").splitlines() if line.strip()]
    offered = [one.name for one in _presets()]
    usual = presets.DEFAULT if presets.DEFAULT in offered else (offered or [OWN])[-1]
    return {
        "target": data.get("target", ""),
        "preset": data.get("preset") or usual,
        "minutes": data.get("minutes", ""),
        "task_type": data.get("task_type") or "auto",
        "engines": data.getlist("engines"),
        "budget_mode": data.get("budget_mode", ""),
        "ensemble": data.get("ensemble", ""),
        "exclude": [*data.getlist("exclude"), *named],
        "exclude_text": data.get("exclude_text", ""),
        "metric": data.get("metric", ""),
        "refit": data.get("refit", ""),
        "positive_class": data.get("positive_class", ""),
    }


def _asked_before(job: TrainingJob) -> dict[str, Any]:
    """The values of an earlier training, to start from."""
    asked = job.request
    preset = job.preset if job.preset in {one.name for one in _presets()} else OWN
    own = preset == OWN or job.budget_s != presets.PRESETS[preset].time_budget_s
    engines = asked.get("engines") or []
    return {
        "target": job.target,
        "preset": OWN if own else preset,
        "minutes": f"{job.budget_s / 60:g}" if own else "",
        "task_type": asked.get("task_type") or "auto",
        "engines": [engines] if isinstance(engines, str) else engines,
        "budget_mode": asked.get("budget_mode") or "",
        "exclude": asked.get("exclude") or [],
        "exclude_text": "\n".join(asked.get("exclude") or []),
        "metric": job.metric,
        "ensemble": _shown(asked.get("ensemble")),
        "refit": _shown(asked.get("refit")),
        "positive_class": job.positive_class or "",
    }


def _shown(flag: bool | None) -> str:
    """What the form says for a choice that may be left to the preset."""
    return "" if flag is None else YES if flag else NO


def _flag(said: str) -> bool | None:
    return {YES: True, NO: False}.get(said)


def _seconds(values: dict[str, Any]) -> float | None:
    """The budget in seconds where it is no preset's; what is no number becomes 0, which the check
    refuses."""
    if values["preset"] != OWN:
        return None
    try:
        return float(values["minutes"].replace(",", ".")) * 60
    except ValueError:
        return 0.0


def _start(request: OrgRequest, version: DatasetVersion, values: dict[str, Any]) -> TrainingJob:
    every = presets.ALL in values["engines"]
    return actions.start_job(
        request.membership,
        version.dataset_id,
        version=version.number,
        target=values["target"],
        task_type=values["task_type"],
        preset="" if values["preset"] == OWN else values["preset"],
        engines=presets.ALL if every else values["engines"],
        time_budget=_seconds(values),
        budget_mode=values["budget_mode"],
        metric=values["metric"],
        ensemble=_flag(values["ensemble"]),
        refit=_flag(values["refit"]),
        # The chosen target's box is ticked in no-one's mind: a target is never a feature.
        exclude=[name for name in values["exclude"] if name != values["target"]],
        positive_class=values["positive_class"] or None,
    )


def _finding(version: DatasetVersion, values: dict[str, Any]) -> dict[str, Any] | None:
    """What the check says to this target before anything is started; None without a target."""
    column = version.column(values["target"]) if values["target"] else None
    if column is None:
        return None
    found: dict[str, Any] = {"card": card(column, version.rows), "problems": [], "task": None}
    wish = Wish(target=values["target"], task_type=values["task_type"])
    try:
        plan = check(
            wish,
            version.columns,
            version.rows,
            engines={info.name: info.tasks for info in catalog.engines().values()},
            max_budget_s=max(settings.MAX_TIME_BUDGET * 60, wish.time_budget_s),
        )
    except Refused as refused:
        found["problems"] = [text for texts in refused.errors.values() for text in texts]
        return found
    fitting = metrics_for(plan.task)
    metric = values["metric"] if values["metric"] in {m.name for m in fitting} else plan.metric
    positive = values["positive_class"]
    return found | {
        "task": plan.task,
        "reason": plan.reason,
        "notices": plan.notices,
        "metrics": fitting,
        "metric": metric,
        "classes": plan.classes,
        "positive_class": positive if positive in (plan.classes or ()) else plan.positive_class,
    }
