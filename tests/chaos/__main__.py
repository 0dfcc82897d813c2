"""``python -m tests.chaos`` (``make chaos``): a storm of kills, and a report of what came of it."""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from tests.chaos.desk import ROOT
from tests.chaos.fleet import Fleet
from tests.chaos.storm import ORGANIZATIONS, Report, Storm

NOTICED_S, AGAIN_S = 15.0, 20.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos ARGS=…", description=__doc__)
    parser.add_argument("--seed", type=int, help="of an earlier run, to strike the same again")
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--out", type=Path, default=ROOT / "test-artifacts", help="a folder")
    args = parser.parse_args()
    report = Report(random.randrange(10_000) if args.seed is None else args.seed, args.tasks)
    say(f'seed {report.seed}: `make chaos ARGS="--seed {report.seed}"` strikes the same again')
    with tempfile.TemporaryDirectory(prefix="flowml-chaos-") as folder:
        try:
            with Fleet(Path(folder)) as fleet:
                Storm(fleet, report, say).whole()
        except AssertionError as error:
            report.wrong.append(str(error))
        if report.wrong:
            keep(Path(folder), args.out / f"chaos-{report.seed}")
    if report.noticed_s and max(report.noticed_s) > NOTICED_S:
        report.wrong.append(f"a dead node was noticed only after {max(report.noticed_s):.1f} s")
    if report.runs_again_s and max(report.runs_again_s) > AGAIN_S:
        report.wrong.append(f"its task ran again only after {max(report.runs_again_s):.1f} s")
    # Of few tasks each is a good part of a share: four of them are forgiven.
    if report.unfair_percent > max(10.0, 4 * 100 * ORGANIZATIONS / report.tasks):
        report.wrong.append(f"one share is {report.unfair_percent:.1f}% from fair")
    args.out.mkdir(parents=True, exist_ok=True)
    text = "\n".join(report.lines())
    (args.out / "chaos.txt").write_text(text + "\n")
    (args.out / "chaos.json").write_text(json.dumps(report.as_json(), indent=1))
    say(text)
    return 1 if report.wrong else 0


def keep(folder: Path, target: Path) -> None:
    """Keep the logs of a run that went wrong."""
    target.mkdir(parents=True, exist_ok=True)
    for log in [*folder.glob("*.log"), *(folder / "var" / "logs").glob("*.log")]:
        (target / log.name).write_bytes(log.read_bytes())


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
