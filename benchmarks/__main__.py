"""Run every benchmark, or those that are named: ``python -m benchmarks [name …]``."""

import subprocess
import sys
from pathlib import Path

NOT_ALONE = {"__init__", "__main__", "bare", "bare_model", "common", "inside", "mlflow_model"}


def main() -> None:
    there = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in NOT_ALONE)
    asked = sys.argv[1:] or there
    unknown = set(asked) - set(there)
    if unknown:
        sys.exit(
            f"There is no benchmark {', '.join(sorted(unknown))}: there are {', '.join(there)}."
        )
    for name in asked:
        print(f"\n--- {name}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)


if __name__ == "__main__":
    main()
