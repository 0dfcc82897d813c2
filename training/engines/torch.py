"""PyTorch: tabular networks (networks.py has all but the passes over the rows)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .networks import Framework, NetworkEngine, Plan, Table, Weights, folded
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
        "sklearn.dummy",
        "sklearn.metrics",
        "pyarrow.csv",
        "pyarrow.parquet",
        "training.engines.race",
    )
    modules = (
        "matrix", "folding", "estimators", "named", "blend", "checkpoints", "networks", "torch",
    )  # fmt: skip

    def make(self, plan: Plan) -> Framework:
        return TorchNetwork(plan)


ENGINE = Torch()


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
            weights[rest] = torch.from_numpy(array)
        elif what == "optimizer":
            place, _, called = rest.partition(".")
            memory.setdefault(int(place), {})[called] = torch.from_numpy(array)
    network.load_state_dict(weights)
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    for place, parameter in enumerate(parameters):
        for array in memory.get(place, {}).values():
            if array.ndim and array.shape != parameter.shape:
                raise ValueError("the optimizer's memory is of another network")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": memory, "param_groups": groups})
    torch.set_rng_state(torch.from_numpy(state["random"]))
