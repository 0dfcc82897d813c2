"""What is in a column: counts, spread, most frequent values, and the role it is likely to play.

One column at a time is held in memory. Imports no Django: it runs on nodes.
"""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, time
from typing import Any

import polars as pl

BINS = 20
TOP = 20
SAMPLE = 3_000  # texts that are looked at to guess how many different ones there are
BATCH = 500_000  # values that are fetched at a time
MAX_CLASSES = 200  # every value is listed up to this many
MAX_VALUE = 200  # characters of a value that is listed
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_COST = {"float": 4, "string": 3, "boolean": 1}  # of describing a column, next to the others' 2

MIN_ROWS_FOR_IDENTIFIER = 20
NEARLY_UNIQUE = 0.98
_ID_NAME = re.compile(
    r"(^|[\W_])(id|ids|uuid|guid|key|index|idx|nr|rowid|row|row_name)$|[a-z0-9](Id|ID|UUID)$",
    re.IGNORECASE,
)
_TIME_NAME = re.compile(r"year|month|week|day|date|time|hour|age|step|period", re.IGNORECASE)


def profile(
    fetch: Callable[[list[str]], pl.DataFrame],
    columns: Sequence[tuple[str, str]],
    rows: int,
    *,
    done: Callable[[int], None] = lambda count: None,
    threads: int = 2,
) -> list[dict[str, Any]]:
    """Describe columns, given as (name, dtype), in order. ``fetch`` gets the values of some.

    ``done`` is told how many columns have been described.
    """
    # Of a long table one column is held at a time; of a short one, fetching each would cost most.
    step = max(1, BATCH // max(1, rows))
    batches = [columns[at : at + step] for at in range(0, len(columns), step)]

    def work(batch: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        frame = fetch([name for name, _ in batch])
        return [describe(name, dtype, frame[name]) for name, dtype in batch]

    # What takes longest first, so that the threads end at about the same time.
    weights = [sum(_COST.get(dtype, 2) for _, dtype in batch) for batch in batches]
    order = sorted(range(len(batches)), key=lambda number: -weights[number])
    found: list[list[dict[str, Any]]] = [[] for _ in batches]
    described = 0
    with ThreadPoolExecutor(threads) as pool:
        results = pool.map(work, (batches[number] for number in order))
        for number, some in zip(order, results, strict=True):
            found[number] = some
            described += len(some)
            done(described)
    return list(itertools.chain.from_iterable(found))


def describe(name: str, dtype: str, values: pl.Series) -> dict[str, Any]:
    """One column's statistics, as plain JSON values without NaN or infinity.

    ``std`` is the sample's; quantiles are interpolated linearly; a histogram's last bin includes
    its upper edge; times are ISO strings, in histograms seconds since 1970.
    """
    rows = values.len()
    there = values.drop_nulls()
    about: dict[str, Any] = {
        "name": name,
        "dtype": dtype,
        "role": "",
        "missing": rows - there.len(),
        "distinct": 0,
        "top": [],
    }
    if there.len():
        if dtype == "boolean":
            _count_values(about, there.value_counts(), there.len())
            about["mean"] = _number(there.mean())
        elif dtype == "string":
            _describe_text(about, there)
        else:
            _describe_ordered(about, there)
    else:
        about["classes"] = []
    about["role"] = role_of(about, rows, consecutive=_consecutive(about, there))
    return about


def _describe_text(about: dict[str, Any], there: pl.Series) -> None:
    # Of a few thousand values, do most occur once? Then there are very many different ones.
    sample = there if there.len() <= SAMPLE else there.sample(SAMPLE, seed=0)
    if there.len() > SAMPLE and sample.n_unique() > 0.9 * SAMPLE:
        _count_many_texts(about, there)
        lengths = pl.DataFrame([there.str.len_chars().alias("length")])
        lengths = lengths.with_columns(count=1)
    else:
        counts = there.value_counts(name="count")
        _count_values(about, counts, there.len())
        lengths = counts.select(pl.first().str.len_chars().alias("length"), "count")
    about["length"] = {
        "min": lengths["length"].min(),
        "mean": _number((lengths["length"] * lengths["count"]).sum() / there.len()),
        "max": lengths["length"].max(),
    }
    about["words"] = _number(sample.str.count_matches(r"\S+").mean())


def _count_many_texts(about: dict[str, Any], there: pl.Series) -> None:
    """As ``_count_values``, by 64-bit hashes: sorting numbers is much quicker than grouping texts.

    Two of a million texts share a hash, and then count as one, once in forty million tables.
    """
    frame = pl.DataFrame([there.alias("value"), there.hash().alias("hash")])
    runs = frame["hash"].sort().rle().struct.unnest()
    about["distinct"] = runs.height
    least = runs["len"].top_k(TOP).min()
    often = runs.filter(pl.col("len") >= max(2, int(least)))  # type: ignore[call-overload]
    if often.height > 10_000:  # equals by the thousand: which of them are shown does not matter
        often = often.sort("len", "value", descending=[True, False]).head(TOP)
    found = frame.filter(pl.col("hash").is_in(often["value"].implode()))
    counts = found["value"].value_counts().sort("count", "value", descending=[True, False])
    about["top"] = _listed(counts.head(TOP))


def _describe_ordered(about: dict[str, Any], there: pl.Series) -> None:
    ordered = there.sort()
    count = ordered.len()
    again = ordered.filter(ordered.eq(ordered.shift(1)))  # each value but its first occurrence
    about["distinct"] = count - again.len()
    if about["distinct"] > max(MAX_CLASSES, count // 2):
        runs = again.rle().struct.unnest()
        _rank(about, runs.select(value="value", count=pl.col("len") + 1), ordered)
    else:
        runs = ordered.rle().struct.unnest()
        _count_values(about, runs.select(value="value", count="len"), count)
    about["min"], about["max"] = _plain(ordered[0]), _plain(ordered[-1])
    numbers = ordered
    if about["dtype"] in ("date", "datetime"):
        numbers = ordered.cast(pl.Datetime("us")).dt.epoch("us") / 1_000_000
    else:
        about["mean"] = _number(there.mean())
        about["std"] = _number(there.std())
    about["quantiles"] = {}
    for share in QUANTILES:
        place = share * (count - 1)
        low, high = numbers[math.floor(place)], numbers[math.ceil(place)]
        value: Any = _number(low + (high - low) * (place - math.floor(place)))
        if numbers is not ordered and value is not None:
            moment = datetime.fromtimestamp(value, UTC).replace(tzinfo=None)
            value = (moment.date() if about["dtype"] == "date" else moment).isoformat()
        about["quantiles"][str(share)] = value
    about["histogram"] = _histogram(numbers, about["distinct"], whole=about["dtype"] == "integer")


def _histogram(ordered: pl.Series, distinct: int, *, whole: bool) -> dict[str, list[float]] | None:
    low, high = float(ordered[0]), float(ordered[-1])
    if not math.isfinite(high - low):
        return None
    if low == high:
        edges = [low - 0.5, high + 0.5]
    elif whole and high - low < 2 * BINS:  # a bin for each whole number
        edges = [low - 0.5 + step for step in range(int(high - low) + 2)]
    else:
        width = (high - low) / BINS
        edges = [low + width * step for step in range(BINS)] + [high]
        if len(set(edges)) <= BINS:  # too narrow for floats to tell apart
            edges = [low, high]
    inner = pl.Series(edges[1:-1], dtype=pl.Float64)
    places = [0, *ordered.cast(pl.Float64).search_sorted(inner, side="left"), ordered.len()]
    return {"edges": edges, "counts": [b - a for a, b in itertools.pairwise(places)]}


def _count_values(about: dict[str, Any], counts: pl.DataFrame, there: int) -> None:
    """Fill in ``distinct``, ``top`` and ``classes`` from a frame of value and count."""
    counts = counts.rename(dict(zip(counts.columns, ("value", "count"), strict=True)))
    about["distinct"] = counts.height
    if counts.height <= MAX_CLASSES:
        ranked = counts.sort("count", "value", descending=[True, False])
        top = ranked.head(TOP)
        values = counts.sort("value")
        if values["value"].dtype != pl.String or _longest(values["value"]) <= MAX_VALUE:
            about["classes"] = _listed(values)
    else:
        top = _most(counts)
    about["top"] = _listed(top) if there else []


def _most(counts: pl.DataFrame) -> pl.DataFrame:
    """The most frequent, in order. Sorting all of them would cost more."""
    if counts.height > TOP:
        # The twentieth's count decides who is in; among equals, the smaller values.
        least = counts["count"].top_k(TOP).min()
        more = counts.filter(pl.col("count") > least)
        equal = counts.filter(pl.col("count") == least).bottom_k(TOP - more.height, by="value")
        counts = pl.concat([more, equal])
    return counts.sort("count", "value", descending=[True, False])


def _rank(about: dict[str, Any], often: pl.DataFrame, ordered: pl.Series) -> None:
    """Fill in ``top`` where most values occur once: ``often`` counts the others."""
    top = _most(often)
    if top.height < TOP:
        once = ordered.head(TOP + often["count"].sum()) if often.height < TOP else ordered.head(0)
        once = once.filter(once.is_in(often["value"].implode()).not_()).head(TOP - top.height)
        more = pl.DataFrame([once.alias("value")]).with_columns(count=pl.lit(1))
        top = pl.concat([top, more.cast(dict(top.schema))])
    about["top"] = _listed(top)


def _longest(values: pl.Series) -> int:
    longest = values.str.len_chars().max()
    return longest if isinstance(longest, int) else 0


def _listed(counts: pl.DataFrame) -> list[dict[str, Any]]:
    return [{"value": _plain(value), "count": count} for value, count in counts.iter_rows()]


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, (date, datetime, time)):
        return value.isoformat()
    if isinstance(value, str):
        # PostgreSQL's JSON holds no NUL.
        value = value.replace("\0", "\N{REPLACEMENT CHARACTER}")
        return value if len(value) <= MAX_VALUE else value[:MAX_VALUE] + "…"
    return value


def _number(value: Any) -> float | None:
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None


# --- Roles ---------------------------------------------------------------------------------------


def _consecutive(about: dict[str, Any], there: pl.Series) -> bool:
    """Whether the values count up (or down) by one from row to row."""
    if about["dtype"] != "integer" or about["distinct"] != there.len() or there.len() < 2:
        return False
    if abs(about["max"] - about["min"]) != there.len() - 1:
        return False
    return bool(there.is_sorted() or there.is_sorted(descending=True))


def role_of(about: dict[str, Any], rows: int, *, consecutive: bool = False) -> str:
    """The part that a column with these statistics is likely to play."""
    name, dtype, distinct = about["name"], about["dtype"], about["distinct"]
    there = rows - about["missing"]
    if distinct <= 1:
        return "constant"
    if dtype == "boolean":
        return "boolean"
    if dtype in ("date", "datetime"):
        return "datetime"
    nearly_unique = there >= MIN_ROWS_FOR_IDENTIFIER and distinct >= NEARLY_UNIQUE * there
    if dtype == "integer":
        counts_up = consecutive and not _TIME_NAME.search(name)
        if nearly_unique and (counts_up or _ID_NAME.search(name)):
            return "identifier"
        return "numeric"
    if dtype == "float":
        return "numeric"
    words, length = about["words"], about["length"]["mean"]
    if nearly_unique and words < 3 and length <= 100:
        return "identifier"
    if distinct >= 20 and distinct >= 0.2 * there and (words >= 3 or length >= 30):
        return "text"
    return "categorical"
