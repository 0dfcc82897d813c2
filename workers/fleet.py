"""The fleet as people see it: nodes, queues, figures.

Whoever asks sees the nodes of the organization and the platform's; an operator sees all. What runs
is counted by what the asker may see, so that nobody learns what another organization does.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from django.db.models import Count, Min, Q, QuerySet
from django.utils import timezone

from accounts.authentication import scope_of
from accounts.errors import FlowError, NotFound
from accounts.models import Scope, User
from organizations import rls
from organizations.models import Membership, Role
from workers.models import OWN_NODES, Task, Worker


class NotYourNode(FlowError):
    code = "not-your-node"
    status = 403


def is_operator(user: Any, auth: Any = None) -> bool:
    """Whether somebody runs this installation, and shows a credential that suffices for it."""
    scope = scope_of(auth)
    return (
        isinstance(user, User)
        and user.is_active
        and user.is_staff
        and user.has_perm("workers.change_worker")
        and (scope is None or scope.includes(Scope.ADMIN))
    )


@contextmanager
def seen_by(membership: Membership, *, operator: bool) -> Iterator[QuerySet[Worker]]:
    """The nodes that the caller may see. An operator's request looks beyond one organization."""
    nodes = Worker.objects.select_related("organization").order_by("organization__name", "name")
    if operator:
        with rls.platform():
            yield nodes.annotate(running=Count("allocations__task"))
    else:
        mine = membership.organization_id
        running = Count("allocations__task", filter=Q(allocations__organization=mine))
        seen = nodes.filter(Q(organization=None) | Q(organization=mine))
        yield seen.annotate(running=running)


def tasks_seen_by(membership: Membership, *, operator: bool) -> QuerySet[Task]:
    """The tasks that the caller may count."""
    return Task.objects.all() if operator else Task.objects.of(membership.organization)


def node_to_change(
    nodes: QuerySet[Worker], pk: Any, membership: Membership, *, operator: bool
) -> Worker:
    """A node that the caller may act on: an operator on all, an admin on the organization's own.

    Raises NotFound for one that the caller does not see, NotYourNode for the platform's.
    """
    node = nodes.filter(pk=pk).first()
    if node is None:
        raise NotFound("There is no such node here.")
    if operator:
        return node
    if node.organization_id is None:
        raise NotYourNode("This node is the platform's: its operator changes it.")
    if not membership.may(Role.ADMIN):
        raise NotYourNode("Only an admin of your organization changes its nodes.")
    return node


def state_of(node: Worker) -> str:
    """One word: online, draining, restarting or offline."""
    if not node.is_alive:
        return "offline"
    if node.restart_asked_at is not None:
        return "restarting"
    return "draining" if node.draining else "online"


def told(node: Any) -> dict[str, Any]:
    """A node as the API shows it. ``running`` counts what the asker may see."""
    has, usage = node.capabilities, node.usage
    return {
        "id": str(node.pk),
        "name": node.name,
        "organization": str(node.organization_id) if node.organization_id else None,
        "organization_name": node.organization.name if node.organization else "",
        "state": state_of(node),
        "version": node.version,
        "queues": [queue for queue in node.queues if not queue.startswith(OWN_NODES)],
        "concurrency": node.concurrency,
        "wanted": node.wanted,
        "cpu": has.get("cpu", 0),
        "ram_mib": has.get("ram_mib", 0),
        "gpus": [
            {"name": gpu.get("name", ""), "memory_mib": gpu.get("memory_mib", 0)}
            for gpu in has.get("gpus", ())
        ],
        "engines": has.get("engines", []),
        "llm": bool(has.get("llm")),
        "system": has.get("system", ""),
        "running": node.running,
        "usage": {
            "cpu_percent": usage.get("cpu_percent"),
            "ram_used_mib": usage.get("ram_used_mib"),
            "disk_free_mib": usage.get("disk_free_mib"),
            "gpus": usage.get("gpus", []),
        },
        "last_seen_at": node.last_seen_at,
        "registered_at": node.registered_at,
    }


def stats(nodes: Sequence[Any], tasks: QuerySet[Task]) -> dict[str, Any]:
    """Sums over nodes, capacity and use of those that are online; how many of ``tasks`` wait."""
    alive = [node for node in nodes if node.is_alive]

    def total(name: str) -> float:
        return sum(node.capabilities.get(name, 0) for node in alive)

    busy = sum(
        node.capabilities.get("cpu", 0) * (node.usage.get("cpu_percent") or 0) / 100
        for node in alive
    )
    states = [state_of(node) for node in nodes]
    return {
        "nodes": {
            state: states.count(state) for state in ("online", "draining", "restarting", "offline")
        },
        "cpu": total("cpu"),
        "cpu_used": round(busy, 2),
        "ram_mib": total("ram_mib"),
        "ram_used_mib": sum(node.usage.get("ram_used_mib") or 0 for node in alive),
        "gpus": sum(len(node.capabilities.get("gpus", ())) for node in alive),
        "running": sum(node.running for node in alive),
        "waiting": tasks.filter(state=Task.State.QUEUED).count(),
    }


def requirement(queue: str) -> str:
    """What a queue asks of a node, in words."""
    own = queue.startswith(OWN_NODES)
    *engine, device = queue.removeprefix(OWN_NODES).replace("gpu.vram", "gpu+vram").split(".")
    words = {
        "cpu": "any node",
        "priority": "any node, first of all",
        "gpu": "a GPU",
        "llm": "a language model (Ollama)",
    }
    what = words.get(device) or f"a GPU with {device.removeprefix('gpu+vram')} GiB"
    if engine:
        what = f"engine {engine[0]}" + ("" if device == "cpu" else f" and {what}")
    return f"{what}, of your organization's own" if own else what


def queues(nodes: Sequence[Worker], tasks: QuerySet[Task]) -> list[dict[str, Any]]:
    """Each queue that a node serves or on which some of ``tasks`` wait, the longest wait first."""
    waiting = {
        row["queue"]: row
        for row in tasks.filter(state=Task.State.QUEUED)
        .order_by()
        .values("queue")
        .annotate(depth=Count("pk"), oldest=Min("queued_at"))
    }
    alive = [node for node in nodes if node.is_alive and not node.draining]
    names = {queue for node in alive for queue in node.queues} | set(waiting)
    now = timezone.now()
    rows = []
    for name in names:
        row = waiting.get(name)
        if row is None and name.startswith(OWN_NODES):
            continue
        rows.append(
            {
                "queue": name,
                "requirement": requirement(name),
                "depth": row["depth"] if row else 0,
                "oldest_wait_s": round((now - row["oldest"]).total_seconds(), 1) if row else None,
                "nodes": sorted(node.name for node in alive if name in node.queues),
            }
        )
    return sorted(rows, key=lambda row: (-(row["oldest_wait_s"] or 0), row["queue"]))
