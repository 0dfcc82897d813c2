"""From columns of text to typed columns. What a column is, every one of its values has a say in.

A column is read as the first *kind* that fits all of its values: boolean, integer, float, a number
written with thousands or decimal commas, a date or time of one format; else it stays text. Blocks
come one by one; a kind that fails in any block is dead for the whole column.

Imports no Django: it runs on nodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import polars as pl

from datasets.delimited import Block, Reject

DTYPES: dict[str, pl.DataType] = {
    "boolean": pl.Boolean(),
    "integer": pl.Int64(),
    "float": pl.Float64(),
    "date": pl.Date(),
    "datetime": pl.Datetime("us"),
    "string": pl.String(),
}

# What stands for a missing value in any column (pandas takes the same), and what does so only in a
# column that otherwise holds numbers, dates or truth values.
MISSING = (
    "", "NA", "N/A", "n/a", "#N/A", "<NA>", "NULL", "null", "NaN", "nan", "-nan", "-NaN", "None",
    "#N/A N/A", "#NA", "NaT",
)  # fmt: skip
MARKERS = frozenset(
    {"?", "-", "--", ".", "..", "*", "na", "N.A.", "n.a.", "none", "NONE", "Null", "missing",
     "Missing", "unknown", "Unknown", "#DIV/0!", "#VALUE!", "#REF!"}
)  # fmt: skip

_DATES = (
    "%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y",
    "%d %b %Y", "%d-%b-%Y", "%b %d, %Y", "%d %B %Y", "%B %d, %Y",
)  # fmt: skip
_TIMES = (
    "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M",
    "%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M",
    "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d/%m/%Y %H:%M:%S", "%d/%m/%Y %H:%M",
    "%m/%d/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%d-%m-%Y %H:%M:%S", "%d-%m-%Y %H:%M",
    "%m-%d-%Y %H:%M:%S", "%m-%d-%Y %H:%M",
)  # fmt: skip
_SWAPPED = {"%d/%m/%Y": "%m/%d/%Y", "%d-%m-%Y": "%m-%d-%Y"}

GROUPED = "grouped"  # 1,234,567.8
COMMA = "comma"  # 1.234.567,8
_NUMBERS = {"integer", "float", GROUPED, COMMA}
KINDS = ("boolean", "integer", "float", GROUPED, COMMA, *_DATES, *_TIMES, "string")

_GROUPED = r"^[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?$"
_COMMA = r"^[+-]?(\d{1,3}(\.\d{3})+|\d+)(,\d+)?$"
# "1,234" may be either. What only one of the two can be:
_SURELY_GROUPED = r",\d{3},\d{3}|,\d{3}\.\d"
_SURELY_COMMA = r",(\d{1,2}|\d{4,})$|^[+-]?0,|\.\d{3},|\.\d{3}\.\d{3}"

NEAR = 0.05  # a kind that all but this share of values fit is worth a word


def dtype_of(kind: str) -> str:
    """The data type that a kind's values are stored as."""
    if kind in DTYPES:
        return kind
    if kind in (GROUPED, COMMA):
        return "float"
    return "date" if kind in _DATES else "datetime"


@dataclass
class Seen:
    """One column in one block: its values typed, and what was learnt on the way.

    ``kind`` is "" where the block has no value at all. ``misfits`` are the rows that don't fit a
    type that was asked for. ``near`` counts the values that keep it from being ``near_kind``.
    """

    values: pl.Series
    kind: str
    dead: set[str] = field(default_factory=set)
    sure: set[str] = field(default_factory=set)
    markers: set[str] = field(default_factory=set)
    infinite: int = 0
    trimmed: bool = False
    misfits: list[int] = field(default_factory=list)
    near_kind: str = ""
    near: int = 0
    near_rows: list[int] = field(default_factory=list)
    near_at: list[tuple[int, str]] = field(default_factory=list)
    count: int = 0  # values that are there


@dataclass
class Column:
    """What is known of one column so far. ``asked``: the data type that it must have, or none."""

    name: str
    asked: str | None = None
    alive: list[str] = field(default_factory=lambda: list(KINDS))
    used: set[str] = field(default_factory=set)  # kinds that blocks were stored as
    sure: set[str] = field(default_factory=set)
    markers: set[str] = field(default_factory=set)
    infinite: int = 0
    trimmed: bool = False
    count: int = 0
    near_kind: str = ""
    near: int = 0
    near_at: list[tuple[int, str]] = field(default_factory=list)
    doubt: str = ""  # why the values may be read in two ways
    fixed: bool = False

    def __post_init__(self) -> None:
        if self.asked:
            self.alive = [kind for kind in KINDS if dtype_of(kind) == self.asked]

    def add(self, seen: Seen) -> None:
        """Take in what a block showed."""
        if self.asked and seen.count and len(self.alive) > 1:
            self.alive = [seen.kind]
        elif not self.asked and not self.fixed:
            self.alive = [kind for kind in self.alive if kind not in seen.dead]
        self.used.add(seen.kind)
        self.sure |= seen.sure
        self.markers |= seen.markers
        self.infinite += seen.infinite
        self.trimmed = self.trimmed or seen.trimmed
        self.count += seen.count
        if seen.near_kind:
            self.near_kind = seen.near_kind
            self.near += seen.near
            self.near_at = (self.near_at + seen.near_at)[:3]
        elif self.near_kind and seen.near < 0:
            self.near_kind = ""  # too many misfits after all

    @property
    def kind(self) -> str:
        """The kind that the column is read as."""
        if self.asked or self.fixed:
            return self.alive[0]
        if self.count == 0 or self._ambiguity():
            return "string"
        return self.alive[0]

    def _ambiguity(self) -> str:
        first = self.alive[0]
        both = {GROUPED, COMMA} <= set(self.alive)
        if first in (GROUPED, COMMA) and (both or first not in self.sure):
            return "a comma may group thousands or mark decimals"
        for one, other in _SWAPPED.items():
            if first.startswith(one) and first.replace(one, other) in self.alive:
                return "day and month may be either way round"
        return ""

    def decide(self) -> None:
        """Note what is in doubt, once every block has been seen."""
        if self.count and not self.asked and not self.fixed:
            self.doubt = self._ambiguity()

    @property
    def settled(self) -> bool:
        """Whether what the blocks were stored as can be cast to the column's type without loss."""
        kind = self.kind
        narrower = {
            "float": {"integer"},
            GROUPED: {"integer", "float"},
            COMMA: {"integer"},
        }.get(kind, {kind.removesuffix("%.f")})
        return self.used <= {"", kind} | narrower

    def fix(self) -> None:
        """Hold on to the present kind, for a second reading."""
        self.alive, self.used, self.fixed = [self.kind], set(), True
        self.infinite = self.count = 0

    def notices(self) -> list[str]:
        """What whoever uploaded it should know about how the column was read."""
        told, name = [], self.name
        kind = self.kind
        if self.doubt:
            told.append(
                f"Column '{name}' is kept as text, since {self.doubt}. Write values that leave no "
                "doubt (2024-12-31, 1234.5), or say the column's type when you upload."
            )
        elif kind == "string" and self.near_kind:
            what = {"integer": "numbers", "float": "numbers"}.get(
                dtype_of(self.near_kind), "dates" if "%" in self.near_kind else "true or false"
            )
            where = "; ".join(f"line {line}: {value}" for line, value in self.near_at)
            told.append(
                f"Column '{name}' is kept as text: {self.near:,} of its {self.count:,} values are "
                f"not {what} ({where}). Correct them, or say the column's type when you upload to "
                "set those rows aside."
            )
        elif kind in (GROUPED, COMMA):
            style = "1,234.5" if kind == GROUPED else "1.234,5"
            told.append(f"Column '{name}' holds numbers written like {style}.")
        elif kind.endswith("%#z"):
            told.append(f"Times in column '{name}' were converted to UTC.")
        if self.markers and kind != "string":
            shown = ", ".join(f"'{marker}'" for marker in sorted(self.markers))
            told.append(f"Column '{name}': {shown} counts as missing.")
        if self.infinite and kind != "string":
            told.append(f"Column '{name}': {self.infinite:,} infinite values count as missing.")
        if self.trimmed and kind == "string":
            told.append(f"Column '{name}': spaces around values were removed.")
        return told


# --- One block -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """What a block needs to know of a column: which kinds may still fit, which nearly did."""

    alive: tuple[str, ...]
    asked: bool = False
    near_kind: str = ""
    fixed: bool = False


def read_block(block: Block, wishes: Mapping[str, Wish]) -> tuple[dict[str, Seen], Block]:
    """Type every column of a block. Rows that don't fit a type that was asked for are set aside."""
    seen = _read_likely(block.frame, wishes)
    seen = {
        series.name: seen.get(series.name) or _read_column(series, wishes[series.name])
        for series in block.frame
    }
    near = [(one, row) for one in seen.values() for row in one.near_rows]
    if near:
        for (one, row), (line, _) in zip(near, block.locate([row for _, row in near]), strict=True):
            value = str(block.frame[one.values.name][row])
            one.near_at.append((line, f"'{value[:40]}'"))
    misfits: dict[int, str] = {}
    for name, one in seen.items():
        for row in one.misfits:
            value = str(block.frame[name][row])
            article = {"integer": "a whole number", "float": "a number"}.get(
                dtype_of(one.kind), f"a {dtype_of(one.kind)}"
            )
            misfits.setdefault(row, f"'{value[:40]}' in column '{name}' is not {article}")
    rejects = list(block.rejects)
    if misfits:
        rows = sorted(misfits)
        for row, (line, raw) in zip(rows, block.locate(rows), strict=True):
            rejects.append(Reject(line, misfits[row], raw))
        keep = pl.int_range(block.frame.height, eager=True).is_in(rows).not_()
        for one in seen.values():
            one.values = one.values.filter(keep)
    typed = pl.DataFrame([one.values for one in seen.values()])
    return seen, Block(typed, rejects, block.locate, block.share)


def _read_likely(frame: pl.DataFrame, wishes: Mapping[str, Wish]) -> dict[str, Seen]:
    """The columns that are simply what they were so far, all at once. The others are left out."""
    likely: dict[str, str] = {}
    exprs: list[pl.Expr] = []
    for index, name in enumerate(frame.columns):
        wish = wishes[name]
        text = pl.col(name)
        kind = wish.alive[0]
        if wish.near_kind or (wish.asked and len(wish.alive) > 1):
            continue
        if kind in ("integer", "float"):
            # A zero before a digit is a code's: the careful way looks closer. (Comparing only those
            # that begin with a zero takes half the time of comparing all.)
            zero = text.filter(text.str.starts_with("0")).max() >= "00"
            doubt = zero.fill_null(value=False) | (text.str.len_bytes().max() > 16)
            typed = text.cast(DTYPES[kind], strict=False)
        elif kind == "string":
            missing = text.is_in(MISSING)
            doubt = (text.str.starts_with(" ") | text.str.ends_with(" ")).any()
            typed = pl.when(missing.not_()).then(text)
        elif kind == "boolean" and len(wish.alive) <= 2:  # at first it may be anything
            # As they are mostly written; any other spelling is for the careful way.
            false = pl.when(text.is_in(("false", "False", "FALSE"))).then(False)
            typed = pl.when(text.is_in(("true", "True", "TRUE"))).then(True).otherwise(false)
            doubt = pl.lit(value=False)
        elif kind in _DATES or kind in _TIMES:
            if any(_rivals(kind, other) for other in wish.alive):
                continue  # two ways of reading it are open as yet
            typed = _times(text, kind)
            doubt = pl.lit(value=False)
        else:
            continue
        likely[name] = kind
        exprs += [
            typed.alias(name),
            doubt.fill_null(value=False).alias(f"{index} doubt"),
        ]
        if kind != "string":
            exprs.append((text == "").sum().alias(f"{index} empty"))
    if not likely:
        return {}
    typed_frame = frame.select(exprs)
    checks = typed_frame.select(
        pl.col(name).is_finite().all() if kind == "float" else pl.col(name).min().dt.year() >= 1000
        for name, kind in likely.items()
        if kind == "float" or "%" in kind
    )
    seen: dict[str, Seen] = {}
    gaps: dict[str, int] = {}
    for index, name in enumerate(frame.columns):
        if name not in likely or typed_frame[f"{index} doubt"][0]:
            continue
        if name in checks.columns and checks[name][0] is False:
            continue
        values = typed_frame[name]
        nulls = values.null_count()
        if likely[name] != "string" and nulls != typed_frame[f"{index} empty"][0]:
            gaps[name] = nulls
        count = values.len() - nulls
        seen[name] = Seen(values, likely[name] if count else "", count=count)
    if gaps:
        missing_now = frame.select(
            (pl.col(name).is_in(MISSING) | pl.col(name).is_null()).sum() for name in gaps
        )
        for name, nulls in gaps.items():
            if missing_now[name][0] != nulls:
                del seen[name]
    return seen


def _read_column(text: pl.Series, wish: Wish) -> Seen:
    alive = [kind for kind in wish.alive if kind != "string"]
    if not alive and not wish.near_kind:
        return _as_text(text)
    if wish.asked:
        return _as_asked(text, alive)
    if wish.fixed:
        tried = _try(text, alive[0], marked=True)
        assert isinstance(tried, Seen), f"{text.name} is no longer {alive[0]}"
        return tried
    dead: set[str] = set()
    nearly: list[tuple[int, str]] = []  # how many values were in the way, and of which kind
    if len(alive) > 1:
        # A handful of values rules out most kinds.
        sample = pl.concat([text.head(50), text.slice(text.len() // 2, 20), text.tail(20)])
        sample = sample.str.strip_chars()
        sample = sample.filter(sample.is_in([*MISSING, *MARKERS]).not_())
        possible = _possible(sample.to_list())
        for kind in alive if sample.len() else ():
            if kind not in possible:
                dead.add(kind)
                continue
            typed, infinite = _parse(sample, kind)
            missed = typed.null_count() - infinite
            if missed:
                dead.add(kind)
                if missed <= 0.2 * sample.len():
                    nearly.append((missed, kind))
        alive = [kind for kind in alive if kind not in dead]
    seen: Seen | None = None
    sure: set[str] = set()
    for kind in alive:
        if seen is not None and not _rivals(seen.kind, kind):
            continue  # it fits whatever the kind found fits, or does not matter any more
        tried = _try(text, kind)
        if isinstance(tried, int):
            if tried:
                dead.add(kind)
                nearly.append((tried, kind))
            continue
        sure |= tried.sure
        if seen is None:
            seen = tried
            if kind == "float" and tried.kind:
                dead.add(COMMA)
    if seen is None:
        seen = _as_text(text)
        near_kind = wish.near_kind or (min(nearly, key=lambda one: one[0])[1] if nearly else "")
        if near_kind:
            _count_near(seen, text, near_kind)
    seen.dead, seen.sure = dead, sure
    return seen


_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_LOOKS = tuple(
    (re.compile(pattern, re.IGNORECASE), kinds)
    for pattern, kinds in (
        (r"[+-]?[\d.,]*\d[\d.,]*(?:e[+-]?\d+)?|[+-]?inf(?:inity)?", _NUMBERS),
        (r"true|false", {"boolean"}),
        (r"[+-]?\d{1,4}[-/.]\d+[-/.].*:.*", set(_TIMES)),
        (rf"[+-]?\d{{1,4}}[-/. ]\w+[-/. ][^:]*|(?:{_MONTHS}).*\d", set(_DATES)),
    )
)


def _possible(sample: Iterable[str]) -> set[str]:
    """The kinds that at least one of the values looks like. Trying the others would only cost."""
    values = list(sample)
    return {
        kind
        for look, kinds in _LOOKS
        if any(look.fullmatch(value) for value in values)
        for kind in kinds
    }


def _rivals(found: str, other: str) -> bool:
    """Whether both must be tried, since only their difference decides."""
    if {found, other} == {GROUPED, COMMA}:
        return True
    return any(
        found.startswith(one) and other == found.replace(one, two) for one, two in _SWAPPED.items()
    )


def _as_text(text: pl.Series) -> Seen:
    edges = text.str.starts_with(" ") | text.str.ends_with(" ")
    trimmed = bool(edges.any())
    if trimmed:
        text = text.str.strip_chars()
    missing = text.is_in(MISSING)
    if missing.any():
        text = text.to_frame().select(pl.when(missing.not_()).then(pl.first())).to_series()
    count = text.len() - text.null_count()
    return Seen(text, "string" if count else "", trimmed=trimmed, count=count)


def _as_asked(text: pl.Series, kinds: Sequence[str]) -> Seen:
    best: Seen | None = None
    for kind in kinds:
        tried = _try(text, kind, misfits=True)
        assert isinstance(tried, Seen)
        if best is None or len(tried.misfits) < len(best.misfits):
            best = tried
        if not best.misfits:
            break
    assert best is not None
    return best


def _count_near(seen: Seen, text: pl.Series, kind: str) -> None:
    tried = _try(text, kind, misfits=True)
    assert isinstance(tried, Seen)
    rows = tried.misfits
    codes = text.gather(rows).str.contains(r"^0\d+$").any() if rows else False
    if codes or len(rows) > max(1, NEAR * (tried.count + len(rows))):
        seen.near = -1
    else:
        seen.near_kind, seen.near, seen.near_rows = kind, len(rows), rows[:3]


def _try(text: pl.Series, kind: str, *, misfits: bool = False, marked: bool = False) -> Seen | int:
    """The column as ``kind``, or how many values don't fit (``misfits``: list their rows instead).

    Markers count as missing only beside real values, unless ``marked`` says that there are some in
    other blocks; with markers alone the answer is 0, which says nothing for or against.
    """
    typed, infinite = _parse(text, kind)
    found = Seen(typed.alias(text.name), kind, infinite=infinite)
    unread = typed.null_count() - text.null_count() - infinite
    if unread:
        lost = typed.is_null() & text.is_not_null()
        rest = text.filter(lost)
        rest = rest.filter(rest.is_in(MISSING).not_())
        if infinite:
            rest = rest.filter(_infinite(rest).not_())
        if rest.len() and (rest.str.strip_chars() != rest).any():
            return _try(text.str.strip_chars(), kind, misfits=misfits, marked=marked)
        if rest.len():
            marks = set(rest.unique().to_list()) if rest.n_unique() <= len(MARKERS) else {"x"}
            if marks <= MARKERS and (marked or typed.len() > typed.null_count()):
                found.markers = marks
            elif marks <= MARKERS and not misfits:
                return 0
            elif misfits:
                bad = lost & text.is_in(MISSING).not_() & text.is_in(list(MARKERS)).not_()
                found.misfits = bad.arg_true().to_list()
            else:
                return rest.len()
    found.count = typed.len() - typed.null_count()
    if not found.count and not found.misfits:
        if infinite and not marked:
            return _as_text(text)
        found.kind = ""
    if kind in (GROUPED, COMMA):
        pattern = _SURELY_GROUPED if kind == GROUPED else _SURELY_COMMA
        if text.str.contains(pattern).any():
            found.sure = {kind}
    return found


def _infinite(text: pl.Series) -> pl.Series:
    return text.cast(pl.Float64, strict=False).is_infinite().fill_null(value=False)


def _parse(text: pl.Series, kind: str) -> tuple[pl.Series, int]:
    """The values of ``kind``, null where one is none, and how many were infinite."""
    if kind == "boolean":
        lower = text.str.to_lowercase()
        frame = pl.DataFrame([lower.alias("x")])
        truth = pl.when(pl.col("x") == "true").then(True).when(pl.col("x") == "false").then(False)
        return frame.select(truth.alias("x")).to_series(), 0
    if kind == "integer":
        return _coded(text, text.cast(pl.Int64, strict=False)), 0
    if kind == "float":
        return _finite(_coded(text, text.cast(pl.Float64, strict=False)))
    if kind in (GROUPED, COMMA):
        frame = pl.DataFrame([text.alias("x")])
        x = pl.col("x")
        if kind == GROUPED:
            plain = pl.when(x.str.contains(_GROUPED)).then(x.str.replace_all(",", "", literal=True))
        else:
            plain = pl.when(x.str.contains(_COMMA)).then(
                x.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
            )
        bare = frame.select(plain.alias("x")).to_series()
        return _finite(_coded(bare, bare.cast(pl.Float64, strict=False)))
    values = text.to_frame().select(_times(pl.first(), kind)).to_series()
    least = values.min()
    if isinstance(least, date) and least.year < 1000:  # "20-01-05" is no year 20
        keep = pl.first().dt.year() >= 1000
        values = values.to_frame().select(pl.when(keep).then(pl.first())).to_series()
    return values, 0


def _times(text: pl.Expr, kind: str) -> pl.Expr:
    if kind in _DATES:
        return text.str.to_date(kind, strict=False, cache=False)
    times = text.str.to_datetime(kind, strict=False, time_unit="us", cache=False)
    if kind.endswith("%#z"):
        times = times.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return times


def _coded(text: pl.Series, numbers: pl.Series) -> pl.Series:
    """No number at all where a digit follows a leading zero, or where digits would be lost.

    A postal code is no quantity: "01234" must stay as it is.
    """
    zeros = text.filter(text.str.starts_with("0"))
    if zeros.len() and zeros.str.contains(r"^0\d").any():
        frame = pl.DataFrame([text.alias("t"), numbers.alias("n")])
        keep = pl.col("t").str.contains(r"^0\d").not_()
        numbers = frame.select(pl.when(keep).then(pl.col("n"))).to_series()
    if numbers.dtype == pl.Float64 and (text.str.len_bytes().max() or 0) > 16:
        frame = pl.DataFrame([text.alias("t"), numbers.alias("n")])
        keep = pl.col("t").str.contains(r"^[+-]?\d{17,}$").not_()
        numbers = frame.select(pl.when(keep).then(pl.col("n"))).to_series()
    return numbers


def _finite(numbers: pl.Series) -> tuple[pl.Series, int]:
    if numbers.is_finite().all():
        return numbers, 0
    infinite = int(numbers.is_infinite().sum())
    frame = pl.DataFrame([numbers.alias("n")])
    return frame.select(pl.when(pl.col("n").is_finite()).then(pl.col("n"))).to_series(), infinite


# --- Whole tables --------------------------------------------------------------------------------


def final_frame(frame: pl.LazyFrame, columns: Iterable[Column]) -> pl.LazyFrame:
    """``frame`` (a block as it was stored) with the columns' final types, in their order."""
    known = frame.collect_schema()
    wanted: list[Any] = []
    for column in columns:
        dtype = DTYPES[dtype_of(column.kind)]
        if column.name in known:
            wanted.append(pl.col(column.name).cast(dtype))
        else:
            wanted.append(pl.lit(None, dtype).alias(column.name))
    return frame.select(wanted)
