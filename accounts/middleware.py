"""What middlewares share that do something before a request and something with its answer."""

from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponseBase

Steps = Generator[None, HttpResponseBase, None]


class Around:
    """A middleware written once, which calls what comes next in the way that suits that: with an
    await or without. Wherever it stands, it costs no thread."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def around(self, request: HttpRequest) -> Steps:
        """Do what comes before, ``answer = yield``, do what comes after: what is written to the
        answer goes out. Where there is none, for an error, the generator ends at its ``yield``."""
        raise NotImplementedError

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self.is_async:
            return self._call_async(request)
        steps = _begun(self.around(request))
        try:
            return _ended(steps, self.get_response(request))
        finally:
            steps.close()

    async def _call_async(self, request: HttpRequest) -> HttpResponseBase:
        steps = _begun(self.around(request))
        try:
            return _ended(steps, await self.get_response(request))
        finally:
            steps.close()


def _begun(steps: Steps) -> Steps:
    next(steps)
    return steps


def _ended(steps: Steps, answer: HttpResponseBase) -> HttpResponseBase:
    with suppress(StopIteration):
        steps.send(answer)
    return answer
