"""Statistics, compared with what numpy and Python say of the same values."""

import json
import math
from collections import Counter
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import profile as module
from datasets.profile import describe

NUMBERS = st.lists(st.none() | st.floats(-1e6, 1e6).map(lambda x: round(x, 2)), max_size=60)
WHOLE = st.lists(st.none() | st.integers(-(2**53), 2**53), max_size=60)
TEXTS = st.lists(st.none() | st.text(max_size=8), max_size=60)


def counted(values: list[Any]) -> Counter[Any]:
    return Counter(value for value in values if value is not None)


@settings(deadline=None)
@given(NUMBERS)
def test_floats(values):
    about = describe("x", "float", pl.Series(values, dtype=pl.Float64))
    check(about, values, pl.Float64)


@settings(deadline=None)
@given(WHOLE)
def test_integers(values):
    about = describe("x", "integer", pl.Series(values, dtype=pl.Int64))
    check(about, values, pl.Int64)


def check(about, values, dtype):
    json.dumps(about, allow_nan=False)
    there = [value + 0.0 if dtype == pl.Float64 else value for value in values if value is not None]
    assert about["missing"] == len(values) - len(there)
    assert about["distinct"] == len(set(there))
    if not there:
        assert about["classes"] == []
        return
    assert (about["min"], about["max"]) == (min(there), max(there))
    assert math.isclose(about["mean"], np.mean(there), rel_tol=1e-9, abs_tol=1e-6)
    if len(there) > 1:
        assert math.isclose(about["std"], np.std(there, ddof=1), rel_tol=1e-6, abs_tol=1e-6)
    for share, value in about["quantiles"].items():
        assert math.isclose(value, np.quantile(there, float(share)), rel_tol=1e-9, abs_tol=1e-6)
    histogram = about["histogram"]
    assert sum(histogram["counts"]) == len(there)
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert histogram["edges"] == sorted(histogram["edges"])
    assert {one["value"]: one["count"] for one in about["classes"]} == counted(there)


@settings(deadline=None)
@given(TEXTS)
def test_texts(values):
    about = describe("x", "string", pl.Series(values, dtype=pl.String))
    json.dumps(about, allow_nan=False)
    counts = counted(values)
    assert about["distinct"] == len(counts)
    assert [one["count"] for one in about["top"]] == sorted(counts.values(), reverse=True)[:20]
    assert "\0" not in json.dumps(about, ensure_ascii=False)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=600))
def test_many_texts_are_counted_as_few_are(numbers):
    values = pl.Series([f"t{number}" for number in numbers])
    few = describe("x", "string", values)
    with patch.object(module, "SAMPLE", 1):
        many = describe("x", "string", values)
    assert many["distinct"] == few["distinct"]
    often = [one for one in few["top"] if one["count"] > 1]
    assert many["top"][: len(often)] == often


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 2000), min_size=1, max_size=1200))
def test_the_most_frequent_come_first_and_then_the_smallest(numbers):
    about = describe("x", "integer", pl.Series(numbers, dtype=pl.Int64))
    ranked = sorted(counted(numbers).items(), key=lambda pair: (-pair[1], pair[0]))
    assert [(one["value"], one["count"]) for one in about["top"]] == ranked[:20]
    assert about["distinct"] == len(ranked)


def test_dates():
    days = pl.Series(["2024-01-01", "2024-01-03", None, "2024-01-05"]).str.to_date()
    about = describe("x", "date", days)
    assert (about["min"], about["max"]) == ("2024-01-01", "2024-01-05")
    assert about["quantiles"]["0.5"] == "2024-01-03"
    assert about["histogram"]["edges"][0] == 1704067200.0
    assert sum(about["histogram"]["counts"]) == 3


def test_values_at_the_edges_of_floats():
    about = describe("x", "float", pl.Series([1e308, -1e308, 0.0]))
    json.dumps(about, allow_nan=False)
    assert about["histogram"] is None
    narrow = describe("x", "float", pl.Series([1.0, math.nextafter(1.0, 2)]))
    assert sum(narrow["histogram"]["counts"]) == 2


def test_a_text_too_long_for_a_list_is_cut_and_names_no_class():
    about = describe("x", "string", pl.Series(["a" * 1000, "b"]))
    assert "classes" not in about
    assert max(len(one["value"]) for one in about["top"]) == 201
