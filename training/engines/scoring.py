"""The job's metric, for an engine's own choices: what to tune, what to blend.

The leaderboard is not made here: training/evaluation.py scores what candidates predicted, from the
stored predictions. These are the same quantities turned so that more is better.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from .base import Candidate, Data, Predictions, Problem
from .estimators import predictions_of
from .tables import Array


def score(problem: Problem, y: Array, scores: Array) -> float:
    """How good probabilities (rows x classes) or values are for ``y``; higher is better.

    -inf where the metric cannot be computed, such as ROC AUC with one class present.
    """
    from sklearn import metrics as m

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if problem.is_classification:
                found = _classification(problem, y, scores, m)
            else:
                found = _regression(problem.metric, y, scores)
        except ValueError:
            return -np.inf
    return found if np.isfinite(found) else -np.inf


def _classification(problem: Problem, y: Array, p: Array, m: Any) -> float:
    metric, n_classes = problem.metric, problem.n_classes
    classes = problem.classes or ()
    positive = classes.index(problem.positive_class) if problem.positive_class in classes else 1
    codes = list(range(n_classes))
    guess = p.argmax(axis=1)
    sure = np.clip(p, 1e-15, 1 - 1e-15)
    if metric == "accuracy":
        return float((guess == y).mean())
    if metric == "balanced_accuracy":
        return float(m.balanced_accuracy_score(y, guess))
    if metric == "mcc":
        return float(m.matthews_corrcoef(y, guess))
    if metric == "brier":
        hit = np.zeros_like(p)
        hit[np.arange(len(y)), y] = 1.0
        whole = float(((p - hit) ** 2).sum(axis=1).mean())
        return -whole / 2 if n_classes == 2 else -whole  # as usual: of one class, or of all
    if metric in ("f1", "precision", "recall"):
        function = getattr(m, f"{metric}_score")
        if n_classes == 2:
            return float(function(y == positive, guess == positive, zero_division=0))
        return float(function(y, guess, labels=codes, average="macro", zero_division=0))
    if metric == "average_precision":
        if n_classes == 2:
            return float(m.average_precision_score(y == positive, p[:, positive]))
        present = [c for c in codes if (y == c).any()]
        return float(np.mean([m.average_precision_score(y == c, p[:, c]) for c in present]))
    if metric == "roc_auc":
        if n_classes == 2:
            return float(m.roc_auc_score(y == positive, p[:, positive]))
        present = [c for c in codes if 0 < (y == c).sum() < len(y)]
        return float(np.mean([m.roc_auc_score(y == c, p[:, c]) for c in present]))
    return float(np.log(sure[np.arange(len(y)), y]).mean())  # log_loss, and any other


def _regression(metric: str, y: Array, guess: Array) -> float:
    off = guess - y
    if metric == "mae":
        return -float(np.abs(off).mean())
    if metric == "median_ae":
        return -float(np.median(np.abs(off)))
    if metric == "mape":
        return -float((np.abs(off) / np.maximum(np.abs(y), np.finfo(np.float64).eps)).mean())
    if metric == "rmsle":
        near = np.log1p(np.maximum(guess, 0.0)) - np.log1p(np.maximum(y, 0.0))
        return -float(np.sqrt((near**2).mean()))
    return -float(np.sqrt((off**2).mean()))  # rmse; r2 orders alike


def blend_weights(
    problem: Problem, y: Array, members: list[Array], rounds: int = 20
) -> tuple[list[float], float]:
    """Greedy ensemble selection with replacement over members' out-of-sample scores.

    Caruana et al., "Ensemble selection from libraries of models", ICML 2004. Returns a weight per
    member (many are 0) and the blend's score.
    """
    counts = np.zeros(len(members), dtype=int)
    total = np.zeros_like(members[0])
    best, best_counts = -np.inf, counts.copy()
    for size in range(1, rounds + 1):
        found = [score(problem, y, (total + member) / size) for member in members]
        chosen = int(np.argmax(found))
        counts[chosen] += 1
        total = total + members[chosen]
        if found[chosen] > best:
            best, best_counts = found[chosen], counts.copy()
    return (best_counts / best_counts.sum()).tolist(), best


def blended(
    problem: Problem, data: Data, members: Sequence[Candidate], weights: Sequence[float]
) -> tuple[Predictions, Predictions | None]:
    """What a blend predicts for the held rows and, where the data has folds, out of fold.

    ``members`` are all that could be chosen, so many weights are 0.
    """
    held = mean([_scores(one.held) for one in members], weights)
    if data.folds is None:
        return predictions_of(held, problem), None
    out_of_fold = [_scores(one.out_of_fold) for one in members if one.out_of_fold is not None]
    unseen = blend_unseen(problem, data.y, out_of_fold, data.folds)
    return predictions_of(held, problem), predictions_of(unseen, problem)


def _scores(said: Predictions) -> Array:
    return said.values if said.probabilities is None else said.probabilities


def blend_unseen(problem: Problem, y: Array, members: list[Array], folds: Array) -> Array:
    """The blend of each row with weights that were chosen on the rows of all other folds.

    Weights chosen on the rows that rank would make a blend look better there than it is.
    """
    found = np.full_like(members[0], np.nan)
    for fold in np.unique(folds):
        own = folds == fold
        weights, _ = blend_weights(problem, y[~own], [member[~own] for member in members])
        found[own] = mean([member[own] for member in members], weights)
    return found


def mean(members: Sequence[Array], weights: Sequence[float]) -> Array:
    """The weighted mean of members' scores; weights add up to 1."""
    total: Any = 0.0
    for member, weight in zip(members, weights, strict=True):
        total = total + weight * member
    return np.asarray(total)
