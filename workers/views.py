"""The page of the fleet: nodes, their state, and the line that joins a machine."""

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_POST

from accounts.errors import FlowError, NotFound
from accounts.models import User
from organizations.access import OrgRequest, org_role
from organizations.models import Role
from workers import fleet, joining
from workers.api.fleet import ACTIONS, command_for
from workers.models import Worker

DONE = {
    "drain": "takes no new work now; what it runs goes on.",
    "resume": "takes work again.",
    "restart": "starts anew as soon as what it runs has ended.",
    "remove": "has been removed. What it ran is queued again.",
}


def _shown(request: OrgRequest) -> dict[str, Any]:
    operator = fleet.is_operator(request.user)
    is_admin = request.membership.may(Role.ADMIN)
    with fleet.seen_by(request.membership, operator=operator) as found:
        nodes = list(found)
        rows = [
            {
                **fleet.told(node),
                "ram_gib": node.capabilities.get("ram_mib", 0) / 1024,
                "ram_used_gib": (node.usage.get("ram_used_mib") or 0) / 1024,
                "gpus": _gpus(node),
                "seen": node.last_seen_at,
                "mine": operator or (is_admin and node.organization_id is not None),
            }
            for node in nodes
        ]
        tasks = fleet.tasks_seen_by(request.membership, operator=operator)
        stats = fleet.stats(nodes, tasks)
        waiting = [row for row in fleet.queues(nodes, tasks) if row["depth"]]
    return {
        "waiting": waiting,
        "section": "workers",
        "nodes": rows,
        "stats": stats,
        "is_admin": is_admin,
        "is_operator": operator,
    }


def _gpus(node: Worker) -> list[dict[str, Any]]:
    """Each GPU's name, and how busy it is now where its node says."""
    now = {use.get("index"): use for use in node.usage.get("gpus") or ()}
    found = []
    for place, gpu in enumerate(node.capabilities.get("gpus") or ()):
        use = now.get(gpu.get("index", place), {})
        found.append(
            {
                "name": gpu.get("name", ""),
                "percent": use.get("percent"),
                "used_gib": (use.get("memory_used_mib") or 0) / 1024,
                "gib": gpu.get("memory_mib", 0) / 1024,
            }
        )
    return found


@require_GET
@org_role(Role.VIEWER)
def nodes(request: OrgRequest) -> HttpResponse:
    """The nodes that work for the organization, and what they do now."""
    return render(request, "workers/list.html", _shown(request))


@require_POST
@never_cache
@org_role(Role.ADMIN)
def join(request: OrgRequest) -> HttpResponse:
    """Make a join token; the line with it is shown this once."""
    for_all = request.POST.get("for") == "platform" and fleet.is_operator(request.user)
    by = request.user if isinstance(request.user, User) else None
    organization = None if for_all else request.membership.organization
    with fleet.seen_by(request.membership, operator=for_all):
        made, token = joining.make_join_token(organization, by=by)
    joins = {"command": command_for(token), "for_all": for_all, "until": made.expires_at}
    return render(request, "workers/list.html", {**_shown(request), "joins": joins})


@require_POST
@org_role(Role.ADMIN)
def act(request: OrgRequest, node: UUID, action: str) -> HttpResponse:
    """Drain, resume, restart or remove a node."""
    operator = fleet.is_operator(request.user)
    try:
        with fleet.seen_by(request.membership, operator=operator) as found:
            one = fleet.node_to_change(found, node, request.membership, operator=operator)
            ACTIONS[action](one, by=None)
    except NotFound as missing:
        raise Http404(missing.detail) from missing
    except FlowError as refusal:
        messages.error(request, refusal.detail)
    else:
        messages.success(request, f"{one.name} {DONE[action]}")
    return redirect("workers:list")
