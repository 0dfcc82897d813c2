"""The split is a rule: every row once, fair to each class, and the same on every machine."""

import datetime as dt
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import splits


@st.composite
def tables(draw):
    """(rows, strata with some targets missing)."""
    counts = draw(st.lists(st.integers(0, 60), min_size=1, max_size=6))
    codes = [code for code, count in enumerate(counts) for _ in range(count)]
    codes += [-1] * draw(st.integers(0, 10))
    codes = draw(st.permutations(codes))
    return np.array(codes, dtype=np.int64)


@st.composite
def wishes(draw):
    wish = {"kind": "random", "seed": draw(st.integers(-(2**70), 2**70))}
    wish["test"] = draw(st.sampled_from([0, 0.1, 0.2, 0.25, 0.333333, 0.5]))
    if draw(st.booleans()):
        wish |= {"folds": draw(st.integers(2, 10)), "validation": 0}
    else:
        wish["validation"] = draw(st.sampled_from([0.05, 0.1, 0.2, 0.3]))
    return wish


@given(strata=tables(), split=wishes())
def test_every_row_has_exactly_one_part_and_only_missing_targets_have_none(strata, split):
    parts = splits.assign(len(strata), split, strata)
    assert parts.dtype == np.int8
    assert ((parts == splits.NO_PART) == (strata < 0)).all()
    if folds := split.get("folds"):
        assert set(parts) <= {splits.NO_PART, splits.TEST, *range(1, folds + 1)}
    else:
        assert set(parts) <= {splits.NO_PART, splits.TEST, splits.VALIDATION, splits.TRAIN}
    taken = np.concatenate([splits.ranked_rows(parts), splits.sealed_rows(parts)])
    assert len(set(taken)) == len(taken)


@given(strata=tables(), split=wishes())
def test_each_class_gets_its_share_of_each_part(strata, split):
    parts = splits.assign(len(strata), split, strata)
    for code in set(strata[strata >= 0]):
        mine = parts[strata == code]
        assert abs((mine == splits.TEST).sum() - len(mine) * split["test"]) < 1
        if folds := split.get("folds"):
            sizes = [(mine == fold).sum() for fold in range(1, folds + 1)]
            assert max(sizes) - min(sizes) <= 1
        else:
            assert abs((mine == splits.VALIDATION).sum() - len(mine) * split["validation"]) < 2


@given(n=st.integers(0, 200), split=wishes())
def test_the_same_split_comes_out_again_and_a_table_is_cut_by_its_rows_alone(n, split):
    once = splits.assign(n, split)
    assert (once == splits.assign(n, dict(reversed(split.items())))).all()
    assert (once == splits.assign(n, split, np.full(n, 3))).all()  # one class is like no classes


@given(strata=tables(), split=wishes())
def test_renaming_classes_in_order_changes_nothing(strata, split):
    renamed = np.where(strata < 0, strata, strata * 7 + 2)
    assert (
        splits.assign(len(strata), split, strata) == splits.assign(len(strata), split, renamed)
    ).all()


@given(seed=st.integers(0, 2**64))
def test_another_seed_cuts_another_way(seed):
    split = {"kind": "random", "seed": seed, "validation": 0.2, "test": 0.2}
    other = splits.assign(300, split | {"seed": seed + 1})
    assert (splits.assign(300, split) != other).any()


def test_known_numbers_guard_against_a_change_between_numpy_versions():
    # These came out alike under numpy 1.26.4 (the engine's) and 2.4.6 (the web side's).
    assert [hex(h) for h in splits.splitmix64(0, 3)] == KNOWN_HASHES
    split = {"kind": "random", "seed": 7, "validation": 0.25, "test": 0.25}
    assert "".join("tvx"[-p] for p in splits.assign(24, split, np.arange(24) % 2)) == KNOWN_PARTS


KNOWN_HASHES = ["0x7bab7542fbf9c436", "0xae73767cc4cf4435", "0x970c470b06c2930d"]
KNOWN_PARTS = "ttvxtxttttvvxttvtvxtxtvx"


def test_hashes_spread_evenly():
    low_bytes = np.bincount((splits.splitmix64(1, 100_000) & np.uint64(255)).astype(int))
    assert len(low_bytes) == 256
    assert low_bytes.min() > 300
    assert low_bytes.max() < 490


@given(
    n=st.integers(20, 5_000_000),
    counts=st.none() | st.lists(st.integers(5, 2_000), min_size=2, max_size=8),
)
def test_a_planned_split_leaves_every_class_in_every_part(n, counts):
    class_counts = {str(code): count for code, count in enumerate(counts)} if counts else None
    n = sum(counts) if counts else n
    split = splits.plan_split(n, "multiclass" if counts else "regression", class_counts)
    assert ("folds" in split) == (n < splits.FEW_ROWS)
    held = math.ceil(n * split["test"])
    assert held <= splits.MOST_HELD_OUT_ROWS + 10 or held <= n * 0.2 + 1
    if counts:
        strata = np.repeat(np.arange(len(counts)), counts)
        parts = splits.assign(n, split, strata)
        for code in range(len(counts)):
            mine = set(parts[strata == code])
            assert splits.TEST in mine
            assert mine & {splits.VALIDATION, 1}
            if "folds" in split:
                assert len(mine) == split["folds"] + 1
            else:
                assert splits.TRAIN in mine


@pytest.mark.parametrize(
    ("wish", "word"),
    [
        ({"kind": "weekday"}, "weekday"),
        ({"test": 0.9}, "'test'"),
        ({"test": "many"}, "numbers"),
        ({"validation": 0.7}, "'validation'"),
        ({"folds": 1}, "'folds'"),
        ({"folds": 5, "validation": 0.2}, "either"),
        ({"share": 0.2}, "share"),
        ({"folds": 10}, "allow 4"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused_with_a_reason(wish, word):
    with pytest.raises(splits.BadSplit, match=word):
        splits.plan_split(300, "binary", {"a": 5, "b": 295}, wish)


def test_a_wish_is_kept():
    split = splits.plan_split(300, "regression", None, {"seed": 4, "validation": 0.3, "test": 0.1})
    assert split == {"kind": "random", "seed": 4, "test": 0.1, "validation": 0.3}


def test_huge_tables_hold_out_no_more_rows_than_help():
    split = splits.plan_split(10_000_000, "regression", None)
    assert split["test"] == split["validation"] == 0.005


def test_labels_agree_between_json_numpy_and_pandas_values():
    classes = ["0", "1", "true", "false", "2.5", "setosa"]
    values = [0, np.int64(1), 1.0, True, np.bool_(False), 2.5, "setosa", None, math.nan, "x", [1]]
    assert list(splits.codes_of(values, classes)) == [0, 1, 1, 2, 3, 4, 5, -1, -1, -1, -1]
    assert list(splits.codes_of(np.array([1.0, np.nan, 0.0, 2.5]), classes)) == [1, -1, 0, 4]
    assert list(splits.codes_of(np.array([False, True]), classes)) == [3, 2]
    assert list(splits.codes_of(np.array([], dtype=float), classes)) == []


def test_regression_rows_without_a_number_take_no_part():
    strata = splits.strata_of([1.5, None, math.nan, math.inf, 0], None)
    assert list(strata) == [0, -1, -1, -1, 0]


@given(strata=tables(), split=wishes())
def test_a_refit_trains_on_all_rows_but_the_sealed_ones(strata, split):
    raced = splits.assign(len(strata), split, strata)
    refitted = splits.assign(len(strata), split | {"refit": True}, strata)
    moved = raced == splits.VALIDATION
    assert (refitted[moved] == splits.TRAIN).all()
    assert (refitted[~moved] == raced[~moved]).all()


# By time and by group


@st.composite
def tables_by(draw, values):
    """(strata with some targets missing, a column with some values missing)."""
    rows = draw(
        st.lists(st.tuples(st.integers(-1, 3), st.none() | values), min_size=0, max_size=80)
    )
    strata = np.array([code for code, _ in rows], dtype=np.int64)
    return strata, [value for _, value in rows]


@st.composite
def wishes_by(draw, kind):
    wish = draw(wishes()) | {"kind": kind, "column": "by"}
    if kind == "time":
        wish.pop("folds", None)
        wish["validation"] = wish["validation"] or 0.2
    return wish


def cut(strata, by, split):
    """The parts, or None where the column has too few values for the split."""
    taking = {value for value, code in zip(by, strata, strict=True) if code >= 0} - {None}
    if len(taking) < 2 + bool(split["test"]):
        with pytest.raises(splits.BadSplit, match="different"):
            splits.assign(len(strata), split, strata, by)
        return None
    return splits.assign(len(strata), split, strata, by)


@given(table=tables_by(st.integers(0, 30)), split=wishes_by("time"))
def test_by_time_each_part_is_later_than_the_one_before(table, split):
    strata, by = table
    parts = cut(strata, by, split)
    if parts is None:
        return
    times = np.array([np.nan if value is None else value for value in by])
    assert ((parts == splits.NO_PART) == ((strata < 0) | np.isnan(times))).all()
    order = [splits.TRAIN, splits.VALIDATION, *([splits.TEST] if split["test"] else [])]
    assert set(parts) - {splits.NO_PART} == set(order)
    for earlier, later in itertools.pairwise(order):
        assert times[parts == earlier].max() < times[parts == later].min()
    refitted = splits.assign(len(strata), split | {"refit": True}, strata, by)
    assert ((refitted == splits.TEST) == (parts == splits.TEST)).all()
    assert splits.VALIDATION not in refitted


@given(table=tables_by(st.integers(0, 12)), split=wishes_by("group"))
def test_no_group_straddles_parts_or_folds(table, split):
    strata, by = table
    parts = cut(strata, by, split)
    if parts is None:
        return
    missing = np.array([value is None for value in by])
    assert ((parts == splits.NO_PART) == ((strata < 0) | missing)).all()
    of_group = {}
    for value, part in zip(by, parts, strict=True):
        if part != splits.NO_PART:
            assert of_group.setdefault(value, part) == part
    used = set(parts) - {splits.NO_PART}
    if folds := split.get("folds"):
        assert used - {splits.TEST} == set(range(1, min(folds, len(used - {splits.TEST})) + 1))
        assert len(used - {splits.TEST}) >= 2
    else:
        assert {splits.TRAIN, splits.VALIDATION} <= used
    assert (splits.TEST in used) == bool(split["test"])


@given(
    sizes=st.lists(st.integers(1, 30), min_size=10, max_size=80),
    seed=st.integers(0, 2**31),
    share=st.sampled_from([0.1, 0.2, 0.3]),
)
def test_groups_fill_each_part_to_within_the_largest_of_them(sizes, seed, share):
    by = [f"g{number}" for number, size in enumerate(sizes) for _ in range(size)]
    split = {"kind": "group", "column": "by", "seed": seed, "test": share, "validation": share}
    parts = splits.assign(len(by), split, None, by)
    for part in (splits.TEST, splits.VALIDATION):
        assert abs((parts == part).sum() - share * len(by)) <= 2 * max(sizes)


def test_rare_classes_of_groups_come_into_every_part():
    """40 of 400 patients are ill, in a tenth of their rows."""
    patient = np.repeat(np.arange(400), 10)
    ill = (patient % 10 == 3) & (np.arange(4000) % 10 == 0)
    split = {"kind": "group", "column": "patient", "seed": 5, "test": 0.2, "validation": 0.2}
    parts = splits.assign(4000, split, ill.astype(np.int64), patient)
    for part, share in ((splits.TEST, 8), (splits.VALIDATION, 8), (splits.TRAIN, 24)):
        assert abs(ill[parts == part].sum() - share) <= 1


@given(
    table=tables_by(st.integers(0, 12)),
    split=wishes_by("group") | wishes_by("time"),
    kind=st.sampled_from(["text", "float", "datetime", "python datetime"]),
)
def test_values_cut_alike_however_a_library_holds_them(table, split, kind):
    """Polars, pyarrow and lists give the same column as numbers, objects or times."""
    strata, by = table
    parts = cut(strata, by, split)
    if parts is None:
        return
    start = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    other = {
        "text": lambda v: f"{v:03}",
        "float": float,
        "datetime": lambda v: np.datetime64("2024-01-01", "us") + np.timedelta64(v, "D"),
        "python datetime": lambda v: start + dt.timedelta(days=v),
    }[kind]
    held = [None if value is None else other(value) for value in by]
    if kind == "float":
        held = np.array([np.nan if value is None else value for value in held])
    if kind == "datetime":
        held = np.array(
            [np.datetime64("NaT") if value is None else value for value in held], "datetime64[us]"
        )
    assert (splits.assign(len(strata), split, strata, held) == parts).all()


def test_another_seed_deals_other_groups():
    by = np.arange(300) // 3
    split = {"kind": "group", "column": "by", "validation": 0.2, "test": 0.2}
    one, two = (splits.assign(300, split | {"seed": seed}, None, by) for seed in (1, 2))
    assert (one != two).any()


def test_one_group_that_holds_most_rows_trains():
    by = ["huge"] * 900 + [f"g{number}" for number in range(100)]
    split = {"kind": "group", "column": "by", "seed": 0, "test": 0.2, "validation": 0.2}
    parts = splits.assign(1000, split, None, by)
    assert set(parts[:900]) == {splits.TRAIN}
    assert (parts[900:] == splits.TEST).sum() == (parts[900:] == splits.VALIDATION).sum() == 50


def test_known_groups_guard_against_a_change_between_numpy_versions():
    split = {"kind": "group", "column": "by", "seed": 7, "validation": 0.25, "test": 0.25}
    by = np.arange(24) // 2
    parts = splits.assign(24, split, np.arange(24) % 2, by)
    assert "".join("tvx"[-p] for p in parts) == KNOWN_GROUPS


KNOWN_GROUPS = "ttvvvvttxxttttvvxxxxtttt"


def test_a_split_by_time_needs_no_folds_and_one_by_group_at_most_one_per_group():
    by_time = splits.plan_split(200, "regression", None, {"kind": "time", "column": "day"})
    assert (by_time["validation"], by_time.get("folds"), by_time["column"]) == (0.2, None, "day")
    wish = {"kind": "group", "column": "patient"}
    assert splits.plan_split(200, "regression", None, wish, groups=4)["folds"] == 3
    assert splits.plan_split(5_000, "regression", None, wish, groups=4)["validation"] == 0.2
    for bad, word in (
        ({"kind": "time", "column": "day", "folds": 5}, "no folds"),
        ({"kind": "time"}, "'column'"),
        ({"kind": "group", "column": ""}, "'column'"),
        ({"column": "day"}, "kinds 'time' and 'group'"),
        (wish | {"folds": 10}, "allow 3"),
    ):
        with pytest.raises(splits.BadSplit, match=word):
            splits.plan_split(200, "regression", None, bad, groups=4)
