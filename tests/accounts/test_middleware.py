"""What all our middlewares stand on: the same steps with an await and without, errors included."""

import asyncio
from contextvars import ContextVar
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction
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
    middleware = Noting(view)
    assert iscoroutinefunction(middleware) == iscoroutinefunction(view)
    try:
        answer: Any = middleware(request)
        if asyncio.iscoroutine(answer):
            answer = asyncio.run(answer)
    except RuntimeError as error:
        answer = error
    return request, answer


def view(request: Any) -> HttpResponse:
    assert HERE.get() == "inside"
    return HttpResponse("hello")


def broken(request: Any) -> HttpResponse:
    raise RuntimeError("the view is broken")


async def async_view(request: Any) -> HttpResponse:
    await asyncio.sleep(0)
    return view(request)


async def async_broken(request: Any) -> HttpResponse:
    return broken(request)


@pytest.mark.parametrize("answers", [view, async_view])
def test_it_stands_around_the_answer(answers: Any) -> None:
    request, answer = asked(answers)
    assert (answer.content, answer.headers["X-Seen"]) == (b"hello", "inside")
    assert request.notes == ["answered", "ended"]
    assert HERE.get() == "outside"


@pytest.mark.parametrize("fails", [broken, async_broken])
def test_an_error_passes_and_what_was_begun_is_ended(fails: Any) -> None:
    request, error = asked(fails)
    assert str(error) == "the view is broken"
    assert request.notes == ["ended"]
    assert HERE.get() == "outside"


def test_who_goes_in_the_middle_ends_it_too() -> None:
    async def given_up() -> Any:
        request = RequestFactory().get("/")
        begun = asyncio.Event()

        async def slow(request: Any) -> HttpResponse:
            begun.set()
            await asyncio.sleep(60)
            return HttpResponse()

        waiting = asyncio.create_task(Noting(slow)(request))  # type: ignore[arg-type]
        await begun.wait()
        waiting.cancel()
        await asyncio.wait({waiting})
        return request

    assert asyncio.run(given_up()).notes == ["ended"]
