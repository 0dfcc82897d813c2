"""How a request comes to its view."""

import threading

import pytest
from asgiref.testing import ApplicationCommunicator
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path

from flowml_site.asgi import OneThread

seen: list[tuple[str, int]] = []


class First:
    def __init__(self, get_response: object) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        seen.append(("before", threading.get_ident()))
        answer: HttpResponse = self.get_response(request)  # type: ignore[operator]
        seen.append(("after", threading.get_ident()))
        return answer


class Second(First):
    pass


def view(request: HttpRequest) -> HttpResponse:
    seen.append(("view", threading.get_ident()))
    return HttpResponse("hello")


def broken(request: HttpRequest) -> HttpResponse:
    raise ValueError("the view is broken")


urlpatterns = [path("hello", view), path("broken", broken)]
HERE = override_settings(
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[f"{__name__}.First", f"{__name__}.Second"],
    ALLOWED_HOSTS=["*"],
)


async def ask(path: str) -> tuple[int, bytes]:
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "headers": [],
        "server": ("testserver", 80),
    }
    asked = ApplicationCommunicator(OneThread(), scope)
    await asked.send_input({"type": "http.request", "body": b""})
    start, body = await asked.receive_output(5), await asked.receive_output(5)
    return start["status"], body["body"]


@pytest.mark.asyncio
async def test_middlewares_and_view_run_in_one_thread_that_is_not_the_loops() -> None:
    seen.clear()
    with HERE:
        assert await ask("/hello") == (200, b"hello")
    assert [what for what, _ in seen] == ["before", "before", "view", "after", "after"]
    [thread] = {thread for _, thread in seen}
    assert thread != threading.get_ident()


@pytest.mark.asyncio
async def test_a_broken_view_is_a_500_and_not_the_end_of_the_server() -> None:
    with HERE:
        assert (await ask("/broken"))[0] == 500
        assert (await ask("/nothing"))[0] == 404
        assert (await ask("/hello"))[0] == 200
