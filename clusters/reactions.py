"""What clusters do when an organization goes, what they count, and what they tell nodes."""

from uuid import UUID

from clusters import actions, nodes
from clusters.models import (
    Cluster,
    ClusterLoad,
    ClusterNode,
    Dependency,
    Deployment,
    DriftReport,
    LogLine,
    Outcome,
    Replica,
    Revision,
    Sample,
    ServedMinute,
)
from organizations import parts, service
from organizations.models import Organization
from organizations.quotas import register_meter
from workers import beats


def connect() -> None:
    parts.register(export=_export, stop=_stop, purge=_purge)
    register_meter("deployments", actions.used)
    service.register_object("deployment", _name)
    beats.register(nodes.beat)


def _name(home: Organization, pk: UUID) -> str:
    found = Deployment.objects.of(home).there().filter(pk=pk)
    return str(found.values_list("name", flat=True).first() or "")


def _export(home: Organization, bundle: parts.Bundle) -> None:
    mine = Deployment.objects.of(home)
    bundle.add_table("clusters", Cluster.objects.of(home))
    bundle.add_table("cluster_nodes", ClusterNode.objects.of(home))
    bundle.add_table("cluster_loads", ClusterLoad.objects.filter(cluster__organization=home))
    bundle.add_table("deployments", mine)
    bundle.add_table(
        "revisions", Revision.objects.filter(deployment__in=mine.values("pk")), "env_sealed"
    )
    bundle.add_table("dependencies", Dependency.objects.filter(deployment__in=mine.values("pk")))
    bundle.add_table("replicas", Replica.objects.of(home))
    for name, model in (
        ("log_lines", LogLine),
        ("served_minutes", ServedMinute),
        ("samples", Sample),
        ("drift_reports", DriftReport),
        ("outcomes", Outcome),
    ):
        bundle.add_table(name, model.objects.filter(deployment__in=mine.values("pk")))  # type: ignore[attr-defined]


def _stop(home: Organization) -> None:
    for one in Deployment.objects.of(home).there().filter(is_started=True):
        actions.stop("the organization's deletion", one)


def _purge(home: Organization) -> None:
    Replica.objects.of(home).delete()
    Deployment.objects.of(home).delete()
    Cluster.objects.of(home).delete()
