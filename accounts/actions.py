"""What people do with their accounts."""

from datetime import timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone

from accounts.errors import Conflict
from accounts.models import AbstractToken, PersonalToken, Scope, User
from accounts.signals import account_changed

MOST_TOKENS = 50  # of one person, at a time


def told(user: User, verb: str, *, name: str = "", request: Any = None) -> None:
    """Tell whoever keeps a log that ``user`` changed something of the account."""
    account_changed.send(sender=User, user=user, verb=f"account.{verb}", name=name, request=request)


@transaction.atomic
def make_token(
    user: User, *, name: str, scope: Scope, days: int, with_: Any = None, request: Any = None
) -> tuple[PersonalToken, str]:
    """A personal API token that lives for ``days``, and its secret. Raises Conflict for too many.

    ``with_`` is the credential of the request. A token made with a token ends no later than that
    one: else whoever got hold of it for an hour would stay for a year.
    """
    User.objects.select_for_update(no_key=True).get(pk=user.pk)  # two at once count each other
    if (
        user.api_tokens.filter(revoked_at=None, expires_at__gt=timezone.now()).count()
        >= MOST_TOKENS
    ):
        raise Conflict(f"You have {MOST_TOKENS} tokens already. Revoke those that nothing uses.")
    expires_at = timezone.now() + timedelta(days=days)
    if isinstance(with_, AbstractToken) and with_.expires_at is not None:
        expires_at = min(expires_at, with_.expires_at)
    made = PersonalToken.issue(user=user, name=name, scope=scope, expires_at=expires_at)
    told(user, "token-made", name=name, request=request)
    return made


def revoke_token(token: PersonalToken, *, request: Any = None) -> None:
    """The token opens nothing from now on."""
    PersonalToken.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=timezone.now())
    told(token.user, "token-revoked", name=token.name, request=request)
