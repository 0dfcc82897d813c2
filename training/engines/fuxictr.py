"""FuXiCTR: DeepFM, DCN and DLRM, which learn whether somebody clicks (or any other yes or no).

Each category becomes a vector, each number another times its value, and the models differ in how
these meet (fuxictr_models.py). FuXiCTR makes the steps; epochs, early stopping, checkpoints, folds
and the clock are those of deep.py. Its own reading of files is left out: rows come from the
platform, so that all engines see the same. What was learnt is plain arrays, and numpy computes a
prediction, as in networks.py: an artifact needs neither torch nor FuXiCTR.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from . import deep, estimators, folding, matrix, named
from .base import Candidate, Data, Engine, Predictions, Predictor, Problem, Run
from .frame import Frame
from .networks import learn_encoding, table_of
from .tables import Array

MOST = 12  # candidates of a race
SHARE, LEAST_S = 0.5, 5.0  # of the time left: what one of them may take
ENOUGH_S = 3.0  # below this nothing more is begun
ROWS_AT_ONCE = 4_096
WEIGHTS, ENCODING = "weights.npz", "encoding.json"
PACKAGES = ["numpy", "pyarrow"]


class Fuxictr(Engine):
    """The declaration. A race tries the three with their defaults, then others at random."""

    name = "fuxictr"
    title = "FuXiCTR"
    task_types = frozenset({"binary"})
    imports = (
        "torch",
        "torch._dynamo",  # which the first optimizer would import, for seconds
        "sklearn.dummy",
        "sklearn.metrics",
        "pyarrow.csv",
        "pyarrow.parquet",
        "training.engines.race",
        "training.engines.fuxictr_models",
    )
    modules = (
        "matrix", "folding", "estimators", "named", "blend", "checkpoints", "networks", "torch",
        "deep", "fuxictr", "fuxictr_models",
    )  # fmt: skip

    def train(self, problem: Problem, data: Data, run: Run) -> Iterator[Candidate]:
        if problem.model:
            yield from self._one(problem, data, run)
            return
        found = False
        for number, (model, given) in enumerate(_race(problem.seed)):
            if run.pulse() or (found and run.remaining_s() < ENOUGH_S):
                break
            part = Part(run, max(SHARE * run.remaining_s(), LEAST_S))
            one = replace(problem, model=model, hyperparameters=given)
            round_ = number // len(named.models_of(self.name)) + 1
            mark = f"-{round_}" if round_ > 1 else ""
            for candidate in self._one(one, data, part, mark):
                found = True
                yield candidate
        if not found and not run.done:
            from .race import Race

            yield from Race(self.name, problem, data, run).baseline()

    def _one(self, problem: Problem, data: Data, run: Run, mark: str = "") -> Iterator[Candidate]:
        def make(params: Mapping[str, Any], rows: Data) -> Maker:
            return Maker(problem.model, params, problem, rows)

        yield from deep.train(self.name, problem, data, run, make, PACKAGES, mark)

    def load(self, folder: Path) -> Predictor:
        if not (folder / WEIGHTS).exists():
            return estimators.load(folder)  # the baseline
        told = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        if told["format"] != deep.FORMAT:
            known = f"(known: {deep.FORMAT})"
            raise ValueError(f"model format {told['format']} is not known here {known}")
        steps = json.loads((folder / ENCODING).read_text(encoding="utf-8"))
        with np.load(folder / WEIGHTS, allow_pickle=False) as arrays:
            return Ctr(told["kind"], dict(arrays), matrix.from_json(steps))

    def final(self, recipe: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**recipe, "whole": True} if "model" in recipe else estimators.on_all_rows(recipe)

    def fit(self, recipe: Mapping[str, Any], problem: Problem, data: Data, folder: Path) -> None:
        if "model" not in recipe:
            estimators.fit_recipe(recipe, problem, data, folder)
            return
        make = Maker(recipe["model"], recipe["params"], problem, data, recipe.get("cut"))
        if data.folds is not None or recipe.get("whole"):
            make.cut = None  # all its epochs are whole
            deep.refit(recipe, problem, data, folder, make)
            return
        # As the candidate was: the same rows say how it goes, and it ends after its best epoch.
        folds = folding.folds_for(problem, data.y, 1, groups=data.groups)
        rest, away = np.flatnonzero(folds == 0), np.flatnonzero(folds == 1)
        reached = Event()
        for told in deep.fit(make, problem, data.y, rest, away, hurried=reached.is_set):
            if isinstance(told, deep.Fitted):
                deep.save(told, problem, {**recipe, "params": dict(make.params)}, folder)
            elif told["epoch"] >= recipe["epochs"]:
                reached.set()


ENGINE = Fuxictr()


def _race(seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Models with what differs from their defaults."""
    known = named.models_of("fuxictr")
    yield from ((name, {}) for name in known)
    random = np.random.default_rng(seed)
    for number in range(MOST - len(known)):
        width, depth = int(random.choice([32, 64, 128, 256])), int(random.integers(1, 4))
        yield (
            list(known)[number % len(known)],
            {
                "embedding_dim": int(random.choice([4, 8, 16, 32])),
                "hidden_units": [max(8, width >> step) for step in range(depth)],
                "dropout": round(float(random.uniform(0, 0.5)), 2),
                "learning_rate": float(f"{10 ** random.uniform(-3.3, -2):.2g}"),
                "embedding_regularizer": float(f"{10 ** random.uniform(-7, -4):.2g}"),
            },
        )


class Part(Run):
    """A share of a run's time."""

    def __init__(self, run: Run, seconds: float) -> None:
        self.run, self.until = run, time.monotonic() + seconds
        self.folder, self.done = run.folder, run.done

    def remaining_s(self) -> float:
        return min(self.run.remaining_s(), self.until - time.monotonic())

    def pulse(self) -> bool:
        return self.run.pulse() or self.remaining_s() <= 0

    def working_on(self, what: str, **data: Any) -> None:
        self.run.working_on(what, **data)

    def notice(self, message: str, **data: Any) -> None:
        self.run.notice(message, **data)

    def checkpoint(self, name: str, to: Path) -> bool:
        return self.run.checkpoint(name, to)

    def keep(self, name: str, path: Path) -> None:
        self.run.keep(name, path)


class Maker:
    """Has read the rows, and makes a new network each time that it is called.

    ``cut``: an epoch, and after how many of its rows it ends, as it did when time was short.
    """

    def __init__(
        self,
        kind: str,
        params: Mapping[str, Any],
        problem: Problem,
        data: Data,
        cut: Sequence[int] | None = None,
    ) -> None:
        self.kind, self.problem, self.cut = kind, problem, cut
        self.encoding = learn_encoding(data.train)
        self.samples = samples_of(self.encoding, data.train)
        size = params["batch_size"]
        if size is None:  # as many as make some twenty steps of an epoch
            size = int(min(4096, max(64, 2 ** round(math.log2(len(data.y) / 20 + 1)))))
        self.params: Mapping[str, Any] = {**params, "batch_size": size}
        self.notices: list[str] = []

    def __call__(self) -> CtrNetwork:
        return CtrNetwork(self)


def samples_of(encoding: matrix.Encoding, frame: Frame) -> Array:
    """Rows x (numbers, then codes of categories from 1, 0 unknown)."""
    table = table_of(encoding, frame)
    return np.concatenate([table.numbers.astype(np.float64), table.codes], axis=1)


class CtrNetwork(deep.Network):
    """A model of fuxictr_models.py that learns by FuXiCTR's own steps."""

    def __init__(self, maker: Maker) -> None:
        import torch

        from . import fuxictr_models

        torch.set_num_threads(maker.problem.threads)
        torch.manual_seed(maker.problem.seed % 2**31)
        self.kind, self.params, self.samples = maker.kind, maker.params, maker.samples
        self.encoding, self.cut, self.epochs = maker.encoding, maker.cut, 0
        steps = maker.encoding.steps
        levels = [len(step["levels"]) + 1 for step in steps if step["as"] == "codes"]
        self.width = self.samples.shape[1] - len(levels)
        self.model = fuxictr_models.build(self.kind, self.width, levels, self.params)

    def epoch(
        self,
        goal: Array,
        order: Array,
        rate: Callable[[float], float],
        late: Callable[[float], bool],
    ) -> float:
        import torch

        from . import fuxictr_models

        self.model.train()
        self.epochs += 1
        most = self.cut[1] if self.cut and self.cut[0] == self.epochs else len(order)
        size = int(self.params["batch_size"])
        total, seen, began = 0.0, 0, time.monotonic()
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            if len(rows) < 2 < len(order):  # a batch normalisation needs two
                continue
            for group in self.model.optimizer.param_groups:
                group["lr"] = rate(seen / len(order))
            batch = fuxictr_models.inputs(self.width, torch.from_numpy(self.samples[rows]))
            batch[fuxictr_models.LABEL] = torch.from_numpy(goal[rows])
            loss = float(self.model.train_step(batch))
            total, seen = total + loss * len(rows), seen + len(rows)
            if late((time.monotonic() - began) / seen) and seen < most:
                self.repeats = {"cut": [self.epochs, seen]}
                break
            if seen >= most:
                break
        return total / max(1, seen)

    def _arrays(self) -> dict[str, Array]:
        """What was learnt, shared with the model."""
        state = self.model.state_dict()
        return {name: tensor.detach().numpy() for name, tensor in state.items()}

    def scores(self, samples: Array) -> Array:
        return shares(self.kind, self._arrays(), self.width, samples)

    def weights(self) -> dict[str, Array]:
        return {name: array.copy() for name, array in self._arrays().items()}

    def set_weights(self, weights: Mapping[str, Array]) -> None:
        import torch

        self.model.load_state_dict({n: torch.from_numpy(a.copy()) for n, a in weights.items()})

    def state(self) -> dict[str, Array]:
        from .torch import state_of

        epochs = {"epochs": np.array(self.epochs)}
        return state_of(self.model, self.model.optimizer) | epochs

    def restore(self, state: Mapping[str, Array]) -> None:
        from . import checkpoints
        from .torch import take_up

        if any(name.startswith("optimizer.") for name in state):
            self.epochs = int(state["epochs"])
            take_up(state, self.model, self.model.optimizer)
        else:  # a large model's checkpoint has its weights alone, rounded
            self.set_weights(checkpoints.part(state, "network"))

    def save(self, folder: Path) -> None:
        np.savez(folder / WEIGHTS, **deep.halved(self._arrays()))  # type: ignore[arg-type]
        text = json.dumps(matrix.as_json(self.encoding), ensure_ascii=False)
        (folder / ENCODING).write_text(text, encoding="utf-8")

    def read(self, data: Any) -> Array:
        return samples_of(self.encoding, data)


class Ctr(Predictor):
    """A stored model: arrays alone."""

    def __init__(self, kind: str, arrays: dict[str, Array], encoding: matrix.Encoding) -> None:
        self.kind, self.encoding = kind, encoding
        # Embeddings stay as they are stored; of them, only the rows that are asked for widen.
        self.arrays = {
            name: array if "embedding" in name else wide(array) for name, array in arrays.items()
        }
        self.width = encoding.width - len(encoding.categorical)

    def predict(self, frame: Frame) -> Predictions:
        samples = samples_of(self.encoding, frame)
        return deep.predictions(shares(self.kind, self.arrays, self.width, samples))


# The models' predictions, in numpy


def shares(kind: str, arrays: Mapping[str, Array], width: int, samples: Array) -> Array:
    """Rows x 2: the probabilities of no and yes. ``width`` columns of the samples are numbers."""
    found = np.zeros((len(samples), 2))
    for start in range(0, len(samples), ROWS_AT_ONCE):
        part = samples[start : start + ROWS_AT_ONCE]
        logits = FORWARD[kind](arrays, part[:, :width], part[:, width:].astype(np.int64))
        small = np.exp(-np.abs(logits))
        yes = np.where(logits >= 0, 1.0, small) / (1.0 + small)
        found[start : start + ROWS_AT_ONCE] = np.stack([1.0 - yes, yes], axis=1)
    return found


def wide(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def embedded(arrays: Mapping[str, Array], at: str, numbers: Array, codes: Array) -> Array:
    """Rows x features x dimensions; ``at`` is where the layer's arrays are."""
    at += "embedding_layer.embedding_layers."
    parts = [
        numbers[:, [place]] * wide(arrays[f"{at}n{place}.weight"]).T
        for place in range(numbers.shape[1])
        if f"{at}n{place}.weight" in arrays
    ]
    parts += [
        wide(arrays[f"{at}c{place}.weight"][codes[:, place]]) for place in range(codes.shape[1])
    ]
    return np.stack(parts, axis=1)


def passed(arrays: Mapping[str, Array], at: str, values: Array, *, bare: bool = True) -> Array:
    """Through layers with ReLU after each; not after the last of all where that is ``bare``."""
    at += ".mlp."
    places = sorted({int(n.removeprefix(at).partition(".")[0]) for n in arrays if n.startswith(at)})
    linear = [p for p in places if f"{at}{p}.running_mean" not in arrays]
    for place in linear:
        values = values @ wide(arrays[f"{at}{place}.weight"]).T + wide(arrays[f"{at}{place}.bias"])
        norm = f"{at}{place + 1}."
        if f"{norm}running_mean" in arrays:
            mean, spread = wide(arrays[f"{norm}running_mean"]), wide(arrays[f"{norm}running_var"])
            scale = wide(arrays[f"{norm}weight"]) / np.sqrt(spread + 1e-5)
            values = (values - mean) * scale + wide(arrays[f"{norm}bias"])
        if place != linear[-1] or not bare:
            values = np.maximum(values, 0.0)
    return values


def _deepfm(arrays: Mapping[str, Array], numbers: Array, codes: Array) -> Array:
    vectors = embedded(arrays, "embedding_layer.", numbers, codes)
    single = embedded(arrays, "fm.lr_layer.embedding_layer.", numbers, codes)
    pairs = (vectors.sum(axis=1) ** 2 - (vectors**2).sum(axis=1)).sum(axis=1) / 2
    linear = single.sum(axis=(1, 2)) + wide(arrays["fm.lr_layer.bias"])
    deeper: Array = passed(arrays, "mlp", vectors.reshape(len(codes), -1))[:, 0]
    return pairs + linear + deeper


def _dcn(arrays: Mapping[str, Array], numbers: Array, codes: Array) -> Array:
    first = embedded(arrays, "embedding_layer.", numbers, codes).reshape(len(codes), -1)
    crossed, layer = first, 0
    while (at := f"cross.cross_net.{layer}.") + "bias" in arrays:
        weight, bias = wide(arrays[f"{at}weight.weight"]), wide(arrays[f"{at}bias"])
        crossed, layer = crossed + (crossed @ weight.T) * first + bias, layer + 1
    both = np.concatenate([crossed, passed(arrays, "mlp", first, bare=False)], axis=1)
    found: Array = (both @ wide(arrays["head.weight"]).T + wide(arrays["head.bias"]))[:, 0]
    return found


def _dlrm(arrays: Mapping[str, Array], numbers: Array, codes: Array) -> Array:
    seen, parts = [], []
    if numbers.shape[1]:
        dense = passed(arrays, "bottom", numbers, bare=False)
        seen.append(dense[:, None, :])
        parts.append(dense)
    if codes.shape[1]:
        none = numbers[:, :0]
        seen.append(embedded(arrays, "embedding_layer.", none, codes))
    vectors = np.concatenate(seen, axis=1)
    if vectors.shape[1] > 1:
        products = vectors @ vectors.transpose(0, 2, 1)
        above = np.triu_indices(vectors.shape[1], 1)
        parts.insert(0, products[:, above[0], above[1]])
    elif not parts:
        parts.append(vectors.reshape(len(codes), -1))
    found: Array = passed(arrays, "mlp", np.concatenate(parts, axis=1))[:, 0]
    return found


FORWARD = {"deepfm": _deepfm, "dcn": _dcn, "dlrm": _dlrm}
