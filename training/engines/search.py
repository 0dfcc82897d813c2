"""Searching a model's parameters: spans to draw from, trials, and what to try next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .tables import Array


@dataclass(frozen=True)
class Range:
    """One parameter's search space: ``values`` to choose from, or a span of numbers."""

    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    values: tuple[Any, ...] = ()

    def draw(self, random: np.random.Generator) -> Any:
        if self.values:
            return self.values[int(random.integers(len(self.values)))]
        return self._at(random.uniform())

    def near(self, value: Any, random: np.random.Generator) -> Any:
        """A value close to ``value`` (of a choice: mostly itself)."""
        if self.values:
            return value if random.uniform() < 0.7 else self.draw(random)
        low, high = self._ends()
        at = (np.log(max(value, self.low)) if self.log else value) - low
        place = at / (high - low) + random.normal(0, 0.15) if high > low else 0.0
        return self._at(float(np.clip(place, 0.0, 1.0)))

    def _ends(self) -> tuple[float, float]:
        return (np.log(self.low), np.log(self.high)) if self.log else (self.low, self.high)

    def _at(self, place: float) -> Any:
        low, high = self._ends()
        value = low + place * (high - low)
        number = float(np.exp(value)) if self.log else float(value)
        return round(number) if self.whole else float(f"{number:.5g}")


@dataclass
class Trial:
    """One set of parameters, cross-validated inside the training rows."""

    params: Mapping[str, Any]
    recipe: Mapping[str, Any]
    scores: Array
    score: float
    seconds: float


class Search:
    """Random search first, then steps around the best: simple, and good with few trials.

    ``best`` is the score to beat. ``found`` is a trial that did, until somebody takes it. A trial
    takes about ``trial_s``, a fit on all training rows about ``full_s``.
    """

    def __init__(
        self, space: Mapping[str, Range], best: float, *, trial_s: float, full_s: float
    ) -> None:
        self.space = space
        self.best = best
        self.found: Trial | None = None
        self.trials: list[Trial] = []
        self.trial_s = max(trial_s, 0.01)
        self.full_s = max(full_s, 0.01)
        self._tried: set[str] = set()
        self._ratio = self.full_s / self.trial_s

    def propose(self, random: np.random.Generator) -> dict[str, Any] | None:
        """Parameters to try next; None when those that came up were tried before."""
        params = self._draw(random)
        text = json.dumps(params, sort_keys=True, default=str)
        if text in self._tried:
            return None
        self._tried.add(text)
        return params

    def _draw(self, random: np.random.Generator) -> dict[str, Any]:
        space = self.space
        good = sorted(self.trials, key=lambda trial: -trial.score)[:4]
        if len(self.trials) < 8 or random.uniform() < 0.25:
            return {name: range_.draw(random) for name, range_ in space.items()}
        base = good[int(random.integers(len(good)))].params
        return {
            name: range_.near(base[name], random) if random.uniform() < 0.6 else base[name]
            for name, range_ in space.items()
        }

    def add(self, trial: Trial) -> None:
        """Take note of a trial's outcome."""
        self.trials.append(trial)
        self.trial_s = 0.7 * self.trial_s + 0.3 * trial.seconds
        if trial.score > self.best + 1e-9:
            self.best, self.found = trial.score, trial
            self.full_s = max(0.01, self._ratio * trial.seconds)
