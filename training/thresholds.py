"""What a binary model does at each threshold, from its stored ROC points. Pure.

The points hold, for falling thresholds, which share of either class lies at or above; with the
number of rows of either class they give every cell of the confusion matrix. Of large tables at most
200 points are stored, so a count may then be off by what lies between two of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

USUAL = 0.5


def of(curves: Mapping[str, Any]) -> dict[str, Any] | None:
    """{"positive", "negative", "positives", "negatives", "points": [[threshold, false alarms,
    found], ...]} of a binary model that gives probabilities; None for others."""
    lines, confusion = curves.get("roc") or [], curves.get("confusion") or {}
    labels, counts = confusion.get("labels") or [], confusion.get("counts") or []
    if len(lines) != 1 or len(labels) != 2 or "threshold" not in lines[0]:
        return None
    (line,) = lines
    names = [str(label) for label in labels]
    if str(line["class"]) not in names:
        return None
    place = names.index(str(line["class"]))
    positives, negatives = sum(counts[place]), sum(counts[1 - place])
    if not positives or not negatives:
        return None
    points = [
        [threshold, false, true]
        for threshold, false, true in zip(
            line["threshold"],
            line["false_positive_rate"],
            line["true_positive_rate"],
            strict=True,
        )
    ]
    return {
        "positive": names[place],
        "negative": names[1 - place],
        "positives": positives,
        "negatives": negatives,
        "points": points,
    }


def at(told: Mapping[str, Any], threshold: float) -> dict[str, Any]:
    """Counts and figures when a probability of ``threshold`` or more is called positive."""
    found = false = 0.0
    for value, alarms, right in told["points"]:
        if value is not None and value < threshold:
            break
        found, false = right, alarms
    return _figures(told, threshold, found, false)


def _figures(
    told: Mapping[str, Any], threshold: float | None, found: float, false: float
) -> dict[str, Any]:
    tp, fp = round(found * told["positives"]), round(false * told["negatives"])
    fn, tn = told["positives"] - tp, told["negatives"] - fp
    total = told["positives"] + told["negatives"]
    precision = tp / (tp + fp) if tp + fp else None
    return {
        "threshold": threshold,
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": tn,
        "accuracy": (tp + tn) / total,
        "precision": precision,
        "recall": tp / told["positives"],
        "f1": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None,
        "named": (tp + fp) / total,
        "lift": None if precision is None else precision / (told["positives"] / total),
    }


def every(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures at each stored threshold, from the highest."""
    return [
        _figures(told, value, found, false)
        for value, false, found in told["points"]
        if value is not None
    ]


def best_f1(told: Mapping[str, Any]) -> float:
    """The threshold with the most F1."""
    found = max(every(told), key=lambda one: one["f1"] or 0.0, default={"threshold": USUAL})
    return float(found["threshold"])


def chosen(text: str) -> float:
    """A threshold out of an address; the usual one for what is none."""
    try:
        value = float(text)
    except ValueError:
        return USUAL
    return value if 0 <= value <= 1 else USUAL


def gains(curves: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per class of a classifier that gives probabilities: {"name", "share"}, and as lists the share
    of rows looked at ("looked"), of the class found in them ("found"), and the "lift"."""
    confusion = curves.get("confusion") or {}
    sizes = {
        str(label): sum(row)
        for label, row in zip(
            confusion.get("labels") or [], confusion.get("counts") or [], strict=False
        )
    }
    total = sum(sizes.values())
    told: list[dict[str, Any]] = []
    for line in curves.get("roc") or []:
        size = sizes.get(str(line["class"]), 0)
        if not 0 < size < total:
            continue
        looked, found = _looked(line, size, total)
        lift = [f / x if x else None for x, f in zip(looked, found, strict=True)]
        told.append(
            {
                "name": str(line["class"]),
                "share": size / total,
                "looked": looked,
                "found": found,
                "lift": lift,
            }
        )
    return told


def _looked(line: Mapping[str, Any], size: int, total: int) -> tuple[list[float], Sequence[float]]:
    looked = [
        (true * size + false * (total - size)) / total
        for false, true in zip(line["false_positive_rate"], line["true_positive_rate"], strict=True)
    ]
    return looked, line["true_positive_rate"]
