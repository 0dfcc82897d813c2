"""Classifiers of texts and pictures: what surrounds a network that learns from samples.

Epochs, early stopping, checkpoints, folds and the clock are here; a file of its own makes passes
over texts (language.py) or pictures (vision.py). One model is fitted per task, by name.
"""

from __future__ import annotations

import json
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from . import checkpoints, estimators, folding, named
from .base import Candidate, Data, Predictions, Problem, Run
from .tables import Array

FORMAT = 1
RESERVE = 0.1  # of the time left: for writing the model and predicting
LEAST_RESERVE_S = 2.0
STOP_S = 6.0  # what remains, once somebody pressed stop, to hand over the best epoch
EXACT_BYTES = 64 * 1024 * 1024  # a larger network's checkpoint has rounded weights alone
RANDOM = "random weights"  # what a network without pretrained ones starts from
WARM_UP = 0.1  # of all steps, in which the learning rate grows


class Network(ABC):
    """A network that learns. ``samples`` are an array whose first axis are rows."""

    samples: Array  # of the training rows
    repeats: Mapping[str, Any] = MappingProxyType({})  # what its recipe needs beside the epochs

    @abstractmethod
    def epoch(
        self,
        goal: Array,
        order: Array,
        rate: Callable[[float], float],
        late: Callable[[float], bool],
    ) -> float:
        """One pass over rows of the samples in this order. Returns the mean loss.

        ``goal`` are class codes by row of the samples, ``rate`` the learning rate after a share of
        this epoch. ``late(seconds for one row)`` is asked after each step: then it ends early.
        """

    @abstractmethod
    def scores(self, samples: Array) -> Array:
        """Rows x classes: probabilities."""

    @abstractmethod
    def weights(self) -> dict[str, Array]:
        """What was learnt, as copies."""

    @abstractmethod
    def set_weights(self, weights: Mapping[str, Array]) -> None:
        """Learn no more: predict with these. Raises where they are of another network."""

    @abstractmethod
    def state(self) -> dict[str, Array]:
        """All that another instance needs to go on from here, on whatever node."""

    @abstractmethod
    def restore(self, state: Mapping[str, Array]) -> None:
        """Take up a state, or weights alone. Raises where it is of another network."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the network as it is now; what ``told`` says goes into ``model.json``."""

    @abstractmethod
    def read(self, data: Any) -> Array:
        """Samples of a frame."""


class Make(Protocol):
    """Has read the samples, and gives a new network each time that it is called.

    One that may begin from pretrained weights says as ``start`` what it begins from.
    ``params`` are the recipe's with nothing left open, ``notices`` what a person should know.
    """

    @property
    def params(self) -> Mapping[str, Any]: ...

    @property
    def notices(self) -> list[str]: ...

    def __call__(self) -> Network: ...


@dataclass
class Fitted:
    """A network as it was after its best epoch; ``curve`` has the figures of each."""

    network: Network
    best: int
    curve: list[dict[str, Any]] = field(default_factory=list)


def fit(
    make: Make,
    problem: Problem,
    y: Array,
    rest: Array,
    stop: Array,
    *,
    epochs: int | None = None,
    until: float | None = None,
    hurried: Callable[[], bool] = lambda: False,
    checkpoint: Path | None = None,
    more_rows: int = 0,
) -> Iterator[dict[str, Any] | Fitted]:
    """Yield each epoch's figures, and the network of the best one.

    It stops by the rows ``stop``, or after ``epochs`` where these are known. ``until`` (of
    ``time.monotonic``) counts with predicting the rows ``stop`` and so many more. With
    ``checkpoint`` each epoch is kept there, and a fit that finds one goes on from it.
    """
    network, params = make(), make.params
    found = Fitted(network, 0)
    if len(np.unique(y[rest])) < 2:
        raise ValueError("only one class is left among the rows to learn from")
    most = epochs or int(params["epochs"])
    best_loss, best_weights, first = np.inf, network.weights(), 0
    shapes = {name: list(array.shape) for name, array in best_weights.items()}
    seen = zlib.crc32(b"".join(_bytes(one) for one in network.samples[:200]))
    mark = json.dumps([dict(params), problem.seed, len(rest), len(stop), epochs, shapes, seen])
    if checkpoint is not None and checkpoint.exists():
        try:
            first, best_loss, best_weights = _take_up(checkpoint, network, found, mark)
        except checkpoints.Bad:  # it begins anew
            network = found.network = make()
            found.best, found.curve = 0, []

    def late(row_s: float) -> bool:
        still = row_s * (len(stop) + more_rows) / 2  # a pass without learning takes a third
        return hurried() or (until is not None and time.monotonic() + still > until)

    patience = int(params["patience"])
    ended = epochs is None and bool(first) and first - found.best >= patience
    for epoch in range(first + 1, first if ended else most + 1):
        random = np.random.default_rng([problem.seed % 2**32, epoch])
        began = time.monotonic()
        loss = network.epoch(
            y, random.permutation(rest), _rate(float(params["learning_rate"]), epoch, most), late
        )
        told: dict[str, Any] = {"epoch": epoch, "loss": round(loss, 5)}
        if epochs is not None or not len(stop):
            found.best, best_weights = epoch, network.weights()
        else:
            shares = network.scores(network.samples[stop])
            missed = float(-np.log(np.clip(shares[np.arange(len(stop)), y[stop]], 1e-15, 1)).mean())
            told["validation_loss"] = round(missed, 5)
            told["validation_accuracy"] = round(float((shares.argmax(axis=1) == y[stop]).mean()), 5)
            if missed < best_loss:
                found.best, best_loss, best_weights = epoch, missed, network.weights()
        found.curve.append(told)
        if checkpoint is not None:
            _keep(checkpoint, network, found, mark, best_loss, best_weights)
        yield told | {"of": most, "curve": found.curve}
        took = time.monotonic() - began
        if late(took / max(1, len(rest))) or (epochs is None and epoch - found.best >= patience):
            break
    if not found.best:
        raise ValueError("its loss is not a number")
    network.set_weights(best_weights)
    yield found


def _bytes(sample: Any) -> bytes:
    if sample is None or isinstance(sample, bytes):
        return sample or b""
    return np.asarray(sample).tobytes()


def _rate(highest: float, epoch: int, epochs: int) -> Callable[[float], float]:
    """It grows for a tenth of all steps, and falls to nothing in the others."""

    def at(share: float) -> float:
        done = (epoch - 1 + share) / epochs
        return highest * max(0.01, min(1.0, (done + 1e-3) / WARM_UP, (1 - done) / (1 - WARM_UP)))

    return at


def _keep(
    checkpoint: Path,
    network: Network,
    found: Fitted,
    mark: str,
    best_loss: float,
    best: Mapping[str, Array],
) -> None:
    state = network.state()
    exact = sum(array.nbytes for array in state.values()) <= EXACT_BYTES
    latest = found.best == found.curve[-1]["epoch"]
    if not exact:
        state = {
            f"network.{name}": array.astype(np.float16) for name, array in network.weights().items()
        }
    arrays = checkpoints.named("state", state)
    if not latest:
        arrays |= checkpoints.named("best", best if exact else halved(best))
    told = {"mark": mark, "best": found.best, "best_loss": best_loss, "curve": found.curve}
    checkpoints.write(checkpoint, told, arrays)


def halved(weights: Mapping[str, Array]) -> dict[str, Array]:
    """Numbers rounded to half as many digits."""
    return {n: a.astype(np.float16) if a.dtype.kind == "f" else a for n, a in weights.items()}


def _take_up(
    checkpoint: Path, network: Network, found: Fitted, mark: str
) -> tuple[int, float, dict[str, Array]]:
    """Go on from a checkpoint: its epoch, the loss of the best and its weights. Raises Bad."""
    told, arrays = checkpoints.read(checkpoint)
    if told.get("mark") != mark:
        raise checkpoints.Bad("it is of another fit")
    usual = network.weights()
    try:
        network.restore(checkpoints.part(arrays, "state"))
        found.best, loss = int(told["best"]), float(told["best_loss"])
        found.curve = [dict(one) for one in told["curve"]]
        epoch = int(found.curve[-1]["epoch"])
        best = checkpoints.part(arrays, "best") or network.weights()
        best = {name: best[name].astype(array.dtype) for name, array in usual.items()}
        if any(best[name].shape != array.shape for name, array in usual.items()):
            raise ValueError("its weights are of another network")
    except Exception as error:
        raise checkpoints.Bad("it is of another network") from error
    return epoch, loss, best


# One model, as a candidate


def train(
    prefix: str,
    problem: Problem,
    data: Data,
    run: Run,
    make: Callable[[Mapping[str, Any], Data], Make],
    packages: list[str],
    mark: str = "",
) -> Iterator[Candidate]:
    """The model that the problem names: one candidate, from the best epoch that time allows.

    ``make(parameters, data)`` reads the data and gives what makes a new network each time.
    ``mark`` tells candidates of one model with other parameters apart: it ends their keys.
    """
    from . import apart

    model = named.models_of(prefix)[problem.model]
    key, title = f"{prefix}:{model.name}{mark}", f"{model.title}{mark.replace('-', ' ')}"
    if key in run.done:
        return
    defaults = {name: one.default for name, one in model.parameters_for(problem.task).items()}
    given = named.cleaned(prefix, model.name, problem.task, problem.hyperparameters)
    recipe: dict[str, Any] = {"model": model.name, "params": defaults | given}
    folder = run.folder / f"{model.name}{mark}"
    kept = run.folder / "checkpoints"
    kept.mkdir(exist_ok=True)
    count = 1 if data.folds is None else int(data.folds.max()) + 1
    went_on = [
        name
        for name in (f"{key}#{part}" for part in range(count))
        if run.checkpoint(name, kept / _file(name))
    ]
    run.working_on(f"{title}: reading")
    left = run.remaining_s()
    until = time.monotonic() + left - max(LEAST_RESERVE_S, RESERVE * left)
    stop, stopped_at = run.folder / "stop", 0.0

    def pulse() -> bool:
        nonlocal stopped_at
        if not run.pulse():
            return False
        if run.remaining_s() <= 0:
            return True
        stop.touch()  # the fork hands over what it has
        stopped_at = stopped_at or time.monotonic()
        return time.monotonic() - stopped_at > STOP_S

    began = time.monotonic()
    try:
        for told in apart.stream(
            lambda: _work(
                recipe, problem, data, folder, lambda: make(recipe["params"], data), until, stop,
                lambda part: kept / _file(f"{key}#{part}"),
            ),
            deadline=began + left,
            pulse=pulse,
        ):  # fmt: skip
            if "notice" in told:
                run.notice(told["notice"], model=key)
            elif "epoch" in told:
                if told["part"] == count - 1 and went_on and told["first"]:
                    run.notice(f"{title} goes on from epoch {told['epoch']}.", model=key)
                what = f"{title}, epoch {told['epoch']} of {told['of']}"
                if count > 1:
                    what += f", fit {told['part'] + 1} of {count}"
                run.working_on(what, curve=told["curve"])
                name = f"{key}#{told['part']}"
                run.keep(name, kept / _file(name))
            else:
                yield Candidate(
                    key=key, name=title, family="network", folder=folder,
                    recipe=told["recipe"], held=told["held"], out_of_fold=told["out_of_fold"],
                    params=dict(given) | told["facts"], fit_s=told["fit_s"],
                    predict_ms_row=told["predict_ms_row"], train_rows=len(data.y),
                    packages=packages, curve=told["curve"],
                )  # fmt: skip
    except apart.Stopped:
        if run.remaining_s() <= 0:
            run.notice(f"{title}: no epoch could be ended within the time budget.", model=key)
    except apart.Overrun:
        run.notice(f"{title}: no epoch could be ended within the time budget.", model=key)
    except apart.Failed as error:
        run.notice(f"{title} could not be fitted: {error}", model=key)


def _file(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name) + ".checkpoint"


def _work(
    recipe: dict[str, Any],
    problem: Problem,
    data: Data,
    folder: Path,
    reading: Callable[[], Make],
    until: float,
    stop: Path,
    place: Callable[[int], Path],
) -> Iterator[dict[str, Any]]:
    """In the fork: epochs as they end, then the model's facts."""
    began = time.monotonic()
    make = reading()
    yield from ({"notice": text} for text in make.notices)
    out_of_fold, epochs = None, None
    count = 1 if data.folds is None else int(data.folds.max()) + 1
    if data.folds is not None:
        out_of_fold, bests = np.zeros((len(data.y), problem.n_classes)), []
        for fold in range(1, count):
            rest, away = folding.rows_for(problem, data, data.folds, fold)
            inside = np.flatnonzero(data.folds == fold)
            share = (until - time.monotonic()) / (count - fold + 1)
            for told in fit(
                make, problem, data.y, rest, away, until=time.monotonic() + share,
                hurried=stop.exists, checkpoint=place(fold - 1), more_rows=len(inside),
            ):  # fmt: skip
                if isinstance(told, Fitted):
                    bests.append(told.best)
                    out_of_fold[inside] = told.network.scores(told.network.samples[inside])
                else:
                    yield told | {"part": fold - 1, "first": False}
        epochs = max(1, round(float(np.median(bests))))
        rest, away = np.arange(len(data.y)), np.empty(0, dtype=np.int64)
    else:
        folds = folding.folds_for(problem, data.y, 1, groups=data.groups)
        rest, away = np.flatnonzero(folds == 0), np.flatnonzero(folds == 1)
    first = True
    for told in fit(
        make, problem, data.y, rest, away, epochs=epochs, until=until,
        hurried=stop.exists, checkpoint=place(count - 1), more_rows=len(data.held),
    ):  # fmt: skip
        if not isinstance(told, Fitted):
            yield told | {"part": count - 1, "first": first}
            first = False
            continue
        recipe = recipe | {"epochs": told.best} | dict(told.network.repeats)
        save(told, problem, recipe | {"params": dict(make.params)}, folder)
        network = told.network
        ms = _row_ms(network)
        fit_s = time.monotonic() - began
        held = network.scores(network.read(data.held))
        yield {
            "recipe": recipe,
            "held": estimators.predictions_of(held, problem),
            "out_of_fold": None
            if out_of_fold is None
            else estimators.predictions_of(out_of_fold, problem),
            "fit_s": fit_s,
            "predict_ms_row": ms,
            "curve": told.curve,
            "facts": {"best_epoch": told.best, "epochs_run": len(told.curve)}
            | ({"started_from": make.start} if hasattr(make, "start") else {}),
        }


def save(fitted: Fitted, problem: Problem, recipe: Mapping[str, Any], folder: Path) -> None:
    """Write a model's folder; its network predicts as the stored one will from now on."""
    folder.mkdir(parents=True, exist_ok=True)
    network = fitted.network
    exact = network.weights()
    network.set_weights({n: a.astype(exact[n].dtype) for n, a in halved(exact).items()})
    told = {"format": FORMAT, "kind": recipe["model"], "n_classes": problem.n_classes}
    told |= {"params": dict(recipe["params"]), "curve": fitted.curve}
    (folder / "model.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    network.save(folder)


def refit(
    recipe: Mapping[str, Any], problem: Problem, data: Data, folder: Path, make: Make
) -> None:
    """Fit a known recipe on all training rows, for as many epochs as were best before."""
    rows = np.arange(len(data.y))
    none = np.empty(0, dtype=np.int64)
    for told in fit(make, problem, data.y, rows, none, epochs=recipe["epochs"]):
        if isinstance(told, Fitted):
            save(told, problem, {**recipe, "params": dict(make.params)}, folder)


def _row_ms(network: Network) -> float:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        network.scores(network.samples[:1])
        times.append(time.perf_counter() - began)
    return round(1000 * float(np.median(times)), 3)


def predictions(shares: Array) -> Predictions:
    return Predictions(shares.argmax(axis=1), shares)
