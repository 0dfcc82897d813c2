"""The form of a new training, and what it says while it is filled in."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from django.conf import settings
from django.http import Http404, HttpResponse, QueryDict
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext_noop as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.errors import FlowError, Invalid
from accounts.pages import tells_problems
from accounts.pagination import Paginator
from datasets.cards import card
from datasets.models import Dataset, DatasetVersion
from organizations.access import OrgRequest, org_role
from organizations.models import Role
from training import actions, catalog, pages, presets
from training.checks import Refused, Wish, check
from training.engines.named import models_of
from training.evaluation import metrics_for
from training.findings import SevereFindings
from training.models import DataCheck, TrainingJob
from training.views.common import PER_PAGE, job_of, last_seq
from workers.waiting import waits_for

OWN = "own"  # in a preset's place: a time of one's own
# What presets say, for translators: presets.py knows nothing of Django.
_PRESET_WORDS = (
    _("Quick"), _("a first impression"), _("Balanced"), _("good for most tables"), _("Best"),
    _("large tables, last digits"),
)  # fmt: skip
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
    if request.method == "POST" and not {"look", "remedy"} & data.keys():
        try:
            started = _start(request, version, values)
        except SevereFindings:
            problem = "It was not started, for what stands in red below."
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
        "served": actions.engines_of_nodes(request.membership.organization)[1],
        "max_minutes": settings.MAX_TIME_BUDGET,
        "task_types": pages.TASK_TYPES,
        "splits": pages.SPLITS,
        "engines": _engines(version),
        "open_more": bool(
            {"task_type", "engines", "exclude", "split"} & errors.keys()
            or values["exclude"]
            or values["split_kind"] != "random"
            or values["engines"]
            or values["budget_mode"]
            or values["ensemble"]
            or values["refit"]
        ),
    }
    return render(request, "training/new.html", context, status=422 if errors or problem else 200)


def _engines(version: DatasetVersion) -> list[catalog.EngineInfo]:
    """Those that are offered; of pictures and a target, those that see."""
    pictures = sum(column["role"] == "image" for column in version.columns)
    only = pictures and len(version.columns) - pictures <= 1
    return [
        info
        for name, info in catalog.engines().items()
        if not info.version_of
        and (not only or any(model.reads == "image" for model in models_of(name).values()))
    ]


def _elsewhere(errors: dict[str, list[str]]) -> list[tuple[str, list[str]]]:
    """Errors of fields that the form has no place for: no message may get lost."""
    shown = {
        "target", "time_budget", "preset", "budget_mode", "task_type", "engines", "exclude",
        "metric", "positive_class", "split",
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


@require_POST
@org_role(Role.DEVELOPER)
def check_data(request: OrgRequest) -> HttpResponse:
    """The fragment that tells what the data says against this target and split.

    Asks for a check unless there is one, which the fragment then watches.
    """
    dataset = get_object_or_404(
        Dataset.objects.of(request.membership.organization).select_related("latest"),
        pk=_uuid(request.POST.get("dataset", "")),
    )
    version = _version(dataset, request.POST.get("version"))
    values = _values(request.POST)
    context: dict[str, Any] = {"values": values}
    if values["target"]:
        try:
            check = actions.check_data(
                request.membership,
                dataset.pk,
                version=version.number,
                target=values["target"],
                task_type=values["task_type"],
                split=_split(values),
            )
        except Invalid as error:
            # The target's own problems stand above already.
            context["problem"] = " ".join(error.errors.get("split", ()))
        except FlowError as error:
            context["problem"] = error.detail
        else:
            context |= _gate(request, check, values)
    return render(request, "training/_gate.html", context)


@require_POST
@org_role(Role.DEVELOPER)
def estimate(request: OrgRequest) -> HttpResponse:
    """The fragment that tells what such a training would take, and where; empty while nobody can
    tell, for what is wrong stands where it was chosen."""
    dataset = get_object_or_404(
        Dataset.objects.of(request.membership.organization).select_related("latest"),
        pk=_uuid(request.POST.get("dataset", "")),
    )
    version = _version(dataset, request.POST.get("version"))
    values = _values(request.POST)
    found = None
    if values["target"]:
        try:
            found = actions.estimate_job(
                request.membership,
                dataset.pk,
                version=version.number,
                target=values["target"],
                task_type=values["task_type"],
                **_race(values),
                exclude=[name for name in values["exclude"] if name != values["target"]],
                split=_split(values),
            )
        except FlowError:
            pass
    return render(request, "training/_estimate.html", {"estimate": found})


@require_GET
@org_role(Role.DEVELOPER)
def checked(request: OrgRequest, check_id: UUID) -> HttpResponse:
    """The fragment of a check that was asked for."""
    found = DataCheck.objects.of(request.membership.organization).select_related("work")
    check = get_object_or_404(found, pk=check_id)
    values = _values(request.GET)
    context = {"values": values, **_gate(request, check, values)}
    return render(request, "training/_gate.html", context)


def _gate(request: OrgRequest, check: DataCheck, values: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, list[dict[str, Any]]] = {"severe": [], "warning": [], "info": []}
    for found in check.told(values["exclude"]):
        remedy = found["remedy"]
        told[found["severity"]].append(
            found
            | {"remedy_json": json.dumps(remedy) if remedy else "", "remedy_words": _words(remedy)}
        )
    work = None if check.has_ended else check.work
    return {
        "check": check,
        "after": last_seq(check.topic),
        "waits": waits_for([work], request.membership.organization) if work else "",
        "severe": told["severe"],
        "warnings": told["warning"],
        "infos": told["info"],
    }


def _words(remedy: dict[str, Any] | None) -> str:
    """What the button says that changes the form so."""
    if not remedy:
        return ""
    if names := remedy.get("exclude"):
        return f"Leave out “{names[0]}”" if len(names) == 1 else f"Leave out {len(names)} columns"
    split = remedy["split"]
    if split["kind"] == "random":
        return "Split at random"
    return f"Split by {split['kind']}: “{split['column']}”"


def _choose_data(request: OrgRequest) -> HttpResponse:
    ready = (
        Dataset.objects.of(request.membership.organization)
        .filter(latest__isnull=False)
        .select_related("latest")
        .defer("latest__columns", "latest__associations")
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
    split_kind, split_column = data.get("split_kind") or "random", data.get("split_column", "")
    remedy = _remedy(data.get("remedy", ""))
    if "split" in remedy:
        split_kind = remedy["split"].get("kind", "random")
        split_column = remedy["split"].get("column", "")
    left_out = [name for name in remedy.get("exclude", ()) if name not in named]
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
        "exclude": [*data.getlist("exclude"), *named, *left_out],
        "exclude_text": "\n".join([*named, *left_out]),
        "split_kind": split_kind,
        "split_column": split_column,
        "accept_findings": bool(data.get("accept_findings")),
        "reason": data.get("reason", ""),
        "metric": data.get("metric", ""),
        "refit": data.get("refit", ""),
        "positive_class": data.get("positive_class", ""),
    }


def _remedy(text: str) -> dict[str, Any]:
    """What a finding's button changes of the form; nothing for what is none."""
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    split, names = found.get("split"), found.get("exclude")
    return {
        **({"split": split} if isinstance(split, dict) else {}),
        **({"exclude": [str(one) for one in names]} if isinstance(names, list) else {}),
    }


def _split(values: dict[str, Any]) -> dict[str, str] | None:
    if values["split_kind"] == "random":
        return None
    return {"kind": values["split_kind"], "column": values["split_column"]}


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
        "split_kind": (asked.get("split") or {}).get("kind", "random"),
        "split_column": (asked.get("split") or {}).get("column", ""),
        "accept_findings": False,
        "reason": "",
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


def _race(values: dict[str, Any]) -> dict[str, Any]:
    """Which engines race, and for how long."""
    every = presets.ALL in values["engines"]
    return {
        "preset": "" if values["preset"] == OWN else values["preset"],
        "engines": presets.ALL if every else values["engines"],
        "time_budget": _seconds(values),
        "budget_mode": values["budget_mode"],
    }


def _start(request: OrgRequest, version: DatasetVersion, values: dict[str, Any]) -> TrainingJob:
    return actions.start_job(
        request.membership,
        version.dataset_id,
        version=version.number,
        target=values["target"],
        task_type=values["task_type"],
        **_race(values),
        metric=values["metric"],
        ensemble=_flag(values["ensemble"]),
        refit=_flag(values["refit"]),
        # The chosen target's box is ticked in no-one's mind: a target is never a feature.
        exclude=[name for name in values["exclude"] if name != values["target"]],
        positive_class=values["positive_class"] or None,
        split=_split(values),
        accept_findings=values["accept_findings"],
        reason=values["reason"],
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
