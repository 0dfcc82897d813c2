"""A request is judged before anything is queued, and every refusal says what would work."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.checks import MIN_ROWS_PER_CLASS, ROLES, Refused, Wish, check

ENGINES = {
    "pycaret": ("binary", "multiclass", "regression"),
    "linear": ("regression",),
}


def column(name, dtype="float", role=None, distinct=150, missing=0, classes=None, **more):
    role = role or {"string": "categorical", "boolean": "boolean"}.get(dtype, "numeric")
    listed = [{"value": value, "count": count} for value, count in (classes or {}).items()]
    return {
        "name": name,
        "dtype": dtype,
        "role": role,
        "distinct": len(listed) or distinct,
        "missing": missing,
        "classes": listed,
        **more,
    }


IRIS = [
    column("sepal_length", min=4.3, max=7.9),
    column("petal_length", min=-1.0, max=6.9),
    column("species", "string", classes={"virginica": 50, "setosa": 50, "versicolor": 50}),
    column("sold", "boolean", classes={True: 60, False: 90}),
    column("grade", "integer", classes={10: 50, 2: 50, 1: 50}),
    column("batch", "string", role="constant", distinct=1),
    column("row_id", "integer", role="identifier"),
    column("picked_on", "date", role="datetime"),
    column("remark", "string", role="text", distinct=149),
    column("rare", "string", classes={"a": 147, "b": 3}),
    column("empty", "string", role="constant", distinct=0, missing=150),
    column("price", "float", missing=30),
    column("few", "float", missing=140, distinct=10),
]


def plan(target="species", *, columns=IRIS, n_rows=150, max_budget_s=3600.0, **wish):
    return check(
        Wish(target=target, **wish), columns, n_rows, engines=ENGINES, max_budget_s=max_budget_s
    )


def refusal(*args, **wish):
    with pytest.raises(Refused) as caught:
        plan(*args, **wish)
    return caught.value.errors


def attempt(*args, **wish):
    """(plan, {}) or (None, errors)"""
    try:
        return plan(*args, **wish), {}
    except Refused as refused:
        return None, refused.errors


def test_a_sound_request_becomes_a_plan():
    got = plan()
    assert (got.task, got.metric, got.engines) == ("multiclass", "log_loss", ["pycaret"])
    assert got.classes == ["setosa", "versicolor", "virginica"]
    assert got.positive_class is None
    assert got.split == {"kind": "random", "seed": 0, "test": 0.2, "validation": 0, "folds": 5}
    names = [one["name"] for one in got.columns]
    assert names == [
        "sepal_length", "petal_length", "sold", "grade", "picked_on", "remark", "rare", "price",
        "few",
    ]  # fmt: skip
    assert got.columns[0] == {"name": "sepal_length", "role": "numeric", "dtype": "float"}
    assert any("'batch', 'empty'" in notice for notice in got.notices)
    assert any("'row_id'" in notice and "column_types" in notice for notice in got.notices)


@pytest.mark.parametrize(
    ("target", "task", "metric", "positive"),
    [
        ("species", "multiclass", "log_loss", None),
        ("sold", "binary", "roc_auc", "true"),
        ("grade", "multiclass", "log_loss", None),
        ("sepal_length", "regression", "rmse", None),
    ],
)
def test_auto_finds_the_task_and_says_why(target, task, metric, positive):
    got = plan(target)
    assert (got.task, got.metric, got.positive_class) == (task, metric, positive)
    assert target in got.reason


def test_numbers_as_classes_keep_their_order():
    assert plan("grade").classes == ["1", "2", "10"]


def test_whole_numbers_can_be_said_to_be_quantities():
    assert plan("grade", task_type="regression").task == "regression"
    assert plan("grade", column_types={"grade": "numeric"}).task == "regression"


def test_rows_without_a_target_are_said():
    got = plan("price")
    assert got.rows == 120
    assert got.notices[0].startswith("30 rows have no value in 'price'")


def test_an_identifier_can_be_learnt_from_or_predicted_when_it_is_said_to_be_a_quantity():
    assert "row_id" in refusal("row_id")["target"][0]
    assert plan("row_id", column_types={"row_id": "numeric"}).task == "regression"
    used = plan(column_types={"row_id": "numeric"}).columns
    assert {"name": "row_id", "role": "numeric", "dtype": "integer"} in used


@pytest.mark.parametrize(
    ("wish", "field", "words"),
    [
        ({"target": "Specis"}, "target", ["'Specis'", "Did you mean 'species'?"]),
        ({"target": "batch"}, "target", ["constant"]),
        ({"target": "empty"}, "target", ["no values"]),
        ({"target": "picked_on"}, "target", ["dates"]),
        ({"target": "remark"}, "target", ["149 different values", "200 classes"]),
        ({"target": "rare"}, "target", ["at least 5 rows", "'b' (3)", "merge"]),
        ({"target": "few"}, "target", ["Only 10 rows", "20"]),
        ({"task_type": "ranking"}, "task_type", ["'ranking'", "regression"]),
        ({"task_type": "regression"}, "task_type", ["string", "classification"]),
        ({"task_type": "binary"}, "task_type", ["3 different values", "multiclass"]),
        ({"metric": "rmse"}, "metric", ["does not fit multiclass", "log_loss"]),
        ({"metric": "acuracy"}, "metric", ["Did you mean 'accuracy'?"]),
        ({"target": "petal_length", "metric": "rmsle"}, "metric", ["-1"]),
        ({"engines": ["pycart"]}, "engines", ["Did you mean 'pycaret'?"]),
        ({"engines": ["linear"]}, "engines", ["regression", "not multiclass"]),
        ({"time_budget_s": 7200}, "time_budget", ["3,600 seconds", "60 minutes", "7,200"]),
        ({"time_budget_s": 1}, "time_budget", ["at least 5"]),
        ({"time_budget_s": float("nan")}, "time_budget", ["at least 5"]),
        ({"exclude": ["sepal_lenght"]}, "exclude", ["Did you mean 'sepal_length' or"]),
        ({"exclude": ["species"]}, "exclude", ["is the target"]),
        ({"column_types": {"sold": "numeric"}}, "column_types", ["'sold'", "boolean or categ"]),
        ({"column_types": {"sould": "boolean"}}, "column_types", ["Did you mean 'sold'?"]),
        ({"positive_class": "setosa"}, "positive_class", ["multiclass"]),
        ({"target": "sold", "positive_class": "yes"}, "positive_class", ["'false' or 'true'"]),
        ({"split": {"folds": 99}}, "split", ["2 to 20"]),
        ({"split": {"tset": 0.2}}, "split", ["tset"]),
        ({"exclude": [c["name"] for c in IRIS if c["name"] != "species"]}, "exclude", ["No col"]),
    ],
)
def test_a_refusal_names_the_field_and_a_way_out(wish, field, words):
    errors = refusal(**wish)
    assert list(errors) == [field]
    for word in words:
        assert word in errors[field][0]


def test_a_positive_class_may_come_as_the_value_itself():
    assert plan("sold", positive_class=False).positive_class == "false"
    assert plan("sold", positive_class="false").positive_class == "false"


def test_several_problems_are_told_at_once():
    errors = refusal(metric="rmse", engines=["x"], time_budget_s=1e9, exclude=["y"])
    assert sorted(errors) == ["engines", "exclude", "metric", "time_budget"]
    errors = refusal("nothing", metric="x", engines=["x"])
    assert sorted(errors) == ["engines", "metric", "target"]


def test_too_many_classes_is_said_with_the_number():
    crowd = column("city", "string", distinct=3412, classes=None)
    errors = refusal("city", columns=[*IRIS, crowd], n_rows=20_000)
    assert "3,412 different values" in errors["target"][0]


@given(
    counts=st.lists(st.integers(1, 400), min_size=2, max_size=12),
    values=st.sampled_from(["string", "integer"]),
    task_type=st.sampled_from(["auto", "classification"]),
)
def test_whatever_passes_has_enough_rows_of_each_class(counts, values, task_type):
    named = {f"c{i}" if values == "string" else i: count for i, count in enumerate(counts)}
    columns = [column("x"), column("y", values, classes=named)]
    got, errors = attempt("y", columns=columns, n_rows=sum(counts), task_type=task_type)
    if got is None:
        assert min(counts) < MIN_ROWS_PER_CLASS or sum(counts) < 20
        assert list(errors) == ["target"]
    else:
        assert got.task == "regression" or min(counts) >= MIN_ROWS_PER_CLASS
        if got.classes:
            assert len(got.classes) == len(counts)


@given(st.data())
def test_every_column_is_learnt_from_or_said_to_be_left_out(data):
    names = data.draw(st.sets(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=6))
    columns = [column("y")]
    for name in sorted(names):
        dtype = data.draw(st.sampled_from(sorted(ROLES)))
        role = data.draw(st.sampled_from([*ROLES[dtype], "identifier", "constant"]))
        columns.append(column(name, dtype, role=role))
    exclude = data.draw(st.sets(st.sampled_from(sorted(names))))
    got, errors = attempt("y", columns=columns, exclude=sorted(exclude))
    if got is None:
        left = {
            one["role"]
            for one in columns[1:]
            if one["name"] not in exclude and one["role"] not in {"identifier", "constant"}
        }
        # From pictures alone no engine learns a number.
        assert (list(errors), left) in [(["exclude"], set()), (["engines"], {"image"})]
        return
    used = {one["name"] for one in got.columns}
    told = {name for name in names if any(f"'{name}'" in notice for notice in got.notices)}
    assert used | told | exclude == names
    assert not used & (told | exclude)


def test_a_wish_has_defaults_that_pass():
    wish = Wish(target="species")
    assert check(wish, IRIS, 150, engines=ENGINES, max_budget_s=300).budget_s == 300
    assert check(
        replace(wish, task_type="multiclass"), IRIS, 150, engines=ENGINES, max_budget_s=300
    )


# Splits by a column


VISITS = [
    column("day", "date", role="datetime", distinct=100),
    column("year", "integer", distinct=4),
    column("patient", "string", distinct=30, missing=10),
    column("ward", "string", distinct=1),
    column("nothing", "float", role="constant", distinct=0, missing=2_000),
    column("gappy", "string", distinct=5, missing=1_990),
    column("sick", "boolean", classes={True: 500, False: 1_500}),
    column("cost", "float", distinct=1_900),
]


def visits(split, target="sick", **wish):
    return plan(target, columns=VISITS, n_rows=2_000, split=split, **wish)


def test_a_split_by_group_keeps_its_column_from_the_models_unless_named():
    found = visits({"kind": "group", "column": "patient"})
    assert (found.split["kind"], found.split["column"]) == ("group", "patient")
    assert "patient" not in [c["name"] for c in found.columns]
    assert any("the rows are split by it" in text for text in found.notices)
    assert any("10 rows have no value in 'patient'" in text for text in found.notices)
    kept = visits({"kind": "group", "column": "patient"}, column_types={"patient": "categorical"})
    assert "patient" in [c["name"] for c in kept.columns]


def test_a_split_by_time_goes_by_dates_and_by_numbers():
    for name in ("day", "year", "cost"):
        found = visits({"kind": "time", "column": name})
        assert found.split["validation"] == 0.2
        assert name in [c["name"] for c in found.columns]


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ({"kind": "group", "column": "patent"}, "Did you mean 'patient'"),
        ({"kind": "group", "column": "ward"}, "has 1 different value; a split by group needs"),
        ({"kind": "group", "column": "nothing"}, "has no values to split by"),
        ({"kind": "group", "column": "gappy"}, "Only 10 rows have a value in 'gappy'"),
        ({"kind": "group", "column": "sick"}, "is the target"),
        ({"kind": "time", "column": "patient"}, "which are no time"),
        ({"kind": "time", "column": ["day"]}, "no column"),
        ({"kind": "time"}, "needs 'column'"),
        ({"kind": "time", "column": "day", "folds": 3}, "no folds"),
        ({"kind": "weekday", "column": "day"}, "not known"),
    ],
)
def test_a_column_that_cannot_split_the_rows_is_refused_with_what_would_work(split, words):
    with pytest.raises(Refused) as caught:
        visits(split)
    (text,) = caught.value.errors["split"]
    assert words in text
