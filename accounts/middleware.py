"""What middlewares share that do something before a request and something with its answer.

All of ours are sync only: see ``flowml_site.asgi``.
"""

from collections.abc import Callable, Generator
from contextlib import suppress

from django.http import HttpRequest, HttpResponseBase

Steps = Generator[None, HttpResponseBase, None]


class Around:
    """A middleware that is told as one generator."""

    async_capable = False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def around(self, request: HttpRequest) -> Steps:
        """Do what comes before, ``answer = yield``, do what comes after: what is written to the
        answer goes out. Where there is none, for an error, the generator ends at its ``yield``."""
        raise NotImplementedError

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        steps = self.around(request)
        next(steps)
        try:
            answer = self.get_response(request)
            with suppress(StopIteration):
                steps.send(answer)
            return answer
        finally:
            steps.close()
