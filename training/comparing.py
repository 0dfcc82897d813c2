"""Models side by side: what differs, and by how much, on rows that both were measured on.

What two models said of the same rows is read and drawn from by control, once for each pair, and
kept in Valkey; the page asks until it is there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any
from uuid import UUID

from django.core.cache import cache
from redis.exceptions import RedisError

from training import scoring
from training.evaluation import METRICS, InvalidCandidate, difference, line_up
from training.models import TrainedModel
from workers import bells

log = logging.getLogger(__name__)

MOST = 6  # models beside each other
KEPT_S = 24 * 3600
ASKED_S = 30  # before it is asked for again
VERSION = 1
TASK = "training.tasks.compare"


def rows_in_common(one: TrainedModel, other: TrainedModel) -> str:
    """ "ranked" or "sealed": the rows that both were measured on; "" when there are none.

    The sealed rows count only for those whose figures on them are shown already.
    """
    a, b = one.job, other.job
    same = a.pk == b.pk or (
        a.dataset_version_id is not None
        and (a.dataset_version_id, a.target, a.task, a.classes, a.split)
        == (b.dataset_version_id, b.target, b.task, b.classes, b.split)
    )
    if not same:
        return ""
    if one.is_scored and other.is_scored:
        return "ranked"
    return "sealed" if one.test and other.test else ""


def differences(models: Sequence[TrainedModel]) -> list[dict[str, Any] | None]:
    """How each but the first differs from the first: {"change", "interval", "better", "rows",
    "part"}, {"problem"}, or None while control computes it. Asks control for what is not there."""
    first, *others = models
    found: list[dict[str, Any] | None] = []
    for other in others:
        if not rows_in_common(first, other):
            found.append({"problem": "They were not measured on the same rows."})
            continue
        key = _key(first.pk, other.pk, first.job.metric)
        try:
            kept = cache.get(key)
            if kept is None and cache.add(f"{key}:asked", 1, ASKED_S):
                sent = bells.send(TASK, args=[str(first.pk), str(other.pk)], queue="control")
                if not sent:
                    cache.delete(f"{key}:asked")
        except RedisError:
            found.append({"problem": "It can't be computed now: Valkey is away."})
            continue
        found.append(None if kept is None else json.loads(kept))
    return found


def _key(first: UUID, other: UUID, metric: str) -> str:
    return f"difference:{VERSION}:{first}:{other}:{metric}"


def compare(first: UUID, other: UUID) -> None:
    """Compute how ``other`` differs from ``first``, and keep it. Runs in control."""
    wanted = TrainedModel.objects.select_related(
        "job__dataset_version__data", "predictions"
    ).in_bulk([first, other])
    if len(wanted) < 2:
        return
    one, two = wanted[first], wanted[other]
    try:
        told = _difference(one, two)
    except InvalidCandidate as refusal:
        told = {"problem": str(refusal)}
    except (OSError, ValueError):
        log.exception("no difference", extra={"model": str(first), "other": str(other)})
        told = {"problem": "What they predicted can't be read. Tell the operator."}
    cache.set(_key(first, other, one.job.metric), json.dumps(told), KEPT_S)


def _difference(one: TrainedModel, two: TrainedModel) -> dict[str, Any]:
    """Raises InvalidCandidate for models that have no rows in common, or no such score."""
    part = rows_in_common(one, two)
    if not part or one.predictions is None or two.predictions is None:
        raise InvalidCandidate("They were not measured on the same rows.")
    job = one.job
    truth = scoring.truth_of(job)
    rows = truth.sealed if part == "sealed" else truth.ranked
    said = []
    for model in (one, two):
        assert model.predictions is not None
        read = scoring.read_predictions(model.predictions, job, most_rows=len(truth.target))
        places = line_up(read.rows, rows, part="test" if part == "sealed" else "validation")
        shares = read.probabilities
        said.append((read.values[places], None if shares is None else shares[places]))
    found = difference(
        job.task,
        truth.target[rows],
        said[0],
        said[1],
        metric=job.metric,
        classes=job.classes,
        positive_class=job.positive_class,
        seed=job.seed,
    )
    return {**asdict(found), "part": part}


def words(found: dict[str, Any], metric: str) -> str:
    """What a difference says, in a sentence."""
    if "problem" in found:
        return str(found["problem"])
    interval = found["interval"]
    if interval is None:
        return "Too few rows to tell how sure that is."
    low, high = interval
    if low <= 0 <= high:
        return "No clear difference: zero lies within the interval."
    better = (found["change"] > 0) == METRICS[metric].greater_is_better
    return "Clearly better." if better else "Clearly worse."
