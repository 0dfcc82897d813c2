"""The winner of a race, fitted once more on the validation rows as well.

``refit`` is a task handler (see workers/node/handlers.py). Runs in the engine's virtualenv; knows
no engine by name. What it leaves is a model like any other; only the sealed rows can still say how
good it is.
"""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from training.engines import apart, harness
from training.engines.base import Candidate, Data, Engine, Predictor, Problem
from workers.node.channel import Channel, WorkError


def refit(task: Mapping[str, Any], channel: Channel) -> harness.Answer:
    """Fit the recipe of the artifact "model" on the rows of "data" that the payload's split trains.

    The payload is the race's (training/actions.py), its split with ``refit``, ``budget_s`` being
    the most that the fit may take. Returns a candidate's data and files; its predictions cover
    the sealed rows alone. Raises WorkError when the fit fails, takes too long or is stopped.
    """
    # An attempt keeps nothing of an earlier one, so it has all the time there is.
    run = harness.HarnessRun({**task, "spent_s": 0}, channel)
    payload = task["payload"]
    engine = harness.engine_named(task["engine"])
    problem = harness.problem_of(payload)
    with zipfile.ZipFile(task["inputs"]["model"]) as archive:
        origin = json.loads(archive.read("schema.json"))["model"]
        pinned = archive.read("requirements.txt").decode()
    run.working_on(f"Fitting {origin['name']} on all rows but the sealed ones")
    ready = harness.Ready.read(Path(task["inputs"]["data"]), payload, problem, run)
    folder = run.folder / "refit"
    recipe = engine.final(origin["recipe"])
    try:
        (found,) = apart.stream(
            lambda: _fit(engine, recipe, problem, ready.data, folder),
            deadline=time.monotonic() + run.remaining_s(),
            pulse=run.pulse,
        )
    except apart.Stopped:
        if channel.stopping:
            raise WorkError("It was stopped before it was fitted.", code="stopped") from None
        raise _too_slow(run) from None
    except apart.Overrun:
        raise _too_slow(run) from None
    except apart.Failed as error:
        raise WorkError(f"The fit failed: {error}", code="refit_failed") from error
    candidate = Candidate(
        key=f"{origin['key']}:refit",
        name=f"{origin['name']}, refitted",
        family=origin["family"],
        folder=folder,
        recipe=recipe,
        out_of_fold=None,
        params={},
        train_rows=len(ready.data.y),
        packages=[line.split("==")[0] for line in pinned.splitlines() if line],
        **found,
    )
    files = harness.write_files(candidate, engine, problem, ready, payload)
    run.finish("Done")
    return {"data": harness.facts_of(candidate, engine), "files": files}


def _too_slow(run: harness.HarnessRun) -> WorkError:
    return WorkError(f"It took longer than {run.budget_s:.0f} s.", code="time_limit")


def _fit(
    engine: Engine, recipe: Mapping[str, Any], problem: Problem, data: Data, folder: Path
) -> Iterator[dict[str, Any]]:
    """In a fork, since nobody can interrupt a fit: the fields of Candidate that it gives."""
    began = time.monotonic()
    engine.fit(recipe, problem, data, folder)
    fit_s = time.monotonic() - began
    model = engine.load(folder)
    ms = _one_row_ms(model, data)
    model.threads = problem.threads
    yield {"fit_s": fit_s, "held": model.predict(data.held), "predict_ms_row": ms}


def _one_row_ms(model: Predictor, data: Data) -> float:
    """Median milliseconds to predict one prepared row."""
    row = data.train.take(np.array([0]))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        model.predict(row)
        times.append(time.perf_counter() - began)
    return round(float(np.median(times)) * 1000, 3)
