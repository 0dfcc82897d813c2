"""What FlowML adds to the library's own call when it predicts one row, engine by engine.

In each engine's virtualenv that is there, a short race; of its first single model (no blend) one
row is predicted many times, by turns: as a model server does it, from the row's values by name to
the answer (checks, types, missing values, encoding, model, names of the classes), and by the
library's own call alone, with the same fitted model and the row already in the shape that it takes.
What web and the node add to that, ``serving.py`` tells.

    python -m benchmarks.onerow [--engines sklearn,torch] [--times 500] [--budget 10]
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.common import PREFIX, at, tell_load
from benchmarks.inside import Broke, has, outside

ENGINES = ("pycaret", "sklearn", "sklearn-1.4", "flaml", "autogluon", "torch", "tensorflow")
TABLES = ("penguins", "cars")
WITH_PANDAS = "pycaret"  # which virtualenv makes the tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--times", type=int, default=500)
    parser.add_argument("--budget", type=float, default=10, help="seconds of each race")
    asked = parser.parse_args()
    tell_load()
    print("| engine | table | model | FlowML p50 | p95 | library p50 | p95 | ratio | its call |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for table in TABLES:
        for engine in filter(has, asked.engines.split(",")):
            with tempfile.TemporaryDirectory(prefix=PREFIX) as place:
                folder = Path(place)
                try:
                    target = outside(WITH_PANDAS, folder, "split", table=table)["target"]
                    wish = {"engine": engine, "target": target, "budget_s": asked.budget}
                    found = outside(
                        engine, folder, "one_row", table=table, times=asked.times, **wish
                    )
                except Broke as why:
                    print(f"| {engine} | {table} | broke: {why} |", flush=True)
                    continue
            ours, bare = found["ours"], found["bare"]
            times = [at(share, taken) for taken in (ours, bare) for share in (0.5, 0.95)]
            told = " | ".join(f"{ms:.2f} ms" for ms in times)
            print(
                f"| {engine} | {table} | {found['model']} | {told} "
                f"| x {times[0] / times[2]:.2f} | {found['call']} |",
                flush=True,
            )
    tell_load()


if __name__ == "__main__":
    main()
