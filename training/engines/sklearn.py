"""scikit-learn: its estimators by name (named.py), raced, tuned and blended by race.py.

One adapter for every locked version: the engines ``sklearn``, ``sklearn-1.4`` and so on differ in
their virtualenv alone.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import estimators, named
from .base import Candidate, Data, Engine, Predictor, Problem, Run

if TYPE_CHECKING:
    from .race import Entry
    from .search import Range

FOREST_ROWS = 50_000
# With more training rows than this a model is left out of a race, or learns from so many of them.
MOST_ROWS = {"svm": 5_000, "knn": 50_000}
# What races first; the others follow as named.py has them. Of a small table, trees on histograms
# take most of their time for each tree alone, and are late.
SMALL = 5_000
FIRST = {
    True: ("logistic_regression", "svm", "extra_trees", "hist_gradient_boosting"),
    False: ("logistic_regression", "hist_gradient_boosting", "extra_trees"),
}
FIT_ROWS = {"mlp": 100_000, "gradient_boosting": 30_000, "ada_boost": 50_000}


class SciKitLearn(Engine):
    """The declaration; the work is in race.py and estimators.py."""

    name = "sklearn"
    title = "scikit-learn"
    imports = (
        "optuna",
        "sklearn.calibration",
        "sklearn.discriminant_analysis",
        "sklearn.dummy",
        "sklearn.ensemble",
        "sklearn.linear_model",
        "sklearn.naive_bayes",
        "sklearn.neighbors",
        "sklearn.neural_network",
        "sklearn.svm",
        "sklearn.tree",
        "joblib",
        "pyarrow.csv",
        "pyarrow.parquet",
        "training.engines.race",
    )
    modules = ("matrix", "folding", "estimators", "named", "sklearn")

    def train(self, problem: Problem, data: Data, run: Run) -> Iterator[Candidate]:
        from .race import Race

        race = Race(self.name, problem, data, run)
        if problem.model:
            model = named.models_of(self.name)[problem.model]
            chosen = named.cleaned(self.name, model.name, problem.task, problem.hyperparameters)
            yield from race.one(entry(model, problem, chosen))
        else:
            yield from race.go(lambda: make_zoo(self.name, problem, data))

    def load(self, folder: Path) -> Predictor:
        return estimators.load(folder)

    def final(self, recipe: Mapping[str, Any]) -> Mapping[str, Any]:
        return estimators.on_all_rows(recipe)

    def fit(self, recipe: Mapping[str, Any], problem: Problem, data: Data, folder: Path) -> None:
        estimators.fit_recipe(recipe, problem, data, folder)


ENGINE = SciKitLearn()


def make_zoo(engine: str, problem: Problem, data: Data) -> list[Entry]:
    """All models that do this task, with what is better here than the library's defaults."""
    rows = len(data.y)
    first = FIRST[rows < SMALL]
    if not problem.is_classification:
        first = ("ridge", *first[1:])
    models = named.models_of(engine)
    order = [*first, *(name for name in models if name not in first)]
    return [
        entry(
            model,
            problem,
            _fitting(model.name, rows) | _by_groups(model.name, data),
            space=_space(model, problem.task, rows),
            most_rows=MOST_ROWS.get(model.name, 10_000_000),
            fit_rows=FIT_ROWS.get(model.name, 10_000_000),
        )
        for model in map(models.__getitem__, order)
        if model.does(problem.task)
    ]


def entry(model: named.Model, problem: Problem, params: Mapping[str, Any], **more: Any) -> Entry:
    """The race's entry for a model with these parameters, the library's defaults otherwise."""
    from .race import Entry

    name = model.class_for(problem.task)
    assert name is not None
    module, _, kind = name.rpartition(".")
    takes = inspect.signature(getattr(importlib.import_module(module), kind)).parameters
    chosen = {key: estimators.plain(value) for key, value in params.items()}
    if "random_state" in takes:
        chosen["random_state"] = problem.seed % 2**31
    spec: dict[str, Any] = {"class": name, "params": chosen}
    if model.calibrate and problem.is_classification:
        spec = {
            "class": "sklearn.calibration.CalibratedClassifierCV",
            "params": {"estimator": {"estimator": spec}, "cv": 3, "ensemble": False},
        }
    member: dict[str, Any] = {"style": model.style, "estimator": spec}
    if not problem.is_classification:
        member["target"] = "standard" if model.style == "scaled" else "plain"
        if problem.metric == "rmsle":
            member["target"] = "log"
    return Entry(model.name, model.title, model.family, member, **more)


def _fitting(model: str, rows: int) -> dict[str, Any]:
    """Parameters that depend on the size of the table."""
    if model in ("random_forest", "extra_trees") and rows > FOREST_ROWS:
        # Each tree sees so many rows; with all of a million it takes minutes and gigabytes.
        return {"bootstrap": True, "max_samples": FOREST_ROWS, "min_samples_leaf": 2}
    if model == "mlp":
        return {"early_stopping": rows >= 5_000}
    if model == "hist_gradient_boosting":
        return {"min_samples_leaf": max(2, min(20, rows // 20)), "early_stopping": False}
    usual: dict[str, dict[str, Any]] = {
        "knn": {"n_neighbors": min(15, max(1, rows // 10))},
        "decision_tree": {"min_samples_leaf": max(5, rows // 1_000)},
        "naive_bayes": {"var_smoothing": 0.05},  # rare levels have next to no variance
        "logistic_regression": {"max_iter": 1_000},
        "lasso": {"alpha": 0.003},
        "elastic_net": {"alpha": 0.01},
    }
    return usual.get(model, {})


def _by_groups(model: str, data: Data) -> dict[str, Any]:
    """What a network keeps back to stop early, scikit-learn picks by row: not of groups."""
    return {"early_stopping": False} if model == "mlp" and data.groups is not None else {}


def _space(model: named.Model, task: str, rows: int) -> dict[str, Range]:
    from .search import Range

    found = {}
    for name, parameter in model.parameters_for(task).items():
        if parameter.search is None:
            continue
        if parameter.kind == "choice":
            found[name] = Range(values=parameter.search)
        else:
            low, high = parameter.search
            if name == "n_neighbors":
                high = min(high, max(low, rows // 4))
            found[name] = Range(low, high, parameter.log, parameter.kind == "int")
    return found
