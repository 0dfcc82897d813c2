"""What the gate finds in tables made to have it, and that honest tables pass."""

import datetime as dt
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import roc_auc_score

from datasets.profile import profile
from tests.training import real
from training import gate, leaks, splits

REPO = Path(__file__).resolve().parents[2]


class Quiet:
    def progress(self, fraction: float, message: str = "") -> None:
        assert 0 <= fraction <= 1


def findings(
    table: pl.DataFrame, target: str, task: str, folder: Path, **split: Any
) -> dict[str, Any]:
    """What a node answers for the whole table, as JSON gives it back."""
    path = folder / "data.parquet"
    table.write_parquet(path)
    described = profile(
        lambda names: table.select(names), [(s.name, real.dtype_of(s)) for s in table], len(table)
    )
    counts = None
    if task != "regression":
        values = [splits.label(value) for value in table[target].drop_nulls().to_list()]
        counts = {name: values.count(name) for name in sorted(set(values))}
    rows = len(table) - table[target].null_count()
    payload = {
        "target": target,
        "task": task,
        "classes": list(counts) if counts else None,
        "split": splits.plan_split(rows, task, counts, split or None),
        "columns": [column for column in described if column["name"] != target],
    }
    answer = gate.run({"payload": payload, "inputs": {"data": str(path)}}, Quiet())
    return json.loads(json.dumps(answer["data"], allow_nan=False))


def found(*args: Any, **split: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """Findings by their code and first column."""
    told = findings(*args, **split)["findings"]
    return {(one["code"], (one["columns"] or [""])[0]): one for one in told}


def visits(rows: int = 2_000, seed: int = 1) -> pl.DataFrame:
    """A table with nothing wrong but that patients come again and days go by."""
    random = np.random.default_rng(seed)
    age = random.integers(20, 90, rows)
    pulse = random.normal(70, 10, rows)
    return pl.DataFrame(
        {
            "patient_id": random.integers(0, 300, rows),
            "day": real.days(random.integers(0, 365, rows)),
            "age": age,
            "pulse": pulse,
            "ward": [f"w{number}" for number in random.integers(0, 6, rows)],
            "sick": age + pulse + random.normal(0, 15, rows) > 140,
            "cost": 10 * age + 30 * random.exponential(10, rows),
        }
    )


HONEST = {("groups", "patient_id"), ("time", "day")}


@pytest.mark.parametrize(("target", "task"), [("sick", "binary"), ("cost", "regression"),
                                              ("ward", "multiclass")])  # fmt: skip
def test_an_honest_table_gets_proposals_and_no_accusation(target, task, tmp_path):
    told = found(visits(), target, task, tmp_path)
    assert set(told) == HONEST
    assert told["groups", "patient_id"]["remedy"] == {
        "split": {"kind": "group", "column": "patient_id"}
    }
    assert told["time", "day"]["severity"] == "info"
    assert told["time", "day"]["remedy"] == {"split": {"kind": "time", "column": "day"}}


def test_a_proposal_that_was_taken_is_not_made_again(tmp_path):
    by_group = found(visits(), "sick", "binary", tmp_path, kind="group", column="patient_id")
    assert ("groups", "patient_id") not in by_group
    by_time = found(visits(), "sick", "binary", tmp_path, kind="time", column="day")
    assert ("time", "day") not in by_time


def test_a_famous_table_whose_columns_are_good_is_not_accused(tmp_path):
    data = load_breast_cancer()
    table = pl.DataFrame(data.data, schema=list(data.feature_names))
    told = found(table.with_columns(sick=pl.Series(data.target == 0)), "sick", "binary", tmp_path)
    assert not {one["severity"] for one in told.values()} & {"severe", "warning"}


@pytest.mark.parametrize(
    ("target", "task", "column"),
    [
        ("sick", "binary", pl.col("sick").cast(pl.Int64) * 3 + 1),
        ("sick", "binary", pl.when("sick").then(pl.col("pulse"))),  # is missing for the others
        ("sick", "binary", pl.when("sick").then(pl.lit("discharged late")).otherwise(pl.lit("no"))),
        ("cost", "regression", (pl.col("cost") * 1.19).round(2)),
        ("cost", "regression", (pl.col("cost") - 500).pow(3)),
        ("cost", "regression", -pl.col("cost").log()),
        ("ward", "multiclass", pl.col("ward").str.replace("w", "floor ")),
    ],
)
def test_a_column_that_knows_the_answer_is_severe_and_can_be_left_out(
    target, task, column, tmp_path
):
    told = found(visits().with_columns(column.alias("sly")), target, task, tmp_path)
    told = {key: one for key, one in told.items() if key not in HONEST}
    ((code, name),) = told
    assert (code in {"leak", "function_of_target"}, name) == (True, "sly")
    (finding,) = told.values()
    assert finding["severity"] == "severe"
    assert finding["remedy"] == {"exclude": ["sly"]}
    assert "Measured on all 1,600 rows" in finding["message"]


def test_a_coarse_form_of_the_target_is_a_function_of_it(tmp_path):
    bands = pl.col("cost") // 400
    table = visits().with_columns(pl.concat_str(pl.lit("band "), bands).alias("price_band"))
    finding = found(table, "cost", "regression", tmp_path)["function_of_target", "price_band"]
    assert finding["severity"] == "severe"
    wing = pl.col("ward").is_in(["w0", "w1", "w2"])
    table = visits().with_columns(wing=pl.when(wing).then(pl.lit("east")).otherwise(pl.lit("west")))
    finding = found(table, "ward", "multiclass", tmp_path)["function_of_target", "wing"]
    assert "each class has one value of it" in finding["message"]


def test_of_few_rows_a_leak_is_only_suspected(tmp_path):
    table = visits(60).with_columns(sly=pl.col("sick").cast(pl.Float64))
    assert found(table, "sick", "binary", tmp_path)["leak", "sly"]["severity"] == "warning"
    assert "60 rows" in found(table, "sick", "binary", tmp_path)["few_rows", ""]["message"]


def test_copies_of_training_rows_among_the_held_out_ones_are_counted(tmp_path):
    honest = visits(1_500).with_columns(row_id=pl.int_range(pl.len()))
    assert ("duplicates", "") not in found(honest, "cost", "regression", tmp_path)
    some = pl.concat([honest, honest.head(150)]).with_columns(row_id=pl.int_range(pl.len()))
    finding = found(some, "cost", "regression", tmp_path)["duplicates", ""]
    assert finding["severity"] == "warning"
    held = finding["figures"]["rows"] / finding["figures"]["share"]
    assert 640 < held < 680  # two fifths of 1,650
    expected = 300 * 0.4 * 0.6
    assert abs(finding["figures"]["rows"] - expected) < 25
    all_twice = pl.concat([honest, honest]).with_columns(row_id=pl.int_range(pl.len()))
    finding = found(all_twice, "cost", "regression", tmp_path)["duplicates", ""]
    assert finding["severity"] == "severe"
    together = found(all_twice, "cost", "regression", tmp_path, kind="group", column="patient_id")
    assert ("duplicates", "") not in together


def test_rows_of_few_different_values_are_alike_by_themselves(tmp_path):
    random = np.random.default_rng(3)
    table = pl.DataFrame({name: random.integers(0, 3, 1_200) for name in "abc"}).with_columns(
        y=pl.Series(random.random(1_200) < 0.5)
    )
    assert found(table, "y", "binary", tmp_path)["duplicates", ""]["severity"] == "info"


def of_pictures(folder: Path, copies: int, again: str) -> list[dict[str, Any]]:
    """What is found of 400 pictures, some of which are copies of the first ones."""
    random = np.random.default_rng(0)
    shots = [random.bytes(2000) for _ in range(400 - copies)]
    labels = ["cat" if place % 2 else "dog" for place in range(400)]
    table = pl.DataFrame({"image": [*shots, *shots[:copies]], "label": labels})
    path = folder / "pictures.parquet"
    table.write_parquet(path)
    column = {"name": "image", "dtype": "binary", "role": "image", "missing": 0}
    counts = {"cat": 200, "dog": 200}
    payload = {
        "target": "label", "task": "binary", "classes": ["cat", "dog"],
        "split": splits.plan_split(400, "binary", counts, {"validation": 0.2}),
        "columns": [column | {"distinct": 400 - copies}],
    }  # fmt: skip
    answer = gate.run({"payload": payload, "inputs": {"data": str(path)}}, Quiet())
    return [one for one in answer["data"]["findings"] if one["code"] == again]


def test_copies_of_pictures_are_counted_and_never_come_by_themselves(tmp_path):
    (one,) = of_pictures(tmp_path, 150, "duplicates")
    assert one["severity"] == "severe"
    assert "with the same picture and the same 'label'" in one["message"]
    assert one["figures"]["rows"] > 20


def test_pictures_that_are_all_different_are_not_read(tmp_path, monkeypatch):
    read = []
    column = gate.Table.column

    def watched(table: gate.Table, name: str) -> pl.Series:
        read.append(name)
        return column(table, name)

    monkeypatch.setattr(gate.Table, "column", watched)
    monkeypatch.setattr(gate.Table, "hashes", lambda *args: pytest.fail("it was hashed"))
    assert of_pictures(tmp_path, 0, "duplicates") == []
    assert read == ["label"]


def test_texts_of_their_own_are_no_leak_and_copies_of_them_do_not_come_by_themselves(tmp_path):
    random = np.random.default_rng(0)
    words = [f"w{number}" for number in range(500)]
    texts = [" ".join(random.choice(words, 30)) for _ in range(300)] * 2
    table = pl.DataFrame({"text": texts, "label": ["a" if len(t) % 2 else "b" for t in texts]})
    told = found(table, "label", "binary", tmp_path, validation=0.2)
    assert ("leak", "text") not in told, "it is all that there is to learn from"
    assert told[("duplicates", "")]["severity"] == "severe"


def test_rare_and_scarce_classes_are_told_with_figures(tmp_path):
    table = visits().with_columns(rare=pl.int_range(pl.len()) % 250 == 0)
    told = found(table, "rare", "binary", tmp_path)
    assert told["imbalance", "rare"]["severity"] == "warning"
    assert "8 of 2,000 rows (0.4%)" in told["imbalance", "rare"]["message"]
    assert "'true'" in told["few_rows_of_a_class", "rare"]["message"]
    uneven = visits().with_columns(rare=pl.int_range(pl.len()) % 20 == 0)
    assert found(uneven, "rare", "binary", tmp_path)["imbalance", "rare"]["severity"] == "info"


def test_a_target_that_drifts_makes_the_proposal_a_warning(tmp_path):
    table = visits().with_columns(
        cost=pl.col("day").cast(pl.Datetime("us")).dt.epoch("d") * 2.0 + pl.col("pulse")
    )
    finding = found(table, "cost", "regression", tmp_path)["time", "day"]
    assert finding["severity"] == "warning"
    assert "'cost' changes over 'day'" in finding["message"]


def test_a_class_that_comes_late_is_missing_from_training_by_time(tmp_path):
    late = pl.when(pl.col("day") > dt.date(2024, 12, 1)).then(pl.lit("new")).otherwise("ward")
    table = visits().with_columns(ward=late)
    told = findings(table, "ward", "multiclass", tmp_path, kind="time", column="day")["findings"]
    (first, second) = [one for one in told if one["code"] == "class_missing_from_part"]
    assert (first["severity"], second["severity"]) == ("severe", "warning")
    assert "No training row has the class 'new'" in first["message"]
    assert "No row that ranks has the class 'new'" in second["message"]


def test_columns_that_help_nobody_are_named(tmp_path):
    table = visits().with_columns(
        nothing=pl.lit(None, pl.Float64),
        always=pl.lit(3),
        booking=pl.concat_str(pl.lit("A"), pl.int_range(pl.len())),
        town=pl.concat_str(pl.lit("t"), pl.int_range(pl.len()) // 1.7),
        gap=pl.when(pl.int_range(pl.len()) % 50 == 0).then("pulse"),
        sick=pl.when(pl.int_range(pl.len()) % 4 == 0).then("sick"),
    )
    told = found(table, "sick", "binary", tmp_path)
    assert told["constant", "nothing"]["columns"] == ["nothing", "always"]
    assert ("identifier", "booking") in told
    assert told["identifier_like", "town"]["remedy"] == {"exclude": ["town"]}
    assert ("mostly_missing", "gap") in told
    assert "1,500 of 2,000 rows (75%)" in told["target_missing", "sick"]["message"]


def test_a_long_table_is_sampled_and_says_so(tmp_path):
    table = visits(130_000).with_columns(sly=pl.col("cost") + 1)
    told = findings(table, "cost", "regression", tmp_path)
    assert (told["rows"], told["sample"]) == (130_000, gate.SAMPLE_ROWS)
    (severe,) = [one for one in told["findings"] if one["severity"] == "severe"]
    assert "a sample of 50,000 of 104,000 rows" in severe["message"]


def test_columns_that_are_not_reached_in_time_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "PATIENCE_S", -1.0)
    told = found(visits(), "sick", "binary", tmp_path)
    assert "6 of 6 columns" in told["not_looked_at", "patient_id"]["message"]


values = {
    "integer": st.integers(-(2**62), 2**62),
    "small": st.integers(0, 2),
    "float": st.floats(allow_subnormal=False),
    "string": st.text(max_size=5),
    "boolean": st.booleans(),
    "date": st.dates(),
}


@hypothesis_settings(max_examples=40)
@given(data=st.data(), task=st.sampled_from(["binary", "multiclass", "regression"]))
def test_any_table_gets_an_answer_that_is_json(data, task, tmp_path_factory):
    rows = data.draw(st.integers(20, 40))
    kinds = data.draw(st.lists(st.sampled_from(sorted(values)), min_size=1, max_size=4))
    table = pl.DataFrame(
        {
            f"c{number}": data.draw(
                st.lists(st.none() | values[kind], min_size=rows, max_size=rows), label=kind
            )
            for number, kind in enumerate(kinds)
        },
        schema={
            f"c{number}": {"integer": pl.Int64, "small": pl.Int64, "float": pl.Float64,
                           "string": pl.String, "boolean": pl.Boolean, "date": pl.Date}[kind]
            for number, kind in enumerate(kinds)
        },
    )  # fmt: skip
    y = data.draw(st.lists(st.none() | st.integers(0, 2), min_size=rows, max_size=rows))
    if task == "binary":
        y = [None if value is None else min(value, 1) for value in y]
    if task == "regression":
        y = [None if value is None else value * 0.7 for value in y]
    table = table.with_columns(y=pl.Series(y, dtype=pl.Float64 if task == "regression" else None))
    if table["y"].drop_nulls().n_unique() < 2:
        return
    told = findings(table, "y", task, tmp_path_factory.mktemp("any"))
    for one in told["findings"]:
        assert one["severity"] in {"severe", "warning", "info"}
        assert one["message"]
        assert one["advice"]


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.5, 0.9])), min_size=2)
    .filter(lambda pairs: len({right for right, _ in pairs}) == 2)
)  # fmt: skip
def test_the_area_under_the_curve_is_scikit_learns(pairs):
    right, score = (np.array(column) for column in zip(*pairs, strict=True))
    assert leaks.auc(right, score) == pytest.approx(roc_auc_score(right, score))


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50))
def test_ranks_keep_the_order_and_lie_between_0_and_1(numbers):
    found = leaks.ranks(np.array(numbers))
    assert found.min() >= 0
    assert found.max() <= 1
    assert (np.argsort(numbers, kind="stable") == np.argsort(found, kind="stable")).all()


def test_the_virtualenv_of_nodes_has_what_the_gate_needs():
    command = [REPO / ".venvs/node/bin/python", "-c", "import training.gate; print('fine')"]
    done = subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True)
    assert done.stdout == "fine\n"
