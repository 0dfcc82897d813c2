"""The one scorer: true targets and stored predictions in, figures and their order out.

Engines are believed in nothing but their predictions; every figure of a leaderboard is made here.
The definitions are scikit-learn's (the tests compare with its metrics module). They are written in
numpy over a matrix of row weights, so that one definition gives both the figure (all weights 1) and
its bootstrap interval (weights = how often a row was drawn), and so that no process has to import
scikit-learn before the first leaderboard row can show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from training.splits import codes_of

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MOST_CURVE_POINTS = 200
MOST_CURVE_CLASSES = 20
MOST_CONFUSION_CLASSES = 50
MOST_SAMPLE_POINTS = 500
_CELLS_AT_ONCE = 2_000_000  # weights held in memory together: replicates x rows


class InvalidCandidate(ValueError):
    """The predictions cannot be scored; the text says why, for the leaderboard to show."""


@dataclass(frozen=True, slots=True)
class Metric:
    """What a figure is called, which way is better, and what it needs."""

    name: str
    title: str
    greater_is_better: bool
    tasks: tuple[str, ...]
    needs_probabilities: bool = False


_ANY_CLASS = ("binary", "multiclass")
_METRICS = (
    Metric("log_loss", "Log loss", False, _ANY_CLASS, True),
    Metric("roc_auc", "ROC AUC", True, _ANY_CLASS, True),
    Metric("accuracy", "Accuracy", True, _ANY_CLASS),
    Metric("balanced_accuracy", "Balanced accuracy", True, _ANY_CLASS),
    Metric("f1", "F1", True, _ANY_CLASS),
    Metric("precision", "Precision", True, _ANY_CLASS),
    Metric("recall", "Recall", True, _ANY_CLASS),
    Metric("average_precision", "Average precision", True, _ANY_CLASS, True),
    Metric("mcc", "Matthews correlation", True, _ANY_CLASS),
    Metric("brier", "Brier score", False, _ANY_CLASS, True),
    Metric("rmse", "RMSE", False, ("regression",)),
    Metric("mae", "MAE", False, ("regression",)),
    Metric("r2", "R²", True, ("regression",)),
    Metric("median_ae", "Median absolute error", False, ("regression",)),
    Metric("mape", "MAPE", False, ("regression",)),
    Metric("rmsle", "RMSLE", False, ("regression",)),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _METRICS}
DEFAULT_METRIC = {"binary": "roc_auc", "multiclass": "log_loss", "regression": "rmse"}


def metrics_for(task: str) -> list[Metric]:
    """The metrics that fit ``task`` (binary, multiclass or regression), in display order."""
    return [metric for metric in _METRICS if task in metric.tasks]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All figures of one candidate on one set of rows; every field is JSON-safe.

    ``metrics`` holds None where a figure is not defined for these rows; ``score`` is the primary
    metric; ``interval`` its 95% percentile bootstrap interval, None where too few rows allow one.
    """

    score: float
    metrics: dict[str, float | None]
    interval: tuple[float, float] | None
    curves: dict[str, Any]
    rows: int
    notes: list[str] = field(default_factory=list)


def rank_key(score: float | None, fit_s: float, key: str, metric: str) -> tuple[float, float, str]:
    """Sort key of a leaderboard: best score, then faster fit, then key; without a score, last."""
    if score is None or not math.isfinite(score):
        return (math.inf, fit_s, key)
    return (-score if METRICS[metric].greater_is_better else score, fit_s, key)


def line_up(rows: npt.NDArray[Any], expected: npt.NDArray[Any], *, part: str) -> Ints:
    """Positions in ``rows`` (row indices as sent) of the ``expected`` ones, in their order.

    Raises InvalidCandidate for a row sent twice or left out; ``part`` names the rows in words.
    """
    order = np.argsort(rows, kind="stable")
    in_order = np.asarray(rows)[order]
    if len(in_order) and (in_order[1:] == in_order[:-1]).any():
        twice = int(in_order[1:][in_order[1:] == in_order[:-1]][0])
        raise InvalidCandidate(f"Row {twice} was predicted twice.")
    places = np.searchsorted(in_order, expected)
    found = np.zeros(len(expected), dtype=bool)
    inside = places < len(in_order)
    found[inside] = in_order[places[inside]] == np.asarray(expected)[inside]
    if missing := int((~found).sum()):
        raise InvalidCandidate(
            f"Predictions are missing for {missing:,} of {len(expected):,} {part} rows."
        )
    return order[places]


def evaluate(
    task: str,
    truth: npt.NDArray[Any],
    predicted: Sequence[object] | npt.NDArray[Any],
    probabilities: Floats | None = None,
    *,
    metric: str,
    classes: Sequence[str] | None = None,
    positive_class: str | None = None,
    seed: int = 0,
) -> Evaluation:
    """Score one candidate on one set of rows.

    ``truth``: n class codes (indices into ``classes``) or n finite numbers. ``predicted``: n class
    names or n numbers. ``probabilities``: n x k in the order of ``classes``, or None when the model
    gives none. In binary tasks precision, recall, F1 and the curves speak of ``positive_class``
    (default: the last class); in multiclass ones they are macro averages over the classes seen.
    Raises InvalidCandidate when the predictions are no predictions, or the primary metric is not
    defined for them.
    """
    if len(truth) == 0:
        raise InvalidCandidate("There are no rows to score.")
    if len(predicted) != len(truth):
        raise InvalidCandidate(f"{len(predicted):,} predictions came for {len(truth):,} rows.")
    scorer = _scorer(task, truth, predicted, probabilities, classes, positive_class)
    once = np.ones((1, len(truth)))
    figures = {m.name: _plain(scorer.score(m.name, once)[0]) for m in metrics_for(task)}
    score = figures[metric]
    if score is None:
        raise InvalidCandidate(scorer.why_undefined(metric))
    interval = _bootstrap(scorer, metric, len(truth), seed)
    return Evaluation(score, figures, interval, scorer.curves(), len(truth), scorer.notes())


def _scorer(
    task: str,
    truth: npt.NDArray[Any],
    predicted: Sequence[object] | npt.NDArray[Any],
    probabilities: Floats | None,
    classes: Sequence[str] | None,
    positive_class: str | None,
) -> _Classification | _Regression:
    if task == "regression":
        return _Regression(np.asarray(truth, dtype=np.float64), _numbers(predicted))
    assert classes is not None
    return _Classification(
        np.asarray(truth, dtype=np.int64),
        _codes(predicted, classes),
        _shares(probabilities, len(truth), len(classes)),
        list(classes),
        _positive(task, classes, positive_class),
    )


@dataclass(frozen=True, slots=True)
class Difference:
    """How two models' scores differ over the same rows: the second's minus the first's.

    ``interval``: 95%, by a paired bootstrap (both are scored on the same draws of the rows), None
    where too few rows allow one. ``better``: the share of the draws in which the second was better;
    equal scores count half.
    """

    change: float
    interval: tuple[float, float] | None
    better: float | None
    rows: int


def difference(
    task: str,
    truth: npt.NDArray[Any],
    first: tuple[Sequence[object] | npt.NDArray[Any], Floats | None],
    second: tuple[Sequence[object] | npt.NDArray[Any], Floats | None],
    *,
    metric: str,
    classes: Sequence[str] | None = None,
    positive_class: str | None = None,
    seed: int = 0,
) -> Difference:
    """Compare two models' (predictions, probabilities) of the same rows; see `evaluate`.

    What rows are easy is so for both, so the difference is far surer than the two intervals tell:
    Efron, Tibshirani, "An Introduction to the Bootstrap", 1993, section 8.3. Raises
    InvalidCandidate where the metric is not defined for one of them.
    """
    both = [
        _scorer(task, truth, predicted, shares, classes, positive_class)
        for predicted, shares in (first, second)
    ]
    once = np.ones((1, len(truth)))
    change = float(both[1].score(metric, once)[0] - both[0].score(metric, once)[0])
    if not math.isfinite(change):
        raise InvalidCandidate(next(
            one.why_undefined(metric) for one in both
            if not math.isfinite(float(one.score(metric, once)[0]))
        ))  # fmt: skip
    found = np.array(
        [
            later - earlier
            for weights in _draws(len(truth), seed)
            for earlier, later in zip(*(one.score(metric, weights) for one in both), strict=True)
        ]
    )
    finite = found[np.isfinite(found)]
    if not len(found) or len(finite) < len(found) / 2:
        return Difference(change, None, None, len(truth))
    low, high = np.quantile(finite, [0.025, 0.975])
    better = finite if METRICS[metric].greater_is_better else -finite
    share = float(((better > 0) + (better == 0) / 2).mean())
    return Difference(change, (float(low), float(high)), share, len(truth))


def loss_of_blend(
    task: str,
    truth: npt.NDArray[Any],
    blend: Floats,
    *,
    metric: str,
    classes: Sequence[str] | None = None,
    positive_class: str | None = None,
) -> float:
    """The metric of one blend, turned so that lower is better; inf where it is not defined.

    ``blend``: n x k probabilities that add up to 1, or n x 1 numbers; ``truth`` as in `evaluate`.
    """
    scorer: _Classification | _Regression
    if task == "regression":
        scorer = _Regression(np.asarray(truth, dtype=np.float64), blend[:, 0])
    else:
        assert classes is not None
        scorer = _Classification(
            np.asarray(truth, dtype=np.int64),
            np.argmax(blend, axis=1),
            blend,
            list(classes),
            _positive(task, classes, positive_class),
        )
    score = float(scorer.score(metric, np.ones((1, len(truth))))[0])
    if not math.isfinite(score):
        return math.inf
    return -score if METRICS[metric].greater_is_better else score


# Reading what a candidate sent -------------------------------------------------------------------


def _numbers(predicted: Sequence[object] | npt.NDArray[Any]) -> Floats:
    try:
        numbers = np.asarray(predicted, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidCandidate("The predictions are not numbers.") from error
    if bad := int((~np.isfinite(numbers)).sum()):
        raise InvalidCandidate(
            f"The model predicted no finite number for {bad:,} of {len(numbers):,} rows."
        )
    return numbers


def _codes(predicted: Sequence[object] | npt.NDArray[Any], classes: Sequence[str]) -> Ints:
    codes = codes_of(predicted, classes).astype(np.int64)
    if (codes < 0).any():
        first = int(np.flatnonzero(codes < 0)[0])
        raise InvalidCandidate(
            f"The model predicted '{str(predicted[first])[:80]}', which is no class of the target."
        )
    return codes


def _shares(probabilities: Floats | None, n: int, k: int) -> Floats | None:
    """Probabilities whose rows add up to 1 exactly; small drift is mended, nonsense refused."""
    if probabilities is None:
        return None
    shares = np.asarray(probabilities, dtype=np.float64)
    if shares.shape != (n, k):
        raise InvalidCandidate(f"Probabilities have shape {shares.shape}; expected {(n, k)}.")
    if bad := int((~np.isfinite(shares).all(axis=1)).sum()):
        raise InvalidCandidate(f"Probabilities of {bad:,} of {n:,} rows are not finite.")
    if shares.min() < -1e-6 or shares.max() > 1 + 1e-3:
        raise InvalidCandidate("Some probabilities lie outside 0 to 1.")
    shares = np.clip(shares, 0.0, None)
    sums = shares.sum(axis=1)
    if np.abs(sums - 1).max() > 0.05:
        worst = float(sums[np.abs(sums - 1).argmax()])
        raise InvalidCandidate(f"The probabilities of a row add up to {worst:.3g} instead of 1.")
    drifted = np.abs(sums - 1) > 1e-6  # the others stay as sent: dividing would break their ties
    shares[drifted] /= sums[drifted, None]
    return shares


def _positive(task: str, classes: Sequence[str], positive_class: str | None) -> int | None:
    if task != "binary":
        return None
    return list(classes).index(positive_class) if positive_class else len(classes) - 1


# Figures. Each takes weights, replicates x rows, and gives one number per replicate; nan: undefined


def _mean(weights: Floats, losses: Floats) -> Floats:
    return _over(np.asarray(weights @ losses), weights.sum(axis=1))


def _over(top: Floats, bottom: Floats) -> Floats:
    return np.asarray(np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom != 0))


@dataclass(frozen=True, slots=True)
class _Thresholds:
    """Rows sorted by falling score, rows of equal score being one threshold.

    Built once per class; the weighted counts at each threshold give ROC AUC and average precision.
    """

    order: Ints
    starts: Ints
    is_positive: Bools
    values: Floats

    @classmethod
    def of(cls, scores: Floats, is_positive: Bools) -> _Thresholds:
        order = np.argsort(-scores, kind="stable")
        falling = scores[order]
        starts = np.flatnonzero(np.r_[True, falling[1:] != falling[:-1]])
        return cls(order, starts, is_positive[order], falling[starts])

    def counts(self, weights: Floats) -> tuple[Floats, Floats]:
        """Weighted positives and negatives at each threshold alone, replicates x thresholds."""
        ordered = weights[:, self.order]
        positives = np.add.reduceat(ordered * self.is_positive, self.starts, axis=1)
        negatives = np.add.reduceat(ordered * ~self.is_positive, self.starts, axis=1)
        return positives, negatives

    def roc_auc(self, weights: Floats) -> Floats:
        """Share of (positive, negative) pairs in the right order; ties count half."""
        positives, negatives = self.counts(weights)
        all_negatives = negatives.sum(axis=1)
        below = all_negatives[:, None] - negatives.cumsum(axis=1)
        pairs = (positives * (below + negatives / 2)).sum(axis=1)
        return _over(pairs, positives.sum(axis=1) * all_negatives)

    def average_precision(self, weights: Floats) -> Floats:
        """Precision at each threshold, weighted by the recall it adds."""
        positives, negatives = self.counts(weights)
        found = positives.cumsum(axis=1)
        precision = np.nan_to_num(_over(found, found + negatives.cumsum(axis=1)))
        return _over((positives * precision).sum(axis=1), positives.sum(axis=1))


class _Classification:
    def __init__(
        self,
        truth: Ints,
        predicted: Ints,
        shares: Floats | None,
        classes: list[str],
        positive: int | None,
    ) -> None:
        self.truth, self.predicted, self.shares = truth, predicted, shares
        self.classes, self.positive = classes, positive
        self.present = np.unique(truth)
        self._thresholds: dict[int, _Thresholds] = {}

    def score(self, metric: str, weights: Floats) -> Floats:
        return _CLASSIFICATION[metric](self, weights)

    def why_undefined(self, metric: str) -> str:
        if METRICS[metric].needs_probabilities and self.shares is None:
            return f"The model gives no probabilities, which {METRICS[metric].title} needs."
        return (
            f"{METRICS[metric].title} is not defined here: "
            f"the rows hold only the class '{self.classes[int(self.present[0])]}'."
        )

    def notes(self) -> list[str]:
        absent = [name for code, name in enumerate(self.classes) if code not in self.present]
        if not absent:
            return []
        names = ", ".join(f"'{name}'" for name in absent[:5]) + (", …" if len(absent) > 5 else "")
        return [f"No row of these classes took part in the scoring: {names}."]

    # Figures from the confusion matrix

    def confusion(self, weights: Floats) -> Floats:
        """Replicates x true class x predicted class."""
        k = len(self.classes)
        cells = self.truth * k + self.predicted
        counts = [np.bincount(cells, weights=row, minlength=k * k) for row in weights]
        return np.array(counts, dtype=np.float64).reshape(len(weights), k, k)

    def accuracy(self, weights: Floats) -> Floats:
        return _mean(weights, (self.truth == self.predicted).astype(np.float64))

    def balanced_accuracy(self, weights: Floats) -> Floats:
        counts = self.confusion(weights)
        recalls = _over(np.diagonal(counts, axis1=1, axis2=2), counts.sum(axis=2))
        return np.asarray(np.nanmean(recalls, axis=1))

    def _per_class(self, weights: Floats, what: str) -> Floats:
        """Of the positive class, or the mean over classes that occur; 0 where nothing counts."""
        counts = self.confusion(weights)
        right = np.diagonal(counts, axis1=1, axis2=2)
        true, guessed = counts.sum(axis=2), counts.sum(axis=1)
        if what == "f1":
            figure = _over(2 * right, true + guessed)
        else:
            figure = _over(right, true if what == "recall" else guessed)
        figure = np.nan_to_num(figure)
        if self.positive is not None:
            return np.asarray(figure[:, self.positive])
        return _over((figure * (true + guessed > 0)).sum(axis=1), (true + guessed > 0).sum(axis=1))

    def mcc(self, weights: Floats) -> Floats:
        """Gorodkin, "Comparing two K-category assignments by a K-category correlation", 2004."""
        counts = self.confusion(weights)
        true, guessed = counts.sum(axis=2), counts.sum(axis=1)
        n = true.sum(axis=1)
        covariance = np.trace(counts, axis1=1, axis2=2) * n - (true * guessed).sum(axis=1)
        spread = (n**2 - (guessed**2).sum(axis=1)) * (n**2 - (true**2).sum(axis=1))
        return np.nan_to_num(_over(covariance, np.sqrt(spread)))

    # Figures from the probabilities

    def log_loss(self, weights: Floats) -> Floats:
        if self.shares is None:
            return np.full(len(weights), np.nan)
        own = self.shares[np.arange(len(self.truth)), self.truth]
        tiny = float(np.finfo(np.float64).eps)
        return _mean(weights, -np.log(np.clip(own, tiny, 1 - tiny)))

    def brier(self, weights: Floats) -> Floats:
        """Brier 1950: squared distance from the truth; halved in binary tasks, as is the custom."""
        if self.shares is None:
            return np.full(len(weights), np.nan)
        away = self.shares.copy()
        away[np.arange(len(self.truth)), self.truth] -= 1
        squares = (away**2).sum(axis=1)
        return _mean(weights, squares / 2 if self.positive is not None else squares)

    def thresholds(self, code: int) -> _Thresholds:
        assert self.shares is not None
        if code not in self._thresholds:
            self._thresholds[code] = _Thresholds.of(self.shares[:, code], self.truth == code)
        return self._thresholds[code]

    def _over_classes(
        self, figure: Callable[[_Thresholds, Floats], Floats], weights: Floats
    ) -> Floats:
        """Of the positive class, or the mean over the classes that occur, each against the rest."""
        if self.shares is None or len(self.present) < 2:
            return np.full(len(weights), np.nan)
        codes = [self.positive] if self.positive is not None else [int(c) for c in self.present]
        return np.asarray(
            np.mean([figure(self.thresholds(code), weights) for code in codes], axis=0)
        )

    # Pictures

    def curves(self) -> dict[str, Any]:
        drawn: dict[str, Any] = {"confusion": self._confusion_picture()}
        if self.shares is None:
            return drawn
        often = np.argsort(-np.bincount(self.truth, minlength=len(self.classes)), kind="stable")
        codes = [self.positive] if self.positive is not None else sorted(often[:MOST_CURVE_CLASSES])
        codes = [int(code) for code in codes if code in self.present]
        if len(self.present) > 1:
            drawn["roc"] = [self._roc(code) for code in codes]
            drawn["precision_recall"] = [self._precision_recall(code) for code in codes]
        drawn["calibration"] = self._calibration()
        return drawn

    def _confusion_picture(self) -> dict[str, Any]:
        counts = self.confusion(np.ones((1, len(self.truth))))[0].astype(np.int64)
        labels = list(self.classes)
        if len(labels) > MOST_CONFUSION_CLASSES:
            often = np.argsort(-counts.sum(axis=1), kind="stable")
            keep = np.sort(often[: MOST_CONFUSION_CLASSES - 1])
            place = np.full(len(labels), len(keep))
            place[keep] = np.arange(len(keep))
            folded = np.zeros((len(keep) + 1, len(keep) + 1), dtype=np.int64)
            np.add.at(folded, (place[:, None], place[None, :]), counts)
            counts, labels = folded, [labels[code] for code in keep] + ["(all others)"]
        return {"labels": labels, "counts": counts.tolist()}

    def _roc(self, code: int) -> dict[str, Any]:
        thresholds = self.thresholds(code)
        once = np.ones((1, len(self.truth)))
        positives, negatives = (counts[0] for counts in thresholds.counts(once))
        true_rate = np.r_[0, positives.cumsum() / positives.sum()]
        false_rate = np.r_[0, negatives.cumsum() / negatives.sum()]
        keep = _thin(false_rate, true_rate)
        return {
            "class": self.classes[code],
            "auc": _plain(thresholds.roc_auc(once)[0]),
            "false_positive_rate": _short(false_rate[keep]),
            "true_positive_rate": _short(true_rate[keep]),
            "threshold": [None, *_short(np.r_[0, thresholds.values][keep[1:]])],
        }

    def _precision_recall(self, code: int) -> dict[str, Any]:
        thresholds = self.thresholds(code)
        once = np.ones((1, len(self.truth)))
        positives, negatives = (counts[0].cumsum() for counts in thresholds.counts(once))
        recall, precision = positives / positives[-1], positives / (positives + negatives)
        keep = _thin(recall, precision)
        return {
            "class": self.classes[code],
            "average_precision": _plain(thresholds.average_precision(once)[0]),
            "recall": _short(recall[keep]),
            "precision": _short(precision[keep]),
            "threshold": _short(thresholds.values[keep]),
        }

    def _calibration(self) -> dict[str, Any]:
        """Ten equal bins of the positive class's probability, or of the likeliest class's."""
        assert self.shares is not None
        if self.positive is not None:
            said = self.shares[:, self.positive]
            came_true = self.truth == self.positive
            subject = self.classes[self.positive]
        else:
            said, subject = self.shares.max(axis=1), None
            came_true = self.shares.argmax(axis=1) == self.truth
        bins = np.minimum((said * 10).astype(np.int64), 9)
        counts = np.bincount(bins, minlength=10)
        return {
            "class": subject,
            "bins": [
                {
                    "from": b / 10,
                    "to": (b + 1) / 10,
                    "count": int(counts[b]),
                    "predicted": _plain(said[bins == b].mean()) if counts[b] else None,
                    "observed": _plain(came_true[bins == b].mean()) if counts[b] else None,
                }
                for b in range(10)
            ],
        }


_CLASSIFICATION: dict[str, Callable[[_Classification, Floats], Floats]] = {
    "log_loss": _Classification.log_loss,
    "roc_auc": lambda s, w: s._over_classes(_Thresholds.roc_auc, w),
    "accuracy": _Classification.accuracy,
    "balanced_accuracy": _Classification.balanced_accuracy,
    "f1": lambda s, w: s._per_class(w, "f1"),
    "precision": lambda s, w: s._per_class(w, "precision"),
    "recall": lambda s, w: s._per_class(w, "recall"),
    "average_precision": lambda s, w: s._over_classes(_Thresholds.average_precision, w),
    "mcc": _Classification.mcc,
    "brier": _Classification.brier,
}


class _Regression:
    def __init__(self, truth: Floats, predicted: Floats) -> None:
        self.truth, self.predicted = truth, predicted
        self.away = truth - predicted
        self.by_size = np.argsort(np.abs(self.away), kind="stable")

    def score(self, metric: str, weights: Floats) -> Floats:
        return _REGRESSION[metric](self, weights)

    def why_undefined(self, metric: str) -> str:
        reasons = {
            "rmsle": "the target has values below 0.",
            "mape": "the target is 0 in every row.",
            "r2": "the target is the same in every row.",
        }
        because = reasons.get(metric, "the errors are too large for a number.")
        return f"{METRICS[metric].title} is not defined here: {because}"

    def notes(self) -> list[str]:
        zeros = int((self.truth == 0).sum())
        return [f"MAPE leaves out {zeros:,} rows whose target is 0."] if zeros else []

    def rmse(self, weights: Floats) -> Floats:
        return np.sqrt(_mean(weights, self.away**2))

    def mae(self, weights: Floats) -> Floats:
        return _mean(weights, np.abs(self.away))

    def r2(self, weights: Floats) -> Floats:
        # Centred on the plain mean first: the difference of two huge sums would lose its digits.
        centred = self.truth - self.truth.mean()
        n = weights.sum(axis=1)
        spread = weights @ centred**2 - _over((weights @ centred) ** 2, n)
        spread[np.ptp(self.truth) == 0] = 0  # rounding must not turn a constant into a spread
        return 1 - _over(weights @ self.away**2, spread)

    def median_ae(self, weights: Floats) -> Floats:
        """Middle absolute error, or the mean of the two middle ones; weights are whole numbers."""
        sizes = np.abs(self.away)[self.by_size]
        counted = weights[:, self.by_size].cumsum(axis=1)
        middles = []
        for row in counted:
            n = row[-1]
            places = np.searchsorted(row, [np.ceil(n / 2), np.floor(n / 2) + 1])
            middles.append(sizes[places].mean())
        return np.array(middles)

    def mape(self, weights: Floats) -> Floats:
        counts = self.truth != 0
        return _mean(weights[:, counts], np.abs(self.away[counts] / self.truth[counts]))

    def rmsle(self, weights: Floats) -> Floats:
        """Kaggle's root mean squared logarithmic error; predictions below 0 count as 0."""
        if self.truth.min() < 0:
            return np.full(len(weights), np.nan)
        off = np.log1p(np.maximum(self.predicted, 0)) - np.log1p(self.truth)
        return np.sqrt(_mean(weights, off**2))

    def curves(self) -> dict[str, Any]:
        # The ends are cut at the outermost half percents, or one wild error flattens the picture.
        low, high = np.quantile(self.away, [0.005, 0.995])
        if not high > low:
            low, high = low - 0.5, high + 0.5
        counts, edges = np.histogram(np.clip(self.away, low, high), bins=30, range=(low, high))
        shown = _evenly(len(self.truth), MOST_SAMPLE_POINTS)
        return {
            "residuals": {"edges": _short(edges), "counts": counts.tolist()},
            "sample": {
                "true": _short(self.truth[shown]),
                "predicted": _short(self.predicted[shown]),
            },
        }


_REGRESSION: dict[str, Callable[[_Regression, Floats], Floats]] = {
    "rmse": _Regression.rmse,
    "mae": _Regression.mae,
    "r2": _Regression.r2,
    "median_ae": _Regression.median_ae,
    "mape": _Regression.mape,
    "rmsle": _Regression.rmsle,
}


# The interval, and helpers -----------------------------------------------------------------------


def _draws(n: int, seed: int) -> Iterator[Floats]:
    """40 to 200 draws of n rows as weights, some replicates at a time; fewer for larger tables."""
    if n < 10:
        return
    left = min(200, max(40, _CELLS_AT_ONCE // n))
    at_once = max(1, _CELLS_AT_ONCE // n)
    random = np.random.default_rng(seed)
    while left > 0:
        size = min(at_once, left)
        left -= size
        drawn = [np.bincount(random.integers(0, n, n), minlength=n) for _ in range(size)]
        yield np.array(drawn, dtype=np.float64)


def _bootstrap(
    scorer: _Classification | _Regression, metric: str, n: int, seed: int
) -> tuple[float, float] | None:
    """95% percentile interval over draws of the rows; None below ten rows."""
    found = [scorer.score(metric, weights) for weights in _draws(n, seed)]
    scores = np.concatenate(found) if found else np.empty(0)
    finite = scores[np.isfinite(scores)]
    if not len(scores) or len(finite) < len(scores) / 2:
        return None
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)


def _plain(number: float) -> float | None:
    """A JSON number, or None for what is not finite."""
    number = float(number)
    return number if math.isfinite(number) else None


def _short(numbers: Iterable[float]) -> list[float]:
    """Six significant digits: enough to draw with, and half the bytes."""
    return [float(f"{number:.6g}") for number in numbers]


def _evenly(n: int, most: int) -> Ints:
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))


def _thin(x: Floats, y: Floats) -> Ints:
    """Positions of at most MOST_CURVE_POINTS points, evenly along the curve, ends included."""
    if len(x) <= MOST_CURVE_POINTS:
        return np.arange(len(x))
    along = np.r_[0, (np.abs(np.diff(x)) + np.abs(np.diff(y))).cumsum()]
    wanted = np.searchsorted(along, np.linspace(0, along[-1], MOST_CURVE_POINTS - 1))
    return np.unique(np.r_[wanted, len(x) - 1])
