"""What an engine is: one class in one file of this folder, run inside that engine's virtualenv.

An engine subclasses :class:`Engine`, is offered as ``ENGINE`` by its module, and has two methods:
``train`` yields candidates while it works, ``load`` gives a predictor for a stored one. A third,
``fit``, fits one known recipe again; the artifact's ``train.py`` and a later refit on all rows
rest on it. What surrounds an engine (reading, splitting, writing artifacts, clock, talking to the
node) is harness.py. Heavy packages are imported inside methods, so that anybody may read the
declaration.

Imports no Django and nothing outside this folder; a copy of this file travels in every artifact.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from .frame import Frame
from .tables import Array

# GNU OpenMP lets waiting threads spin. On cores that others use too, that made one LightGBM fit
# take 55 s instead of 2.4 s. It is read when a library that uses OpenMP is loaded: after this file.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

Task = Literal["binary", "multiclass", "regression"]


@dataclass(frozen=True)
class Problem:
    """What to learn. ``classes`` (None for regression) is sorted; targets are codes into it.

    With a ``model`` (a name of named.py) there is no race: one candidate of that model, with these
    ``hyperparameters`` and the library's defaults for the rest.
    """

    task: Task
    target: str
    metric: str
    classes: tuple[str, ...] | None = None
    positive_class: str | None = None
    seed: int = 0
    threads: int = 1
    model: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_classification(self) -> bool:
        return self.task != "regression"

    @property
    def n_classes(self) -> int:
        return len(self.classes or ())


@dataclass(frozen=True)
class Data:
    """The rows an engine may see.

    ``train`` with its target ``y`` (class codes int64, or float64), ``held``: rows to predict whose
    target the engine is not told. ``folds`` is None, or gives each training row its fold 1..k: then
    a candidate also predicts every training row by a fit that did not see its fold. ``groups`` is
    None, or numbers each training row's group: rows of one stay together in whatever folds an
    engine makes for itself (folding.py).
    """

    train: Frame
    y: Array
    held: Frame
    folds: Array | None = None
    groups: Array | None = None


@dataclass(frozen=True)
class Predictions:
    """``values`` are class codes or numbers, one per row; ``probabilities`` is rows x classes."""

    values: Array
    probabilities: Array | None = None


@dataclass(frozen=True)
class Candidate:
    """One finished model, with what is needed to rank it and to use it elsewhere.

    ``key`` is stable: the same work in another attempt has the same key. ``folder`` holds the
    model files that ``Engine.load`` reads, fitted on all training rows; it stays as it is after
    the yield. ``recipe`` is plain JSON that ``Engine.fit`` understands. ``held`` and
    ``out_of_fold`` (only when the data has folds) are predictions in the order of ``Data.held``
    and ``Data.train``. ``packages`` are the distributions that loading the model needs. ``curve``:
    of a network, its epochs with their figures ("epoch", "loss" and so on).
    """

    key: str
    name: str
    family: str
    folder: Path
    recipe: Mapping[str, Any]
    held: Predictions
    out_of_fold: Predictions | None
    params: Mapping[str, Any]
    fit_s: float
    predict_ms_row: float
    train_rows: int
    packages: Sequence[str]
    curve: Sequence[Mapping[str, Any]] = ()


class Run(Protocol):
    """What surrounds ``Engine.train``: its clock, its scratch folder and its listener."""

    folder: Path  # private, empty; goes away with the task
    done: frozenset[str]  # keys of candidates that an earlier attempt has delivered: skip them

    def remaining_s(self) -> float:
        """Seconds left of the budget, from which the engine must end by itself."""

    def pulse(self) -> bool:
        """Call often (every 0.2 s or so). Reports progress by the clock; True means: end now."""

    def working_on(self, what: str, **data: Any) -> None:
        """Name what is being done, for the progress message; ``data`` (plain JSON) goes with it."""

    def notice(self, message: str, **data: Any) -> None:
        """Tell the person something worth knowing, such as a model that failed."""

    def checkpoint(self, name: str, to: Path) -> bool:
        """Put at ``to`` how far an earlier attempt came with this fit; False if it left nothing.

        The file may be of a node that is not trusted: read it by checkpoints.py alone.
        """

    def keep(self, name: str, path: Path) -> None:
        """Hand over how far a fit has come: a file of ``folder``, which may be replaced later."""


class Predictor(ABC):
    """A loaded model. ``threads`` is how many it may use where many rows make them worth it."""

    threads: int = 1

    @abstractmethod
    def predict(self, frame: Frame) -> Predictions:
        """Predictions for prepared rows. Safe to call again and again, for one row or many."""


class Engine(ABC):
    """The declaration (class attributes) and the two and a half methods."""

    # As in requirements/engine-<name>.txt and .venvs/<name>. What stands before its first dash is
    # the file, training/engines/<file>.py: several versions of a library share one.
    name: str
    title: str
    task_types: frozenset[Task] = frozenset({"binary", "multiclass", "regression"})
    devices: frozenset[str] = frozenset({"cpu"})
    start_method: Literal["fork", "spawn"] = "fork"
    imports: tuple[str, ...] = ()  # what a warm parent imports ahead of time
    modules: tuple[str, ...] = ()  # files here that loading needs beside base, frame and tables

    @property
    def requirements(self) -> str:
        """The lock file of the engine's virtualenv, from the repository root."""
        return f"requirements/engine-{self.name}.txt"

    @abstractmethod
    def train(self, problem: Problem, data: Data, run: Run) -> Iterator[Candidate]:
        """Yield candidates, best effort first, until the budget is used or nothing is left to try.

        A candidate that fails is a notice, not the end. Ends soon once ``run.pulse()`` says so.
        """

    @abstractmethod
    def load(self, folder: Path) -> Predictor:
        """The predictor for a candidate's folder. Imports only what its packages hold."""

    def final(self, recipe: Mapping[str, Any]) -> Mapping[str, Any]:
        """The recipe for a winner's refit, when nothing has to be kept apart any more."""
        return recipe

    @abstractmethod
    def fit(self, recipe: Mapping[str, Any], problem: Problem, data: Data, folder: Path) -> None:
        """Fit ``recipe`` on ``data.train`` and leave in ``folder`` what ``load`` reads."""


@dataclass
class Rows:
    """Where each row of the data set went. Index arrays, ascending."""

    train: Array  # training rows, or with folds every row that ranks
    held: Array  # rows to predict: validation and sealed test
    folds: Array | None = field(default=None)


def rows_of(parts: Array) -> Rows:
    """Read the answer of ``splits.assign``: 0 train, -1 and -2 held out, 1..k folds, -3 no part."""
    held = np.flatnonzero((parts == -1) | (parts == -2))
    folded = np.flatnonzero(parts > 0)
    if len(folded):
        return Rows(folded, held, parts[folded].astype(np.int64))
    return Rows(np.flatnonzero(parts == 0), held)
