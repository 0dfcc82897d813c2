"""What a model loses when a column is shuffled: its permutation importance.

Breiman: "Random Forests", Machine Learning 45, 2001; for any model and with its spread over several
shuffles: Fisher, Rudin, Dominici: "All Models are Wrong, but Many are Useful", JMLR 20, 2019.

``importance`` is a task handler (see workers/node/handlers.py). Runs in the engine's virtualenv;
knows no engine by name. It sends what the model says of rows as they are and with each column
shuffled; whoever knows the rows' target scores that. Equal payloads shuffle alike, so what members
of an ensemble say can be blended.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from training import splits
from training.engines import frame, harness, tables
from training.engines.base import Problem
from training.engines.frame import Categories, Frame
from training.engines.tables import Array, InputError
from workers.node.channel import Channel, WorkError

REPEATS = 5
MOST_ROWS = 1_000
MOST_PREDICTED = 250_000  # rows in all
FEWEST_UNSEEN = 30  # with fewer, rows that trained are taken


def importance(task: Mapping[str, Any], channel: Channel) -> harness.Answer:
    """Shuffle each column of some rows of "data" and ask the artifact "model" about them.

    The payload is the race's, ``importance_s`` being the most seconds it may take: there are fewer
    repeats then. Returns the shuffles in order as ``sets`` ([column, repeat]), how many ``rows``
    each has, and whether the model had not seen them (``unseen``); the file "predictions" holds the
    rows as they are and then each set. Raises WorkError when not even one repeat could be done.
    """
    payload = task["payload"]
    until = time.monotonic() + float(payload["importance_s"])
    folder = Path("model")
    with zipfile.ZipFile(task["inputs"]["model"]) as archive:
        archive.extractall(folder)  # stays inside folder: zipfile drops .. and leading /
    model = harness.load_predictor(folder)
    model.model.threads = max(1, int(payload.get("threads") or 1))
    problem = harness.problem_of(payload)
    names = [str(column["name"]) for column in payload["columns"]]
    used = {column.name: column.features for column in model.schema.columns}
    channel.progress(0.02, "Reading the rows")
    try:
        rows, unseen, taken = some_rows(Path(task["inputs"]["data"]), payload, problem, names)
        prepared = frame.prepare(model.schema, taken, strict=False)
    except (InputError, splits.BadSplit) as error:
        raise WorkError(str(error), code="data") from error
    sets: list[list[Any]] = []
    said = [model.predict_frame(prepared)]
    for repeat in range(REPEATS):
        done = []
        for place, name in enumerate(names):
            if name not in used:
                continue
            if channel.stopping:
                raise WorkError("It was stopped.", code="stopped")
            if time.monotonic() > until:
                break
            order = np.random.default_rng([problem.seed % 2**32, repeat, place]).permutation(
                len(rows)
            )
            done.append(model.predict_frame(_shuffled(prepared, used[name], order)))
            sets.append([name, repeat])
            channel.progress(0.05 + 0.9 * len(sets) / (REPEATS * len(used)), f"Shuffling '{name}'")
        said += done
        if len(done) < len(used):
            break
    whole = len(used) and len(sets) // len(used)
    if used and not whole:
        raise WorkError(
            f"The model is too slow: shuffling each column once took longer than "
            f"{payload['importance_s']:.0f} s.",
            code="too_slow",
        )
    kept = whole * len(used)
    found = said[0]
    for one in said[1 : kept + 1]:
        found = harness.joined(found, one)
    path = Path("predictions.parquet")
    harness.write_predictions(path, np.tile(rows, kept + 1), found, problem)
    return {
        "data": {"sets": sets[:kept], "rows": len(rows), "unseen": unseen},
        "files": {"predictions": path.name},
    }


def some_rows(
    path: Path, payload: Mapping[str, Any], problem: Problem, names: list[str]
) -> tuple[Array, bool, dict[str, Array]]:
    """Some rows' places in the file, whether the model has not seen them, and their columns."""
    by = splits.column_of(payload["split"])
    table = tables.read_file(path, [*names, problem.target, *([by] if by else [])])
    target = tables.as_array(table[problem.target])
    strata = splits.strata_of(target, problem.classes)
    parts = splits.assign(
        len(target), payload["split"], strata, tables.as_array(table[by]) if by else None
    )
    validation, sealed = np.flatnonzero(parts == splits.VALIDATION), splits.sealed_rows(parts)
    held = validation if len(validation) else sealed
    unseen = len(held) >= FEWEST_UNSEEN
    pool = held if unseen else splits.training_rows(parts)
    most = min(MOST_ROWS, max(20, MOST_PREDICTED // (1 + REPEATS * len(names))))
    chosen = np.sort(np.random.default_rng(problem.seed % 2**32).permutation(pool)[:most])
    if len(chosen) < 2:
        raise InputError("There are no rows to shuffle.", "no_rows")
    taken = {name: tables.as_array(table[name])[chosen] for name in names}
    return chosen, unseen, taken


def _shuffled(whole: Frame, features: list[str], order: Array) -> Frame:
    """The rows with some features as they are in other rows."""

    def taken(value: Any) -> Any:
        return value.take(order) if isinstance(value, Categories) else value[order]

    return Frame(
        {
            name: taken(value) if name in features else value
            for name, value in whole.features.items()
        },
        len(whole),
    )
