"""How far the values that a model is asked about are from those that it was trained on. Pure.

Each column is cut into bins by the training data's profile (``datasets.profile``); the shares of
the bins then and now are compared. Two figures:

* PSI, the population stability index: sum over bins of (q - p) * ln(q / p), which is the symmetric
  Kullback-Leibler divergence ("J" in Kullback and Leibler, On Information and Sufficiency, 1951).
  By custom (Siddiqi, Credit Risk Scorecards, 2006) below 0.1 is no change, above 0.25 a large one.
  It grows with few rows though nothing has changed: for samples of N and M rows of the same
  distribution and B bins it is about (1/N + 1/M) times a chi-squared variable with B - 1 degrees of
  freedom (Yurdakul and Naranjo, Statistical properties of the population stability index, 2020).
  So a column has drifted only when it is past the threshold and past what chance does once in
  1,000 times.
* The Jensen-Shannon distance: the square root of the divergence of Lin, Divergence measures based
  on the Shannon entropy, 1991, with logarithms of base 2: 0 for the same shares, 1 for shares that
  have no bin in common. It is a metric (Endres and Schindelin, 2003).
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GROUPS = 10  # of about equal size, of a column of numbers
VALUES = 20  # of a column of categories, the most frequent; all others are one bin
LEAST_ROWS = 100  # fewer say nothing
SMOOTH = 0.5  # added to each count, so that an empty bin is not infinitely far from one of one row
CHANCE_Z = 3.0902  # standard normal quantile of 0.999
MISSING, OTHER = "missing", "other values"
# What has other values by nature, whatever the model is asked.
NOT_COMPARED = {"identifier", "text", "datetime"}


def psi(p: Sequence[float], q: Sequence[float]) -> float:
    """The population stability index of two lists of shares, all above 0, of the same bins."""
    return sum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True))


def jensen_shannon(p: Sequence[float], q: Sequence[float]) -> float:
    """The Jensen-Shannon distance, from 0 to 1, of two lists of shares of the same bins."""

    def gone(one: Sequence[float], other: Sequence[float]) -> float:
        pairs = zip(one, other, strict=True)
        return sum(a * math.log2(2 * a / (a + b)) for a, b in pairs if a > 0)

    return math.sqrt(min(1.0, max(0.0, (gone(p, q) + gone(q, p)) / 2)))


def by_chance(bins: int, trained: int, seen: int) -> float:
    """The PSI that samples of so many rows of one and the same distribution pass once in 1,000.

    The quantile of the chi-squared distribution is that of Wilson and Hilferty, 1931, which is
    within 4% of it.
    """
    k = max(1, bins - 1)
    quantile = k * (1 - 2 / (9 * k) + CHANCE_Z * math.sqrt(2 / (9 * k))) ** 3
    return quantile * (1 / max(1, trained) + 1 / max(1, seen))


def shares(counts: Sequence[float]) -> list[float]:
    """Counts as shares that add up to 1 and are all above 0."""
    total = sum(counts) + SMOOTH * len(counts)
    return [(count + SMOOTH) / total for count in counts]


@dataclass(frozen=True)
class Bins:
    """How a column is cut, and how many training rows were in each bin; the last is for missing
    values. Numbers have inner ``edges``, categories ``values``."""

    names: tuple[str, ...]
    counts: tuple[int, ...]
    edges: tuple[float, ...] = ()
    values: tuple[str, ...] = ()

    def place(self, value: Any) -> int:
        """The bin of a value."""
        if value is None:
            return len(self.names) - 1
        if self.values:
            text = str(value)
            return self.values.index(text) if text in self.values else len(self.values)
        low, *inner, high = self.edges
        try:
            number = float(value)
        except (TypeError, ValueError):
            return len(self.names) - 1
        if number < low:
            return 0
        if number > high:
            return len(self.names) - 2
        return 1 + bisect_right(inner, number)


def bins_of(column: Mapping[str, Any], rows: int) -> Bins | None:
    """The bins of a profiled column of a table of so many rows; None where there is nothing to
    compare: an identifier, free text, times, or a column without values."""
    if column.get("role") in NOT_COMPARED or column.get("dtype") in {"date", "datetime"}:
        return None
    missing = int(column.get("missing") or 0)
    histogram = column.get("histogram")
    if histogram and column.get("dtype") in {"integer", "float"}:
        return _of_numbers(histogram["edges"], histogram["counts"], missing)
    listed = column.get("classes") or column.get("top")
    if not listed:
        return None
    most = sorted(listed, key=lambda one: (-int(one["count"]), str(one["value"])))[:VALUES]
    counts = [int(one["count"]) for one in most]
    names = tuple(str(one["value"]) for one in most)
    other = max(0, rows - missing - sum(counts))
    return Bins((*names, OTHER, MISSING), (*counts, other, missing), values=names)


def _of_numbers(edges: Sequence[float], counts: Sequence[int], missing: int) -> Bins:
    """Neighbours of the histogram together until they hold a tenth, and a bin beyond each end."""
    enough = sum(counts) / GROUPS
    cut, grouped, held = [float(edges[0])], [], 0
    for place, count in enumerate(counts):
        held += int(count)
        if held and (held >= enough or place == len(counts) - 1):
            cut.append(float(edges[place + 1]))
            grouped.append(held)
            held = 0
    if held:
        grouped[-1] += held
    cut[-1] = float(edges[-1])
    names = [f"{low:.4g} to {high:.4g}" for low, high in itertools.pairwise(cut)]
    return Bins(
        (f"below {cut[0]:.4g}", *names, f"above {cut[-1]:.4g}", MISSING),
        (0, *grouped, 0, missing),
        edges=tuple(cut),
    )


@dataclass(frozen=True)
class Drift:
    """How far a column is from training. ``bins``: name, share then and share now of each."""

    column: str
    psi: float
    distance: float
    chance: float
    rows: int
    bins: tuple[tuple[str, float, float], ...]

    def is_past(self, threshold: float) -> bool:
        return self.psi > max(threshold, self.chance)


def compare(column: Mapping[str, Any], rows: int, values: Iterable[Any]) -> Drift | None:
    """How far ``values`` are from a profiled column of a table of ``rows``; None where there is
    nothing to compare, or too few of either."""
    bins = bins_of(column, rows)
    if bins is None:
        return None
    seen = [0] * len(bins.names)
    for value in values:
        seen[bins.place(value)] += 1
    trained, now = sum(bins.counts), sum(seen)
    if min(trained, now) < LEAST_ROWS:
        return None
    p, q = shares(bins.counts), shares(seen)
    raw = ([one / trained for one in bins.counts], [one / now for one in seen])
    return Drift(
        str(column["name"]),
        psi(p, q),
        jensen_shannon(*raw),
        by_chance(len(bins.names), trained, now),
        now,
        tuple(zip(bins.names, *raw, strict=True)),
    )
