"""What columns have to do with each other, made ready to be shown: plain values in and out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from accounts.errors import Conflict, Invalid
from datasets.associations import CRAMER, RATIO, SPEARMAN

SHADES = 5  # in the matrix, of a value's size
WORDS = {
    SPEARMAN: gettext_lazy("Spearman’s correlation"),
    CRAMER: gettext_lazy("Cramér’s V"),
    RATIO: gettext_lazy("Correlation ratio"),
}
Found = Mapping[str, Any]


def listed(found: Found | None, column: str = "") -> dict[str, Any]:
    """For the API: the pairs by name, the strongest first, those of ``column`` alone if it is said.

    Raises Conflict where nothing was measured, Invalid for a column that was not.
    """
    if found is None:
        raise Conflict(
            "This version was read before columns were compared: upload its file as a new version.",
            code="not-measured",
        )
    names = found["columns"]
    if column and column not in names:
        sentence = f"The column {column[:100]!r} was not compared with others."
        raise Invalid(sentence, errors={"column": [sentence]})
    pairs = [
        {
            "columns": [names[a], names[b]],
            "measure": measure,
            "value": value,
            "pearson": pearson,
            "rows": rows,
        }
        for a, b, measure, value, pearson, rows in found["pairs"]
        if not column or column in (names[a], names[b])
    ]
    pairs.sort(key=lambda pair: (pair["value"] is None, -abs(pair["value"] or 0)))
    return {
        "columns": names,
        "left_out": found["left_out"],
        "rows": found["rows"],
        "pairs": pairs,
    }


def on_page(found: Found | None, wanted: str) -> dict[str, Any]:
    """What the page of associations shows: those of one column, sorted, and the matrix of all.

    ``wanted`` names the column, the last one measured if there is none of that name: targets often
    stand last.
    """
    if found is None or len(found["columns"]) < 2:
        return {"associations": None, "measured": found is not None}
    names = found["columns"]
    of = wanted if wanted in names else names[-1]
    towards = [
        {
            "name": pair["columns"][pair["columns"][0] == of],
            "measure": WORDS[pair["measure"]],
            **{key: pair[key] for key in ("value", "pearson", "rows")},
        }
        for pair in listed(found, of)["pairs"]
    ]
    drawn = [
        {"name": one["name"], "mean": one["value"], "drops": []}
        for one in towards
        if one["value"] is not None
    ]
    return {
        "measured": True,
        "associations": {
            "columns": names,
            "of": of,
            "towards": towards,
            "picture_json": json.dumps({"rows": drawn, "x": _("Association with %s") % of}),
            "text": _text(of, drawn),
            "matrix": _matrix(found),
            "rows": found["rows"],
            "left_out": found["left_out"],
        },
    }


def _text(of: str, drawn: list[dict[str, Any]]) -> str:
    if not drawn:
        return _("No column could be compared with %s: too few rows have both.") % of
    first = drawn[0]
    return _("Most closely related to %(of)s: %(name)s (%(value)s).") % {
        "of": of,
        "name": first["name"],
        "value": f"{first['mean']:.2f}",
    }


def _matrix(found: Found) -> list[dict[str, Any]]:
    """A row for each column: cells of ``text``, ``shade`` (a CSS class) and ``title``."""
    names = found["columns"]
    told = {}
    for a, b, measure, value, _pearson, rows in found["pairs"]:
        text = "–" if value is None else f"{value:.2f}"
        title = f"{names[a]} · {names[b]}: {WORDS[measure]} {text} (n = {rows:,})"
        cell = {"text": text, "shade": shade(value), "title": title}
        told[a, b] = told[b, a] = cell
    return [
        {"name": name, "cells": [told.get((a, b)) for b in range(len(names))]}
        for a, name in enumerate(names)
    ]


def shade(value: float | None) -> str:
    """The class of a cell: "up-3" or "down-3", by the size of a value from -1 to 1."""
    step = 0 if value is None else min(SHADES, int(abs(value) * (SHADES + 1)))
    return f"{'up' if (value or 0) > 0 else 'down'}-{step}" if step else ""
