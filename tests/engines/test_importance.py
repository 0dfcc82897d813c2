"""Permutation importance in the engine: which rows, which shuffles, and what time allows."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.engines.conftest import ROLES, Ran, Warm, messy, payload_for
from training.engines import importance

HANDLER = "training.engines.importance:importance"
pytestmark = [
    pytest.mark.engine,
    pytest.mark.xdist_group("engines"),
    # What it does is the same for every engine.
    pytest.mark.parametrize("warm", ["sklearn"], indirect=True),
]


def ask(warm: Warm, tmp_path: Path, folds: int, rows: int = 400, **how: object) -> tuple[Ran, Ran]:
    """The race, and what it says of its one model."""
    table = messy(rows, "multiclass")
    payload = payload_for(table, ROLES, "multiclass", budget_s=10, folds=folds)
    wish = {"model": "random_forest", "hyperparameters": {"n_estimators": 10}}
    ran = warm.train(table, payload | wish)
    (key,) = ran.candidates
    data = tmp_path / "data.parquet"
    table.write_parquet(data)
    inputs = {"data": str(data), "model": str(ran.artifact(key))}
    asked = warm.task(data, payload | wish | {"importance_s": 60.0} | how, inputs=inputs)
    return ran, warm.run(HANDLER, asked | {"kind": "training.importance"})


@pytest.mark.parametrize("folds", [0, 3])
def test_each_column_is_shuffled_over_rows_that_the_model_did_not_see(
    warm: Warm, tmp_path: Path, folds: int
) -> None:
    ran, done = ask(warm, tmp_path, folds)
    told = done.result["data"]
    used = [name for name, role in ROLES.items() if role not in {"text", "identifier"}]
    assert told["sets"] == [[name, r] for r in range(importance.REPEATS) for name in used]
    assert told["unseen"] is True
    said = pl.read_parquet(done.folder / done.result["files"]["predictions"])
    n = told["rows"]
    blocks = [said.slice(start, n) for start in range(0, len(said), n)]
    assert len(blocks) == 1 + len(told["sets"])
    held = np.flatnonzero(ran.parts == (-2 if folds else -1))
    for block in blocks:
        assert block["row"].to_list() == held.tolist()
    (key,) = ran.candidates
    as_it_was = blocks[0].join(ran.predictions(key), on="row", suffix="_before")
    np.testing.assert_allclose(as_it_was["p0"], as_it_was["p0_before"])
    away = {
        name: np.mean(
            [
                np.abs(block["p0"] - blocks[0]["p0"]).mean()
                for (column, _), block in zip(told["sets"], blocks[1:], strict=True)
                if column == name
            ]
        )
        for name in used
    }
    assert max(away, key=lambda name: away[name]) == "size"
    assert away["size"] > 3 * away["noise"]


def test_with_few_unseen_rows_those_that_trained_are_taken(warm: Warm, tmp_path: Path) -> None:
    ran, done = ask(warm, tmp_path, 3, rows=100)
    told = done.result["data"]
    assert (told["unseen"], told["rows"]) == (False, int((ran.parts > 0).sum()))


def test_without_time_for_one_shuffle_of_each_it_says_so(warm: Warm, tmp_path: Path) -> None:
    _, done = ask(warm, tmp_path, 0, importance_s=0.0)
    (error,) = done.of("error")
    assert error["code"] == "too_slow"
