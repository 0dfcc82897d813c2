"""What the pages say, without a database."""

from datetime import UTC, datetime, timedelta

import pytest

from training import pages

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.94, "94 of 100"),
        (0.0, "0 of 100"),
        (1.0, "100 of 100"),
        (0.9999, "999 of 1,000"),
        (0.9962, "996 of 1,000"),
        (0.0004, "1 of 1,000"),
    ],
)
def test_all_and_none_are_said_only_when_it_is_all_or_none(share: float, words: str) -> None:
    assert pages.of_hundred(share) == words


def test_a_classifier_is_compared_with_always_saying_the_most_common() -> None:
    confusion = {"labels": ["no", "yes"], "counts": [[60, 3], [7, 30]]}
    figures = pages.Figures({"accuracy": 0.9}, 100, True, {"confusion": confusion})
    words = pages.headline("binary", "churn", figures)
    assert "right for 90 of 100 unseen rows" in words
    assert "always saying “no” would be right for 63 of 100" in words
    assert "100 rows that were kept sealed" in words


def test_a_regression_that_is_no_better_than_the_mean_is_said_so() -> None:
    metrics = {"median_ae": 2.0, "mae": 3.0, "r2": -0.2}
    words = pages.headline("regression", "price", pages.Figures(metrics, 50, False))
    assert "no better than always saying the mean" in words
    good = pages.headline("regression", "price", pages.Figures(metrics | {"r2": 0.87}, 50, False))
    assert "explains 87% of how price varies" in good


def test_figures_that_are_not_there_leave_a_plain_sentence() -> None:
    for task in ("binary", "regression"):
        words = pages.headline(task, "x", pages.Figures({}, 10, False))
        assert words.startswith("Predicts x. Measured on 10 rows")


def test_the_metric_that_ranks_stands_first_with_its_interval() -> None:
    rows = pages.metric_rows(
        "binary",
        "f1",
        {"f1": 0.8, "accuracy": 0.9},
        (0.7, 0.85),
        {"metrics": {"f1": 0.78}, "interval": None},
    )
    assert (rows[0].title, rows[0].low, rows[0].test, rows[0].test_low) == ("F1", 0.7, 0.78, None)
    assert all(row.low is None for row in rows[1:])


def test_a_confusion_matrix_is_coloured_by_the_share_of_its_row() -> None:
    table = pages.confusion_table({"labels": ["a", "b"], "counts": [[10, 0], [1, 9]]})
    assert table is not None
    assert [[cell["depth"] for cell in row["cells"]] for row in table["rows"]] == [[5, 0], [1, 5]]
    assert pages.confusion_table(None) is None
    assert pages.confusion_table({"labels": ["a"], "counts": [[0]]}) is not None  # nothing seen


def test_every_chart_has_a_table_of_at_most_a_screenful() -> None:
    curves = {
        "roc": [
            {
                "class": "yes",
                "auc": 0.9,
                "false_positive_rate": [i / 200 for i in range(201)],
                "true_positive_rate": [min(1, i / 100) for i in range(201)],
            }
        ],
        "residuals": {"edges": [0, 1, 2], "counts": [3, 4]},
    }
    roc, residuals = pages.charts(curves, "y")
    assert len(roc.rows) == pages.TABLE_ROWS
    assert (roc.rows[0], roc.rows[-1]) == (["yes", 0.0, 0.0], ["yes", 1.0, 1])
    assert residuals.rows == [[0, 1, 3], [1, 2, 4]]


def test_the_best_so_far_never_gets_worse_on_the_line() -> None:
    scored = [(NOON + timedelta(seconds=s), v) for s, v in [(1, 0.5), (2, 0.3), (3, 0.4), (4, 0.2)]]
    lower = pages.best_line(scored, NOON, NOON + timedelta(seconds=10), "rmse")
    assert lower is not None
    heights = [float(point.split(",")[1]) for point in lower["points"].split()]
    assert heights == sorted(heights, reverse=True)  # a smaller y is higher up: better
    assert "from 0.500 to 0.200 with 4 models" in lower["words"]
    assert lower["rows"] == [(1.0, 0.5), (2.0, 0.3), (4.0, 0.2)]
    assert pages.best_line(scored[:1], NOON, NOON, "rmse") is None


COLUMNS = [
    {"name": "age", "dtype": "integer", "min": 1, "max": 90, "quantiles": {"0.5": 37.0}},
    {
        "name": "town",
        "dtype": "string",
        "top": [{"value": "Ulm", "count": 5}, {"value": "Aal", "count": 2}],
        "classes": [{"value": "Aal", "count": 2}, {"value": "Ulm", "count": 5}],
    },
    {"name": "street", "dtype": "string", "top": [{"value": "Hauptstr.", "count": 9}]},
    {"name": "day", "dtype": "date", "min": "2024-01-01", "max": "2024-05-31"},
    {"name": "member", "dtype": "boolean", "top": [{"value": True, "count": 3}]},
]
SCHEMA = [
    {"name": str(c["name"]), "dtype": str(c["dtype"]), "role": role}
    for c, role in zip(
        COLUMNS, ["numeric", "categorical", "categorical", "datetime", "boolean"], strict=True
    )
]


def test_controls_fit_their_columns_and_hold_typical_values() -> None:
    fields = pages.schema_fields(SCHEMA, COLUMNS)
    assert [(f.input, f.value) for f in fields] == [
        ("number", "37"),
        ("choice", "Ulm"),
        ("text", "Hauptstr."),  # there are more streets than are known here
        ("date", "2024-05-31"),
        ("choice", "true"),
    ]
    assert fields[1].options == ["Aal", "Ulm"]


def test_a_form_without_statistics_is_empty_but_whole() -> None:
    fields = pages.schema_fields(SCHEMA, [])
    assert [f.value for f in fields] == [""] * 5


def test_what_was_entered_wins_even_if_no_option_has_it() -> None:
    fields = pages.schema_fields(SCHEMA, COLUMNS, {"column-1": "Ghent"}, {"age": ["Too old."]})
    assert fields[1].value == "Ghent"
    assert "Ghent" in fields[1].options
    assert (fields[0].value, fields[0].errors) == ("", ["Too old."])


def test_a_form_goes_back_to_a_row_with_empty_as_missing() -> None:
    row = pages.row_of(SCHEMA, {"column-0": "3", "column-1": "", "other": "x"})
    assert row == {"age": "3", "town": None, "street": None, "day": None, "member": None}


def test_snippets_are_code_that_parses_whatever_the_columns_are_called() -> None:
    row = {"it's": 'a "quote"', "n": None, "ok": True, "x": 1.5}
    found = {one["id"]: one["text"] for one in pages.snippets("http://here:1/", "m", row)}
    compile(found["python"], "snippet", "exec")
    assert "http://here:1/api/results/model/m/predict" in found["curl"]
    assert "'\\''" in found["curl"]  # the shell's way of a quote within quotes
