"""Structured logs: one JSON object a line, with the request or the task that it belongs to.

``configure`` is called when the site app is ready, in every process, Celery's included. A request
id comes from the caller's X-Request-ID (if it is a sane one) or is made, goes back in the response,
is on every line that the request causes, and travels with Celery messages.
"""

import logging
import logging.config
import os
import re
import sys
import time
import uuid
from typing import Any

import structlog
from celery import signals
from django.http import HttpRequest
from structlog import contextvars

from accounts.middleware import Around, Steps

HEADER = "X-Request-ID"
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")  # nothing that could break a line or a header
# Asked every few seconds by machines: their lines would drown everybody else's.
_QUIET = ("/health", "/api/workers/heartbeat", "/api/workers/claim", "/static/")

log = structlog.stdlib.get_logger("flowml.request")


def configure() -> None:
    """Send structlog's and the standard library's records to stderr in one format.

    LOG_FORMAT ``json`` or ``text`` (the default on a terminal), LOG_LEVEL a level's name.
    """
    shared: list[structlog.typing.Processor] = [
        contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.StackInfoRenderer(),
    ]
    as_text = os.environ.get("LOG_FORMAT", "text" if sys.stderr.isatty() else "json") == "text"
    render: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(timestamp_key="at")]
        if as_text
        else [
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(default=str),
        ]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    level = os.environ.get("LOG_LEVEL", "INFO").upper()
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "flowml": {
                    "()": structlog.stdlib.ProcessorFormatter,
                    "processors": [
                        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                        *render,
                    ],
                    "foreign_pre_chain": shared,
                }
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "flowml"}},
            "root": {"handlers": ["stderr"], "level": level},
            "loggers": {
                "django": {"level": level},
                "django.server": {"level": "WARNING"},
                "django.request": {"level": "ERROR"},  # 4xx are in the request's own line
                "daphne": {"level": "WARNING"},
                "daphne.server": {"level": "INFO"},
                "httpx": {"level": "WARNING"},
                "celery.app.trace": {"level": "WARNING"},
                "celery.worker.strategy": {"level": "WARNING"},
                "celery.beat": {"level": "WARNING"},  # "sending due task", every two seconds
            },
        }
    )


class RequestIdMiddleware(Around):
    """Bind the request's id (and a task's, where the URL names one) and write its line."""

    def around(self, request: HttpRequest) -> Steps:
        given = request.headers.get(HEADER, "")
        request_id = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        contextvars.clear_contextvars()
        contextvars.bind_contextvars(request_id=request_id)
        started = time.perf_counter()
        try:
            answer = yield
            answer.headers[HEADER] = request_id
            quiet = answer.status_code < 400 and request.path.startswith(_QUIET)
            log.log(
                logging.DEBUG if quiet else logging.INFO,
                "request",
                method=request.method,
                path=request.path,
                status=answer.status_code,
                ms=round((time.perf_counter() - started) * 1000, 1),
            )
        finally:
            contextvars.clear_contextvars()

    def process_view(
        self, request: HttpRequest, view: Any, args: Any, kwargs: dict[str, Any]
    ) -> None:
        """Name the task that a node's request is about."""
        task = kwargs.get("task") or kwargs.get("task_id")
        if task is not None:
            contextvars.bind_contextvars(task_id=str(task))


# --- Celery --------------------------------------------------------------------------------------


@signals.setup_logging.connect
def _keep_celery_from_it(**_: Any) -> None:
    """A receiver is all it takes: Celery then leaves the logging alone."""


@signals.before_task_publish.connect
def _send_along(headers: dict[str, Any] | None = None, **_: Any) -> None:
    bound = contextvars.get_contextvars()
    if headers is not None and "request_id" in bound:
        headers["request_id"] = bound["request_id"]


@signals.task_prerun.connect
def _take_over(task: Any = None, task_id: str = "", **_: Any) -> None:
    """``celery_id`` is the message's; what a ``workers.Task`` is about binds ``task_id`` itself."""
    contextvars.clear_contextvars()
    bound = {"job": getattr(task, "name", ""), "celery_id": task_id}
    request_id = getattr(getattr(task, "request", None), "request_id", None)
    if request_id:
        bound["request_id"] = request_id
    contextvars.bind_contextvars(**bound)


@signals.task_postrun.connect
def _let_go(**_: Any) -> None:
    contextvars.clear_contextvars()
