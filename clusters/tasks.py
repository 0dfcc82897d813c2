"""Short jobs of the control process."""

import logging
from datetime import timedelta
from uuid import UUID

from celery import shared_task
from django.db.models import F
from django.utils import timezone

from clusters import actions, cycle, history, metering, watch
from clusters.models import Cluster, Replica

log = logging.getLogger(__name__)


@shared_task(name="clusters.tasks.cycle")
def run_cycle(cluster: str) -> None:
    cycle.run(UUID(cluster))


@shared_task(name="clusters.tasks.sweep")
def sweep() -> None:
    """Every cluster that has something to do gets its cycle, whoever forgot to ask for it; and
    deployments keep up with the aliases that they follow."""
    actions.follow_all()
    for cluster in Cluster.objects.filter(deployments__isnull=False).distinct():
        try:
            cycle.run(cluster.pk)
        except Exception:  # what is wrong with one cluster is no other's trouble
            log.exception("a cluster was not planned", extra={"cluster": str(cluster.pk)})
    old = timezone.now() - timedelta(days=1)
    Replica.objects.filter(
        ended_at__lt=old, generation__lte=F("deployment__generation") - cycle.KEPT_ENDED
    ).delete()


@shared_task(name="clusters.tasks.meter")
def meter() -> None:
    """Enter what deployments have held since the last time."""
    metering.meter_all()


@shared_task(name="clusters.tasks.history")
def keep_history() -> None:
    """How clusters are now, for those who ask later."""
    history.note()


@shared_task(name="clusters.tasks.watch")
def flush_watch() -> None:
    """What deployments were asked, and whether it is what they were trained on."""
    watch.flush()
    actions.judge_canaries()
