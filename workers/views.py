"""The page of the fleet: nodes, their state, and the line that joins a machine."""

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_POST

from accounts.errors import FlowError, NotFound
from accounts.models import User
from organizations.access import OrgRequest, org_role
from organizations.models import Role
from workers import fleet, joining
from workers.api.fleet import ACTIONS, command_for
from workers.models import Worker

TIGHT = 0.9  # of a machine's memory
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
                "gauges": _gauges(node),
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


def _gauges(node: Worker) -> list[dict[str, Any]]:
    """What a machine has, and the share of it that is in use where the machine says so now."""
    has = node.capabilities
    usage = {} if fleet.state_of(node) == "offline" else node.usage
    cores, busy = f"{has.get('cpu', 0):g}", usage.get("cpu_percent")
    ram, used = has.get("ram_mib", 0), usage.get("ram_used_mib")
    found = [
        {"name": "CPU", "share": None, "words": _("{cores} cores").format(cores=cores)},
        {"name": _("Memory"), "share": None, "words": f"{ram / 1024:.1f} GiB"},
    ]
    if busy is not None:
        found[0]["share"] = busy / 100
        found[0]["words"] = _("{cores} cores, {busy:.0f} % busy").format(cores=cores, busy=busy)
    if used is not None and ram:
        found[1]["share"], found[1]["is_tight"] = used / ram, used > TIGHT * ram
        found[1]["words"] = _("{gib:.1f} GiB, {used:.1f} used").format(
            gib=ram / 1024, used=used / 1024
        )
    now = {use.get("index"): use for use in usage.get("gpus") or ()}
    for place, gpu in enumerate(has.get("gpus") or ()):
        use, gib = now.get(gpu.get("index", place), {}), gpu.get("memory_mib", 0) / 1024
        shown = {"name": gpu.get("name") or "GPU", "share": None, "words": f"{gib:.0f} GiB"}
        if use.get("percent") is not None:
            shown["share"] = use["percent"] / 100
            shown["words"] = _("{busy:.0f} % busy, {used:.1f} of {gib:.0f} GiB").format(
                busy=use["percent"], used=(use.get("memory_used_mib") or 0) / 1024, gib=gib
            )
        found.append(shown)
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
