"""How what a model says changes with one column, all others as they are: partial dependence.

Friedman: "Greedy Function Approximation: A Gradient Boosting Machine", Annals of Statistics 29,
2001; a line for each row (ICE): Goldstein et al.: "Peeking Inside the Black Box", JCGS 24, 2015.

``dependence`` is a task handler (see workers/node/handlers.py). Runs in the engine's virtualenv;
knows no engine by name. Equal payloads choose alike, so what members of an ensemble say can be
blended.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from training import splits
from training.engines import frame, harness, importance
from training.engines.base import Predictions, Problem
from training.engines.tables import Array, InputError
from workers.node.channel import Channel, WorkError

ROWS = 200  # the mean is over
LINES = 12  # rows that are shown one by one
VALUES = 15  # of a number or time
MOST_WORDS = 12  # of a category
MOST_COLUMNS = 20
MOST_CLASSES = 6


def dependence(task: Mapping[str, Any], channel: Channel) -> harness.Answer:
    """Give each column of some rows of "data" one value after the other and ask "model".

    The payload is the race's, ``dependence_s`` being the most seconds it may take and ``first`` the
    columns to begin with. Returns ``columns``: [{"column", "kind" (number, time or word), "values",
    "means": values x k, "lines": rows x values x k}], k being ``classes`` (their codes), or 1; and
    over how many ``rows``, which the model had not seen (``unseen``) or had.
    Raises WorkError when there was no time for a single column, or there is none.
    """
    payload = task["payload"]
    until = time.monotonic() + float(payload["dependence_s"])
    folder = Path("model")
    with zipfile.ZipFile(task["inputs"]["model"]) as archive:
        archive.extractall(folder)  # stays inside folder: zipfile drops .. and leading /
    model = harness.load_predictor(folder)
    model.model.threads = max(1, int(payload.get("threads") or 1))
    problem = harness.problem_of(payload)
    names = [str(column["name"]) for column in payload["columns"]]
    kinds = {column.name: column.kind for column in model.schema.columns}
    order = dict.fromkeys([*map(str, payload.get("first") or ()), *names])
    wanted = [name for name in order if kinds.get(name) in _CHANGED]
    channel.progress(0.02, "Reading the rows")
    try:
        chosen, unseen, taken = importance.some_rows(
            Path(task["inputs"]["data"]), payload, problem, names
        )
    except (InputError, splits.BadSplit) as error:
        raise WorkError(str(error), code="data") from error
    # They are in the file's order, which may mean something.
    few = np.random.default_rng(problem.seed % 2**32).permutation(len(chosen))[:ROWS]
    rows = {name: values[few] for name, values in taken.items()}
    classes = _classes(problem)
    told: list[dict[str, Any]] = []
    for place, name in enumerate(wanted[:MOST_COLUMNS]):
        if channel.stopping:
            raise WorkError("It was stopped.", code="stopped")
        if time.monotonic() > until:
            break
        kind, values, shown = _values(kinds[name], taken[name])
        if len(values) < 2:
            continue
        asked = {other: np.tile(column, len(values)) for other, column in rows.items()}
        asked[name] = np.repeat(values, len(few))
        said = model.predict_frame(frame.prepare(model.schema, asked, strict=False))
        numbers = _numbers(said, classes).reshape(len(values), len(few), -1)
        told.append(
            {
                "column": name,
                "kind": kind,
                "values": shown,
                "means": _short(numbers.mean(axis=1)),
                "lines": _short(numbers[:, :LINES].transpose(1, 0, 2)),
            }
        )
        channel.progress(0.05 + 0.95 * (place + 1) / len(wanted), f"Changing '{name}'")
    if not told:
        raise WorkError(
            "No column of this model can be changed value by value, or the model is too slow for "
            "one within the time.",
            code="no_column",
        )
    data = {"columns": told, "classes": classes, "rows": len(few), "unseen": unseen}
    return {"data": data, "files": {}}


def _classes(problem: Problem) -> list[int] | None:
    """The codes of the classes whose probability is followed; None for a number."""
    if problem.classes is None:
        return None
    if len(problem.classes) == 2:
        positive = problem.positive_class
        return [problem.classes.index(positive) if positive else 1]
    return list(range(min(MOST_CLASSES, len(problem.classes))))


def _values(kind: str, column: Array) -> tuple[str, Array, list[Any]]:
    """What kind of values a column is given, the values, and how JSON has them."""
    if kind in (frame.NUMBER, frame.DATETIME):
        if column.dtype.kind == "M":
            known = column[~np.isnat(column)].astype("datetime64[us]")
            at = np.quantile(known.astype(np.int64), _SHARES) if len(known) else np.empty(0)
            values = np.unique(at.astype(np.int64)).astype("datetime64[us]")
            return "time", values, [str(one)[:19] for one in values]
        if column.dtype.kind in "biuf":
            numbers = column.astype(np.float64)
            known = numbers[np.isfinite(numbers)]
            if len(known):
                found = np.unique(known)
                if len(found) > VALUES:
                    at = np.quantile(known, _SHARES)
                    found = np.unique(np.round(at) if column.dtype.kind in "iu" else at)
                return "number", found, [float(f"{one:.6g}") for one in found]
    given = [value for value in column.tolist() if value is not None and value == value]
    counts: dict[Any, int] = {}
    for value in given:
        counts[value] = counts.get(value, 0) + 1
    often = sorted(counts, key=lambda value: (-counts[value], str(value)))[:MOST_WORDS]
    out = np.empty(len(often), dtype=object)
    out[:] = often
    return "word", out, [str(value) for value in often]


_CHANGED = {frame.NUMBER, frame.BOOLEAN, frame.CATEGORY, frame.DATETIME}
_SHARES = np.linspace(0.02, 0.98, VALUES)


def _numbers(said: Predictions, classes: list[int] | None) -> Array:
    """What was said as rows x k numbers."""
    if classes is None:
        return np.asarray(said.values, dtype=np.float64)[:, None]
    if said.probabilities is not None:
        return np.asarray(said.probabilities, dtype=np.float64)[:, classes]
    return (np.asarray(said.values)[:, None] == np.array(classes)).astype(np.float64)


def _short(numbers: Array) -> Any:
    """As lists, to five significant digits."""
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.where(numbers == 0, 1.0, 10.0 ** (4 - np.floor(np.log10(np.abs(numbers)))))
    return np.nan_to_num(np.round(numbers * size) / size).tolist()
