"""Errors outside any view: pages for people, problem documents (RFC 9457) under ``/api/``."""

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views import defaults

from accounts.errors import problem


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not request.path.startswith("/api/"):
        return defaults.page_not_found(request, exception)
    return _problem(404, "Nothing is at this address: /api/docs lists what there is.", "not-found")


def server_error(request: HttpRequest) -> HttpResponse:
    if not request.path.startswith("/api/"):
        return defaults.server_error(request)
    sentence = "This is our fault. The log tells more, under the X-Request-ID of this answer."
    return _problem(500, sentence, "internal")


def _problem(status: int, detail: str, code: str) -> JsonResponse:
    body = problem(status, detail, code=code)
    return JsonResponse(body, status=status, content_type="application/problem+json")
