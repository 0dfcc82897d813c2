"""What became true of predictions, sent back later: how often the model was right, day by day."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from accounts.errors import Invalid
from clusters.models import Deployment, Outcome, Sample
from training.models import TrainedModel

MOST = 10_000  # in one request
MOST_KEPT = 50_000  # of a deployment
KEPT = timedelta(days=90)
MOST_TOLD = 20


def task_of(one: Deployment) -> str:
    """binary, multiclass or regression: of its current model; "" without any."""
    if one.revision is None or one.revision.model_id is None:
        return ""
    found = TrainedModel.objects.filter(pk=one.revision.model_id)
    return str(found.values_list("job__task", flat=True).first() or "")


@transaction.atomic
def take(one: Deployment, said: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Keep what became true ({id, row, truth} each) of predictions that were sampled.

    The same again replaces what was sent before. Returns how many were taken, and the ids of those
    that are not known. Raises Invalid for a truth that the model can't have meant.
    """
    is_number = task_of(one) == "regression"
    for place, each in enumerate(said):
        if is_number and _number(each["truth"]) is None:
            sentence = f"outcomes[{place}]: the truth is a finite number, as the predictions are."
            raise Invalid(sentence, errors={f"outcomes[{place}].truth": [sentence]})
    wanted = {(UUID(str(each["id"])), int(each.get("row") or 0)): each["truth"] for each in said}
    known = Sample.objects.filter(deployment=one, prediction__in={pk for pk, _ in wanted})
    found = [each for each in known if (each.prediction, each.row) in wanted]
    Outcome.objects.bulk_create(
        [
            Outcome(
                deployment=one,
                prediction=each.prediction,
                row=each.row,
                revision=each.revision,
                at=each.at,
                predicted=each.predicted,
                truth=wanted[each.prediction, each.row],
            )
            for each in found
        ],
        update_conflicts=True,
        unique_fields=["deployment", "prediction", "row"],
        update_fields=["truth"],
    )
    last = one.outcomes.order_by("-id").values_list("id", flat=True)[MOST_KEPT : MOST_KEPT + 1]
    if (over := last.first()) is not None:
        one.outcomes.filter(id__lte=over).delete()
    left = wanted.keys() - {(each.prediction, each.row) for each in found}
    return {
        "taken": len(found),
        "unknown": len(left),
        "unknown_ids": sorted({str(pk) for pk, _ in left})[:MOST_TOLD],
    }


def forget_old() -> None:
    Outcome.objects.filter(at__lt=timezone.now() - KEPT).delete()


def by_day(one: Deployment, days: int) -> dict[str, Any]:
    """How right it was on each of the last days on which it was asked, and in all.

    Classes: ``accuracy``, the share that was right. Numbers: ``mae`` and ``rmse``, mean absolute
    and root mean squared error, in the unit of what is predicted.
    """
    task = task_of(one)
    since = timezone.now() - timedelta(days=days)
    pairs: dict[date, list[tuple[Any, Any]]] = defaultdict(list)
    rows = one.outcomes.filter(at__gte=since).order_by()
    for at, predicted, truth in rows.values_list("at", "predicted", "truth"):
        pairs[at.date()].append((predicted, truth))
    every = [pair for some in pairs.values() for pair in some]
    return {
        "task": task,
        "days": [{"day": day, **figures(task, pairs[day])} for day in sorted(pairs)],
        "total": figures(task, every),
    }


def figures(task: str, pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    """The figures of pairs of (predicted, truth). Those of no pair are None."""
    told: dict[str, Any] = {"count": len(pairs), "accuracy": None, "mae": None, "rmse": None}
    if task == "regression":
        off = [
            a - b
            for a, b in ((_number(one), _number(other)) for one, other in pairs)
            if a is not None and b is not None
        ]
        if off:
            told["mae"] = sum(map(abs, off)) / len(off)
            told["rmse"] = math.sqrt(sum(one * one for one in off) / len(off))
    elif pairs:
        told["accuracy"] = sum(str(one) == str(other) for one, other in pairs) / len(pairs)
    return told


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
