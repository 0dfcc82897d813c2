"""A model that rests on one column almost alone is noticed; others are not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training import make
from training import reliance

RANDOM = np.random.default_rng(4)
X = RANDOM.normal(0, 1, 500)


@given(st.integers(2, 200), st.integers(1, 60), st.integers(0, 10**6))
def test_a_share_is_at_most_one(n, g, seed):
    random = np.random.default_rng(seed)
    share = reliance.share_explained(random.normal(0, 1, (n, 2)), random.integers(0, g, n))
    assert share <= 1


def test_groups_at_random_explain_nothing_however_many_they_are():
    said = RANDOM.normal(0, 1, (500, 1))
    shares = [reliance.share_explained(said, RANDOM.integers(0, g, 500)) for g in (2, 50, 200)]
    assert max(shares) < 0.15


@pytest.mark.parametrize(
    "column",
    [
        X,
        np.array([f"kind {int(x > 0)}" for x in X], dtype=object),
        X > 0,
        np.where(X > 1, np.nan, X),
    ],
)
def test_what_follows_from_one_column_is_found_whatever_its_type(column):
    truth = X if column.dtype.kind == "f" else (X > 0)
    if column.dtype.kind == "f" and np.isnan(column).any():
        truth = np.where(X > 1, 3, X)
    said = np.asarray(truth, dtype=float)[:, None] + RANDOM.normal(0, 0.02, (500, 1))
    columns = [("noise", RANDOM.normal(0, 1, 500)), ("leak", column)]
    found = reliance.suspect(said, columns)
    assert found is not None
    assert found[0] == "leak"


def test_two_columns_that_share_the_work_are_no_leak():
    other = RANDOM.normal(0, 1, 500)
    assert reliance.suspect((X + other)[:, None], [("a", X), ("b", other)]) is None


def test_an_answer_that_never_changes_rests_on_nothing():
    assert reliance.suspect(np.ones((500, 1)), [("a", X)]) is None


@pytest.mark.django_db
def test_the_winner_of_a_job_is_looked_at(monkeypatch):
    by, node = make.member(), make.Node()
    table = make.flowers(400)
    codes = table["kind"].str.slice(5).cast(int, strict=False).fill_null(0)
    job = make.job(by, make.version(by, table.with_columns(code=codes)), split={"validation": 0.3})
    task = node.claim()
    node.candidate(task, skill=1.0)
    node.end(task)
    job.refresh_from_db()
    words = job.notices[-1]["message"]
    assert "rests on 'code' almost alone" in words
    assert "leave it out" in words


@pytest.mark.django_db
def test_a_fault_of_the_look_is_nobodys(monkeypatch):
    def broken(*args):
        raise MemoryError

    by, node = make.member(), make.Node()
    job = make.job(by)
    task = node.claim()
    node.candidate(task)
    monkeypatch.setattr(reliance, "suspect", broken)
    node.end(task)
    job.refresh_from_db()
    assert job.state == "succeeded"
    assert not any("alone" in notice["message"] for notice in job.notices)
