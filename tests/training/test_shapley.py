"""Shapley values: what they must be for any model, and how little time they may take."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.engines import shapley

ROWS = 4_000


def model_on(row, background, predict):
    """``Ask`` for a model of numbers: ``predict`` takes n x d and gives n x k."""
    calls = []

    def ask(masks, others):
        calls.append(len(masks))
        return predict(np.where(masks, row, background[others]))

    return ask, calls


def explain(row, background, predict, **how):
    ask, calls = model_on(row, background, predict)
    how = {"rows": ROWS, "seconds": 60.0} | how
    return shapley.explain(ask, len(row), len(background), **how), calls


@st.composite
def situations(draw):
    """A row, background rows, and a random non-linear model that ignores one column."""
    d, b, k = draw(st.integers(2, 14)), draw(st.integers(1, 12)), draw(st.integers(1, 3))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    ignored = draw(st.integers(0, d - 1))
    first, second = random.normal(size=(d, 6)), random.normal(size=(6, k))
    first[ignored] = 0.0

    def predict(x):
        return np.tanh(x @ first) @ second

    return random.normal(size=d), random.normal(size=(b, d)), predict, ignored


@settings(max_examples=40, deadline=None)
@given(situation=situations(), rows=st.sampled_from([50, 400, 5_000]))
def test_base_and_values_add_up_to_the_answer_and_an_ignored_column_has_nothing(situation, rows):
    row, background, predict, ignored = situation
    found, calls = explain(row, background, predict, rows=rows)
    assert np.allclose(found.base + found.values.sum(axis=0), predict(row[None, :])[0], atol=1e-9)
    assert np.allclose(found.values[ignored], 0.0, atol=1e-12)
    assert found.evaluations == sum(calls)
    if found.background == len(background):
        assert np.allclose(found.base, predict(background).mean(axis=0))


@settings(max_examples=25, deadline=None)
@given(
    d=st.integers(1, 30), b=st.integers(1, 20), seed=st.integers(0, 1000),
    rows=st.sampled_from([10, 1_000, 20_000]),
)  # fmt: skip
def test_of_an_additive_model_they_are_exact_at_any_price(d, b, seed, rows):
    random = np.random.default_rng(seed)
    row, background = random.normal(size=d), random.normal(size=(b, d))
    shape = random.normal(size=(d, 2))

    def parts(x):
        return np.sin(x)[:, :, None] * shape + (x**2)[:, :, None]

    found, _ = explain(row, background, lambda x: parts(x).sum(axis=1), rows=rows)
    if found.background == b:
        expected = parts(row[None, :])[0] - parts(background).mean(axis=0)
        assert np.allclose(found.values, expected, atol=1e-9)
    if found.errors is not None:
        assert np.allclose(found.errors, 0.0, atol=1e-9)


def interacting(x):
    return (x[:, 0] * x[:, 1] + x[:, 2] ** 2 * x[:, 3] + x[:, 4])[:, None]


def test_drawn_orders_come_to_what_all_coalitions_give():
    random = np.random.default_rng(5)
    row, background = random.normal(size=6), random.normal(size=(10, 6))
    exact, _ = explain(row, background, interacting, rows=10 * 2**6)
    assert exact.exact
    assert not exact.errors.any()
    drawn, _ = explain(row, background, interacting, rows=10 * 2**6 - 1)
    assert not drawn.exact
    assert np.abs(drawn.values - exact.values).max() <= 5 * drawn.errors.max() + 1e-9
    # Two columns that only work together share what they do together.
    both, _ = explain(np.ones(2), np.zeros((1, 2)), lambda x: x[:, :1] * x[:, 1:])
    assert both.values[:, 0].tolist() == [0.5, 0.5]


def test_it_costs_no_more_than_it_may_and_takes_fewer_rows_to_compare_with_instead():
    random = np.random.default_rng(6)
    row, background = random.normal(size=60), random.normal(size=(100, 60))
    found, calls = explain(row, background, lambda x: np.tanh(x).sum(axis=1)[:, None] ** 2)
    assert sum(calls) <= ROWS
    assert 1 <= found.background < 100
    assert max(calls) <= shapley.ROWS_AT_ONCE


def test_it_ends_when_the_time_is_up_and_still_adds_up():
    random = np.random.default_rng(7)
    row, background = random.normal(size=200), random.normal(size=(50, 200))
    now = [0.0]

    def slow(x):
        now[0] += 0.01 * len(x)
        return np.tanh(x).sum(axis=1)[:, None] ** 2

    found, _ = explain(row, background, slow, rows=10**6, seconds=30.0, clock=lambda: now[0])
    assert now[0] < 30.0 + 0.01 * shapley.ROWS_AT_ONCE + 1
    assert found.background < 50
    assert found.errors is None
    assert np.allclose(found.base + found.values.sum(axis=0), slow(row[None, :])[0])


@pytest.mark.parametrize(("columns", "background"), [(0, 3), (3, 0)])
def test_nothing_can_be_explained_by_nothing(columns, background):
    with pytest.raises(ValueError, match="needed"):
        shapley.explain(lambda *_: np.zeros((1, 1)), columns, background, rows=10, seconds=1)
