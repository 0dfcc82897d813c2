"""What pages of every app do alike: tell a domain error, and read numbers of a query string."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import render

from accounts.errors import FlowError, problem

P = ParamSpec("P")
R = TypeVar("R", bound=HttpRequest)


def wants_json(request: HttpRequest) -> bool:
    """Whether a script asks on behalf of the page, and shows the answer itself."""
    return request.headers.get("Accept", "").startswith("application/json")


def tell(request: HttpRequest, error: FlowError) -> HttpResponse:
    """A domain error as a page; to a script as a problem document."""
    if wants_json(request) or request.headers.get("HX-Request"):
        body = problem(
            error.status, error.detail, code=error.code, errors=error.errors, **error.extra
        )
        return JsonResponse(body, status=error.status, content_type="application/problem+json")
    return render(request, "problem.html", {"error": error}, status=error.status)


def tells_problems(
    view: Callable[Concatenate[R, P], HttpResponseBase],
) -> Callable[Concatenate[R, P], HttpResponseBase]:
    """Turn a FlowError that a page's view raises into an answer for people."""

    @wraps(view)
    def told(request: R, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
        try:
            return view(request, *args, **kwargs)
        except FlowError as error:
            return tell(request, error)

    return told


def whole(text: Any, default: int = 0, *, least: int = 0) -> int:
    """A whole number of a query string; ``default`` for what is none or below ``least``."""
    try:
        number = int(text)
    except (TypeError, ValueError):
        return default
    return number if number >= least else default
