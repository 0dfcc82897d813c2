"""From a raw table to features: the one preparation that training and prediction share.

What is learnt from the training rows (which columns are used, what each is, which parts of a date
vary) is a :class:`Schema`, plain JSON that travels in the artifact. :func:`prepare` turns any later
table into a :class:`Frame` by it: numbers as float64 with NaN where missing, categories as codes
into a list of their own levels with -1 where missing, free text as a few numbers (text.py), columns
always in the schema's order. A level never seen in training is a level like any other here;
encoders decide what it means to a model.

A copy of this file travels in every artifact, so it imports nothing of FlowML.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .tables import Array, InputError, Table, as_array, dtype_of
from .text import Words

NUMBER, BOOLEAN, CATEGORY = "number", "boolean", "category"
DATETIME, TEXT = "datetime", "text"
RAW = "raw"  # a text as it is, or a picture's bytes: an array of objects, for models that read such
LEFT_OUT = {  # role -> why engines are not given such a column
    "text": "it is free text, which this engine does not read",
    "identifier": "it is an identifier, which tells nothing about new rows",
    "constant": "it has one value only",
    "image": "it holds pictures, which this engine does not read: name a model that does",
    "excluded": "it was excluded",
}
MISSING_WORDS = frozenset({"", "na", "n/a", "nan", "null", "none", "#n/a", "nat", "?"})
_TRUE = frozenset({"true", "t", "yes", "y", "1"})
_FALSE = frozenset({"false", "f", "no", "n", "0"})
_DAY_S = 86_400.0
_PARTS = ("days", "year", "month", "day", "weekday", "hour", "minute")


@dataclass(frozen=True)
class Column:
    """One column that the model needs.

    ``parts`` (datetime only) are the parts that vary, ``words`` (text only) what reads its texts.
    """

    name: str
    role: str
    dtype: str
    kind: str
    parts: tuple[str, ...] = ()
    words: Words | None = None

    @property
    def features(self) -> list[str]:
        """The names of what a Frame holds of it."""
        if self.kind == DATETIME:
            return [_part_name(self.name, part) for part in self.parts]
        if self.kind == TEXT and self.words is not None:
            return [_part_name(self.name, part) for part in _text_parts(self.words)]
        return [self.name]


@dataclass(frozen=True)
class Schema:
    """Which columns are used and how. ``left_out`` maps each other known column to the reason."""

    columns: tuple[Column, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON; :meth:`from_json` reads it."""
        columns = [
            {"name": c.name, "role": c.role, "dtype": c.dtype, "kind": c.kind}
            | ({"parts": list(c.parts)} if c.parts else {})
            | ({"words": c.words.as_json()} if c.words else {})
            for c in self.columns
        ]
        return {"columns": columns, "left_out": dict(self.left_out)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Schema:
        columns = tuple(
            Column(
                c["name"],
                c["role"],
                c["dtype"],
                c["kind"],
                tuple(c.get("parts", ())),
                Words.from_json(c["words"]) if "words" in c else None,
            )
            for c in data["columns"]
        )
        return cls(columns, dict(data.get("left_out", {})))


@dataclass(frozen=True)
class Categories:
    """A categorical feature: ``levels[codes[row]]``, missing where the code is -1."""

    codes: npt.NDArray[np.int32]
    levels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: Array) -> Categories:
        return Categories(self.codes[rows], self.levels)

    def codes_in(self, known: Mapping[str, int], unseen: int = -1, missing: int = -1) -> Array:
        """Codes by another list of levels (level -> code). Only the distinct levels are looked up.

        A word that stands for a gap, such as "NA", is missing unless it is a known level.
        """
        table = np.empty(len(self.levels) + 1, dtype=np.int32)
        for code, level in enumerate(self.levels):
            found = known.get(level)
            if found is None:
                found = missing if level.strip().lower() in MISSING_WORDS else unseen
            table[code] = found
        table[-1] = missing
        return table[self.codes]

    def values(self) -> list[str | None]:
        """The level of each row, None where missing."""
        return [self.levels[code] if code >= 0 else None for code in self.codes]


@dataclass(frozen=True)
class Frame:
    """Prepared features by name, in the schema's order: float64 arrays or Categories."""

    features: Mapping[str, Array | Categories]
    rows: int

    def __len__(self) -> int:
        return self.rows

    def take(self, rows: Array) -> Frame:
        """The rows at these positions (or where a mask is true), as a copy."""
        positions = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        features = {
            name: value.take(positions) if isinstance(value, Categories) else value[positions]
            for name, value in self.features.items()
        }
        return Frame(features, len(positions))

    def to_pandas(self) -> Any:
        """A DataFrame for engines that want one; categories as ``category`` columns."""
        import pandas as pd

        columns = {
            name: pd.Categorical.from_codes(value.codes, categories=list(value.levels))
            if isinstance(value, Categories)
            else value
            for name, value in self.features.items()
        }
        return pd.DataFrame(columns, index=range(self.rows))


# Learning the schema


class Learnt(NamedTuple):
    """A schema, the whole table prepared by it, and how many values of a column did not fit it."""

    schema: Schema
    frame: Frame
    misfits: dict[str, int]


def learn(
    columns: Sequence[Mapping[str, str]],
    table: Table,
    rows: Array,
    texts: Mapping[str, Words | str] | None = None,
    only: str = "",
) -> Learnt:
    """Decide what each column is from its role and from the training rows alone.

    ``columns`` holds {"name", "role"} in order; ``rows`` is a mask of the training rows; ``texts``
    says of columns of role text how they are read, or why they are left out. With ``only`` columns
    of this role, text or image, are taken alone, and as they are. Of the others, a column
    whose training rows hold one value (nothing else, not even a gap) is left out; a value that is
    not of its column's type counts as missing. Raises InputError when the table lacks a column.
    """
    absent = [c["name"] for c in columns if c["name"] not in table]
    if absent:
        raise _missing(absent)
    used: list[Column] = []
    left_out: dict[str, str] = {}
    features: dict[str, Array | Categories] = {}
    misfits: dict[str, int] = {}
    n_rows = len(rows)
    for given in columns:
        name, role = given["name"], given["role"]
        words = (texts or {}).get(name) if role == "text" else None
        if only and role != only:
            left_out[name] = "this model reads " + {"text": "texts", "image": "pictures"}[only]
            continue
        if only:
            values = as_array(table[name])
            used.append(Column(name, role, given.get("dtype") or dtype_of(values), RAW))
            features.update(_feature(used[-1], values, strict=False))
            continue
        if role in LEFT_OUT and not isinstance(words, Words):
            left_out[name] = words or LEFT_OUT[role]
            continue
        values = as_array(table[name])
        if isinstance(words, Words):
            dtype = given.get("dtype") or dtype_of(values)
            used.append(Column(name, role, dtype, TEXT, words=words))
            features.update(_feature(used[-1], values, strict=False))
            continue
        column, made = _learn_column(
            name, role, given.get("dtype") or dtype_of(values), values, rows
        )
        if lost := _misfits(values, made):
            misfits[name] = lost
        made = {key: value for key, value in made.items() if _varies(value, rows, key != name)}
        if not made:
            left_out[name] = "it has one value only in the rows that train"
            continue
        if column.kind == DATETIME:
            parts = tuple(part for part in _PARTS if _part_name(name, part) in made)
            column = Column(name, role, column.dtype, DATETIME, parts)
        used.append(column)
        features.update(made)
    return Learnt(Schema(tuple(used), left_out), Frame(features, n_rows), misfits)


def _misfits(values: Array, made: Mapping[str, Array | Categories]) -> int:
    """How many values were there, yet became gaps."""
    feature = next(iter(made.values()))
    if values.dtype != object or isinstance(feature, Categories):
        return 0
    return sum(not is_missing(value) for value in values[np.isnan(feature)])


def _learn_column(
    name: str, role: str, dtype: str, values: Array, rows: Array
) -> tuple[Column, dict[str, Array | Categories]]:
    if role == "datetime":
        column = Column(name, role, dtype, DATETIME, _PARTS)
    elif role == "numeric":
        column = Column(name, role, dtype, NUMBER)
    elif role == "boolean" and _all_boolean(values[rows]):
        column = Column(name, role, dtype, BOOLEAN)
    else:
        column = Column(name, role, dtype, CATEGORY)
    return column, _feature(column, values, strict=False)


def _varies(feature: Array | Categories, rows: Array, is_part: bool = False) -> bool:
    """Whether training rows differ. Of a date's parts, that some are gaps is said by one alone."""
    known = (feature.codes if isinstance(feature, Categories) else feature)[rows]
    if isinstance(feature, Categories):
        return len(known) > 0 and bool(known.min() != known.max())
    gaps = np.isnan(known)
    if gaps.all():
        return False
    present = known[~gaps]
    return bool((gaps.any() and not is_part) or present.min() != present.max())


# Preparing


def prepare(schema: Schema, table: Table, *, strict: bool = True) -> Frame:
    """The features of ``table`` in the schema's order; more columns than needed do no harm.

    With ``strict`` a value that is not of its column's type raises InputError naming the column,
    otherwise it counts as missing. Raises InputError when needed columns are missing.
    """
    absent = [c.name for c in schema.columns if c.name not in table]
    if absent:
        raise _missing(absent)
    features: dict[str, Array | Categories] = {}
    wrong: dict[str, str] = {}
    n_rows = 0
    for column in schema.columns:
        try:
            made = _feature(column, as_array(table[column.name]), strict=strict)
        except _WrongValue as error:
            wrong[column.name] = f"{error.value!r} is not {_WANTED[column.kind]}."
            continue
        features.update(made)
        n_rows = len(next(iter(made.values())))
    if wrong:
        name, why = next(iter(wrong.items()))
        raise InputError(f"Column '{name}': {why}", "wrong_type", wrong)
    if not schema.columns:  # every column was constant: a model of nothing, but of so many rows
        n_rows = max((len(as_array(values)) for values in table.values()), default=0)
    return Frame(features, n_rows)


_WANTED = {
    NUMBER: "a number",
    BOOLEAN: "true or false",
    DATETIME: "a date or time in ISO 8601",
    CATEGORY: "a category",
    TEXT: "a text",
    RAW: "a text",
}


class _WrongValue(ValueError):
    def __init__(self, value: object) -> None:
        super().__init__(repr(value))
        self.value = value


def _missing(names: Sequence[str]) -> InputError:
    listed = ", ".join(f"'{name}'" for name in names[:10])
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    word = "Column" if len(names) == 1 else "Columns"
    verb = "is" if len(names) == 1 else "are"
    return InputError(
        f"{word} {listed}{more} {verb} missing.",
        "missing_columns",
        dict.fromkeys(names, "This column is missing."),
    )


def _feature(column: Column, values: Array, *, strict: bool) -> dict[str, Array | Categories]:
    if column.kind == CATEGORY:
        return {column.name: _categories(values)}
    if column.kind == RAW:
        return {column.name: _as_they_are(column, values)}
    if column.kind == BOOLEAN:
        return {column.name: _numbers(values, _boolean, strict)}
    if column.kind == NUMBER:
        return {column.name: _numbers(values, _number, strict)}
    if column.kind == TEXT:
        assert column.words is not None
        numbers = column.words.numbers(texts_of(values))
        return {name: numbers[:, place].copy() for place, name in enumerate(column.features)}
    return _date_parts(column.name, column.parts, _times(values, strict))


def _numbers(values: Array, read: Any, strict: bool) -> Array:
    if values.dtype.kind in "iufb":
        numbers = values.astype(np.float64)
    else:
        numbers = np.empty(len(values), dtype=np.float64)
        for row, value in enumerate(values):
            try:
                numbers[row] = read(value)
            except _WrongValue:
                if strict:
                    raise
                numbers[row] = math.nan
    endless = np.isinf(numbers)
    if endless.any():
        numbers[endless] = math.nan
    return numbers


def _number(value: Any) -> float:
    if type(value) is float or type(value) is int:
        return float(value) if abs(value) < 1e308 else math.nan
    if is_missing(value):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise _WrongValue(value) from None


def _boolean(value: Any) -> float:
    if value is True or value is False:
        return float(value)
    if is_missing(value):
        return math.nan
    word = level_of(value).strip().lower()
    if word in _TRUE:
        return 1.0
    if word in _FALSE:
        return 0.0
    raise _WrongValue(value)


def _all_boolean(values: Array) -> bool:
    if values.dtype.kind == "b":
        return True
    try:
        for value in set(values.tolist()):
            _boolean(value)
    except (_WrongValue, TypeError):
        return False
    return True


def is_missing(value: Any) -> bool:
    """Whether a single value stands for "not known": None, NaN, NaT, or a word for it."""
    if value is None:
        return True
    if isinstance(value, str):
        return value.strip().lower() in MISSING_WORDS
    try:
        return bool(value != value)  # NaN and NaT differ from themselves
    except (TypeError, ValueError):
        return True  # pandas.NA will not say


def level_of(value: Any) -> str:
    """A category's name. 1, 1.0 and "1" are one level; so are True and "true"."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    if isinstance(value, float | np.floating):
        return repr(float(value))
    return str(value)


def texts_of(values: Array) -> list[str]:
    """Each value as a text, an empty one where it is missing."""
    if any(isinstance(value, list | dict) for value in values):
        raise _WrongValue(next(value for value in values if isinstance(value, list | dict)))
    return ["" if is_missing(value) else level_of(value) for value in values]


def _as_they_are(column: Column, values: Array) -> Array:
    """Texts ("" where missing), or whatever pictures are given as (None where missing)."""
    if column.role == "image":
        return values.astype(object)
    found = np.empty(len(values), dtype=object)
    found[:] = texts_of(values)
    return found


def _categories(values: Array) -> Categories:
    """Codes by first appearance in sorted order of level, so equal columns give equal codes."""
    if len(values) == 1:
        return _one_category(values[0])
    if values.dtype.kind in "biuf":
        distinct, where = np.unique(values, return_inverse=True)
        names = [None if is_missing(value) else level_of(value) for value in distinct.tolist()]
    else:
        place: dict[Any, int] = {}
        where = np.empty(len(values), dtype=np.int64)
        for row, value in enumerate(values):
            if isinstance(value, list | dict):
                raise _WrongValue(value)
            key = value if isinstance(value, str) else (type(value), value)
            found = place.get(key)
            if found is None:
                found = place[key] = len(place)
            where[row] = found
        names = []
        for key in place:
            value = key if isinstance(key, str) else key[1]
            # Only an empty text is a gap: "NA" or "none" may well be a level here.
            gap = value.strip() == "" if isinstance(value, str) else is_missing(value)
            names.append(None if gap else level_of(value))
    levels = tuple(sorted({name for name in names if name is not None}))
    index = {name: code for code, name in enumerate(levels)}
    codes = np.array([-1 if name is None else index[name] for name in names], dtype=np.int32)
    return Categories(codes[where] if names else np.empty(0, np.int32), levels)


def _one_category(value: Any) -> Categories:
    if isinstance(value, list | dict):
        raise _WrongValue(value)
    gap = value.strip() == "" if isinstance(value, str) else is_missing(value)
    if gap:
        return Categories(np.array([-1], np.int32), ())
    return Categories(np.array([0], np.int32), (level_of(value),))


def _times(values: Array, strict: bool) -> Array:
    """Microseconds since 1970 (UTC) as datetime64[us], NaT where missing."""
    if values.dtype.kind == "M":
        return values.astype("datetime64[us]")
    times = np.empty(len(values), dtype="datetime64[us]")
    for row, value in enumerate(values):
        try:
            times[row] = _time(value)
        except _WrongValue:
            if strict:
                raise
            times[row] = np.datetime64("NaT")
    return times


def _time(value: Any) -> np.datetime64:
    if is_missing(value):
        return np.datetime64("NaT")
    if isinstance(value, np.datetime64):
        return value.astype("datetime64[us]")  # type: ignore[no-any-return]
    if isinstance(value, str):
        value = _parse_time(value.strip())
    if isinstance(value, dt.datetime):
        if value.tzinfo is not None:
            value = value.astimezone(dt.UTC).replace(tzinfo=None)
        return np.datetime64(value, "us")
    if isinstance(value, dt.date):
        return np.datetime64(value, "us")
    raise _WrongValue(value)


def _parse_time(text: str) -> dt.datetime:
    try:
        return dt.datetime.fromisoformat(text)
    except ValueError:
        pass
    for pattern in ("%Y/%m/%d", "%Y/%m/%d %H:%M:%S", "%m/%d/%Y", "%m/%d/%Y %H:%M:%S", "%d.%m.%Y"):
        try:
            return dt.datetime.strptime(text, pattern).replace(tzinfo=dt.UTC)
        except ValueError:
            continue
    raise _WrongValue(text)


def _part_name(name: str, part: str) -> str:
    return f"{name}.{part}"


def _text_parts(words: Words) -> list[str]:
    return ["length", *map(str, range(1, words.width + 1))]


def _date_parts(name: str, parts: Sequence[str], times: Array) -> dict[str, Array | Categories]:
    """The asked parts as numbers. ``days`` counts from 1970, with the time of day as a fraction."""
    gap = np.isnat(times)
    safe = np.where(gap, np.datetime64(0, "us"), times)
    day = safe.astype("datetime64[D]")
    in_day = (safe - day).astype(np.int64) / 1e6
    days = day.astype(np.int64)
    month = safe.astype("datetime64[M]")
    months = month.astype(np.int64)
    found: dict[str, Array] = {
        "days": days + in_day / _DAY_S,
        "year": months // 12 + 1970.0,
        "month": months % 12 + 1.0,
        "day": (day - month.astype("datetime64[D]")).astype(np.int64) + 1.0,
        "weekday": (days + 3.0) % 7,  # 1970-01-01 was a Thursday; 0 is Monday
        "hour": in_day // 3600,
        "minute": in_day // 60 % 60,
    }
    out: dict[str, Array | Categories] = {}
    for part in parts:
        value = found[part].astype(np.float64)
        value[gap] = math.nan
        out[_part_name(name, part)] = value
    return out
