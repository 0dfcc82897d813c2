"""What FuXiCTR's adapter adds: models of its own, whose predictions numpy computes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.engines.conftest import REPO, python_of

pytestmark = [pytest.mark.engine, pytest.mark.heavy, pytest.mark.xdist_group("engines")]

FITS = """
import itertools, json, sys
from pathlib import Path
import numpy as np
import torch
from training.engines import deep, fuxictr, fuxictr_models, named
from training.engines.base import Data, Problem
from training.engines.frame import Categories, Frame

random = np.random.default_rng(0)
told = {"ray": "ray" in sys.modules, "own": {}}


def params_of(kind, **more):
    known = named.models_of("fuxictr")[kind].parameters_for("binary")
    return {name: one.default for name, one in known.items()} | more


for kind, (width, levels), norm in itertools.product(
    fuxictr_models.KINDS, [(3, [5, 9]), (2, []), (0, [4])], (False, True)
):
    torch.manual_seed(0)
    model = fuxictr_models.build(kind, width, levels, params_of(kind, batch_norm=norm))
    codes = [random.integers(0, count, (200, 1)) for count in levels]
    samples = np.concatenate([random.normal(size=(200, width)), *codes], axis=1)
    batch = fuxictr_models.inputs(width, torch.from_numpy(samples))
    batch[fuxictr_models.LABEL] = torch.from_numpy(random.integers(0, 2, 200))
    for _ in range(4):
        model.train_step(batch)
    model.eval()
    theirs = model(batch)["y_pred"].detach().numpy()[:, 0]
    arrays = {name: one.numpy() for name, one in model.state_dict().items()}
    mine = fuxictr.shares(kind, arrays, width, samples)[:, 1]
    told["own"][f"{kind} {width} {levels} {norm}"] = float(np.abs(mine - theirs).max())

# A yes depends on whom and what together, and on a number with gaps.
who, what = random.integers(0, 6, 1500), random.integers(0, 6, 1500)
price = random.normal(size=1500)
y = ((who + what) % 2 * 2 - 1 + price + random.normal(0, 0.3, 1500) > 0).astype(np.int64)
price[random.random(1500) < 0.1] = np.nan
names = tuple("abcdef")
columns = {"who": Categories(who.astype(np.int32), names)}
columns |= {"what": Categories(what.astype(np.int32), names), "price": price}
frame, train = Frame(columns, 1500), np.arange(1500) < 1200
data = Data(frame.take(train), y[train], frame.take(~train))
problem = Problem("binary", "y", "log_loss", ("no", "yes"), "yes", seed=3)
rest, stop = np.arange(0, 960), np.arange(960, 1200)


def fit(kind, epochs, checkpoint=None):
    params = params_of(kind, epochs=10, patience=10, learning_rate=0.01)
    make = fuxictr.Maker(kind, params, problem, data)
    found = deep.fit(make, problem, data.y, rest, stop, checkpoint=checkpoint)
    return [one for one in itertools.islice(found, epochs)]


told["models"] = {}
for kind in fuxictr_models.KINDS:
    *curve, fitted = fit(kind, 99)
    *_, again = fit(kind, 99)
    kept = Path(f"{kind}.checkpoint")
    fit(kind, 3, kept)
    *after, resumed = fit(kind, 99, kept)
    held = fitted.network.read(data.held)
    known = fitted.network.scores(held)
    told["models"][kind] = {
        "right": float((known.argmax(axis=1) == y[~train]).mean()),
        "again": float(np.abs(again.network.scores(held) - known).max()),
        "resumed": float(np.abs(resumed.network.scores(held) - known).max()),
        "epochs_after": [one["epoch"] for one in after],
        "losses": [one["loss"] for one in curve],
    }
print(json.dumps(told))
"""


def test_models_learn_what_meets_predict_as_fuxictr_does_and_go_on_where_they_were(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [python_of("fuxictr"), "-W", "ignore", "-c", FITS],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["ray"] is False, "what forks has begun threads"
    assert len(told["own"]) == 18
    assert all(far < 1e-5 for far in told["own"].values()), told["own"]  # its own are float32
    assert told["models"].keys() == {"deepfm", "dcn", "dlrm"}
    for name, one in told["models"].items():
        assert one["right"] > 0.8, name
        assert one["again"] == 0.0, name
        assert one["resumed"] < 1e-9, name
        assert one["epochs_after"] == list(range(4, 11)), name
        assert one["losses"][-1] < one["losses"][0], name
