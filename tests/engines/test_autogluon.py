"""What AutoGluon's adapter adds: a quick way to predict, and fits that can be repeated."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.engines.conftest import REPO, python_of

pytestmark = [pytest.mark.engine, pytest.mark.heavy, pytest.mark.xdist_group("engines")]

FITS = """
import json, sys
from pathlib import Path
import numpy as np
from training.engines import autogluon, matrix
from training.engines.base import Data, Problem
from training.engines.frame import Categories, Frame

kind, folds = sys.argv[1], sys.argv[2] == "folds"
random = np.random.default_rng(0)
a, c = random.normal(size=300), random.integers(0, 5, 300).astype(np.int32)
y = a + (c == 2) + random.normal(0, 0.4, 300)
y = y if kind == "regression" else np.digitize(y, [-0.3, 0.6] if kind == "multiclass" else [0])
a[random.random(300) < 0.1] = np.nan
frame = Frame({"a": a, "c": Categories(c, tuple("abcde"))}, 300)
train = np.arange(300) < 240
parts = np.arange(240) % 3 + 1 if folds else None
data = Data(frame.take(train), y[train], frame.take(~train), parts)
classes = {"binary": ("n", "y"), "multiclass": ("h", "l", "m")}.get(kind)
problem = Problem(kind, "y", "log_loss" if classes else "rmse", classes)
encoding, told = matrix.learn(data.train, "native"), {}
rows = autogluon.Rows(encoding, data.held)
for name in autogluon.CLASSES:
    # LightGBM's random splits on few rows find none in some rounds.
    params = {"extra_trees": True} if name == "GBM" else {}
    recipe = {"kind": name, "params": params, "folds": 3}
    bag, scores = autogluon.fit_bag(recipe, problem, data, encoding, Path(name))
    again, _ = autogluon.fit_bag(bag.recipe, problem, data, encoding, Path(name + "-again"))
    child, n = bag.children[0], problem.n_classes
    theirs = np.asarray(child.model.predict_proba(rows.table), dtype=float)
    if n == 2:
        theirs = np.column_stack([1 - theirs, theirs])
    told[name] = {
        "own": float(np.abs(child.scores(rows, n) - theirs).max()),
        "again": float(np.abs(bag.scores(rows, n) - again.scores(rows, n)).max()),
        "scale": float(np.abs(theirs).max()),
        "predicted": int(np.isfinite(scores.reshape(240, -1)[:, 0]).sum()),
        "rounds": bag.recipe["rounds"],
    }
print(json.dumps(told))
"""


@pytest.mark.parametrize(
    ("kind", "folds"), [("multiclass", ""), ("regression", ""), ("binary", "folds")]
)
def test_each_model_predicts_as_autogluon_does_and_can_be_fitted_again(
    tmp_path: Path, kind: str, folds: str
) -> None:
    done = subprocess.run(
        [python_of("autogluon"), "-W", "ignore", "-c", FITS, kind, folds],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told) == {"GBM", "CAT", "XGB", "XT", "RF"}
    for name, one in told.items():
        assert one["own"] < 1e-6 * one["scale"], name  # AutoGluon's own are float32
        assert one["again"] < 1e-9 * one["scale"], name
        assert one["predicted"] == 240, name
        assert len(one["rounds"]) == 3, name
        assert all(one["rounds"]), name
