"""PyTorch: networks on tables, texts and pictures.

What surrounds the passes over the rows is in networks.py for tables, in deep.py for the others;
what a network of texts looks like in language.py, one of pictures in vision.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checkpoints, deep, named
from .base import Candidate, Data, Predictions, Predictor, Problem, Run
from .frame import Frame
from .networks import Framework, NetworkEngine, Plan, Table, Weights, folded, softmax
from .tables import Array

if TYPE_CHECKING:
    import torch


class Torch(NetworkEngine):
    """The declaration; one adapter for every version and device."""

    name = "torch"
    title = "PyTorch"
    devices = frozenset({"cpu", "gpu"})
    imports = (
        "torch",
        "torch.nn.functional",
        "torch._dynamo",  # which the first optimizer would import, for seconds
        "training.engines.language",  # it keeps what comes next from looking for a network
        "transformers.models.auto.modeling_auto",
        "transformers.models.bert.modeling_bert",
        "transformers.models.resnet.modeling_resnet",
        "PIL.ImageOps",
        "sklearn.dummy",
        "sklearn.metrics",
        "pyarrow.csv",
        "pyarrow.parquet",
        "training.engines.race",
    )
    modules = (
        "matrix", "folding", "estimators", "named", "blend", "checkpoints", "networks", "torch",
        "deep", "images", "language", "vision",
    )  # fmt: skip

    def make(self, plan: Plan) -> Framework:
        return TorchNetwork(plan)

    def train(self, problem: Problem, data: Data, run: Run) -> Iterator[Candidate]:
        if reader := reader_of(problem.model):
            packages = [*PACKAGES, *reader.PACKAGES]
            yield from deep.train(
                self.name,
                problem,
                data,
                run,
                lambda params, rows: reader.maker(problem.model, params, problem, rows),
                packages,
            )
        else:
            yield from super().train(problem, data, run)

    def load(self, folder: Path) -> Predictor:
        told = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        reader = reader_of(told.get("kind", ""))
        found: Predictor = reader.load(folder, told) if reader else super().load(folder)
        return found

    def final(self, recipe: Mapping[str, Any]) -> Mapping[str, Any]:
        return recipe if reader_of(recipe.get("model", "")) else super().final(recipe)

    def fit(self, recipe: Mapping[str, Any], problem: Problem, data: Data, folder: Path) -> None:
        if reader := reader_of(recipe.get("model", "")):
            make = reader.maker(recipe["model"], recipe["params"], problem, data)
            deep.refit(recipe, problem, data, folder, make)
        else:
            super().fit(recipe, problem, data, folder)


ENGINE = Torch()
IMAGES = {model.name for model in named.IMAGE}
PACKAGES = ["numpy", "pyarrow", "torch", "transformers", "tokenizers", "safetensors"]


def reader_of(model: str) -> Any:
    """The module that makes networks of this model's samples; None of a network on a table."""
    if named.reads(model) == "text":
        from . import language

        return language
    if model in IMAGES:
        from . import vision

        return vision
    return None


class SampleNetwork(deep.Network):
    """A network of torch on samples: a subclass builds it and makes tensors of some samples."""

    def __init__(
        self, network: torch.nn.Module, samples: Array, params: Mapping[str, Any], threads: int
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network, self.samples, self.params = network.to(self.device), samples, params
        self.optimizer: torch.optim.Optimizer | None = None

    def inputs(self, samples: Array) -> Any:
        """What :meth:`logits` takes of these samples."""
        raise NotImplementedError

    def logits(self, inputs: Any) -> torch.Tensor:
        """Rows x classes."""
        raise NotImplementedError

    def batches(self, samples: Array, rows: Array, size: int) -> list[Array]:
        """The rows in this order, cut; a subclass may put like ones together."""
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def epoch(
        self,
        goal: Array,
        order: Array,
        rate: Callable[[float], float],
        late: Callable[[float], bool],
    ) -> float:
        import torch
        from torch.nn import functional

        if self.optimizer is None:
            self.optimizer = self._optimizer()
        self.network.train()
        total, seen, began = 0.0, 0, time.monotonic()
        for rows in self.batches(self.samples, order, int(self.params["batch_size"])):
            if len(rows) < 2 < len(order):  # a batch normalisation needs two
                continue
            for group in self.optimizer.param_groups:
                group["lr"] = rate(seen / len(order))
            wanted = torch.from_numpy(np.ascontiguousarray(goal[rows])).to(self.device)
            found = self.logits(self.inputs(self.samples[rows]))
            loss = functional.cross_entropy(found.float(), wanted)
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            total, seen = total + float(loss.detach()) * len(rows), seen + len(rows)
            if late((time.monotonic() - began) / seen):
                break
        return total / max(1, seen)

    def _optimizer(self) -> torch.optim.Optimizer:
        import torch

        return torch.optim.AdamW(
            self.network.parameters(),
            lr=float(self.params["learning_rate"]),
            weight_decay=float(self.params["weight_decay"]),
        )

    def scores(self, samples: Array) -> Array:
        return scores_of(self, samples, int(self.network.classes))  # type: ignore[arg-type]

    def weights(self) -> dict[str, Array]:
        state = self.network.state_dict()
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in state.items()}

    def set_weights(self, weights: Mapping[str, Array]) -> None:
        import torch

        self.network.load_state_dict({n: torch.from_numpy(a.copy()) for n, a in weights.items()})

    def state(self) -> dict[str, Array]:
        assert self.optimizer is not None
        return state_of(self.network, self.optimizer)

    def restore(self, state: Mapping[str, Array]) -> None:
        import torch

        if any(name.startswith("optimizer.") for name in state):
            self.optimizer = self._optimizer()
            take_up(state, self.network, self.optimizer)
        else:
            self.set_weights(checkpoints.part(state, "network"))
            torch.manual_seed(0)


def scores_of(network: SampleNetwork, samples: Array, classes: int) -> Array:
    """Rows x classes: probabilities, in the samples' order."""
    import torch

    found = np.zeros((len(samples), classes))
    network.network.eval()
    with torch.inference_mode():
        for rows in network.batches(samples, np.arange(len(samples)), 32):
            logits = network.logits(network.inputs(samples[rows]))
            found[rows] = softmax(logits.double().cpu().numpy())
    return found


class SamplePredictor(Predictor):
    """A stored network of samples."""

    def __init__(self, network: SampleNetwork) -> None:
        self.network = network

    def predict(self, frame: Frame) -> Predictions:
        import torch

        torch.set_num_threads(self.threads)
        return deep.predictions(self.network.scores(self.network.read(frame)))


def write_weights(network: torch.nn.Module, folder: Path) -> None:
    """``weights.safetensors``, numbers rounded to half as many digits."""
    from safetensors.torch import save_file

    halves = {
        name: tensor.detach().cpu().half() if tensor.is_floating_point() else tensor.detach().cpu()
        for name, tensor in network.state_dict().items()
    }
    save_file({name: one.contiguous().clone() for name, one in halves.items()}, folder / WEIGHTS)


def read_weights(network: torch.nn.Module, folder: Path) -> None:
    """What :func:`write_weights` wrote. Nothing is unpickled."""
    from safetensors.torch import load_file

    network.load_state_dict(load_file(folder / WEIGHTS))


WEIGHTS = "weights.safetensors"


class TorchNetwork(Framework):
    def __init__(self, plan: Plan) -> None:
        import torch

        torch.set_num_threads(plan.threads)
        torch.manual_seed(plan.seed)
        self.plan = plan
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.embeddings = torch.nn.ModuleList(
            torch.nn.Embedding(levels, size)
            for levels, size in zip(plan.levels, plan.dimensions, strict=True)
        )
        width = plan.width + sum(plan.dimensions)
        blocks: list[Any] = []
        for size in plan.layers:
            blocks += [torch.nn.Linear(width, size), torch.nn.BatchNorm1d(size), torch.nn.ReLU()]
            blocks += [torch.nn.Dropout(plan.dropout)]
            width = size
        self.body = torch.nn.Sequential(*blocks, torch.nn.Linear(width, plan.outputs))
        self.whole = torch.nn.ModuleList([self.embeddings, self.body]).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.whole.parameters(), weight_decay=plan.weight_decay, lr=1e-3
        )

    def epoch(self, table: Table, goal: Array, order: Array, rate: float) -> float:
        import torch
        from torch.nn import functional

        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.whole.train()
        numbers = torch.from_numpy(table.numbers).to(self.device)
        codes = torch.from_numpy(table.codes).to(self.device)
        goals = torch.from_numpy(goal).to(self.device)
        total = 0.0
        for start in range(0, len(order), self.plan.batch):
            rows = torch.from_numpy(order[start : start + self.plan.batch]).to(self.device)
            if len(rows) < 2:  # a batch normalisation needs two
                continue
            found = self._forward(numbers[rows], codes[rows])
            if self.plan.classifies:
                loss = functional.cross_entropy(found, goals[rows])
            else:
                loss = functional.mse_loss(found[:, 0], goals[rows])
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.whole.parameters(), 5.0)
            self.optimizer.step()
            total += float(loss.detach()) * len(rows)
        return total / len(order)

    def _forward(self, numbers: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        import torch

        parts = [numbers]
        parts += [table(codes[:, place]) for place, table in enumerate(self.embeddings)]
        found: torch.Tensor = self.body(torch.cat(parts, dim=1))
        return found

    def weights(self) -> Weights:
        def array(tensor: torch.Tensor) -> Array:
            return tensor.detach().cpu().numpy().astype(np.float64)

        import torch

        found = {
            f"embedding-{place}": array(table.weight) for place, table in enumerate(self.embeddings)
        }
        layer = 0
        for block in self.body:
            if isinstance(block, torch.nn.Linear):
                found[f"weight-{layer}"] = array(block.weight).T.copy()
                found[f"bias-{layer}"] = array(block.bias)
                layer += 1
            elif isinstance(block, torch.nn.BatchNorm1d):
                assert block.running_var is not None
                assert block.running_mean is not None
                scale = array(block.weight) / np.sqrt(array(block.running_var) + block.eps)
                shift = array(block.bias) - array(block.running_mean) * scale
                last = layer - 1
                found[f"weight-{last}"], found[f"bias-{last}"] = folded(
                    found[f"weight-{last}"], found[f"bias-{last}"], scale, shift
                )
        return found

    def state(self) -> dict[str, Array]:
        return state_of(self.whole, self.optimizer)

    def restore(self, state: Mapping[str, Array]) -> None:
        take_up(state, self.whole, self.optimizer)


def state_of(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Array]:
    """A network's weights, its optimizer's memory and the random generator, as arrays."""
    import torch

    found = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    for place, memory in optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{place}.{name}": tensor for name, tensor in memory.items()}
    arrays = {name: tensor.detach().cpu().numpy().copy() for name, tensor in found.items()}
    return arrays | {"random": torch.get_rng_state().numpy().copy()}


def take_up(
    state: Mapping[str, Array], network: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Go on from what :func:`state_of` gave. Raises where it is of another network."""
    import torch

    memory: dict[int, dict[str, Any]] = {}
    weights = {}
    for name, array in state.items():
        what, _, rest = name.partition(".")
        if what == "network":
            weights[rest] = torch.from_numpy(array.copy())
        elif what == "optimizer":
            place, _, called = rest.partition(".")
            memory.setdefault(int(place), {})[called] = torch.from_numpy(array.copy())
    network.load_state_dict(weights)
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    for number, parameter in enumerate(parameters):
        for array in memory.get(number, {}).values():
            if array.ndim and array.shape != parameter.shape:
                raise ValueError("the optimizer's memory is of another network")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": memory, "param_groups": groups})
    torch.set_rng_state(torch.from_numpy(state["random"].copy()))
