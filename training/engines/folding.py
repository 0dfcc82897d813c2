"""Which rows learn, which say when to stop, and which are predicted: folds for bags of models.

A bag is some models of one kind whose mean predicts; each learns from all folds but its own. Where
the job has folds these are the bag's, and what is to be predicted may not say when a fit stops, or
out-of-fold predictions would look better than they are: rows inside the other folds do.

Where the job's rows are split by groups, these folds keep them together, too: a model that is
chosen or stopped by rows of a group that it has seen looks better than it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .base import Data, Problem
from .tables import Array

STOP_SHARE, STOP_ROWS = 0.2, 20_000  # what a single fit keeps back to know when to stop


def folds_for(
    problem: Problem,
    y: Array,
    count: int,
    seed: int | None = None,
    *,
    groups: Array | None = None,
    most: int = STOP_ROWS,
) -> Array:
    """Folds 1..count, stratified; of one fold, a fifth of the rows or ``most``, and 0 for the rest.

    Rows of one of the ``groups`` have one fold. There may be fewer folds than asked for where there
    are fewer groups, and an only group is cut all the same: there is nothing to keep it apart from.
    """
    rows = len(y)
    random = np.random.default_rng(problem.seed if seed is None else seed)
    step = max(round(1 / STOP_SHARE), rows // most)
    if groups is not None and len(codes := np.unique(groups)) > 1:
        classes = y if problem.is_classification else np.zeros(rows, dtype=np.int64)
        shares = [1 / step, 1 - 1 / step] if count == 1 else [1 / count] * min(count, len(codes))
        parts = _dealt(groups, classes, shares, random)
        return np.where(parts == 0, 1, 0) if count == 1 else parts + 1
    order = random.permutation(rows)
    if problem.is_classification:
        order = order[np.argsort(y[order], kind="stable")]
    folds = np.zeros(rows, dtype=np.int64)
    if count > 1:
        folds[order] = np.arange(rows) % count + 1
    else:
        folds[order[::step]] = 1
    return folds


def _dealt(
    groups: Array, classes: Array, shares: Sequence[float], random: np.random.Generator
) -> Array:
    """The part 0.. of each row: whole groups, each to the part that lacks most of its share.

    Groups go class by class (that of most of their rows), large ones first; no part is empty.
    """
    _, codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    _, kinds = np.unique(classes, return_inverse=True)
    pairs, counts = np.unique(np.stack([codes, kinds]), axis=1, return_counts=True)
    order = np.lexsort((counts, pairs[0]))  # of each group, its commonest class comes last
    last = np.append(np.diff(pairs[0][order]) > 0, True)
    kind = pairs[1][order][last]
    size = sizes.tolist()
    parts = np.zeros(len(size), dtype=np.int64)
    filled = [0.0] * len(shares)
    members = [0] * len(shares)
    left = len(size)
    for of in np.unique(kind):
        mine = random.permutation(np.flatnonzero(kind == of))
        own = [0.0] * len(shares)
        for group in mine[np.argsort(-sizes[mine], kind="stable")].tolist():
            empty = [place for place, number in enumerate(members) if not number]
            among = empty if len(empty) >= left else range(len(shares))
            part = min(
                among,
                key=lambda one: (
                    (own[one] + size[group]) / shares[one],
                    (filled[one] + size[group]) / shares[one],
                ),
            )
            parts[group] = part
            own[part] += size[group]
            filled[part] += size[group]
            members[part] += 1
            left -= 1
    return parts[codes]


def group_order(groups: Array, random: np.random.Generator) -> Array:
    """All rows in a random order that has the rows of each group beside each other."""
    _, codes = np.unique(groups, return_inverse=True)
    places = random.permutation(int(codes.max()) + 1 if len(codes) else 0)
    return np.lexsort((random.permutation(len(codes)), places[codes]))


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
    groups = None if data.groups is None else data.groups[rest]
    inner = folds_for(problem, data.y[rest], 1, seed=problem.seed + fold, groups=groups)
    return rest[inner == 0], rest[inner == 1]
