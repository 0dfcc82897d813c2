from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.decorators import display

from accounts.console import ReadOnly, acts, operator
from clusters import actions, totals, words
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
from workers.admin import STATES

LABELS = {
    **STATES, "pending": "info", "scheduled": "info", "starting": "primary",
    "preempted": "warning", "stopping": "warning",
}  # fmt: skip


@admin.register(Cluster)
class ClusterAdmin(ReadOnly):
    list_display = ("name", "organization", "nodes", "deployments", "limits", "created_at")
    list_filter = (("organization", AutocompleteSelectFilter),)
    list_select_related = ("organization",)
    search_fields = ("name", "id", "organization__name")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Cluster]:
        found: QuerySet[Cluster] = totals.counted(super().get_queryset(request))
        return found

    @admin.display(description="Nodes")
    def nodes(self, cluster: Any) -> int:
        return int(cluster.node_count)

    @admin.display(description="Deployments")
    def deployments(self, cluster: Any) -> int:
        return int(cluster.deployment_count)

    @admin.display(description="Limit")
    def limits(self, cluster: Cluster) -> str:
        said = (cluster.max_ram_mib, cluster.max_cpu_millis, cluster.max_gpus)
        return words.amounts([one or 0 for one in said]) if cluster.limit else "none"


@admin.register(ClusterLoad)
class ClusterLoadAdmin(ReadOnly):
    list_display = ("at", "cluster", "online", "nodes", "has", "taken", "left")
    list_select_related = ("cluster",)
    search_fields = ("cluster__name", "cluster__id")

    @admin.display(description="Total")
    def has(self, load: ClusterLoad) -> str:
        return words.amounts(load.total)

    @admin.display(description="Allocated")
    def taken(self, load: ClusterLoad) -> str:
        return words.amounts(load.allocated)

    @admin.display(description="Free")
    def left(self, load: ClusterLoad) -> str:
        return words.amounts(load.free)


@admin.register(ClusterNode)
class ClusterNodeAdmin(ReadOnly):
    list_display = ("worker", "cluster", "organization", "created_at")
    list_filter = (("organization", AutocompleteSelectFilter),)
    list_select_related = ("worker", "cluster", "organization")
    search_fields = ("worker__name", "cluster__name", "organization__name")


@admin.register(Deployment)
class DeploymentAdmin(ReadOnly):
    list_display = (
        "name", "organization", "cluster", "is_now", "ready", "replicas", "urgency", "preemptible",
        "why", "failures", "created_by", "created_at",
    )  # fmt: skip
    list_filter = (
        "state", "priority", "preemptible", ("organization", AutocompleteSelectFilter),
        ("cluster", AutocompleteSelectFilter),
    )  # fmt: skip
    list_select_related = ("organization", "cluster", "created_by")
    search_fields = ("name", "id", "organization__name", "error")
    date_hierarchy = "created_at"
    actions = ("stop",)

    @display(description="State", ordering="state", label=LABELS)
    def is_now(self, one: Deployment) -> str:
        return str(one.state)

    @admin.display(description="Priority", ordering="priority")
    def urgency(self, one: Deployment) -> str:
        return str(one.get_priority_display())

    @admin.display(description="Waits because")
    def why(self, one: Deployment) -> str:
        return words.reason(one.wait) if one.wait else ""

    @acts(
        "Stop",
        done="stops",
        consequence="Their replicas end now. Members of the organization can start them again.",
    )
    def stop(self, request: HttpRequest, one: Deployment) -> None:
        actions.stop(operator(request), one)


@admin.register(Revision)
class RevisionAdmin(ReadOnly):
    list_display = ("deployment", "number", "model", "image", "made_by", "created_at")
    list_select_related = ("deployment", "model")
    search_fields = ("deployment__name", "model__name", "image")
    date_hierarchy = "created_at"
    exclude = ("env_sealed",)


@admin.register(Dependency)
class DependencyAdmin(ReadOnly):
    list_display = ("deployment", "needs")
    list_select_related = ("deployment", "needs")
    search_fields = ("deployment__name", "needs__name")


@admin.register(Replica)
class ReplicaAdmin(ReadOnly):
    list_display = (
        "deployment", "number", "generation", "organization", "node_name", "is_now", "fault", "why",
        "created_at", "running_since", "ended_at",
    )  # fmt: skip
    list_filter = (
        "state", "fault", ("organization", AutocompleteSelectFilter),
        ("node", AutocompleteSelectFilter),
    )  # fmt: skip
    list_select_related = ("deployment", "organization")
    search_fields = ("deployment__name", "id", "node_name", "why")
    date_hierarchy = "created_at"

    @display(description="State", ordering="state", label=LABELS)
    def is_now(self, one: Replica) -> str:
        return str(one.state)


@admin.register(LogLine)
class LogLineAdmin(ReadOnly):
    """Without what was printed: that is the tenant's."""

    list_display = ("deployment", "replica", "revision", "at")
    list_select_related = ("deployment",)
    search_fields = ("deployment__name",)
    date_hierarchy = "at"
    exclude = ("text",)


@admin.register(ServedMinute)
class ServedMinuteAdmin(ReadOnly):
    list_display = ("deployment", "minute", "revision", "requests", "refused", "errors", "rows")
    list_select_related = ("deployment",)
    search_fields = ("deployment__name",)
    date_hierarchy = "minute"


@admin.register(Sample)
class SampleAdmin(ReadOnly):
    """Without the rows themselves: they are the tenant's."""

    list_display = ("deployment", "prediction", "row", "revision", "at")
    list_select_related = ("deployment",)
    search_fields = ("deployment__name",)
    date_hierarchy = "at"
    exclude = ("values", "predicted")


@admin.register(DriftReport)
class DriftReportAdmin(ReadOnly):
    list_display = ("deployment", "revision", "at", "rows", "drifted")
    list_select_related = ("deployment",)
    search_fields = ("deployment__name",)
    date_hierarchy = "at"


@admin.register(Outcome)
class OutcomeAdmin(ReadOnly):
    """Without what was predicted and true: that is the tenant's."""

    list_display = ("deployment", "prediction", "row", "revision", "at")
    list_select_related = ("deployment",)
    search_fields = ("deployment__name",)
    date_hierarchy = "at"
    exclude = ("predicted", "truth")
