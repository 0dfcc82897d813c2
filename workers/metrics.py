"""What is counted while it happens, for Prometheus; ``flowml_site.metrics`` shows it.

Every metric has labels, so that nothing is written until something happens: with
PROMETHEUS_MULTIPROC_DIR set, a process keeps its values in files. No label names an organization.
"""

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

MOVES = Counter("flowml_task_moves", "Moves of tasks to a state.", ["kind", "to", "fault"])
CLAIM_SECONDS = Histogram(
    "flowml_claim_seconds",
    "Time to choose a task for a node, by result: task or empty.",
    ["result"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
SOCKETS = Gauge(
    "flowml_live_connections",
    "Open live sockets, by what they are for.",
    ["socket"],
    multiprocess_mode="livesum",
)


def timed_claim(claim: Callable[..., Any]) -> Callable[..., Any]:
    """Count what ``claim`` answers and how long it took."""

    @wraps(claim)
    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        task = claim(*args, **kwargs)
        result = "task" if task is not None else "empty"
        CLAIM_SECONDS.labels(result).observe(time.perf_counter() - started)
        return task

    return timed
