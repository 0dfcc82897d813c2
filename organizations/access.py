"""Which organization a request acts for, and whether the member's role suffices.

A person may belong to several. The API names one in the ``X-Organization`` header; pages keep the
choice in the session; without either, the organization that the person joined first is meant.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec
from uuid import UUID

from django.contrib.auth.models import AnonymousUser
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.db.models import F
from django.http import HttpRequest, HttpResponseBase
from django.shortcuts import redirect

from accounts.authentication import scope_of
from accounts.errors import Invalid, NotFound
from accounts.models import Scope, User
from organizations import rls
from organizations.models import Membership, Role, ServiceAccount, ServiceToken

SESSION_KEY = "organization"
CAPS = {Scope.READ: Role.VIEWER, Scope.WRITE: Role.DEVELOPER, Scope.ADMIN: Role.ADMIN}
P = ParamSpec("P")


class OrgRequest(HttpRequest):
    """A page's request after ``org_role`` let it pass."""

    membership: Membership


def active_membership(
    user: User | AnonymousUser | ServiceAccount,
    *,
    auth: Any = None,
    header: str | None = None,
    chosen: str | None = None,
    acts: bool = False,
) -> Membership | None:
    """The membership that the request acts with; None for somebody without any.

    ``acts``: the ``rls.request_transaction`` around it becomes the organization's.
    ``auth`` is the request's credential: the scope of a token caps what the membership may do.
    Raises Invalid when ``header`` is no UUID, NotFound when the user isn't a member there.
    """
    if isinstance(user, ServiceAccount):
        return _service_membership(user.token, header=header, acts=acts)
    if not isinstance(user, User):
        return None
    mine = (
        Membership.objects.filter(user=user)
        .select_related("organization")
        # One that is about to be deleted only if there is no other.
        .order_by(F("organization__delete_after").asc(nulls_first=True), "joined_at", "pk")
    )
    if acts:
        mine = rls.acting(mine)
    if header:
        try:
            wanted = UUID(header)
        except ValueError:
            raise Invalid("X-Organization must be the id of an organization.") from None
        membership = mine.filter(organization=wanted).first()
        if membership is None:
            raise NotFound("You are not a member of an organization with this id.")
    else:
        membership = mine.filter(organization_id=chosen).first() if chosen else None
        membership = membership or mine.first()
    if membership is not None:
        membership.user = user  # spares a query whenever somebody asks who it was
        if acts:
            rls.acts_for(membership)
        if scope := scope_of(auth):
            membership.cap = CAPS[scope]
    return membership


def _service_membership(token: ServiceToken, *, header: str | None, acts: bool) -> Membership:
    """A membership that is stored nowhere: what the token may do, in its organization alone."""
    if header and header.lower() != str(token.organization_id):
        raise NotFound("You are not a member of an organization with this id.")
    membership = Membership(organization=token.organization, role=token.role)
    membership.token = token
    if acts:
        rls.become(token.organization_id)
    return membership


def org_role(
    role: int, *, while_deleting: bool = False
) -> Callable[
    [Callable[Concatenate[OrgRequest, P], HttpResponseBase]],
    Callable[Concatenate[HttpRequest, P], HttpResponseBase],
]:
    """Let a page pass for members with ``role`` or above, with ``request.membership`` set.

    Anonymous people go to the sign-in page; a lower role, or no organization at all, is 403. One
    whose deletion was asked for shows only what is said to work ``while_deleting``.
    """

    def decorate(
        view: Callable[Concatenate[OrgRequest, P], HttpResponseBase],
    ) -> Callable[Concatenate[HttpRequest, P], HttpResponseBase]:
        @wraps(view)
        def guarded(request: Any, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
            if not request.user.is_authenticated:
                return redirect_to_login(request.get_full_path())
            chosen = request.session.get(SESSION_KEY)
            with rls.request_transaction():
                membership = active_membership(request.user, chosen=chosen, acts=True)
                if membership is None:
                    raise PermissionDenied("You belong to no organization yet: ask for an invite.")
                request.membership = membership
                if not membership.may(role):
                    raise PermissionDenied("Your role in this organization is too low for this.")
                if membership.organization.delete_after is not None and not while_deleting:
                    return redirect("organizations:detail")
                return view(request, *args, **kwargs)

        return guarded

    return decorate
