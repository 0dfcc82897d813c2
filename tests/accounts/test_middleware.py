"""What all our middlewares stand on: its steps around an answer and around an error."""

from contextvars import ContextVar
from typing import Any

from django.http import HttpResponse
from django.test import RequestFactory

from accounts.middleware import Around, Steps

HERE: ContextVar[str] = ContextVar("here", default="outside")


class Noting(Around):
    def around(self, request: Any) -> Steps:
        before = HERE.set("inside")
        request.notes = []
        try:
            answer = yield
            answer.headers["X-Seen"] = HERE.get()
            request.notes.append("answered")
        finally:
            HERE.reset(before)
            request.notes.append("ended")


def asked(view: Any) -> tuple[Any, Any]:
    """The request and its answer, or the error, by a middleware before ``view``."""
    request = RequestFactory().get("/")
    try:
        return request, Noting(view)(request)
    except RuntimeError as error:
        return request, error


def view(request: Any) -> HttpResponse:
    assert HERE.get() == "inside"
    return HttpResponse("hello")


def broken(request: Any) -> HttpResponse:
    raise RuntimeError("the view is broken")


def test_it_stands_around_the_answer() -> None:
    request, answer = asked(view)
    assert (answer.content, answer.headers["X-Seen"]) == (b"hello", "inside")
    assert request.notes == ["answered", "ended"]
    assert HERE.get() == "outside"


def test_an_error_passes_and_what_was_begun_is_ended() -> None:
    request, error = asked(broken)
    assert str(error) == "the view is broken"
    assert request.notes == ["ended"]
    assert HERE.get() == "outside"
