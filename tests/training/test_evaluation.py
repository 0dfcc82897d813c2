"""The scorer agrees with scikit-learn, and refuses what is no prediction."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as sk

from training.evaluation import (
    DEFAULT_METRIC,
    METRICS,
    Evaluation,
    InvalidCandidate,
    evaluate,
    line_up,
    metrics_for,
    rank_key,
)


@st.composite
def classification(draw, k=None):
    """(truth codes, predicted codes, probabilities); probabilities have ties on purpose."""
    k = k or draw(st.integers(3, 5))
    n = draw(st.integers(2, 60))
    truth = draw(hnp.arrays(np.int64, n, elements=st.integers(0, k - 1)))
    assume(len(set(truth)) > 1)
    predicted = draw(hnp.arrays(np.int64, n, elements=st.integers(0, k - 1)))
    weights = draw(hnp.arrays(np.float64, (n, k), elements=st.sampled_from([0.25, 0.5, 1, 2, 8])))
    return truth, predicted, weights / weights.sum(axis=1, keepdims=True)


def names(k):
    return [f"class {code}" for code in range(k)]


def score(task, truth, predicted, shares, metric=None, **options):
    classes = names(shares.shape[1])
    return evaluate(
        task,
        truth,
        [classes[code] for code in predicted],
        shares,
        metric=metric or DEFAULT_METRIC[task],
        classes=classes,
        **options,
    )


@settings(max_examples=60, deadline=None)
@given(classification(k=2))
def test_binary_figures_are_scikit_learns(sample):
    truth, predicted, shares = sample
    got = score("binary", truth, predicted, shares).metrics
    positive = shares[:, 1]
    wanted = {
        "log_loss": sk.log_loss(truth, shares, labels=[0, 1]),
        "roc_auc": sk.roc_auc_score(truth, positive),
        "accuracy": sk.accuracy_score(truth, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, predicted),
        "f1": sk.f1_score(truth, predicted, zero_division=0),
        "precision": sk.precision_score(truth, predicted, zero_division=0),
        "recall": sk.recall_score(truth, predicted, zero_division=0),
        "average_precision": sk.average_precision_score(truth, positive),
        "mcc": sk.matthews_corrcoef(truth, predicted),
        "brier": sk.brier_score_loss(truth, positive),
    }
    assert got == pytest.approx(wanted, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(classification())
def test_multiclass_figures_are_scikit_learns_over_the_classes_that_occur(sample):
    truth, predicted, shares = sample
    k = shares.shape[1]
    got = score("multiclass", truth, predicted, shares).metrics
    seen = sorted(set(truth))
    one_against_rest = [(truth == code, shares[:, code]) for code in seen]
    wanted = {
        "log_loss": sk.log_loss(truth, shares, labels=list(range(k))),
        "roc_auc": np.mean([sk.roc_auc_score(*pair) for pair in one_against_rest]),
        "accuracy": sk.accuracy_score(truth, predicted),
        "balanced_accuracy": np.mean([(predicted[truth == c] == c).mean() for c in seen]),
        "f1": sk.f1_score(truth, predicted, average="macro", zero_division=0),
        "precision": sk.precision_score(truth, predicted, average="macro", zero_division=0),
        "recall": sk.recall_score(truth, predicted, average="macro", zero_division=0),
        "average_precision": np.mean([sk.average_precision_score(*p) for p in one_against_rest]),
        "mcc": sk.matthews_corrcoef(truth, predicted),
        "brier": ((shares - np.eye(k)[truth]) ** 2).sum(axis=1).mean(),
    }
    assert got == pytest.approx(wanted, abs=1e-9)


numbers = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-3)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60).flatmap(lambda n: hnp.arrays(np.float64, (2, n), elements=numbers)))
def test_regression_figures_are_scikit_learns(sample):
    truth, predicted = sample
    got = evaluate("regression", truth, predicted, metric="rmse").metrics
    kept = truth != 0
    wanted = {
        "rmse": sk.root_mean_squared_error(truth, predicted),
        "mae": sk.mean_absolute_error(truth, predicted),
        "r2": sk.r2_score(truth, predicted) if np.ptp(truth) else None,
        "median_ae": sk.median_absolute_error(truth, predicted),
        "mape": (
            sk.mean_absolute_percentage_error(truth[kept], predicted[kept]) if kept.any() else None
        ),
        "rmsle": (
            sk.root_mean_squared_log_error(truth, np.maximum(predicted, 0))
            if truth.min() >= 0
            else None
        ),
    }
    for name, figure in wanted.items():
        wanted_figure = None if figure is None else pytest.approx(figure, rel=1e-6, abs=1e-9)
        assert got[name] == wanted_figure, name


@settings(max_examples=30, deadline=None)
@given(classification(k=2), st.integers(0, 2**32))
def test_the_same_rows_in_any_order_and_the_same_seed_give_the_same_figures(sample, seed):
    truth, predicted, shares = sample
    order = np.random.default_rng(seed).permutation(len(truth))
    once = score("binary", truth, predicted, shares, seed=seed)
    again = score("binary", truth, predicted, shares, seed=seed)
    assert once == again
    mixed = score("binary", truth[order], predicted[order], shares[order])
    assert mixed.metrics == pytest.approx(once.metrics)


@pytest.fixture
def good() -> dict:
    random = np.random.default_rng(5)
    truth = random.integers(0, 2, 400)
    positive = np.clip(truth * 0.3 + random.random(400) * 0.7, 0, 1)
    return {
        "truth": truth,
        "predicted": (positive > 0.5).astype(int),
        "shares": np.c_[1 - positive, positive],
    }


def test_the_interval_holds_the_score_and_narrows_with_rows(good):
    small = score("binary", **{name: array[:60] for name, array in good.items()})
    large = score("binary", **good)
    for result in (small, large):
        assert result.interval[0] < result.score < result.interval[1]
    assert large.interval[1] - large.interval[0] < small.interval[1] - small.interval[0]
    # Hanley and McNeil's standard error of an AUC near 0.9 with 200 + 200 rows is about 0.015.
    assert 0.01 < large.interval[1] - large.interval[0] < 0.12


@pytest.mark.parametrize("metric", [m.name for m in metrics_for("binary")])
def test_every_metric_can_be_the_primary_one(good, metric):
    result = score("binary", **good, metric=metric)
    assert result.score == result.metrics[metric]
    assert result.interval[0] <= result.score <= result.interval[1]


@pytest.mark.parametrize("metric", [m.name for m in metrics_for("regression")])
def test_every_regression_metric_can_be_the_primary_one(metric):
    random = np.random.default_rng(6)
    truth = random.random(300) * 10
    result = evaluate("regression", truth, truth + random.normal(size=300), metric=metric)
    assert result.interval[0] <= result.score <= result.interval[1]


def test_everything_is_json_and_curves_are_thin(good):
    large = {name: np.concatenate([array] * 10) for name, array in good.items()}
    large["shares"] = large["shares"] * np.random.default_rng(1).uniform(0.999, 1, (4000, 1))
    for result in (
        score("binary", **large),
        score("multiclass", np.arange(9) % 3, np.arange(9) % 3, np.full((9, 4), 0.25)),
        evaluate("regression", np.arange(5000.0), np.arange(5000.0) ** 1.01, metric="r2"),
    ):
        assert isinstance(result, Evaluation)
        json.dumps([result.metrics, result.curves, result.interval], allow_nan=False)
        for curve in result.curves.get("roc", []) + result.curves.get("precision_recall", []):
            assert all(len(axis) <= 200 for axis in curve.values() if isinstance(axis, list))
    assert len(json.dumps(result.curves)) < 20_000


def test_the_roc_curve_runs_from_corner_to_corner_under_its_auc(good):
    roc = score("binary", **good).curves["roc"][0]
    x, y = roc["false_positive_rate"], roc["true_positive_rate"]
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert x == sorted(x)
    assert y == sorted(y)
    assert np.trapezoid(y, x) == pytest.approx(roc["auc"], abs=0.01)


def test_calibration_bins_count_every_row(good):
    calibration = score("binary", **good).curves["calibration"]
    assert calibration["class"] == "class 1"
    assert sum(one["count"] for one in calibration["bins"]) == 400


def test_residuals_count_every_row():
    truth = np.r_[np.zeros(99), 1e9]
    curves = evaluate("regression", truth, np.zeros(100), metric="mae").curves
    assert sum(curves["residuals"]["counts"]) == 100


def test_many_classes_fold_into_one_rest():
    truth = np.arange(600) % 60
    result = score("multiclass", truth, truth, np.eye(60)[truth])
    picture = result.curves["confusion"]
    assert len(picture["labels"]) == 50
    assert picture["labels"][-1] == "(all others)"
    assert sum(map(sum, picture["counts"])) == 600
    assert len(result.curves["roc"]) == 20


def test_the_positive_class_decides_what_precision_speaks_of(good):
    last = score("binary", **good)
    first = score("binary", **good, positive_class="class 0")
    assert last.metrics["recall"] != first.metrics["recall"]
    assert last.metrics["roc_auc"] == pytest.approx(first.metrics["roc_auc"])


def test_probabilities_that_drift_a_little_are_mended(good):
    drifted = good | {"shares": (good["shares"] * 1.0005).astype(np.float32)}
    assert score("binary", **drifted).metrics["log_loss"] == pytest.approx(
        score("binary", **good).metrics["log_loss"], abs=1e-5
    )


def test_a_class_absent_from_the_rows_is_scored_around_and_said():
    truth = np.array([0, 0, 1, 1] * 5)
    shares = np.eye(3)[truth] * 0.9 + 0.1 / 3
    result = score("multiclass", truth, truth, shares)
    assert result.metrics["roc_auc"] == 1
    assert result.metrics["balanced_accuracy"] == 1
    assert "class 2" in result.notes[0]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda s: s * 0.5, "add up to 0.5"),
        (lambda s: np.where(np.arange(len(s))[:, None] == 3, np.nan, s), "1 of 400 rows"),
        (lambda s: s - 0.3, "outside 0 to 1"),
        (lambda s: s[:, :1], "shape"),
        (lambda s: None, "no probabilities"),
    ],
)
def test_probabilities_that_are_none_are_refused(good, change, word):
    assert score("binary", **good).score  # the same rows do score
    with pytest.raises(InvalidCandidate, match=word):
        evaluate(
            "binary",
            good["truth"],
            [f"class {code}" for code in good["predicted"]],
            change(good["shares"]),
            metric="roc_auc",
            classes=names(2),
        )


def test_a_model_without_probabilities_still_ranks_by_accuracy(good):
    predicted = [f"class {code}" for code in good["predicted"]]
    result = evaluate("binary", good["truth"], predicted, metric="accuracy", classes=names(2))
    assert result.score > 0.6
    assert result.metrics["roc_auc"] is None
    assert "roc" not in result.curves


@pytest.mark.parametrize(
    ("predicted", "word"),
    [
        ([1.0, math.nan, 2.0], "1 of 3"),
        ([1.0, math.inf, -math.inf], "2 of 3"),
        (["a", "b", "c"], "not numbers"),
        ([1.0], "1 predictions came for 3"),
    ],
)
def test_numbers_that_are_none_are_refused(predicted, word):
    with pytest.raises(InvalidCandidate, match=word):
        evaluate("regression", np.array([1.0, 2.0, 3.0]), predicted, metric="rmse")


def test_an_unknown_class_is_refused_by_name(good):
    predicted = ["class 0"] * 399 + ["class 7"]
    with pytest.raises(InvalidCandidate, match="class 7"):
        evaluate("binary", good["truth"], predicted, metric="accuracy", classes=names(2))


def test_one_class_alone_has_no_roc_auc():
    with pytest.raises(InvalidCandidate, match="only the class 'class 0'"):
        score("binary", np.zeros(20, dtype=int), np.zeros(20, dtype=int), np.full((20, 2), 0.5))


def test_rmsle_is_refused_below_zero_and_mape_skips_zeros():
    with pytest.raises(InvalidCandidate, match="below 0"):
        evaluate("regression", np.array([-1.0, 2.0]), [1.0, 2.0], metric="rmsle")
    result = evaluate("regression", np.array([0.0, 2.0]), [5.0, 1.0], metric="mape")
    assert result.score == 0.5
    assert "1 rows" in result.notes[0]


def test_no_rows_cannot_be_scored():
    with pytest.raises(InvalidCandidate, match="no rows"):
        evaluate("regression", np.array([]), [], metric="rmse")


@given(st.sets(st.integers(0, 50), min_size=1), st.randoms())
def test_rows_are_lined_up_whatever_their_order(rows, random):
    expected = np.array(sorted(rows))
    sent = np.array(random.sample(sorted(rows | {60, 70}), len(rows | {60, 70})))
    assert (sent[line_up(sent, expected, part="validation")] == expected).all()


def test_missing_and_doubled_rows_are_named():
    with pytest.raises(InvalidCandidate, match="missing for 2 of 4 validation rows"):
        line_up(np.array([1, 2, 9]), np.array([1, 2, 3, 4]), part="validation")
    with pytest.raises(InvalidCandidate, match="Row 2 was predicted twice"):
        line_up(np.array([1, 2, 2]), np.array([1, 2]), part="validation")
    with pytest.raises(InvalidCandidate, match="missing for 1 of 1"):
        line_up(np.array([], dtype=int), np.array([1]), part="test")


def test_the_better_score_leads_then_the_faster_fit_then_the_key():
    rows = [(0.9, 2.0, "b"), (0.9, 2.0, "a"), (0.9, 1.0, "c"), (0.95, 9.0, "d"), (None, 0.1, "e")]
    by_auc = sorted(rows, key=lambda row: rank_key(*row, "roc_auc"))
    assert [row[2] for row in by_auc] == ["d", "c", "a", "b", "e"]
    by_loss = sorted(rows, key=lambda row: rank_key(*row, "log_loss"))
    assert [row[2] for row in by_loss] == ["c", "a", "b", "d", "e"]


def test_defaults_fit_their_tasks():
    assert all(task in METRICS[name].tasks for task, name in DEFAULT_METRIC.items())


def test_scoring_imports_no_scikit_learn():
    code = "import sys, training.evaluation; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
