"""A node cuts the rows by a column exactly as control does, and its zip does so again."""

import datetime as dt
import json
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.engines.conftest import Warm, payload_for

START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)


@pytest.mark.parametrize("kind", ["time", "group"])
def test_held_out_rows_are_those_that_the_split_says(warm: Warm, tmp_path: Path, kind: str) -> None:
    random = np.random.default_rng(2)
    rows = 400
    size = random.normal(0, 1, rows)
    table = pl.DataFrame(
        {
            "size": size,
            "patient": [None if i == 3 else f"p{i * 7 % 90}" for i in range(rows)],
            "seen": [
                None if i == 5 else START + dt.timedelta(days=int(day))
                for i, day in enumerate(random.integers(0, 50, rows))
            ],
            "target": np.where(size + random.normal(0, 0.5, rows) > 0, "yes", "no"),
        }
    )
    split = {"kind": kind, "seed": 7, "test": 0.2}
    split |= (
        {"column": "seen", "validation": 0.2}
        if kind == "time"
        else {"column": "patient", "folds": 3, "validation": 0}
    )
    payload = payload_for(table, {"size": "numeric"}, "binary", split=split, budget_s=40)
    ran = warm.train(table, payload, enough=1)
    key = next(iter(ran.candidates))
    assert ran.parts is not None
    held = np.flatnonzero(ran.parts < 0 if kind == "time" else ran.parts != -3)
    expected = held[ran.parts[held] != -3]
    assert sorted(ran.predictions(key)["row"].to_list()) == expected.tolist()

    data = tmp_path / "data.parquet"
    table.write_parquet(data)
    with zipfile.ZipFile(ran.artifact(key)) as archive:
        archive.extractall(tmp_path / "model")
    told = json.loads((tmp_path / "model" / "schema.json").read_text())
    told["dataset"]["sha256"] = ""
    (tmp_path / "model" / "schema.json").write_text(json.dumps(told))
    again = subprocess.run(
        [warm.python, "-I", tmp_path / "model" / "train.py", data, "--threads", "1"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    learnt, away = (ran.parts >= 0).sum(), np.isin(ran.parts, (-1, -2)).sum()
    assert f"Fitted on {learnt} rows" in again.stdout
    assert f"on {away} held-out rows" in again.stdout


def test_a_split_that_leaves_one_class_to_learn_from_says_so(warm: Warm) -> None:
    table = pl.DataFrame(
        {
            "size": np.arange(200.0),
            "step": np.arange(200),
            "target": ["no"] * 150 + ["yes"] * 50,
        }
    )
    split = {"kind": "time", "column": "step", "seed": 7, "test": 0.2, "validation": 0.2}
    ran = warm.train(table, payload_for(table, {"size": "numeric"}, "binary", split=split))
    (error,) = ran.of("error")
    assert error["code"] == "one_class"
    assert "Split in another way" in error["sentence"]
