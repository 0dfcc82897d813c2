"""From a prepared frame to the number matrix that scikit-learn's kind of estimator takes.

Three styles, because families of models want different things of the same columns:

- ``native``: gaps stay NaN, categories are codes (LightGBM and its kind read both themselves)
- ``trees``: gaps become the median with a mark beside it; few levels get a column each, many levels
  a code ordered by how common they are
- ``scaled``: as ``trees``, but numbers are standardised and rare levels share one column
  (linear models, neighbours, kernels, networks)

What is learnt from the training rows is plain JSON (:attr:`Encoding.steps`), and encoding a row is
a handful of numpy calls: no pickled transformer, no pandas. A level that was not there in training
counts as rare where rare ones share a column, and else leaves all columns 0 (as code: -1, or a
gap). A copy of this file travels in every artifact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from .frame import Categories, Frame
from .tables import Array

Style = Literal["nothing", "native", "trees", "scaled"]

FEW_LEVELS = 12  # up to so many levels, trees get a column for each
MOST_LEVELS = 50  # a scaled one-hot has at most so many columns, the rest share one
MOST_COLUMNS = 2_000  # and all one-hots together so many


@dataclass(frozen=True)
class Encoding:
    """How each feature becomes columns. ``steps`` is plain JSON, one entry per feature."""

    steps: tuple[Mapping[str, Any], ...]

    @cached_property
    def width(self) -> int:
        """Number of columns of the matrix."""
        return sum(_width(step) for step in self.steps)

    @cached_property
    def categorical(self) -> list[int]:
        """Columns that hold category codes (style ``native``)."""
        found, at = [], 0
        for step in self.steps:
            if step["as"] == "codes" and step.get("nominal"):
                found.append(at)
            at += _width(step)
        return found

    @cached_property
    def _known(self) -> list[dict[str, int]]:
        return [
            {level: code for code, level in enumerate(step.get("levels", ()))}
            for step in self.steps
        ]

    @cached_property
    def _numbers(self) -> _Numbers:
        names, at, steps = [], [], []
        place = 0
        for step in self.steps:
            if step["as"] == "number":
                names.append(step["feature"])
                at.append(place)
                steps.append(step)
            place += _width(step)
        marked = [i for i, step in enumerate(steps) if step.get("mark")]
        return _Numbers(
            names,
            np.array(at, dtype=np.intp),
            np.array([step.get("fill", np.nan) for step in steps], dtype=np.float64),
            np.array([step.get("mean", 0.0) for step in steps], dtype=np.float64),
            np.array([step.get("scale", 1.0) for step in steps], dtype=np.float64),
            np.array(marked, dtype=np.intp),
        )

    def matrix(self, frame: Frame) -> Array:
        """Rows x width, float64. ``frame`` must have every feature that the encoding knows."""
        out = np.zeros((frame.rows, self.width), dtype=np.float64)
        if self._numbers.names:
            self._put_numbers(out, frame)
        at = 0
        for step, known in zip(self.steps, self._known, strict=True):
            feature = frame.features[step["feature"]]
            if isinstance(feature, Categories):
                _put_category(out, at, step, feature, known)
            at += _width(step)
        return out

    def _put_numbers(self, out: Array, frame: Frame) -> None:
        """All numbers at once: one by one, a row of 4,000 columns takes 16 ms."""
        numbers = self._numbers
        block = np.empty((frame.rows, len(numbers.names)), dtype=np.float64)
        for place, name in enumerate(numbers.names):
            values = frame.features[name]
            assert not isinstance(values, Categories)
            block[:, place] = values
        gaps = np.isnan(block)
        if len(numbers.marked):
            out[:, numbers.at[numbers.marked] + 1] = gaps[:, numbers.marked]
        if gaps.any():
            block = np.where(gaps, numbers.fill, block)
        out[:, numbers.at] = (block - numbers.mean) / numbers.scale


class _Numbers(NamedTuple):
    """The number steps side by side; ``marked`` are positions among them, ``at`` their columns."""

    names: list[str]
    at: Array
    fill: Array
    mean: Array
    scale: Array
    marked: Array


def _width(step: Mapping[str, Any]) -> int:
    if step["as"] == "number":
        return 2 if step.get("mark") else 1
    if step["as"] == "codes":
        return 1
    return len(step["levels"]) + bool(step.get("other")) + bool(step.get("gap"))


def _put_category(
    out: Array, at: int, step: Mapping[str, Any], feature: Categories, known: Mapping[str, int]
) -> None:
    if step["as"] == "codes":
        codes = feature.codes_in(known).astype(np.float64)
        if step.get("nominal"):
            codes[codes < 0] = np.nan
        out[:, at] = codes
        return
    n_levels = len(known)
    nowhere = _width(step)
    gap = n_levels + bool(step.get("other")) if step.get("gap") else nowhere
    other = n_levels if step.get("other") else nowhere
    codes = feature.codes_in(known, unseen=other, missing=gap)
    rows = np.flatnonzero(codes < nowhere)
    out[rows, at + codes[rows]] = 1.0


def learn(frame: Frame, style: Style) -> Encoding:
    """The encoding of these training rows in a style ("nothing" has no columns)."""
    if style == "nothing":
        return Encoding(())
    steps: list[dict[str, Any]] = []
    room = MOST_COLUMNS
    for name, feature in frame.features.items():
        if isinstance(feature, Categories):
            step = _learn_levels(name, feature, style, room)
            room -= _width(step)
        else:
            step = _learn_number(name, feature, style)
        steps.append(step)
    return Encoding(tuple(steps))


def _learn_number(name: str, values: Array, style: Style) -> dict[str, Any]:
    step: dict[str, Any] = {"feature": name, "as": "number"}
    if style == "native":
        return step
    gaps = np.isnan(values)
    known = values[~gaps]
    step["fill"] = float(np.median(known)) if len(known) else 0.0
    if gaps.any():
        step["mark"] = True
    if style == "scaled":
        full = np.where(gaps, step["fill"], values)
        with np.errstate(over="ignore", invalid="ignore"):
            mean, scale = float(full.mean()), float(full.std())
        if not np.isfinite(mean + scale):  # squares of numbers past 1e154 have no room in a float
            mean, scale = 0.0, float(np.abs(full).max())
        step["mean"] = mean
        step["scale"] = scale if scale > 1e-12 * max(1.0, abs(step["mean"])) else 1.0
    return step


def _learn_levels(name: str, feature: Categories, style: Style, room: int) -> dict[str, Any]:
    counts = np.bincount(feature.codes[feature.codes >= 0], minlength=len(feature.levels))
    common = sorted(
        (code for code in range(len(counts)) if counts[code]),
        key=lambda code: (-counts[code], feature.levels[code]),
    )
    levels = [feature.levels[code] for code in common]
    has_gaps = bool((feature.codes < 0).any())
    if style == "native":
        return {"feature": name, "as": "codes", "nominal": True, "levels": levels}
    if style == "trees" and len(levels) > FEW_LEVELS:
        return {"feature": name, "as": "codes", "levels": levels}
    most = max(1, min(MOST_LEVELS, room - 2))
    least = max(2, len(feature) // 1000)
    kept = [
        level
        for level, code in zip(levels, common, strict=True)
        if counts[code] >= least or len(levels) <= 2
    ][:most]
    step: dict[str, Any] = {"feature": name, "as": "one_hot", "levels": kept}
    if len(kept) < len(levels):
        step["other"] = True
    if has_gaps:
        step["gap"] = True
    return step


def as_json(encoding: Encoding) -> list[dict[str, Any]]:
    """The steps as plain JSON; ``Encoding(tuple(steps))`` reads them."""
    return [dict(step) for step in encoding.steps]


def from_json(steps: Sequence[Mapping[str, Any]]) -> Encoding:
    return Encoding(tuple(steps))
