"""Partial dependence in the engine: which values, of which rows, and what time allows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines.conftest import ROLES, Ran, Warm, messy, payload_for
from training.engines import dependence

HANDLER = "training.engines.dependence:dependence"
pytestmark = [
    pytest.mark.engine,
    pytest.mark.xdist_group("engines"),
    # What it does is the same for every engine.
    pytest.mark.parametrize("warm", ["sklearn"], indirect=True),
]


def ask(warm: Warm, tmp_path: Path, task: str, **how: object) -> Ran:
    """What it says of a race's one model."""
    table = messy(400, task)
    payload = payload_for(table, ROLES, task, budget_s=10, folds=0)
    wish = {"model": "random_forest", "hyperparameters": {"n_estimators": 10}}
    ran = warm.train(table, payload | wish)
    (key,) = ran.candidates
    data = tmp_path / "data.parquet"
    table.write_parquet(data)
    inputs = {"data": str(data), "model": str(ran.artifact(key))}
    asked = warm.task(data, payload | wish | {"dependence_s": 60.0} | how, inputs=inputs)
    return warm.run(HANDLER, asked | {"kind": "training.dependence"})


def test_each_column_is_given_one_value_after_the_other(warm: Warm, tmp_path: Path) -> None:
    told = ask(warm, tmp_path, "multiclass", first=["noise"]).result["data"]
    used = [name for name, role in ROLES.items() if role not in {"text", "identifier"}]
    columns: dict[str, Any] = {one["column"]: one for one in told["columns"]}
    assert next(iter(columns)) == "noise", "what is asked for first comes first"
    assert set(columns) <= set(used)
    assert told["unseen"] is True
    k = len(told["classes"])
    for one in columns.values():
        means, lines = np.array(one["means"]), np.array(one["lines"])
        assert means.shape == (len(one["values"]), k)
        assert lines.shape == (min(dependence.LINES, told["rows"]), len(one["values"]), k)
        np.testing.assert_allclose(means.sum(axis=1), 1, atol=1e-3)
    assert columns["size"]["values"] == sorted(columns["size"]["values"])

    def moves(name: str) -> float:
        return float(np.ptp(np.array(columns[name]["means"]), axis=0).max())

    assert moves("size") > 3 * moves("noise")


def test_of_a_number_it_is_the_number_that_is_followed(warm: Warm, tmp_path: Path) -> None:
    told = ask(warm, tmp_path, "regression").result["data"]
    assert told["classes"] is None
    assert all(np.array(one["means"]).shape[1] == 1 for one in told["columns"])


def test_without_time_for_one_column_it_says_so(warm: Warm, tmp_path: Path) -> None:
    (error,) = ask(warm, tmp_path, "binary", dependence_s=0.0).of("error")
    assert error["code"] == "no_column"
