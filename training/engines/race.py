"""The race that estimator engines run: a baseline, a zoo in our order, tuning, blends.

An engine gives the zoo (which models, their defaults and search spaces); this gives the order, the
folds, the metric and the clock. Per zoo entry a fork (apart.py) fits the model on all training rows
and sends the candidate at once; then it cross-validates it inside the training rows, which decides
what is tuned and how blends are weighted. Held-out targets are not here to be looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import apart, estimators, scoring
from .base import Candidate, Data, Predictions, Problem, Run
from .estimators import Recipe
from .search import Range, Search, Trial
from .tables import Array

RESERVE_S = 0.25  # kept back at the end for writing the last candidate
FIRST = 2  # so many entries may take most of the time: of a large table nothing else may come out
ZOO_SHARE = 0.5  # of the budget: other entries start only before it is used, then comes tuning
FAMILIES_TUNED = 3
TRIALS = 30  # per family and generation; generations go on while they find something better
GENERATIONS = 5
GENERATION_SHARE = 0.3  # of the time left: so what is found shows before everything is searched
FEW_ROWS = 2_500  # below: 5 inner folds
SOME_ROWS = 15_000  # below: 3 inner folds; from here on one part of the rows is enough
MOST_INNER_ROWS = 20_000


@dataclass(frozen=True)
class Entry:
    """One model of the zoo. ``member`` is a recipe member (see estimators.py)."""

    id: str
    name: str
    family: str
    member: Mapping[str, Any]
    space: Mapping[str, Range] = field(default_factory=dict)
    most_rows: int = 10_000_000  # with more training rows it takes too long to be of use


@dataclass
class Known:
    """What is known of a fitted model from inside the training rows."""

    entry: Entry
    candidate: Candidate
    scores: Array  # out-of-fold, one row per training row; nan where never predicted
    score: float
    inner_s: float


class Race:
    """State of one engine's race. ``prefix`` starts every key."""

    def __init__(self, prefix: str, problem: Problem, data: Data, run: Run) -> None:
        self.prefix, self.problem, self.data, self.run = prefix, problem, data, run
        self.started = time.monotonic()
        self.budget_s = max(run.remaining_s(), 0.1)
        self.inner = data.folds if data.folds is not None else inner_folds(problem, data.y)
        self.known: list[Known] = []
        self.random = np.random.default_rng(problem.seed)
        self._blended: set[str] = set()
        self._slow: set[str] = set()

    def go(self, zoo: Callable[[], Sequence[Entry]]) -> Iterator[Candidate]:
        """Everything, in order. ``zoo`` is called when the baseline is out: it takes a while."""
        yield from self.baseline()
        if self.run.pulse():
            return
        entries = [entry for entry in zoo() if len(self.data.y) <= entry.most_rows]
        try:
            for place, entry in enumerate(entries):
                used = time.monotonic() - self.started
                if place >= FIRST and used > ZOO_SHARE * self.budget_s:
                    break
                yield from self.attempt(entry, share=0.7 if place < FIRST else 0.3)
            yield from self.blend("blend", "Blend")
            yield from self.tune()
            yield from self.blend("blend-tuned", "Blend of tuned models")
        except (apart.Stopped, OutOfTime):
            return

    # One model

    def baseline(self) -> Iterator[Candidate]:
        """A model that looks at no column. Fitted right here: it needs no native threads."""
        key = f"{self.prefix}:baseline"
        if key in self.run.done:
            return
        if self.problem.is_classification:
            spec = {"class": "sklearn.dummy.DummyClassifier", "params": {"strategy": "prior"}}
        else:
            median = self.problem.metric in ("mae", "median_ae", "mape")
            strategy = "median" if median else "mean"
            spec = {"class": "sklearn.dummy.DummyRegressor", "params": {"strategy": strategy}}
        entry = Entry("baseline", "Baseline", "baseline", {"style": "nothing", "estimator": spec})
        message = next(self._work(key, entry, recipe_of(entry)))
        yield self._candidate(key, entry.name, entry, recipe_of(entry), message)

    def attempt(
        self,
        entry: Entry,
        suffix: str = "",
        name: str = "",
        found: Trial | None = None,
        share: float = 1.0,
    ) -> Iterator[Candidate]:
        """Fit an entry (with the parameters of ``found``, if given) and yield its candidate.

        ``share`` is how much of the time left it may take, inner scores included.
        Raises Stopped or OutOfTime when the race is over; any other failure is a notice.
        """
        key = f"{self.prefix}:{entry.id}{suffix}"
        if key in self.run.done:
            return
        name = name or entry.name
        recipe = found.recipe if found else recipe_of(entry)
        self.run.working_on(name)
        left = self._left()
        allowed = max(left * share, min(left, 5.0))
        began = time.monotonic()
        candidate: Candidate | None = None
        try:
            for message in apart.stream(
                lambda: self._work(key, entry, recipe, found.scores if found else None),
                deadline=began + allowed,
                pulse=self.run.pulse,
            ):
                if candidate is None:
                    candidate = self._candidate(key, name, entry, recipe, message)
                    inner_from = time.monotonic()
                    yield candidate
                    if found is not None:
                        self._learn(entry, candidate, found.scores, found.seconds)
                    elif self.data.folds is not None:
                        self._learn(entry, candidate, message["scores"], message["inner_s"])
                else:
                    self._learn(entry, candidate, message, time.monotonic() - inner_from)
        except apart.Overrun:
            self._slow.add(entry.id)
            if candidate is None and self._over():
                raise OutOfTime from None
            if candidate is None:
                self.run.notice(
                    f"{name} was stopped after {time.monotonic() - began:.0f} s: it did not finish "
                    "within its share of the time budget.",
                    model=key,
                )
        except apart.Failed as error:
            if candidate is None:
                self.run.notice(f"{name} could not be fitted: {error}", model=key)

    def _work(
        self, key: str, entry: Entry, recipe: Recipe, scores: Array | None = None
    ) -> Iterator[Any]:
        """In the fork: first the candidate's facts, then its scores inside the training rows.

        ``scores`` are those, if they are known already. With folds they are the candidate's own
        out-of-fold predictions and so come first.
        """
        problem, data = self.problem, self.data
        folder = self.run.folder / key.replace(":", "-")
        began = time.monotonic()
        model = estimators.fit_recipe(recipe, problem, data, folder)
        fit_s = time.monotonic() - began
        model.threads = problem.threads
        inner_s = 0.0
        out_of_fold: Predictions | None = None
        if data.folds is not None:
            began = time.monotonic()
            scores = cross_scores(recipe, problem, data, data.folds) if scores is None else scores
            inner_s = time.monotonic() - began
            out_of_fold = estimators.predictions_of(scores, problem)
        held = estimators.predictions_of(model.scores(data.held), problem)
        yield {
            "folder": folder,
            "fit_s": fit_s,
            "held": held,
            "scores": scores,
            "inner_s": inner_s,
            "out_of_fold": out_of_fold,
            "predict_ms_row": one_row_ms(model, data),
        }
        if scores is None:
            yield cross_scores(recipe, problem, data, self.inner)

    def _candidate(
        self, key: str, name: str, entry: Entry, recipe: Recipe, message: Mapping[str, Any]
    ) -> Candidate:
        return Candidate(
            key=key,
            name=name,
            family=entry.family,
            folder=message["folder"],
            recipe=recipe,
            held=message["held"],
            out_of_fold=message["out_of_fold"],
            params=shown_params(recipe),
            fit_s=message["fit_s"],
            predict_ms_row=message["predict_ms_row"],
            train_rows=len(self.data.y),
            packages=estimators.packages_of(recipe),
        )

    def _learn(self, entry: Entry, candidate: Candidate, scores: Array, inner_s: float) -> None:
        self.known.append(Known(entry, candidate, scores, self._score(scores), inner_s))

    def _score(self, scores: Array) -> float:
        seen = self.inner > 0
        return scoring.score(self.problem, self.data.y[seen], scores[seen])

    # Tuning

    def tune(self) -> Iterator[Candidate]:
        """Search around the best few families, a generation at a time, while it finds something."""
        ranked = sorted(self.known, key=lambda known: -known.score)
        ranked = [k for k in ranked if k.entry.space and k.score > -np.inf][:FAMILIES_TUNED]
        searches = [
            (k.entry, Search(k.entry.space, k.score, trial_s=k.inner_s, full_s=k.candidate.fit_s))
            for k in ranked
            if k.entry.id not in self._slow
        ]
        for generation in range(GENERATIONS):
            better = False
            until = self._left() * (1 - GENERATION_SHARE)
            for round_ in range(TRIALS):
                if self._left() < until and any(search.found for _, search in searches):
                    break
                for entry, search in searches:
                    if self._time_for(search, [search for _, search in searches]):
                        number = generation * TRIALS + round_ + 1
                        self.run.working_on(f"Tuning {entry.name} ({number})")
                        self._trial(entry, search)
            for entry, search in searches:
                if search.found is None:
                    continue
                better = True
                found, search.found = search.found, None
                nth = "" if generation == 0 else f" {generation + 1}"
                suffix = f"-tuned{nth.replace(' ', '-')}"
                yield from self.attempt(entry, suffix, f"{entry.name}, tuned{nth}", found)
            if not better:
                return

    def _time_for(self, search: Search, searches: Sequence[Search]) -> bool:
        """Whether another trial leaves time to fit what all searches have found on all rows."""
        fits = sum(s.full_s for s in searches if s.found is not None or s is search)
        return self._left() > 1.3 * search.trial_s + 1.5 * fits + 0.05 * self.budget_s

    def _trial(self, entry: Entry, search: Search) -> None:
        params = search.propose(self.random)
        if params is None:
            return
        member = with_params(entry.member, params)
        recipe: Recipe = {"members": [member | {"name": entry.id}]}
        began = time.monotonic()
        try:
            for scores in apart.stream(
                lambda: iter([cross_scores(recipe, self.problem, self.data, self.inner)]),
                deadline=began + min(self._left(), 1.0 + 4 * search.trial_s),
                pulse=self.run.pulse,
            ):
                seconds = time.monotonic() - began
                search.add(Trial(params, recipe, scores, self._score(scores), seconds))
        except apart.Overrun:
            if self._over():
                raise OutOfTime from None
        except apart.Failed:
            pass  # a combination that does not go together; the search goes on

    # Blending

    def blend(self, id: str, name: str) -> Iterator[Candidate]:
        """Weigh what is known by greedy selection. Needs no fit, only the stored predictions."""
        key = f"{self.prefix}:{id}"
        usable = sorted((k for k in self.known if k.score > -np.inf), key=lambda k: -k.score)[:12]
        if len(usable) < 2 or key in self.run.done or self.run.pulse():
            return
        self.run.working_on(name)
        began = time.monotonic()
        try:
            seen = self.inner > 0
            weights, _ = scoring.blend_weights(
                self.problem, self.data.y[seen], [k.scores[seen] for k in usable]
            )
            used = [(k, w) for k, w in zip(usable, weights, strict=True) if w > 0]
            mark = repr([(k.candidate.key, w) for k, w in used])
            if len(used) < 2 or mark in self._blended:
                return
            self._blended.add(mark)
            candidate = self._joined(key, name, used, began)
        except Exception as error:
            self.run.notice(f"{name} was skipped: {error}", model=key)
            return
        yield candidate

    def _joined(
        self, key: str, name: str, used: Sequence[tuple[Known, float]], began: float
    ) -> Candidate:
        folder = self.run.folder / key.replace(":", "-")
        candidates = [known.candidate for known, _ in used]
        weights = [weight for _, weight in used]
        recipe = estimators.join([c.folder for c in candidates], weights, folder)
        folded = self.data.folds is not None
        return Candidate(
            key=key,
            name=name,
            family="blend",
            folder=folder,
            recipe=recipe,
            held=self._mean([c.held for c in candidates], weights),
            out_of_fold=self._mean([c.out_of_fold for c in candidates], weights)
            if folded
            else None,
            params={
                "weights": {c.name: round(w, 4) for c, w in zip(candidates, weights, strict=True)}
            },
            fit_s=time.monotonic() - began,
            predict_ms_row=round(sum(c.predict_ms_row for c in candidates), 3),
            train_rows=len(self.data.y),
            packages=sorted({p for c in candidates for p in c.packages}),
        )

    def _mean(self, parts: Sequence[Predictions | None], weights: Sequence[float]) -> Predictions:
        total: Any = 0.0
        for part, weight in zip(parts, weights, strict=True):
            assert part is not None
            scores = part.values if part.probabilities is None else part.probabilities
            total = total + weight * scores
        return estimators.predictions_of(total, self.problem)

    # The clock

    def _left(self) -> float:
        return max(0.0, self.run.remaining_s() - RESERVE_S)

    def _over(self) -> bool:
        return self._left() <= 0.05


class OutOfTime(Exception):
    """The budget is used up."""


# Recipes and folds


def recipe_of(entry: Entry) -> Recipe:
    return {"members": [dict(entry.member) | {"name": entry.id}]}


def with_params(member: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The member with other parameters of its estimator."""
    estimator = member["estimator"]
    plain = {name: estimators.plain(value) for name, value in params.items()}
    return dict(member) | {"estimator": estimator | {"params": estimator["params"] | plain}}


def shown_params(recipe: Recipe) -> dict[str, Any]:
    """Parameters for people to read: what differs from the library's defaults."""
    params = dict(recipe["members"][0]["estimator"]["params"])
    for name in ("random_state", "verbose"):
        params.pop(name, None)
    return params


def inner_folds(problem: Problem, y: Array) -> Array:
    """Folds 1..k inside the training rows, stratified; 0 marks rows that only ever train."""
    n = len(y)
    random = np.random.default_rng(problem.seed + 1)
    order = random.permutation(n)
    if problem.is_classification:
        order = order[np.argsort(y[order], kind="stable")]
    folds = np.zeros(n, dtype=np.int64)
    if n < SOME_ROWS:
        k = 5 if n < FEW_ROWS else 3
        folds[order] = np.arange(n) % k + 1
    else:
        step = max(5, n // MOST_INNER_ROWS)
        folds[order[::step]] = 1
    return folds


def cross_scores(recipe: Recipe, problem: Problem, data: Data, folds: Array) -> Array:
    """Out-of-fold probabilities or values per training row; nan where the fold is 0."""
    shape = (len(data.y), problem.n_classes) if problem.is_classification else (len(data.y),)
    out = np.full(shape, np.nan)
    for fold in range(1, int(folds.max()) + 1):
        away = folds == fold
        rest = data.train.take(~away)
        members = [
            estimators.fit_member(member, problem, rest, data.y[~away])
            for member in recipe["members"]
        ]
        model = estimators.EstimatorModel(members, problem.n_classes)
        model.threads = problem.threads
        out[away] = model.scores(data.train.take(away))
    return out


def one_row_ms(model: estimators.EstimatorModel, data: Data) -> float:
    """Median milliseconds to predict one prepared row on one thread."""
    source = data.held if data.held.rows else data.train
    row = source.take(np.array([0]))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        model.scores(row)
        times.append(time.perf_counter() - began)
        if sum(times) > 0.3:
            break
    return round(float(np.median(times)) * 1000, 3)
