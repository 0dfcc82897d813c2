"""Permutation importance: nodes are asked for predictions, which are scored here like all else."""

from __future__ import annotations

import json
import logging
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from django.db import transaction

from accounts.errors import Conflict, FlowError
from organizations.audit import record
from organizations.models import Membership, Organization
from training import asking, scoring
from training.evaluation import METRICS, InvalidCandidate, loss_of_blend
from training.learned import Importance
from training.models import TrainedModel
from workers.models import Artifact, Task

log = logging.getLogger(__name__)

IMPORTANCE = "training.importance"  # a kind of task
BUDGET_S = 60.0
GRACE_S = 60
MOST_SETS = 20_000  # of rows in a file, each of at most MOST_ROWS
MOST_ROWS = 1_000
AFTERWARDS = -1  # the priority of what nobody waits for
State = Importance.State


def ask(by: Membership, model: TrainedModel) -> Importance:
    """The model's importance; one that isn't there, or that failed, is begun.

    Raises Conflict for a model that can't be asked, QuotaReached.
    """
    found = Importance.objects.filter(model=model).first()
    if found is not None and found.state != State.FAILED and not asking.is_lost(found):
        return found
    with transaction.atomic():
        made = _begin(by.organization, model)
        record("model.importance-asked", model, by=by)
    return made


def ask_for_winner(model: TrainedModel) -> None:
    """Begin with it after a race, unless it can't be done. Runs in control."""
    try:
        with transaction.atomic():
            _begin(model.organization, model, priority=AFTERWARDS)
    except FlowError as why:
        log.info("no importance", extra={"model": str(model.pk), "why": str(why)})
    except Exception:  # it comes after the race, and is no part of it
        log.exception("no importance", extra={"model": str(model.pk)})


def _begin(home: Organization, model: TrainedModel, priority: int = 0) -> Importance:
    return asking.begin(
        home,
        model,
        Importance,
        kind=IMPORTANCE,
        payload={"importance_s": BUDGET_S},
        time_limit_s=int(BUDGET_S + GRACE_S),
        priority=priority,
    )


@transaction.atomic
def finish(task: Task) -> None:
    """A node has ended with its part: score all of them when it was the last. Runs in control."""
    tasks = asking.finish(Importance, task, _score)
    for artifact in Artifact.objects.filter(task__in=tasks):  # the figures are all that is shown
        artifact.delete()
        transaction.on_commit(partial(artifact.file.delete, save=False))


def _score(found: Importance, tasks: list[Task]) -> None:
    """Raises InvalidCandidate for what is no answer to what was asked."""
    model = found.model
    job = model.job
    weights = asking.weights_of(model)
    truth = scoring.truth_of(job)
    parts = [(_said(job, task), weights.get(str(task.payload["member"]), 0.0)) for task in tasks]
    first, _ = parts[0]
    # Each member did whole repeats, the slowest the fewest; columns are shuffled alike for all.
    repeats = min(1 + max((repeat for _, repeat in part.sets), default=-1) for part, _ in parts)
    if any(not np.array_equal(part.rows, first.rows) for part, _ in parts):
        raise InvalidCandidate("The members were not asked about the same rows.")
    target = truth.target[first.rows]

    def loss(said: npt.NDArray[np.float64]) -> float:
        return loss_of_blend(
            job.task, target, said, metric=job.metric, classes=job.classes,
            positive_class=job.positive_class,
        )  # fmt: skip

    base = loss(_mixed(parts, None, 0))
    told = []
    for column in job.columns:
        name = column["name"]
        drops = [loss(_mixed(parts, name, repeat)) - base for repeat in range(repeats)]
        told.append({"column": name, "drops": [float(one) for one in drops]})
    if not np.isfinite([base, *(drop for one in told for drop in one["drops"])]).all():
        raise InvalidCandidate(
            f"{METRICS[job.metric].title} is not defined for so few rows of these classes."
        )
    found.columns = sorted(told, key=lambda one: -float(np.mean(one["drops"] or [0.0])))
    found.score = -base if METRICS[job.metric].greater_is_better else base
    found.rows = len(first.rows)
    found.unseen = all(bool((task.result.get("data") or {}).get("unseen")) for task in tasks)


class _Said:
    """What a model said of ``rows`` as they are and of each shuffle of a column, n x k each."""

    def __init__(
        self, rows: npt.NDArray[np.int64], sets: list[tuple[str, int]], values: Any
    ) -> None:
        self.rows, self.sets = rows, sets
        self._values = values
        self._places = {one: place + 1 for place, one in enumerate(sets)}

    def of(self, column: str | None, repeat: int) -> npt.NDArray[np.float64]:
        """Of a column that the model was not given, as the rows are."""
        place = 0 if column is None else self._places.get((column, repeat), 0)
        n = len(self.rows)
        found: npt.NDArray[np.float64] = self._values[place * n : (place + 1) * n]
        return found


def _mixed(
    parts: list[tuple[_Said, float]], column: str | None, repeat: int
) -> npt.NDArray[np.float64]:
    mixed: npt.NDArray[np.float64] = np.sum(
        [weight * part.of(column, repeat) for part, weight in parts], axis=0
    )
    return mixed


def _said(job: Any, task: Task) -> _Said:
    told = task.result.get("data") or {}
    files = task.result.get("files") or {}
    stored = {str(one.pk): one for one in task.artifacts.all()}.get(str(files.get("predictions")))
    if stored is None:
        raise InvalidCandidate("The predictions did not arrive.")
    try:
        sets = [(str(column), int(repeat)) for column, repeat in told["sets"]]
        n = int(told["rows"])
    except (KeyError, TypeError, ValueError):
        raise InvalidCandidate("The node did not say what it had shuffled.") from None
    if not 1 < n <= MOST_ROWS or len(sets) > MOST_SETS or len(set(sets)) != len(sets):
        raise InvalidCandidate("The node shuffled something else than was asked for.")
    found = scoring.read_predictions(stored, job, most_rows=n * (len(sets) + 1))
    rows = found.rows[:n]
    if not np.array_equal(found.rows, np.tile(rows, len(sets) + 1)):
        raise InvalidCandidate("The predictions are not of the same rows each time.")
    truth = scoring.truth_of(job)
    if not np.isin(rows, np.concatenate([truth.ranked, truth.sealed, truth.training])).all():
        raise InvalidCandidate("The predictions are of rows that are none of this job's.")
    values = found.values
    if job.classes is None:
        try:
            numbers = np.asarray(values, dtype=np.float64)[:, None]
        except (TypeError, ValueError):
            raise InvalidCandidate("The predictions are no numbers.") from None
        return _Said(rows, sets, numbers)
    if found.probabilities is not None:
        return _Said(rows, sets, found.probabilities)
    code_of = {name: code for code, name in enumerate(job.classes)}
    codes = [code_of.get(str(value), -1) for value in values]
    if min(codes) < 0:
        raise InvalidCandidate("The predictions name classes that there are not.")
    return _Said(rows, sets, np.eye(len(job.classes))[codes])


# --- For the page and programs -------------------------------------------------------------------

SHOWN = 20  # columns in the picture


def of(model: TrainedModel) -> Importance:
    """Raises Conflict when nobody has asked for it yet."""
    found = Importance.objects.filter(model=model).first()
    if found is None or asking.is_lost(found):
        raise Conflict(
            "Nobody has asked what the columns of this model are worth. Post here to begin.",
            code="not-made",
        )
    return found


def rows_of(found: Importance) -> list[dict[str, Any]]:
    """Each column, the most important first: how much worse it gets, in the mean, and each time."""
    return [
        {
            "column": one["column"],
            "mean": float(np.mean(one["drops"])) if one["drops"] else 0.0,
            "drops": one["drops"],
        }
        for one in found.columns
    ]


def on_page(model: TrainedModel) -> dict[str, Any]:
    """What templates/training/_importance.html shows."""
    found = Importance.objects.filter(model=model).first()
    if found is None or asking.is_lost(found):
        return {"state": ""}
    metric = METRICS[model.job.metric]
    rows = rows_of(found)
    seen = "did not see" if found.unseen else "learnt from, for want of others"
    leading = [row["column"] for row in rows if row["mean"] > 0][:1]
    return {
        "state": str(found.state),
        "error": found.error,
        "rows": [
            {
                **row,
                "low": min(row["drops"], default=0.0),
                "high": max(row["drops"], default=0.0),
            }
            for row in rows
        ],
        "picture_json": json.dumps(
            {
                "rows": [{"name": row["column"], **row} for row in rows[:SHOWN]],
                "x": f"{metric.title} gets worse by",
            }
        ),
        "text": (f"'{leading[0]}' matters most. " if leading else "No column matters. ")
        + f"Each column was shuffled {len(rows[0]['drops']) if rows else 0} times over "
        f"{found.rows:,} rows that the model {seen}; without that its {metric.title} there is "
        f"{found.score:.4g}."
        if found.score is not None
        else "",
    }
