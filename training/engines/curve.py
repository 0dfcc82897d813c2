"""How a model's recipe does with fewer rows: its learning curve.

``learning_curve`` is a task handler (see workers/node/handlers.py). Runs in the engine's
virtualenv; knows no engine by name. It sends predictions for the rows that rank, and whoever knows
their target scores them.
"""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from training.engines import apart, harness
from training.engines.base import Data, Engine, Predictions, Problem
from training.engines.tables import Array
from workers.node.channel import Channel, WorkError

SHARES = (0.1, 0.2, 0.4, 0.7, 1.0)
FEWEST = 10  # rows of a fit


def learning_curve(task: Mapping[str, Any], channel: Channel) -> harness.Answer:
    """Fit the recipe of the artifact "model" on ever more of the training rows of "data".

    The payload is the race's, ``budget_s`` being the most that all fits may take: the curve ends
    where the time does. Returns how many rows each fit had, and its predictions as a file.
    Raises WorkError when there is no point at all.
    """
    run = harness.HarnessRun({**task, "spent_s": 0}, channel)
    engine = harness.engine_named(task["engine"])
    problem = harness.problem_of(task["payload"])
    with zipfile.ZipFile(task["inputs"]["model"]) as archive:
        origin = json.loads(archive.read("schema.json"))["model"]
    ready = harness.Ready.read(Path(task["inputs"]["data"]), task["payload"], problem, run)
    recipe = engine.final(origin["recipe"])
    points: list[dict[str, Any]] = []
    files: dict[str, str] = {}
    why = "there was no time for it"
    for place, share in enumerate(SHARES):
        run.working_on(f"{origin['name']} on {share:.0%} of the rows")
        began = time.monotonic()
        try:
            folder = run.folder / str(place)
            (found,) = apart.stream(
                partial(_point, engine, recipe, problem, ready.data, share, folder),
                deadline=began + run.remaining_s(),
                pulse=run.pulse,
            )
        except (apart.Stopped, apart.Overrun):
            break
        except apart.Failed as error:
            why = str(error)
            continue  # of few rows some models can't be fitted
        name = f"size-{place}"
        rows = ready.held_rows if ready.data.folds is None else ready.train_rows
        harness.write_predictions(Path(f"{name}.parquet"), rows, found["said"], problem)
        files[name] = f"{name}.parquet"
        seconds = round(time.monotonic() - began, 3)
        points.append({"name": name, "rows": found["rows"], "seconds": seconds})
    if not points:
        raise WorkError(f"It has no learning curve: {why}.", code="no_curve")
    run.finish("Done")
    return {"data": {"points": points}, "files": files}


def _point(
    engine: Engine,
    recipe: Mapping[str, Any],
    problem: Problem,
    data: Data,
    share: float,
    folder: Path,
) -> Iterator[dict[str, Any]]:
    """In a fork: predictions for the rows that rank by a fit on so many of the others."""
    if data.folds is None:
        chosen = some_of(np.arange(len(data.y)), data.y, share, problem)
        yield {"rows": len(chosen), "said": _said(engine, recipe, problem, data, chosen, folder)}
        return
    parts, places, sizes = [], [], []
    for fold in np.unique(data.folds):
        inside = np.flatnonzero(data.folds == fold)
        chosen = some_of(np.flatnonzero(data.folds != fold), data.y, share, problem)
        asked = replace(data, held=data.train.take(inside))
        parts.append(_said(engine, recipe, problem, asked, chosen, folder / str(fold)))
        places.append(inside)
        sizes.append(len(chosen))
    said = parts[0]
    for part in parts[1:]:
        said = harness.joined(said, part)
    order = np.argsort(np.concatenate(places))
    shares = said.probabilities
    said = Predictions(said.values[order], None if shares is None else shares[order])
    yield {"rows": int(np.mean(sizes)), "said": said}


def _said(
    engine: Engine,
    recipe: Mapping[str, Any],
    problem: Problem,
    data: Data,
    chosen: Array,
    folder: Path,
) -> Predictions:
    groups = None if data.groups is None else data.groups[chosen]
    asked = Data(data.train.take(chosen), data.y[chosen], data.held, groups=groups)
    engine.fit(recipe, problem, asked, folder)
    return engine.load(folder).predict(data.held)


def some_of(rows: Array, y: Array, share: float, problem: Problem) -> Array:
    """A share of the rows, of each class as many in proportion; more of them holds the fewer."""
    random = np.random.default_rng(problem.seed)
    if not problem.is_classification:
        return np.sort(random.permutation(rows)[: _count(share, len(rows))])
    found = []
    for code in np.unique(y[rows]):
        these = random.permutation(rows[y[rows] == code])
        found.append(these[: max(2, _count(share, len(these), 1))])
    return np.sort(np.concatenate(found))


def _count(share: float, rows: int, fewest: int = FEWEST) -> int:
    return max(min(rows, fewest), int(np.ceil(share * rows)))
