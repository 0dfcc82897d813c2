"""The base of every API view that serves objects of an organization."""

from contextlib import ExitStack
from typing import Any, ClassVar

from django.http import HttpRequest, HttpResponseBase
from rest_framework.permissions import BasePermission, IsAuthenticated
from rest_framework.request import Request
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from organizations import deletion, rls
from organizations.access import active_membership
from organizations.models import Membership


class HasOrgRole(BasePermission):
    """Compare the caller's role with ``view.roles``. What isn't listed there is refused.

    The keys are a view set's actions, or an API view's methods in lower case.
    """

    message = "Your role in this organization is too low for this."

    def has_permission(self, request: Request, view: Any) -> bool:
        action = getattr(view, "action", None) or (request.method or "").lower()
        needed = view.roles.get(action)
        view.begin()
        membership = active_membership(
            request.user, auth=request.auth, header=named(request, view), acts=True
        )
        if needed is None or membership is None:
            return False
        request.membership = membership  # type: ignore[attr-defined]
        if not view.while_deleting:
            deletion.refuse(membership.organization)
        if (token := membership.token) is not None and (
            view.people_only or not token.allows(view.serves.get(action), view.object_id)
        ):
            self.message = "This service token is not made for this."
            return False
        return membership.may(needed)


def named(request: Request, view: Any) -> str | None:
    """The organization that a request names: in its path, or else in its header."""
    in_path = view.kwargs.get("organization")
    return str(in_path) if in_path else request.headers.get("X-Organization")


class _OrgView(APIView):
    permission_classes: Any = (IsAuthenticated, HasOrgRole)
    roles: ClassVar[dict[str, int]] = {}
    people_only = False  # no service token gets in
    while_deleting = False  # works though the organization's deletion was asked for
    # What a service token that only predicts may ask, by action: the kind of object that ``pk`` is.
    serves: ClassVar[dict[str, str]] = {}

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        with ExitStack() as self._transaction:
            return super().dispatch(request, *args, **kwargs)

    def begin(self) -> None:
        """From here to the end of the request everything is one transaction, of one tenant.

        Not before: who signs in may have a row of theirs locked (when a token was used last), and
        another request with the same token must not wait for the end of this one. An error that is
        answered keeps what was done before it, as actions mean it; one that isn't takes it back.
        """
        self._transaction.enter_context(rls.request_transaction())

    @property
    def object_id(self) -> Any:
        """Which object the request is about, for service tokens that are for one alone."""
        return self.kwargs.get("pk")

    @property
    def membership(self) -> Membership:
        """The caller's membership in the organization that this request acts for."""
        return self.request.membership  # type: ignore[attr-defined, no-any-return]


class OrgAPIView(_OrgView):
    """An API view for members. ``roles`` by method: {"get": Role.VIEWER, ...}."""


class OrgViewSet(_OrgView, GenericViewSet):
    """A view set for members. ``roles`` by action: {"list": Role.VIEWER, ...}."""

    def get_queryset(self) -> Any:
        queryset: Any = super().get_queryset()
        return queryset.of(self.membership.organization)
