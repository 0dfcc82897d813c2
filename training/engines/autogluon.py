"""AutoGluon's tabular models and its portfolio of hyperparameters, driven model by model.

From AutoGluon come the models (with their preparation, early stopping and obedience to a time
limit), the portfolio that its authors found by meta-learning, and the ways to combine: bags over
folds, and a greedy weighted ensemble. Order, folds and clock are FlowML's: ``TabularPredictor.fit``
gives nothing before its end and overran its budget by up to 10 s, and its bags stop their boosting
by the very fold that they then predict, which makes out-of-fold predictions look better than they
are. Stacking is left out: for little on two cores, one row would cost several times as much.

A model is a bag: its children learn from all folds but their own and their mean predicts. Where the
job has folds these are the bag's, and boosting stops by rows inside the others; elsewhere it stops
by the child's own fold, as AutoGluon has it. Of tables that are too large for that, there is one
child.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from . import estimators, folding, matrix
from .base import Candidate, Data, Engine, Predictor, Problem, Run
from .blend import Blend
from .frame import Frame
from .tables import Array

FORMAT = 1
TITLES = {
    "GBM": "LightGBM",
    "CAT": "CatBoost",
    "XGB": "XGBoost",
    "XT": "Extra trees",
    "RF": "Random forest",
}
CLASSES = {
    "GBM": "LGBModel",
    "CAT": "CatBoostModel",
    "XGB": "XGBoostModel",
    "XT": "XTModel",
    "RF": "RFModel",
}
FORESTS = ("XT", "RF")
ROUNDS = {
    "GBM": "num_boost_round",
    "CAT": "iterations",
    "XGB": "n_estimators",
    "XT": "n_estimators",
    "RF": "n_estimators",
}
CATBOOST_CHOOSES = ("max_ctr_complexity", "leaf_estimation_iterations")
FIRST = ("GBM", "GBM", "CAT", "XGB", "XT", "RF", "GBM")  # then the portfolio by its priorities
BAG = 5
BAG_ROWS = 20_000  # of more training rows, the bag has one child
BAG_SHARE = 0.12  # of the time left: what the first bag may take; else all have one child
FOREST_BAG_ROWS = 2_000  # a bag of forests takes up too much room
FOREST_TREES = 100
FOREST_LEAVES = 4_000
MEMBERS = 8  # of an ensemble, at most
RESERVE_S = 1.5  # for the ensemble, and for writing
METRICS: dict[str, Any] = {  # by which boosting stops, where AutoGluon has the job's
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "log_loss": "log_loss",
    "roc_auc": {"binary": "roc_auc", "multiclass": "log_loss"},
    "mcc": "mcc",
    "mae": "mean_absolute_error",
    "median_ae": "mean_absolute_error",
    "mape": "mean_absolute_percentage_error",
    "rmse": "root_mean_squared_error",
    "r2": "r2",
}


class AutoGluon(Engine):
    name = "autogluon"
    title = "AutoGluon"
    imports = (
        "autogluon.tabular.models",
        "autogluon.tabular.configs.hyperparameter_configs",
        "catboost",
        "lightgbm",
        "xgboost",
        "sklearn.ensemble",
        "sklearn.metrics",
        "pyarrow.csv",
        "pyarrow.parquet",
        "training.engines.race",
    )
    modules = ("matrix", "folding", "estimators", "blend", "autogluon")

    def train(self, problem: Problem, data: Data, run: Run) -> Iterator[Candidate]:
        yield from Portfolio(self.name, problem, data, run).go()

    def load(self, folder: Path) -> Predictor:
        told = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        return estimators.load(folder) if told["kind"] != "bags" else load(folder, told)

    def final(self, recipe: Mapping[str, Any]) -> Mapping[str, Any]:
        if "members" in recipe:
            return estimators.on_all_rows(recipe)
        return {"bags": [dict(bag) | {"whole": True} for bag in recipe["bags"]]}

    def fit(self, recipe: Mapping[str, Any], problem: Problem, data: Data, folder: Path) -> None:
        if "members" in recipe:
            estimators.fit_recipe(recipe, problem, data, folder)
            return
        encoding = matrix.learn(data.train, "native")
        fitted = [
            fit_bag(bag, problem, data, encoding, folder / f"bag-{number}")[0]
            for number, bag in enumerate(recipe["bags"])
        ]
        save(fitted, [bag["weight"] for bag in recipe["bags"]], encoding, problem, folder)


ENGINE = AutoGluon()


# One model: a bag


class Rows:
    """Encoded rows, as numbers and, for whoever asks, as the DataFrame of AutoGluon's models."""

    def __init__(self, encoding: matrix.Encoding, frame: Frame) -> None:
        self.encoding, self.numbers = encoding, encoding.matrix(frame)

    @cached_property
    def table(self) -> Any:
        """Numbers as they are, levels as categories."""
        import pandas as pd

        columns: dict[str, Any] = {}
        categorical = set(self.encoding.categorical)
        for place, step in enumerate(self.encoding.steps):  # "native" has one column for each
            name, values = f"f{place}", self.numbers[:, place]
            if place in categorical:
                codes = np.where(np.isnan(values), -1, values).astype(np.int32)
                known = [str(code) for code in range(len(step["levels"]))]
                columns[name] = pd.Categorical.from_codes(codes, categories=known)
            else:
                columns[name] = values
        return pd.DataFrame(columns)


@dataclass
class Child:
    """A fitted model of AutoGluon's. ``present`` are the classes that its columns stand for."""

    model: Any
    present: list[int]

    def scores(self, rows: Rows, n_classes: int) -> Array:
        """Rows x classes probabilities, or one value per row."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if type(self.model).__name__ == CLASSES["GBM"]:
                # LightGBM reads categories as their codes: a DataFrame would take 3 ms a row more.
                found = self.model.model.predict(rows.numbers, num_threads=1)
            else:
                found = self.model.predict_proba(rows.table)
        found = np.asarray(found, dtype=np.float64)
        if not n_classes:
            return found.reshape(-1)
        if len(self.present) == 2 and found.ndim == 1:
            found = np.column_stack([1.0 - found, found])
        out = np.zeros((len(found), n_classes))
        out[:, self.present] = np.clip(found, 0.0, 1.0)
        shares: Array = out / out.sum(axis=1, keepdims=True)
        return shares


@dataclass
class Bag:
    """Children whose mean predicts, and where their files lie."""

    recipe: Mapping[str, Any]
    folder: Path
    children: list[Child]

    def scores(self, rows: Rows, n_classes: int) -> Array:
        total: Any = 0.0
        for child in self.children:
            total = total + child.scores(rows, n_classes)
        mean: Array = total / len(self.children)
        return mean


def fit_bag(
    recipe: Mapping[str, Any],
    problem: Problem,
    data: Data,
    encoding: matrix.Encoding,
    folder: Path,
    until: float | None = None,
) -> tuple[Bag, Array]:
    """Fit the children of a recipe and save them.

    ``recipe`` is {"kind", "params", "folds", "alone", "rounds", "whole", "hurry"}. ``alone`` means
    the child of the first fold only. ``rounds`` are each child's where they are known from an
    earlier fit: then none stops by any rows, and with ``whole`` an only child learns from these,
    too. A first child that would make the bag take longer than ``hurry`` (seconds) stays alone.
    ``until`` (on ``time.monotonic``'s clock) is when the models themselves should end.
    Returns the bag, whose recipe has the rounds that it took, and what each child predicted of its
    own fold, nan where none has.
    """
    rows = Rows(encoding, data.train)
    own = data.folds is None
    folds = data.folds
    if folds is None:
        folds = folding.folds_for(problem, data.y, recipe["folds"], groups=data.groups)
    shape = (len(data.y), problem.n_classes) if problem.is_classification else (len(data.y),)
    scores = np.full(shape, np.nan)
    children: list[Child] = []
    known, taken = recipe.get("rounds") or [], []
    alone, began = bool(recipe.get("alone")), time.monotonic()
    count = 1 if alone else int(folds.max())
    for fold in range(1, count + 1):
        away = folds == fold
        rest, stop = folding.rows_for(
            problem, data, folds, fold, stops=recipe["kind"] not in FORESTS
        )
        if recipe.get("whole") and own and count == 1:
            rest, stop = np.arange(len(folds)), stop[:0]
        rounds = known[fold - 1] if len(known) == count else None
        limit = None if until is None else (until - time.monotonic()) / (count - fold + 1)
        child = fit_child(
            recipe, problem, rows.table, data.y, rest, stop, folder / f"child-{fold}", limit, rounds
        )
        children.append(child)
        took = child.model.params_trained.get(ROUNDS[recipe["kind"]])
        if recipe["kind"] == "GBM":  # trees, not rounds: some of these may have left none
            took = min(took, child.model.model.current_iteration())
        taken.append(rounds if rounds is not None else took)
        scores[away] = child.scores(Rows(encoding, data.train.take(away)), problem.n_classes)
        hurry = recipe.get("hurry")
        if fold == 1 and hurry and count * (time.monotonic() - began) > hurry:
            alone = True
            break
    kept = {name: recipe[name] for name in ("kind", "params", "folds", "weight") if name in recipe}
    if recipe["kind"] == "CAT":  # it chooses these by the rounds that it is given
        chosen = children[0].model.model.get_all_params()
        by_rounds = {name: chosen[name] for name in CATBOOST_CHOOSES if name in chosen}
        kept["params"] = by_rounds | dict(kept["params"])
    return Bag(kept | {"rounds": taken, "alone": alone}, folder, children), scores


def fit_child(
    recipe: Mapping[str, Any],
    problem: Problem,
    table: Any,
    y: Array,
    rest: Array,
    stop: Array,
    folder: Path,
    limit: float | None,
    rounds: int | None,
) -> Child:
    """One model on the rows ``rest``; its boosting stops by the rows ``stop``, if there are any.

    With ``rounds`` it stops after so many instead.
    """
    import pandas as pd
    from autogluon.tabular import models

    present: list[int] = []
    goal, stop_goal = y[rest], y[stop]
    if problem.is_classification:
        codes, goal = np.unique(goal, return_inverse=True)
        present = [int(code) for code in codes]
        if len(codes) < 2:
            raise ValueError("only one class is left among the rows to learn from")
        stop = stop[np.isin(stop_goal, codes)]
        stop_goal = np.searchsorted(codes, y[stop])
    kind = "regression" if not present else "binary" if len(present) == 2 else "multiclass"
    params = dict(recipe["params"])
    if rounds is not None:
        stop, limit, params[ROUNDS[recipe["kind"]]] = stop[:0], None, rounds
    given: dict[str, Any] = {}
    if len(stop):
        given = {"X_val": table.iloc[stop], "y_val": pd.Series(stop_goal, index=table.index[stop])}
    for _ in range(4):
        model = getattr(models, CLASSES[recipe["kind"]])(
            path=str(folder.parent),
            name=folder.name,
            problem_type=kind,
            eval_metric=metric_for(problem, kind),
            hyperparameters=params,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.random.seed(problem.seed % 2**32)
            model.fit(
                X=table.iloc[rest],
                y=pd.Series(goal, index=table.index[rest]),
                **given,
                num_classes=len(present) or None,
                time_limit=limit,
                num_cpus=problem.threads,
                num_gpus=0,
                verbosity=0,
            )
        if rounds is None or recipe["kind"] != "GBM":
            break
        # A round in which LightGBM finds no split leaves no tree, and what is known is how many
        # trees there are: with random splits on few rows some more rounds have to be tried.
        lacking = rounds - model.model.current_iteration()
        if lacking <= 0:
            model.model.best_iteration = rounds
            break
        params["num_boost_round"] += 2 * lacking + 5
    one_thread(model)
    model.save(path=str(folder), verbose=False)
    return Child(model, present)


def one_thread(model: Any) -> None:
    if hasattr(model.model, "n_jobs"):
        model.model.n_jobs = 1


def metric_for(problem: Problem, kind: str) -> str:
    found = METRICS.get(problem.metric)
    if isinstance(found, dict):
        found = found.get(kind)
    usual = "root_mean_squared_error" if kind == "regression" else "log_loss"
    return str(found or usual)


# On disk and in memory


def save(
    bags: Sequence[Bag],
    weights: Sequence[float],
    encoding: matrix.Encoding,
    problem: Problem,
    folder: Path,
) -> None:
    """Write ``model.json`` beside the bags' folders, which lie in ``folder`` already."""
    told = {
        "format": FORMAT,
        "kind": "bags",
        "n_classes": problem.n_classes,
        "encoding": matrix.as_json(encoding),
        "bags": [
            {
                "folder": bag.folder.name,
                "kind": bag.recipe["kind"],
                "weight": weight,
                "present": [child.present for child in bag.children],
            }
            for bag, weight in zip(bags, weights, strict=True)
        ],
    }
    (folder / "model.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def load(folder: Path, told: Mapping[str, Any]) -> Predictor:
    """Read what :func:`save` wrote. Unpickles: only for folders that are trusted."""
    from autogluon.tabular import models

    if told["format"] != FORMAT:
        raise ValueError(f"model format {told['format']} is not known here (known: {FORMAT})")
    bags = []
    for bag in told["bags"]:
        kind = getattr(models, CLASSES[bag["kind"]])
        children = []
        for number, present in enumerate(bag["present"], 1):
            path = folder / bag["folder"] / f"child-{number}"
            children.append(Child(kind.load(str(path), verbose=False), present))
        bags.append(Bag({}, folder / bag["folder"], children))
    weights = np.array([bag["weight"] for bag in told["bags"]])
    encoding = matrix.from_json(told["encoding"])
    return Blend(bags, weights, encoding, told["n_classes"], Rows)


def join(folders: Sequence[Path], weights: Sequence[float], folder: Path) -> None:
    """Blend saved bags into ``folder`` without loading any."""
    told: dict[str, Any] = {}
    bags = []
    for number, (source, weight) in enumerate(zip(folders, weights, strict=True)):
        told = json.loads((source / "model.json").read_text(encoding="utf-8"))
        for bag in told["bags"]:
            bags.append(bag | {"folder": f"bag-{number}", "weight": weight})
            for file in (source / bag["folder"]).rglob("*"):
                if file.is_file():
                    to = folder / f"bag-{number}" / file.relative_to(source / bag["folder"])
                    to.parent.mkdir(parents=True, exist_ok=True)
                    os.link(file, to)
    text = json.dumps(told | {"bags": bags}, indent=1) + "\n"
    (folder / "model.json").write_text(text, encoding="utf-8")


# The race


@dataclass
class Known:
    """A candidate of this attempt with its scores inside the training rows."""

    candidate: Candidate
    scores: Array


def portfolio(problem: Problem) -> list[tuple[str, dict[str, Any]]]:
    """AutoGluon's models and hyperparameters for this task, the best on average first."""
    from autogluon.tabular.configs.hyperparameter_configs import get_hyperparameter_config

    known: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for kind, entries in get_hyperparameter_config("zeroshot").items():
        for entry in entries if isinstance(entries, list) else [entries]:
            told = entry.get("ag_args", {})
            if kind in CLASSES and problem.task in told.get("problem_types", [problem.task]):
                params = {key: value for key, value in entry.items() if key != "ag_args"}
                known.setdefault(kind, []).append((told.get("priority", 0), params))
    found = [(kind, known[kind].pop(0)[1]) for kind in FIRST if known.get(kind)]
    rest = [(priority, kind, p) for kind, entries in known.items() for priority, p in entries]
    rest.sort(key=lambda entry: -entry[0])
    return [*found, *((kind, params) for _, kind, params in rest)]


class Portfolio:
    """State of one attempt: candidates by the portfolio's order, and ensembles of them."""

    def __init__(self, prefix: str, problem: Problem, data: Data, run: Run) -> None:
        self.prefix, self.problem, self.data, self.run = prefix, problem, data, run
        self.rows = len(data.y)
        self.known: list[Known] = []
        self.reserve_s = min(RESERVE_S, 0.15 * run.remaining_s())
        self.folds = BAG if self.rows <= BAG_ROWS else 1
        self.hurry = self._left() * BAG_SHARE
        self._blended: set[str] = set()

    def go(self) -> Iterator[Candidate]:
        from . import apart

        found = False
        numbers: dict[str, int] = {}
        try:
            for place, (kind, params) in enumerate(portfolio(self.problem)):
                numbers[kind] = number = numbers.get(kind, 0) + 1
                if self.run.pulse() or self._left() < self._least():
                    break
                for candidate in self._attempt(kind, number, params, 0.6 if place < 2 else 0.35):
                    found = True
                    yield candidate
                if place in (3, len(FIRST) - 1):
                    yield from self._ensemble()
        except apart.Stopped:
            pass
        yield from self._ensemble()
        if not found and not self.run.done:
            from .race import Race

            yield from Race(self.prefix, self.problem, self.data, self.run).baseline()

    def _attempt(
        self, kind: str, number: int, params: Mapping[str, Any], share: float
    ) -> Iterator[Candidate]:
        from . import apart

        key = f"{self.prefix}:{kind.lower()}-{number}"
        if key in self.run.done:
            return
        name = TITLES[kind] + (f" {number}" if number > 1 else "")
        self.run.working_on(name)
        began, delivered = time.monotonic(), False
        allowed = max(share * self._left(), min(self._left(), 5.0))
        recipe = self._recipe(kind, params)
        try:
            for message in apart.stream(
                lambda: self._work(key, recipe, began + 0.85 * allowed),
                deadline=began + allowed,
                pulse=self.run.pulse,
            ):
                if message["folds"] == 1 and self.data.folds is None:
                    self.folds = 1  # the first one was too slow for a bag: so would the others be
                delivered = True
                yield self._candidate(key, name, kind, params, message)
        except (apart.Overrun, apart.Failed) as error:
            if delivered:
                return
            told = f"could not be fitted: {error}"
            if isinstance(error, apart.Overrun) or "TimeLimitExceeded" in str(error):
                told = (
                    f"was stopped after {time.monotonic() - began:.0f} s: it did not finish within "
                    "its share of the time budget."
                )
            self.run.notice(f"{name} {told}", model=key)

    def _recipe(self, kind: str, params: Mapping[str, Any]) -> dict[str, Any]:
        recipe: dict[str, Any] = {"kind": kind, "params": dict(params), "folds": self.folds}
        if kind in FORESTS:
            recipe["params"]["n_estimators"] = FOREST_TREES
            if self.rows > BAG_ROWS:
                recipe["params"]["max_leaf_nodes"] = FOREST_LEAVES
            if self.rows > FOREST_BAG_ROWS:
                recipe["folds"] = 1
        return recipe

    def _work(self, key: str, recipe: dict[str, Any], until: float) -> Iterator[dict[str, Any]]:
        """In the fork: fit, predict, save, and tell."""
        problem, data = self.problem, self.data
        folder = self.run.folder / key.replace(":", "-")
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        encoding = matrix.learn(data.train, "native")
        hurried = recipe | ({"hurry": self.hurry} if data.folds is None else {})
        bag, scores = fit_bag(hurried, problem, data, encoding, folder / "bag-0", until)
        save([bag], [1.0], encoding, problem, folder)
        fit_s = time.monotonic() - began
        model = Blend([bag], np.ones(1), encoding, problem.n_classes, Rows)
        held = estimators.predictions_of(model.scores(data.held), problem)
        out_of_fold = None
        if data.folds is not None:
            out_of_fold = estimators.predictions_of(scores, problem)
        row = data.train.take(np.array([0]))
        times = []
        for _ in range(3):
            one = time.perf_counter()
            model.scores(row)
            times.append(time.perf_counter() - one)
        yield {
            "folder": folder,
            "recipe": {"bags": [dict(bag.recipe) | {"weight": 1.0}]},
            "folds": len(bag.children),
            "fit_s": fit_s,
            "held": held,
            "out_of_fold": out_of_fold,
            "scores": scores,
            "predict_ms_row": round(1000 * float(np.median(times)), 3),
        }

    def _candidate(
        self,
        key: str,
        name: str,
        kind: str,
        params: Mapping[str, Any],
        message: Mapping[str, Any],
    ) -> Candidate:
        children, recipe = message["folds"], message["recipe"]
        candidate = Candidate(
            key=key,
            name=name + (f", bag of {children}" if children > 1 else ""),
            family="forest" if kind in FORESTS else "boosting",
            folder=message["folder"],
            recipe=recipe,
            held=message["held"],
            out_of_fold=message["out_of_fold"],
            params=dict(params) | {"bag_of": children},
            fit_s=message["fit_s"],
            predict_ms_row=message["predict_ms_row"],
            train_rows=self.rows,
            packages=packages_of(recipe),
        )
        self.known.append(Known(candidate, message["scores"]))
        return candidate

    def _ensemble(self) -> Iterator[Candidate]:
        """Weigh what is known by greedy selection: needs no fit, only what was predicted."""
        from . import scoring

        usable = [one for one in self.known if np.isfinite(one.scores).any()]
        if len(usable) < 2:
            return
        # Of bags of one, and of forests among them, only the rows that all have predicted count.
        seen = np.all([np.isfinite(one.scores).reshape(self.rows, -1)[:, 0] for one in usable], 0)
        if not seen.any():
            return
        y = self.data.y[seen]
        usable.sort(key=lambda one: -scoring.score(self.problem, y, one.scores[seen]))
        usable = usable[:MEMBERS]
        began = time.monotonic()
        number = len(self._blended) + 1
        ending = f"-{number}" if number > 1 else ""
        while f"{self.prefix}:ensemble{ending}" in self.run.done:
            number += 1
            ending = f"-{number}"
        weights, _ = scoring.blend_weights(self.problem, y, [one.scores[seen] for one in usable])
        used = [(one.candidate, w) for one, w in zip(usable, weights, strict=True) if w > 0]
        mark = repr([(candidate.key, w) for candidate, w in used])
        if len(used) < 2 or mark in self._blended:
            return
        self._blended.add(mark)
        folder = self.run.folder / f"{self.prefix}-ensemble{ending}"
        candidates, shares = [c for c, _ in used], [w for _, w in used]
        held, out_of_fold = scoring.blended(
            self.problem, self.data, [one.candidate for one in usable], weights
        )
        join([c.folder for c in candidates], shares, folder)
        recipe = {
            "bags": [dict(c.recipe["bags"][0]) | {"weight": w} for c, w in used],
        }
        yield Candidate(
            key=f"{self.prefix}:ensemble{ending}",
            name="Weighted ensemble" + ending.replace("-", " "),
            family="blend",
            folder=folder,
            recipe=recipe,
            held=held,
            out_of_fold=out_of_fold,
            params={"weights": {c.name: round(w, 4) for c, w in used}},
            fit_s=time.monotonic() - began,
            predict_ms_row=round(sum(c.predict_ms_row for c in candidates), 3),
            train_rows=self.rows,
            packages=packages_of(recipe),
        )

    def _least(self) -> float:
        """Seconds below which nothing more is begun."""
        return max(0.3, min((one.candidate.fit_s for one in self.known), default=0.0))

    def _left(self) -> float:
        return max(0.0, self.run.remaining_s() - self.reserve_s)


def packages_of(recipe: Mapping[str, Any]) -> list[str]:
    """The distributions that loading this model imports."""
    needs = {"GBM": "lightgbm", "CAT": "catboost", "XGB": "xgboost-cpu"}
    found = {needs[bag["kind"]] for bag in recipe["bags"] if bag["kind"] in needs}
    return sorted({"autogluon.tabular", "numpy", "pyarrow", *found})
