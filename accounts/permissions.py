"""What a credential may do with the account of its owner."""

from typing import Any

from rest_framework.permissions import SAFE_METHODS, IsAuthenticated
from rest_framework.request import Request

from accounts.authentication import scope_of
from accounts.models import Scope, User


class SignedIn(IsAuthenticated):
    """A person, and by a credential whose scope suffices: ``view.scopes`` by method.

    What a view doesn't list takes ``read`` to read and ``admin`` to change: a token that leaked
    out of a script can't make others, nor touch what its owner signs in with.
    """

    message = "The scope of this token is too narrow for this."

    def has_permission(self, request: Request, view: Any) -> bool:
        if not super().has_permission(request, view) or not isinstance(request.user, User):
            return False
        scope = scope_of(request.auth)
        method = request.method or ""
        usual = Scope.READ if method in SAFE_METHODS else Scope.ADMIN
        needed = getattr(view, "scopes", {}).get(method.lower(), usual)
        return scope is None or scope.includes(needed)
