"""FLAML: its search chooses learners and their parameters, race.py fits, blends and keeps time.

FLAML's ``AutoML.fit`` looks for parameters from cheap ones on (Wang et al., "FLAML: a fast and
lightweight AutoML library", MLSys 2021) and shows nothing before its end. So it searches in
stretches, each of which goes on where the last one stopped; after each, the best of what was found
becomes candidates. What leaves here needs no FLAML any more, only the libraries that it chose from.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import estimators, matrix
from .base import Candidate, Data, Engine, Predictor, Problem, Run

if TYPE_CHECKING:
    from .race import Entry, Race

STRETCHES = (0.12, 0.3, 0.4, 0.5, 0.5)  # of the time left at the time
CANDIDATES = 2  # of a stretch, at most
LOG = "flaml.log"
METRICS = {"accuracy", "log_loss", "f1", "mae", "mape", "rmse", "r2"}  # of the same name in FLAML


class Learner(NamedTuple):
    """One of FLAML's learners: its name for people, and its class in ``flaml.automl.model``."""

    title: str
    family: str
    kind: str


LEARNERS = {
    "lgbm": Learner("LightGBM", "boosting", "LGBMEstimator"),
    "xgboost": Learner("XGBoost by leaves", "boosting", "XGBoostSklearnEstimator"),
    "xgb_limitdepth": Learner("XGBoost by depth", "boosting", "XGBoostLimitDepthEstimator"),
    "extra_tree": Learner("Extra trees", "forest", "ExtraTreesEstimator"),
    "rf": Learner("Random forest", "forest", "RandomForestEstimator"),
}


class Flaml(Engine):
    """The declaration, and the order of stretches and candidates."""

    name = "flaml"
    title = "FLAML"
    imports = (
        "flaml",
        "flaml.automl.model",
        "lightgbm",
        "xgboost",
        "sklearn.ensemble",
        "sklearn.metrics",
        "sklearn.model_selection",
        "pyarrow.csv",
        "pyarrow.parquet",
        "training.engines.race",
    )
    modules = ("matrix", "folding", "estimators", "flaml")

    def train(self, problem: Problem, data: Data, run: Run) -> Iterator[Candidate]:
        from . import apart
        from .race import OutOfTime, Race

        race = Race(self.name, problem, data, run)
        search = Search(problem, data, run)
        found = False
        try:
            for number, share in enumerate(STRETCHES):
                if race.left() < 0.5:
                    break
                search.go_on(max(0.5, share * race.left()))
                for learner, config in search.best_new(CANDIDATES):
                    entry = entry_of(race, learner, config)
                    for candidate in race.attempt(entry, share=0.4):
                        found = True
                        yield candidate
                if number == 1:
                    yield from race.blend("blend", "Blend")
            yield from race.blend("blend-all", "Blend of all models")
        except (apart.Stopped, OutOfTime):
            pass
        if not found and not run.done:
            yield from race.baseline()

    def load(self, folder: Path) -> Predictor:
        return estimators.load(folder)

    def final(self, recipe: Mapping[str, Any]) -> Mapping[str, Any]:
        return estimators.on_all_rows(recipe)

    def fit(self, recipe: Mapping[str, Any], problem: Problem, data: Data, folder: Path) -> None:
        estimators.fit_recipe(recipe, problem, data, folder)


ENGINE = Flaml()


def entry_of(race: Race, learner: str, config: Mapping[str, Any]) -> Entry:
    """The race's entry for what FLAML found: the library's estimator with its parameters."""
    from flaml.automl import model

    from .race import Entry

    about = LEARNERS[learner]
    made = getattr(model, about.kind)(task=race.problem.task, **config)
    kind = made.estimator_class
    params = {name: estimators.plain(value) for name, value in made.params.items()}
    params.pop("n_jobs", None)
    spec = {"class": f"{kind.__module__}.{kind.__name__}", "params": params}
    # "trees" is what was searched with, whichever the learner.
    member = {"style": "trees", "estimator": spec, "target": "plain"}
    free, nth = race.free(learner)
    return Entry(free, f"{about.title}{nth}", about.family, member)


@dataclass
class Search:
    """FLAML's search, in stretches, and what it has found: per learner the best configuration."""

    problem: Problem
    data: Data
    run: Run
    best: dict[str, tuple[float, dict[str, Any]]] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def go_on(self, seconds: float) -> None:
        """Search for so long from where the last stretch ended. Raises apart.Stopped."""
        from . import apart

        self.run.working_on("Searching learners and parameters")
        log = Path(LOG)
        log.unlink(missing_ok=True)
        try:
            for _ in apart.stream(
                lambda: self._search(seconds),
                deadline=time.monotonic() + seconds + 1.0,
                pulse=self.run.pulse,
            ):
                pass
        except apart.Overrun:
            pass  # what it had found by then is in its log
        except apart.Failed as error:
            self.run.notice(f"FLAML's search ended early: {error}")
        if log.exists():
            self._read(log)

    def best_new(self, most: int) -> list[tuple[str, dict[str, Any]]]:
        """The best learners by their loss, with configurations that were not given out before."""
        new: list[tuple[str, dict[str, Any]]] = []
        for learner, (_, config) in sorted(self.best.items(), key=lambda item: item[1][0]):
            text = json.dumps([learner, config], sort_keys=True)
            if text not in self.taken and len(new) < most:
                self.taken.add(text)
                new.append((learner, config))
        return new

    def _read(self, log: Path) -> None:
        for line in log.read_text(encoding="utf-8").splitlines():
            try:
                told = json.loads(line)
            except ValueError:  # it was cut off while it wrote
                continue
            learner, loss = told.get("learner"), told.get("validation_loss")
            if learner not in LEARNERS or loss is None or not np.isfinite(loss):
                continue
            if learner not in self.best or loss < self.best[learner][0]:
                self.best[learner] = (loss, told["config"])

    def _search(self, seconds: float) -> Iterator[None]:
        """In the fork. FLAML writes each trial into its log."""
        from flaml import AutoML
        from sklearn.model_selection import PredefinedSplit

        from .race import inner_folds

        problem, data = self.problem, self.data
        table = matrix.learn(data.train, "trees").matrix(data.train)
        more: dict[str, Any] = {}
        folds = data.folds
        if folds is None and data.groups is not None:  # its own would tear groups apart
            folds = inner_folds(problem, data.y, data.groups)
        if folds is not None:
            more = {"eval_method": "cv", "split_type": PredefinedSplit(folds - 1)}
        if self.best:
            more["starting_points"] = {name: config for name, (_, config) in self.best.items()}
        AutoML().fit(
            table,
            data.y,
            task="classification" if problem.is_classification else "regression",
            metric=metric_for(problem),
            time_budget=seconds,
            estimator_list=list(LEARNERS),
            seed=problem.seed % 2**31,
            n_jobs=problem.threads,
            verbose=0,
            retrain_full=False,
            model_history=False,
            early_stop=False,
            log_file_name=LOG,
            log_type="all",
            **more,
        )
        yield


def metric_for(problem: Problem) -> str:
    """FLAML's name for the job's metric, or the one that comes nearest."""
    if problem.metric == "roc_auc":
        return "roc_auc" if problem.task == "binary" else "roc_auc_ovr"
    if problem.metric == "f1" and problem.task == "multiclass":
        return "macro_f1"
    if problem.metric == "average_precision" and problem.task == "binary":
        return "ap"
    if problem.metric in METRICS:
        return problem.metric
    return "log_loss" if problem.is_classification else "rmse"
