"""How long it takes to read a table: a CSV of 1,000,000 rows and 20 mixed columns.

FlowML's ingest (strict reading, types over the whole file, Parquet, full statistics) beside what
Polars takes for the same CSV to Parquet alone, and beside pandas' reading and ``describe`` where an
engine's virtualenv has pandas. Each runs in a process of its own, by turns, on the same machine in
the same minutes; imports are not counted. Peak memory is the process's.

    python -m benchmarks.ingest [--rows 1000000] [--rounds 3]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

ROOT = Path(__file__).resolve().parents[1]
WORDS = [f"{first}{second}" for first in "bdfgk" for second in ("alt", "en", "ilo", "ur")]
BARE = "polars, CSV to Parquet"
LIMIT_RATIO, LIMIT_MIB = 2.0, 1536

START = """
import json, sys, time
path = sys.argv[1]
"""
END = """
wall, cpu = time.perf_counter() - begun, time.process_time() - used
# Not ru_maxrss, which begins with what the parent had.
peak = int(next(s for s in open("/proc/self/status") if s.startswith("VmHWM")).split()[1]) / 1024
print(json.dumps({"wall_s": wall, "cpu_s": cpu, "peak_mib": peak}))
"""
CLOCK = "begun, used = time.perf_counter(), time.process_time()\n"
FLOWML = (
    START
    + """
from datasets import ingest
class Channel:
    def progress(self, *a, **k): pass
    def notice(self, *a, **k): pass
"""
    + CLOCK
    + "ingest.run({'inputs': {'upload': path}, 'payload': {'filename': 't.csv'}}, Channel())\n"
    + END
)
POLARS = (
    START
    + "import polars as pl\n"
    + CLOCK
    + "pl.scan_csv(path).sink_parquet('bare.parquet')\n"
    + END
)
POLARS_DATES = POLARS.replace("scan_csv(path)", "scan_csv(path, try_parse_dates=True)")
PANDAS = (
    START + "import pandas as pd\n" + CLOCK + "pd.read_csv(path).describe(include='all')\n" + END
)


def write_table(path: Path, rows: int) -> None:
    """Ids, codes, numbers, categories, a flag, dates, times and quoted texts; 2 % missing."""
    rng = np.random.default_rng(7)

    def gappy(values: np.ndarray, share: float) -> pl.Series:
        frame = pl.DataFrame({"v": values, "gap": rng.random(rows) < share})
        return frame.select(pl.when(~pl.col("gap")).then("v")).to_series()

    columns: dict[str, Any] = {"id": np.arange(rows)}
    for i in range(6):
        columns[f"f{i}"] = gappy(np.round(rng.normal(size=rows) * 10**i, 4), 0.02)
    for i in range(3):
        columns[f"i{i}"] = gappy(rng.integers(0, 10 ** (i + 1), rows), 0.01)
    for i, kinds in enumerate((3, 12, 200, 5000)):
        names = np.array([f"{WORDS[k % 20]}_{k}" for k in range(kinds)])
        columns[f"c{i}"] = gappy(names[rng.integers(0, kinds, rows)], 0.03)
    columns["flag"] = gappy(rng.random(rows) < 0.3, 0.01)
    columns["day"] = pl.Series(rng.integers(16_000, 19_000, rows), dtype=pl.Int32).cast(pl.Date)
    seconds = rng.integers(1_400_000_000, 1_500_000_000, rows) * 1_000_000
    columns["at"] = pl.Series(seconds).cast(pl.Datetime("us"))
    columns["zip"] = pl.Series(rng.integers(0, 99_999, rows)).cast(pl.String).str.zfill(5)
    words = [pl.Series(np.array(WORDS)[rng.integers(0, 20, rows)]) for _ in range(6)]
    columns["text"] = words[0] + " " + words[1] + " " + words[2] + ", " + words[3] + " " + words[4]
    columns["price"] = np.round(rng.gamma(2, 20, rows), 2)
    pl.DataFrame(columns).write_csv(path, datetime_format="%Y-%m-%d %H:%M:%S")


def measure(python: str, code: str, path: Path, folder: Path) -> dict[str, float]:
    done = subprocess.run(
        [python, "-c", code, str(path)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="flowml-ingest-") as name:
        folder = Path(name)
        path = folder / "table.csv"
        write_table(path, asked.rows)
        size = path.stat().st_size / 2**20
        print(f"{asked.rows:,} rows x 20 columns, {size:.0f} MiB, {os.cpu_count()} cores")
        peers = {
            BARE: (sys.executable, POLARS),
            "flowml ingest": (sys.executable, FLOWML),
            "polars, with dates as dates": (sys.executable, POLARS_DATES),
        }
        pandas = ROOT / ".venvs" / "pycaret" / "bin" / "python"
        for turn in range(asked.rounds):
            for peer, (python, code) in peers.items():
                runs.setdefault(peer, []).append(measure(python, code, path, folder))
            if turn == 0 and pandas.exists():
                runs["pandas, read and describe"] = [measure(str(pandas), PANDAS, path, folder)]
    for peer, found in runs.items():
        middle = {key: statistics.median(run[key] for run in found) for key in found[0]}
        print(
            f"{peer:<28} {middle['wall_s']:6.2f} s   {middle['cpu_s']:6.2f} CPU s   "
            f"{middle['peak_mib']:6.0f} MiB   n={len(found)}"
        )
    # By turns: each ratio compares neighbours in time, so a busy minute weighs on both.
    pairs = zip(runs["flowml ingest"], runs[BARE], strict=True)
    ratio = statistics.median(ours["wall_s"] / bare["wall_s"] for ours, bare in pairs)
    peak = max(run["peak_mib"] for run in runs["flowml ingest"])
    ratio_met, peak_met = (
        "" if met else "  ** LIMIT MISSED **" for met in (ratio <= LIMIT_RATIO, peak <= LIMIT_MIB)
    )
    print(
        f"flowml takes {ratio:.2f} times as long as polars alone (limit {LIMIT_RATIO:.1f})"
        f"{ratio_met}"
    )
    print(f"flowml's peak memory is {peak:.0f} MiB (limit {LIMIT_MIB}){peak_met}")


if __name__ == "__main__":
    main()
