"""Partial dependence: asked of nodes once for each model, blended from what members say.

What a node tells is looked at number by number before it is kept, as everything that nodes send.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from django.db import transaction

from organizations.audit import record
from organizations.models import Membership
from training import asking
from training.evaluation import InvalidCandidate
from training.learned import Dependence, Importance
from training.models import TrainedModel
from workers.models import Task

DEPENDENCE = "training.dependence"  # a kind of task
BUDGET_S = 60.0
GRACE_S = 60
MOST_COLUMNS = 50
MOST_VALUES = 50
MOST_LINES = 50
MOST_CLASSES = 20
State = Dependence.State
Floats = npt.NDArray[np.float64]


def ask(by: Membership, model: TrainedModel) -> Dependence:
    """The model's dependence; one that isn't there, or that failed, is begun.

    Raises Conflict for a model that can't be asked, QuotaReached.
    """
    found = Dependence.objects.filter(model=model).first()
    if found is not None and found.state != State.FAILED and not asking.is_lost(found):
        return found
    known = Importance.objects.filter(model=model).first()
    first = [one["column"] for one in known.columns] if known else []
    with transaction.atomic():
        found = asking.begin(
            by.organization,
            model,
            Dependence,
            kind=DEPENDENCE,
            payload={"dependence_s": BUDGET_S, "first": first},
            time_limit_s=int(BUDGET_S + GRACE_S),
        )
        record("model.dependence-asked", model, by=by)
    return found


@transaction.atomic
def finish(task: Task) -> None:
    """A node has ended with its part: keep what all say when it was the last. Runs in control."""
    asking.finish(Dependence, task, _keep)


def _keep(found: Dependence, tasks: list[Task]) -> None:
    """Raises InvalidCandidate for what is no answer to what was asked."""
    model = found.model
    weights = asking.weights_of(model)
    names = [str(column["name"]) for column in model.job.columns]
    parts = [
        (_said(task, names, model.job.classes), weights.get(str(task.payload["member"]), 0.0))
        for task in tasks
    ]
    first, _ = parts[0]
    if any(
        (part["classes"], part["rows"]) != (first["classes"], first["rows"]) for part, _ in parts
    ):
        raise InvalidCandidate("The members were not asked about the same rows.")
    kept = []
    for name, column in first["columns"].items():
        each = [(part["columns"].get(name), weight) for part, weight in parts]
        told = [(one, weight) for one, weight in each if one is not None]
        # A member that was not given the column, or had no time for it, can't be blended.
        if len(told) < len(parts) or any(
            one["values"] != column["values"] or one["lines"].shape != column["lines"].shape
            for one, _ in told
        ):
            continue
        total = sum(weight for _, weight in told) or 1.0
        kept.append(
            {
                "column": name,
                "kind": column["kind"],
                "values": column["values"],
                **{
                    what: (sum(one[what] * weight for one, weight in told) / total).tolist()
                    for what in ("means", "lines")
                },
            }
        )
    if not kept:
        raise InvalidCandidate("The members have no column in common that can be shown.")
    found.columns = kept
    found.classes = [(model.job.classes or [])[code] for code in first["classes"] or ()]
    found.rows = first["rows"]
    found.unseen = all(part["unseen"] for part, _ in parts)


def _said(task: Task, names: list[str], classes: list[str] | None) -> dict[str, Any]:
    """What a node sent, as arrays. Raises InvalidCandidate."""
    try:
        told = task.result["data"]
        codes = told["classes"]
        if (codes is None) != (classes is None):
            raise ValueError
        if codes is not None and not (
            0 < len(codes) <= MOST_CLASSES
            and all(0 <= int(code) < len(classes or ()) for code in codes)
        ):
            raise ValueError
        k = 1 if codes is None else len(codes)
        columns = {}
        for one in told["columns"][:MOST_COLUMNS]:
            n = len(one["values"])
            means, lines = (np.asarray(one[what], dtype=np.float64) for what in ("means", "lines"))
            fits = means.shape == (n, k) and lines.shape[1:] == (n, k)
            if str(one["column"]) not in names or not 1 < n <= MOST_VALUES or not fits:
                raise ValueError
            if len(lines) > MOST_LINES or not (
                np.isfinite(means).all() and np.isfinite(lines).all()
            ):
                raise ValueError
            kind = str(one["kind"])
            values = [_value(kind, value) for value in one["values"]]
            columns[str(one["column"])] = {
                "kind": kind, "values": values, "means": means, "lines": lines,
            }  # fmt: skip
        return {
            "columns": columns,
            "classes": None if codes is None else [int(code) for code in codes],
            "rows": int(told["rows"]),
            "unseen": bool(told.get("unseen")),
        }
    except (KeyError, TypeError, ValueError, IndexError):
        raise InvalidCandidate("The node sent something else than was asked for.") from None


def _value(kind: str, value: Any) -> float | str:
    if kind == "number":
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
        return number
    if kind not in {"time", "word"}:
        raise ValueError
    return str(value)[:200]


# --- For the page ---------------------------------------------------------------------------------


def on_page(model: TrainedModel, asked: Mapping[str, str]) -> dict[str, Any]:
    """What templates/training/_dependence.html shows, of the column and class asked for."""
    found = Dependence.objects.filter(model=model).first()
    if found is None or asking.is_lost(found):
        return {"dependence": {"state": ""}}
    told: dict[str, Any] = {"state": str(found.state), "error": found.error}
    if found.state == State.SUCCEEDED:
        by_name = {one["column"]: one for one in found.columns}
        column = by_name.get(asked.get("column", "")) or found.columns[0]
        wanted = asked.get("of", "")
        place = found.classes.index(wanted) if wanted in found.classes else 0
        told |= {
            "columns": list(by_name),
            "column": column["column"],
            "classes": found.classes if len(found.classes) > 1 else [],
            "of": found.classes[place] if found.classes else "",
            **_picture(found, column, place, model.job.target),
        }
    return {"dependence": told}


def _picture(found: Dependence, column: dict[str, Any], place: int, target: str) -> dict[str, Any]:
    words = column["kind"] != "number"
    xs = range(len(column["values"])) if words else column["values"]
    means = [row[place] for row in column["means"]]
    what = f"Probability of {found.classes[place]}" if found.classes else target
    series: list[dict[str, Any]] = [
        {
            "name": f"Row {number + 1}",
            "thin": True,
            "points": [[x, row[place]] for x, row in zip(xs, line, strict=True)],
        }
        for number, line in enumerate(column["lines"])
    ]
    series.append({"name": "Mean", "points": [list(one) for one in zip(xs, means, strict=True)]})
    data = {"series": series, "x": column["column"], "y": what}
    if words:
        data["categories"] = column["values"]
    low, high = min(means), max(means)
    seen = "had not seen" if found.unseen else "learnt from, for want of others"
    return {
        "picture_json": json.dumps(data),
        "what": what,
        "rows": list(zip(column["values"], means, strict=True)),
        "text": f"All else as it is, {what[0].lower()}{what[1:]} goes from {low:.4g} to {high:.4g} "
        f"with {column['column']}: the mean over {found.rows:,} rows that the model {seen}. Each "
        "thin line is one of these rows.",
    }
