"""Whether a model rests on one column almost alone: often a leak, seldom a discovery. Pure.

A model whose answers can be told from a single column tells little but that column. Permuting it
would show so, too, but on a node, with one prediction per column; this needs only what is stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NEARLY_ALL = 0.97
MOST_GROUPS = 64
LEAST_ROWS_EACH = 5  # in a group of numbers, on the mean


def share_explained(said: Floats, groups: Ints) -> float:
    """The share, up to 1, of how a model's answers vary that the groups of rows explain.

    ``said``: n x k probabilities, or n x 1 numbers; ``groups``: a group's number for each row. The
    share is the adjusted one (epsilon squared), which is about 0 for groups made at random, however
    many there are. 0 where nothing varies.
    """
    n = len(said)
    _, codes = np.unique(groups, return_inverse=True)
    g = int(codes.max()) + 1 if n else 0
    total = float(((said - said.mean(axis=0)) ** 2).sum()) if n else 0.0
    if n <= g or total <= 1e-12 * n:
        return 0.0
    counts = np.bincount(codes, minlength=g)[:, None]
    sums = np.stack([np.bincount(codes, weights=one, minlength=g) for one in said.T], axis=1)
    within = float(((said - (sums / counts)[codes]) ** 2).sum())
    return float(1 - (within / (n - g)) / (total / (n - 1)))


def groups_of(values: npt.NDArray[Any]) -> Ints:
    """Rows of about the same value: numbers in ranges of equal size, texts each by itself.

    Missing values (None, NaN) are a group of their own, and so are rare texts.
    """
    if values.dtype.kind in "biuf":
        numbers = values.astype(np.float64)
        known = np.isfinite(numbers)
        most = max(2, min(MOST_GROUPS, len(numbers) // LEAST_ROWS_EACH))
        if known.any() and len(np.unique(numbers[known])) > most:
            edges = np.unique(np.quantile(numbers[known], np.linspace(0, 1, most + 1)[1:-1]))
            codes = np.searchsorted(edges, numbers, side="right")
        else:
            _, codes = np.unique(numbers, return_inverse=True)
        return np.where(known, codes, -1).astype(np.int64)
    texts = np.array(["" if value is None else f"={value}" for value in values], dtype=object)
    _, codes, counts = np.unique(texts.astype(str), return_inverse=True, return_counts=True)
    rare = np.ones(len(counts), dtype=bool)
    rare[np.argsort(-counts, kind="stable")[: MOST_GROUPS - 1]] = False
    return np.where(rare[codes], -1, codes).astype(np.int64)


def suspect(
    said: Floats, columns: Iterable[tuple[str, npt.NDArray[Any]]]
) -> tuple[str, float] | None:
    """The column that explains nearly all of what a model says, and how much; None without one."""
    shares = [(name, share_explained(said, groups_of(values))) for name, values in columns]
    name, share = max(shares, key=lambda one: one[1], default=("", 0.0))
    return (name, share) if share >= NEARLY_ALL else None
