"""PyCaret 3, driven model by model.

From PyCaret come the models (its containers: estimators, defaults, search spaces). Order, folds,
preparation, metric and clock are FlowML's (race.py): PyCaret's own ``compare_models`` runs a fixed
order with gradient boosting near the end, looks at its budget only between models, and its
pipelines take 100 ms for one row. What leaves here needs no PyCaret any more, only scikit-learn
and, for some models, LightGBM.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import estimators, matrix
from .base import Candidate, Data, Engine, Predictor, Problem, Run

if TYPE_CHECKING:
    from .race import Entry
    from .search import Range

# PyCaret opens a log file in the working directory when it is imported.
os.environ.setdefault("PYCARET_CUSTOM_LOGGING_PATH", os.devnull)


class Trait(NamedTuple):
    """What FlowML adds to a PyCaret model. ``args`` overrides its defaults."""

    name: str
    family: str
    style: matrix.Style
    most_rows: int = 10_000_000  # with more training rows it is left out
    args: Mapping[str, Any] = {}
    space: Mapping[str, tuple[float, float]] = {}  # narrower spans than PyCaret's
    fixed: tuple[str, ...] = ()  # parameters that are not searched
    calibrate: bool = False  # it has no probabilities of its own
    tunable: bool = True
    fit_rows: int = 10_000_000  # of more training rows, so many are drawn


BOOSTING = {
    "learning_rate": (0.01, 0.3),
    "n_estimators": (50, 500),
    "num_leaves": (4, 127),
    "min_child_samples": (3, 100),
    "min_split_gain": (0.0, 0.3),
}
FOREST = {"n_estimators": (100, 300), "max_depth": (4, 30), "min_samples_leaf": (1, 10)}
TREE_BOOSTING = {"learning_rate": (0.01, 0.3), "n_estimators": (50, 300), "max_depth": (2, 8)}

# In the order in which they run: quick and strong first.
CLASSIFIERS: dict[str, Trait] = {
    "lr": Trait("Logistic regression", "linear", "scaled", space={"C": (0.01, 10)}),
    "lightgbm": Trait("LightGBM", "boosting", "native", args={"verbose": -1}, space=BOOSTING),
    "lda": Trait("Linear discriminant analysis", "linear", "scaled", most_rows=500_000),
    "rbfsvm": Trait(
        "SVM, radial kernel", "kernel", "scaled", most_rows=4_000, space={"C": (0.1, 50)}
    ),
    "knn": Trait("Nearest neighbours", "neighbours", "scaled", most_rows=50_000),
    "et": Trait("Extra trees", "forest", "trees", space=FOREST, fixed=("bootstrap",)),
    "rf": Trait("Random forest", "forest", "trees", space=FOREST, fixed=("bootstrap",)),
    "mlp": Trait("Neural network", "network", "scaled", fit_rows=100_000, tunable=False),
    "gbc": Trait("Gradient boosting", "boosting", "trees", fit_rows=30_000, space=TREE_BOOSTING),
    "nb": Trait("Naive Bayes", "bayes", "scaled"),
    "qda": Trait("Quadratic discriminant analysis", "bayes", "scaled", most_rows=200_000),
    "ridge": Trait("Ridge classifier", "linear", "scaled", calibrate=True, tunable=False),
    "svm": Trait("SVM, linear", "linear", "scaled", calibrate=True, tunable=False),
    "dt": Trait("Decision tree", "tree", "trees", args={"min_samples_leaf": 5}),
    "ada": Trait("AdaBoost", "boosting", "trees", fit_rows=50_000),
    "gpc": Trait("Gaussian process", "kernel", "scaled", most_rows=500, tunable=False),
}
REGRESSORS: dict[str, Trait] = {
    "ridge": Trait("Ridge regression", "linear", "scaled"),
    "lightgbm": Trait("LightGBM", "boosting", "native", args={"verbose": -1}, space=BOOSTING),
    "svm": Trait(
        "SVM, radial kernel",
        "kernel",
        "scaled",
        most_rows=6_000,
        space={"C": (0.1, 50), "epsilon": (0.005, 0.3)},
    ),
    "knn": Trait("Nearest neighbours", "neighbours", "scaled", most_rows=50_000),
    "et": Trait("Extra trees", "forest", "trees", space=FOREST, fixed=("bootstrap",)),
    "rf": Trait("Random forest", "forest", "trees", space=FOREST, fixed=("bootstrap",)),
    "mlp": Trait("Neural network", "network", "scaled", fit_rows=100_000, tunable=False),
    "gbr": Trait("Gradient boosting", "boosting", "trees", fit_rows=50_000, space=TREE_BOOSTING),
    "br": Trait("Bayesian ridge", "linear", "scaled", most_rows=200_000, tunable=False),
    "en": Trait(
        "Elastic net", "linear", "scaled", args={"alpha": 0.01}, space={"alpha": (1e-4, 1)}
    ),
    "huber": Trait("Huber regression", "linear", "scaled", most_rows=100_000, tunable=False),
    "kr": Trait("Kernel ridge", "kernel", "scaled", 2_000, {"kernel": "rbf"}, tunable=False),
    "lasso": Trait("Lasso", "linear", "scaled", args={"alpha": 0.003}, space={"alpha": (1e-4, 1)}),
    "dt": Trait("Decision tree", "tree", "trees", args={"min_samples_leaf": 5}),
    "ada": Trait("AdaBoost", "boosting", "trees", fit_rows=50_000),
    "lr": Trait("Linear regression", "linear", "scaled", tunable=False),
    "omp": Trait("Orthogonal matching pursuit", "linear", "scaled", tunable=False),
}
LIGHTGBM_OBJECTIVES = {"mae": "regression_l1", "median_ae": "regression_l1", "mape": "mape"}
FOREST_ROWS = 50_000
SAMPLE_ROWS = 100  # PyCaret is shown so few: only its list of models is wanted


class PyCaret(Engine):
    """The declaration; the work is in race.py and estimators.py."""

    name = "pycaret"
    title = "PyCaret"
    imports = (
        "pycaret.classification",
        "pycaret.regression",
        "lightgbm",
        "optuna",
        "sklearn.calibration",
        "sklearn.ensemble",
        "sklearn.gaussian_process",
        "sklearn.kernel_ridge",
        "sklearn.neural_network",
        "sklearn.svm",
        "pyarrow.csv",
        "pyarrow.parquet",
        "training.engines.race",
    )
    modules = ("matrix", "folding", "estimators", "pycaret")

    def train(self, problem: Problem, data: Data, run: Run) -> Iterator[Candidate]:
        from .race import Race

        yield from Race(self.name, problem, data, run).go(lambda: make_zoo(problem, data))

    def load(self, folder: Path) -> Predictor:
        return estimators.load(folder)

    def final(self, recipe: Mapping[str, Any]) -> Mapping[str, Any]:
        return estimators.on_all_rows(recipe)

    def fit(self, recipe: Mapping[str, Any], problem: Problem, data: Data, folder: Path) -> None:
        estimators.fit_recipe(recipe, problem, data, folder)


ENGINE = PyCaret()
PRELOAD = ENGINE.imports  # what the node's warm parent imports


def make_zoo(problem: Problem, data: Data) -> list[Entry]:
    """PyCaret's models for this problem, in our order, as recipes."""
    from .race import Entry

    containers = _containers(problem, data)
    zoo = []
    traits = CLASSIFIERS if problem.is_classification else REGRESSORS
    for model, trait in traits.items():
        container = containers.get(model)
        if container is None:  # a PyCaret that was installed without it
            continue
        args = dict(container.args) | dict(trait.args) | _fitting_args(model, problem, data)
        spec = estimators.describe(container.class_def(**args))
        if trait.calibrate:
            spec = {
                "class": "sklearn.calibration.CalibratedClassifierCV",
                "params": {"estimator": {"estimator": spec}, "cv": 3, "ensemble": False},
            }
        member: dict[str, Any] = {"style": trait.style, "estimator": spec}
        if not problem.is_classification:
            member["target"] = _target_scale(problem, data, trait.style)
        space = _space(container.tune_distribution, trait) if trait.tunable else {}
        zoo.append(
            Entry(model, trait.name, trait.family, member, space, trait.most_rows, trait.fit_rows)
        )
    return zoo


def _containers(problem: Problem, data: Data) -> Mapping[str, Any]:
    """PyCaret's model containers, from an experiment set up on a few rows."""
    import pandas as pd

    if problem.is_classification:
        from pycaret.classification import ClassificationExperiment as Experiment
        from pycaret.containers.models import classification as models
    else:
        from pycaret.containers.models import regression as models
        from pycaret.regression import RegressionExperiment as Experiment

    # Setup makes every container up to seven times, and spends nine tenths of its 0.5 s on
    # writing out the same long lists of parameter values.
    models.np_list_arange = functools.cache(models.np_list_arange)
    rows = np.arange(min(SAMPLE_ROWS, len(data.y)))
    if problem.is_classification:
        # It counts the classes that it sees to tell binary from multiclass.
        order = np.argsort(data.y, kind="stable")
        _, first = np.unique(data.y[order], return_index=True)
        firsts = order[np.minimum(first[:, None] + np.arange(2), len(order) - 1)].ravel()
        rows = np.unique(np.concatenate([rows, firsts]))
    y = data.y[rows]
    sample = pd.DataFrame({"x": np.arange(len(rows), dtype=np.float64), "y": y})
    experiment = Experiment()
    experiment.setup(
        sample,
        target="y",
        test_data=sample.iloc[:2],
        index=False,
        preprocess=False,
        data_split_shuffle=False,
        fold=2,
        session_id=problem.seed % 2**31,
        n_jobs=1,
        html=False,
        verbose=False,
        log_experiment=False,
        system_log=False,
        memory=False,
    )
    return dict(experiment._all_models_internal)


def _fitting_args(id: str, problem: Problem, data: Data) -> dict[str, Any]:
    """Defaults that depend on the size of the table and on the metric."""
    n = len(data.y)
    if id in ("rf", "et") and n > FOREST_ROWS:
        # Each tree sees so many rows; with all of a million it takes minutes and gigabytes.
        return {"bootstrap": True, "max_samples": FOREST_ROWS, "min_samples_leaf": 2}
    if id == "mlp":
        # What it keeps back to stop by, it picks by row: not where rows belong to groups.
        return {"max_iter": 200, "early_stopping": n >= 5_000 and data.groups is None}
    if id == "nb":
        return {"var_smoothing": 0.05}  # rare levels have next to no variance
    if id == "qda":
        return {"reg_param": 0.1}
    if id == "dt":
        return {"min_samples_leaf": max(5, n // 1_000)}
    if id == "knn":
        return {"n_neighbors": min(15, max(1, n // 10))}
    if id == "lightgbm":
        args: dict[str, Any] = {"min_child_samples": max(2, min(20, n // 20))}
        if problem.metric in LIGHTGBM_OBJECTIVES:
            args["objective"] = LIGHTGBM_OBJECTIVES[problem.metric]
        return args
    return {}


def _target_scale(problem: Problem, data: Data, style: matrix.Style) -> str:
    if problem.metric == "rmsle" and float(data.y.min()) > -1:
        return "log"
    return "standard" if style == "scaled" else "plain"


def _space(distributions: Mapping[str, Any], trait: Trait) -> dict[str, Range]:
    """PyCaret's search space as ranges, with our narrower spans where its own waste trials."""
    from .search import Range

    space: dict[str, Range] = {}
    for name, found in distributions.items():
        if name in trait.fixed:
            continue
        kind = type(found).__name__
        if kind == "CategoricalDistribution":
            space[name] = Range(values=tuple(found.values))
            continue
        if kind not in ("UniformDistribution", "IntUniformDistribution"):
            continue
        low, high = trait.space.get(name, (found.lower, found.upper))
        whole = kind == "IntUniformDistribution"
        log = bool(found.log) or (low > 0 and high / low >= 50)
        space[name] = Range(float(low), float(high), log and low > 0, whole)
    for name, (low, high) in trait.space.items():
        if name not in space:
            whole = float(low).is_integer() and float(high).is_integer() and name != "C"
            space[name] = Range(float(low), float(high), low > 0 and high / low >= 50, whole)
    return space
