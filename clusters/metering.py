"""What deployments hold goes into the ledger of their organizations, slice by slice.

A replica holds its cores and GPUs from its placement to its end, whether it is asked much or
nothing, so that is what counts: reserved, not busy. Each slice moves ``metered_until`` in the
transaction that enters it. So a process that dies between two slices loses none, and two that
meter at once count none twice. Nodes of an organization's own cost nothing, as with tasks.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from clusters.models import Replica
from organizations import usage

BATCH = 500  # replicas in one transaction


def meter_all(now: datetime | None = None) -> None:
    """Enter what every replica that is there has held up to ``now``."""
    now = now or timezone.now()
    active = _paid().filter(ended_at=None, metered_until__lt=now)
    ids = list(active.order_by("pk").values_list("pk", flat=True))
    for first in range(0, len(ids), BATCH):
        # One that a cycle holds ends now, which enters the rest of it, or is met the next time.
        some = active.filter(pk__in=ids[first : first + BATCH])
        _enter(some.select_for_update(no_key=True, skip_locked=True, of=("self",)), now)


def meter_ended(replicas: Sequence[UUID]) -> None:
    """Enter what is left of replicas that have just ended. The caller holds their rows."""
    if replicas:
        _enter(_paid().filter(pk__in=replicas), timezone.now())


def _paid() -> QuerySet[Replica]:
    """On the platform's nodes."""
    return Replica.objects.filter(node__isnull=False, node__organization=None)


@transaction.atomic
def _enter(some: QuerySet[Any], now: datetime) -> None:
    held = [
        usage.Held(
            one.organization_id,
            one.pk,
            one.deployment.cpu_millis / 1000,
            one.deployment.gpus,
            one.metered_until,
            one.ended_at or now,
        )
        for one in some.select_related("deployment").order_by("pk")
        if one.metered_until < (one.ended_at or now)
    ]
    usage.note_held(held)
    for until in {one.until for one in held}:
        ids = [one.replica for one in held if one.until == until]
        Replica.objects.filter(pk__in=ids).update(metered_until=until)
