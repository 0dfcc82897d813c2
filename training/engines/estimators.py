"""Models made of scikit-learn's kind of estimators: fitted, saved, loaded, blended.

A recipe is plain JSON: {"members": [member, ...]}, a member being {"name", "style", "estimator":
{"class", "params"}, "target": "plain" | "standard" | "log", "weight", "rows": the most to learn
from, "apart": how many not to learn from}. A model is the weighted
mean of its members' probabilities or values (one member: itself). On disk it is ``model.json``
(recipe, encodings, target scaling: all readable) beside one joblib file per member, which holds a
library's estimator and no class of ours. A copy of this file travels in every artifact whose
engine uses it.
"""

from __future__ import annotations

import importlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from . import folding, matrix
from .base import Data, Predictions, Predictor, Problem
from .frame import Frame
from .tables import Array

FORMAT = 1
MANY_ROWS = 5_000  # from so many rows, predicting with several threads pays

Recipe = Mapping[str, Any]


class NotFinite(ValueError):
    """A fitted model predicted something that is not a number."""


# Estimators as plain JSON


def describe(estimator: Any) -> dict[str, Any]:
    """{"class", "params"} from which :func:`build` makes an equal, unfitted estimator.

    Only parameters that differ from the class's own defaults are kept; ``n_jobs`` never is.
    """
    kind = type(estimator)
    params = estimator.get_params(deep=False)
    defaults = kind().get_params(deep=False) if _has_defaults(kind) else {}
    kept = {
        name: plain(value)
        for name, value in sorted(params.items())
        if name != "n_jobs" and not (name in defaults and _same(value, defaults[name]))
    }
    return {"class": _public_name(kind), "params": kept}


def build(spec: Mapping[str, Any]) -> Any:
    """The unfitted estimator of a description."""
    module, _, name = spec["class"].rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    return kind(**{key: _unplain(value) for key, value in spec["params"].items()})


def _has_defaults(kind: type) -> bool:
    try:
        kind()
    except TypeError:
        return False
    return True


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and bool(a == b)


def _public_name(kind: type) -> str:
    """``sklearn.linear_model.Ridge`` rather than ``sklearn.linear_model._ridge.Ridge``."""
    parts = kind.__module__.split(".")
    for end in range(1, len(parts) + 1):
        module = ".".join(parts[:end])
        if getattr(importlib.import_module(module), kind.__name__, None) is kind:
            return f"{module}.{kind.__name__}"
    raise ValueError(f"{kind} cannot be imported by name")


def plain(value: Any) -> Any:
    """A parameter's value as JSON; ``build`` turns it back. Raises ValueError for other kinds."""
    if hasattr(value, "get_params"):
        return {"estimator": describe(value)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[plain(k), plain(v)] for k, v in value.items()]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"a parameter of type {type(value).__name__} is not plain")


def _unplain(value: Any) -> Any:
    if isinstance(value, dict):
        if "estimator" in value:
            return build(value["estimator"])
        return {_unplain(k): _unplain(v) for k, v in value["dict"]}
    if isinstance(value, list):
        return tuple(_unplain(item) for item in value)
    return value


def set_threads(estimator: Any, threads: int) -> None:
    """Let the estimator, and those inside it, use so many threads."""
    names = [n for n in estimator.get_params(deep=True) if n == "n_jobs" or n.endswith("__n_jobs")]
    estimator.set_params(**dict.fromkeys(names, threads))
    for inner in _fitted_inside(estimator):
        if "n_jobs" in inner.get_params(deep=False):
            inner.set_params(n_jobs=threads)


def _fitted_inside(estimator: Any) -> list[Any]:
    return [inner.estimator for inner in getattr(estimator, "calibrated_classifiers_", ())]


def packages_of(recipe: Recipe) -> list[str]:
    """The distributions that loading this model imports."""
    found = {"numpy", "scikit-learn", "joblib", "pyarrow"}
    text = json.dumps(recipe)
    if '"class": "lightgbm.' in text:
        found.add("lightgbm")
    if '"class": "xgboost.' in text:
        found.update(metadata.packages_distributions()["xgboost"])  # xgboost or xgboost-cpu
    return sorted(found)


# Fitting


@dataclass
class Member:
    """One fitted estimator with what surrounds it."""

    recipe: Mapping[str, Any]
    encoding: matrix.Encoding
    estimator: Any
    present: list[int]  # classification: the class code of each of the estimator's columns
    scale: Mapping[str, Any]  # regression: {"log", "mean", "scale"} between target and estimator

    def predict(self, table: Array, n_classes: int) -> Array:
        """Rows x classes probabilities, or one value per row, for an encoded table."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not n_classes:
                raw = np.asarray(self.estimator.predict(table), dtype=np.float64).reshape(-1)
                return unscale(raw, self.scale)
            found = np.asarray(self.estimator.predict_proba(table), dtype=np.float64)
        out = np.zeros((len(table), n_classes))
        out[:, self.present] = found
        np.clip(out, 0.0, 1.0, out=out)
        total = out.sum(axis=1, keepdims=True)
        # A naive Bayes whose every likelihood underflowed knows nothing: say so, evenly.
        return np.where(total > 0, out / np.where(total > 0, total, 1.0), 1.0 / n_classes)


def fit_member(
    recipe: Mapping[str, Any],
    problem: Problem,
    train: Frame,
    y: Array,
    groups: Array | None = None,
) -> Member:
    """Fit one member on ``train``, or on as many of its rows as the recipe allows.

    ``groups`` of the rows stay together where an estimator is calibrated on rows kept back.
    """
    most = min(len(y) - recipe.get("apart", 0), recipe.get("rows", len(y)))
    if most < len(y):
        chosen = some_rows(len(y), most, problem.seed, groups)
        train, y = train.take(chosen), y[chosen]
        groups = None if groups is None else groups[chosen]
    encoding = matrix.learn(train, recipe["style"])
    table = encoding.matrix(train)
    estimator = build(recipe["estimator"])
    set_threads(estimator, problem.threads)
    drawn = estimator.get_params(deep=False).get("max_samples")
    if isinstance(drawn, int) and drawn > len(y):  # per tree; scikit-learn refuses more than all
        estimator.set_params(max_samples=len(y))
    extra: dict[str, Any] = {}
    if recipe["style"] == "native" and encoding.categorical:
        extra = _tell_categories(estimator, encoding)
    present: list[int] = []
    scale: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if problem.is_classification:
            codes, goal = np.unique(y, return_inverse=True)
            present = [int(code) for code in codes]
            if len(codes) < 2:
                raise ValueError("only one class is left among the rows to learn from")
        else:
            scale = learn_scale(y, recipe.get("target", "plain"))
            goal = rescale(y, scale)
        # Some estimators draw from the global generator whatever their random_state.
        np.random.seed(problem.seed % 2**32)
        calibrated = recipe["estimator"]["params"].get("cv")
        if groups is not None and calibrated and len(np.unique(groups)) > 1:
            from sklearn.model_selection import PredefinedSplit

            folds = folding.folds_for(problem, y, calibrated, groups=groups)
            estimator.set_params(cv=PredefinedSplit(folds - 1))
        estimator.fit(table, goal, **extra)
        if calibrated:
            estimator.set_params(cv=calibrated)
    return Member(recipe, encoding, estimator, present, scale)


def _tell_categories(estimator: Any, encoding: matrix.Encoding) -> dict[str, Any]:
    """Say which columns are categories: what goes into ``fit``, as the library wants it."""
    params = estimator.get_params(deep=False)
    if "categorical_features" not in params:  # LightGBM
        return {"categorical_feature": encoding.categorical}
    # scikit-learn has room for as many levels as bins. Levels are ordered by how common they are,
    # so that of many more their numbers tell something, too.
    steps, most = encoding.steps, params["max_bins"]
    few = [place for place in encoding.categorical if len(steps[place]["levels"]) <= most]
    estimator.set_params(categorical_features=few or None)
    return {}


def some_rows(rows: int, most: int, seed: int, groups: Array | None = None) -> Array:
    """``most`` of so many rows; with the same seed, they are among those of a larger ``most``.

    One group after the other is taken, if there are ``groups``.
    """
    random = np.random.default_rng(seed)
    order = random.permutation(rows) if groups is None else folding.group_order(groups, random)
    return np.sort(order[:most])


def on_all_rows(recipe: Recipe) -> Recipe:
    """The recipe without the rows that it keeps apart for comparisons inside a race."""
    kept = [{k: v for k, v in member.items() if k != "apart"} for member in recipe["members"]]
    return {**recipe, "members": kept}


def learn_scale(y: Array, kind: str) -> dict[str, Any]:
    """How the target is seen by the estimator: plain, standardised, or the logarithm of 1 + y."""
    if kind == "plain":
        return {}
    seen = np.log1p(y) if kind == "log" else y
    spread = float(seen.std())
    return {"log": kind == "log", "mean": float(seen.mean()), "scale": spread or 1.0}


def rescale(y: Array, scale: Mapping[str, Any]) -> Array:
    if not scale:
        return y
    seen: Array = np.log1p(y) if scale["log"] else y
    scaled: Array = (seen - scale["mean"]) / scale["scale"]
    return scaled


def unscale(values: Array, scale: Mapping[str, Any]) -> Array:
    if not scale:
        return values
    seen: Array = values * scale["scale"] + scale["mean"]
    # e^60 is past any target; without the limit one wild row would become infinite.
    return np.expm1(np.minimum(seen, 60.0)) if scale["log"] else seen


def predictions_of(scores: Array, problem: Problem) -> Predictions:
    """Predictions from probabilities or values. Raises NotFinite."""
    if not np.isfinite(scores).all():
        raise NotFinite("it predicted values that are not numbers")
    if problem.is_classification:
        return Predictions(scores.argmax(axis=1), scores)
    return Predictions(scores)


def fit_recipe(recipe: Recipe, problem: Problem, data: Data, folder: Path) -> EstimatorModel:
    """Fit every member on all training rows, save the model, and give it back loaded."""
    members = [
        fit_member(member, problem, data.train, data.y, data.groups) for member in recipe["members"]
    ]
    model = EstimatorModel(members, problem.n_classes)
    model.save(folder)
    return model


# The model, on disk and in memory


class EstimatorModel(Predictor):
    """The weighted mean of fitted members. ``n_classes`` is 0 for regression."""

    def __init__(self, members: Sequence[Member], n_classes: int) -> None:
        self.members = list(members)
        self.n_classes = n_classes
        weights = np.array([float(m.recipe.get("weight", 1.0)) for m in self.members])
        self.weights = weights / weights.sum()
        self._threads = 1  # what the estimators are set to now
        for member in self.members:
            set_threads(member.estimator, 1)
        # Members that encode alike share one matrix.
        shared: dict[str, matrix.Encoding] = {}
        for member in self.members:
            text = json.dumps(matrix.as_json(member.encoding))
            member.encoding = shared.setdefault(text, member.encoding)

    def scores(self, frame: Frame) -> Array:
        """Rows x classes probabilities, or one value per row."""
        if frame.rows == 0:  # nothing held out: estimators refuse an empty table
            return np.empty((0, self.n_classes) if self.n_classes else (0,))
        self._use_threads(self.threads if frame.rows >= MANY_ROWS else 1)
        tables: dict[int, Array] = {}
        total: Array | None = None
        for member, weight in zip(self.members, self.weights, strict=True):
            table = tables.get(id(member.encoding))
            if table is None:
                table = tables[id(member.encoding)] = member.encoding.matrix(frame)
            part = weight * member.predict(table, self.n_classes)
            total = part if total is None else total + part
        assert total is not None
        return total

    def _use_threads(self, threads: int) -> None:
        if threads != self._threads:
            for member in self.members:
                set_threads(member.estimator, threads)
            self._threads = threads

    def predict(self, frame: Frame) -> Predictions:
        scores = self.scores(frame)
        if self.n_classes:
            return Predictions(scores.argmax(axis=1), scores)
        return Predictions(scores)

    def save(self, folder: Path) -> None:
        """Write ``model.json`` and a joblib file per member into ``folder`` (made if need be)."""
        import joblib

        folder.mkdir(parents=True, exist_ok=True)
        told = []
        for number, member in enumerate(self.members):
            name = f"member-{number}.joblib"
            set_threads(member.estimator, 1)
            joblib.dump(member.estimator, folder / name, protocol=5)
            told.append(
                {
                    "recipe": dict(member.recipe),
                    "file": name,
                    "encoding": matrix.as_json(member.encoding),
                    "present": member.present,
                    "scale": dict(member.scale),
                }
            )
        _write_told(folder, told, self.n_classes)


def _write_told(folder: Path, told: Sequence[Mapping[str, Any]], n_classes: int) -> None:
    text = json.dumps({"format": FORMAT, "n_classes": n_classes, "members": list(told)}, indent=1)
    (folder / "model.json").write_text(text + "\n", encoding="utf-8")


def load(folder: Path) -> EstimatorModel:
    """Read what :meth:`EstimatorModel.save` wrote. Unpickles: only for folders that are trusted."""
    import joblib

    told = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    if told["format"] != FORMAT:
        raise ValueError(f"model format {told['format']} is not known here (known: {FORMAT})")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        members = [
            Member(
                entry["recipe"],
                matrix.from_json(entry["encoding"]),
                joblib.load(folder / entry["file"]),
                entry["present"],
                entry["scale"],
            )
            for entry in told["members"]
        ]
    return EstimatorModel(members, told["n_classes"])


def join(folders: Sequence[Path], weights: Sequence[float], folder: Path) -> Recipe:
    """Blend saved models into ``folder`` without fitting or loading any. Returns its recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    told: list[dict[str, Any]] = []
    n_classes = 0
    for source, weight in zip(folders, weights, strict=True):
        model = json.loads((source / "model.json").read_text(encoding="utf-8"))
        n_classes = model["n_classes"]
        inner = sum(float(entry["recipe"].get("weight", 1.0)) for entry in model["members"])
        for entry in model["members"]:
            name = f"member-{len(told)}.joblib"
            os.link(source / entry["file"], folder / name)
            share = weight * float(entry["recipe"].get("weight", 1.0)) / inner
            told.append(entry | {"file": name, "recipe": entry["recipe"] | {"weight": share}})
    _write_told(folder, told, n_classes)
    return {"members": [entry["recipe"] for entry in told]}
