"""What benchmarks run in an engine's virtualenv: tables, FlowML's race of one engine as a node runs
it but without the web, and the libraries alone, as their tutorials use them.

``python -m benchmarks.inside WHAT {"…": …}``: the last line that it prints is the answer, as JSON.
``outside`` is how the benchmarks ask for that. Everybody has one thread, and import times do not
count where seconds are told.
"""

import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
AWAY = 0.25
SEED = 17
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
Answer = dict[str, Any]


# --- Outside --------------------------------------------------------------------------------------


class Broke(Exception):
    """What was to run in the engine's virtualenv ended badly."""


def has(engine: str) -> bool:
    """Whether the engine's virtualenv is there."""
    return python_of(engine).exists()


def python_of(engine: str) -> Path:
    return ROOT / ".venvs" / engine / "bin" / "python"


def command(engine: str, what: str, /, **said: Any) -> tuple[list[str], dict[str, str]]:
    """What runs a part of this file in the engine's virtualenv, and its environment."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    env = {**os.environ, **dict.fromkeys(names, "1"), "PYTHONPATH": str(ROOT)}
    run = [str(python_of(engine)), "-m", "benchmarks.inside", what, json.dumps(said)]
    return run, env


def outside(engine: str, folder: Path, what: str, /, **said: Any) -> Answer:
    """Run a part of this file in the engine's virtualenv and in a folder. Raises Broke."""
    run, env = command(engine, what, **said)
    ran = subprocess.run(run, cwd=folder, env=env, capture_output=True, text=True, check=False)
    last = (ran.stdout.strip().splitlines() or [""])[-1]
    if ran.returncode or not last.startswith("{"):
        raise Broke(f"{what} of {engine}: {ran.stderr.strip()[-500:]}")
    answer: Answer = json.loads(last)
    return answer


# --- Tables ---------------------------------------------------------------------------------------


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


def split(table: str) -> Answer:
    """Write learn.parquet and, which nobody learns from, away.parquet."""
    from sklearn.model_selection import train_test_split

    whole, target = table_of(table)
    strata = None if TABLES[table][0] == "regression" else whole[target]
    learn, away = train_test_split(whole, test_size=AWAY, random_state=SEED, stratify=strata)
    learn.reset_index(drop=True).to_parquet("learn.parquet")
    away.reset_index(drop=True).to_parquet("away.parquet")
    return {"target": target, "rows": len(learn), "away": len(away)}


def read(part: str) -> Any:
    import pandas as pd

    return pd.read_parquet(f"{part}.parquet")


# --- FlowML's race --------------------------------------------------------------------------------


class Listener:
    """A node's channel (workers/node/channel.py) that only remembers the candidates."""

    stopping = False

    def __init__(self) -> None:
        self.candidates: list[tuple[str, dict[str, str]]] = []

    def progress(self, fraction: float, message: str = "", **data: Any) -> None: ...

    def notice(self, message: str, **data: Any) -> None:
        print(message, file=sys.stderr)

    def log(self, line: str) -> None: ...

    def checkpoint(self, name: str, path: str) -> None: ...

    def candidate(self, key: str, data: dict[str, Any], files: dict[str, str]) -> None:
        self.candidates.append((key, files))


def payload_of(table: str, target: str, budget_s: float) -> Answer:
    """What a job says to a node about learn.parquet."""
    import pyarrow.parquet as pq

    from training import splits

    task, metric = TABLES[table]
    learn = pq.read_table("learn.parquet")
    truth = learn.column(target).to_pylist()
    classes = None if task == "regression" else sorted(set(map(str, truth)))
    counts = {one: list(map(str, truth)).count(one) for one in classes} if classes else None
    columns = [
        {"name": field.name, "role": "categorical" if "string" in str(field.type) else "numeric"}
        for field in learn.schema
        if field.name != target
    ]
    return {
        "task": task, "target": target, "metric": metric, "classes": classes,
        "positive_class": max(classes) if classes and task == "binary" else None,
        "columns": columns, "seed": SEED, "threads": 1, "dataset": {}, "budget_s": budget_s,
        "split": splits.plan_split(len(truth), task, counts, {"test": 0, "seed": SEED}),
    }  # fmt: skip


def warm(engine: str) -> None:
    """Import what a node's warm parent has imported."""
    import importlib

    from training.engines import harness, race, refit, tables  # noqa: F401

    for name in harness.engine_named(engine).imports:
        importlib.import_module(name)


def race(table: str, engine: str, target: str, budget_s: float) -> Answer:
    """Race one engine on learn.parquet, and keep what each candidate says.

    Into ``race-ENGINE.npz``: for candidate i ``ranked-i`` and ``away-i``, rows x classes or rows x
    1, of the rows that rank and of those that were put away; and the ``rows`` that rank. One that
    gives no probabilities says 1 for the class that it names.
    """
    import numpy as np
    import pyarrow.parquet as pq

    from training import splits
    from training.engines import harness

    warm(engine)
    payload = payload_of(table, target, budget_s)
    classes, plan = payload["classes"], payload["split"]
    inputs = {"data": "learn.parquet"}
    work = {"attempt": 1, "engine": engine, "payload": payload, "inputs": inputs}
    listener: Any = Listener()
    began = time.monotonic()
    harness.train(work, listener)
    raced = time.monotonic() - began

    truth = pq.read_table("learn.parquet").column(target).to_numpy()
    strata = splits.strata_of(truth, classes)
    rows = splits.ranked_rows(splits.assign(len(truth), plan, strata))
    kept: dict[str, Any] = {"rows": rows}
    told = []
    again = not plan.get("folds")  # rows that ranked were kept from learning: a winner gets them
    for number, (key, files) in enumerate(listener.candidates):
        found = pq.read_table(files["predictions"]).to_pydict()
        place = {row: at for at, row in enumerate(found["row"])}
        at = [place[row] for row in rows]
        shares = [f"p{code}" for code in range(len(classes or ()))]
        has_shares = bool(classes) and shares[0] in found
        if has_shares:
            ranked = np.column_stack([np.asarray(found[name])[at] for name in shares])
        elif classes:
            said = np.asarray(found["prediction"], dtype=str)[at]
            ranked = np.eye(len(classes))[np.searchsorted(classes, said)]
        else:
            ranked = np.asarray(found["prediction"], dtype=float)[at][:, None]
        kept[f"ranked-{number}"] = ranked
        kept[f"away-{number}"] = said_of_away(files["artifact"], f"model-{engine}-{number}")
        blends = has_shares or not classes
        told.append({"key": key, "blends": blends, "artifact": files["artifact"]})
    np.savez(f"race-{engine}.npz", **kept)
    return {"candidates": told, "raced": raced, "refit": again}


def said_of_away(artifact: str, folder: str) -> Any:
    """Rows x classes, or rows x 1: what a model says of the rows that were put away."""
    from training.engines import frame, harness, tables

    with zipfile.ZipFile(artifact) as archive:
        archive.extractall(folder)
    served = harness.load_predictor(folder)
    rows = frame.prepare(served.schema, tables.read_file(Path("away.parquet")))
    return served._outputs(served.predict_frame(rows))


def refit(table: str, engine: str, target: str, budget_s: float, artifact: str) -> Answer:
    """Refit a winner on all of learn.parquet; into ``refit.npz`` what it says of those put away."""
    import numpy as np

    from training.engines import refit as refitting

    warm(engine)
    payload = payload_of(table, target, budget_s)
    payload["split"] |= {"refit": True}
    inputs = {"data": "learn.parquet", "model": artifact}
    work = {"attempt": 1, "engine": engine, "payload": payload, "inputs": inputs}
    listener: Any = Listener()
    files = refitting.refit(work, listener)["files"]
    np.savez("refit.npz", away=said_of_away(files["artifact"], f"refit-{engine}"))
    return {}


# --- The libraries alone --------------------------------------------------------------------------


def alone(table: str, engine: str, target: str, budget_s: float) -> Answer:
    """A library by its own tutorial on learn.parquet; into ``alone-ENGINE.npz`` what it says of the
    rows put away."""
    import importlib

    import numpy as np

    for module in IMPORTS[engine]:
        importlib.import_module(module)
    learn, rows = read("learn"), read("away").drop(columns=target)
    began = time.monotonic()
    say, model = LIBRARIES[engine](learn, target, *TABLES[table], budget_s)
    seconds = time.monotonic() - began
    classes = None if TABLES[table][0] == "regression" else sorted(learn[target].unique())
    np.savez(f"alone-{engine}.npz", away=np.asarray(say(rows, classes), dtype=float))
    return {"seconds": seconds, "model": model}


Say = Callable[[Any, Any], Any]  # rows and classes -> rows x classes, or rows x 1


def _pycaret(learn: Any, target: str, task: str, metric: str, budget_s: float) -> tuple[Say, str]:
    """setup, compare_models within the budget, finalize_model."""
    import numpy as np
    from pycaret.classification import ClassificationExperiment
    from pycaret.regression import RegressionExperiment

    began = time.monotonic()
    kind = RegressionExperiment if task == "regression" else ClassificationExperiment
    sort = {"roc_auc": "AUC", "accuracy": "Accuracy", "rmse": "RMSE"}[metric]
    experiment = kind()
    experiment.setup(learn, target=target, session_id=SEED, n_jobs=1, verbose=False, html=False)
    left = budget_s - (time.monotonic() - began)
    best = experiment.compare_models(sort=sort, budget_time=left / 60, verbose=False)
    final = experiment.finalize_model(best)

    def say(rows: Any, classes: Any) -> Any:
        raw = {"raw_score": True} if metric == "roc_auc" else {}
        said = experiment.predict_model(final, data=rows, verbose=False, **raw)
        if classes is None:
            return said["prediction_label"].to_numpy()[:, None]
        if raw:
            return said[[f"prediction_score_{one}" for one in classes]].to_numpy()
        return np.eye(len(classes))[np.searchsorted(classes, said["prediction_label"])]

    return say, type(best).__name__


def _autogluon(learn: Any, target: str, task: str, metric: str, budget_s: float) -> tuple[Say, str]:
    """TabularPredictor.fit within the budget, with its defaults."""
    from autogluon.tabular import TabularPredictor

    by = {"roc_auc": "roc_auc", "accuracy": "accuracy", "rmse": "root_mean_squared_error"}[metric]
    predictor = TabularPredictor(target, eval_metric=by, verbosity=0, path="autogluon")
    predictor.fit(learn, time_limit=budget_s, num_cpus=1)

    def say(rows: Any, classes: Any) -> Any:
        if classes is None:
            return predictor.predict(rows).to_numpy()[:, None]
        return predictor.predict_proba(rows)[list(classes)].to_numpy()

    return say, str(predictor.model_best)


def _flaml(learn: Any, target: str, task: str, metric: str, budget_s: float) -> tuple[Say, str]:
    """AutoML.fit within the budget, with its defaults."""
    from flaml import AutoML

    automl = AutoML()
    automl.fit(
        learn.drop(columns=target), learn[target], time_budget=budget_s, n_jobs=1, verbose=0,
        task="regression" if task == "regression" else "classification", seed=SEED,
        metric="roc_auc" if metric == "roc_auc" else metric,
    )  # fmt: skip

    def say(rows: Any, classes: Any) -> Any:
        if classes is None:
            return automl.predict(rows)[:, None]
        return automl.predict_proba(rows)

    return say, str(automl.best_estimator)


def _boosting(learn: Any, target: str, task: str, metric: str, budget_s: float) -> tuple[Say, str]:
    """One HistGradientBoosting of scikit-learn with its defaults, whatever the budget."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    texts = learn.drop(columns=target).select_dtypes("object").columns
    dtypes = {c: learn[c].astype("category").dtype for c in texts}
    model = kind(categorical_features="from_dtype", random_state=SEED)
    model.fit(learn.drop(columns=target).astype(dtypes), learn[target])

    def say(rows: Any, classes: Any) -> Any:
        x = rows.astype(dtypes)
        return model.predict(x)[:, None] if classes is None else model.predict_proba(x)

    return say, kind.__name__


LIBRARIES = {
    "pycaret": _pycaret, "autogluon": _autogluon, "flaml": _flaml, "boosting": _boosting,
}  # fmt: skip


IMPORTS = {
    "pycaret": ("pycaret.classification", "pycaret.regression"),
    "autogluon": ("autogluon.tabular",),
    "flaml": ("flaml",),
    "boosting": ("sklearn.ensemble",),
}


# --- One row --------------------------------------------------------------------------------------


def one_row(table: str, engine: str, target: str, budget_s: float, times: int) -> Answer:
    """Train a model by the engine, and time one row: FlowML's answer, and the library's call in it.

    Both in ms, each a list. The library's call is that of the very same fitted model, with the row
    already in the shape that it takes.
    """
    import warnings

    import pyarrow.parquet as pq

    from training.engines import harness

    warm(engine)
    payload = payload_of(table, target, budget_s)
    work = {"attempt": 1, "engine": engine, "payload": payload, "inputs": {"data": "learn.parquet"}}
    listener: Any = Listener()
    harness.train(work, listener)
    names = [one["name"] for one in payload["columns"]]
    first = pq.read_table("away.parquet").slice(0, 1).to_pylist()[0]
    row = [first[name] for name in names]
    found = None
    for number, (key, files) in enumerate(listener.candidates):
        if "blend" in key or "ensemble" in key or "baseline" in key or "dummy" in key:
            continue
        with zipfile.ZipFile(files["artifact"]) as archive:
            archive.extractall(f"model-{number}")
        served = harness.load_predictor(f"model-{number}")
        if (call := library_call(served, names, row)) is not None:
            found = key, served, call
            break
    if found is None:
        raise SystemExit("None of its models is one of the library's alone.")
    key, served, (call, what) = found
    ours, bare = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(times + 20):  # by turns; the first 20 warm both
            for work_, into in ((lambda: served.predict(names, [row]), ours), (call, bare)):
                began = time.perf_counter()
                work_()
                if number >= 20:
                    into.append(1000 * (time.perf_counter() - began))
    return {"model": key, "call": what, "ours": ours, "bare": bare}


def library_call(
    served: Any, names: list[str], row: list[Any]
) -> tuple[Callable[[], Any], str] | None:
    """What the library itself does for this row, of a model that is its own."""
    from training.engines import estimators, frame, harness

    model = served.model
    prepared = frame.prepare(served.schema, harness._table(names, [row]))
    if isinstance(model, estimators.EstimatorModel):
        (member, *more) = model.members
        estimator, x = member.estimator, member.encoding.matrix(prepared)
        how = "predict_proba" if model.n_classes else "predict"
        return None if more else (lambda: getattr(estimator, how)(x), f"{_name(estimator)}.{how}")
    if not hasattr(model, "prepare"):
        return None
    rows = model.prepare(model.encoding, prepared)
    if hasattr(rows, "table"):  # AutoGluon's: each model of the bag
        children = [child.model for bag in model.members for child in bag.children]
        data = rows.table
        return (
            lambda: [child.predict_proba(data) for child in children],
            f"{len(children)} x {_name(children[0])}.predict_proba",
        )
    return _network(served.told["engine"], model, rows)


def _network(engine: str, model: Any, rows: Any) -> tuple[Callable[[], Any], str]:
    """The same layers in the framework, with the same weights and numbers that are embedded."""
    import numpy as np

    def layers(weights: Any) -> list[tuple[Any, Any]]:
        count = sum(name.startswith("weight-") for name in weights)
        return [(weights[f"weight-{n}"], weights[f"bias-{n}"]) for n in range(count)]

    nets = [net.weights for net in model.members]
    codes = [[w[f"embedding-{n}"][c] for n, c in enumerate(rows.codes.T)] for w in nets]
    inputs = [np.concatenate([rows.numbers, *more], axis=1).astype(np.float32) for more in codes]
    if engine.startswith("tensorflow"):
        import keras

        made = []
        for weights in nets:
            whole = layers(weights)
            last = len(whole) - 1
            dense = [
                keras.layers.Dense(w.shape[1], activation=None if n == last else "relu")
                for n, (w, _) in enumerate(whole)
            ]
            network = keras.Sequential([keras.Input((whole[0][0].shape[0],)), *dense])
            network.set_weights([part for pair in whole for part in pair])
            made.append(network)
        return (
            lambda: [np.asarray(m(x)) for m, x in zip(made, inputs, strict=True)],
            f"{len(made)} x keras.Sequential()(x)",
        )
    import torch

    torch.set_num_threads(1)
    made = []
    for weights in nets:
        parts: list[Any] = []
        for w, b in layers(weights):
            linear = torch.nn.Linear(*w.shape)
            linear.weight.data, linear.bias.data = (
                torch.tensor(w.T).float(),
                torch.tensor(b).float(),
            )
            parts += [linear, torch.nn.ReLU()]
        made.append(torch.nn.Sequential(*parts[:-1]).eval())

    def call() -> Any:
        with torch.inference_mode():
            return [m(torch.from_numpy(x)).numpy() for m, x in zip(made, inputs, strict=True)]

    return call, f"{len(made)} x torch.nn.Sequential()(x)"


def _name(one: Any) -> str:
    return type(one).__name__


WHAT = {"split": split, "race": race, "refit": refit, "alone": alone, "one_row": one_row}


if __name__ == "__main__":
    print(json.dumps(WHAT[sys.argv[1]](**json.loads(sys.argv[2]))), flush=True)
