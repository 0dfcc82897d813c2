"""What an engine chooses by: the job's metric as the leaderboard has it, folds, blends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from training import evaluation
from training.engines import estimators, race, scoring
from training.engines.base import Problem
from training.engines.search import Range, Search, Trial

TASKS = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c", "d"), "regression": None}
CASES = [
    (task, metric.name)
    for task in TASKS
    for metric in evaluation.metrics_for(task)
    if metric.name != "r2"  # ordered as by rmse
]


@pytest.mark.parametrize(("task", "metric"), CASES)
def test_the_engine_orders_by_the_figure_that_the_leaderboard_shows(task: Any, metric: str) -> None:
    random = np.random.default_rng(5)
    classes = TASKS[task]
    problem = Problem(task, "y", metric, classes, classes[0] if task == "binary" else None)
    truth: Any
    if classes is None:
        truth = random.lognormal(1, 1, 300)
        scores = truth + random.normal(0, 0.5, 300)
        told, shares = scores, None
    else:
        truth = random.integers(0, len(classes), 300)
        shares = random.dirichlet(np.ones(len(classes)), 300)
        shares[np.arange(300), truth] += 0.5
        shares /= shares.sum(axis=1, keepdims=True)
        scores, told = shares, [classes[code] for code in shares.argmax(axis=1)]
    shown = evaluation.evaluate(
        task,
        truth,
        told,
        shares,
        metric=metric,
        classes=classes,
        positive_class=problem.positive_class,
    ).score
    sign = 1 if evaluation.METRICS[metric].greater_is_better else -1
    assert sign * scoring.score(problem, truth, scores) == pytest.approx(shown, rel=1e-6)


def test_a_metric_that_cannot_be_had_ranks_last() -> None:
    problem = Problem("binary", "y", "roc_auc", ("a", "b"))
    assert scoring.score(problem, np.zeros(4, int), np.full((4, 2), 0.5)) == -np.inf


def test_a_blend_is_no_worse_than_its_best_member_where_it_was_chosen() -> None:
    random = np.random.default_rng(6)
    problem = Problem("regression", "y", "rmse")
    y = random.normal(size=400)
    members = [y + random.normal(0, spread, 400) for spread in (0.5, 0.6, 3.0)]
    weights, best = scoring.blend_weights(problem, y, members)
    assert sum(weights) == pytest.approx(1)
    assert weights[2] < 0.1
    assert best >= max(scoring.score(problem, y, member) for member in members)


def test_a_blend_of_noise_does_not_look_better_than_noise_where_it_ranks() -> None:
    """Weights chosen on the rows that rank would find members that guessed them by chance."""
    problem = Problem("binary", "y", "accuracy", ("a", "b"))
    chosen, unseen = [], []
    for seed in range(20):
        random = np.random.default_rng(seed)
        y = random.integers(0, 2, 100)
        shares = [random.uniform(size=100) for _ in range(12)]
        members = [np.column_stack([1 - one, one]) for one in shares]
        weights, best = scoring.blend_weights(problem, y, members)
        chosen.append(best)
        assert best == pytest.approx(scoring.score(problem, y, scoring.mean(members, weights)))
        folds = np.arange(100) % 5 + 1
        unseen.append(scoring.score(problem, y, scoring.blend_unseen(problem, y, members, folds)))
    assert np.mean(chosen) > 0.6
    assert np.mean(unseen) < 0.53


@pytest.mark.parametrize(("rows", "parts"), [(300, 5), (5_000, 3), (50_000, 1)])
def test_inner_folds_hold_every_class(rows: int, parts: int) -> None:
    y = np.random.default_rng(7).choice(3, rows, p=[0.9, 0.07, 0.03])
    folds = race.inner_folds(Problem("multiclass", "y", "log_loss", ("a", "b", "c")), y)
    assert set(folds) - {0} == set(range(1, parts + 1))
    for fold in range(1, parts + 1):
        shares = np.bincount(y[folds == fold], minlength=3) / (folds == fold).sum()
        np.testing.assert_allclose(shares, np.bincount(y) / rows, atol=0.02)


def test_searches_stay_inside_their_ranges_and_come_near_the_best() -> None:
    space = {
        "strength": Range(0.01, 10, log=True),
        "leaves": Range(2, 40, whole=True),
        "trees": Range(1, 300, log=True, whole=True),
        "kind": Range(values=("x", None, (3, 4))),
        "fixed": Range(5, 5),
    }
    search = Search(space, -2.0, trial_s=0.1, full_s=0.2, seed=8)
    seen = []
    for number in range(60):
        params = search.propose()
        if params is None:
            continue
        seen.append(params)
        for name, span in space.items():
            value = params[name]
            if span.values:
                assert value in span.values
            else:
                assert span.low <= value <= span.high
                assert isinstance(value, int) == span.whole
        if number % 7:  # the others failed: it goes on without them
            score = -abs(np.log(params["strength"])) - (params["kind"] != (3, 4))
            search.add(Trial(params, {}, np.empty(0), score, 0.1))
    assert search.found is not None
    assert search.found.params["kind"] == (3, 4)
    assert search.best > -0.5
    assert len({str(params) for params in seen}) == len(seen)


def test_an_estimator_survives_being_described() -> None:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.linear_model import SGDClassifier
    from sklearn.neural_network import MLPClassifier

    inner = SGDClassifier(alpha=0.02, class_weight={0: 1.0, 1: 2.5}, n_jobs=4, random_state=3)
    for estimator in (
        CalibratedClassifierCV(inner, cv=3, ensemble=False),
        MLPClassifier(hidden_layer_sizes=(20, 10), alpha=np.float64(0.1)),
    ):
        told = estimators.describe(estimator)
        again = estimators.build(told)
        assert estimators.describe(again) == told
        assert type(again) is type(estimator)
    assert again.hidden_layer_sizes == (20, 10)
    told = estimators.describe(inner)
    assert told["class"] == "sklearn.linear_model.SGDClassifier"
    assert told["params"] == {
        "alpha": 0.02,
        "class_weight": {"dict": [[0, 1.0], [1, 2.5]]},
        "random_state": 3,
    }


@pytest.mark.parametrize("kind", ["plain", "standard", "log"])
def test_a_target_comes_back_from_its_scale(kind: str) -> None:
    y = np.random.default_rng(9).lognormal(2, 1, 200)
    scale = estimators.learn_scale(y, kind)
    np.testing.assert_allclose(estimators.unscale(estimators.rescale(y, scale), scale), y)
