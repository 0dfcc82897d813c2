"""GET /metrics for Prometheus: what the processes counted, and how things are in the database now.

Web and control are several processes: each keeps its counts in files of PROMETHEUS_MULTIPROC_DIR
(``var/metrics``; ``manage.py up`` empties it at its start), and whichever answers adds them up.

Open to staff who are signed in, and to whoever shows METRICS_TOKEN as a bearer token; with none
set, to staff alone. Not to everybody on this machine: a proxy's requests come from here as well.
"""

import hmac
import logging
import time
from collections import Counter as Count
from collections.abc import Iterator

from django.conf import settings
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
    multiprocess,
)
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from accounts.middleware import Around, Steps
from flowml_site import figures

log = logging.getLogger(__name__)

REQUESTS = Counter(
    "flowml_http_requests", "HTTP requests that were answered.", ["method", "route", "status"]
)
SECONDS = Histogram(
    "flowml_http_request_seconds",
    "Time until the answer began.",
    ["method", "route"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


# --- Counting requests ----------------------------------------------------------------------------


class MetricsMiddleware(Around):
    """Count each answer under its route's template: an address itself may hold anything."""

    def around(self, request: HttpRequest) -> Steps:
        started = time.perf_counter()
        answer = yield
        method = request.method if request.method in METHODS else "other"
        seconds = time.perf_counter() - started
        count(method or "other", route_of(request), answer.status_code, seconds)


def count(method: str, route: str, status: int, seconds: float) -> None:
    """Count one answer."""
    REQUESTS.labels(method, route, status).inc()
    SECONDS.labels(method, route).observe(seconds)


def route_of(request: HttpRequest) -> str:
    """The template of the request's route, such as ``/api/training/<uuid:job>``."""
    found = request.resolver_match
    if found is not None:
        return f"/{found.route}"
    return "static" if request.path.startswith(settings.STATIC_URL) else "unmatched"


# --- Showing --------------------------------------------------------------------------------------


@never_cache
@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """All metrics in Prometheus' text format."""
    if not _may(request):
        if request.user.is_authenticated:
            return HttpResponse("Metrics are for operators.\n", "text/plain", status=403)
        refusal = HttpResponse(
            "Show METRICS_TOKEN as a bearer token, or sign in as staff.\n",
            "text/plain",
            status=401,
        )
        refusal["WWW-Authenticate"] = "Bearer"
        return refusal
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    registry.register(Now())
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


def _may(request: HttpRequest) -> bool:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        expected = settings.METRICS_TOKEN
        return bool(expected) and hmac.compare_digest(token.strip().encode(), expected.encode())
    return bool(request.user.is_active and getattr(request.user, "is_staff", False))


class Now(Collector):
    """What the database says at this moment. Without it, ``flowml_database_up`` is all there is."""

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("flowml", "The server.", value={"version": settings.VERSION})
        try:
            yield from list(self._figures())
            up = 1
        except DatabaseError:
            log.warning("metrics without the database", exc_info=True)
            up = 0
        yield GaugeMetricFamily("flowml_database_up", "1: the database answers.", value=up)
        free, total = figures.disk()
        if free is not None and total is not None:
            yield GaugeMetricFamily(
                "flowml_storage_free_bytes", "Free where files are stored.", value=free
            )
            yield GaugeMetricFamily(
                "flowml_storage_size_bytes", "Size of the disk where files are stored.", value=total
            )

    def _figures(self) -> Iterator[Metric]:
        now = timezone.now()
        queues, nodes = figures.queues(now), figures.nodes(now)
        depth = GaugeMetricFamily("flowml_queue_depth", "Waiting tasks.", labels=["queue"])
        unserved = GaugeMetricFamily(
            "flowml_queue_unserved", "Waiting tasks that no node alive may take.", labels=["queue"]
        )
        oldest = GaugeMetricFamily(
            "flowml_queue_oldest_wait_seconds", "Age of the oldest waiting task.", labels=["queue"]
        )
        for queue in queues:
            depth.add_metric([queue.name], queue.waiting)
            unserved.add_metric([queue.name], queue.unserved)
            oldest.add_metric([queue.name], queue.oldest_s)
        yield from (depth, unserved, oldest)
        tasks = GaugeMetricFamily("flowml_tasks", "Tasks that have not ended.", labels=["state"])
        tasks.add_metric(["queued"], sum(queue.waiting for queue in queues))
        tasks.add_metric(["running"], sum(queue.running for queue in queues))
        yield tasks
        states = Count(node.state for node in nodes)
        family = GaugeMetricFamily("flowml_nodes", "Nodes by how they are.", labels=["state"])
        for state in ("alive", "draining", "gone"):
            family.add_metric([state], states[state])
        yield family
        gpus = GaugeMetricFamily("flowml_gpus", "GPUs of nodes that are alive.", labels=["use"])
        total = sum(node.gpus for node in nodes if node.state != "gone")
        busy = sum(node.gpus_busy for node in nodes if node.state != "gone")
        gpus.add_metric(["busy"], busy)
        gpus.add_metric(["idle"], max(0, total - busy))
        yield gpus
        yield GaugeMetricFamily(
            "flowml_unhandled", "Ends and events of tasks that nothing reacted to for a minute.",
            value=figures.unhandled(now),
        )  # fmt: skip
        swept_s = figures.swept_s(now)
        yield GaugeMetricFamily(
            "flowml_sweep_age_seconds", "Since control last swept; -1: never.",
            value=-1 if swept_s is None else swept_s,
        )  # fmt: skip
