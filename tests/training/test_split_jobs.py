"""Jobs whose rows are split by time or by group: control cuts them as the node does."""

import numpy as np
import polars as pl
import pytest

from accounts.errors import Invalid
from tests.training import make, real
from training import actions, scoring

pytestmark = pytest.mark.django_db


def visits(rows: int = 1_200) -> pl.DataFrame:
    """Visits of 120 patients over as many days, in no order, some of neither known."""
    random = np.random.default_rng(1)
    day = random.integers(0, 120, rows)
    return pl.DataFrame(
        {
            "patient": [f"p{number}" for number in random.integers(0, 120, rows)],
            "day": real.days(day),
            "age": random.integers(20, 80, rows),
            "sick": random.random(rows) < 0.3,
        }
    ).with_columns(
        pl.when(pl.int_range(rows) == 7).then(None).otherwise("patient").alias("patient"),
        pl.when(pl.int_range(rows) == 9).then(None).otherwise("day").alias("day"),
    )


@pytest.mark.parametrize("kind", ["time", "group"])
def test_a_job_ranks_and_seals_the_rows_that_its_split_says(kind):
    by = make.member()
    column = {"time": "day", "group": "patient"}[kind]
    job = make.job(
        by, real.version(by, visits()), target="sick", split={"kind": kind, "column": column}
    )
    assert job.split["column"] == column
    assert any(f"1 rows have no value in '{column}'" in n["message"] for n in job.notices)
    assert (column in [c["name"] for c in job.columns]) == (kind == "time")
    node = make.Node()
    task = node.claim()
    assert task.payload["split"] == job.split
    model = node.candidate(task)
    assert model.state == "scored", model.reason
    truth = scoring.truth_of(job)
    values = visits()[column]
    ranked, sealed = (set(values[rows.tolist()]) for rows in (truth.ranked, truth.sealed))
    rest = np.setdiff1d(np.arange(1_200), np.concatenate([truth.ranked, truth.sealed]))
    train = set(values[rest.tolist()].drop_nulls())
    assert None not in ranked | sealed
    assert not ranked & sealed
    assert not train & (ranked | sealed)
    if kind == "time":
        assert max(train) < min(ranked)
        assert max(ranked) < min(sealed)
    assert abs(len(truth.sealed) - 240) < 20
    node.end(task)
    job.refresh_from_db()
    assert job.best_model.test["rows"] == len(truth.sealed)


def test_a_column_that_cannot_serve_is_named_before_anything_is_queued():
    by = make.member()
    made = real.version(by, visits())
    for split, words in (
        ({"kind": "time", "column": "patient"}, "which are no time"),
        ({"kind": "group", "column": "patients"}, "Did you mean 'patient'"),
    ):
        with pytest.raises(Invalid) as refused:
            actions.start_job(by, made.dataset_id, target="sick", split=split)
        assert words in refused.value.errors["split"][0]


def test_a_column_whose_targets_leave_too_little_gives_candidates_a_reason():
    """The statistics don't know which rows have both: what a node refuses, control does too."""
    by = make.member()
    table = visits().with_columns(sick=pl.when(pl.col("patient") < "p2").then("sick"))
    made = real.version(by, table)
    job = make.job(by, made, target="sick", split={"kind": "group", "column": "patient"})
    pl.DataFrame({"patient": ["a"] * 1_200, "sick": table["sick"]}).write_parquet(
        made.data.file.path
    )
    with pytest.raises(scoring.InvalidCandidate, match="different values among the rows"):
        scoring.truth_of(job)
