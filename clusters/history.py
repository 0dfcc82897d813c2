"""What clusters had, what was allocated of it and what was free: every five minutes, for a week."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from django.utils import timezone

from clusters import totals
from clusters.models import Cluster, ClusterLoad
from clusters.scheduling import Resources

STEP_S = 300
KEPT = timedelta(days=7)
HOURS = {24: 15, 168: 120}  # that are shown, and how many minutes a step of theirs is


class Step(NamedTuple):
    """The most that there was and that was allocated in a while, and the least that was free.

    All None where nobody looked: control was away.
    """

    at: datetime
    total: Resources | None = None
    allocated: Resources | None = None
    free: Resources | None = None
    nodes: int | None = None
    online: int | None = None  # the fewest


def note(now: datetime | None = None) -> None:
    """Keep how all clusters are now, and forget what is older than a week."""
    now = now or timezone.now()
    at = datetime.fromtimestamp(now.timestamp() // STEP_S * STEP_S, UTC)
    rows = []
    clusters: list[Any] = list(Cluster.objects.all())
    for cluster in clusters:
        totals.add_details(cluster)
        online = sum(row["state"] != "offline" for row in cluster.rows)
        rows.append(
            ClusterLoad(
                cluster=cluster, at=at, nodes=len(cluster.rows), online=online,
                total=cluster.total, allocated=cluster.allocated, free=cluster.free,
            )
        )  # fmt: skip
    ClusterLoad.objects.bulk_create(rows, ignore_conflicts=True)
    ClusterLoad.objects.filter(at__lt=now - KEPT).delete()


def steps(cluster: Cluster, hours: int, now: datetime | None = None) -> list[Step]:
    """The last hours (a key of HOURS), oldest first, from the first that anything is known of."""
    step_s = HOURS[hours] * 60
    end = int((now or timezone.now()).timestamp() // step_s) * step_s
    start = end - hours * 3600 + step_s
    found: dict[int, list[ClusterLoad]] = defaultdict(list)
    for row in cluster.loads.filter(at__gte=datetime.fromtimestamp(start, UTC)).order_by("at"):
        found[int(row.at.timestamp() // step_s) * step_s].append(row)
    first = min(found, default=end + 1)
    return [_step(at, found[at]) for at in range(first, end + 1, step_s)]


def _step(at: int, rows: list[ClusterLoad]) -> Step:
    when = datetime.fromtimestamp(at, UTC)
    if not rows:
        return Step(when)
    return Step(
        when,
        Resources(*map(max, zip(*(row.total for row in rows), strict=True))),
        Resources(*map(max, zip(*(row.allocated for row in rows), strict=True))),
        Resources(*map(min, zip(*(row.free for row in rows), strict=True))),
        max(row.nodes for row in rows),
        min(row.online for row in rows),
    )
