"""The script and the archive for a machine that joins. Both need a join token, in the header."""

from typing import Any

from django.conf import settings
from django.http import HttpResponse
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.views import APIView

from workers import bootstrap, joining


class JoinAuthentication(BaseAuthentication):
    """``Authorization: Join <token>``. Looking at the script uses nothing up."""

    def authenticate_header(self, request: Request) -> str:
        return "Join"

    def authenticate(self, request: Request) -> tuple[Any, Any] | None:
        scheme, _, token = get_authorization_header(request).decode("latin-1").partition(" ")
        if scheme != "Join":
            return None
        if not joining.may_join(token.strip()):
            raise AuthenticationFailed("The join token is wrong, used up or has run out.")
        return None, token.strip()


class MayJoin(BasePermission):
    def has_permission(self, request: Request, view: Any) -> bool:
        return isinstance(request.auth, str)


class JoiningView(APIView):
    authentication_classes = (JoinAuthentication,)
    permission_classes = (MayJoin,)
    schema = None


class ScriptView(JoiningView):
    def get(self, request: Request) -> HttpResponse:
        answer = HttpResponse(
            bootstrap.script(settings.PUBLIC_URL, str(request.auth)),
            content_type="text/x-shellscript; charset=utf-8",
        )
        answer["Cache-Control"] = "no-store"  # it holds the token
        return answer


class BundleView(JoiningView):
    def get(self, request: Request) -> HttpResponse:
        content, sha256 = bootstrap.bundle()
        answer = HttpResponse(content, content_type="application/gzip")
        answer["X-SHA256"] = sha256
        return answer
