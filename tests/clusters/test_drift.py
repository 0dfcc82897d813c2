"""How far two distributions are apart: what must hold of any of them, and of known ones."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2

from clusters import drift

counts = st.integers(2, 12).flatmap(
    lambda size: st.tuples(*[st.lists(st.integers(0, 999), min_size=size, max_size=size)] * 3)
)


@given(counts)
def test_both_figures_are_zero_for_the_same_and_the_same_both_ways(some):
    p, q, r = map(drift.shares, some)
    assert drift.psi(p, p) == drift.jensen_shannon(p, p) == 0
    assert drift.psi(p, q) == pytest.approx(drift.psi(q, p), abs=1e-12)
    assert drift.psi(p, q) >= 0
    assert 0 <= drift.jensen_shannon(p, q) <= 1
    assert drift.jensen_shannon(p, q) == pytest.approx(jensenshannon(p, q, base=2), abs=1e-7)
    way = drift.jensen_shannon(p, r) + drift.jensen_shannon(r, q)
    assert drift.jensen_shannon(p, q) <= way + 1e-7
    turned = drift.psi(p[::-1], q[::-1])
    assert turned == pytest.approx(drift.psi(p, q), abs=1e-12)


def test_what_known_shares_give():
    # 0.2 ln 1.5 - 0.2 ln 0.666... by hand.
    assert drift.psi([0.4, 0.6], [0.6, 0.4]) == pytest.approx(0.16218604, abs=1e-7)
    assert drift.jensen_shannon([1, 0], [0, 1]) == 1


@given(st.integers(2, 23), st.integers(100, 10**6), st.integers(100, 10**4))
def test_chance_is_the_quantile_of_chi_squared(bins, trained, seen):
    exact = chi2.ppf(0.999, bins - 1) * (1 / trained + 1 / seen)
    assert drift.by_chance(bins, trained, seen) == pytest.approx(exact, rel=0.04)


def numbers(values, name="x", missing=0):
    """A profile as datasets.profile makes it: twenty bins of the same width."""
    low, high = min(values), max(values)
    edges = [low + (high - low) * step / 20 for step in range(20)] + [high]
    counted = [0] * 20
    for value in values:
        counted[min(19, int((value - low) / (high - low) * 20))] += 1
    return {
        "name": name, "dtype": "float", "role": "numeric", "missing": missing,
        "histogram": {"edges": edges, "counts": counted},
    }  # fmt: skip


def colours(**count):
    listed = [{"value": value, "count": number} for value, number in count.items()]
    return {
        "name": "colour", "dtype": "string", "role": "categorical", "missing": 0, "top": listed,
        "classes": listed,
    }  # fmt: skip


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, unique=True), st.floats(-2e6, 2e6))
def test_every_value_has_a_bin_and_training_rows_keep_theirs(values, other):
    if max(values) - min(values) < 1e-3:
        return
    bins = drift.bins_of(numbers(values, missing=2), len(values) + 2)
    assert sum(bins.counts) == len(values) + 2
    assert len(bins.names) == len(bins.counts)
    inside = [bins.place(value) for value in values]
    assert all(1 <= place <= len(bins.names) - 3 for place in inside)
    assert bins.place(None) == len(bins.names) - 1
    place = bins.place(other)
    assert (place == 0) == (other < min(values))
    assert (place == len(bins.names) - 2) == (other > max(values))


def test_a_new_sample_of_the_same_has_not_drifted_and_a_shifted_one_has():
    rng = random.Random(3)
    trained = [rng.gauss(0, 1) for _ in range(5000)]
    column = numbers(trained)
    for seed in range(30):
        rng = random.Random(seed)
        same = drift.compare(column, 5000, [rng.gauss(0, 1) for _ in range(150)])
        assert not same.is_past(0.1), (seed, same.psi)
    shifted = drift.compare(column, 5000, [rng.gauss(1.5, 1) for _ in range(150)])
    assert shifted.is_past(0.25)
    assert shifted.distance > 0.3
    lacking = drift.compare(column, 5000, [None] * 75 + trained[:75])
    assert lacking.is_past(0.25)
    assert lacking.bins[-1] == ("missing", 0.0, 0.5)


def test_categories_that_are_new_count():
    column = colours(red=600, blue=400)
    same = drift.compare(column, 1000, ["red"] * 62 + ["blue"] * 38)
    assert not same.is_past(0.1)
    other = drift.compare(column, 1000, ["red"] * 60 + ["mauve"] * 40)
    assert other.is_past(0.25)
    assert ("other values", 0.0, 0.4) in other.bins


def test_what_says_nothing_is_not_compared():
    column = colours(red=600, blue=400)
    assert drift.compare(column, 1000, ["red"] * 99) is None
    for role in ("identifier", "text", "datetime"):
        assert drift.compare({**column, "role": role}, 1000, ["red"] * 500) is None
    empty = {"name": "x", "dtype": "string", "role": "constant", "missing": 9, "top": []}
    assert drift.compare(empty, 9, ["red"] * 500) is None
