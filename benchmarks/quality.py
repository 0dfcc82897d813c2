"""How good the models are: FlowML's race beside two things that people do without it.

On each table a quarter of the rows is put away. On the rest

* flowml: the race of the PyCaret engine, as a node runs it but without the web, then the best model
  by the race's own ranking, refitted where the race had a validation part;
* pycaret: PyCaret as its tutorial does it: setup, compare_models within the budget, finalize_model;
* boosting: one HistGradientBoosting of scikit-learn with its defaults.

All are told which metric counts (PyCaret by ``sort``), have one thread, and predict the rows put
away. Import times do not count. Every contender is a process of its own in the engine's virtualenv.

    python -m benchmarks.quality [--budget 20] [--tables cars,digits]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venvs" / "pycaret" / "bin" / "python"
AWAY = 0.25
SEED = 17
# Differences below these are called a tie.
TIE = {"roc_auc": 0.002, "accuracy": 0.002, "rmse": 0.005}  # rmse: as a share
# table -> (task, metric)
TABLES = {
    "iris": ("multiclass", "accuracy"),
    "penguins": ("multiclass", "accuracy"),
    "wine": ("multiclass", "accuracy"),
    "digits": ("multiclass", "accuracy"),
    "breast_cancer": ("binary", "roc_auc"),
    "noisy_classes": ("binary", "roc_auc"),
    "xor": ("binary", "roc_auc"),
    "cars": ("regression", "rmse"),
    "diabetes": ("regression", "rmse"),
    "friedman": ("regression", "rmse"),
}
PEERS = ("boosting", "pycaret")


# In the engine's virtualenv: tables


def table_of(name: str) -> tuple[Any, str]:
    """A data frame without missing targets, and the name of its target."""
    import numpy as np
    import pandas as pd
    from sklearn import datasets

    def frame(x: Any, y: Any) -> tuple[Any, str]:
        made = pd.DataFrame(x, columns=[f"x{i}" for i in range(x.shape[1])])
        return made.assign(target=y), "target"

    if name == "cars":
        cars = pd.read_csv(ROOT / "data" / "cars.csv").drop(columns="name")
        return cars.dropna(subset="miles_per_gallon").reset_index(drop=True), "miles_per_gallon"
    if name in ("iris", "penguins"):
        return pd.read_csv(ROOT / "data" / f"{name}.csv").dropna(subset="species"), "species"
    if name == "noisy_classes":
        x, y = datasets.make_classification(
            2_000, 25, n_informative=8, n_redundant=4, flip_y=0.1, class_sep=0.7, random_state=1
        )
        return frame(x, np.where(y == 1, "yes", "no"))
    if name == "xor":
        random = np.random.default_rng(2)
        x = random.normal(size=(1_500, 6))
        signal = x[:, 0] * x[:, 1] + 0.5 * x[:, 2] + random.normal(0, 0.5, len(x))
        return frame(x, np.where(signal > 0, "yes", "no"))
    if name == "friedman":
        return frame(*datasets.make_friedman1(1_500, 12, noise=1.5, random_state=3))
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return frame(x, y if TABLES[name][0] == "regression" else np.char.add("c", y.astype(str)))


def parts_of(name: str) -> tuple[Any, Any, str]:
    """The rows to learn from, the rows put away, and the target's name."""
    from sklearn.model_selection import train_test_split

    table, target = table_of(name)
    strata = None if TABLES[name][0] == "regression" else table[target]
    learn, away = train_test_split(table, test_size=AWAY, random_state=SEED, stratify=strata)
    return learn.reset_index(drop=True), away.reset_index(drop=True), target


def score(metric: str, truth: Any, values: Any, shares: Any = None) -> float:
    """``shares``: for roc_auc, the probability of the class that sorts last."""
    import numpy as np
    from sklearn import metrics

    if metric == "roc_auc":
        return float(metrics.roc_auc_score(truth == np.unique(truth)[-1], shares))
    if metric == "accuracy":
        return float(np.mean(np.asarray(truth) == np.asarray(values)))
    return float(np.sqrt(np.mean((np.asarray(truth) - np.asarray(values, dtype=float)) ** 2)))


# In the engine's virtualenv: contenders. Each gives its score, seconds used, and what won.

Answer = dict[str, Any]


def run_boosting(name: str, budget_s: float) -> Answer:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    learn, away, target = parts_of(name)
    task, metric = TABLES[name]
    kind = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    texts = learn.drop(columns=target).select_dtypes("object").columns
    dtypes = {c: learn[c].astype("category").dtype for c in texts}
    began = time.monotonic()
    model = kind(categorical_features="from_dtype", random_state=SEED)
    model.fit(learn.drop(columns=target).astype(dtypes), learn[target])
    seconds = time.monotonic() - began
    x = away.drop(columns=target).astype(dtypes)
    shares = model.predict_proba(x)[:, -1] if metric == "roc_auc" else None
    found = score(metric, away[target], model.predict(x), shares)
    return {"score": found, "seconds": seconds, "model": kind.__name__}


def run_pycaret(name: str, budget_s: float) -> Answer:
    from pycaret.classification import ClassificationExperiment
    from pycaret.regression import RegressionExperiment

    learn, away, target = parts_of(name)
    task, metric = TABLES[name]
    kind = RegressionExperiment if task == "regression" else ClassificationExperiment
    sort = {"roc_auc": "AUC", "accuracy": "Accuracy", "rmse": "RMSE"}[metric]
    began = time.monotonic()
    experiment = kind()
    experiment.setup(learn, target=target, session_id=SEED, n_jobs=1, verbose=False, html=False)
    left = budget_s - (time.monotonic() - began)
    best = experiment.compare_models(sort=sort, budget_time=left / 60, verbose=False)
    raced = time.monotonic() - began
    final = experiment.finalize_model(best)
    seconds = time.monotonic() - began
    raw = {"raw_score": True} if metric == "roc_auc" else {}
    said = experiment.predict_model(final, data=away.drop(columns=target), verbose=False, **raw)
    shares = said[f"prediction_score_{max(learn[target])}"] if metric == "roc_auc" else None
    found = score(metric, away[target], said["prediction_label"], shares)
    return {"score": found, "raced": raced, "seconds": seconds, "model": type(best).__name__}


class Listener:
    """A node's channel (workers/node/channel.py) that only remembers the candidates."""

    stopping = False

    def __init__(self) -> None:
        self.candidates: list[tuple[str, dict[str, str]]] = []

    def progress(self, fraction: float, message: str = "", **data: Any) -> None: ...

    def notice(self, message: str, **data: Any) -> None:
        print(message, file=sys.stderr)

    def log(self, line: str) -> None: ...

    def candidate(self, key: str, data: dict[str, Any], files: dict[str, str]) -> None:
        self.candidates.append((key, files))


def run_flowml(name: str, budget_s: float) -> Answer:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pycaret import classification, regression  # noqa: F401 - a warm parent has them

    from training import splits
    from training.engines import frame, harness, race, refit, tables  # noqa: F401

    learn, away, target = parts_of(name)
    task, metric = TABLES[name]
    pq.write_table(pa.Table.from_pandas(learn, preserve_index=False), "data.parquet")
    rows = away.drop(columns=target)
    pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), "away.parquet")
    classes = None if task == "regression" else sorted(str(v) for v in learn[target].unique())
    counts = None if classes is None else learn[target].astype(str).value_counts().to_dict()
    split = splits.plan_split(len(learn), task, counts, {"test": 0, "seed": SEED})
    texts = set(rows.select_dtypes("object").columns)
    payload = {
        "task": task, "target": target, "metric": metric, "classes": classes,
        "positive_class": max(classes) if classes and task == "binary" else None,
        "columns": [
            {"name": c, "role": "categorical" if c in texts else "numeric"} for c in rows.columns
        ],
        "split": split, "budget_s": budget_s, "seed": SEED, "threads": 1, "dataset": {},
    }  # fmt: skip
    inputs = {"data": "data.parquet"}
    work = {"attempt": 1, "engine": "pycaret", "payload": payload, "inputs": inputs}
    listener: Any = Listener()
    began = time.monotonic()
    harness.train(work, listener)
    raced = time.monotonic() - began

    strata = splits.strata_of(learn[target].to_numpy(), classes)
    ranked = splits.ranked_rows(splits.assign(len(learn), split, strata))
    truth = learn[target].to_numpy()[ranked]

    def standing(files: dict[str, str]) -> float:
        found = pq.read_table(files["predictions"]).to_pandas().set_index("row").loc[ranked]
        shares = found[f"p{len(classes or ()) - 1}"] if metric == "roc_auc" else None
        value = score(metric, truth, found["prediction"], shares)
        return value if metric == "rmse" else -value

    key, files = min(listener.candidates, key=lambda one: standing(one[1]))
    if not split.get("folds"):
        again = payload | {"split": split | {"refit": True}}
        model = {"data": "data.parquet", "model": files["artifact"]}
        files = refit.refit(work | {"payload": again, "inputs": model}, listener)["files"]
        key += ":refit"
    seconds = time.monotonic() - began
    with zipfile.ZipFile(files["artifact"]) as archive:
        archive.extractall("best")
    served = harness.load_predictor("best")
    said = served.predict_frame(frame.prepare(served.schema, tables.read_file("away.parquet")))
    values = np.array(harness.labels(said, classes))
    shares = (
        said.probabilities[:, -1]
        if metric == "roc_auc" and said.probabilities is not None
        else None
    )
    found = score(metric, away[target], values, shares)
    return {
        "score": found, "raced": raced, "seconds": seconds, "model": key,
        "candidates": len(listener.candidates),
    }  # fmt: skip


CONTENDERS: dict[str, Callable[[str, float], Answer]] = {
    "flowml": run_flowml,
    "pycaret": run_pycaret,
    "boosting": run_boosting,
}


# Outside


def ask(contender: str, table: str, budget_s: float) -> Answer:
    """Run a contender in a process and a folder of its own; one that breaks gives no score."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    env = {**os.environ, **dict.fromkeys(names, "1"), "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        command = [PYTHON, "-m", "benchmarks.quality", "--one", contender, table, str(budget_s)]
        ran = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, check=False
        )
    last = ran.stdout.strip().splitlines()[-1:] or [""]
    if ran.returncode or not last[0].startswith("{"):
        print(f"  {contender} broke on {table}: {ran.stderr[-500:]}", file=sys.stderr)
        return {"score": None, "seconds": 0.0, "model": "broke"}
    answer: Answer = json.loads(last[0])
    return answer


def verdict(metric: str, ours: float | None, theirs: float | None) -> str:
    """win, tie or loss of ours."""
    if ours is None or theirs is None:
        return "win" if theirs is None and ours is not None else "loss"
    better = (theirs - ours) / theirs if metric == "rmse" else ours - theirs
    return "tie" if abs(better) < TIE[metric] else "win" if better > 0 else "loss"


def shown(answer: Answer) -> str:
    number = "    –" if answer["score"] is None else f"{answer['score']:.4g}"
    return f"{number} in {answer['seconds']:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", type=float, default=20.0, help="seconds")
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        contender, table, budget_s = options.one
        print(json.dumps(CONTENDERS[contender](table, float(budget_s))), flush=True)
        return
    began_load = os.getloadavg()[0]
    print(
        f"budget {options.budget:g} s, load at the start {began_load:.1f} on {os.cpu_count()} cores"
    )
    print("| table | metric | FlowML | PyCaret | one boosting | FlowML's best |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    tally = {peer: {"win": 0, "tie": 0, "loss": 0} for peer in PEERS}
    over: dict[str, list[float]] = {"flowml": [], "pycaret": []}
    for table in options.tables.split(","):
        metric = TABLES[table][1]
        found = {one: ask(one, table, options.budget) for one in CONTENDERS}
        words = {}
        for peer in PEERS:
            word = verdict(metric, found["flowml"]["score"], found[peer]["score"])
            tally[peer][word] += 1
            words[peer] = word
        for one, seconds in over.items():
            seconds.append(found[one].get("raced", 0.0) - options.budget)
        print(
            f"| {table} | {metric} | {shown(found['flowml'])} "
            f"| {shown(found['pycaret'])} ({words['pycaret']}) "
            f"| {shown(found['boosting'])} ({words['boosting']}) "
            f"| {found['flowml']['model']} of {found['flowml'].get('candidates', 0)} |",
            flush=True,
        )
    for peer in PEERS:
        counts = ", ".join(f"{n} {word}" for word, n in tally[peer].items())
        print(f"FlowML against {peer}: {counts}")
    for one, seconds in over.items():
        late = [f"{s:.1f} s" for s in seconds if s > 0.5]
        print(f"Races of {one} over the budget by more than 0.5 s: {', '.join(late) or 'none'}")
    print(f"load at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
