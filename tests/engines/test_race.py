"""The race's order, its large tables and its second attempts, with a small zoo."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import joblib  # noqa: F401 - here, so that no fork has to import it within its budget
import numpy as np
import pytest
import sklearn.dummy
import sklearn.ensemble
import sklearn.linear_model  # noqa: F401

from training.engines import estimators, race
from training.engines.base import Candidate, Data, Problem
from training.engines.frame import Frame
from training.engines.race import Entry, Race
from training.engines.search import Range

LOGISTIC = "sklearn.linear_model.LogisticRegression"


class Run:
    """A budget and a folder; nobody listens."""

    def __init__(self, folder: Path, budget_s: float, done: tuple[str, ...] = ()) -> None:
        self.folder, self.done = folder, frozenset(done)
        self.until = time.monotonic() + budget_s
        self.notices: list[str] = []

    def remaining_s(self) -> float:
        return self.until - time.monotonic()

    def pulse(self) -> bool:
        return self.remaining_s() <= 0

    def working_on(self, what: str, **data: Any) -> None:
        pass

    def notice(self, message: str, **data: Any) -> None:
        self.notices.append(message)

    def checkpoint(self, name: str, to: Path) -> bool:
        return False

    def keep(self, name: str, path: Path) -> None:
        pass


@pytest.fixture(autouse=True)
def in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # forks keep a log there


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of 1,200 rows count as large."""
    monkeypatch.setattr(race, "PROBE_ROWS", 300)
    monkeypatch.setattr(race, "LARGE", 600)


def rows(count: int, held: int = 200) -> Data:
    random = np.random.default_rng(0)
    x, z = random.normal(size=(2, count + held))
    y = (x + z + random.normal(0, 0.3, count + held) > 0).astype(np.int64)
    frame = Frame({"x": x, "z": z}, count + held)
    return Data(frame.take(np.arange(count)), y[:count], frame.take(np.arange(count, count + held)))


def problem() -> Problem:
    return Problem("binary", "y", "log_loss", ("no", "yes"), "yes", seed=3)


def logistic(id: str = "lr", strength: float = 1.0, **more: Any) -> Entry:
    member = {"style": "scaled", "estimator": {"class": LOGISTIC, "params": {"C": strength}}}
    return Entry(id, id.upper(), "linear", member, **more)


def raced(data: Data, run: Run, *zoo: Entry) -> dict[str, Candidate]:
    return {found.key: found for found in Race("x", problem(), data, run).go(lambda: zoo)}


def test_of_a_large_table_each_model_is_fitted_once_without_the_rows_that_compare(
    small: None, tmp_path: Path
) -> None:
    data = rows(1200)
    forest = {
        "class": "sklearn.ensemble.RandomForestClassifier",
        "params": {"max_samples": 500, "n_estimators": 5},  # more than a probe has rows
    }
    member = {"style": "trees", "estimator": forest}
    run = Run(tmp_path / "a", 60)
    few, trees = logistic("few", fit_rows=400), Entry("rf", "Forest", "forest", member)
    found = raced(data, run, logistic(), few, trees)
    assert not run.notices
    assert found["x:rf"].train_rows == 1080
    assert found["x:baseline"].train_rows == 1080  # a tenth is apart
    assert found["x:lr"].train_rows == 1080
    assert found["x:few"].train_rows == 400
    for key in ("x:lr", "x:few"):
        recipe = found[key].recipe
        again = estimators.fit_recipe(recipe, problem(), data, tmp_path / f"again-{key[2:]}")
        held = found[key].held.probabilities
        np.testing.assert_allclose(again.scores(data.held), held, atol=1e-12)
    whole = estimators.on_all_rows(found["x:lr"].recipe)
    assert race.rows_of(whole, 1200) == 1200
    assert race.rows_of(estimators.on_all_rows(found["x:few"].recipe), 1200) == 400


def test_rows_apart_are_not_among_those_that_anything_is_fitted_on(small: None) -> None:
    y = rows(1200).y
    apart = np.flatnonzero(race.inner_folds(problem(), y))
    assert len(apart) == 120
    for most in (50, 300, 1080):
        chosen = estimators.some_rows(1200, most, problem().seed)
        assert len(set(chosen)) == most
        assert not set(chosen) & set(apart)


def test_a_fit_that_would_take_too_long_gets_fewer_rows(small: None, tmp_path: Path) -> None:
    one = Race("x", problem(), rows(1200), Run(tmp_path, 60))
    recipe = race.recipe_of(logistic())
    assert one._affordable(recipe, inner_s=0.1, allowed=30) == recipe
    (member,) = one._affordable(recipe, inner_s=10, allowed=30)["members"]
    assert member["rows"] == 300  # a probe took 10 s: 20 s are left for a fit and its predictions
    few = race.recipe_of(logistic(fit_rows=200))
    few = {"members": [few["members"][0] | {"rows": 200}]}
    assert one._affordable(few, inner_s=10, allowed=11) == few


@pytest.mark.parametrize("large", [False, True])
def test_a_second_attempt_tunes_what_the_first_has_delivered(
    request: pytest.FixtureRequest, tmp_path: Path, large: bool
) -> None:
    if large:
        request.getfixturevalue("small")
    poor = logistic(strength=1e-5, space={"C": Range(1e-3, 10, log=True)})
    other = logistic("other", strength=1e-4)
    done = ("x:baseline", "x:lr", "x:blend", "x:lr-tuned")
    found = raced(rows(1200), Run(tmp_path / "a", 60, done), poor, other)
    assert not set(done) & set(found)
    assert "x:other" in found
    tuned = found["x:lr-tuned-2"]
    assert tuned.name == "LR, tuned 2"
    assert tuned.recipe["members"][0]["estimator"]["params"]["C"] >= 1e-3
    # The first attempt's files are not here: blends are of what this one has fitted.
    for key, blend in found.items():
        if "blend" in key:
            assert set(blend.params["weights"]) <= {one.name for one in found.values()}


def test_what_was_left_over_runs_when_tuning_has_nothing_to_do(tmp_path: Path) -> None:
    zoo = [logistic(f"m{number}") for number in range(6)]
    run = Run(tmp_path / "a", 60)
    one = Race("x", problem(), rows(300), run)
    one.started -= 31  # more than half of the budget is gone
    found = {candidate.key for candidate in one.go(lambda: zoo)}
    assert {entry.id for entry in zoo} <= {key.partition(":")[2] for key in found}
