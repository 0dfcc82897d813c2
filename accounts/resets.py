"""A forgotten password is set anew with a link that was sent to the person's address."""

from typing import Any
from uuid import UUID

from django.contrib.auth.tokens import default_token_generator
from django.utils import timezone
from django.utils.http import urlsafe_base64_decode

from accounts import actions
from accounts.errors import Invalid
from accounts.models import PersonalToken, User


def owner_of_link(uid: str, token: str) -> User | None:
    """Whose link it is; None for one that is forged, too old or used.

    A token holds the password's hash and the last sign-in: either one's change uses it up.
    """
    try:
        user = User.objects.filter(pk=UUID(urlsafe_base64_decode(uid).decode())).first()
    except ValueError:
        return None
    if user is None or not user.is_active or not default_token_generator.check_token(user, token):
        return None
    return user


def reset_password(*, uid: str, token: str, password: str, request: Any = None) -> User:
    """Set the password; every sign-in ends. Raises Invalid for a bad link or password."""
    user = owner_of_link(uid, token)
    if user is None:
        raise Invalid("This link is too old, or was used before. Ask for another.")
    if user.email_verified_at is None:  # only who reads that mail has the link
        User.objects.filter(pk=user.pk).update(email_verified_at=timezone.now())
    actions.set_password(user, password, field="password", request=request)
    # Whoever needs this may have been robbed: nothing that a stranger made goes on.
    for made in PersonalToken.objects.filter(user=user, revoked_at=None):
        actions.revoke_token(made, request=request)
    return user
