"""The first page of the operator's console: what hurts, worst first, and what to do about it.

The page fetches itself again every ten seconds and swaps ``#console`` (templates/admin/index.html);
the charts are drawn by static/js/console.js from the JSON that stands in it.
"""

from typing import Any

from django.contrib.auth.models import AbstractUser
from django.http import HttpRequest
from django.urls import reverse

from flowml_site import figures
from flowml_site.findings import Finding, Severity, Snapshot, ago, findings, size

MOST_NODES = 20


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """Unfold's DASHBOARD_CALLBACK: add ``console`` for staff who may look at tasks and nodes."""
    assert isinstance(request.user, AbstractUser)
    if request.user.has_perms(["workers.view_task", "workers.view_worker"]):
        context["console"] = facts(figures.look())
        context["title"] = "Overview"
    return context


def facts(seen: Snapshot) -> dict[str, Any]:
    """What the template shows of a snapshot."""
    found = findings(seen)
    gpus = sum(node.gpus for node in seen.nodes if node.state != "gone")
    failed = sum(one.count for one in seen.failures)
    order = {"gone": 0, "draining": 1, "alive": 2}
    nodes = sorted(seen.nodes, key=lambda node: (order[node.state], node.silent_s > 86_400))
    return {
        "at": seen.at,
        "findings": [row(one) for one in found],
        "counts": [
            severity.of(count)
            for severity in reversed(Severity)
            if (count := sum(one.severity == severity for one in found))
        ],
        "calm": not any(one.severity > Severity.NOTE for one in found),
        "tiles": [
            ("Waiting", f"{seen.waiting:,}", "tasks", _list("task", "state__exact=queued")),
            ("Running", f"{seen.running:,}", "tasks", _list("task", "state__exact=running")),
            (
                "Nodes",
                f"{len(seen.nodes_that_are('alive')):,}",
                _states(seen),
                _list("worker"),
            ),
            (
                "GPUs",
                f"{sum(node.gpus_busy for node in seen.nodes)} of {gpus}" if gpus else "0",
                "in use" if gpus else "in the fleet",
                _list("worker"),
            ),
            (
                "Failed",
                f"{failed:,}",
                f"of {seen.ended:,} in 24 h",
                _list("task", "trouble=failed-today"),
            ),
            (
                "Stored",
                size(seen.stored_bytes),
                "" if seen.disk_free_bytes is None else f"{size(seen.disk_free_bytes)} free",
                _list("artifact", "o=-3"),
            ),
        ],
        "queues": [
            {
                "queue": queue,
                "oldest": ago(queue.oldest_s) if queue.waiting else "",
                "href": _list("task", f"queue={queue.name}"),
            }
            for queue in seen.queues
        ],
        "nodes": [
            {
                "node": node,
                "silent": ago(node.silent_s),
                "disk": None if node.disk_free_mib is None else size(node.disk_free_mib * 2**20),
                "href": reverse("admin:workers_worker_change", args=[node.id]),
            }
            for node in nodes[:MOST_NODES]
        ],
        "more_nodes": max(0, len(nodes) - MOST_NODES),
        "nodes_href": _list("worker"),
        "chart": {
            "hours": [f"{hour.at:%H:%M}" for hour in seen.hours],
            "succeeded": [hour.succeeded for hour in seen.hours],
            "failed_work": [hour.failed_work for hour in seen.hours],
            "failed_platform": [hour.failed_platform for hour in seen.hours],
            "cancelled": [hour.cancelled for hour in seen.hours],
            "waiting": [hour.waiting for hour in seen.hours],
        },
    }


def row(one: Finding) -> dict[str, Any]:
    """A finding with the address of the list that it is about."""
    href = reverse(one.page) + (f"?{one.query}" if one.query else "") if one.page else ""
    return {"finding": one, "word": one.severity.word, "href": href}


def _list(model: str, query: str = "") -> str:
    return reverse(f"admin:workers_{model}_changelist") + (f"?{query}" if query else "")


def _states(seen: Snapshot) -> str:
    draining, gone = len(seen.nodes_that_are("draining")), len(seen.nodes_that_are("gone"))
    return f"alive, {draining} draining, {gone} gone"
