"""The weighted mean of an engine's own models. A copy of this file travels in its artifacts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from . import matrix
from .base import Predictions, Predictor
from .frame import Frame
from .tables import Array


class Scores(Protocol):
    """A member of a blend: scores of a table as ``prepare`` left it."""

    def scores(self, table: Any, n_classes: int, /) -> Array: ...


class Blend(Predictor):
    """The weighted mean of models that share an encoding. ``n_classes`` is 0 for regression.

    ``prepare`` makes of the encoding and a frame, once for all members, what their ``scores`` take.
    """

    def __init__(
        self,
        members: Sequence[Scores],
        weights: Array,
        encoding: matrix.Encoding,
        n_classes: int,
        prepare: Callable[[matrix.Encoding, Frame], Any],
    ) -> None:
        self.members, self.weights = list(members), weights / weights.sum()
        self.encoding, self.n_classes, self.prepare = encoding, n_classes, prepare

    def scores(self, frame: Frame) -> Array:
        if frame.rows == 0:
            return np.empty((0, self.n_classes) if self.n_classes else (0,))
        table = self.prepare(self.encoding, frame)
        total: Any = 0.0
        for member, weight in zip(self.members, self.weights, strict=True):
            total = total + weight * member.scores(table, self.n_classes)
        found: Array = total
        return found

    def predict(self, frame: Frame) -> Predictions:
        scores = self.scores(frame)
        return Predictions(scores.argmax(axis=1), scores) if self.n_classes else Predictions(scores)
