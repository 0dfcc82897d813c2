"""What a cluster has, what is taken of it, and what is free: per node and in all."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from django.db.models import Count, Q

from clusters.models import Cluster, ClusterNode
from clusters.scheduling import NOTHING, Resources
from clusters.world import minus, plus, total_of
from organizations import rls
from workers import fleet
from workers.models import Allocation


def counted(clusters: Any) -> Any:
    """Adds ``node_count`` and ``deployment_count``."""
    return clusters.annotate(
        node_count=Count("nodes", distinct=True),
        deployment_count=Count(
            "deployments", filter=Q(deployments__deleted_at=None), distinct=True
        ),
    )


def add_totals(clusters: Iterable[Any]) -> None:
    """Give each cluster its ``total``: what its nodes have, or less if less was declared."""
    found = {cluster.pk: NOTHING for cluster in clusters}
    nodes = ClusterNode.objects.filter(cluster__in=list(found))
    for cluster, capabilities in nodes.values_list("cluster_id", "worker__capabilities"):
        found[cluster] = plus(found[cluster], total_of(capabilities))
    for cluster in clusters:
        cluster.total = _within(found[cluster.pk], cluster.limit)


def _within(total: Resources, limit: Resources | None) -> Resources:
    return total if limit is None else Resources(*map(min, total, limit))


def add_details(cluster: Any) -> None:
    """Its nodes with what is taken of each, and the sums."""
    members = list(
        ClusterNode.objects.filter(cluster=cluster)
        .select_related("worker")
        .order_by("worker__name")
    )
    taken = _taken([one.worker_id for one in members], cluster)
    rows, total, allocated = [], NOTHING, NOTHING
    ours = NOTHING
    for one in members:
        has = total_of(one.worker.capabilities)
        all_, mine = taken.get(one.worker_id, (NOTHING, NOTHING))
        total, allocated, ours = plus(total, has), plus(allocated, all_), plus(ours, mine)
        rows.append(
            {
                "id": one.worker_id,
                "name": one.worker.name,
                "state": fleet.state_of(one.worker),
                "total": has,
                "allocated": all_,
                "free": _free(has, all_),
            }
        )
    cluster.rows = rows
    cluster.total = _within(total, cluster.limit)
    free = _free(total, allocated)
    if cluster.limit is not None:
        free = Resources(*map(min, free, _free(cluster.limit, ours)))
    cluster.allocated, cluster.free = allocated, free


def _free(total: Resources, taken: Resources) -> Resources:
    return Resources(*(max(0, amount) for amount in minus(total, taken)))


def _taken(nodes: list[UUID], cluster: Cluster) -> dict[UUID, tuple[Resources, Resources]]:
    """What is taken of each node: by whomever, and by the cluster's deployments."""
    found: dict[UUID, tuple[Resources, Resources]] = {}
    # The platform's nodes also do other organizations' tasks: sums of them are told, no more.
    with rls.platform():
        rows = Allocation.objects.filter(worker__in=nodes, light=False).values_list(
            "worker_id", "ram_mib", "cpu_millis", "gpus", "replica__deployment__cluster_id"
        )
        for node, ram, cpu, gpus, home in rows:
            one = Resources(ram, cpu, gpus)
            all_, mine = found.get(node, (NOTHING, NOTHING))
            found[node] = (plus(all_, one), plus(mine, one) if home == cluster.pk else mine)
    return found
