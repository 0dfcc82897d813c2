"""Tabular networks: embeddings for categories, layers over all, whichever framework learns them.

A framework (torch.py, tensorflow.py) only makes passes over the rows; epochs, early stopping,
checkpoints, folds, the clock and ensembles are here. What was learnt is plain arrays: the batch
normalisations are folded into the layers, and numpy computes a prediction (in float64, so that one
row gets the very number that it got among many). So an artifact needs no framework, and one row
takes well under a millisecond.

Embeddings of categories in tabular networks: Guo and Berkhahn, "Entity embeddings of categorical
variables", 2016.
"""

from __future__ import annotations

import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import checkpoints, estimators, folding, matrix, named
from .base import Candidate, Data, Engine, Predictor, Problem, Run
from .blend import Blend
from .frame import Frame
from .tables import Array

FORMAT = 1
BAG = 4
BAG_ROWS = 10_000  # of more training rows, the bag has one network
BAG_SHARE = 0.2  # of the time left: what the first bag may take; else all have one network
EPOCH_ROWS = 100_000  # the most that one epoch passes over
MEMBERS = 6  # of an ensemble, at most
MOST = 12  # candidates
RESERVE_S = 1.0
KEEP_S = 1.0  # between two checkpoints that are handed over
# What runs first, by what it changes of the declared defaults.
STARTS: tuple[dict[str, Any], ...] = (
    {},
    {"layers": [256, 128, 64], "dropout": 0.3},
    {"layers": [64], "dropout": 0.0, "learning_rate": 0.01},
    {"layers": [512, 256], "dropout": 0.5},
)
Weights = dict[str, Array]


@dataclass
class Table:
    """Rows as a network takes them: numbers (float32); per category a code from 1, 0 unknown."""

    numbers: Array
    codes: Array

    def take(self, rows: Array) -> Table:
        return Table(self.numbers[rows], self.codes[rows])


@dataclass(frozen=True)
class Plan:
    """What a framework builds. ``outputs`` is the number of classes, 1 for a number."""

    width: int  # columns of numbers
    levels: tuple[int, ...]  # per category, the unknown included
    dimensions: tuple[int, ...]  # of its embedding
    layers: tuple[int, ...]
    dropout: float
    weight_decay: float
    batch: int
    outputs: int
    classifies: bool
    seed: int
    threads: int


class Framework(ABC):
    """A network that learns. Made in a fork, from a plan."""

    @abstractmethod
    def epoch(self, table: Table, goal: Array, order: Array, rate: float) -> float:
        """One pass over the rows in this order with this learning rate. Returns the mean loss."""

    @abstractmethod
    def weights(self) -> Weights:
        """The arrays of :func:`forward`, as the network is now."""

    @abstractmethod
    def state(self) -> dict[str, Array]:
        """All that another instance needs to go on from here, on whatever node."""

    @abstractmethod
    def restore(self, state: Mapping[str, Array]) -> None:
        """Take up a state. It may come from a node that is not trusted: raises what it will."""


class NetworkEngine(Engine):
    """What the engines have in common: each gives its framework."""

    task_types = frozenset({"binary", "multiclass", "regression"})

    @abstractmethod
    def make(self, plan: Plan) -> Framework:
        """A new network."""

    def train(self, problem: Problem, data: Data, run: Run) -> Iterator[Candidate]:
        yield from Networks(self, problem, data, run).go()

    def load(self, folder: Path) -> Predictor:
        told = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        return estimators.load(folder) if told.get("kind") != "networks" else load(folder, told)

    def final(self, recipe: Mapping[str, Any]) -> Mapping[str, Any]:
        if "members" in recipe:
            return estimators.on_all_rows(recipe)
        return {"bags": [dict(bag) | {"whole": True} for bag in recipe["bags"]]}

    def fit(self, recipe: Mapping[str, Any], problem: Problem, data: Data, folder: Path) -> None:
        if "members" in recipe:
            estimators.fit_recipe(recipe, problem, data, folder)
            return
        encoding = learn_encoding(data.train)
        fitted = [last(fit_bag(self, bag, problem, data, encoding)) for bag in recipe["bags"]]
        save(fitted, [bag["weight"] for bag in recipe["bags"]], encoding, problem, folder)


# Rows


def learn_encoding(frame: Frame) -> matrix.Encoding:
    """Numbers standardised, gaps marked; categories as codes."""
    scaled, native = matrix.learn(frame, "scaled"), matrix.learn(frame, "native")
    steps = [
        codes if codes["as"] == "codes" else number
        for number, codes in zip(scaled.steps, native.steps, strict=True)
    ]
    return matrix.Encoding(tuple(steps))


def table_of(encoding: matrix.Encoding, frame: Frame) -> Table:
    whole = encoding.matrix(frame)
    categorical = encoding.categorical
    codes = np.nan_to_num(whole[:, categorical], nan=-1.0).astype(np.int64) + 1
    numbers = np.delete(whole, categorical, axis=1)
    # Far outliers would drown all else; ten standard deviations still tell them apart.
    return Table(np.clip(numbers, -10.0, 10.0).astype(np.float32), codes)


# A network, in numpy


def forward(weights: Weights, table: Table) -> Array:
    """Rows x outputs: logits, or one standardised number."""
    codes = enumerate(table.codes.T)
    embedded = [weights[f"embedding-{place}"][column] for place, column in codes]
    values = np.concatenate([table.numbers.astype(np.float64), *embedded], axis=1)
    layer = 0
    while f"weight-{layer}" in weights:
        if layer:
            values = np.maximum(values, 0.0)
        values = values @ weights[f"weight-{layer}"] + weights[f"bias-{layer}"]
        layer += 1
    return values


def as_float64(weights: Weights) -> Weights:
    """Rounded to float32 as they are stored, and wide again for computing."""
    return {
        name: np.asarray(value, dtype=np.float32).astype(np.float64)
        for name, value in weights.items()
    }


def folded(weight: Array, bias: Array, scale: Array, shift: Array) -> tuple[Array, Array]:
    """A layer (inputs x outputs) and what follows it, times ``scale`` plus ``shift``, as one."""
    return weight * scale, bias * scale + shift


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: Array = powers / powers.sum(axis=1, keepdims=True)
    return shares


def loss_of(outputs: Array, goal: Array, classifies: bool) -> float:
    """Log loss, or the mean squared error of the standardised target."""
    if classifies:
        shares = softmax(outputs)[np.arange(len(goal)), goal]
        return float(-np.log(np.clip(shares, 1e-15, 1.0)).mean())
    return float(((outputs[:, 0] - goal) ** 2).mean())


@dataclass
class Net:
    """A fitted network. ``present``: the class of each output; ``scale``: of the target."""

    weights: Weights
    present: list[int]
    scale: Mapping[str, Any]

    def scores(self, table: Table, n_classes: int) -> Array:
        """Rows x classes probabilities, or one value per row."""
        outputs = forward(self.weights, table)
        if not n_classes:
            return estimators.unscale(outputs[:, 0], self.scale)
        scores = np.zeros((len(outputs), n_classes))
        scores[:, self.present] = softmax(outputs)
        return scores


@dataclass
class Bag:
    """Networks whose mean predicts, the recipe that makes them again, and how they learnt."""

    recipe: Mapping[str, Any]
    nets: list[Net]
    scores: Array = field(default_factory=lambda: np.empty(0))  # of each one's own fold, else nan
    curve: list[dict[str, float]] = field(default_factory=list)  # the first one's epochs


def fit_bag(
    engine: NetworkEngine,
    recipe: Mapping[str, Any],
    problem: Problem,
    data: Data,
    encoding: matrix.Encoding,
    until: float | None = None,
    kept: Path | None = None,
) -> Iterator[dict[str, Any] | Bag]:
    """Yield each epoch's figures and, at the end, the bag.

    ``recipe`` is {"params", "folds", "alone", "rounds", "whole", "hurry"}: ``alone`` means that of
    the first fold only. With ``rounds`` (epochs of each network, known from an earlier fit) none
    stops by any rows, and with ``whole`` an only network learns from these, too. A first network
    that would make the bag take longer than ``hurry`` (seconds) stays alone.
    """
    table = table_of(encoding, data.train)
    own = data.folds is None
    folds = data.folds
    if folds is None:
        folds = folding.folds_for(problem, data.y, recipe["folds"], groups=data.groups)
    shape = (len(data.y), problem.n_classes) if problem.is_classification else (len(data.y),)
    bag = Bag({}, [], np.full(shape, np.nan))
    known, taken = recipe.get("rounds") or [], list[int]()
    alone, began = bool(recipe.get("alone")), time.monotonic()
    count = 1 if alone else int(folds.max())
    for fold in range(1, count + 1):
        rest, stop = folding.rows_for(problem, data, folds, fold)
        rounds = known[fold - 1] if len(known) == count else None
        if rounds is not None and recipe.get("whole") and own and count == 1:
            rest = np.arange(len(folds))
        end = None
        if until is not None:
            end = time.monotonic() + (until - time.monotonic()) / (count - fold + 1)
        place = kept / f"net-{fold}.checkpoint" if kept else None
        for told in fit_net(
            engine,
            recipe["params"],
            problem,
            table,
            data.y,
            encoding,
            rest,
            stop,
            rounds,
            end,
            place,
        ):
            if isinstance(told, Net):
                bag.nets.append(told)
            else:
                taken[fold - 1 :] = [int(told["best"])]
                if fold == 1:
                    bag.curve.append({name: told[name] for name in told if name != "best"})
                yield told | {"net": fold, "nets": count}
        away = folds == fold
        bag.scores[away] = bag.nets[-1].scores(table.take(away), problem.n_classes)
        hurry = recipe.get("hurry")
        if fold == 1 and hurry and count * (time.monotonic() - began) > hurry:
            alone = True
            break
    same = {name: recipe[name] for name in ("params", "folds", "weight") if name in recipe}
    bag.recipe = same | {"rounds": taken, "alone": alone}
    yield bag


def last(told: Iterator[dict[str, Any] | Bag]) -> Bag:
    for one in told:
        if isinstance(one, Bag):
            return one
    raise ValueError("no network came out")


def fit_net(
    engine: NetworkEngine,
    params: Mapping[str, Any],
    problem: Problem,
    table: Table,
    y: Array,
    encoding: matrix.Encoding,
    rest: Array,
    stop: Array,
    rounds: int | None,
    until: float | None,
    checkpoint: Path | None,
) -> Iterator[dict[str, Any] | Net]:
    """Yield {"epoch", "loss", "validation_loss", "best"} per epoch, and the best epoch's network.

    With ``checkpoint``, each epoch is written there, and a fit that finds one goes on from it.
    """
    present: list[int] = []
    scale: Mapping[str, Any] = {}
    if problem.is_classification:
        codes, goal = np.unique(y[rest], return_inverse=True)
        present = [int(code) for code in codes]
        if len(codes) < 2:
            raise ValueError("only one class is left among the rows to learn from")
        stop = stop[np.isin(y[stop], codes)]
        stop_goal = np.searchsorted(codes, y[stop])
    else:
        log = problem.metric == "rmsle" and float(y.min()) > -1
        scale = estimators.learn_scale(y[rest], "log" if log else "standard")
        goal = estimators.rescale(y[rest], scale).astype(np.float32)
        stop_goal = estimators.rescale(y[stop], scale)
    plan = plan_for(params, problem, table, encoding, len(rest), len(present))
    network = engine.make(plan)
    learns, stops = table.take(rest), table.take(stop)
    epochs, patience = int(params["epochs"]), int(params["patience"])
    best, best_loss, best_weights, first = 0, math.inf, network.weights(), 0
    mark = repr((plan, sorted(params.items()), len(rest), len(stop), rounds))
    if checkpoint is not None and checkpoint.exists():
        try:
            first, best, best_loss, best_weights = take_up(checkpoint, network, mark)
        except checkpoints.Bad:  # it begins anew
            network = engine.make(plan)
    took = 0.0
    ended = rounds is None and bool(first) and first - best >= patience
    for epoch in range(first + 1, first if ended else (rounds or epochs) + 1):
        began = time.monotonic()
        random = np.random.default_rng([problem.seed % 2**32, epoch])
        order = random.permutation(len(rest))[:EPOCH_ROWS]
        rate = 0.5 * params["learning_rate"] * (1 + math.cos(math.pi * (epoch - 1) / epochs))
        loss = network.epoch(learns, goal, order, rate)
        weights = network.weights()
        if rounds is not None or not len(stop):
            best, best_weights, seen = epoch, weights, None
        else:
            seen = loss_of(forward(as_float64(weights), stops), stop_goal, plan.classifies)
            if seen < best_loss:
                best, best_loss, best_weights = epoch, seen, weights
        yield {"epoch": epoch, "loss": loss, "validation_loss": seen, "best": best}
        if checkpoint is not None:
            keep(checkpoint, network, mark, (epoch, best, best_loss, best_weights))
        took = max(took, time.monotonic() - began)
        late = until is not None and time.monotonic() + took > until
        if late or (rounds is None and epoch - best >= patience):
            break
    if not best:
        raise ValueError("its loss is not a number")
    yield Net(as_float64(best_weights), present, scale)


Stand = tuple[int, int, float, Weights]  # epoch, the best one, its loss and its weights


def keep(checkpoint: Path, network: Framework, mark: str, stand: Stand) -> None:
    epoch, best, best_loss, best_weights = stand
    told = {"mark": mark, "epoch": epoch, "best": best, "best_loss": best_loss}
    state = checkpoints.named("state", network.state())
    checkpoints.write(checkpoint, told, state | checkpoints.named("best", best_weights))


def take_up(checkpoint: Path, network: Framework, mark: str) -> Stand:
    """Go on from a checkpoint. Raises checkpoints.Bad; then the network is not fit for use."""
    told, arrays = checkpoints.read(checkpoint)
    if told.get("mark") != mark:
        raise checkpoints.Bad("it is of another fit")
    weights, usual = checkpoints.part(arrays, "best"), network.weights()
    if {name: a.shape for name, a in weights.items()} != {n: a.shape for n, a in usual.items()}:
        raise checkpoints.Bad("its weights are of another network")
    try:
        network.restore(checkpoints.part(arrays, "state"))
        return int(told["epoch"]), int(told["best"]), float(told["best_loss"]), weights
    except Exception as error:
        raise checkpoints.Bad("its state is of another network") from error


def plan_for(
    params: Mapping[str, Any],
    problem: Problem,
    table: Table,
    encoding: matrix.Encoding,
    rows: int,
    classes: int,
) -> Plan:
    levels = tuple(len(step["levels"]) + 1 for step in encoding.steps if step["as"] == "codes")
    most = params["embedding"] or 50
    return Plan(
        width=table.numbers.shape[1],
        levels=levels,
        dimensions=tuple(max(1, min(most, round(1.6 * count**0.56))) for count in levels),
        layers=tuple(params["layers"]),
        dropout=params["dropout"],
        weight_decay=params["weight_decay"],
        batch=params["batch_size"] or int(min(1024, max(32, 2 ** round(math.log2(rows / 30 + 1))))),
        outputs=classes or 1,
        classifies=problem.is_classification,
        seed=problem.seed % 2**31,
        threads=problem.threads,
    )


# On disk and in memory


def save(
    bags: Sequence[Bag],
    weights: Sequence[float],
    encoding: matrix.Encoding,
    problem: Problem,
    folder: Path,
) -> None:
    """Write ``model.json`` and an ``.npz`` file per network into ``folder`` (made if need be)."""
    folder.mkdir(parents=True, exist_ok=True)
    told: list[dict[str, Any]] = []
    for bag, weight in zip(bags, weights, strict=True):
        for net in bag.nets:
            name = f"net-{len(told)}.npz"
            arrays = {key: value.astype(np.float32) for key, value in net.weights.items()}
            np.savez(folder / name, **arrays)  # type: ignore[arg-type]
            share = weight / len(bag.nets)
            told.append(
                {"file": name, "weight": share, "present": net.present, "scale": dict(net.scale)}
            )
    whole = {
        "format": FORMAT,
        "kind": "networks",
        "n_classes": problem.n_classes,
        "encoding": matrix.as_json(encoding),
        "nets": told,
        "curve": bags[0].curve if len(bags) == 1 else [],
    }
    (folder / "model.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def load(folder: Path, told: Mapping[str, Any]) -> Predictor:
    """Read what :func:`save` wrote: arrays alone, nothing is unpickled."""
    if told["format"] != FORMAT:
        raise ValueError(f"model format {told['format']} is not known here (known: {FORMAT})")
    nets = []
    for net in told["nets"]:
        with np.load(folder / net["file"], allow_pickle=False) as arrays:
            nets.append(Net(as_float64(dict(arrays)), net["present"], net["scale"]))
    weights = np.array([net["weight"] for net in told["nets"]])
    encoding = matrix.from_json(told["encoding"])
    return Blend(nets, weights, encoding, told["n_classes"], table_of)


def join(folders: Sequence[Path], weights: Sequence[float], folder: Path) -> None:
    """Blend saved networks into ``folder`` without loading any."""
    folder.mkdir(parents=True, exist_ok=True)
    nets: list[dict[str, Any]] = []
    told: dict[str, Any] = {}
    for source, weight in zip(folders, weights, strict=True):
        told = json.loads((source / "model.json").read_text(encoding="utf-8"))
        for net in told["nets"]:
            name = f"net-{len(nets)}.npz"
            os.link(source / net["file"], folder / name)
            nets.append(net | {"file": name, "weight": weight * net["weight"]})
    text = json.dumps(told | {"nets": nets, "curve": []}, indent=1) + "\n"
    (folder / "model.json").write_text(text, encoding="utf-8")


# The race


@dataclass
class Known:
    """A candidate of this attempt with its scores inside the training rows."""

    candidate: Candidate
    scores: Array


class Networks:
    """State of one attempt: a few networks that are unlike each other, then a search."""

    def __init__(self, engine: NetworkEngine, problem: Problem, data: Data, run: Run) -> None:
        self.engine, self.prefix = engine, engine.name
        self.problem, self.data, self.run = problem, data, run
        self.rows = len(data.y)
        self.known: list[Known] = []
        self.reserve_s = min(RESERVE_S, 0.15 * run.remaining_s())
        self._blended = ""
        self.folds = BAG if self.rows <= BAG_ROWS else 1
        self.hurry = self._left() * BAG_SHARE
        self.defaults = {
            name: parameter.default
            for name, parameter in named.TABULAR_NETWORK.parameters_for(problem.task).items()
        }

    def go(self) -> Iterator[Candidate]:
        from . import apart

        found = False
        try:
            for number, params in enumerate(self._configurations(), 1):
                if self.run.pulse() or self._left() < self._least():
                    break
                share = 1.0 if self.problem.model else 0.5 if number == 1 else 0.35
                for candidate in self._attempt(number, params, share):
                    found = True
                    yield candidate
                if number == len(STARTS):
                    yield from self._ensemble("ensemble")
        except apart.Stopped:
            pass
        if not self.problem.model:
            yield from self._ensemble("ensemble-all")
            if not found and not self.run.done:
                from .race import Race

                yield from Race(self.prefix, self.problem, self.data, self.run).baseline()

    def _configurations(self) -> Iterator[dict[str, Any]]:
        """What differs from the defaults, in order: asked for; or some starts, then at random."""
        if self.problem.model:
            given = self.problem.hyperparameters
            model, task = self.problem.model, self.problem.task
            yield named.cleaned(self.prefix, model, task, given)
            return
        yield from STARTS
        random = np.random.default_rng(self.problem.seed)
        for _ in range(MOST - len(STARTS)):
            width = int(random.choice([32, 64, 128, 256, 512]))
            depth = int(random.integers(1, 4))
            yield {
                "layers": [max(8, width >> step) for step in range(depth)],
                "dropout": round(float(random.uniform(0, 0.5)), 2),
                "learning_rate": float(f"{10 ** random.uniform(-3.3, -1.8):.2g}"),
                "weight_decay": float(f"{10 ** random.uniform(-6, -2):.2g}"),
            }

    def _attempt(
        self, number: int, changes: Mapping[str, Any], share: float
    ) -> Iterator[Candidate]:
        from . import apart

        key = f"{self.prefix}:{self.problem.model or f'network-{number}'}"
        name = "Neural network" + (f" {number}" if number > 1 else "")
        if key in self.run.done:
            return
        self.run.working_on(name)
        began, delivered = time.monotonic(), False
        allowed = max(share * self._left(), min(self._left(), 5.0))
        recipe = {"params": self.defaults | dict(changes), "folds": self.folds}
        if self.problem.model:
            recipe["folds"] = 1
        kept, said_at = self._kept(key), began
        curve: list[dict[str, Any]] = []  # of the network of the bag that learns now
        kept.mkdir(exist_ok=True)
        count = 1 if self.problem.model else self.folds
        if self.data.folds is not None:
            count = int(self.data.folds.max())
        for net in range(1, count + 1):
            self.run.checkpoint(f"{key}#{net}", kept / f"net-{net}.checkpoint")
        try:
            for message in apart.stream(
                lambda: self._work(key, recipe, began + 0.85 * allowed),
                deadline=began + allowed,
                pulse=self.run.pulse,
            ):
                if "epoch" in message:
                    told = {n: message[n] for n in ("epoch", "loss", "validation_loss", "net")}
                    if curve and curve[-1]["net"] != told["net"]:
                        curve.clear()
                    curve.append(told)
                    self.run.working_on(f"{name}, epoch {message['epoch']}", curve=curve)
                    file = kept / f"net-{message['net']}.checkpoint"
                    if time.monotonic() - said_at >= KEEP_S and file.exists():
                        said_at = time.monotonic()
                        self.run.keep(f"{key}#{message['net']}", file)
                    continue
                delivered = True
                if self.data.folds is None and message["nets"] == 1:
                    self.folds = 1  # the first was too slow for a bag: so would the others be
                yield self._candidate(key, name, changes, message)
        except (apart.Overrun, apart.Failed) as error:
            if delivered:
                return
            why = f"could not be fitted: {error}"
            if isinstance(error, apart.Overrun):
                why = (
                    f"was stopped after {time.monotonic() - began:.0f} s: it did not finish within "
                    "its share of the time budget."
                )
            self.run.notice(f"{name} {why}", model=key)

    def _work(self, key: str, recipe: dict[str, Any], until: float) -> Iterator[dict[str, Any]]:
        """In the fork: learn, predict, save, and tell."""
        problem, data = self.problem, self.data
        folder = self.run.folder / key.replace(":", "-")
        began = time.monotonic()
        encoding = learn_encoding(data.train)
        hurried = recipe | ({"hurry": self.hurry} if data.folds is None else {})
        bag = Bag({}, [])
        for told in fit_bag(self.engine, hurried, problem, data, encoding, until, self._kept(key)):
            if isinstance(told, Bag):
                bag = told
            else:
                yield told
        save([bag], [1.0], encoding, problem, folder)
        fit_s = time.monotonic() - began
        weights = np.ones(len(bag.nets))
        model = Blend(bag.nets, weights, encoding, problem.n_classes, table_of)
        row = data.train.take(np.array([0]))
        times = []
        for _ in range(3):
            one = time.perf_counter()
            model.scores(row)
            times.append(time.perf_counter() - one)
        folded_scores = None
        if data.folds is not None:
            folded_scores = estimators.predictions_of(bag.scores, problem)
        yield {
            "folder": folder,
            "recipe": {"bags": [dict(bag.recipe) | {"weight": 1.0}]},
            "nets": len(bag.nets),
            "epochs": bag.recipe["rounds"][0],
            "fit_s": fit_s,
            "held": estimators.predictions_of(model.scores(data.held), problem),
            "out_of_fold": folded_scores,
            "scores": bag.scores,
            "predict_ms_row": round(1000 * float(np.median(times)), 3),
            "curve": bag.curve,
        }

    def _kept(self, key: str) -> Path:
        return self.run.folder / f"{key.replace(':', '-')}-checkpoints"

    def _candidate(
        self, key: str, name: str, changes: Mapping[str, Any], message: Mapping[str, Any]
    ) -> Candidate:
        nets = message["nets"]
        shown = dict(changes) | {"stopped_at_epoch": message["epochs"]}
        candidate = Candidate(
            key=key,
            name=name + (f", bag of {nets}" if nets > 1 else ""),
            family="network",
            folder=message["folder"],
            recipe=message["recipe"],
            held=message["held"],
            out_of_fold=message["out_of_fold"],
            params=shown if self.problem.model else shown | {"bag_of": nets},
            fit_s=message["fit_s"],
            predict_ms_row=message["predict_ms_row"],
            train_rows=self.rows,
            packages=["numpy", "pyarrow"],
            curve=message["curve"],
        )
        self.known.append(Known(candidate, message["scores"]))
        return candidate

    def _ensemble(self, id: str) -> Iterator[Candidate]:
        """Weigh what is known by greedy selection: needs no fit, only what was predicted."""
        from . import scoring

        key = f"{self.prefix}:{id}"
        if len(self.known) < 2 or key in self.run.done:
            return
        seen = np.all(
            [np.isfinite(one.scores).reshape(self.rows, -1)[:, 0] for one in self.known], axis=0
        )
        if not seen.any():
            return
        began, y = time.monotonic(), self.data.y[seen]
        usable = sorted(
            self.known, key=lambda one: -scoring.score(self.problem, y, one.scores[seen])
        )[:MEMBERS]
        weights, _ = scoring.blend_weights(self.problem, y, [one.scores[seen] for one in usable])
        used = [(one.candidate, w) for one, w in zip(usable, weights, strict=True) if w > 0]
        mark = repr([(candidate.key, w) for candidate, w in used])
        if len(used) < 2 or mark == self._blended:
            return
        self._blended = mark
        candidates, shares = [c for c, _ in used], [w for _, w in used]
        held, out_of_fold = scoring.blended(
            self.problem, self.data, [one.candidate for one in usable], weights
        )
        folder = self.run.folder / key.replace(":", "-")
        join([c.folder for c in candidates], shares, folder)
        yield Candidate(
            key=key,
            name="Ensemble of networks" + (" 2" if id != "ensemble" else ""),
            family="blend",
            folder=folder,
            recipe={"bags": [dict(c.recipe["bags"][0]) | {"weight": w} for c, w in used]},
            held=held,
            out_of_fold=out_of_fold,
            params={"weights": {c.name: round(w, 4) for c, w in used}},
            fit_s=time.monotonic() - began,
            predict_ms_row=round(sum(c.predict_ms_row for c in candidates), 3),
            train_rows=self.rows,
            packages=["numpy", "pyarrow"],
        )

    def _least(self) -> float:
        """Seconds below which nothing more is begun."""
        return max(0.3, min((one.candidate.fit_s for one in self.known), default=0.0))

    def _left(self) -> float:
        return max(0.0, self.run.remaining_s() - self.reserve_s)
