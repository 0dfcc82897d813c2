"""Greedy ensemble selection over stored predictions, and how a blend of models answers. Pure.

Caruana, Niculescu-Mizil, Crew, Ksikes: "Ensemble Selection from Libraries of Models", ICML 2004:
from the best few models on, add again and again the one that makes the mean of the chosen ones
best, with replacement; what was chosen twice counts twice. No randomness anywhere.

A *stack* holds the predictions of m models for n rows: m x n x k, class probabilities (in the order
of the job's classes) or, with k = 1, numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Loss = Callable[[Floats], float]  # of one blend, n x k; lower is better, inf where it has none

ROUNDS = 40  # models that are chosen at most, the same one counted as often as it was
MOST_AT_FIRST = 5  # the sorted initialisation starts with so many of the best, or fewer
PATIENCE = 8  # rounds without a better blend, after which no more are tried
FOLDS = 5


def select(stack: Floats, loss: Loss) -> Floats:
    """A weight per model, adding up to 1: never worse by ``loss`` than the best single model.

    Of equal choices the earlier model wins, so the order of the stack should be that of the
    leaderboard. Raises ValueError for an empty stack.
    """
    m = len(stack)
    if not m:
        raise ValueError("There is no model to choose from.")
    alone = np.array([loss(one) for one in stack])
    order = np.argsort(alone, kind="stable")
    chosen, total, best = _start(stack, loss, order, float(alone[order[0]]))
    best_counts = np.bincount(chosen, minlength=m)
    since = 0
    while len(chosen) < ROUNDS and since < PATIENCE:
        tried = np.array([loss((total + one) / (len(chosen) + 1)) for one in stack])
        pick = int(np.argmin(tried))
        chosen.append(pick)
        total = total + stack[pick]
        since += 1
        if tried[pick] < best:
            best, since = float(tried[pick]), 0
            best_counts = np.bincount(chosen, minlength=m)
    weights: Floats = best_counts / best_counts.sum()
    return weights


def _start(
    stack: Floats, loss: Loss, order: Ints, best_alone: float
) -> tuple[list[int], Floats, float]:
    """The best models, as many as together do best: their places, their sum, their loss."""
    total = np.zeros_like(stack[0])
    found = 1, stack[order[0]], best_alone
    for count in range(1, min(MOST_AT_FIRST, len(stack)) + 1):
        total = total + stack[order[count - 1]]
        if count > 1 and (now := loss(total / count)) < found[2]:
            found = count, total, now
    count, total, best = found
    return [int(place) for place in order[:count]], total, best


def folds_of(n: int) -> Ints:
    """Fold 0..FOLDS-1 of each of n rows, dealt out in turn."""
    return np.arange(n, dtype=np.int64) % FOLDS


def select_by_fold(stack: Floats, loss_on: Callable[[Ints, Floats], float], folds: Ints) -> Floats:
    """FOLDS x m weights, those of a fold chosen on the rows of all the others.

    A blend in which each row has the weights of its fold was chosen without looking at the row's
    own target, so its score is as honest as a single model's. ``loss_on`` takes rows and a blend.
    """
    found = []
    for fold in range(FOLDS):
        rows = np.flatnonzero(folds != fold)
        found.append(select(stack[:, rows], _on(loss_on, rows)))
    return np.array(found)


def _on(loss_on: Callable[[Ints, Floats], float], rows: Ints) -> Loss:
    return lambda blend: loss_on(rows, blend)


@dataclass(frozen=True, slots=True)
class Said:
    """What one model answered: class names or numbers, and n x k probabilities, if it has any."""

    predictions: Sequence[Any]
    probabilities: Sequence[Sequence[float]] | Floats | None


def blend(said: Sequence[Said], weights: Sequence[float], classes: Sequence[str] | None) -> Said:
    """The answer of the members together: mean probabilities and the likeliest class, or a mean.

    ``classes`` names the probabilities' columns; None for numbers. Weights add up to 1. Raises
    ValueError when a classifier among the members gave no probabilities.
    """
    if classes is None:
        total = sum(
            weight * np.asarray(one.predictions, dtype=np.float64)
            for one, weight in zip(said, weights, strict=True)
        )
        return Said(np.asarray(total).tolist(), None)
    shares = np.zeros((len(said[0].predictions), len(classes)))
    for one, weight in zip(said, weights, strict=True):
        if one.probabilities is None:
            raise ValueError("A model of the ensemble gave no probabilities.")
        shares += weight * np.asarray(one.probabilities, dtype=np.float64).reshape(shares.shape)
    return Said([classes[code] for code in decide(shares)], shares)


def decide(shares: Floats) -> Ints:
    """The likeliest class of each row; of equal ones the first."""
    return np.asarray(np.argmax(shares, axis=1), dtype=np.int64)
