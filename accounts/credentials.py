"""What somebody got in by, and whether it still opens: for connections that outlive a request."""

from dataclasses import asdict, dataclass
from typing import Any, Literal
from uuid import UUID

from django.utils import timezone
from rest_framework_simplejwt.tokens import Token

from accounts.jwt import FAMILY
from accounts.models import BrowserSession, PersonalToken, TokenFamily, User


@dataclass(frozen=True)
class Credential:
    """``key`` is the id of a row, and no secret: a browser session, the family of a JWT, or a
    personal API token. ``stamp`` changes with the password; a token outlives that."""

    kind: Literal["session", "family", "token"]
    key: str
    stamp: str

    def told(self) -> dict[str, str]:
        """For a cache; ``Credential(**told)`` is the same again."""
        return asdict(self)

    def holder(self) -> tuple[User, Any] | None:
        """Whose it is, and what ``request.auth`` of a request with it would limit them by.

        None once it has been revoked, signed out or has expired, or its owner is switched off.
        """
        now = timezone.now()
        if self.kind == "token":
            token = PersonalToken.objects.select_related("user").filter(pk=UUID(self.key)).first()
            good = token is not None and token.is_usable and token.user.is_active
            return (token.user, token) if token is not None and good else None
        if self.kind == "session":
            found: Any = BrowserSession.objects.defer("session_data").filter(expire_date__gt=now)
        else:
            found = TokenFamily.objects.filter(expires_at__gt=now)
        row = found.select_related("user").filter(id=UUID(self.key)).first()
        if row is None or row.user is None or not row.user.is_active:
            return None
        return (row.user, None) if row.user.get_session_auth_hash() == self.stamp else None


def of_request(user: User, auth: Any, session: Any) -> Credential | None:
    """What a request, or a socket, was let in by. ``session`` is of accounts.sessions."""
    if isinstance(auth, PersonalToken):
        return Credential("token", str(auth.pk), "")
    if isinstance(auth, Token):
        return Credential("family", str(auth.get(FAMILY)), user.get_session_auth_hash())
    row = getattr(session, "row", None)
    if auth is not None or row is None:
        return None
    return Credential("session", str(row.id), user.get_session_auth_hash())
