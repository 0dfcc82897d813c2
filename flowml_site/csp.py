"""The Content-Security-Policy of every answer: what a page may load, and run, at all.

Our own pages have neither inline scripts nor inline styles: text that somebody uploads stays text
even where a template once forgets to escape it. Pages of libraries that can't live with that have
a looser policy each, by the start of their path.
"""

from django.conf import settings
from django.http import HttpRequest

from accounts.middleware import Around, Steps

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


class PolicyMiddleware(Around):
    """Give each answer its policy. Django's own error pages of DEBUG are left as they are."""

    def around(self, request: HttpRequest) -> Steps:
        answer = yield
        if not (settings.DEBUG and answer.status_code >= 400):
            answer.headers.setdefault(HEADER, policy_for(request.path))
