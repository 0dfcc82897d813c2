"""The language of pages: the one that was chosen on the account page, kept in a cookie.

What a browser prefers is not looked at while only some pages are translated: nobody gets a page of
two languages who did not ask for it. Programs are always answered in English.
"""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase
from django.utils import translation

from accounts.middleware import Around, Steps

KEPT_S = 365 * 24 * 3600
_NOT_PAGES = ("/api/", "/admin/", "/health", "/metrics")


class LanguageMiddleware(Around):
    def around(self, request: HttpRequest) -> Steps:
        language = chosen(request)
        with translation.override(language):
            answer = yield
        answer.headers.setdefault("Content-Language", language)


def chosen(request: HttpRequest) -> str:
    wanted = request.COOKIES.get(settings.LANGUAGE_COOKIE_NAME, "")
    if wanted in dict(settings.LANGUAGES) and not request.path.startswith(_NOT_PAGES):
        return wanted
    return settings.LANGUAGE_CODE


def choose(response: HttpResponseBase, language: str) -> None:
    """Keep the choice in the reader's browser."""
    response.set_cookie(
        settings.LANGUAGE_COOKIE_NAME,
        language,
        max_age=KEPT_S,
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Lax",
    )
