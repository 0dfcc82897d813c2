"""What links in messages are for: a new password, and the proof that an address is one's own."""

from typing import Any
from uuid import UUID

from django.contrib.auth.tokens import default_token_generator
from django.db import transaction
from django.utils import timezone
from django.utils.http import urlsafe_base64_decode

from accounts import actions, mail, second_factor
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
    first = user.email_verified_at is None
    with transaction.atomic():
        if first:  # only who reads that mail has the link
            User.objects.filter(pk=user.pk).update(email_verified_at=timezone.now())
        actions.set_password(user, password, field="password", request=request)
        # Whoever needs this may have been robbed: nothing that a stranger made goes on.
        _revoke_tokens(user, request)
        if first:
            second_factor.turn_off(user, request=request)
    return user


def verify_email(token: str, *, request: Any = None) -> User:
    """What a link in a message is for. Raises Invalid for one that is forged, too old or used.

    Who made an account need not be who reads its mail. So with the first proof of an address all
    ends that was set up without one, unless it comes from somebody who is signed in there.
    """
    with transaction.atomic():
        found = mail.read_verification(token)
        if found is None:
            raise Invalid("This link is too old, or was used before. Ask for another.")
        user, email = found
        User.objects.select_for_update(no_key=True).get(pk=user.pk)
        actions.refuse_taken(user, email)
        first = user.email_verified_at is None
        actions.set_email(user, email, verified=True, request=request)
        actions.told(user, "email-confirmed", request=request)
        if first and getattr(request, "user", None) != user:
            actions.end_all(user)
            _revoke_tokens(user, request)
            second_factor.turn_off(user, request=request)
        return user


def _revoke_tokens(user: User, request: Any) -> None:
    for made in PersonalToken.objects.filter(user=user, revoked_at=None):
        actions.revoke_token(made, request=request)
