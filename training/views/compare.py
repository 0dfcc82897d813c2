"""Models side by side. The address holds which, the first being what the others are held to."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db.models import Prefetch
from django.http import Http404, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET

from organizations.access import OrgRequest, org_role
from organizations.models import Role
from training import comparing, pages
from training.evaluation import METRICS, metrics_for
from training.models import EnsembleMember, TrainedModel

_SIZES = Prefetch(
    "members", EnsembleMember.objects.select_related("model__artifact").only(
        "ensemble", "weight", "model__artifact__size"
    )
)  # fmt: skip


def _models(request: OrgRequest) -> list[TrainedModel]:
    """Those in the address, in its order, each once. Raises Http404 for one that is not there."""
    try:
        wanted = list(dict.fromkeys(UUID(one) for one in request.GET.getlist("model")))
    except ValueError:
        raise Http404 from None
    wanted = wanted[: comparing.MOST]
    found = (
        TrainedModel.objects.of(request.membership.organization)
        .select_related("job", "artifact", "origin")
        .prefetch_related(_SIZES)
        .defer("origin__curves", "origin__test", "origin__params", "job__notices", "job__request")
        .in_bulk(wanted)
    )
    if len(found) < len(wanted):
        raise Http404
    return [found[one] for one in wanted]


@require_GET
@org_role(Role.VIEWER)
def compare(request: OrgRequest) -> HttpResponse:
    """Figures, pictures, parameters and costs of some models beside each other."""
    models = _models(request)
    context: dict[str, Any] = {"section": "models", "most": comparing.MOST}
    if len(models) < 2:
        return render(request, "training/compare.html", context | {"models": models})
    names = _names(models)
    jobs = {model.job_id: model.job for model in models}
    context |= {
        "models": [
            {
                "id": model.pk,
                "name": name,
                "engine": model.engine,
                "job": model.job,
                "without": _without(models, model),
                "first": _led_by(models, model),
            }
            for model, name in zip(models, names, strict=True)
        ],
        "jobs": list(jobs.values()),
        "alike": all(comparing.rows_in_common(models[0], other) for other in models[1:]),
        "figures": _figures(models),
        "costs": _costs(models),
        "charts": _charts(models, names, request.GET.get("class", "")),
        "classes": _classes(models),
        "chosen": _chosen(models, request.GET.get("class", "")),
        "parameters": _parameters(models),
        "address": _address(models),
        **_differing(models, names),
    }
    return render(request, "training/compare.html", context)


@require_GET
@org_role(Role.VIEWER)
def differing(request: OrgRequest) -> HttpResponse:
    """By how much the others differ from the first: that part of the page alone."""
    models = _models(request)
    if not models:
        raise Http404
    context = {"address": _address(models), **_differing(models, _names(models))}
    return render(request, "training/_differences.html", context)


def _names(models: list[TrainedModel]) -> list[str]:
    """What tells the models apart: their names, with a number where two have the same."""
    names: list[str] = []
    for model in models:
        same = sum(1 for name in names if name.split(" #")[0] == model.name)
        names.append(f"{model.name} #{same + 1}" if same else model.name)
    return names


def _address(models: list[TrainedModel]) -> str:
    return "&".join(f"model={model.pk}" for model in models)


def _without(models: list[TrainedModel], out: TrainedModel) -> str:
    left = [model for model in models if model is not out]
    return f"{reverse('training:compare')}?{_address(left)}"


def _led_by(models: list[TrainedModel], first: TrainedModel) -> str:
    """The address where the others are held to this one; empty for the one that they are now."""
    if first is models[0]:
        return ""
    order = [first, *(model for model in models if model is not first)]
    return f"{reverse('training:compare')}?{_address(order)}"


def _differing(models: list[TrainedModel], names: list[str]) -> dict[str, Any]:
    metric = METRICS[models[0].job.metric]
    found = comparing.differences(models)
    rows = [
        {
            "name": name,
            "found": one,
            "words": comparing.words(one, metric.name) if one else "",
            "low": one["interval"][0] if one and one.get("interval") else None,
            "high": one["interval"][1] if one and one.get("interval") else None,
        }
        for name, one in zip(names[1:], found, strict=True)
    ]
    return {
        "differences": rows,
        "first_name": names[0],
        "metric": metric,
        "pending": any(one is None for one in found),
    }


def _figures(models: list[TrainedModel]) -> list[dict[str, Any]]:
    """Rows of the table: each metric on the rows that rank, then on the sealed ones."""
    tasks = {model.job.task for model in models}
    primary = models[0].job.metric
    known = {m.name: m for task in sorted(tasks) for m in metrics_for(task)}
    ordered = sorted(known.values(), key=lambda m: m.name != primary)
    parts: list[dict[str, Any]] = []
    ranked = [
        (model.metrics, model.interval if model.job.metric == primary else None) for model in models
    ]
    sealed = [
        ((model.test or {}).get("metrics") or {}, (model.test or {}).get("interval"))
        for model in models
    ]
    for title, cells in (
        (_("On the rows that rank"), ranked),
        (_("On the sealed test rows"), sealed),
    ):
        if not any(metrics for metrics, _ in cells):
            continue
        rows = []
        for metric in ordered:
            values = [metrics.get(metric.name) for metrics, _ in cells]
            told = [value for value in values if value is not None]
            if not told:
                continue
            best = max(told) if metric.greater_is_better else min(told)
            shown = [
                {
                    "value": value,
                    "best": value == best and len(told) > 1,
                    "interval": interval if metric.name == primary else None,
                }
                for value, (_, interval) in zip(values, cells, strict=True)
            ]
            better = _("higher") if metric.greater_is_better else _("lower")
            rows.append({"metric": metric, "better": better, "cells": shown})
        parts.append({"title": title, "rows": rows})
    return parts


def _size(model: TrainedModel) -> int | None:
    """Bytes of what is stored of a model; of an ensemble, of all its members."""
    if not model.is_ensemble:
        return model.artifact.size if model.artifact else None
    sizes = [part.model.artifact.size for part in model.members.all() if part.model.artifact]
    return sum(sizes) or None


def _costs(models: list[TrainedModel]) -> list[dict[str, Any]]:
    """What each model takes, in rows of the table."""
    rows: list[tuple[str, str, list[Any], bool]] = [
        (_("Time to fit"), "duration", [model.fit_s or None for model in models], True),
        (_("Predicting a row"), "ms", [model.predict_ms_row for model in models], True),
        (_("Size"), "size", [_size(model) for model in models], True),
        (_("Rows to learn from"), "count", [model.train_rows for model in models], False),
        (_("Engine"), "text", [model.engine for model in models], False),
        (_("Family"), "text", [model.family or "–" for model in models], False),
    ]
    shown = []
    for title, kind, values, less_is_better in rows:
        told = [value for value in values if value is not None]
        least = min(told) if less_is_better and len(set(told)) > 1 else None
        cells = [{"value": v, "best": least is not None and v == least} for v in values]
        shown.append({"title": title, "kind": kind, "cells": cells})
    return shown


def _parameters(models: list[TrainedModel]) -> dict[str, Any]:
    """Parameters that differ, a cell for each model, and how many are the same for all."""
    names = sorted({str(name) for model in models for name in model.params})
    nothing = object()
    differ, same = [], 0
    for name in names:
        values = [model.params.get(name, nothing) for model in models]
        if all(value == values[0] for value in values):
            same += 1
            continue
        cells = [None if value is nothing else str(value) for value in values]
        differ.append({"name": name, "cells": cells})
    return {"rows": differ, "same": same}


# --- Pictures over each other --------------------------------------------------------------------


def _curves(model: TrainedModel) -> dict[str, Any]:
    """Of a refit, which ranked on no rows, those on the sealed ones."""
    curves: dict[str, Any] = model.curves or (model.test or {}).get("curves") or {}
    return curves


def _classes(models: list[TrainedModel]) -> list[str]:
    """The classes that the curves can be of; empty without a choice."""
    found = dict.fromkeys(
        str(line["class"]) for model in models for line in _curves(model).get("roc") or []
    )
    return list(found) if len(found) > 1 else []


def _chosen(models: list[TrainedModel], wanted: str) -> str:
    classes = _classes(models)
    return wanted if wanted in classes else next(iter(classes), "")


def _charts(models: list[TrainedModel], names: list[str], wanted: str) -> list[pages.Chart]:
    chosen = _chosen(models, wanted)
    of_class = f" Of “{chosen}”." if chosen else ""
    overlaid = [
        (name, pages.charts(_only(_curves(model), chosen), model.job.target))
        for model, name in zip(models, names, strict=True)
    ]
    return pages.overlaid(overlaid, of_class)


def _only(curves: dict[str, Any], chosen: str) -> dict[str, Any]:
    """The curves of one class, where there are several."""
    if not chosen:
        return curves
    kept = {
        kind: [line for line in curves.get(kind) or [] if str(line["class"]) == chosen]
        for kind in ("roc", "precision_recall")
    }
    return {**curves, **kept}
