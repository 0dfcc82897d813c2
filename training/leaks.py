"""How well one column alone predicts the target, on rows that it was not fitted on. Pure.

A table with one level: a category's, or a bin's, classes or mean. So simple a model that does very
well gives away that the column knows the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from training import splits

Array = npt.NDArray[Any]
BINS = 256
NUMBERS = frozenset({"integer", "float", "boolean", "date", "datetime"})
Cut = tuple[Array, Array, int, tuple[Array, Array] | None]  # levels to fit and measure on, and x


def alone(
    y: Array,
    task: str,
    n_classes: int,
    values: pl.Series,
    dtype: str,
    folds: Sequence[tuple[Array, Array]],
) -> tuple[float, int] | None:
    """How well one column predicts ``y`` on rows it was not fitted on, and on how many.

    A table with one level: a category's, or a bin's, classes or mean; numbers also get a line
    within each bin. AUC; accuracy between that of the most frequent class (0) and perfect (1); R².
    None when nothing can be measured, as with one class only.
    """
    if dtype not in NUMBERS:
        codes = splits.groups_of(values.to_numpy()) + 1
        count = int(codes.max(initial=0)) + 1
        levels: list[Cut] = [(codes[fit], codes[rest], count, None) for fit, rest in folds]
        return _score(y, task, n_classes, folds, levels)
    if dtype in {"date", "datetime"}:
        values = values.cast(pl.Datetime("us")).to_physical()
    x = values.cast(pl.Float64).fill_null(float("nan")).to_numpy().astype(np.float64)
    x = np.where(np.isfinite(x), x, np.nan)
    # Wide bins see through noise, narrow ones follow a sharp edge: the better of both counts.
    found = []
    for bins in sorted({min(BINS, max(8, len(x) // rows)) for rows in (50, 10, 3)}):
        cuts: list[Cut] = []
        for fit, measure in folds:
            edges = _edges(x[fit], bins)
            line = (x[fit], x[measure])
            cuts.append((_bins(x[fit], edges), _bins(x[measure], edges), len(edges) + 2, line))
        found.append(_score(y, task, n_classes, folds, cuts))
    # And for a column that gives each row's answer exactly: the nearest value that was seen.
    near = [_nearest(x[fit], x[measure]) for fit, measure in folds]
    found.append(_score(y, task, n_classes, folds, near, pull=1e-9))
    return max((one for one in found if one), default=None)


def _nearest(fit: Array, measure: Array) -> Cut:
    known = np.unique(fit[~np.isnan(fit)])
    if not len(known):
        return np.zeros(len(fit), np.int64), np.zeros(len(measure), np.int64), 1, None
    after = np.searchsorted(known, measure).clip(1, max(1, len(known) - 1))
    before = known[after - 1]
    nearer = np.abs(measure - before) <= np.abs(known[after.clip(max=len(known) - 1)] - measure)
    place = np.where(nearer, after - 1, after).clip(max=len(known) - 1)
    levels = np.where(np.isnan(measure), 0, place + 1)
    return _bins(fit, known), levels, len(known) + 2, None


def ranks(values: Array) -> Array:
    """Places of numbers among themselves, from 0 to 1, equal ones sharing theirs.

    What a few huge values would drown: how well the order is known.
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray(((np.cumsum(counts) - (counts + 1) / 2) / max(1, len(values) - 1))[place])


def _score(
    y: Array,
    task: str,
    n_classes: int,
    folds: Sequence[tuple[Array, Array]],
    cuts: Sequence[Cut],
    *,
    pull: float = 1.0,
) -> tuple[float, int] | None:
    """``pull``: how many rows' worth each level is drawn to what holds for all rows."""
    said, truth = [], []
    for (fit, measure), (levels_fit, levels, count, line) in zip(folds, cuts, strict=True):
        if not fit.any() or not measure.any():
            continue
        if task == "regression":
            said.append(_mean_of(y[fit], levels_fit, levels, count, line, pull))
        else:
            said.append(_classes_of(y[fit], levels_fit, levels, count, n_classes, pull))
        truth.append(y[measure])
    if not said:
        return None
    guess, right = np.concatenate(said), np.concatenate(truth)
    score: float | None = None
    if task == "binary":
        score = auc(right == 1, guess[:, 1])
    elif task == "multiclass":
        usual = np.bincount(right, minlength=n_classes).max() / len(right)
        hit = float((guess.argmax(axis=1) == right).mean())
        score = (hit - usual) / (1 - usual) if usual < 1 else None
    elif (spread := float(((right - right.mean()) ** 2).sum())) > 0:
        score = 1 - float(((right - guess) ** 2).sum()) / spread
    return None if score is None else (float(score), len(right))


def auc(right: Array, score: Array) -> float | None:
    """Area under the ROC curve; equal scores count half. None with one class only."""
    positive = int(right.sum())
    negative = len(right) - positive
    if not positive or not negative:
        return None
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return float((ranks[right].sum() - positive * (positive + 1) / 2) / (positive * negative))


def _edges(x: Array, bins: int) -> Array:
    """Upper edges of bins: of each value where there are few, else of quantiles."""
    there = x[~np.isnan(x)]
    distinct = np.unique(there)
    if len(distinct) <= max(bins, 32):
        return distinct
    return np.unique(np.quantile(there, np.linspace(0, 1, bins + 1)[1:]))


def _bins(x: Array, edges: Array) -> Array:
    """0 for missing, then one number for each bin, the last for what lies above all edges."""
    return np.where(np.isnan(x), 0, np.searchsorted(edges, x) + 1)


def _classes_of(
    y: Array, fit: Array, levels: Array, count: int, n_classes: int, pull: float
) -> Array:
    """Shares of the classes (rows x classes), drawn a little towards those of all rows."""
    table = np.bincount(fit * n_classes + y, minlength=count * n_classes).astype(np.float64)
    table = table.reshape(count, n_classes)
    table += pull * np.bincount(y, minlength=n_classes) / len(y)
    return np.asarray((table / table.sum(axis=1, keepdims=True))[levels])


def _mean_of(
    y: Array,
    fit: Array,
    levels: Array,
    count: int,
    line: tuple[Array, Array] | None,
    pull: float,
) -> Array:
    """The mean of each level, or a line within it, within what was seen there."""
    n = np.bincount(fit, minlength=count).astype(np.float64)
    mean = (np.bincount(fit, y, minlength=count) + pull * y.mean()) / (n + pull)
    if line is None:
        return np.asarray(mean[levels])
    x_fit, x = (np.nan_to_num(one) for one in line)
    safe = np.maximum(n, 1)
    plain = np.bincount(fit, y, minlength=count) / safe
    centre = np.bincount(fit, x_fit, minlength=count) / safe
    off = x_fit - centre[fit]
    spread = np.bincount(fit, off * off, minlength=count)
    slope = np.bincount(fit, off * (y - plain[fit]), minlength=count)
    slope = np.divide(slope, spread, out=np.zeros(count), where=(spread > 0) & (n > 2))
    base = np.where(n > 2, plain, mean)
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(low, fit, y)
    np.maximum.at(high, fit, y)
    empty = n == 0
    low, high = np.where(empty, y.mean(), low), np.where(empty, y.mean(), high)
    guess = base[levels] + slope[levels] * (x - centre[levels])
    # A little beyond what was seen: the ends of a straight line lie outside each bin's values.
    room = (high - low)[levels] * 0.5
    return np.asarray(np.clip(guess, low[levels] - room, high[levels] + room))
