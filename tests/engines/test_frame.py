"""Preparation of raw tables: the same values mean the same, however they arrive."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.engines import frame, matrix, text
from training.engines.frame import Categories, Schema
from training.engines.tables import InputError
from training.engines.text import Words


def learn(table: dict[str, list[Any]], roles: dict[str, str]) -> frame.Learnt:
    columns = [{"name": name, "role": role} for name, role in roles.items()]
    rows = np.ones(len(next(iter(table.values()))), dtype=bool)
    return frame.learn(columns, table, rows)


def values(found: Any) -> list[Any]:
    return found.values() if isinstance(found, Categories) else found.tolist()


def test_numbers_arrive_as_numbers_texts_and_gaps() -> None:
    schema, prepared, misfits = learn({"a": [1, "2.5", None, "NA", "x"]}, {"a": "numeric"})
    np.testing.assert_array_equal(prepared.features["a"], [1, 2.5, np.nan, np.nan, np.nan])
    assert misfits == {"a": 1}
    with pytest.raises(InputError, match=r"'a'.*'x' is not a number") as caught:
        frame.prepare(schema, {"a": ["x"]})
    assert list(caught.value.columns) == ["a"]


def test_endless_numbers_are_gaps() -> None:
    schema = learn({"a": [1.0, 2.0]}, {"a": "numeric"}).schema
    prepared = frame.prepare(schema, {"a": [float("inf"), 10**400]})
    assert np.isnan(np.asarray(prepared.features["a"])).all()


@pytest.mark.parametrize(
    ("one", "other"), [(1, "1"), (1.0, 1), (True, "true"), (2.5, "2.5"), (np.int64(3), 3.0)]
)
def test_a_level_has_one_name(one: Any, other: Any) -> None:
    assert frame.level_of(one) == frame.level_of(other)


def test_whole_numbers_with_gaps_are_the_same_categories_as_without() -> None:
    table = {"a": np.array([1.0, 2.0, np.nan])}
    _, prepared, _ = frame.learn(
        [{"name": "a", "role": "categorical"}], table, np.array([True, True, True])
    )
    assert values(prepared.features["a"]) == ["1", "2", None]


def test_words_for_gaps_may_be_levels_but_unseen_ones_are_gaps() -> None:
    found = Categories(np.array([0, 1, 2, -1]), ("NA", "none", "red"))
    assert found.codes_in({"red": 0, "none": 1}, unseen=7, missing=-1).tolist() == [-1, 1, 0, -1]
    assert found.codes_in({"red": 0}, unseen=7, missing=-1).tolist() == [-1, -1, 0, -1]


@pytest.mark.parametrize("role", ["text", "identifier", "constant", "excluded"])
def test_columns_engines_do_not_read_are_left_out_with_the_reason(role: str) -> None:
    schema, prepared, _ = learn({"a": ["x", "y"], "b": [1, 2]}, {"a": role, "b": "numeric"})
    assert list(prepared.features) == ["b"]
    assert schema.left_out["a"]
    frame.prepare(schema, {"b": [1]})  # and are not asked for later


def test_yes_and_no_are_a_boolean_and_other_pairs_are_categories() -> None:
    schema, prepared, _ = learn(
        {"a": ["yes", "No", None], "b": ["m", "f", "m"]}, {"a": "boolean", "b": "boolean"}
    )
    np.testing.assert_array_equal(prepared.features["a"], [1, 0, np.nan])
    assert [column.kind for column in schema.columns] == ["boolean", "category"]
    with pytest.raises(InputError, match="true or false"):
        frame.prepare(schema, {"a": ["perhaps"], "b": ["m"]})


def test_dates_become_their_parts_and_only_those_that_vary() -> None:
    days = [dt.date(2024, 1, 1), dt.date(2024, 2, 29), None]
    schema, prepared, _ = learn({"d": days}, {"d": "datetime"})
    assert schema.columns[0].parts == ("days", "month", "day", "weekday")
    np.testing.assert_array_equal(prepared.features["d.month"], [1, 2, np.nan])
    np.testing.assert_array_equal(prepared.features["d.weekday"], [0, 3, np.nan])
    assert prepared.features["d.days"][0] == (dt.date(2024, 1, 1) - dt.date(1970, 1, 1)).days


@settings(deadline=None)
@given(
    st.datetimes(dt.datetime.fromisoformat("1900-01-01"), dt.datetime.fromisoformat("2100-01-01"))
)
def test_a_time_means_the_same_as_text_object_and_array(moment: dt.datetime) -> None:
    schema = Schema((frame.Column("d", "datetime", "datetime", "datetime", frame._PARTS),))
    ways: list[Any] = [
        [moment],
        [moment.isoformat()],
        [moment.replace(tzinfo=dt.UTC)],
        np.array([moment], dtype="datetime64[us]"),
    ]
    found = [frame.prepare(schema, {"d": way}).features for way in ways]
    for other in found[1:]:
        assert {k: v[0] for k, v in other.items()} == {k: v[0] for k, v in found[0].items()}
    assert found[0]["d.hour"][0] == moment.hour
    assert found[0]["d.month"][0] == moment.month
    assert found[0]["d.weekday"][0] == moment.weekday()


def test_missing_columns_are_named() -> None:
    schema = learn({"a": [1, 2], "b": [3, 4]}, {"a": "numeric", "b": "numeric"}).schema
    with pytest.raises(InputError, match="Columns 'a', 'b' are missing"):
        frame.prepare(schema, {"c": [1]})


def test_what_does_not_vary_in_training_rows_is_left_out() -> None:
    table = {"a": [1, 1, 2], "b": ["x", "x", "y"], "c": [None, 1, 2]}
    roles = {"a": "numeric", "b": "categorical", "c": "numeric"}
    columns = [{"name": name, "role": role} for name, role in roles.items()]
    learnt = frame.learn(columns, table, np.array([True, True, False]))
    assert set(learnt.schema.left_out) == {"a", "b"}
    assert list(learnt.frame.features) == ["c"]  # a gap is a value too


cells = st.one_of(st.none(), st.floats(allow_nan=True), st.integers(-5, 5), st.text(max_size=3))


@settings(deadline=None)
@given(st.lists(cells, min_size=1, max_size=20), st.data())
def test_one_row_alone_is_prepared_as_among_others(column: list[Any], data: st.DataObject) -> None:
    """The model server's one-row path gives what training and files gave."""
    schema = Schema((frame.Column("a", "categorical", "string", "category"),))
    whole = frame.prepare(schema, {"a": column}).features["a"]
    row = data.draw(st.integers(0, len(column) - 1))
    alone = frame.prepare(schema, {"a": [column[row]]}).features["a"]
    assert values(alone) == [values(whole)[row]]


@settings(deadline=None)
@given(st.lists(st.tuples(cells, st.sampled_from(["red", "blue", None])), min_size=2, max_size=30))
@pytest.mark.parametrize("style", ["native", "trees", "scaled"])
def test_an_encoding_survives_json_and_a_row_does_not_depend_on_its_neighbours(
    style: matrix.Style, rows: list[tuple[Any, Any]]
) -> None:
    numbers = [cell if isinstance(cell, float | int) else None for cell, _ in rows]
    table = {"n": numbers, "c": [colour for _, colour in rows]}
    columns = (
        frame.Column("n", "numeric", "float", "number"),
        frame.Column("c", "categorical", "string", "category"),
    )
    prepared = frame.prepare(Schema(columns), table)
    encoding = matrix.learn(prepared, style)
    again = matrix.from_json(json.loads(json.dumps(matrix.as_json(encoding))))
    whole = again.matrix(prepared)
    assert whole.shape == (len(rows), encoding.width)
    if style != "native":
        assert np.isfinite(whole).all()
    for row in range(len(rows)):
        np.testing.assert_array_equal(again.matrix(prepared.take(np.array([row])))[0], whole[row])


def test_unseen_levels_are_zeros_or_the_rare_ones_column() -> None:
    seen = ["a"] * 5 + ["b"] * 5
    plain = frame.prepare(CATEGORY, {"c": seen})
    rare = frame.prepare(CATEGORY, {"c": [*seen, "once"]})
    new = frame.prepare(CATEGORY, {"c": ["z", "a"]})
    assert matrix.learn(plain, "scaled").matrix(new).tolist() == [[0, 0], [1, 0]]
    assert matrix.learn(rare, "scaled").matrix(new).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert np.isnan(matrix.learn(plain, "native").matrix(new)[0, 0])


CATEGORY = Schema((frame.Column("c", "categorical", "string", "category"),))


def test_many_levels_do_not_make_a_wide_matrix() -> None:
    random = np.random.default_rng(0)
    table = {"c": [f"level {i}" for i in random.integers(0, 5_000, 20_000)]}
    prepared = frame.prepare(CATEGORY, table)
    assert matrix.learn(prepared, "scaled").width <= matrix.MOST_LEVELS + 2
    assert matrix.learn(prepared, "trees").width == 1


# Free text


def remarks(rows: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Sentences, and whether each is a complaint: told by its words, in the midst of others."""
    random = np.random.default_rng(seed)
    filler = ["the", "a", "parcel", "order", "shop", "site", "today", "my", "our", "phone", "was"]
    cross = ["broken", "late", "refund", "angry", "damaged", "never", "missing"]
    glad = ["great", "thanks", "quick", "perfect", "friendly", "love", "recommend"]
    angry = random.random(rows) < 0.5
    texts = []
    for row in range(rows):
        words = [
            *random.choice(filler, random.integers(5, 25)),
            *random.choice(cross if angry[row] else glad, 2),
        ]
        random.shuffle(words)
        texts.append(" ".join(words).capitalize() + ".")
    return texts, angry


def test_text_is_read_as_scikit_learn_reads_it() -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts, _ = remarks(300)
    words = text.learn(texts, chars=80, width=6, seed=1)
    assert isinstance(words, Words)
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, vocabulary=list(words.terms), norm="l2"
    )
    vectorizer.idf_ = words.idf
    strange = ["", "nothing known here", "LATE, late; refund", "ß ünïcode late", "late " * 300]
    many = strange + texts * 20  # more than are read at once
    expected = vectorizer.transform([one[:80] for one in many]) @ words.components
    found = words.numbers(many)
    np.testing.assert_allclose(found[:, 1:], expected, atol=1e-12)
    assert found[:4, 0].tolist() == [0, 3, 3, 2]
    np.testing.assert_allclose(words.numbers(many[7:8])[0], found[7], atol=1e-12)


def test_text_tells_what_a_column_of_categories_can_not() -> None:
    from sklearn.linear_model import LogisticRegression

    texts, angry = remarks(600)
    rows = np.arange(600) < 400
    words = text.learn(texts[:400], chars=500, width=8, seed=0)
    columns = [{"name": "remark", "role": "text", "dtype": "string"}]
    schema, prepared, misfits = frame.learn(columns, {"remark": texts}, rows, {"remark": words})
    assert not misfits
    table = np.column_stack(list(prepared.features.values()))
    model = LogisticRegression(C=100, max_iter=1000).fit(table[rows], angry[rows])
    assert model.score(table[~rows], angry[~rows]) > 0.95
    again = Schema.from_json(json.loads(json.dumps(schema.as_json())))
    later = frame.prepare(again, {"remark": texts[:5]})
    for name, feature in later.features.items():
        np.testing.assert_array_equal(feature, np.asarray(prepared.features[name])[:5])
    gaps = frame.prepare(again, {"remark": [None, "", "NA", float("nan"), 7]})
    assert not any(np.asarray(feature)[:4].any() for feature in gaps.features.values())


@pytest.mark.parametrize(
    "texts",
    [["same words here"] * 50, [f"unique{i} words{i}" for i in range(50)], [""] * 50, ["a b c"]],
    ids=["all-alike", "nothing-twice", "empty", "no-words"],
)
def test_text_that_tells_no_rows_apart_is_left_out(texts: list[str]) -> None:
    why = text.learn(texts, chars=500, width=8, seed=0)
    assert isinstance(why, str)
    rows = np.ones(len(texts), dtype=bool)
    columns = [{"name": "remark", "role": "text"}]
    assert frame.learn(columns, {"remark": texts}, rows, {"remark": why}).schema.left_out == {
        "remark": why
    }


@settings(deadline=None)
@given(st.lists(st.integers(0, 9_000), max_size=40), st.floats(0, 0.2))
def test_no_more_of_texts_is_read_than_time_allows(lengths: list[int], seconds: float) -> None:
    texts = ["x" * length for length in lengths]
    chars = text.chars_for(texts, seconds)
    assert chars == 0 or text.LEAST_CHARS <= chars <= text.MOST_CHARS
    assert sum(min(length, chars) for length in lengths) <= seconds * text.CHARS_PER_S
    if chars < text.MOST_CHARS and sum(lengths):
        allowed = min(text.MOST_CHARS, chars + 1) if chars else text.LEAST_CHARS
        assert sum(min(length, allowed) for length in lengths) > seconds * text.CHARS_PER_S


def test_a_model_that_reads_texts_or_pictures_gets_them_as_they_are_and_nothing_else() -> None:
    columns = [
        {"name": "said", "role": "text"},
        {"name": "size", "role": "numeric"},
        {"name": "seen", "role": "image"},
    ]
    table = {"said": ["It works", None, "a b"], "size": [1, 2, 3], "seen": [b"\x89PNG", None, b"x"]}
    rows = np.array([True, True, False])
    schema, prepared, _ = frame.learn(columns, table, rows, only="text")
    assert list(prepared.features["said"]) == ["It works", "", "a b"]
    assert schema.left_out == {"size": "this model reads texts", "seen": "this model reads texts"}
    again = frame.prepare(frame.Schema.from_json(schema.as_json()), {"said": ["new"]})
    assert list(again.take(np.array([0])).features["said"]) == ["new"]
    schema, prepared, _ = frame.learn(columns, table, rows, only="image")
    assert list(schema.left_out) == ["said", "size"]
    assert list(prepared.features["seen"]) == [b"\x89PNG", None, b"x"]
