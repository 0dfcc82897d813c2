"""Who calls the API: ``Authorization: Bearer``, with an API token or a JWT.

``request.auth`` is the credential. One that has a ``scope`` (accounts.models.Scope) caps what its
owner may do; a session and a JWT have none and cap nothing.
"""

from typing import Any

from drf_spectacular.contrib.rest_framework_simplejwt import SimpleJWTScheme
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from accounts import tokens
from accounts.addresses import address_of
from accounts.models import AbstractToken, Scope

UNKNOWN = "This token is unknown here. Check that it was copied whole."


class TokenAuthentication(BaseAuthentication):
    """``Bearer flowml_…``. Whatever else stands in the header is left to those after this one."""

    def authenticate(self, request: Request) -> tuple[Any, AbstractToken] | None:
        start, _, given = get_authorization_header(request).partition(b" ")
        secret = given.strip().decode("latin-1")
        if start.lower() != b"bearer" or not secret.startswith(tokens.PREFIX):
            return None
        table = tokens.table_of(secret)
        token: AbstractToken | None = table and table.find(tokens.digest(secret))
        if token is None or not token.principal.is_active:
            raise AuthenticationFailed(UNKNOWN, "token-unknown")
        if token.revoked_at is not None:
            raise AuthenticationFailed("This token has been revoked.", "token-revoked")
        if token.has_expired:
            raise AuthenticationFailed("This token has expired. Make a new one.", "token-expired")
        token.touch(address_of(request))
        return token.principal, token

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="api"'


class _SessionTokens(SimpleJWTScheme):  # type: ignore[no-untyped-call, misc, unused-ignore]
    target_class = "accounts.jwt.JWTAuthentication"


class _Described(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call, unused-ignore]
    target_class = TokenAuthentication
    name = "tokenAuth"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "flowml_…",
            "description": "A personal API token, or a service token of an organization.",
        }


def scope_of(auth: Any) -> Scope | None:
    """What the credential of a request is limited to; None: to nothing."""
    scope = getattr(auth, "scope", None)
    return None if scope is None else Scope(scope)
