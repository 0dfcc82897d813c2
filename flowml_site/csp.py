"""The Content-Security-Policy of every answer: what a page may load, and run, at all.

Our own pages have neither inline scripts nor inline styles: text that somebody uploads stays text
even where a template once forgets to escape it. Pages of libraries that can't live with that have
a looser policy each, by the start of their path.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponseBase

HEADER = "Content-Security-Policy"
_STRICT = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",  # data: for a chart that is saved as a picture
    "connect-src": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
}
_STYLED = _STRICT | {"style-src": "'self' 'unsafe-inline'", "font-src": "'self' data:"}


def _written(policy: dict[str, str]) -> str:
    return "; ".join(f"{name} {sources}" for name, sources in policy.items())


STRICT = _written(_STRICT)
LOOSER = {
    # Swagger's and Redoc's scripts write styles; Redoc searches in a worker made of a blob.
    "/api/docs": _written(_STYLED),
    "/api/redoc": _written(_STYLED | {"worker-src": "blob:"}),
    # Unfold is built on Alpine, which evaluates what stands in attributes.
    "/admin/": _written(
        _STYLED | {"script-src": "'self' 'unsafe-inline' 'unsafe-eval'", "img-src": "'self' data:"}
    ),
}


def policy_for(path: str) -> str:
    """The policy of what is at ``path``."""
    return next((policy for start, policy in LOOSER.items() if path.startswith(start)), STRICT)


class PolicyMiddleware:
    """Give each answer its policy. Django's own error pages of DEBUG are left as they are."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self.is_async:
            return self._call_async(request)
        return _with_policy(request, self.get_response(request))

    async def _call_async(self, request: HttpRequest) -> HttpResponseBase:
        return _with_policy(request, await self.get_response(request))


def _with_policy(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    if not (settings.DEBUG and response.status_code >= 400):
        response.headers.setdefault(HEADER, policy_for(request.path))
    return response
