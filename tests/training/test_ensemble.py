"""Greedy ensemble selection: what must hold of any models, and what a user would notice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from training import ensemble
from training.ensemble import Said
from training.evaluation import METRICS, loss_of_blend, metrics_for

CLASSES = {"binary": ["no", "yes"], "multiclass": ["a", "b", "c"], "regression": None}


def models(task: str, n: int, m: int, seed: int):
    """Targets, and a stack of models of all kinds: good, poor, equal, constant."""
    random = np.random.default_rng(seed)
    if task == "regression":
        truth = random.gamma(2, 3, n) + 0.1
        stack = np.array([truth + random.normal(0, s, n) for s in random.uniform(0, 4, m)])
        return truth, np.abs(stack)[:, :, None]
    k = len(CLASSES[task])
    truth = np.arange(n) % k
    stack = np.full((m, n, k), 1.0)
    for one, skill in zip(stack, random.uniform(0, 4, m), strict=True):
        one += random.gamma(1, 1, (n, k))
        one[np.arange(n), truth] += skill * random.random(n)
    stack[0] = 1 / k
    stack[-1] = stack[m // 2]
    return truth, stack / stack.sum(axis=2, keepdims=True)


def loss_for(task: str, truth, metric: str):
    def loss(blend):
        return loss_of_blend(task, truth, blend, metric=metric, classes=CLASSES[task])

    return loss


@how(max_examples=40)
@given(
    st.sampled_from(list(CLASSES)), st.integers(0, 20), st.integers(6, 40), st.integers(1, 6),
    st.integers(0, 10**6),
)  # fmt: skip
def test_a_selection_is_never_worse_than_the_best_single_model(task, which, n, m, seed):
    metrics = metrics_for(task)
    metric = metrics[which % len(metrics)].name
    truth, stack = models(task, n, m, seed)
    loss = loss_for(task, truth, metric)
    weights = ensemble.select(stack, loss)
    assert weights.shape == (m,)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    blended = np.tensordot(weights, stack, axes=1)
    assert loss(blended) <= min(loss(one) for one in stack) + 1e-9
    assert (ensemble.select(stack.copy(), loss) == weights).all(), "it gives the same again"


def test_models_that_err_in_different_places_do_better_together():
    random = np.random.default_rng(1)
    truth = random.normal(0, 10, 400)
    stack = np.array([truth + random.normal(0, 2, 400) for _ in range(4)])[:, :, None]
    loss = loss_for("regression", truth, "rmse")
    weights = ensemble.select(stack, loss)
    assert (weights > 0.1).all(), "all are equally good"
    assert loss(np.tensordot(weights, stack, axes=1)) < 0.6 * min(loss(one) for one in stack)


def test_one_model_that_is_always_right_is_chosen_alone():
    truth, stack = models("binary", 60, 5, 7)
    stack[3] = np.eye(2)[truth]
    weights = ensemble.select(stack, loss_for("binary", truth, "log_loss"))
    assert weights.tolist() == [0, 0, 0, 1, 0]


def test_weights_of_a_fold_do_not_depend_on_its_own_rows():
    truth, stack = models("multiclass", 100, 5, 3)
    folds = ensemble.folds_of(100)

    def by_fold(truth):
        def loss_on(rows, blend):
            return loss_for("multiclass", truth[rows], "log_loss")(blend)

        return ensemble.select_by_fold(stack, loss_on, folds)

    changed = truth.copy()
    changed[folds == 2] = (changed[folds == 2] + 1) % 3
    before, after = by_fold(truth), by_fold(changed)
    assert before.shape == (ensemble.FOLDS, 5)
    assert (before[2] == after[2]).all()
    assert (before[0] != after[0]).any()


def test_noise_is_not_scored_as_skill_when_weights_are_cross_fitted():
    random = np.random.default_rng(5)
    truth = random.normal(0, 1, 60)
    stack = np.array([random.normal(0, 1, 60) for _ in range(40)])[:, :, None]
    loss = loss_for("regression", truth, "r2")
    naive = np.tensordot(ensemble.select(stack, loss), stack, axes=1)
    folds = ensemble.folds_of(60)

    def loss_on(rows, blend):
        return loss_for("regression", truth[rows], "r2")(blend)

    weights = ensemble.select_by_fold(stack, loss_on, folds)
    honest = np.einsum("nm,mnk->nk", weights[folds], stack)
    assert loss(naive) < -0.1, "chosen on the same rows, noise looks like skill"
    assert loss(honest) > 0


def test_nothing_to_choose_from_is_an_error():
    with pytest.raises(ValueError, match="no model"):
        ensemble.select(np.empty((0, 3, 1)), lambda blend: 0.0)


@pytest.mark.parametrize("metric", [m for m in METRICS if METRICS[m].tasks != ("regression",)])
def test_a_metric_without_a_value_is_no_reason_to_fail(metric):
    truth = np.zeros(8, dtype=int)  # one class alone
    stack = np.full((2, 8, 2), 0.5)
    weights = ensemble.select(stack, loss_for("binary", truth, metric))
    assert weights.sum() == 1


# The answer


def test_a_blend_of_classifiers_is_the_mean_of_their_probabilities():
    said = [Said(["a", "b"], [[0.9, 0.1], [0.4, 0.6]]), Said(["b", "b"], [[0.2, 0.8], [0.0, 1.0]])]
    answer = ensemble.blend(said, [0.75, 0.25], ["a", "b"])
    assert answer.predictions == ["a", "b"]
    assert np.allclose(answer.probabilities, [[0.725, 0.275], [0.3, 0.7]])


def test_a_blend_of_numbers_is_their_mean():
    said = [Said([1.0, 2.0], None), Said([3.0, 4.0], None)]
    assert ensemble.blend(said, [0.5, 0.5], None) == Said([2.0, 3.0], None)


def test_a_classifier_without_probabilities_cannot_be_blended():
    said = [Said(["a"], [[1.0, 0.0]]), Said(["a"], None)]
    with pytest.raises(ValueError, match="no probabilities"):
        ensemble.blend(said, [0.5, 0.5], ["a", "b"])
