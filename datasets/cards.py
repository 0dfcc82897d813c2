"""A column's statistics made ready for a card on the data page. Pure: plain values in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

SHOWN_VALUES = 4
MANY_MISSING = 0.3
BARS = 24


@dataclass(frozen=True, slots=True)
class Share:
    value: str
    share: float  # of all rows, 0 to 1


@dataclass(frozen=True, slots=True)
class Card:
    """What a card shows: either bars (``counts``, from ``low`` to ``high``) or the top values."""

    name: str
    dtype: str
    role: str
    distinct: int
    missing: int
    missing_share: float
    counts: list[float]
    low: str
    high: str
    mean: str
    bins: list[tuple[str, str, int]]  # the bars as a table: from, to, rows
    picture: str  # what the bars show, in words
    top: list[Share]
    warnings: list[str]
    pictures: list[str]  # small ones, as data: addresses
    sizes: str  # of pictures, in words
    compared: bool = False  # whether the page of associations has it


def number(value: Any) -> str:
    """A number in at most four significant digits, without needless zeros."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e6):
        # A year is a number like any other: below ten thousand no comma.
        return f"{int(value):,}" if abs(value) >= 10_000 else str(int(value))
    text = f"{value:.4g}"
    if "e" in text or abs(value) < 10_000:
        return text
    return f"{float(text):,.0f}"


def moment(value: Any) -> str:
    """Epoch seconds or an ISO text as a date."""
    if isinstance(value, str):
        return value[:10]
    if isinstance(value, int | float):
        return f"{datetime.fromtimestamp(value, UTC):%Y-%m-%d}"
    return ""


def fewer_bars(counts: Sequence[float], most: int = BARS) -> list[float]:
    """The same histogram with at most ``most`` bars: neighbours are added up."""
    step = -(-len(counts) // most) or 1
    return [sum(counts[i : i + step]) for i in range(0, len(counts), step)]


def shown(value: Any) -> str:
    if value is None:
        return "(missing)"
    if value is True or value is False:
        return str(value).lower()
    return str(value) if value != "" else "(empty text)"


def _sizes(column: Mapping[str, Any]) -> str:
    wide, high = column.get("width"), column.get("height")
    if not wide or not high:
        return ""
    least, most = (f"{number(wide[end])} × {number(high[end])}" for end in ("min", "max"))
    return f"{least} pixels" if least == most else f"{least} to {most} pixels"


def card(
    column: Mapping[str, Any], rows: int, associations: Mapping[str, Any] | None = None
) -> Card:
    """``column`` is one entry of DatasetVersion.columns; ``rows`` counts the version's rows."""
    role, name = str(column.get("role", "")), str(column["name"])
    missing, distinct = (
        int(column.get("missing") or 0),
        int(column.get("distinct") or 0),
    )
    share = missing / rows if rows else 0.0
    bars = (column.get("histogram") or {}).get("counts") or []
    dated = role == "datetime" or column.get("dtype") in {"date", "datetime"}
    drawn = bool(bars) and role in {"numeric", "datetime", "identifier"} and distinct > 1
    edges = (column.get("histogram") or {}).get("edges") or []
    told = moment if dated else "{:.6g}".format
    low = moment(column.get("min")) if dated else number(column.get("min"))
    high = moment(column.get("max")) if dated else number(column.get("max"))
    warnings = []
    if role == "constant":
        warnings.append("one value only: left out of trainings")
    if role == "identifier":
        warnings.append("looks like an identifier: left out of trainings")
    if share > MANY_MISSING:
        warnings.append("much is missing")
    return Card(
        name=name,
        dtype=str(column.get("dtype", "")),
        role=role,
        distinct=distinct,
        missing=missing,
        missing_share=share,
        counts=fewer_bars([float(n) for n in bars]) if drawn else [],
        bins=[
            (told(low), told(high), int(rows))
            for (low, high), rows in zip(pairwise(edges), bars, strict=False)
        ]
        if drawn
        else [],
        low=low if drawn else "",
        high=high if drawn else "",
        mean=number(column.get("mean")) if drawn and not dated else "",
        picture=f"Distribution of {name} from {low} to {high}" if drawn else "",
        top=[]
        if drawn
        else [
            Share(shown(one.get("value")), (one.get("count") or 0) / rows if rows else 0.0)
            for one in (column.get("top") or [])[:SHOWN_VALUES]
        ],
        warnings=warnings,
        pictures=list(column.get("samples") or ()),
        sizes=_sizes(column),
        compared=bool(associations) and name in (associations or {}).get("columns", ()),
    )
