"""``manage.py simulate``: a made-up month of a cluster through the scheduler, drawn."""

import json
import statistics
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.template.loader import render_to_string

from clusters.simulation import DAY, Load, Outcome, simulate

PRIORITIES = ("Low", "Medium", "High", "Critical")


class Command(BaseCommand):
    help = "Replay a month of made-up load, with failing nodes, through the scheduler."

    def add_arguments(self, parser: ArgumentParser) -> None:
        load = Load()
        parser.add_argument("--nodes", type=int, default=load.nodes)
        parser.add_argument("--days", type=float, default=load.days)
        parser.add_argument(
            "--fill",
            type=float,
            default=load.fill,
            help="the load that arrives, as a share of the resource that gets scarce first",
        )
        parser.add_argument("--seed", type=int, default=load.seed)
        parser.add_argument("--out", type=Path, default=Path("simulation.html"))

    def handle(self, *args: Any, **options: Any) -> None:
        charts = Path(settings.BASE_DIR) / "static" / "vendor" / "echarts" / "echarts.min.js"
        if not charts.is_file():
            raise CommandError("The charts' library is not there: run `make assets` first.")
        if options["nodes"] < 1 or options["days"] <= 0 or options["fill"] <= 0:
            raise CommandError("Give at least one node, and days and a fill above 0.")
        load = Load(
            nodes=options["nodes"],
            days=options["days"],
            fill=options["fill"],
            seed=options["seed"],
        )
        outcome = simulate(load)
        page = render_to_string(
            "clusters/simulation.html",
            {
                "load": load,
                "outcome": outcome,
                "rows": rows_of(outcome),
                "data": json.dumps(data_of(load, outcome)),
                "library": charts.read_text(encoding="utf-8"),
            },
        )
        options["out"].write_text(page, encoding="utf-8")
        for row in rows_of(outcome):
            self.stdout.write(
                f"{row['priority']:<9} {row['count']:>6} started   waited: median "
                f"{row['median']:.0f} s, p95 {row['p95']:.0f} s, longest {row['longest']:.0f} s   "
                f"{row['evicted']} evicted"
            )
        self.stdout.write(f"{outcome.plans} plans. The charts are in {options['out']}.")


def rows_of(outcome: Outcome) -> list[dict[str, Any]]:
    """Per priority: how many started, how long (s) they waited, how often they made room."""
    rows = []
    for priority, name in enumerate(PRIORITIES):
        waits = sorted(outcome.waits_s.get(priority, [])) or [0.0]
        rows.append(
            {
                "priority": name,
                "count": len(outcome.waits_s.get(priority, [])),
                "median": statistics.median(waits),
                "p95": waits[int(0.95 * (len(waits) - 1))],
                "longest": waits[-1],
                "evicted": sum(whose == priority for _, whose in outcome.evicted),
            }
        )
    return rows


def data_of(load: Load, outcome: Outcome) -> dict[str, Any]:
    days = range(int(load.days) + 1)
    whose = [[int(at // DAY) for at, one in outcome.evicted if one == p] for p in range(4)]
    return {
        "use": [
            [round(100 * share, 1) for share in kind] for kind in zip(*outcome.use, strict=True)
        ],
        "waiting": outcome.waiting,
        "up": outcome.nodes_up,
        "days": list(days),
        "evicted": [[those.count(day) for day in days] for those in whose],
        "priorities": PRIORITIES,
    }
