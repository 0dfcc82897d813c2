"""Which rows train, which rank, which stay sealed: one answer on every machine.

The control process (to score) and a node (to train) compute the same split from the job alone,
under different numpy versions. So nothing here uses numpy's random streams, which may change
between releases: rows are ordered by a fixed integer hash of (seed, row index), and counts are kept
in exact integer arithmetic.
"""

from __future__ import annotations

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


def assign(
    n_rows: int, split: Mapping[str, Any], strata: npt.NDArray[Any] | None = None
) -> npt.NDArray[np.int8]:
    """Part of each row: 0 train, -1 validation, -2 sealed test, -3 none; or folds 1..k and no 0.

    ``strata`` holds one code per row (see :func:`strata_of`); a negative code is a missing target.
    Each class's share of each part is the asked one to within a row (validation: two), because the
    parts are dealt out in turn along rows sorted by class and, inside a class, by hash.
    With ``refit`` the rows that would be validation train as well; the sealed ones stay the same.
    Raises BadSplit for a split that :func:`plan_split` would not have made.
    """
    _check(split)
    test, validation = _ppm(split.get("test", 0)), _ppm(split.get("validation", 0))
    folds = int(split.get("folds") or 0)
    codes = np.zeros(n_rows, dtype=np.int64) if strata is None else np.asarray(strata, np.int64)
    if codes.shape != (n_rows,):
        raise BadSplit(f"strata has shape {codes.shape}, expected ({n_rows},).")
    # lexsort's last key leads; equal hashes (practically never) fall back on the row index.
    order = np.lexsort((np.arange(n_rows), splitmix64(int(split["seed"]), n_rows), codes))
    order = order[codes[order] >= 0]

    sealed = _in_turn(len(order), test, _PPM)
    rest = order[~sealed]
    parts = np.full(n_rows, NO_PART, dtype=np.int8)
    parts[order[sealed]] = TEST
    if folds:
        parts[rest] = (np.arange(len(rest)) % folds + 1).astype(np.int8)
    else:
        parts[rest] = TRAIN
    if not folds and not split.get("refit"):
        parts[rest[_in_turn(len(rest), validation, _PPM - test)]] = VALIDATION
    return parts


def _in_turn(n: int, share: int, whole: int) -> npt.NDArray[np.bool_]:
    """Mark share/whole of n places, as evenly spread as integers allow (Bresenham's line)."""
    marks = np.arange(n + 1, dtype=np.int64) * share // whole
    return np.diff(marks) > 0


def _ppm(share: float) -> int:
    return round(float(share) * _PPM)


def _check(split: Mapping[str, Any]) -> None:
    kind = split.get("kind", "random")
    if kind != "random":
        raise BadSplit(f"Split kind '{kind}' is not known; use 'random'.")
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
) -> Split:
    """Choose the split of a job from what was asked for and how many rows have a target.

    ``n_rows`` counts usable rows; ``class_counts`` (classification) rows per class; ``requested``
    may fix any of kind, seed, test, validation, folds. Without a wish: out-of-fold below FEW_ROWS
    rows, else 20% validation, and 20% test in both, capped at MOST_HELD_OUT_ROWS.
    Raises BadSplit when the wish cannot be met.
    """
    asked = dict(requested or {})
    if unknown := sorted(set(asked) - {"kind", "seed", "test", "validation", "folds"}):
        raise BadSplit(
            f"Unknown split setting '{unknown[0]}'; use seed, test, validation or folds."
        )
    cap = min(0.2, max(1e-6, MOST_HELD_OUT_ROWS / max(n_rows, 1)))
    split: Split = {"kind": asked.get("kind", "random"), "seed": asked.get("seed", 0)}
    split["test"] = asked.get("test", cap)
    split["validation"] = asked.get("validation", 0)
    if asked.get("folds"):
        split["folds"] = asked["folds"]
    elif not split["validation"]:
        if n_rows < FEW_ROWS:
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


def sealed_rows(parts: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    """Indices, ascending, of the sealed test rows."""
    return np.flatnonzero(parts == TEST)
