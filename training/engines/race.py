"""The race that estimator engines run: a baseline, a zoo in our order, tuning, blends.

An engine gives the zoo (which models, their defaults and search spaces); this gives the order, the
folds, the metric and the clock. Per zoo entry a fork (apart.py) fits the model on all training rows
and sends the candidate at once; then it cross-validates it inside the training rows, which decides
what is tuned and how blends are weighted. Held-out targets are not here to be looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from . import apart, estimators, folding, scoring
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
# Of a large table, the inner part is kept apart from all fits, so that one fit gives both the
# candidate and its scores inside the training rows; the refit of the winner has these rows too.
# A probe on so many rows says before how long that takes and is what tuning is done with.
PROBE_ROWS = 30_000
LARGE = 2 * PROBE_ROWS  # training rows
LEFTOVER_SHARE = 0.05  # of the budget: with less left, no entry that had been left over starts


@dataclass(frozen=True)
class Entry:
    """One model of the zoo. ``member`` is a recipe member (see estimators.py)."""

    id: str
    name: str
    family: str
    member: Mapping[str, Any]
    space: Mapping[str, Range] = field(default_factory=dict)
    most_rows: int = 10_000_000  # with more training rows it takes too long to be of use
    fit_rows: int = 10_000_000  # it learns from so many at most, drawn from all


@dataclass
class Known:
    """What is known of a model from inside the training rows.

    ``fit_s`` is what a fit on all rows takes, of a large table with its predictions. ``candidate``
    is None for a model of an earlier attempt. Its files lie in the platform's store,
    and a child, which has no network, gets no more than its inputs: so it can't be a part of a
    blend. But its family is compared and tuned like any other.
    """

    entry: Entry
    candidate: Candidate | None
    scores: Array  # out-of-fold, one row per training row; nan where never predicted
    score: float
    inner_s: float
    fit_s: float
    probe_score: float  # what tuning compares with: of a large table, that of a fit on fewer rows


class Race:
    """State of one engine's race. ``prefix`` starts every key."""

    def __init__(self, prefix: str, problem: Problem, data: Data, run: Run) -> None:
        self.prefix, self.problem, self.data, self.run = prefix, problem, data, run
        self.started = time.monotonic()
        self.budget_s = max(run.remaining_s(), 0.1)
        self.large = data.folds is None and len(data.y) > LARGE
        self.inner = inner_folds(problem, data.y, data.groups) if data.folds is None else data.folds
        self.known: list[Known] = []
        self._blended: set[str] = set()
        self._slow: set[str] = set()
        self._taken = set(run.done)  # keys

    def go(self, zoo: Callable[[], Sequence[Entry]]) -> Iterator[Candidate]:
        """Everything, in order. ``zoo`` is called when the baseline is out: it takes a while."""
        yield from self.baseline()
        if self.run.pulse():
            return
        entries = [entry for entry in zoo() if len(self.data.y) <= entry.most_rows]
        try:
            place = 0
            for place, entry in enumerate(entries):
                if place >= FIRST and self._used() > ZOO_SHARE * self.budget_s:
                    break
                yield from self.attempt(entry, share=0.7 if place < FIRST else 0.3)
            else:
                place = len(entries)
            yield from self.blend("blend", "Blend")
            for entry in entries[:place]:
                self._recall(entry)
            yield from self.tune()
            yield from self.blend("blend-tuned", "Blend of tuned models")
            for entry in entries[place:]:  # where tuning was done, or had no time, before the end
                if self.left() < LEFTOVER_SHARE * self.budget_s:
                    break
                yield from self.attempt(entry, share=0.5)
            yield from self.blend("blend-all", "Blend of all models")
        except (apart.Stopped, OutOfTime):
            return

    def one(self, entry: Entry) -> Iterator[Candidate]:
        """This entry alone, as it is, in all the time there is."""
        self.large = False  # with nothing to compare it with, it learns from all rows
        try:
            for candidate in self.attempt(replace(entry, fit_rows=len(self.data.y))):
                yield candidate
                return  # and not its scores inside the training rows
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
        recipe = recipe_of(entry)
        known = Trial({}, recipe, np.empty(0), 0.0, 0.0)  # nobody asks for the baseline's scores
        scored = self.data.folds is not None
        message = next(self._work(key, recipe, None if scored else known, np.inf))
        yield self._candidate(key, entry.name, entry, message["recipe"], message)

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
        entry = self._bounded(entry)
        asked = found.recipe if found else recipe_of(entry)
        self.run.working_on(name)
        allowed = self._allowed(share)
        began = time.monotonic()
        candidate: Candidate | None = None
        try:
            for message in apart.stream(
                lambda: self._work(key, asked, found, allowed),
                deadline=began + allowed,
                pulse=self.run.pulse,
            ):
                if candidate is None:
                    recipe = message["recipe"]
                    if found is None:  # it may have got fewer rows: so will what is tuned of it
                        entry = replace(entry, member=dropped(recipe["members"][0], "apart"))
                    candidate = self._candidate(key, name, entry, recipe, message)
                    inner_from = time.monotonic()
                    yield candidate
                    if message["scores"] is not None:
                        inner_s = found.seconds if found else message["inner_s"]
                        probe = found.score if found else message["probe_score"]
                        whole_s = message["whole_s"] if self.large else candidate.fit_s
                        self._learn(entry, candidate, message["scores"], inner_s, whole_s, probe)
                else:
                    inner_s = time.monotonic() - inner_from
                    self._learn(entry, candidate, message, inner_s, candidate.fit_s)
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

    def _allowed(self, share: float) -> float:
        left = self.left()
        return max(left * share, min(left, 5.0))

    def _bounded(self, entry: Entry) -> Entry:
        """The entry as it is fitted to this table: not on more rows than it can take."""
        if len(self.data.y) <= entry.fit_rows:
            return entry
        return replace(entry, member=dict(entry.member) | {"rows": entry.fit_rows})

    def _recall(self, entry: Entry) -> None:
        """Compare a model that an earlier attempt has delivered, so that it may be tuned."""
        if f"{self.prefix}:{entry.id}" not in self.run.done or not entry.space:
            return
        entry = self._bounded(entry)
        self.run.working_on(f"{entry.name}, once more")
        began = time.monotonic()
        allowed = self._allowed(0.2)
        try:
            for scores in apart.stream(
                lambda: iter([self._inner_scores(recipe_of(entry))]),
                deadline=began + allowed,
                pulse=self.run.pulse,
            ):
                inner_s = time.monotonic() - began
                fit_s = self._full_s(inner_s, recipe_of(entry))
                score = self._score(scores)
                self.known.append(Known(entry, None, scores, score, inner_s, fit_s, score))
        except apart.Overrun:
            self._slow.add(entry.id)
        except apart.Failed:
            pass  # it has been delivered: no more is lost than its part in the tuning

    def _work(self, key: str, recipe: Recipe, found: Trial | None, allowed: float) -> Iterator[Any]:
        """In the fork: first the candidate's facts, then its scores inside the training rows.

        With folds these are the candidate's own out-of-fold predictions, and of a large table its
        own for the rows kept apart: in both cases they are among the facts.
        """
        problem, data = self.problem, self.data
        folder = self.run.folder / key.replace(":", "-")
        scores = found.scores if found else None
        inner_s, probe_score = 0.0, None
        if self.large:
            if found is None:
                began = time.monotonic()
                probe_score = self._score(self._inner_scores(recipe))
                inner_s = time.monotonic() - began
                recipe = self._affordable(recipe, inner_s, allowed)
            else:
                recipe = self._affordable(recipe, found.seconds, allowed + found.seconds)
            away = int(np.count_nonzero(self.inner))
            recipe = {"members": [dict(m) | {"apart": away} for m in recipe["members"]]}
        fitting = began = time.monotonic()
        model = estimators.fit_recipe(recipe, problem, data, folder)
        fit_s = time.monotonic() - began
        model.threads = problem.threads
        out_of_fold: Predictions | None = None
        if data.folds is not None:
            began = time.monotonic()
            scores = self._inner_scores(recipe) if scores is None else scores
            inner_s = time.monotonic() - began
            out_of_fold = estimators.predictions_of(scores, problem)
        if self.large:
            seen = np.flatnonzero(self.inner)
            scores = nowhere(problem, len(data.y))
            scores[seen] = model.scores(data.train.take(seen))
        held = estimators.predictions_of(model.scores(data.held), problem)
        yield {
            "recipe": recipe,
            "folder": folder,
            "fit_s": fit_s,
            "held": held,
            "scores": scores,
            "inner_s": inner_s,
            "probe_score": probe_score,
            "whole_s": time.monotonic() - fitting,
            "out_of_fold": out_of_fold,
            "predict_ms_row": one_row_ms(model, data),
        }
        if scores is None:
            yield self._inner_scores(recipe)

    def _inner_scores(self, recipe: Recipe) -> Array:
        most = PROBE_ROWS if self.large else None
        return cross_scores(recipe, self.problem, self.data, self.inner, most)

    def _full_s(self, inner_s: float, recipe: Recipe) -> float:
        """About how long a fit on all rows takes, when the scores inside them took ``inner_s``."""
        rows = len(self.data.y)
        if not self.large:
            return inner_s / max(1, int(self.inner.max()))
        return 1.2 * inner_s * min(rows, rows_of(recipe, rows)) / PROBE_ROWS

    def _affordable(self, recipe: Recipe, inner_s: float, allowed: float) -> Recipe:
        """The recipe, on fewer rows if a fit on all of them would take longer than it may."""
        rows = rows_of(recipe, len(self.data.y))
        if rows <= PROBE_ROWS:
            return recipe
        share = 0.8 * (allowed - inner_s) / max(self._full_s(inner_s, recipe), 0.01)
        if share >= 1:
            return recipe
        fewer = max(PROBE_ROWS, int(rows * share) // 1_000 * 1_000)
        return {"members": [dict(member) | {"rows": fewer} for member in recipe["members"]]}

    def _candidate(
        self, key: str, name: str, entry: Entry, recipe: Recipe, message: Mapping[str, Any]
    ) -> Candidate:
        self._taken.add(key)
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
            train_rows=rows_of(recipe, len(self.data.y)),
            packages=estimators.packages_of(recipe),
        )

    def _learn(
        self,
        entry: Entry,
        candidate: Candidate,
        scores: Array,
        inner_s: float,
        fit_s: float,
        probe_score: float | None = None,
    ) -> None:
        score = self._score(scores)
        probe = score if probe_score is None else probe_score
        self.known.append(Known(entry, candidate, scores, score, inner_s, fit_s, probe))

    def _score(self, scores: Array) -> float:
        seen = self.inner > 0
        return scoring.score(self.problem, self.data.y[seen], scores[seen])

    # Tuning

    def tune(self) -> Iterator[Candidate]:
        """Search around the best few families, a generation at a time, while it finds something."""
        ranked = sorted(self.known, key=lambda known: -known.score)
        ranked = [k for k in ranked if k.entry.space and k.score > -np.inf]
        ranked = ranked[: 1 if self.large else FAMILIES_TUNED]
        searches = [
            (k.entry, self._search(k, number))
            for number, k in enumerate(ranked)
            if k.entry.id not in self._slow
        ]
        for generation in range(GENERATIONS):
            better = False
            until = self.left() * (1 - GENERATION_SHARE)
            for round_ in range(TRIALS):
                if self.left() < until and any(search.found for _, search in searches):
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
                suffix, nth = self.free(f"{entry.id}-tuned", generation)
                suffix = suffix.removeprefix(entry.id)
                yield from self.attempt(entry, suffix, f"{entry.name}, tuned{nth}", found)
            if not better:
                return

    def _search(self, known: Known, number: int) -> Search:
        # Another attempt goes on elsewhere than where the first one began.
        seed = self.problem.seed + 1_000 * number + len(self.run.done)
        times = {"trial_s": known.inner_s, "full_s": known.fit_s}
        return Search(known.entry.space, known.probe_score, **times, seed=seed)

    def free(self, id: str, number: int = 0) -> tuple[str, str]:
        """The first id from ``number`` on, counted from 0, that no attempt has used.

        And what stands behind the model's name: nothing for the first, " 2" for the second.
        """
        while True:
            ending = f"-{number + 1}" if number else ""
            if f"{self.prefix}:{id}{ending}" not in self._taken:
                return id + ending, ending.replace("-", " ")
            number += 1

    def _time_for(self, search: Search, searches: Sequence[Search]) -> bool:
        """Whether another trial leaves time to fit what all searches have found on all rows."""
        fits = sum(s.full_s for s in searches if s.found is not None or s is search)
        return self.left() > 1.3 * search.trial_s + 1.5 * fits + 0.05 * self.budget_s

    def _trial(self, entry: Entry, search: Search) -> None:
        params = search.propose()
        if params is None:
            return
        member = with_params(entry.member, params)
        recipe: Recipe = {"members": [member | {"name": entry.id}]}
        began = time.monotonic()
        try:
            for scores in apart.stream(
                lambda: iter([self._inner_scores(recipe)]),
                deadline=began + min(self.left(), 1.0 + 4 * search.trial_s),
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
        free, nth = self.free(id)
        key, name = f"{self.prefix}:{free}", f"{name}{nth}"
        usable = [k for k in self.known if k.score > -np.inf and k.candidate is not None]
        usable = sorted(usable, key=lambda k: -k.score)[:12]
        if len(usable) < 2 or self.run.pulse():
            return
        self.run.working_on(name)
        began = time.monotonic()
        try:
            seen = self.inner > 0
            weights, _ = scoring.blend_weights(
                self.problem, self.data.y[seen], [k.scores[seen] for k in usable]
            )
            used = [(k, w) for k, w in zip(usable, weights, strict=True) if w > 0]
            mark = repr([(k.candidate.key, w) for k, w in used if k.candidate])
            if len(used) < 2 or mark in self._blended:
                return
            self._blended.add(mark)
            candidate = self._joined(key, name, usable, weights, began)
        except Exception as error:
            self.run.notice(f"{name} was skipped: {error}", model=key)
            return
        yield candidate

    def _joined(
        self,
        key: str,
        name: str,
        usable: Sequence[Known],
        shares: Sequence[float],
        began: float,
    ) -> Candidate:
        folder = self.run.folder / key.replace(":", "-")
        known = [one.candidate for one in usable if one.candidate is not None]
        held, out_of_fold = scoring.blended(self.problem, self.data, known, shares)
        candidates = [c for c, share in zip(known, shares, strict=True) if share > 0]
        weights = [share for share in shares if share > 0]
        recipe = estimators.join([c.folder for c in candidates], weights, folder)
        self._taken.add(key)
        return Candidate(
            key=key,
            name=name,
            family="blend",
            folder=folder,
            recipe=recipe,
            held=held,
            out_of_fold=out_of_fold,
            params={
                "weights": {c.name: round(w, 4) for c, w in zip(candidates, weights, strict=True)}
            },
            fit_s=time.monotonic() - began,
            predict_ms_row=round(sum(c.predict_ms_row for c in candidates), 3),
            train_rows=len(self.data.y),
            packages=sorted({p for c in candidates for p in c.packages}),
        )

    # The clock

    def _used(self) -> float:
        return time.monotonic() - self.started

    def left(self) -> float:
        return max(0.0, self.run.remaining_s() - RESERVE_S)

    def _over(self) -> bool:
        return self.left() <= 0.05


class OutOfTime(Exception):
    """The budget is used up."""


# Recipes and folds


def recipe_of(entry: Entry) -> Recipe:
    return {"members": [dict(entry.member) | {"name": entry.id}]}


def rows_of(recipe: Recipe, rows: int) -> int:
    """How many of so many training rows a recipe learns from."""
    return max(
        min(rows - member.get("apart", 0), member.get("rows", rows)) for member in recipe["members"]
    )


def dropped(member: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in member.items() if key != name}


def nowhere(problem: Problem, rows: int) -> Array:
    """Scores of no row yet: nan."""
    shape = (rows, problem.n_classes) if problem.is_classification else (rows,)
    return np.full(shape, np.nan)


def with_params(member: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The member with other parameters of its estimator, or of the one that this one calibrates."""
    plain = {name: estimators.plain(value) for name, value in params.items()}

    def changed(estimator: Mapping[str, Any]) -> dict[str, Any]:
        inner = estimator["params"].get("estimator")
        new = plain if inner is None else {"estimator": {"estimator": changed(inner["estimator"])}}
        return dict(estimator) | {"params": estimator["params"] | new}

    return dict(member) | {"estimator": changed(member["estimator"])}


def shown_params(recipe: Recipe) -> dict[str, Any]:
    """Parameters for people to read: what differs from the library's defaults."""
    estimator = recipe["members"][0]["estimator"]
    while inner := estimator["params"].get("estimator"):  # that which is calibrated
        estimator = inner["estimator"]
    params = dict(estimator["params"])
    for name in ("random_state", "verbose"):
        params.pop(name, None)
    return params


def inner_folds(problem: Problem, y: Array, groups: Array | None = None) -> Array:
    """Folds 1..k inside the training rows, stratified; 0 marks rows that only ever train.

    Rows of one of the ``groups`` are in one fold, or in none.
    """
    n = len(y)
    if n > LARGE:
        most = n - min(MOST_INNER_ROWS, n // 10)
        if groups is not None:
            most = _at_a_border(groups, most, problem.seed)
        folds = np.ones(n, dtype=np.int64)
        folds[estimators.some_rows(n, most, problem.seed, groups)] = 0
        return folds
    k = 5 if n < FEW_ROWS else 3 if n < SOME_ROWS else 1
    return folding.folds_for(
        problem, y, k, seed=problem.seed + 1, groups=groups, most=MOST_INNER_ROWS
    )


def _at_a_border(groups: Array, most: int, seed: int) -> int:
    """The number nearest to ``most`` for which ``estimators.some_rows`` cuts no group in two."""
    order = folding.group_order(groups, np.random.default_rng(seed))
    ends = np.flatnonzero(np.diff(groups[order])) + 1
    return int(ends[np.abs(ends - most).argmin()]) if len(ends) else most


def cross_scores(
    recipe: Recipe, problem: Problem, data: Data, folds: Array, most: int | None = None
) -> Array:
    """Out-of-fold probabilities or values per training row; nan where the fold is 0.

    Each fit learns from ``most`` rows, if that is given and there are more.
    """
    out = nowhere(problem, len(data.y))
    for fold in range(1, int(folds.max()) + 1):
        away = folds == fold
        chosen = np.flatnonzero(~away)
        if most is not None and len(chosen) > most:
            chosen = chosen[estimators.some_rows(len(chosen), most, problem.seed)]
        rest = data.train.take(chosen)
        groups = None if data.groups is None else data.groups[chosen]
        members = [
            estimators.fit_member(member, problem, rest, data.y[chosen], groups)
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
