"""A learning curve in the engine: ever more rows, and predictions for those that rank."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.engines.conftest import ROLES, Warm, messy, payload_for
from training.engines import curve
from training.engines.base import Problem

CURVE = "training.engines.curve:learning_curve"


@pytest.mark.engine
@pytest.mark.xdist_group("engines")
@pytest.mark.parametrize("warm", ["sklearn"], indirect=True)  # it is the same for every engine
@pytest.mark.parametrize("folds", [0, 3])
def test_a_curve_has_ever_more_rows_and_predicts_those_that_rank(
    warm: Warm, tmp_path: Path, folds: int
) -> None:
    table = messy(400, "multiclass")
    payload = payload_for(table, ROLES, "multiclass", budget_s=10, folds=folds)
    wish = {"model": "random_forest", "hyperparameters": {"n_estimators": 10}}
    ran = warm.train(table, payload | wish)
    (key,) = ran.candidates
    data = tmp_path / "data.parquet"
    table.write_parquet(data)
    inputs = {"data": str(data), "model": str(ran.artifact(key))}
    asked = warm.task(data, payload | wish | {"budget_s": 60}, inputs=inputs)
    done = warm.run(CURVE, asked | {"kind": "training.learning_curve"})
    points = done.result["data"]["points"]
    sizes = [point["rows"] for point in points]
    assert len(points) == len(curve.SHARES)
    assert sizes == sorted(set(sizes))
    last = pl.read_parquet(done.folder / done.result["files"][points[-1]["name"]])
    ranked = np.flatnonzero(ran.parts > 0 if folds else ran.parts == -1)
    assert set(ranked.tolist()) <= set(last["row"].to_list())
    if not folds:  # with all rows it is the model itself
        both = last.join(ran.predictions(key), on="row", suffix="_before")
        np.testing.assert_allclose(both["p0"], both["p0_before"])


def test_every_class_is_among_the_few_rows_and_more_rows_hold_the_fewer() -> None:
    y = np.repeat([0, 1, 2], [500, 30, 4])
    problem = Problem(task="multiclass", target="y", metric="log_loss", classes=("a", "b", "c"))
    rows = np.arange(len(y))
    found = [set(curve.some_of(rows, y, share, problem).tolist()) for share in curve.SHARES]
    for fewer, more in pairwise(found):
        assert fewer < more
    assert {int(y[row]) for row in found[0]} == {0, 1, 2}
    assert found[-1] == set(rows.tolist())
