"""JSON web tokens of the API: one family for each sign-in, its refresh token renewed with each use.

Access tokens name their family too, and the family is looked up together with the person, in one
query: so signing out, here or from the list of sessions, ends them at once.
"""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.utils import timezone
from rest_framework.exceptions import AuthenticationFailed
from rest_framework_simplejwt.authentication import JWTAuthentication as SimpleAuthentication
from rest_framework_simplejwt.exceptions import TokenError
from rest_framework_simplejwt.tokens import RefreshToken, Token

from accounts.addresses import address_of
from accounts.models import SEEN_EVERY, TokenFamily, User
from accounts.signals import account_changed

FAMILY = "family"
# Two requests of one client may bring the same refresh token; a thief comes later.
NO_FAMILY = UUID(int=0)
AT_ONCE = timedelta(seconds=10)


class Refused(AuthenticationFailed):
    """A token that is none of ours, too old, used up, or of a sign-in that has ended."""

    default_code = "token-not-valid"


def issue(user: User, request: Any = None) -> dict[str, str]:
    """Sign in by the API: an access token and a refresh token of a new family."""
    token = RefreshToken.for_user(user)
    family = TokenFamily.objects.create(
        user=user,
        jti=token["jti"],
        expires_at=_end(token),
        address=address_of(request) if request is not None else None,
        device=_device(request),
    )
    token[FAMILY] = str(family.pk)
    return _pair(token)


def rotate(refresh: str, request: Any) -> dict[str, str]:
    """A new pair for a refresh token, which is used up by that. Raises Refused."""
    token = _read(refresh)
    ended: TokenFamily | None = None
    with transaction.atomic():
        family = (
            TokenFamily.objects.select_for_update(no_key=True, of=("self",))
            .select_related("user")
            .filter(pk=_family(token))
            .first()
        )
        if family is None or not _is_good_for(token, family.user):
            raise Refused("This sign-in has ended. Sign in again.")
        if token["jti"] == family.jti:
            fresh = RefreshToken.for_user(family.user)
            fresh[FAMILY] = str(family.pk)
            family.former_jti, family.jti = family.jti, fresh["jti"]
            family.rotated_at = family.last_seen_at = timezone.now()
            family.expires_at = _end(fresh)
            family.address, family.device = address_of(request), _device(request)
            family.save()
            return _pair(fresh)
        soon = timezone.now() - family.rotated_at < AT_ONCE
        if not (soon and token["jti"] == family.former_jti):
            family.delete()
            ended = family
    if ended is not None:
        account_changed.send(
            sender=User,
            user=ended.user,
            verb="account.refresh-token-reused",
            name=ended.device_name,
            request=request,
        )
        raise Refused("This refresh token was used before. Its sign-in has ended: sign in again.")
    raise Refused("This refresh token was used a moment ago. Go on with the one you got for it.")


def end(refresh: str) -> None:
    """Sign out whoever has this refresh token, used up or not. Raises Refused."""
    TokenFamily.objects.filter(pk=_family(_read(refresh))).delete()


def end_of(access: Token) -> None:
    """Sign out whoever has this access token."""
    TokenFamily.objects.filter(pk=_family(access)).delete()


class JWTAuthentication(SimpleAuthentication):
    """An access token whose family goes on."""

    def get_user(self, validated_token: Token) -> User:
        family = (
            TokenFamily.objects.select_related("user").filter(pk=_family(validated_token)).first()
        )
        if family is None or not _is_good_for(validated_token, family.user):
            raise AuthenticationFailed("This sign-in has ended. Sign in again.", "signed-out")
        now = timezone.now()
        if now - family.last_seen_at >= SEEN_EVERY:
            TokenFamily.objects.filter(pk=family.pk).update(last_seen_at=now)
        return family.user


def _is_good_for(token: Token, user: User) -> bool:
    """Whether the person is who the token says, is switched on, and has the password of then."""
    now = RefreshToken.for_user(user) if user.is_active else None
    return now is not None and all(
        token.get(claim) == now.get(claim) for claim in ("user_id", "hash_password")
    )


def _read(refresh: str) -> RefreshToken:
    try:
        return RefreshToken(refresh)  # type: ignore[arg-type]
    except TokenError:
        raise Refused("This is no refresh token, or it is too old. Sign in again.") from None


def _family(token: Token) -> UUID:
    try:
        return UUID(str(token.get(FAMILY)))
    except ValueError:
        return NO_FAMILY


def _pair(token: RefreshToken) -> dict[str, str]:
    return {"access": str(token.access_token), "refresh": str(token)}


def _end(token: RefreshToken) -> datetime:
    return datetime.fromtimestamp(token["exp"], UTC)


def _device(request: Any) -> str:
    agent = request.headers.get("User-Agent", "") if request is not None else ""
    return str(agent)[:200].replace("\0", "")
