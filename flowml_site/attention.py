"""What the members of an organization should look at: for their first page."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.core.cache import caches
from django.db.models import Exists, OuterRef, Q
from django.urls import reverse
from django.utils import timezone

from clusters import words
from clusters.models import Deployment
from organizations import quotas
from organizations.models import Organization
from pipelines.models import Run

WAITS_S = 60  # a deployment waits a moment each time that it starts
NEARLY = 0.9  # of a quota
MOST = 5
QUOTAS_KEPT_S = 60  # each is a sum over tables


@dataclass(frozen=True)
class Finding:
    """A sentence about one thing, and where to do something about it."""

    name: str
    text: str
    url: str
    is_broken: bool = False  # and not only waiting


def findings(home: Organization) -> list[Finding]:
    """What is broken first, then what waits or is nearly used up. Two queries, and the quotas'."""
    found = [*_deployments(home), *_pipelines(home), *_quotas(home)]
    return sorted(found, key=lambda one: not one.is_broken)


def _deployments(home: Organization) -> list[Finding]:
    long_ago = timezone.now() - timedelta(seconds=WAITS_S)
    broken = Q(state=Deployment.State.FAILED)
    waits = Q(waiting_since__lt=long_ago, is_started=True)
    stuck = Deployment.objects.of(home).there().filter(broken | waits)
    return [
        Finding(
            name=one.name,
            text=one.error if one.failures and one.error else words.reason(one.wait),
            url=one.get_absolute_url(),
            is_broken=one.state == Deployment.State.FAILED,
        )
        for one in stuck.order_by("-priority", "waiting_since")[:MOST]
    ]


def _pipelines(home: Organization) -> list[Finding]:
    """Those whose newest run has failed."""
    newer = Run.objects.filter(pipeline=OuterRef("pipeline"), number__gt=OuterRef("number"))
    counts = newer.exclude(state__in=(Run.State.CANCELLED, Run.State.SKIPPED))
    failed = Run.objects.of(home).filter(~Exists(counts), state=Run.State.FAILED)
    return [
        Finding(
            one.pipeline.name, f"The newest run has failed. {one.why}", one.get_absolute_url(), True
        )
        for one in failed.select_related("pipeline").order_by("-finished_at")[:MOST]
    ]


def limited(home: Organization) -> list[dict[str, Any]]:
    """The quotas that have a limit, those nearest to it first; at most a minute old."""
    kept = caches["process"]
    rows: Any = kept.get_or_set(f"quotas:{home.pk}", lambda: quotas.report(home), QUOTAS_KEPT_S)
    with_limit = [row for row in rows if row["share"] is not None]
    return sorted(with_limit, key=lambda row: row["share"], reverse=True)


def _quotas(home: Organization) -> list[Finding]:
    return [
        Finding(
            name=row["title"],
            text=f"{row['share']:.0%} of the quota is used. {row['frees']}",
            url=f"{reverse('organizations:detail')}?tab=usage",
            is_broken=row["share"] == 1.0,
        )
        for row in limited(home)
        # How many trainings there are at once changes by itself, in minutes.
        if row["unit"] != "count" and row["share"] >= NEARLY
    ]
