"""The pages of an organization: members, usage, tokens, audit. Rules are in the actions."""

from collections.abc import Callable
from functools import wraps
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.debug import sensitive_variables
from django.views.decorators.http import require_GET, require_POST

from accounts.errors import FlowError, NotFound
from accounts.models import User
from accounts.pages import tells_problems
from accounts.pagination import Paginator
from organizations import actions, deletion, exports, invites, quotas, service, trail, usage
from organizations.access import SESSION_KEY, OrgRequest, org_role
from organizations.files import file_response
from organizations.models import Membership, OrganizationExport, Role, ServiceToken
from organizations.views import join_link

TABS = {
    "members": ("Members", Role.VIEWER),
    "usage": ("Quotas and use", Role.VIEWER),
    "tokens": ("Service tokens", Role.ADMIN),
    "audit": ("Audit log", Role.ADMIN),
    "settings": ("Settings", Role.VIEWER),
}
PER_PAGE = 50


@require_GET
@org_role(Role.VIEWER, while_deleting=True)
@tells_problems
def detail(request: OrgRequest) -> HttpResponse:
    if request.membership.organization.delete_after is not None:
        return _page(request, "settings", tabs=[])
    return _page(request, request.GET.get("tab", "members"))


def _page(request: OrgRequest, tab: str, *, status: int = 200, **more: Any) -> HttpResponse:
    me = request.membership
    tabs = [(key, title) for key, (title, role) in TABS.items() if me.may(role)]
    tab = tab if tab in dict(tabs) else "members"
    context = {
        "section": "organization",
        "organization": me.organization,
        "me": me,
        "is_admin": me.may(Role.ADMIN),
        "tabs": tabs,
        "tab": tab,
        "roles": Role.choices,
        **_SHOWN[tab](request),
        **more,
    }
    return render(request, "organizations/detail.html", context, status=status)


def _members(request: OrgRequest) -> dict[str, Any]:
    me = request.membership
    found = Membership.objects.filter(organization=me.organization_id).select_related("user")
    page = Paginator(found.order_by("joined_at", "pk"), PER_PAGE).get_page(request.GET.get("page"))
    for member in page:
        member.key = str(member.pk)  # type: ignore[attr-defined]  # of its dialog
    shown: dict[str, Any] = {"page": page}
    if me.may(Role.ADMIN):
        try:
            invite = invites.current(me)
            shown |= {"invite": invite, "link": join_link(invite)}
        except NotFound:
            shown["invite"] = None
    return shown


def _usage(request: OrgRequest) -> dict[str, Any]:
    home = request.membership.organization
    found = usage.history(home)
    rows = [
        row
        | {
            "unit_word": "" if row["unit"] == "count" else row["unit"],
            "used_words": None if row["used"] is None else _words(row, row["used"]),
            "limit_words": None if row["limit"] is None else _words(row, row["limit"]),
        }
        for row in quotas.report(home)
    ]
    return {
        "quotas": rows,
        "months": [month for month in reversed(found["months"]) if _anything(month)],
        "days": found["days"],
        "cpu_by_day": [day["cpu_hours"] for day in found["days"]],
        "gpu_by_day": [day["gpu_hours"] for day in found["days"]],
        "any_gpu": any(day["gpu_hours"] for day in found["days"]),
        "any_use": any(map(_anything, found["months"])),
        "cpu_total": sum(day["cpu_hours"] for day in found["days"]),
        "cpu_most": max(day["cpu_hours"] for day in found["days"]),
        "gpu_total": sum(day["gpu_hours"] for day in found["days"]),
    }


def _anything(month: dict[str, Any]) -> bool:
    return bool(month["tasks"] or month["cpu_hours"] or month["gpu_hours"])


def _words(row: dict[str, Any], amount: float) -> str:
    return quotas.in_words(amount, "" if row["unit"] == "count" else row["unit"])


def _tokens(request: OrgRequest) -> dict[str, Any]:
    found = ServiceToken.objects.of(request.membership.organization).filter(revoked_at=None)
    return {"tokens": found, "kinds": ServiceToken.Actions}


def _audit(request: OrgRequest) -> dict[str, Any]:
    asked = {key: request.GET.get(key, "") for key in ("verb", "search", "since", "until")}
    problem = ""
    try:
        entries = trail.found(request.membership, asked)
    except FlowError as error:
        problem, entries = error.detail, trail.found(request.membership, {})
    query = request.GET.copy()
    query.pop("page", None)
    query.pop("tab", None)
    return {
        "page": Paginator(entries, PER_PAGE).get_page(request.GET.get("page")),
        "asked": asked,
        "problem": problem,
        "filtered": any(asked.values()),
        "query": query.urlencode(),
    }


def _settings(request: OrgRequest) -> dict[str, Any]:
    me = request.membership
    others = Membership.objects.filter(organization=me.organization_id).exclude(pk=me.pk)
    exported = list(OrganizationExport.objects.of(me.organization)[:5])
    going_on = (OrganizationExport.State.QUEUED, OrganizationExport.State.RUNNING)
    return {
        "exports": exported if me.may(Role.ADMIN) else [],
        "under_way": any(one.state in going_on for one in exported),
        "grace_days": settings.DELETION_DAYS,
        "heirs": others.select_related("user").order_by("user__username")[:200]
        if me.may(Role.ADMIN)
        else [],
    }


_SHOWN: dict[str, Callable[[OrgRequest], dict[str, Any]]] = {
    "members": _members,
    "usage": _usage,
    "tokens": _tokens,
    "audit": _audit,
    "settings": _settings,
}


# --- What its buttons do -------------------------------------------------------------------------


def _acts(tab: str) -> Callable[[Callable[..., str]], Callable[..., HttpResponse]]:
    """A button of a tab: does something, says what came of it, and shows the tab again."""

    def decorate(act: Callable[..., str]) -> Callable[..., HttpResponse]:
        @wraps(act)
        def done(request: OrgRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            try:
                messages.success(request, act(request, *args, **kwargs))
            except FlowError as error:
                messages.error(request, error.detail)
            return redirect(f"{reverse('organizations:detail')}?tab={tab}")

        return done

    return decorate


def _whole(text: str | None, usual: int | None = None) -> int | None:
    """A number of a form; None for an empty field, ``usual`` for one that isn't there."""
    if text is None:
        return usual
    if not text.strip():
        return None
    return int(text) if text.strip().isdecimal() else 0  # which no limit allows


def _role(text: str | None) -> int:
    return int(text) if text in {str(role.value) for role in Role} else Role.VIEWER


@require_POST
@org_role(Role.ADMIN)
@_acts("settings")
def rename(request: OrgRequest) -> str:
    organization = actions.rename(request.membership, request.POST.get("name", ""))
    return f"The organization is called {organization} now."


@require_POST
@org_role(Role.ADMIN)
@_acts("members")
def change_role(request: OrgRequest, user: UUID) -> str:
    member = actions.change_role(request.membership, user, _role(request.POST.get("role")))
    return f"{member.user} is {member.get_role_display()} now."


@require_POST
@org_role(Role.ADMIN)
@_acts("members")
def remove_member(request: OrgRequest, user: UUID) -> str:
    actions.remove_member(request.membership, user)
    return "The member is removed. The invite code was withdrawn too, since they may know it."


@require_POST
@org_role(Role.ADMIN)
@_acts("members")
def renew_invite(request: OrgRequest) -> str:
    invites.renew(
        request.membership,
        role=_role(request.POST.get("role")),
        valid_days=_whole(request.POST.get("valid_days"), invites.DAYS),
        max_uses=_whole(request.POST.get("max_uses")),
    )
    return "There is a new invite code. The one before it opens nothing any more."


@require_POST
@org_role(Role.ADMIN)
@_acts("members")
def withdraw_invite(request: OrgRequest) -> str:
    invites.withdraw(request.membership)
    return "The invite code is withdrawn: nobody can join by it any more."


@require_POST
@org_role(Role.ADMIN)
@_acts("members")
def transfer(request: OrgRequest) -> str:
    try:
        heir = UUID(request.POST.get("user", ""))
    except ValueError:
        raise NotFound("Choose the member who takes over.") from None
    member = actions.transfer(request.membership, heir)
    return f"{member.user} is admin now, and you are developer."


@require_POST
@org_role(Role.ADMIN, while_deleting=True)
@_acts("settings")
def export(request: OrgRequest) -> str:
    exports.ask(request.membership)
    return "The export is being made. It appears below as soon as it is ready."


@require_GET
@org_role(Role.ADMIN, while_deleting=True)
@tells_problems
def export_file(request: OrgRequest, export: UUID) -> StreamingHttpResponse:
    mine = OrganizationExport.objects.of(request.membership.organization)
    found = get_object_or_404(mine.select_related("organization"), pk=export)
    file, name = exports.download(request.membership, found)
    return file_response(file, filename=name, content_type="application/zip")


@require_POST
@org_role(Role.ADMIN, while_deleting=True)
@_acts("settings")
def discard_export(request: OrgRequest, export: UUID) -> str:
    mine = OrganizationExport.objects.of(request.membership.organization)
    exports.discard(request.membership, get_object_or_404(mine, pk=export))
    return "The export is deleted."


@require_POST
@org_role(Role.ADMIN, while_deleting=True)
@_acts("settings")
def delete(request: OrgRequest) -> str:
    me = request.membership
    gone = deletion.ask(me, me.organization, name=request.POST.get("name", ""))
    return f"{gone} is closed, and will be deleted. Until then you can restore it."


@require_POST
@org_role(Role.ADMIN, while_deleting=True)
@_acts("settings")
def restore(request: OrgRequest) -> str:
    return f"{deletion.restore(request.membership, request.membership.organization)} is restored."


@require_POST
@org_role(Role.VIEWER, while_deleting=True)
def leave(request: OrgRequest) -> HttpResponse:
    try:
        actions.leave(request.membership)
    except FlowError as error:
        messages.error(request, error.detail)
        return redirect(f"{reverse('organizations:detail')}?tab=settings")
    request.session.pop(SESSION_KEY, None)
    messages.success(request, f"You have left {request.membership.organization}.")
    return redirect("organizations:mine")


@require_POST
@sensitive_variables("secret")
@org_role(Role.ADMIN)
def make_token(request: OrgRequest) -> HttpResponse:
    """Make a service token and show its secret, this once."""
    asked = request.POST
    kind = asked.get("actions", "")
    try:
        token, secret = service.make(
            request.membership,
            name=asked.get("name", ""),
            actions=kind if kind in ServiceToken.Actions.values else ServiceToken.Actions.PREDICT,
            model=UUID(asked["model"]) if asked.get("model") else None,
            deployment=UUID(asked["deployment"]) if asked.get("deployment") else None,
            expires_in_days=_whole(asked.get("expires_in_days")),
        )
    except ValueError:
        messages.error(
            request, "Models and deployments are named by their ids, as in their addresses."
        )
        return redirect(f"{reverse('organizations:detail')}?tab=tokens")
    except FlowError as error:
        return _page(request, "tokens", status=422, problem=error.detail, form=asked)
    return _page(request, "tokens", made=token, secret=secret)


@require_POST
@org_role(Role.ADMIN)
@_acts("tokens")
def revoke_token(request: OrgRequest, token: UUID) -> str:
    service.revoke(request.membership, token)
    return "The token is revoked: nothing gets in by it any more."


@require_GET
@org_role(Role.ADMIN)
@tells_problems
def audit_csv(request: OrgRequest) -> HttpResponse:
    return trail.as_csv(request.membership, request.GET.dict())


# --- Of the person, in an organization or in none ------------------------------------------------


@require_GET
@login_required
def mine(request: HttpRequest) -> HttpResponse:
    """One's organizations, to change over, to make one and to join one. A fragment for htmx."""
    assert isinstance(request.user, User)
    memberships = list(
        Membership.objects.filter(user=request.user)
        .select_related("organization")
        .order_by("joined_at", "pk")
    )
    chosen = request.session.get(SESSION_KEY)
    active = next((one for one in memberships if str(one.organization_id) == chosen), None)
    active = active or (memberships[0] if memberships else None)
    if active is not None:
        request.membership = active  # type: ignore[attr-defined]  # the frame names it
    fragment = request.headers.get("HX-Request") and not request.headers.get("HX-Boosted")
    template = "organizations/_switch.html" if fragment else "organizations/mine.html"
    context = {"section": "organization", "memberships": memberships, "active": active}
    response = render(request, template, context)
    response["Vary"] = "HX-Request, Cookie"
    return response


@require_POST
@login_required
@tells_problems
def make(request: HttpRequest) -> HttpResponse:
    assert isinstance(request.user, User)
    made = actions.make_organization(request.user, name=request.POST.get("name", ""))
    request.session[SESSION_KEY] = str(made.organization_id)
    messages.success(request, f"{made.organization} is there, and you are its admin.")
    return redirect("organizations:detail")
