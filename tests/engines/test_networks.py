"""What networks.py does around a framework: epochs, early stopping, checkpoints, the curve."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines.test_race import Run
from training.engines import checkpoints, named, networks
from training.engines.base import Data, Problem
from training.engines.frame import Categories, Frame


class Logistic(networks.Framework):
    """A single layer that learns by plain gradient steps."""

    def __init__(self, plan: networks.Plan) -> None:
        random = np.random.default_rng(plan.seed)
        self.plan = plan
        self.embeddings = [
            random.normal(size=size) for size in zip(plan.levels, plan.dimensions, strict=True)
        ]
        width = plan.width + sum(plan.dimensions)
        self.weight, self.bias = np.zeros((width, plan.outputs)), np.zeros(plan.outputs)

    def epoch(self, table: networks.Table, goal: Any, order: Any, rate: float) -> float:
        total = 0.0
        for start in range(0, len(order), self.plan.batch):
            rows = order[start : start + self.plan.batch]
            part = table.take(rows)
            codes = [e[c] for e, c in zip(self.embeddings, part.codes.T, strict=True)]
            seen = np.concatenate([part.numbers, *codes], axis=1)
            shares = networks.softmax(seen @ self.weight + self.bias)
            total += -np.log(shares[np.arange(len(rows)), goal[rows]]).sum()
            shares[np.arange(len(rows)), goal[rows]] -= 1
            self.weight -= 30 * rate * seen.T @ shares / len(rows)
            self.bias -= 30 * rate * shares.mean(axis=0)
        return float(total / len(order))

    def weights(self) -> networks.Weights:
        tables = {f"embedding-{place}": e for place, e in enumerate(self.embeddings)}
        return tables | {"weight-0": self.weight.copy(), "bias-0": self.bias.copy()}

    def state(self) -> dict[str, Any]:
        return {"weight": self.weight.copy(), "bias": self.bias.copy()}

    def restore(self, state: Any) -> None:
        self.weight, self.bias = state["weight"].copy(), state["bias"].copy()


class Toy(networks.NetworkEngine):
    name, title = "torch", "Toy"

    def make(self, plan: networks.Plan) -> networks.Framework:
        return Logistic(plan)


PROBLEM = Problem("binary", "y", "log_loss", ("no", "yes"), "yes", seed=5)
DEFAULTS = {p.name: p.default for p in named.TABULAR_NETWORK.parameters}


def rows(count: int = 400, folds: int = 0) -> Data:
    random = np.random.default_rng(1)
    x, kind = random.normal(size=count), random.integers(0, 3, count).astype(np.int32)
    y = (x + 2 * (kind == 1) + random.normal(0, 0.7, count) > 0.7).astype(np.int64)
    x[random.random(count) < 0.1] = np.nan
    frame = Frame({"x": x, "kind": Categories(kind, ("a", "b", "c"))}, count)
    train = np.arange(count) < 0.8 * count
    parts = np.arange(train.sum()) % folds + 1 if folds else None
    return Data(frame.take(train), y[train], frame.take(~train), parts)


def fits(data: Data, checkpoint: Path | None, epochs: int) -> Any:
    encoding = networks.learn_encoding(data.train)
    table = networks.table_of(encoding, data.train)
    rest, stop = np.arange(0, 240), np.arange(240, len(data.y))
    params = DEFAULTS | {"epochs": epochs, "patience": 100, "learning_rate": 0.02}
    return networks.fit_net(
        Toy(), params, PROBLEM, table, data.y, encoding, rest, stop, None, None, checkpoint
    )


def test_a_fit_that_was_cut_off_goes_on_from_its_last_epoch(tmp_path: Path) -> None:
    data, checkpoint = rows(), tmp_path / "net.checkpoint"
    whole = list(fits(data, None, 8))
    began = fits(data, checkpoint, 8)
    first = [next(began) for _ in range(4)]
    began.close()  # cut off in the fourth epoch: three are kept
    rest = list(fits(data, checkpoint, 8))
    assert [told["epoch"] for told in [*first, *whole[:-1]]] == [1, 2, 3, 4, *range(1, 9)]
    assert [told["epoch"] for told in rest[:-1]] == [4, 5, 6, 7, 8]
    assert rest[:-1] == whole[3:-1]
    for name, array in whole[-1].weights.items():
        np.testing.assert_array_equal(rest[-1].weights[name], array)


@pytest.mark.parametrize("what", ["pickle", "torn", "nonsense", "another fit", "another network"])
def test_a_checkpoint_that_does_not_fit_is_as_good_as_none(tmp_path: Path, what: str) -> None:
    data, checkpoint = rows(), tmp_path / "net.checkpoint"
    list(fits(data, checkpoint, 3))
    told, arrays = checkpoints.read(checkpoint)
    if what == "pickle":
        bad = np.array([Trap(tmp_path / "sprung")], dtype=object)
        with checkpoint.open("wb") as file:
            np.savez(file, **{checkpoints.TOLD: bad, **arrays})
    elif what == "torn":
        checkpoint.write_bytes(checkpoint.read_bytes()[:300])
    elif what == "nonsense":
        checkpoint.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    elif what == "another fit":
        checkpoints.write(checkpoint, told | {"mark": "other"}, arrays)
    else:
        arrays["best.weight-0"] = arrays["best.weight-0"][:1]
        checkpoints.write(checkpoint, told, arrays)
    again = list(fits(data, checkpoint, 3))
    assert [one["epoch"] for one in again[:-1]] == [1, 2, 3]
    assert not (tmp_path / "sprung").exists()


class Trap:
    """What runs code where it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> Any:
        return Path.touch, (self.sprung,)


def test_it_stops_by_rows_that_it_does_not_learn_from_and_keeps_the_best_epoch() -> None:
    data = rows()
    random = np.random.default_rng(2)
    noise = Data(data.train, random.permutation(data.y), data.held)
    encoding = networks.learn_encoding(noise.train)
    table = networks.table_of(encoding, noise.train)
    params = DEFAULTS | {"epochs": 300, "patience": 5, "learning_rate": 0.2}
    *told, net = networks.fit_net(
        Toy(), params, PROBLEM, table, noise.y, encoding,
        np.arange(40), np.arange(40, len(noise.y)), None, None, None,
    )  # fmt: skip
    losses = [one["validation_loss"] for one in told]
    assert len(told) < 300
    assert told[-1]["best"] == int(np.argmin(losses)) + 1 == len(losses) - 5
    found = networks.loss_of(
        networks.forward(net.weights, table.take(np.arange(40, len(noise.y)))), noise.y[40:], True
    )
    assert found == pytest.approx(min(losses))


@pytest.mark.parametrize("folds", [0, 3])
def test_candidates_come_with_their_curve_and_can_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folds: int
) -> None:
    monkeypatch.chdir(tmp_path)
    heard: list[dict[str, Any]] = []

    class Listening(Run):
        def working_on(self, what: str, **data: Any) -> None:
            heard.append(data)

    data, engine = rows(folds=folds), Toy()
    (tmp_path / "models").mkdir()
    run = Listening(tmp_path / "models", 60)
    found = {one.key: one for one in engine.train(PROBLEM, data, run)}
    assert not run.notices
    assert "torch:network-1" in found
    assert {"epoch", "loss", "validation_loss", "net"} == heard[1]["curve"][0].keys()
    curve = found["torch:network-1"].curve
    assert [point["epoch"] for point in curve] == list(range(1, len(curve) + 1))
    for number, one in enumerate([found["torch:network-2"], list(found.values())[-1]]):
        loaded = engine.load(one.folder).predict(data.held).probabilities
        np.testing.assert_allclose(loaded, one.held.probabilities, atol=1e-12)
        engine.fit(one.recipe, PROBLEM, data, tmp_path / f"again-{number}")
        again = engine.load(tmp_path / f"again-{number}").predict(data.held).probabilities
        np.testing.assert_allclose(again, one.held.probabilities, atol=1e-12)
        whole = engine.final(one.recipe)
        engine.fit(whole, PROBLEM, data, tmp_path / f"whole-{number}")
        assert (one.out_of_fold is not None) == bool(folds)


def test_a_network_by_name_has_exactly_these_hyperparameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"layers": [16], "epochs": 7, "patience": 7}
    assert named.problems("pytorch-2.0", "tabular_network", "binary", given) == {}
    problem = Problem(
        "binary", "y", "log_loss", ("no", "yes"), "yes", 5, 1, "tabular_network", given
    )
    (tmp_path / "models").mkdir()
    (one,) = Toy().train(problem, rows(), Run(tmp_path / "models", 60))
    assert one.key == "torch:tabular_network"
    assert one.params["stopped_at_epoch"] <= 7
    assert given.items() <= one.recipe["bags"][0]["params"].items()
