"""Rows to predict are put in the model's order, or refused by row and column."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.rows import BadRows, check_rows

SCHEMA = [
    {"name": "bill_length_mm", "dtype": "float"},
    {"name": "year", "dtype": "integer"},
    {"name": "island", "dtype": "string"},
    {"name": "tagged", "dtype": "boolean"},
    {"name": "seen_on", "dtype": "date"},
    {"name": "logged_at", "dtype": "datetime"},
]
ROW = {
    "bill_length_mm": 39.1,
    "year": 2007,
    "island": "Torgersen",
    "tagged": True,
    "seen_on": "2007-11-11",
    "logged_at": "2007-11-11T10:00:00+00:00",
}


@given(st.permutations(list(ROW)))
def test_the_order_of_the_columns_does_not_matter(order):
    assert check_rows(SCHEMA, [{name: ROW[name] for name in order}]) == [list(ROW.values())]


def test_one_row_needs_no_list():
    assert check_rows(SCHEMA, ROW) == check_rows(SCHEMA, [ROW])


@pytest.mark.parametrize(
    ("column", "value", "wanted"),
    [
        ("bill_length_mm", "39.1", 39.1),
        ("bill_length_mm", " 4e1 ", 40.0),
        ("bill_length_mm", 39, 39),
        ("bill_length_mm", "", None),
        ("bill_length_mm", None, None),
        ("year", "2007", 2007),
        ("year", 2007.0, 2007),
        ("year", 2007.5, 2007.5),
        ("year", "-3", -3),
        ("island", "Nowhere ever seen", "Nowhere ever seen"),
        ("island", 12, "12"),
        ("island", "", ""),
        ("tagged", "false", False),
        ("tagged", 1, True),
        ("tagged", "", None),
        ("seen_on", "2007-11-11T10:00:00", "2007-11-11"),
        ("logged_at", "2007-11-11 10:00", "2007-11-11T10:00:00"),
        ("logged_at", None, None),
    ],
)
def test_values_are_read_as_they_are_meant(column, value, wanted):
    got = check_rows(SCHEMA, ROW | {column: value})[0][list(ROW).index(column)]
    assert got == wanted
    assert type(got) is type(wanted)


@pytest.mark.parametrize(
    ("column", "value", "word"),
    [
        ("bill_length_mm", "long", "takes a number, not 'long'"),
        ("bill_length_mm", True, "takes a number, not 'true'"),
        ("bill_length_mm", math.nan, "finite"),
        ("bill_length_mm", "inf", "finite"),
        ("bill_length_mm", 10**400, "64 bits"),
        ("bill_length_mm", [1], "single value"),
        ("year", 2**70, "64 bits"),
        ("year", "2007a", "takes a number"),
        ("year", "²", "takes a number"),
        ("island", {"a": 1}, "single value"),
        ("island", False, "takes a text"),
        ("tagged", "perhaps", "true or false"),
        ("seen_on", "11/11/2007", "2024-05-31"),
        ("seen_on", 20071111, "ISO 8601"),
        ("logged_at", "yesterday", "ISO 8601"),
    ],
)
def test_a_wrong_type_is_refused_by_row_and_column(column, value, word):
    with pytest.raises(BadRows) as caught:
        check_rows(SCHEMA, [ROW, ROW | {column: value}])
    assert list(caught.value.errors) == [f"rows[1].{column}"]
    assert word in caught.value.errors[f"rows[1].{column}"][0]
    assert f"'{column}'" in str(caught.value)


def test_unknown_and_missing_columns_are_told_together_with_the_nearest_name():
    row = {name: value for name, value in ROW.items() if name != "island"} | {"islnd": "Dream"}
    with pytest.raises(BadRows) as caught:
        check_rows(SCHEMA, [row])
    assert caught.value.errors == {
        "rows[0].islnd": ["The model has no column 'islnd'. Did you mean 'island'?"],
        "rows[0].island": ["Column 'island' is missing. Send null when its value is not known."],
    }
    assert "(1 more)" in str(caught.value)


@pytest.mark.parametrize("rows", [None, [], "x", 3, [[1, 2]], [None], [{}] * 10_001])
def test_what_is_no_list_of_rows_is_refused(rows):
    with pytest.raises(BadRows) as caught:
        check_rows(SCHEMA, rows)
    assert caught.value.errors


def test_a_flood_of_errors_is_cut_short():
    with pytest.raises(BadRows) as caught:
        check_rows(SCHEMA, [{}] * 5_000)
    assert len(caught.value.errors) < 30


json_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)


@given(st.fixed_dictionaries({column["name"]: json_values for column in SCHEMA}))
def test_whatever_passes_has_the_right_types(row):
    try:
        values = check_rows(SCHEMA, row)[0]
    except BadRows:
        return
    types = {"float": (int, float), "integer": (int, float), "boolean": bool}
    for column, value in zip(SCHEMA, values, strict=True):
        assert value is None or isinstance(value, types.get(column["dtype"], str))
        assert not isinstance(value, float) or math.isfinite(value)
