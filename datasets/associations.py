"""How much each two columns of a table have to do with each other.

What is measured depends on what the two hold; each number is read on its own scale:

- two of numbers (dates count as such): Spearman's rank correlation, -1 to 1, which sees every
  relation that only rises or only falls, and Pearson's beside it, which sees straight ones
  (Spearman 1904, "The Proof and Measurement of Association between Two Things");
- two of categories: Cramer's V, 0 to 1, with the correction of its bias by Bergsma 2013 ("A
  bias-correction for Cramer's V and Tschuprow's T"): without it, columns of many values seem to
  have to do with everything;
- one of each: the correlation ratio, 0 to 1, the root of the share of the numbers' variance that
  lies between the categories (Fisher 1925, "Statistical Methods for Research Workers"), corrected
  for the number of categories as Kelley 1935 does ("An Unbiased Correlation Ratio Measure").

Each pair is measured over the rows where both have a value, of a sample of the table.
Imports no Django: it runs on nodes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

MOST_COLUMNS = 30  # the first ones that can be measured: the number of pairs grows as its square
SAMPLE = 10_000  # rows; chance then moves a correlation by 0.01
MOST_VALUES = 50  # of a column of categories; rarer ones count as one value
LEAST_ROWS = 5  # below, a pair says nothing
NUMBERS, CATEGORIES = "numbers", "categories"
SPEARMAN, CRAMER, RATIO = "spearman", "cramers_v", "correlation_ratio"
_AT_ONCE = 100  # pairs of numbers in one query

_KINDS = {
    "numeric": NUMBERS,
    "datetime": NUMBERS,
    "categorical": CATEGORIES,
    "boolean": CATEGORIES,
}


def measure(
    fetch: Callable[[str], pl.Series], columns: Sequence[Mapping[str, Any]], rows: int
) -> dict[str, Any]:
    """Measure each pair of the ``columns`` (as datasets.profile describes them) that can be.

    ``fetch`` gets one column's values. Returns {"columns": [name, ...], "left_out": how many were
    too many, "rows": of the sample, "pairs": [[place, place, measure, value, pearson or None,
    rows], ...]}; ``value`` is None where the rows can't say.
    """
    able = [one for one in columns if _KINDS.get(one["role"]) and one["distinct"] > 1]
    taken = able[:MOST_COLUMNS]
    places = None
    if rows > SAMPLE:
        places = pl.int_range(rows, eager=True).sample(SAMPLE, seed=0).sort()
    kinds = [_KINDS[one["role"]] for one in taken]
    frame = pl.DataFrame(
        [
            (_codes if kind == CATEGORIES else _numbers)(
                fetch(one["name"]) if places is None else fetch(one["name"])[places]
            ).alias(str(place))
            for place, (one, kind) in enumerate(zip(taken, kinds, strict=True))
        ]
    )
    found: dict[tuple[int, int], list[Any]] = {}
    both: list[tuple[int, int]] = []
    for a, b in itertools.combinations(range(len(taken)), 2):
        if kinds[a] == kinds[b] == NUMBERS:
            both.append((a, b))
        elif kinds[a] == kinds[b]:
            found[a, b] = [CRAMER, *_cramers_v(frame, a, b)]
        else:
            category, number = (a, b) if kinds[a] == CATEGORIES else (b, a)
            found[a, b] = [RATIO, *_ratio(frame, category, number)]
    for at in range(0, len(both), _AT_ONCE):
        found |= _correlations(frame, both[at : at + _AT_ONCE])
    return {
        "columns": [one["name"] for one in taken],
        "left_out": len(able) - len(taken),
        "rows": frame.height,
        "pairs": [[a, b, *found[a, b]] for a, b in sorted(found)],
    }


def checked(told: Any, columns: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What a node told of ``columns``, looked at number by number; None where it told none, or odd
    things."""
    try:
        names, known = list(told["columns"]), {one["name"] for one in columns}
        if len(names) > MOST_COLUMNS or not known.issuperset(names):
            return None
        pairs = []
        for a, b, measure, value, pearson, rows in told["pairs"]:
            numbers = [_plain(one, low=-1.0) for one in (value, pearson)]
            if not 0 <= a < b < len(names) or measure not in (SPEARMAN, CRAMER, RATIO):
                return None
            pairs.append([int(a), int(b), measure, *numbers, max(0, int(rows))])
        if len({(a, b) for a, b, *_ in pairs}) != len(names) * (len(names) - 1) // 2:
            return None
        return {
            "columns": names,
            "left_out": max(0, int(told["left_out"])),
            "rows": max(0, int(told["rows"])),
            "pairs": pairs,
        }
    except (KeyError, TypeError, ValueError):
        return None


def _numbers(values: pl.Series) -> pl.Series:
    if values.dtype in (pl.Date, pl.Datetime):
        values = values.cast(pl.Datetime("us")).dt.epoch("us")
    numbers = values.cast(pl.Float64)
    return pl.select(pl.when(numbers.is_finite()).then(numbers)).to_series()


def _codes(values: pl.Series) -> pl.Series:
    """Each value's place among the most frequent ones; the rarer ones share the last."""
    there = values.drop_nulls()
    counts = there.value_counts(name="count").sort("count", there.name, descending=[True, False])
    often = counts[there.name].head(MOST_VALUES - (counts.height > MOST_VALUES))
    codes = values.replace_strict(
        often,
        pl.int_range(often.len(), dtype=pl.Int32, eager=True),
        default=often.len(),
        return_dtype=pl.Int32,
    )
    return pl.select(pl.when(values.is_not_null()).then(codes)).to_series()


def _correlations(
    frame: pl.DataFrame, pairs: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], list[Any]]:
    asked = []
    for a, b in pairs:
        x, y = pl.col(str(a)), pl.col(str(b))
        there = x.is_not_null() & y.is_not_null()
        x, y = x.filter(there), y.filter(there)
        # Ranks of ties are their mean's, as Spearman's correlation is defined for them.
        asked += [
            pl.corr(x, y).alias(f"{a} {b} pearson"),
            pl.corr(x.rank(), y.rank()).alias(f"{a} {b} spearman"),
            there.sum().alias(f"{a} {b} rows"),
        ]
    told = frame.select(asked).row(0, named=True)
    found: dict[tuple[int, int], list[Any]] = {}
    for a, b in pairs:
        rows = int(told[f"{a} {b} rows"])
        spearman, pearson = (
            _plain(told[f"{a} {b} {name}"] if rows >= LEAST_ROWS else None, low=-1.0)
            for name in ("spearman", "pearson")
        )
        found[a, b] = [SPEARMAN, spearman, pearson, rows]
    return found


def _cramers_v(frame: pl.DataFrame, a: int, b: int) -> tuple[float | None, None, int]:
    """Bergsma's: the value, no second one, and the number of rows."""
    x, y = str(a), str(b)
    cells = frame.select(x, y).drop_nulls().group_by(x, y).len()
    n = int(cells["len"].sum())
    sums = cells.with_columns(
        of_x=pl.col("len").sum().over(x), of_y=pl.col("len").sum().over(y)
    ).with_columns(pl.col("len", "of_x", "of_y").cast(pl.Float64))
    k, r = cells[x].n_unique(), cells[y].n_unique()
    if n < LEAST_ROWS or min(k, r) < 2:
        return None, None, n
    # chi²/n + 1 is the sum of n_xy²/(n_x n_y): empty cells add nothing to it.
    phi2 = float(sums.select((pl.col("len") ** 2 / (pl.col("of_x") * pl.col("of_y"))).sum()).item())
    phi2 = max(0.0, phi2 - 1 - (k - 1) * (r - 1) / (n - 1))
    k_corrected, r_corrected = k - (k - 1) ** 2 / (n - 1), r - (r - 1) ** 2 / (n - 1)
    room = min(k_corrected, r_corrected) - 1
    return (_plain(math.sqrt(phi2 / room)) if room > 0 else None), None, n


def _ratio(frame: pl.DataFrame, category: int, number: int) -> tuple[float | None, None, int]:
    """Kelley's: the value, no second one, and the number of rows."""
    c, x = str(category), str(number)
    there = frame.select(c, x).drop_nulls()
    groups = there.group_by(c).agg(pl.col(x).mean().alias("mean"), pl.len())
    n, k = there.height, groups.height
    around = there[x] - (there[x].mean() if n else 0.0)
    total = float((around * around).sum())
    if n < LEAST_ROWS or k < 2 or n <= k or not math.isfinite(total) or total <= 0:
        return None, None, n
    mean = pl.lit(there[x].mean())
    between = float(groups.select((pl.col("len") * (pl.col("mean") - mean) ** 2).sum()).item())
    share = 1 - (1 - between / total) * (n - 1) / (n - k)
    return _plain(math.sqrt(max(0.0, share))), None, n


def _plain(value: Any, *, low: float = 0.0) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return round(min(1.0, max(low, float(value))), 4)
