"""What people do with their accounts."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib.auth import update_session_auth_hash
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils import timezone

from accounts import limits, mail
from accounts.errors import Conflict, Invalid, NotFound
from accounts.models import (
    AbstractToken,
    BrowserSession,
    PersonalToken,
    Scope,
    SignIn,
    TokenFamily,
    User,
)
from accounts.signals import account_changed

MOST_TOKENS = 50  # of one person, at a time


def told(user: User, verb: str, *, name: str = "", request: Any = None) -> None:
    """Tell whoever keeps a log that ``user`` changed something of the account."""
    account_changed.send(sender=User, user=user, verb=f"account.{verb}", name=name, request=request)


# --- Tokens --------------------------------------------------------------------------------------


@transaction.atomic
def make_token(
    user: User, *, name: str, scope: Scope, days: int, with_: Any = None, request: Any = None
) -> tuple[PersonalToken, str]:
    """A personal API token that lives for ``days``, and its secret. Raises Conflict for too many.

    ``with_`` is the credential of the request. A token made with a token ends no later than that
    one: else whoever got hold of it for an hour would stay for a year.
    """
    User.objects.select_for_update(no_key=True).get(pk=user.pk)  # two at once count each other
    live = user.api_tokens.filter(revoked_at=None, expires_at__gt=timezone.now())
    if live.count() >= MOST_TOKENS:
        raise Conflict(f"You have {MOST_TOKENS} tokens already. Revoke those that nothing uses.")
    expires_at = timezone.now() + timedelta(days=days)
    if isinstance(with_, AbstractToken) and with_.expires_at is not None:
        expires_at = min(expires_at, with_.expires_at)
    made = PersonalToken.issue(user=user, name=name, scope=scope, expires_at=expires_at)
    told(user, "token-made", name=name, request=request)
    return made


def revoke_token(token: PersonalToken, *, request: Any = None) -> None:
    """The token opens nothing from now on."""
    live = PersonalToken.objects.filter(pk=token.pk, revoked_at=None)
    if live.update(revoked_at=timezone.now()):
        told(token.user, "token-revoked", name=token.name, request=request)


# --- The password --------------------------------------------------------------------------------


def check_password(user: User, password: str, *, field: str, request: Any) -> None:
    """See the password again before something that a stolen session must not do.

    Raises Invalid with ``field`` named, and limits.TooManyTries.
    """
    tries = limits.sign_in_tries(request, user.get_username())
    tries.count()
    if not user.check_password(password):
        sentence = "This is not your password."
        raise Invalid(sentence, code="wrong-password", errors={field: [sentence]})
    tries.forgive()


def set_password(
    user: User, password: str, *, field: str, keep: Any = None, request: Any = None
) -> None:
    """A new password; every sign-in has ended but the browser session of ``keep``, a request.

    Raises Invalid with ``field`` named for a password that is too easy.
    """
    try:
        validate_password(password, user)
    except ValidationError as problem:
        texts = list(problem.messages)
        raise Invalid(" ".join(texts), errors={field: texts}) from None
    with transaction.atomic():
        user.set_password(password)
        user.save(update_fields=["password"])
        end_all(user, but=keep)
        if keep is not None and getattr(keep, "auth", None) is None:
            update_session_auth_hash(getattr(keep, "_request", keep), user)
        told(user, "password-changed", request=request)
        mail.later("notice", str(user.pk), user.email, "password-changed")


# --- The e-mail address --------------------------------------------------------------------------


def change_email(user: User, email: str, *, request: Any = None) -> bool:
    """Give the account another address. False: at once; True: once a link sent there is opened.

    Whoever calls has seen the password. Raises Invalid when it is somebody else's, and
    limits.TooManyTries: an address that is none of theirs gets messages by this.
    """
    refuse_taken(user, email)
    limits.count_mail(request, email)
    if settings.REQUIRE_VERIFIED_EMAIL:
        mail.later("verify", str(user.pk), email)
        return True
    set_email(user, email, verified=False, request=request)
    return False


def refuse_taken(user: User, email: str) -> None:
    """Raise Invalid when the address is another account's."""
    if User.objects.filter(email__iexact=email).exclude(pk=user.pk).exists():
        sentence = "Another account has this address."
        raise Invalid(sentence, errors={"email": [sentence]})


def set_email(user: User, email: str, *, verified: bool, request: Any) -> None:
    """Store the address; the former one is told. Raises Invalid when it is somebody else's."""
    before = user.email
    user.email, user.email_verified_at = email, timezone.now() if verified else None
    try:
        with transaction.atomic():
            user.save(update_fields=["email", "email_verified_at"])
    except IntegrityError:  # somebody took it this very moment
        refuse_taken(user, email)
        raise
    if before.lower() != email.lower():
        told(user, "email-changed", request=request)
        mail.later("notice", str(user.pk), before, "email-changed")


# --- Where somebody is signed in -----------------------------------------------------------------


def sign_ins(user: User) -> list[SignIn]:
    """Browsers and programs that are signed in, those seen last first."""
    now = timezone.now()
    found: list[SignIn] = [
        *BrowserSession.objects.filter(user=user, expire_date__gt=now).defer("session_data"),
        *TokenFamily.objects.filter(user=user, expires_at__gt=now),
    ]
    return sorted(found, key=lambda one: one.last_seen_at, reverse=True)


def end_sign_in(user: User, sign_in: UUID, *, request: Any = None) -> None:
    """Sign out one browser or program. Raises NotFound unless it is the person's own."""
    for table in (BrowserSession, TokenFamily):
        one = table.objects.filter(user=user, id=sign_in).first()
        if one is not None:
            one.delete()
            told(user, "session-ended", name=one.device_name, request=request)
            return
    raise NotFound("You have no such session.")


def end_all(user: User, *, but: Any = None, request: Any = None) -> int:
    """Sign out everywhere, except in the browser session of the request ``but``. How many.

    API tokens go on: they are revoked one by one.
    """
    kept = getattr(but, "session", None)
    browsers = BrowserSession.objects.filter(user=user)
    if kept is not None and kept.session_key:
        browsers = browsers.exclude(session_key=kept.session_key)
    ended = browsers.delete()[0] + TokenFamily.objects.filter(user=user).delete()[0]
    if request is not None:
        told(user, "sessions-ended", request=request)
    return ended
