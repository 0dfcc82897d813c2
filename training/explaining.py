"""Why a model says what it says of one row: what each column adds to the answer.

A node computes it where the model is loaded (``training/engines/shapley.py``), beside rows that the
model learnt from. An ensemble's answer is a weighted mean, and so are the shares of its columns:
each member explains itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from accounts.errors import Invalid, Unavailable
from datasets.cards import number, shown
from training import actions, asking, background, serving
from training.checks import nearest
from training.models import TrainedModel
from training.rows import BadRows, check_rows

Floats = npt.NDArray[np.float64]
SHOWN = 10  # columns in the picture; the others are one step together


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a column adds; ``error`` is a standard error, None where it could not be told."""

    column: str
    value: Any
    contribution: float
    error: float | None


@dataclass(frozen=True, slots=True)
class Explained:
    """One answer taken apart: ``base`` and all contributions add up to ``output``.

    What is explained is the probability of ``of_class``, or where that is None the number that was
    predicted. ``contributions`` has each column once, the largest first. ``exact``: computed over
    all coalitions of columns, not drawn.
    """

    prediction: Any
    probabilities: dict[str, float] | None
    of_class: str | None
    base: float
    output: float
    contributions: list[Contribution]
    exact: bool
    background: int
    evaluations: int
    ms: dict[str, float]


def explain(model: TrainedModel, row: object, of_class: str | None = None) -> Explained:
    """Explain what ``model`` says of ``row``, a mapping from column to value.

    ``of_class`` chooses the class whose probability is explained; without it, the one that is
    predicted. Raises RowsRefused, Invalid for a class that is none, Conflict when the data set is
    gone or the model reads a picture, Unavailable when no node can answer.
    """
    actions.check_usable(model)
    asking.check_columns(model)
    classes = [str(name) for name in model.job.classes] if model.job.classes else None
    if of_class is not None and of_class not in (classes or ()):
        near = nearest(of_class[:100], classes) if classes else " It predicts numbers."
        problem = f"The model knows no class '{of_class[:100]}'.{near}"
        raise Invalid(problem, errors={"class": [problem]})
    try:
        (checked,) = check_rows(model.schema, [row])
    except BadRows as bad:
        places = {place.replace("rows[0]", "row", 1): why for place, why in bad.errors.items()}
        raise actions.RowsRefused(str(bad).replace("rows[0]", "row", 1), errors=places) from None
    columns = [str(column["name"]) for column in model.schema]
    others = background.of(model.job)
    answer = serving.ask(model, columns, [checked], others)
    found = _blended(answer, len(columns), classes)
    said = answer.predictions[0]
    chosen = of_class if of_class is not None else str(said)
    code = classes.index(chosen) if classes and chosen in classes else 0
    values, errors = found.values[:, code], found.errors
    contributions = [
        Contribution(name, value, float(share), None if errors is None else float(error))
        for name, value, share, error in zip(
            columns,
            checked,
            values,
            values if errors is None else errors[:, code],
            strict=True,
        )
    ]
    return Explained(
        said,
        answer.by_class[0] if answer.by_class else None,
        classes[code] if classes else None,
        float(found.base[code]),
        float(found.output[code]),
        sorted(contributions, key=lambda one: -abs(one.contribution)),
        found.exact,
        found.background,
        found.evaluations,
        answer.ms,
    )


@dataclass(frozen=True, slots=True)
class _Part:
    base: Floats
    output: Floats
    values: Floats
    errors: Floats | None
    exact: bool
    background: int
    evaluations: int


def _blended(answer: serving.Answer, columns: int, classes: Sequence[str] | None) -> _Part:
    """Raises Unavailable for what is no explanation: a node may be anybody's."""
    if not answer.parts:
        raise Unavailable(
            "The node that answered can't explain: its FlowML is older. Update it.",
            code="not-explained",
        )
    try:
        parts = [_read(told, columns, len(classes) if classes else 1) for told, _ in answer.parts]
    except (KeyError, TypeError, ValueError):
        raise Unavailable(
            "A node's explanation doesn't fit this model.", code="not-explained"
        ) from None
    weights = [weight for _, weight in answer.parts]
    errors = None
    if all(part.errors is not None for part in parts):
        # Members draw their orders one by one, but of the same seeds: at worst errors add up.
        errors = sum_of([part.errors for part in parts if part.errors is not None], weights)
    return _Part(
        sum_of([part.base for part in parts], weights),
        sum_of([part.output for part in parts], weights),
        sum_of([part.values for part in parts], weights),
        errors,
        all(part.exact for part in parts),
        min(part.background for part in parts),
        sum(part.evaluations for part in parts),
    )


def sum_of(arrays: Sequence[Floats], weights: Sequence[float]) -> Floats:
    total: Floats = np.sum(
        [weight * one for one, weight in zip(arrays, weights, strict=True)], axis=0
    )
    return total


def _read(told: Any, columns: int, k: int) -> _Part:
    def array(value: Any, *shape: int) -> Floats:
        found = np.asarray(value, dtype=np.float64)
        if found.shape != shape or not np.isfinite(found).all():
            raise ValueError
        return found

    errors = told["errors"]
    return _Part(
        array(told["base"], k),
        array(told["output"], k),
        array(told["values"], columns, k),
        None if errors is None else array(errors, columns, k),
        bool(told["exact"]),
        int(told["background"]),
        int(told["evaluations"]),
    )


# --- For the page --------------------------------------------------------------------------------


def picture(found: Explained) -> dict[str, Any]:
    """Steps of a waterfall from the mean to the answer: {"name", "from", "to"}, and its ends."""
    leading, rest = found.contributions[:SHOWN], found.contributions[SHOWN:]
    steps, at = [], found.base
    for one in leading:
        steps.append(
            {
                "name": f"{one.column} = {_short(one.value)}",
                "from": at,
                "to": at + one.contribution,
            }
        )
        at += one.contribution
    if rest:
        steps.append({"name": f"{len(rest)} other columns", "from": at, "to": found.output})
    return {
        "start": {"name": "Mean of others", "value": found.base},
        "steps": steps,
        "end": {"name": "This row", "value": found.output},
        "x": f"Probability of {found.of_class}" if found.of_class is not None else "Prediction",
    }


def _short(value: Any, most: int = 24) -> str:
    text = (
        number(value)
        if isinstance(value, int | float) and not isinstance(value, bool)
        else shown(value)
    )
    return text if len(text) <= most else f"{text[: most - 1]}…"


def on_page(found: Explained) -> dict[str, Any]:
    """What templates/training/_why.html shows."""
    up = [one for one in found.contributions if one.contribution > 0]
    down = [one for one in found.contributions if one.contribution < 0]

    def amount(value: float) -> str:
        if found.of_class is not None:
            return f"{100 * value:.1f}%"
        return number(value)

    def signed(value: float) -> str:
        sign = "+" if value > 0 else "−" if value < 0 else "±"
        return f"{sign}{amount(abs(value))}"

    words = [f"'{one[0].column}' raises it most" for one in (up,) if one]
    words += [f"'{one[0].column}' lowers it most" for one in (down,) if one]
    what = (
        f"The probability of {found.of_class}" if found.of_class is not None else "The prediction"
    )
    ending = f": {', '.join(words)}." if words else "; no column changes it."
    return {
        "title": what,
        "text": f"{what} is {amount(found.output)}, where rows that the model learnt from have "
        f"{amount(found.base)} in the mean{ending}",
        "picture_json": json.dumps(picture(found)),
        "rows": [
            {
                "column": one.column,
                "value": _short(one.value, 60),
                "share": signed(one.contribution),
                "error": None if one.error is None else amount(one.error),
            }
            for one in found.contributions
        ],
        "base": amount(found.base),
        "output": amount(found.output),
        "of_class": found.of_class,
        "classes": list(found.probabilities or ()),
        "method": _method(found),
    }


def _method(found: Explained) -> str:
    how = (
        "over all combinations of columns"
        if found.exact
        else "over drawn orders of columns, so with an error"
    )
    return (
        f"Shapley values {how}, beside {found.background} rows of the training data: "
        f"{found.evaluations:,} predictions."
    )
