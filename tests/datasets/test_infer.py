"""What columns are read as, and what is told about it."""

# ruff: noqa: DTZ001 - stored times have no zone: they are UTC
import datetime as dt

import pytest

from datasets import delimited
from tests.datasets.ingesting import Result, read
from workers.node.channel import WorkError


def column(tmp_path, values: list[str], **payload) -> Result:
    """A table whose column ``v`` holds ``values``, beside a column that keeps lines from blank."""
    quoted = ['"{}"'.format(value.replace('"', '""')) for value in values]
    return read(tmp_path, "v,k\n" + "".join(f"{value},x\n" for value in quoted), **payload)


@pytest.mark.parametrize(
    ("values", "dtype", "read_as"),
    [
        (["1", "-2", "+3", " 4 "], "integer", [1, -2, 3, 4]),
        (["1", "2.5", "-1e3", ".5"], "float", [1.0, 2.5, -1000.0, 0.5]),
        (["true", "False", "TRUE"], "boolean", [True, False, True]),
        (["yes", "no", "yes"], "string", ["yes", "no", "yes"]),
        (["0", "1", "1"], "integer", [0, 1, 1]),
        (["01234", "98765"], "string", ["01234", "98765"]),
        (["98765"] * 30 + ["01234"], "string", ["98765"] * 30 + ["01234"]),
        (["0.5", "007.5"], "string", ["0.5", "007.5"]),
        (["0", "0.0", "-0"], "float", [0.0, 0.0, 0.0]),
        (["12345678901234567890", "1"], "string", ["12345678901234567890", "1"]),
        (["9223372036854775807", "1"], "integer", [2**63 - 1, 1]),
        (["1,234.5", "2,000,000", "7"], "float", [1234.5, 2e6, 7.0]),
        (["1.234,5", "2.000.000", "7"], "float", [1234.5, 2e6, 7.0]),
        (["1,5", "2,25"], "float", [1.5, 2.25]),
        (["1,234", "5,678"], "string", ["1,234", "5,678"]),
        (["2024-01-31", "1999-12-01"], "date", [dt.date(2024, 1, 31), dt.date(1999, 12, 1)]),
        (["31.01.2024", "01.12.1999"], "date", [dt.date(2024, 1, 31), dt.date(1999, 12, 1)]),
        (["31/01/2024", "01/12/1999"], "date", [dt.date(2024, 1, 31), dt.date(1999, 12, 1)]),
        (["01/31/2024", "12/01/1999"], "date", [dt.date(2024, 1, 31), dt.date(1999, 12, 1)]),
        (["01/02/2024", "03/04/2024"], "string", ["01/02/2024", "03/04/2024"]),
        (["5 Jan 2024", "17 Dec 2023"], "date", [dt.date(2024, 1, 5), dt.date(2023, 12, 17)]),
        (["20-01-05", "21-01-05"], "string", ["20-01-05", "21-01-05"]),
        (["2024-02-30", "2024-02-28"], "string", ["2024-02-30", "2024-02-28"]),
        (
            ["2024-01-31 10:20:30", "2024-01-31 10:20:30.5"],
            "datetime",
            [dt.datetime(2024, 1, 31, 10, 20, 30), dt.datetime(2024, 1, 31, 10, 20, 30, 500000)],
        ),
        (
            ["2024-01-31T10:20:30Z", "2024-01-31T10:20:30+02:00"],
            "datetime",
            [dt.datetime(2024, 1, 31, 10, 20, 30), dt.datetime(2024, 1, 31, 8, 20, 30)],
        ),
        (["1", "x"], "string", ["1", "x"]),
        (["1", "NA", "", "null", "NaN", "3"], "integer", [1, None, None, None, None, 3]),
        (["a", "NA", "", "null", "b"], "string", ["a", None, None, None, "b"]),
        (["1.5", "?", "-", "2.5"], "float", [1.5, None, None, 2.5]),
        (["a", "?", "-", "b"], "string", ["a", "?", "-", "b"]),
        (["1.5", "inf", "-Infinity"], "float", [1.5, None, None]),
        ([" a", "b ", " c "], "string", ["a", "b", "c"]),
        (["", "NA", ""], "string", [None, None, None]),
        (["1_000", "2_000"], "string", ["1_000", "2_000"]),
        (["0x10", "0x20"], "string", ["0x10", "0x20"]),
        (["５", "６"], "string", ["５", "６"]),
    ],
)
def test_what_values_are_read_as(tmp_path, values, dtype, read_as):
    result = column(tmp_path, values)
    assert result.dtypes["v"] == dtype
    assert result.frame["v"].to_list() == read_as
    assert result.data["rejected"] == 0


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (["1,234", "5,678"], "a comma may group thousands or mark decimals"),
        (["01/02/2024", "03/04/2024"], "day and month may be either way round"),
        (["1.5", "?", "2.5"], "'?' counts as missing"),
        (["1.5", "inf", "2.5"], "1 infinite values count as missing"),
        (["1,5", "2,25"], "written like 1.234,5"),
        (["2024-01-31T10:20:30+02:00"] * 2, "converted to UTC"),
        ([" a", "b"], "spaces around values were removed"),
        ([*(str(i) for i in range(100)), "12O"], "1 of its 101 values are not numbers (line 102"),
        ([*(f"2024-01-{i:02}" for i in range(1, 29)), "soon"], "not dates (line 30: 'soon')"),
    ],
)
def test_what_is_told(tmp_path, values, told):
    assert told in column(tmp_path, values).notices


def test_postal_codes_are_not_called_numbers_with_errors(tmp_path):
    values = [str(10000 + i) for i in range(99)] + ["01234"]
    assert column(tmp_path, values).notices == ""


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(delimited, "BLOCK", 300)
    monkeypatch.setattr(delimited, "FIRST_BLOCK", 100)


@pytest.mark.parametrize(
    ("early", "late", "dtype", "first"),
    [
        ("1", "2.5", "float", 1.0),
        ("1", "x", "string", "1"),
        ("1.50", "x", "string", "1.50"),
        ("1", "007", "string", "1"),
        ("", "7", "integer", None),
        ("NA", "x", "string", None),
        ("?", "7", "integer", None),
        ("?", "x", "string", "?"),
        ("2024-01-31", "soon", "string", "2024-01-31"),
        ("2024-01-31 10:00:00", "2024-01-31 10:00:00.5", "datetime", dt.datetime(2024, 1, 31, 10)),
        ("01/02/2024", "31/12/2024", "date", dt.date(2024, 2, 1)),
        ("true", "1", "string", "true"),
        ("12", "1,234,567", "float", 12.0),
        ("1,234", "1,5", "float", 1.234),
        ("1,234", "1,234,567", "float", 1234.0),
    ],
)
def test_a_late_value_decides_for_the_whole_column(
    tmp_path, small_blocks, early, late, dtype, first
):
    values = [early] * 200 + [late]
    result = column(tmp_path, values)
    assert result.dtypes["v"] == dtype
    assert result.frame["v"][0] == first
    assert result.frame.height == 201
    assert result.frame["v"].null_count() == (200 if first is None else 0)


# --- Types that are asked for --------------------------------------------------------------------


def test_a_type_can_be_asked_for(tmp_path):
    options = {"columns": {"v": "integer"}}
    result = column(tmp_path, [*map(str, range(100)), "x", "1.5"], options=options)
    assert result.dtypes["v"] == "integer"
    assert result.rejects["line"].to_list() == [102, 103]
    assert result.rejects["reason"][0] == "'x' in column 'v' is not a whole number"
    assert result.rejects["raw"][0] == '"x",x'
    text = column(tmp_path, ["1", "2"], options={"columns": {"v": "string"}})
    assert text.frame["v"].to_list() == ["1", "2"]


def test_an_ambiguous_date_is_read_when_asked_for(tmp_path):
    result = column(tmp_path, ["01/02/2024"] * 3, options={"columns": {"v": "date"}})
    assert result.frame["v"][0] == dt.date(2024, 2, 1)


def test_asking_for_a_column_that_is_not_there(tmp_path):
    with pytest.raises(WorkError) as caught:
        column(tmp_path, ["1"], options={"columns": {"w": "integer"}})
    assert caught.value.code == "unknown-column"


def test_the_version_before_sets_the_types(tmp_path):
    before = [{"name": "v", "dtype": "integer"}, {"name": "k", "dtype": "string"}]
    values = [*map(str, range(100)), "oops"]
    result = column(tmp_path, values, previous_columns=before)
    assert result.dtypes["v"] == "integer"
    assert result.rejects["line"].to_list() == [102]
    with pytest.raises(WorkError) as caught:
        column(tmp_path, ["a", "b"] * 50, previous_columns=before)
    assert caught.value.code == "bad-rows"
    wider = column(tmp_path, [*map(str, range(100)), "0.5"], previous_columns=before)
    assert wider.dtypes["v"] == "float"


# --- Roles and statistics ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "role"),
    [
        ("x", ["1.5", "2.5"] * 20, "numeric"),
        ("x", [str(i) for i in range(100, 140)], "identifier"),
        ("year", [str(i) for i in range(1980, 2020)], "numeric"),
        ("customer_id", [str(i * i) for i in range(40)], "identifier"),
        ("PassengerId", [str(i * i) for i in range(40)], "identifier"),
        ("price", [str(i * i) for i in range(40)], "numeric"),
        ("code", [f"k{i:04}" for i in range(40)], "identifier"),
        ("code", [f"k{i % 9}" for i in range(40)], "categorical"),
        ("note", [f"this is the note number {i}" for i in range(40)], "text"),
        ("flag", ["true", "false"] * 20, "boolean"),
        ("at", ["2024-01-01", "2024-01-02"] * 20, "datetime"),
        ("same", ["a"] * 40, "constant"),
        ("none", [""] * 40, "constant"),
        ("same", ["3", ""] * 20, "constant"),
    ],
)
def test_roles(tmp_path, name, values, role):
    result = read(tmp_path, f"{name},k\n" + "".join(f"{value},x\n" for value in values))
    assert result.roles[name] == role
