"""Folds that engines make for themselves: where rows belong to groups, no group is torn apart."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.engines import estimators, folding, harness, race
from training.engines.base import Data, Problem
from training.engines.frame import Frame

PROBLEM = Problem("binary", "y", "log_loss", ("no", "yes"), "yes", seed=3)


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Groups (few or many, even or very uneven) and classes of some rows."""
    rows, most = draw(st.integers(4, 200)), draw(st.integers(2, 60))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    groups = np.minimum(random.geometric(draw(st.sampled_from([0.02, 0.2, 0.6])), rows), most) * 7
    groups[:2] = [1, 2]
    return groups, (random.random(rows) < draw(st.sampled_from([0.1, 0.5]))).astype(np.int64)


def apart(groups: np.ndarray, *parts: np.ndarray) -> None:
    """No two of these parts of the rows share a group."""
    seen: set[int] = set()
    for part in parts:
        mine = set(groups[part].tolist())
        assert not mine & seen
        seen |= mine


@given(tables(), st.integers(1, 6), st.integers(0, 5))
def test_no_fold_shares_a_group_with_another(
    table: tuple[np.ndarray, np.ndarray], count: int, seed: int
) -> None:
    groups, y = table
    folds = folding.folds_for(PROBLEM, y, count, seed, groups=groups)
    numbers = sorted(set(folds.tolist()))
    apart(groups, *(folds == number for number in numbers))
    if count == 1:
        assert numbers == [0, 1]
    else:
        assert numbers == list(range(1, min(count, len(set(groups.tolist()))) + 1))
    assert (folds == folding.folds_for(PROBLEM, y, count, seed, groups=groups)).all()


@given(tables(), st.booleans())
def test_what_learns_what_stops_and_what_is_predicted_share_no_group(
    table: tuple[np.ndarray, np.ndarray], scored: bool
) -> None:
    groups, y = table
    frame = Frame({}, len(y))
    dealt = folding.folds_for(PROBLEM, y, 3, groups=groups)
    data = Data(frame, y, frame, dealt if scored else None, groups)
    for fold in range(1, dealt.max() + 1):
        rest, stop = folding.rows_for(PROBLEM, data, dealt, fold)
        if not scored:
            apart(groups, rest, stop)
        elif len(set(groups[dealt != fold].tolist())) > 1:
            apart(groups, rest, stop, np.flatnonzero(dealt == fold))
            assert len(stop)
        else:  # an only group is left: cut, but still apart from what is predicted
            apart(groups, np.concatenate([rest, stop]), np.flatnonzero(dealt == fold))


@given(tables(), st.booleans(), st.integers(1, 200))
def test_a_race_ranks_by_groups_that_no_fit_has_seen(
    table: tuple[np.ndarray, np.ndarray], large: bool, most: int
) -> None:
    groups, y = table
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(race, "LARGE", 3 if large else 10**6)
        folds = race.inner_folds(PROBLEM, y, groups)
    assert (folds > 0).any()
    apart(groups, *(folds == number for number in set(folds.tolist())))
    if large:  # the fits take so many of the rows, less those apart
        away = int(np.count_nonzero(folds))
        most = min(most, len(y) - away)
        chosen = estimators.some_rows(len(y), most, PROBLEM.seed, groups)
        assert len(chosen) == most
        apart(groups, chosen, np.flatnonzero(folds))


def test_folds_by_group_are_about_as_large_and_as_mixed_as_others() -> None:
    random = np.random.default_rng(0)
    groups = random.integers(0, 300, 3_000)
    y = (random.random(3_000) < 0.2).astype(np.int64) | (groups < 30)
    for count in (3, 5):
        folds = folding.folds_for(PROBLEM, y, count, groups=groups)
        sizes = np.bincount(folds)[1:]
        assert sizes.min() > 0.9 * 3_000 / count
        shares = [y[folds == fold].mean() for fold in range(1, count + 1)]
        np.testing.assert_allclose(shares, y.mean(), atol=0.05)
    one = folding.folds_for(PROBLEM, y, 1, groups=groups)
    assert one.mean() == pytest.approx(folding.STOP_SHARE, abs=0.03)


def test_probabilities_are_calibrated_by_groups_that_the_classifier_has_not_seen() -> None:
    """Rows of a group are alike, and a group's class is chance: nobody can know it beforehand."""
    random = np.random.default_rng(1)
    groups = random.permutation(np.repeat(np.arange(40), 10))
    places, classes = random.normal(size=(40, 2)), np.arange(40) % 2
    at = places[groups] + random.normal(0, 0.01, (400, 2))
    y = classes[groups]
    frame = Frame({"a": at[:, 0].copy(), "b": at[:, 1].copy()}, 400)
    inner = {"class": "sklearn.neighbors.KNeighborsClassifier", "params": {"n_neighbors": 3}}
    spec = {
        "class": "sklearn.calibration.CalibratedClassifierCV",
        "params": {"estimator": {"estimator": inner}, "cv": 3, "ensemble": False},
    }
    member = {"style": "scaled", "estimator": spec}
    sure = {}
    for by in (None, groups):
        fitted = estimators.fit_member(member, PROBLEM, frame, y, by)
        assert fitted.estimator.get_params()["cv"] == 3
        found = fitted.predict(fitted.encoding.matrix(frame), 2)
        sure[by is not None] = float(found.max(axis=1).mean())
    assert sure[False] > 0.9  # it looked at rows of the same groups
    assert sure[True] < 0.7


def test_an_engine_is_told_the_groups_that_the_split_is_by(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    table: dict[str, Any] = {
        "size": random.normal(size=300),
        "patient": [None if row == 3 else f"p{row % 23}" for row in range(300)],
        "y": np.where(random.random(300) < 0.5, "no", "yes"),
    }
    pq.write_table(pa.table(table), tmp_path / "data.parquet")
    payload = {
        "columns": [{"name": "size", "role": "numeric"}],
        "split": {"kind": "group", "column": "patient", "seed": 1, "test": 0.2, "validation": 0.2},
    }
    run: Any = SimpleNamespace(budget_s=5.0)
    ready = harness.Ready.read(tmp_path / "data.parquet", payload, PROBLEM, run)
    assert ready.data.groups is not None
    of = [table["patient"][row] for row in ready.train_rows]
    assert len(set(zip(of, ready.data.groups.tolist(), strict=True))) == len(set(of))
    payload["split"] = {"kind": "random", "seed": 1, "test": 0.2, "validation": 0.2}
    assert harness.Ready.read(tmp_path / "data.parquet", payload, PROBLEM, run).data.groups is None
