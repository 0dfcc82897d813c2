"""How good the models are: FlowML's race of several engines beside each engine alone.

On each table a quarter of the rows is put away. On the rest

* race: FlowML's race, as nodes run it but without the web, each engine with an equal share of the
  budget; then, chosen by the rows that rank and by nothing else, the best single model ("single")
  and the greedy ensemble across engines, where that promises more ("race", as a job ends);
* each engine alone, by its library's own tutorial (benchmarks/inside.py), with the whole budget;
* boosting: one HistGradientBoosting of scikit-learn with its defaults.

All are told which metric counts, have one thread, and predict the rows put away. As in a job, the
winners are refitted on the rows that ranked where these were kept from them (beyond the budget, as
PyCaret's ``finalize_model`` is). The best single engine is whichever library alone did best on the
rows put away, chosen with hindsight: the hardest peer there is. Import times do not count.

    python -m benchmarks.quality [--budget 30] [--engines pycaret,autogluon,flaml] [--tables cars]
"""

import argparse
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import PREFIX, tell_load
from benchmarks.inside import TABLES, Answer, Broke, has, outside
from training import ensemble
from training.evaluation import loss_of_blend

ENGINES = "pycaret,autogluon,flaml"
WITH_PANDAS = "pycaret"  # which virtualenv makes the tables
MOST_MODELS = 24  # of the best, from which a job chooses its ensemble (training/blends.py)
# Differences below these are called a tie.
TIE = {"roc_auc": 0.002, "accuracy": 0.002, "rmse": 0.005}  # rmse: as a share


@dataclass
class Model:
    """What a candidate said of the rows that rank and of those put away: rows x classes, or x 1."""

    key: str
    ranked: Any
    away: Any
    blends: bool
    engine: str
    artifact: str
    refit: bool  # on the rows that ranked, which it has not learnt from


class Judge:
    """A table with its targets, and how what somebody says of them is scored."""

    def __init__(self, table: str, folder: Path, target: str) -> None:
        import polars as pl

        self.task, self.metric = TABLES[table]
        learn, away = (
            pl.read_parquet(folder / f"{part}.parquet")[target] for part in ("learn", "away")
        )
        self.classes: list[str] | None = None
        self.learn, self.away = learn.to_numpy(), away.to_numpy()
        if self.task != "regression":
            self.classes = sorted(set(map(str, learn)))
            codes = {name: code for code, name in enumerate(self.classes)}
            self.learn, self.away = (
                np.array([codes[str(one)] for one in part]) for part in (learn, away)
            )

    def loss(self, truth: Any, said: Any) -> float:
        """Lower is better."""
        positive = self.classes[-1] if self.classes and self.task == "binary" else None
        return loss_of_blend(
            self.task, truth, said, metric=self.metric, classes=self.classes,
            positive_class=positive,
        )  # fmt: skip

    def score(self, said: Any) -> float:
        """The metric of the rows put away."""
        return abs(self.loss(self.away, said))


def chosen(models: list[Model], truth: Any, judge: Judge) -> list[tuple[Model, float]]:
    """What a job ends with: the best single model first, and the weight of each in the ensemble."""
    order = sorted(models, key=lambda one: judge.loss(truth, one.ranked))
    single = order[0]
    library = [one for one in order if one.blends][:MOST_MODELS]
    if not library:
        return [(single, 1.0)]
    stack = np.array([one.ranked for one in library])
    weights = ensemble.select(stack, lambda blend: judge.loss(truth, blend))
    if judge.loss(truth, np.tensordot(weights, stack, axes=1)) >= judge.loss(truth, single.ranked):
        return [(single, 1.0)]
    found = [(one, float(w)) for one, w in zip(library, weights, strict=True)]
    mine = next((w for one, w in found if one is single), 0.0)
    return [(single, mine), *((one, w) for one, w in found if w and one is not single)]


def race(
    table: str, engines: list[str], folder: Path, judge: Judge, said: Answer
) -> tuple[list[tuple[Model, float]], float]:
    """What FlowML's race ends with, and the longest that an engine was over its share (s)."""
    models, truth, over = [], None, 0.0
    for engine in engines:
        try:
            told = outside(engine, folder, "race", table=table, engine=engine, **said)
        except Broke as why:  # one engine's failure is not the job's
            print(f"  {why}", flush=True)
            continue
        over = max(over, told["raced"] - said["budget_s"])
        with np.load(folder / f"race-{engine}.npz") as kept:
            truth = judge.learn[kept["rows"]]
            models += [
                Model(
                    one["key"], kept[f"ranked-{n}"], kept[f"away-{n}"], one["blends"], engine,
                    one["artifact"], told["refit"],
                )
                for n, one in enumerate(told["candidates"])
            ]  # fmt: skip
    if not models:
        raise Broke(f"no engine had a model for {table}")
    winners = chosen(models, truth, judge)
    for one, _ in winners:
        if one.refit:
            wish = {"engine": one.engine, "artifact": one.artifact, **said}
            try:
                outside(one.engine, folder, "refit", table=table, **wish)
            except Broke as why:  # then it stays as it was, in a job too
                print(f"  {why}", flush=True)
                continue
            with np.load(folder / "refit.npz") as kept:
                one.away = kept["away"]
    return winners, over


def verdict(metric: str, ours: float, theirs: float) -> str:
    """win, tie or loss of ours."""
    better = (theirs - ours) / theirs if metric == "rmse" else ours - theirs
    return "tie" if abs(better) < TIE[metric] else "win" if better > 0 else "loss"


def measure(table: str, engines: list[str], budget_s: float) -> dict[str, str]:
    """Print a table's line; returns the verdicts."""
    metric = TABLES[table][1]
    alone: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix=PREFIX) as place:
        folder = Path(place)
        target = outside(WITH_PANDAS, folder, "split", table=table)["target"]
        judge = Judge(table, folder, target)
        share = {"target": target, "budget_s": budget_s / len(engines)}
        winners, over = race(table, engines, folder, judge, share)
        for engine in [*engines, "boosting"]:
            wish = {"engine": engine, "target": target, "budget_s": budget_s}
            venv = WITH_PANDAS if engine == "boosting" else engine
            try:
                outside(venv, folder, "alone", table=table, **wish)
            except Broke as why:
                print(f"  {why}", flush=True)
                continue
            with np.load(folder / f"alone-{engine}.npz") as kept:
                alone[engine] = judge.score(kept["away"])
    single = winners[0][0]
    ours = judge.score(sum(weight * one.away for one, weight in winners))
    of_single = judge.score(single.away)
    what = single.key if len(winners) == 1 else f"ensemble of {sum(w > 0 for _, w in winners)}"
    one_engine = {engine: alone[engine] for engine in engines if engine in alone}
    choose = min if metric == "rmse" else max
    best = choose(one_engine, key=lambda engine: one_engine[engine])
    words = {
        "with the ensemble": verdict(metric, ours, one_engine[best]),
        "without": verdict(metric, of_single, one_engine[best]),
    }
    peers = " | ".join(
        f"{alone[engine]:.4g}" if engine in alone else "broke" for engine in [*engines, "boosting"]
    )
    with_it = f"{ours:.4g} ({words['with the ensemble']}; {what})"
    without = f"{of_single:.4g} ({words['without']}; {single.key})"
    print(
        f"| {table} | {metric} | {with_it} | {without} | {peers} | {best} | {over:+.1f} s |",
        flush=True,
    )
    for engine, score in alone.items():
        words[f"the ensemble beside {engine} alone"] = verdict(metric, ours, score)
    return words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=30.0, help="seconds, in all")
    parser.add_argument("--engines", default=ENGINES)
    parser.add_argument("--tables", default=",".join(TABLES))
    asked = parser.parse_args()
    engines = [one for one in asked.engines.split(",") if has(one)]
    print(f"budget {asked.budget:g} s in all, for {', '.join(engines)}", flush=True)
    tell_load()
    heads = ["table", "metric", "race", "single", *engines, "boosting", "best engine", "over"]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}", flush=True)
    tally: dict[str, Counter[str]] = {}
    for table in asked.tables.split(","):
        for name, word in measure(table, engines, asked.budget).items():
            tally.setdefault(name, Counter())[word] += 1
    for name, found in tally.items():
        told = ", ".join(f"{found[word]} {word}" for word in ("win", "tie", "loss"))
        print(f"{name if ' beside ' in name else name + ', beside the best engine'}: {told}")
    tell_load()


if __name__ == "__main__":
    main()
