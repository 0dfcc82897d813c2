"""Engines run as on a node: in children forked by a warm parent, in their own virtualenv."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from training import catalog, splits

REPO = Path(__file__).resolve().parents[2]
ENGINES = ["pycaret", "sklearn"]
HEAVY = ["autogluon", "flaml", "torch", "tensorflow", "fuxictr"]  # these belong to `make test-rest`
ALONE = {"tensorflow"}  # what it traces and starts takes seconds of small budgets on a busy machine
TRAIN = "training.engines.harness:train"
PREDICT_FILE = "training.engines.harness:predict_file"
REFIT = "training.engines.refit:refit"
SERVE = "tests.engines.serving:serve"


def python_of(engine: str) -> Path:
    """The engine's interpreter. Missing is a failure: ``make engine`` builds it."""
    path = REPO / ".venvs" / engine / "bin" / "python"
    assert path.exists(), f"{path} is missing: run make engine NAME={engine}"
    return path


@dataclass
class Ran:
    """What one task did: its folder, its messages in order, and how long its child lived."""

    folder: Path
    messages: list[dict[str, Any]]
    seconds: float
    payload: dict[str, Any]
    parts: np.ndarray | None = None

    def of(self, type: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == type]

    @property
    def candidates(self) -> dict[str, dict[str, Any]]:
        return {message["key"]: message for message in self.of("candidate")}

    @property
    def result(self) -> dict[str, Any]:
        last = self.messages[-1] if self.messages else {}
        log = self.folder / "output.txt"
        assert last.get("type") == "result", (last, log.read_text()[-3000:])
        return last

    def artifact(self, key: str) -> Path:
        return self.folder / self.candidates[key]["files"]["artifact"]

    def predictions(self, key: str) -> pl.DataFrame:
        return pl.read_parquet(self.folder / self.candidates[key]["files"]["predictions"])


class Warm:
    """A warm parent, one child at a time. ``first`` comes before the repository on its path."""

    def __init__(
        self, engine: str, scratch: Path, python: Path | None = None, first: Path = REPO
    ) -> None:
        self.engine = engine
        self.python = python or python_of(engine)
        self._scratch = scratch
        self._numbers = itertools.count()
        home = scratch / "parent"
        home.mkdir()
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [self.python, "-m", "tests.engines.launcher", engine],
            cwd=home,
            env=os.environ | {"PYTHONPATH": f"{first}{os.pathsep}{REPO}"} | threads,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._line()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the warm parent died"
        return json.loads(line)

    def start(self, handler: str, task: Mapping[str, Any]) -> tuple[Path, Callable[[], Ran]]:
        """Fork a child; the second value waits for its end."""
        folder = self._scratch / f"task-{next(self._numbers)}"
        folder.mkdir()
        request = {"handler": handler, "cwd": str(folder), "task": dict(task)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        began = time.monotonic()

        def wait() -> Ran:
            self._line()
            seconds = time.monotonic() - began
            told = (folder / "messages.jsonl").read_text(encoding="utf-8")
            messages = [json.loads(line) for line in told.splitlines()]
            return Ran(folder, messages, seconds, task.get("payload") or {})

        return folder, wait

    def run(self, handler: str, task: Mapping[str, Any]) -> Ran:
        return self.start(handler, task)[1]()

    def train(
        self, table: pl.DataFrame, payload: Mapping[str, Any], *, enough: int = 0, **more: Any
    ) -> Ran:
        """Train on a table; ``more`` goes into the task (done, spent_s, attempt).

        With ``enough`` stop is pressed as soon as there are so many candidates: for what shows in
        the first ones there is no need to wait for the end of the budget, which may be generous.
        """
        path = self._scratch / f"{uuid.uuid4()}.parquet"
        table.write_parquet(path)
        folder, wait = self.start(TRAIN, self.task(path, payload, **more))
        messages, until = folder / "messages.jsonl", time.monotonic() + payload["budget_s"]
        while enough and time.monotonic() < until:
            told = messages.read_text(encoding="utf-8") if messages.exists() else ""
            ended = any(f'"type": "{end}"' in told for end in ("result", "error", "crash"))
            if ended or told.count('"type": "candidate"') >= enough:
                break
            time.sleep(0.05)
        if enough:
            (folder / "stop").touch()
        ran = wait()
        strata = splits.strata_of(table[payload["target"]].to_list(), payload["classes"])
        by = splits.column_of(payload["split"])
        ran.parts = splits.assign(
            table.height, payload["split"], strata, table[by].to_numpy() if by else None
        )
        return ran

    def task(self, path: Path, payload: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        return {
            "task": str(uuid.uuid4()),
            "attempt": 1,
            "kind": "training.train",
            "engine": self.engine,
            "payload": dict(payload),
            "inputs": {"data": str(path)},
            "limits": {"time_s": 600, "ram_mib": 4096},
            "done": [],
            "spent_s": 0.0,
        } | more

    def serve(self, artifact: Path, calls: Sequence[tuple[list[str], list[list[Any]]]]) -> Ran:
        task = {"inputs": {"model": str(artifact)}, "payload": {"calls": list(calls)}}
        return self.run(SERVE, task)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)  # giving back what large libraries hold takes a while


def looked_at(engine: str) -> str:
    """The kind of task for which a heavy engine is looked at closely."""
    tasks = catalog.engines()[engine].tasks
    return "multiclass" if "multiclass" in tasks else tasks[0]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the engines' tests short.

    Of what the engines have no part in (mark ``once``), the first engine's run is enough; heavy
    ones are looked at closely for one kind of task.
    """
    told: list[pytest.Item] = []
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        engine, task = params.get("warm", ENGINES[0]), params.get("trained", "multiclass")
        again = item.get_closest_marker("once") and engine != ENGINES[0]
        if again or (engine in HEAVY and "trained" in params and task != looked_at(engine)):
            told.append(item)
    if told:
        config.hook.pytest_deselected(items=told)
        items[:] = [item for item in items if item not in told]


@pytest.fixture(
    scope="session",
    params=[
        *ENGINES,
        *(
            pytest.param(name, marks=[pytest.mark.heavy, *[pytest.mark.alone] * (name in ALONE)])
            for name in HEAVY
        ),
    ],
)
def warm(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Warm]:
    parent = Warm(request.param, tmp_path_factory.mktemp(request.param))
    yield parent
    parent.close()


def payload_for(
    table: pl.DataFrame,
    roles: Mapping[str, str],
    task: str,
    *,
    target: str = "target",
    budget_s: float = 6.0,
    folds: int = 0,
    **more: Any,
) -> dict[str, Any]:
    """A payload as training/actions.py makes it."""
    classes = None
    if task != "regression":
        classes = sorted({splits.label(v) for v in table[target].to_list() if v is not None})
    split: dict[str, Any] = {"kind": "random", "seed": 7, "test": 0.2}
    split |= {"folds": folds, "validation": 0} if folds else {"validation": 0.2}
    metrics = {"binary": "roc_auc", "multiclass": "log_loss", "regression": "rmse"}
    return {
        "job": str(uuid.uuid4()),
        "target": target,
        "task": task,
        "classes": classes,
        "positive_class": classes[-1] if classes and task == "binary" else None,
        "metric": metrics[task],
        "columns": [{"name": name, "role": role} for name, role in roles.items()],
        "split": split,
        "budget_s": budget_s,
        "seed": 11,
        "threads": 1,
        "dataset": {"id": str(uuid.uuid4()), "version": 1, "sha256": "", "name": "messy"},
    } | more


ROLES = {
    "size": "numeric",
    "weight": "numeric",
    "noise": "numeric",
    "colour": "categorical",
    "town": "categorical",
    "grade": "categorical",
    "fresh": "boolean",
    "seen": "datetime",
    "remark": "text",
    "code": "identifier",
}


def messy(rows: int, kind: str, seed: int = 0) -> pl.DataFrame:
    """Columns of every role with gaps in them, and a target (class or number) that follows them."""
    random = np.random.default_rng(seed)

    def gappy(values: Sequence[Any], share: float = 0.1) -> list[Any]:
        gaps = random.random(rows) < share
        return [None if gap else value for gap, value in zip(gaps, values, strict=True)]

    size = random.normal(10, 3, rows)
    colour = random.choice(["red", "green", "blue"], rows)
    fresh = random.random(rows) < 0.5
    day = random.integers(0, 1000, rows)
    start = np.datetime64("2022-01-01T06:30:00")
    seen = [(start + np.timedelta64(int(d), "D")).item() for d in day]
    signal = size + 3 * (colour == "red") - 2 * fresh + day / 250 + random.normal(0, 0.5, rows)
    target: Any
    if kind == "regression":
        target = signal * 100
    elif kind == "multiclass":
        target = np.array(["low", "mid", "high"])[np.digitize(signal, [9, 13])]
    else:
        target = np.where(signal > np.median(signal), "yes", "no")
    return pl.DataFrame(
        {
            "size": gappy(size.tolist()),
            "weight": random.lognormal(0, 1, rows),
            "noise": random.integers(0, 50, rows),
            "colour": gappy(colour.tolist()),
            "town": random.choice([f"town {i}" for i in range(40)], rows),
            "grade": random.integers(1, 6, rows),
            "fresh": gappy(fresh.tolist(), 0.05),
            "seen": gappy(seen, 0.05),
            "remark": [f"remark number {i} of many words" for i in range(rows)],
            "code": [f"c-{i:06d}" for i in range(rows)],
            "target": target,
        },
        strict=False,
    )
