"""The audit log: who did what, to which object, from where and when.

Every action that matters calls ``record`` inside its own transaction: what did not happen is not
told, and what can't be told does not happen. Who asks, and from where, is taken from the request
that is being answered, which the middleware keeps in a context variable; outside of one it is
FlowML itself, unless the caller says otherwise.
"""

import ipaddress
import re
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from django.db import models
from django.http import HttpRequest
from structlog import contextvars

from accounts.middleware import Around, Steps
from accounts.models import User
from organizations import rls
from organizations.models import AuditEntry, Membership, Organization

Kind = AuditEntry.Kind
_request: ContextVar[HttpRequest | None] = ContextVar("audit_request", default=None)
_SECRET = re.compile(r"password|secret|token|hash|(?<!zip_)code$|_key$|signature", re.IGNORECASE)


class AuditMiddleware(Around):
    """Remember the request while it is answered. Behind the one that corrects REMOTE_ADDR."""

    def around(self, request: HttpRequest) -> Steps:
        before = _request.set(request)
        try:
            yield
        finally:
            _request.reset(before)


def address() -> str | None:
    """Where the request that is being answered came from."""
    request = _request.get()
    try:
        return str(ipaddress.ip_address((request.META if request else {}).get("REMOTE_ADDR", "")))
    except ValueError:
        return None


def record(
    verb: str,
    obj: models.Model | None = None,
    *,
    organization: Organization | None = None,
    by: Membership | User | str | None = None,
    name: str = "",
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Append an entry: one insert.

    ``verb`` is object.past-tense ("dataset.deleted"); ``obj`` the object, whose organization is
    meant unless another is given, and whose name is its ``str`` unless ``name`` is given. ``by`` is
    who did it, by default who sent the request. Values of ``changes`` whose keys look like secrets
    are left out.
    """
    made = AuditEntry(
        **entry(verb, obj, organization=organization, by=by, name=name, changes=changes)
    )
    with rls.writing_for(made.organization_id):
        made.save(force_insert=True)


def record_account(verb: str, user: User, *, changes: Mapping[str, Any] | None = None) -> None:
    """Append an entry about somebody's account, in each organization that the person belongs to."""
    fields = entry(verb, user, by=None, changes=changes)
    if fields["actor_kind"] == Kind.SYSTEM:  # somebody who signs in is nobody yet
        fields |= {"actor_kind": Kind.PERSON, "actor_id": user.pk, "actor": user.get_username()}
    with rls.platform():  # a person may be at work for one and belong to others
        homes = Membership.objects.filter(user=user).values_list("organization", flat=True)
        entries = [AuditEntry(**{**fields, "organization_id": home}) for home in homes]
        AuditEntry.objects.bulk_create(entries or [AuditEntry(**fields)])


def entry(
    verb: str,
    obj: models.Model | None,
    *,
    organization: Organization | None = None,
    by: Membership | User | str | None = None,
    name: str = "",
    changes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The columns of an entry, by name."""
    home: Any = organization or (obj if isinstance(obj, Organization) else None)
    return {
        "organization_id": home.pk if home else getattr(obj, "organization_id", None),
        "verb": verb,
        "object_kind": obj._meta.model_name if obj is not None else "",
        "object_id": str(obj.pk) if obj is not None else "",
        "object_name": (name or (str(obj) if obj is not None else ""))[:200],
        "changes": told(changes or {}),
        "address": address(),
        "request_id": str(contextvars.get_contextvars().get("request_id", ""))[:64],
        **_actor(by),
    }


def told(changes: Mapping[str, Any]) -> dict[str, Any]:
    """``changes`` without secrets, as plain JSON."""
    return {
        key: value if isinstance(value, bool | int | float | list | dict | None) else str(value)
        for key, value in changes.items()
        if not _SECRET.search(key)
    }


def _actor(by: Membership | User | str | None) -> dict[str, Any]:
    request = _request.get()
    asks = getattr(request, "user", None) if request is not None else None
    via = str(getattr(getattr(request, "auth", None), "audit_name", ""))[:120]
    if isinstance(by, str) and not (asks is not None and asks.is_authenticated):
        return {"actor_kind": Kind.OPERATOR, "actor_id": None, "actor": by[:160], "via": ""}
    if isinstance(by, Membership):
        by = by.author
    user = by if isinstance(by, User) else asks
    if user is None or not user.is_authenticated:
        return {"actor_kind": Kind.SYSTEM, "actor_id": None, "actor": "FlowML", "via": ""}
    kind = Kind.PERSON
    if request is not None and request.path.startswith("/admin/"):
        kind = Kind.OPERATOR
    return {
        "actor_kind": getattr(user, "audit_kind", kind),
        "actor_id": user.pk,
        "actor": user.get_username()[:160],
        "via": via,
    }
