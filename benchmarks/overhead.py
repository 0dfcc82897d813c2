"""What FlowML costs over the bare engine: wall and memory of a training, beside a script of the
library's own with the same budget.

A whole installation trains on a table of 1,000 rows (three quarters of "friedman", as a CSV) with
one engine, from ``POST /api/training/start`` until the job has ended, its model ready to predict.
Beside it a script reads the same rows and does what the library's tutorial does
(benchmarks/inside.py), from the start of its process to its end. Both have one thread. Memory is
the most that the engine's processes hold together: for FlowML the warm parent of the engine and
all that it forked. Shared pages count once (PSS), and the platform's own processes do not count,
since they are there whether or not anything trains.

    python -m benchmarks.overhead [--budget 60] [--engines flaml,pycaret,autogluon] [--rounds 1]

Limit: 5% more at budgets of 60 s and more. Wall beyond the budget is told for both: a library may
stop early or late.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import psutil

from benchmarks.common import PREFIX, installation, tell_load, upload
from benchmarks.inside import command, has, outside, python_of
from flowml_site.platform import Platform
from tests.e2e.conftest import Person

ENGINES = "flaml,pycaret,autogluon"
TABLE = "friedman"
WITH_PANDAS = "pycaret"  # which virtualenv makes the table
LIMIT = 1.05
EVERY_S = 0.5


class Memory:
    """The most that some processes held together, in MiB, looked at twice a second."""

    def __init__(self, processes: Callable[[], list[psutil.Process]]) -> None:
        self.peak_mib = 0.0
        self._processes = processes
        self._ended = threading.Event()
        self._looking = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._looking.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._looking.join()

    def _look(self) -> None:
        while not self._ended.wait(EVERY_S):
            held = 0
            for one in self._processes():
                try:
                    held += one.memory_full_info().pss
                except psutil.Error:
                    continue  # it has ended meanwhile
            self.peak_mib = max(self.peak_mib, held / 2**20)


def family(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def of_engine(platform: Platform, engine: str) -> list[psutil.Process]:
    """The engine's processes on the node: they run its Python."""
    found = []
    for one in family(psutil.Process(platform.process("node").pid)):
        try:
            if one.cmdline()[:1] == [str(python_of(engine))]:
                found.append(one)
        except psutil.Error:
            continue
    return found


def flowml(
    platform: Platform, person: Person, data: str, target: str, engine: str, budget_s: float
) -> tuple[float, float]:
    """Seconds and MiB of a job."""
    wish = {"engines": [engine], "time_budget": budget_s, "metric": "rmse"}
    with Memory(lambda: of_engine(platform, engine)) as memory:
        began = time.monotonic()
        job = person.train(data, target, **wish)
        ended = person.ended(job, within=10 * budget_s + 300)
        took = time.monotonic() - began
    assert ended["state"] == "succeeded", ended
    return took, memory.peak_mib


def script(folder: Path, target: str, engine: str, budget_s: float) -> tuple[float, float, float]:
    """Seconds and MiB of the library alone; and the seconds without the imports."""
    said = {"table": TABLE, "engine": engine, "target": target, "budget_s": budget_s}
    run, env = command(engine, "alone", **said)
    began = time.monotonic()
    process = subprocess.Popen(
        run, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    root = psutil.Process(process.pid)
    with Memory(lambda: family(root)) as memory:
        printed = process.communicate()[0]
        took = time.monotonic() - began
    assert process.returncode == 0, f"the script of {engine} ended with {process.returncode}"
    return took, memory.peak_mib, json.loads(printed.strip().splitlines()[-1])["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=60, help="seconds")
    parser.add_argument("--engines", default=ENGINES)
    parser.add_argument("--rounds", type=int, default=1)
    asked = parser.parse_args()
    budget_s, kept = asked.budget, True
    tell_load()
    print("| engine | FlowML | script | wall | FlowML | script | memory |", flush=True)
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX) as place,
        installation() as (platform, person),
    ):
        folder = Path(place)
        target = outside(WITH_PANDAS, folder, "split", table=TABLE)["target"]
        data = upload(person, as_csv(folder))
        for engine in filter(has, asked.engines.split(",")):
            # The warm parent is there before somebody trains: a job of no account starts it.
            person.ended(person.train(data, target, engines=[engine], time_budget=5), within=300)
            ours, bare = [], []
            for _ in range(asked.rounds):
                ours.append(flowml(platform, person, data, target, engine, budget_s))
                bare.append(script(folder, target, engine, budget_s))
            (wall, mib), (bare_wall, bare_mib, bare_fit) = min(ours), min(bare)
            kept = kept and wall <= LIMIT * bare_wall and mib <= LIMIT * bare_mib
            print(
                f"| {engine} | {wall:.1f} s | {bare_wall:.1f} s ({bare_fit:.1f} without imports) "
                f"| {wall / bare_wall - 1:+.1%} "
                f"| {mib:.0f} MiB | {bare_mib:.0f} MiB | {mib / bare_mib - 1:+.1%} |",
                flush=True,
            )
    tell_load()
    if budget_s >= 60 and not kept:
        sys.exit("A limit was missed.")


def as_csv(folder: Path) -> bytes:
    import polars as pl

    return pl.read_parquet(folder / "learn.parquet").write_csv().encode()


if __name__ == "__main__":
    main()
