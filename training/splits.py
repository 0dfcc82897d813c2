"""Which rows train, which rank, which stay sealed: one answer on every machine.

The control process (to score) and a node (to train) compute the same split from the job alone,
under different numpy versions. So nothing here uses numpy's random streams, which may change
between releases: rows are ordered by a fixed integer hash of (seed, row index), and counts are kept
in exact integer arithmetic. Nor is a value ever hashed or written as text: of a column that a split
goes by only the order (by time) or equality (by group) counts, which all libraries agree on.

Three kinds: ``random`` (stratified by class), ``time`` (training rows, then those that rank, then
the sealed ones) and ``group`` (rows with the same value stay together).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

TRAIN = 0
VALIDATION = -1
TEST = -2
NO_PART = -3  # the target is missing: the row teaches nothing and ranks nothing

FEW_ROWS = 1_000  # below this, one validation part is too noisy: out-of-fold predictions rank
MOST_HELD_OUT_ROWS = (
    50_000  # more than this in one part costs time and no longer sharpens the ranking
)
MOST_FOLDS = 20
KINDS = ("random", "time", "group")
SETTINGS = ("kind", "column", "seed", "test", "validation", "folds")
_PPM = 1_000_000

Split = dict[str, Any]


class BadSplit(ValueError):
    """A split that was asked for cannot be made; the text says why and what would work."""


def label(value: object) -> str:
    """Name of a class as FlowML writes it everywhere: ``true``, ``3``, ``2.5``, ``setosa``.

    The same for a plain value and a numpy scalar, so JSON, Polars and pandas agree.
    """
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return repr(float(value))
    return str(value)


def codes_of(
    values: Sequence[object] | npt.NDArray[Any], classes: Sequence[str]
) -> npt.NDArray[Any]:
    """Index of each value's label in ``classes``; -1 where it is missing or no class of the job.

    pandas stores whole numbers with gaps as floats, so ``1.0`` also finds the class ``"1"``.
    """
    index = {name: code for code, name in enumerate(classes)}
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        distinct, where = np.unique(values, return_inverse=True)
        found = np.array([_code_of(value, index) for value in distinct], dtype=np.int32)
        return found[where] if len(distinct) else np.empty(0, dtype=np.int32)
    known: dict[object, int] = {}
    codes = np.empty(len(values), dtype=np.int32)
    for row, value in enumerate(values):
        kind_and_value = (type(value), value)  # True == 1 == 1.0, yet their labels differ
        try:
            code = known.get(kind_and_value)
        except TypeError:  # an unhashable value is no class
            codes[row] = -1
            continue
        if code is None:
            code = known[kind_and_value] = _code_of(value, index)
        codes[row] = code
    return codes


def _code_of(value: object, index: Mapping[str, int]) -> int:
    try:
        if value is None or value != value:  # NaN differs from itself
            return -1
    except TypeError:  # pandas.NA is neither equal to itself nor different
        return -1
    name = label(value)
    if name not in index and isinstance(value, float | np.floating) and float(value).is_integer():
        name = str(int(value))
    return index.get(name, -1)


def strata_of(
    values: Sequence[object] | npt.NDArray[Any], classes: Sequence[str] | None
) -> npt.NDArray[Any]:
    """The ``strata`` argument of :func:`assign` for a target column.

    Class codes for classification; for regression (``classes`` is None) 0 for every row that has a
    finite target. -1 marks the rows that take no part.
    """
    if classes is not None:
        return codes_of(values, classes)
    numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return np.where(np.isfinite(numbers), 0, -1).astype(np.int32)


def splitmix64(seed: int, n: int) -> npt.NDArray[np.uint64]:
    """Well-mixed 64-bit hashes of (seed, 0..n-1).

    Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014; the finaliser
    is Stafford's variant 13. Uses only wrapping uint64 arithmetic, the same in every numpy.
    """
    mask = (1 << 64) - 1
    start = _mix_one(
        (seed & mask) ^ 0x5DEECE66D
    )  # neighbouring seeds must not give shifted streams
    z = np.arange(1, n + 1, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(start)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def _mix_one(z: int) -> int:
    mask = (1 << 64) - 1
    z = (z + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def column_of(split: Mapping[str, Any]) -> str | None:
    """The column whose values :func:`assign` needs for this split, or None."""
    return str(split["column"]) if split.get("kind", "random") != "random" else None


def assign(
    n_rows: int,
    split: Mapping[str, Any],
    strata: npt.NDArray[Any] | None = None,
    by: Sequence[object] | npt.NDArray[Any] | None = None,
) -> npt.NDArray[np.int8]:
    """Part of each row: 0 train, -1 validation, -2 sealed test, -3 none; or folds 1..k and no 0.

    ``strata`` holds one code per row (see :func:`strata_of`); a negative code is a missing target.
    ``by`` holds the values of the split's column, which a split by time or by group needs; rows
    without one take no part.

    Random: each class's share of each part is the asked one to within a row (validation: two),
    because the parts are dealt out in turn along rows sorted by class and, inside a class, by hash.
    By time: every validation row is later than every training row, and every sealed one than both;
    rows of the same moment stay together, so shares are met as nearly as moments allow.
    By group: no group straddles parts or folds; shares are met as nearly as groups allow.

    With ``refit`` the rows that would be validation train as well; the sealed ones stay the same.
    Raises BadSplit for a split that :func:`plan_split` would not have made, and for a column that
    has too few values among the rows with a target.
    """
    _check(split)
    codes = np.zeros(n_rows, dtype=np.int64) if strata is None else np.asarray(strata, np.int64)
    if codes.shape != (n_rows,):
        raise BadSplit(f"strata has shape {codes.shape}, expected ({n_rows},).")
    parts = np.full(n_rows, NO_PART, dtype=np.int8)
    if column := column_of(split):
        if by is None or len(by) != n_rows:
            raise BadSplit(f"The values of '{column}' are needed, one for each of {n_rows} rows.")
        values = ranks_of(by) if split["kind"] == "time" else groups_of(by)
        rows = np.flatnonzero((codes >= 0) & (values >= 0))
        if split["kind"] == "time":
            parts[rows] = _by_time(values[rows], split)
        else:
            parts[rows] = _by_group(values[rows], codes[rows], split)
    else:
        _at_random(parts, codes, split)
    if split.get("refit"):
        parts[parts == VALIDATION] = TRAIN
    return parts


def _at_random(
    parts: npt.NDArray[np.int8], codes: npt.NDArray[np.int64], split: Mapping[str, Any]
) -> None:
    test, validation = _ppm(split.get("test", 0)), _ppm(split.get("validation", 0))
    folds, n_rows = int(split.get("folds") or 0), len(parts)
    # lexsort's last key leads; equal hashes (practically never) fall back on the row index.
    order = np.lexsort((np.arange(n_rows), splitmix64(int(split["seed"]), n_rows), codes))
    order = order[codes[order] >= 0]

    sealed = _in_turn(len(order), test, _PPM)
    rest = order[~sealed]
    parts[order[sealed]] = TEST
    if folds:
        parts[rest] = (np.arange(len(rest)) % folds + 1).astype(np.int8)
    else:
        parts[rest] = TRAIN
        parts[rest[_in_turn(len(rest), validation, _PPM - test)]] = VALIDATION


def ranks_of(values: Sequence[object] | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Place of each value among the different ones, from 0 upwards; -1 where it is missing.

    Raises BadSplit for values that have no order.
    """
    array = _as_array(values)
    there = _present(array)
    ranks = np.full(len(array), -1, dtype=np.int64)
    try:
        if array.dtype.kind == "O":
            place = {value: rank for rank, value in enumerate(sorted(set(array[there].tolist())))}
            found = np.array([place[value] for value in array[there].tolist()], dtype=np.int64)
        else:
            _, found = np.unique(array[there], return_inverse=True)
    except TypeError as error:
        raise BadSplit("The column of a split by time has values without an order.") from error
    ranks[there] = found
    return ranks


def groups_of(values: Sequence[object] | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Number of each value's group, by first appearance from 0; -1 where it is missing."""
    array = _as_array(values)
    there = _present(array)
    groups = np.full(len(array), -1, dtype=np.int64)
    if array.dtype.kind == "O":
        number: dict[object, int] = {}
        groups[there] = [number.setdefault(value, len(number)) for value in array[there].tolist()]
    elif there.any():
        _, first, found = np.unique(array[there], return_index=True, return_inverse=True)
        groups[there] = np.argsort(np.argsort(first))[found]
    return groups


def groups_for(
    split: Mapping[str, Any],
    by: Sequence[object] | npt.NDArray[Any] | None,
    rows: npt.NDArray[Any],
) -> npt.NDArray[np.int64] | None:
    """The group of each of these rows, of a split by group; None of any other."""
    return groups_of(by)[rows] if split["kind"] == "group" and by is not None else None


def _as_array(values: Sequence[object] | npt.NDArray[Any]) -> npt.NDArray[Any]:
    if isinstance(values, np.ndarray):
        return values
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _present(array: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    if array.dtype.kind in "biu":
        return np.ones(len(array), dtype=bool)
    if array.dtype.kind in "fmM":
        return np.equal(array, array)  # neither NaN nor NaT equals itself
    return np.array([_is_there(value) for value in array.tolist()], dtype=bool)


def _is_there(value: object) -> bool:
    try:
        return value is not None and bool(value == value)
    except TypeError:  # pandas.NA
        return False


def _by_time(ranks: npt.NDArray[np.int64], split: Mapping[str, Any]) -> npt.NDArray[np.int8]:
    """Cut between two moments, as near to the asked shares as they lie; no part stays empty."""
    test, validation = _ppm(split.get("test", 0)), _ppm(split.get("validation", 0))
    _, ranks, counts = np.unique(ranks, return_inverse=True, return_counts=True)
    moments, least = len(counts), 3 if test else 2
    if moments < least:
        raise BadSplit(
            f"Column '{split['column']}' has {moments} different times among the rows with a "
            f"target; a split by time needs {least}, better many."
        )
    before = np.concatenate([[0], np.cumsum(counts)])  # rows before each moment
    n = int(before[-1])

    def nearest(share: int, first: int, last: int) -> int:
        """The moment in first..last before which about ``share`` of the rows lie."""
        gaps = np.abs(before[first : last + 1] * _PPM - n * share)
        return first + int(np.argmin(gaps))

    sealed_from = nearest(_PPM - test, 2, moments - 1) if test else moments
    ranked_from = nearest(_PPM - test - validation, 1, sealed_from - 1)
    parts = np.full(len(ranks), TRAIN, dtype=np.int8)
    parts[ranks >= ranked_from] = VALIDATION
    parts[ranks >= sealed_from] = TEST
    return parts


def _by_group(
    groups: npt.NDArray[np.int64], codes: npt.NDArray[np.int64], split: Mapping[str, Any]
) -> npt.NDArray[np.int8]:
    """Deal whole groups out, each to the part that lacks most rows of its share so far.

    Groups come by the rarest class that they hold, so that rare classes spread over the parts, then
    large before small, then by hash. The first of each class trains.
    """
    test, validation = _ppm(split.get("test", 0)), _ppm(split.get("validation", 0))
    folds = int(split.get("folds") or 0)
    _, groups, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    _, codes, rows_of_class = np.unique(codes, return_inverse=True, return_counts=True)
    count, least = len(sizes), 2 + bool(test)
    if count < least:
        raise BadSplit(
            f"Column '{split['column']}' has {count} different values among the rows with a "
            f"target; a split by group needs {least}, better many."
        )
    rarity = np.argsort(np.argsort(rows_of_class, kind="stable"), kind="stable")
    rarest = np.full(count, len(rarity), dtype=np.int64)
    np.minimum.at(rarest, groups, rarity[codes])
    magnitude = np.frexp(sizes)[1]  # of alike sizes the hash decides, else no seed would matter
    hashes = splitmix64(int(split["seed"]), count)
    order = np.lexsort((np.arange(count), hashes, -magnitude, rarest))
    first = np.diff(rarest[order], prepend=-1) != 0

    named = [(TRAIN, _PPM - test - (0 if folds else validation)), (TEST, test)]
    if not folds:
        named.append((VALIDATION, validation))
    dealt = np.full(count, TRAIN, dtype=np.int8)
    lacking = [0] * len(named)
    for group, leads in zip(order.tolist(), first.tolist(), strict=True):
        size = int(sizes[group])
        lacking = [rows + size * share for rows, (_, share) in zip(lacking, named, strict=True)]
        chosen = 0 if leads else max(range(len(named)), key=lambda part: lacking[part])
        lacking[chosen] -= size * _PPM
        dealt[group] = named[chosen][0]
    small_last = order[np.lexsort((np.arange(count), -sizes[order]))]
    for part, share in named[1:]:
        if share and not (dealt == part).any():
            # The smallest group goes, from where another is left.
            for group in small_last[::-1]:
                if (dealt == dealt[group]).sum() > 1:
                    dealt[group] = part
                    break
    if folds:
        rest = order[dealt[order] == TRAIN]
        if len(rest) < 2:
            raise BadSplit(
                f"Column '{split['column']}' has too few groups for folds beside the sealed rows."
            )
        loads = [(0, fold) for fold in range(1, min(folds, len(rest)) + 1)]
        for group in rest.tolist():
            rows, fold = loads[0]
            heapq.heapreplace(loads, (rows + int(sizes[group]), fold))
            dealt[group] = fold
    return dealt[groups]


def _in_turn(n: int, share: int, whole: int) -> npt.NDArray[np.bool_]:
    """Mark share/whole of n places, as evenly spread as integers allow (Bresenham's line)."""
    marks = np.arange(n + 1, dtype=np.int64) * share // whole
    return np.diff(marks) > 0


def _ppm(share: float) -> int:
    return round(float(share) * _PPM)


def _check(split: Mapping[str, Any]) -> None:
    kind = split.get("kind", "random")
    if kind not in KINDS:
        raise BadSplit(f"Split kind '{kind}' is not known; use one of: {', '.join(KINDS)}.")
    column = split.get("column")
    if kind == "random" and column is not None:
        raise BadSplit("'column' goes with the kinds 'time' and 'group'; say which.")
    if kind != "random" and not (isinstance(column, str) and column):
        raise BadSplit(f"A split by {kind} needs 'column': the name of the column to go by.")
    if kind == "time" and split.get("folds"):
        raise BadSplit(
            "A split by time has no folds: each fold's models would learn from later rows. "
            "Give 'validation' instead."
        )
    try:
        test, validation = float(split.get("test", 0)), float(split.get("validation", 0))
        folds, _seed = int(split.get("folds") or 0), int(split["seed"])
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise BadSplit(
            "A split has numbers only: 'test' and 'validation' as shares, 'folds' and 'seed' whole."
        ) from error
    if not (0 <= test <= 0.5):
        raise BadSplit(f"'test' is {test:g}; give a share from 0 to 0.5.")
    if folds and validation:
        raise BadSplit("Give either 'folds' or 'validation', not both.")
    if folds:
        if not (2 <= folds <= MOST_FOLDS):
            raise BadSplit(f"'folds' is {folds}; give 2 to {MOST_FOLDS}.")
    elif not (0 < validation <= 0.5):
        raise BadSplit(f"'validation' is {validation:g}; give a share above 0 and up to 0.5.")


def plan_split(
    n_rows: int,
    task: str,
    class_counts: Mapping[str, int] | None,
    requested: Mapping[str, Any] | None = None,
    *,
    groups: int | None = None,
) -> Split:
    """Choose the split of a job from what was asked for and how many rows have a target.

    ``n_rows`` counts usable rows; ``class_counts`` (classification) rows per class; ``requested``
    may fix any of SETTINGS; ``groups`` is how many different values its column has. Without a
    wish: out-of-fold below FEW_ROWS rows (never by time), else 20% validation, and 20% test in
    both, capped at MOST_HELD_OUT_ROWS. Raises BadSplit when the wish cannot be met.
    """
    asked = {name: value for name, value in (requested or {}).items() if value is not None}
    if unknown := sorted(set(asked) - set(SETTINGS)):
        raise BadSplit(f"Unknown split setting '{unknown[0]}'; use {', '.join(SETTINGS)}.")
    cap = min(0.2, max(1e-6, MOST_HELD_OUT_ROWS / max(n_rows, 1)))
    split: Split = {"kind": asked.get("kind", "random"), "seed": asked.get("seed", 0)}
    if "column" in asked:
        split["column"] = asked["column"]
    split["test"] = asked.get("test", cap)
    split["validation"] = asked.get("validation", 0)
    if asked.get("folds"):
        split["folds"] = asked["folds"]
    elif not split["validation"]:
        if n_rows < FEW_ROWS and split["kind"] != "time":
            split["folds"] = 5
        else:
            split["validation"] = cap
    _check(split)
    if not 0 <= int(split["seed"]) < 2**31:  # what every engine takes
        raise BadSplit(f"'seed' is {split['seed']}; give a whole number from 0 to {2**31 - 1}.")
    split["seed"], split["test"] = int(split["seed"]), round(float(split["test"]), 6)
    split["validation"] = round(float(split["validation"]), 6)
    if folds := int(split.get("folds") or 0):
        split["folds"] = _fewer_folds(folds, n_rows, split["test"], class_counts, asked=asked)
    if split["kind"] == "group" and groups is not None and split.get("folds"):
        possible = max(2, groups - bool(split["test"]))  # at least one group is sealed
        if asked.get("folds") and possible < split["folds"]:
            raise BadSplit(f"'folds' is {split['folds']}, but {groups} groups allow {possible}.")
        split["folds"] = min(split["folds"], possible)
    return split


def _fewer_folds(
    folds: int,
    n_rows: int,
    test: float,
    class_counts: Mapping[str, int] | None,
    *,
    asked: Mapping[str, Any],
) -> int:
    """At most as many folds as the smallest class has rows outside the test part."""
    smallest = min(class_counts.values(), default=n_rows) if class_counts else n_rows
    left = smallest + (-smallest * _ppm(test) // _PPM)  # at most ceil(smallest * test) are sealed
    possible = max(2, min(folds, left, max(2, n_rows // 4)))
    if asked.get("folds") and possible < folds:
        raise BadSplit(f"'folds' is {folds}, but the rows of the smallest class allow {possible}.")
    return possible


def ranked_rows(parts: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    """Indices, ascending, of the rows whose predictions rank: validation, or every fold."""
    return np.flatnonzero((parts == VALIDATION) | (parts > 0))


def training_rows(parts: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    """Indices, ascending, of the rows that a model learnt from: with folds, all that rank."""
    return np.flatnonzero(parts >= 0)


def sealed_rows(parts: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    """Indices, ascending, of the sealed test rows."""
    return np.flatnonzero(parts == TEST)
