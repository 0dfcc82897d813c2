"""What benchmarks decide by: figures that are told are worth what these are."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.common import at
from benchmarks.quality import Model, chosen, verdict

TRUTH = np.array([0.0, 1.0, 2.0, 3.0])
JUDGE: Any = SimpleNamespace(loss=lambda truth, said: float(np.abs(said[:, 0] - truth).mean()))


def model(key: str, *off: float, blends: bool = True) -> Model:
    """One that is off by so much at each row."""
    return Model(key, (TRUTH + off)[:, None], None, blends, "e", "file", refit=False)


def test_a_race_ends_with_the_best_model_and_the_blend_that_beats_it() -> None:
    above, below = model("above", 1, 1, 1, 1), model("below", -1, -1, -1, -1.2)
    found = chosen([below, above, model("far", 9, 9, 9, 9)], TRUTH, JUDGE)
    assert [one.key for one, _ in found] == ["above", "below"]
    assert sum(weight for _, weight in found) == pytest.approx(1)
    blend = sum(weight * one.ranked for one, weight in found)
    assert JUDGE.loss(TRUTH, blend) < JUDGE.loss(TRUTH, above.ranked)


def test_a_race_ends_with_one_model_where_no_blend_is_better() -> None:
    right = model("right", 0, 0, 0, 0)
    assert chosen([model("off", 1, 1, 1, 1), right], TRUTH, JUDGE) == [(right, 1.0)]
    nameless = model("names classes only", 0, 0, 0, 0, blends=False)
    assert chosen([nameless, model("off", 1, 1, 1, 1)], TRUTH, JUDGE)[0] == (nameless, 1.0)


def test_a_tie_is_a_difference_too_small_to_count() -> None:
    assert verdict("accuracy", 0.95, 0.9495) == "tie"
    assert verdict("accuracy", 0.95, 0.96) == "loss"
    assert verdict("rmse", 2.0, 2.005) == "tie"
    assert verdict("rmse", 1.9, 2.0) == "win"


def test_percentiles_are_what_so_many_do_not_pass() -> None:
    assert at(0.5, [3.0, 1.0, 2.0]) == 2.0
    assert at(0.95, list(range(100))) == 95
    assert at(0.99, [7.0]) == 7.0
