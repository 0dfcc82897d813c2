"""Which rows learn, which say when to stop, and which are predicted: folds for bags of models.

A bag is some models of one kind whose mean predicts; each learns from all folds but its own. Where
the job has folds these are the bag's, and what is to be predicted may not say when a fit stops, or
out-of-fold predictions would look better than they are: rows inside the other folds do.
"""

from __future__ import annotations

import numpy as np

from .base import Data, Problem
from .tables import Array

STOP_SHARE, STOP_ROWS = 0.2, 20_000  # what a single fit keeps back to know when to stop


def folds_for(problem: Problem, y: Array, count: int, seed: int | None = None) -> Array:
    """Folds 1..count, stratified; of one fold, a fifth of the rows at most, and 0 for the rest."""
    rows = len(y)
    random = np.random.default_rng(problem.seed if seed is None else seed)
    order = random.permutation(rows)
    if problem.is_classification:
        order = order[np.argsort(y[order], kind="stable")]
    folds = np.zeros(rows, dtype=np.int64)
    if count > 1:
        folds[order] = np.arange(rows) % count + 1
    else:
        folds[order[:: max(round(1 / STOP_SHARE), rows // STOP_ROWS)]] = 1
    return folds


def rows_for(
    problem: Problem, data: Data, folds: Array, fold: int, *, stops: bool = True
) -> tuple[Array, Array]:
    """Positions of the rows that the model of a fold learns from, and of those that stop it.

    With ``stops`` off the model needs none, and learns from the same rows.
    """
    rest, away = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
    if not stops:
        return rest, away[:0]
    if data.folds is None:
        return rest, away
    inner = folds_for(problem, data.y[rest], 1, seed=problem.seed + fold)
    return rest[inner == 0], rest[inner == 1]
