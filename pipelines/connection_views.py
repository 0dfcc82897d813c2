"""The pages of connections."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.errors import FlowError
from accounts.pagination import Paginator
from organizations.access import OrgRequest, org_role
from organizations.models import Role
from pipelines import connecting, kinds
from pipelines.api.connections import ConnectionChange, NewConnection
from pipelines.models import Connection
from training.views.common import PER_PAGE

SECTION = "connections"


def _where(one: Connection) -> str:
    """What it leads to, in short."""
    settings = one.settings
    if "host" not in settings and "folder" in settings:
        return str(settings["folder"])
    if "host" not in settings:
        return kinds.KINDS[one.kind].what.partition(",")[0] if one.kind in kinds.KINDS else ""
    names = ("database", "bucket", "folder")
    within = str(next((settings[name] for name in names if settings.get(name)), ""))
    return f"{settings['host']}:{settings.get('port', '')}/{within.lstrip('/')}"


@require_GET
@org_role(Role.VIEWER)
def connections(request: OrgRequest) -> HttpResponse:
    found = Connection.objects.of(request.membership.organization).order_by("name", "id")
    page = Paginator(found, PER_PAGE).get_page(request.GET.get("page"))
    tests = connecting.last_tests(page.object_list)
    rows = [
        {"one": one, "where": _where(one), "title": _title(one), "test": tests.get(one.pk)}
        for one in page
    ]
    page.object_list = rows  # type: ignore[assignment]
    context = {
        "section": SECTION,
        "page": page,
        "may_change": request.membership.may(Role.ADMIN),
    }
    return render(request, "pipelines/connections.html", context)


def _title(one: Connection) -> str:
    return kinds.KINDS[one.kind].title if one.kind in kinds.KINDS else one.get_kind_display()


@require_http_methods(["GET", "POST"])
@org_role(Role.ADMIN)
def new_connection(request: OrgRequest) -> HttpResponse:
    kind = request.POST.get("kind") or request.GET.get("kind") or ""
    if kind not in kinds.KINDS:
        return render(
            request, "pipelines/connection_kinds.html", {"section": SECTION, "groups": _groups()}
        )
    errors: dict[str, Any] = {}
    name = request.POST.get("name", "").strip()
    settings, secrets = _typed(request, kind)
    if request.method == "POST":
        form = NewConnection(data={"name": name, "kind": kind})
        if form.is_valid():
            try:
                made = connecting.make(
                    request.membership, name=name, kind=kind, settings=settings, secrets=secrets
                )
                connecting.test(request.membership, made)
                messages.success(request, f"{made} is there, and is being tested.")
                return redirect("pipelines:connection", made.pk)
            except FlowError as refusal:
                errors = refusal.errors or {"": [refusal.detail]}
        else:
            errors = {key: [str(one) for one in ones] for key, ones in form.errors.items()}
    context = {
        "section": SECTION,
        "kind": kind,
        "about": kinds.KINDS[kind],
        "name": name,
        **_fields(kind, settings, errors),
    }
    return render(request, "pipelines/new_connection.html", context, status=400 if errors else 200)


def _groups() -> list[dict[str, Any]]:
    """The kinds of connections, by what they are for."""
    others = [key for key in kinds.KINDS if key not in {*kinds.WAREHOUSES, *kinds.PLACES}]
    groups = (
        ("Warehouses", "SQL reads from them, and tables are written back.", kinds.WAREHOUSES),
        ("Files and machines", "Files go there and come from there.", kinds.PLACES),
        ("Messages", "They are told how things have ended.", others),
    )
    return [
        {
            "title": title,
            "what": what,
            "kinds": [{"key": key, "kind": kinds.KINDS[key]} for key in keys],
        }
        for title, what, keys in groups
    ]


def _typed(request: OrgRequest, kind: str) -> tuple[dict[str, str], dict[str, str]]:
    """The settings, and those secrets into which something was typed."""
    known = kinds.KINDS[kind]
    settings = {key: request.POST[key] for key in known.settings if key in request.POST}
    secrets = {key: request.POST[key] for key in known.secrets if request.POST.get(key)}
    return settings, secrets


def _fields(
    kind: str, settings: dict[str, Any], errors: dict[str, Any], sealed: list[str] | None = None
) -> dict[str, Any]:
    """The form's fields with their values (never a secret's) and errors, and errors elsewhere."""
    rows, seen = list[dict[str, Any]](), {"name"}
    for field in kinds.KINDS[kind].fields:
        place = f"{'secrets' if field.kind == 'secret' else 'settings'}.{field.name}"
        seen.add(place)
        value = "" if field.kind == "secret" else settings.get(field.name, field.default)
        rows.append(
            {
                "field": field,
                "value": "" if value is None else value,
                "errors": errors.get(place),
                "is_set": field.name in (sealed or ()),
            }
        )
    elsewhere = [said for place, texts in errors.items() if place not in seen for said in texts]
    more = [row for row in rows if row["field"].more]
    return {
        "fields": [row for row in rows if not row["field"].more],
        "more": more,
        "more_open": any(row["errors"] or row["value"] not in ("", None) for row in more),
        "name_errors": errors.get("name"),
        "other_errors": elsewhere,
    }


def _connection(request: OrgRequest, connection: UUID) -> Connection:
    mine = Connection.objects.of(request.membership.organization).select_related("organization")
    found: Connection = get_object_or_404(mine, pk=connection)
    return found


def _page(
    request: OrgRequest,
    one: Connection,
    *,
    name: str = "",
    settings: dict[str, Any] | None = None,
    errors: dict[str, Any] | None = None,
) -> HttpResponse:
    """Its page, with what was typed into the form and what is wrong with it."""
    may, known = request.membership.may(Role.ADMIN), one.kind in kinds.KINDS
    values = one.settings if settings is None else settings
    context = {
        "section": SECTION,
        "connection": one,
        "name": name or one.name,
        "title": _title(one),
        "where": _where(one),
        "users": connecting.users_of(one),
        "test": connecting.last_tests([one]).get(one.pk),
        "may_test": request.membership.may(Role.DEVELOPER),
        "may_change": may and known,
        **(_fields(one.kind, values, errors or {}, one.sealed_names) if known else {}),
    }
    return render(request, "pipelines/connection.html", context, status=400 if errors else 200)


@require_GET
@org_role(Role.VIEWER)
def detail(request: OrgRequest, connection: UUID) -> HttpResponse:
    """What it leads to and how its last test went; for admins, a form to change it."""
    return _page(request, _connection(request, connection))


@require_POST
@org_role(Role.ADMIN)
def change(request: OrgRequest, connection: UUID) -> HttpResponse:
    one = _connection(request, connection)
    if one.kind not in kinds.KINDS:
        messages.error(request, "A connection of this kind can't be changed here.")
        return redirect("pipelines:connection", one.pk)
    name = request.POST.get("name", "").strip()
    settings, secrets = _typed(request, one.kind)
    form = ConnectionChange(data={"name": name})
    errors: dict[str, Any] = {}
    if not form.is_valid():
        errors = {key: [str(said) for said in texts] for key, texts in form.errors.items()}
    else:
        try:
            connecting.change(
                request.membership, one, name=name, settings=settings, secrets=secrets
            )
            connecting.test(request.membership, one)
        except FlowError as refusal:
            errors = refusal.errors or {"": [refusal.detail]}
    if errors:
        return _page(request, one, name=name, settings=settings, errors=errors)
    messages.success(request, f"{name} is changed, and is being tested.")
    return redirect("pipelines:connection", one.pk)


@require_POST
@org_role(Role.DEVELOPER)
def test(request: OrgRequest, connection: UUID) -> HttpResponse:
    one = _connection(request, connection)
    connecting.test(request.membership, one)
    return redirect("pipelines:connection", one.pk)


@require_GET
@org_role(Role.VIEWER)
def tested(request: OrgRequest, connection: UUID) -> HttpResponse:
    """The part of its page that says how its last test went."""
    one = _connection(request, connection)
    found = connecting.last_tests([one]).get(one.pk)
    may = request.membership.may(Role.DEVELOPER)
    context = {"connection": one, "test": found, "may_test": may}
    return render(request, "pipelines/_connection_test.html", context)


@require_POST
@org_role(Role.ADMIN)
def delete(request: OrgRequest, connection: UUID) -> HttpResponse:
    one = _connection(request, connection)
    try:
        connecting.delete(request.membership, one)
    except FlowError as refusal:
        messages.error(request, refusal.detail)
        return redirect("pipelines:connection", one.pk)
    messages.success(request, f"The connection {one} is deleted.")
    return redirect("pipelines:connections")
