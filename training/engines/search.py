"""Searching a model's parameters: spaces as plain values, Optuna to say what to try next."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .tables import Array

RANDOM_TRIALS = 8  # before the sampler begins to learn from what came out


@dataclass(frozen=True)
class Range:
    """One parameter's search space: ``values`` to choose from, or a span of numbers."""

    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    values: tuple[Any, ...] = ()

    def distribution(self) -> Any:
        """As Optuna has it; of ``values`` it draws the place, since they may be of any type."""
        from optuna import distributions

        if self.values:
            return distributions.CategoricalDistribution(tuple(range(len(self.values))))
        if self.whole:
            return distributions.IntDistribution(round(self.low), round(self.high), self.log)
        return distributions.FloatDistribution(self.low, self.high, self.log)

    def value(self, drawn: Any) -> Any:
        """The parameter's value for what the distribution gave, floats to five digits."""
        if self.values:
            return self.values[drawn]
        if self.whole:
            return int(drawn)
        return min(max(float(f"{drawn:.5g}"), self.low), self.high)


@dataclass
class Trial:
    """One set of parameters, cross-validated inside the training rows."""

    params: Mapping[str, Any]
    recipe: Mapping[str, Any]
    scores: Array
    score: float
    seconds: float


class Search:
    """Tree-structured Parzen estimators by Optuna, after a few trials at random.

    Bergstra et al., "Algorithms for hyper-parameter optimization", NeurIPS 2011.

    ``best`` is the score to beat. ``found`` is a trial that did, until somebody takes it. A trial
    takes about ``trial_s``, a fit on all training rows about ``full_s``.
    """

    def __init__(
        self,
        space: Mapping[str, Range],
        best: float,
        *,
        trial_s: float,
        full_s: float,
        seed: int = 0,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space = space
        self.best = best
        self.found: Trial | None = None
        self.trial_s = max(trial_s, 0.01)
        self.full_s = max(full_s, 0.01)
        self._ratio = self.full_s / self.trial_s
        self._tried: set[str] = set()
        self._distributions = {name: range_.distribution() for name, range_ in space.items()}
        sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed % 2**32)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._failed = optuna.trial.TrialState.FAIL
        self._asked: Any = None

    def propose(self) -> dict[str, Any] | None:
        """Parameters to try next; None when those that came up were tried before.

        Who has an answer gives it to :meth:`add` before asking again; no answer is a failure.
        """
        self._tell(None)
        self._asked = self._study.ask(self._distributions)
        params = {name: self.space[name].value(at) for name, at in self._asked.params.items()}
        text = json.dumps(params, sort_keys=True, default=str)
        if text in self._tried:
            return None
        self._tried.add(text)
        return params

    def add(self, trial: Trial) -> None:
        """Take note of the outcome of what was proposed last."""
        self._tell(trial.score)
        self.trial_s = 0.7 * self.trial_s + 0.3 * trial.seconds
        if trial.score > self.best + 1e-9:
            self.best, self.found = trial.score, trial
            self.full_s = max(0.01, self._ratio * trial.seconds)

    def _tell(self, score: float | None) -> None:
        if self._asked is None:
            return
        asked, self._asked = self._asked, None
        if score is None or not math.isfinite(score):
            self._study.tell(asked, state=self._failed)
        else:
            self._study.tell(asked, score)
