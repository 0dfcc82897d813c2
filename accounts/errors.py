"""Errors of the domain and the one shape that they have over HTTP: problem details (RFC 9457)."""

import errno
import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.db import connections
from django.http import Http404
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import exception_handler

log = logging.getLogger(__name__)
Errors = Mapping[str, Sequence[str]]


class FlowError(Exception):
    """Something that a person or a client asked for and can't have, in words that say what to do.

    ``errors`` holds messages by field; ``extra`` goes into the problem document as it is.
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 400

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        status: int | None = None,
        errors: Errors | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or type(self).code  # type: ignore[misc]
        self.status = status or type(self).status  # type: ignore[misc]
        self.errors = {field: list(messages) for field, messages in (errors or {}).items()}
        self.extra = extra


class Invalid(FlowError):
    code = "invalid"
    status = 400


class NotFound(FlowError):
    code = "not-found"
    status = 404


class Conflict(FlowError):
    code = "conflict"
    status = 409


class TooLarge(FlowError):
    code = "too-large"
    status = 413


class Unavailable(FlowError):
    code = "unavailable"
    status = 503


class NoRoom(FlowError):
    """The server's own disk is full. ``is_full`` tells that an OSError says so."""

    code = "no-room"
    status = 507

    def __init__(self, what: str = "The file") -> None:
        super().__init__(
            f"{what} could not be stored: the server's disk is full. Tell its operator, or delete "
            "data sets and models that nobody needs any more, and try again."
        )

    @staticmethod
    def is_full(error: OSError) -> bool:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)


TITLES = {
    400: "The request can't be done as sent",
    401: "Sign in first",
    403: "You may not do this",
    404: "There is no such thing here",
    405: "This address doesn't answer to that method",
    406: "This form of answer doesn't exist here",
    409: "Not in the present state",
    413: "Too large",
    415: "This kind of content isn't understood here",
    429: "Too many requests",
    503: "Not available right now",
    504: "No answer in time",
    507: "No room left",
}


def problem(
    status: int, detail: str, *, code: str, errors: Errors | None = None, **extra: Any
) -> dict[str, Any]:
    """The problem document of RFC 9457; ``type`` is a relative reference that names the code."""
    body: dict[str, Any] = {
        "type": f"/problems/{code}",
        "title": TITLES.get(status, "Something went wrong"),
        "status": status,
        "detail": detail,
        "code": code,
        **extra,
    }
    if errors:
        body["errors"] = errors
    return body


class _TooLarge(exceptions.APIException):
    status_code = 413
    default_detail = "The request is larger than this address takes. Send large things as files."
    default_code = "too-large"


def problem_response(exc: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's exception handler: every error of the API in one shape."""
    if isinstance(exc, FlowError):
        for connection in connections.all(initialized_only=True):
            if connection.settings_dict["ATOMIC_REQUESTS"] and connection.in_atomic_block:
                connection.set_rollback(True)
        body = problem(exc.status, exc.detail, code=exc.code, errors=exc.errors, **exc.extra)
        wait = exc.extra.get("retry_after_s")
        headers = {"Retry-After": str(wait)} if wait else None
        return Response(body, exc.status, headers=headers, content_type="application/problem+json")
    if isinstance(exc, RecursionError):
        log.warning("a request was nested too deep", exc_info=exc)
        exc = exceptions.ParseError("The request is nested too deep.")
    elif isinstance(exc, RequestDataTooBig):
        exc = _TooLarge()
    elif isinstance(exc, SuspiciousOperation):
        exc = exceptions.ParseError(str(exc))
    elif isinstance(exc, Http404):
        exc = exceptions.NotFound("Nothing with this id is in this organization.")
    elif isinstance(exc, PermissionDenied):
        exc = exceptions.PermissionDenied()
    response = exception_handler(exc, context)
    if response is None or not isinstance(exc, exceptions.APIException):
        return response
    errors: dict[str, list[str]] | None = None
    if isinstance(exc, exceptions.ValidationError):
        errors = _by_field(exc.detail)
        detail = "; ".join(
            message if field == "" else f"{field}: {message}"
            for field, messages in errors.items()
            for message in messages
        )
    else:
        detail = str(exc.detail)
        if isinstance(exc.detail, dict):  # simplejwt's token errors
            detail = str(exc.detail.get("detail", detail))
    codes = exc.get_codes()
    code = codes if isinstance(codes, str) else "invalid" if errors else exc.default_code
    response.data = problem(
        response.status_code, detail, code=code.replace("_", "-"), errors=errors
    )
    response.content_type = "application/problem+json"
    return response


def _by_field(detail: Any, field: str = "") -> dict[str, list[str]]:
    if isinstance(detail, dict):
        found: dict[str, list[str]] = {}
        for key, value in detail.items():
            name = "" if key == "non_field_errors" else str(key)
            path = f"{field}.{name}" if field and name else field or name
            for inner, messages in _by_field(value, path).items():
                found.setdefault(inner, []).extend(messages)
        return found
    if isinstance(detail, list):
        found = {}
        for position, value in enumerate(detail):
            path = field if isinstance(value, str) else f"{field}[{position}]"
            for inner, messages in _by_field(value, path).items():
                found.setdefault(inner, []).extend(messages)
        return found
    return {field: [str(detail)]}
