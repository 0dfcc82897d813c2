"""What the frame of every page shows of organizations, pages of no organization's included."""

from typing import Any

from django.http import HttpRequest
from django.utils.functional import SimpleLazyObject

from organizations.access import SESSION_KEY, active_membership


def membership(request: HttpRequest) -> dict[str, Any]:
    """Where somebody works, read when a template asks: the account's pages act for nobody."""
    page: Any = request
    user = getattr(page, "user", None)
    if user is not None and not hasattr(page, "membership"):
        page.membership = SimpleLazyObject(
            lambda: (
                user.is_authenticated
                and active_membership(user, chosen=page.session.get(SESSION_KEY))
            )
        )
    return {}
