"""What the installation's own past says of a race to come: how long, how much memory, and where.

Figures of all organizations' races count, since nothing but sizes, times and memory is looked at.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from django.db.models import F, Func, IntegerField
from django.utils import timezone

from datasets.models import DatasetVersion
from organizations import rls
from organizations.models import Organization
from training.checks import Plan
from training.estimate import Error, Past, Run, most_s
from training.models import TRAIN, TrainingJob
from workers.models import OWN_NODES, Task, Worker
from workers.routing import Requirements, queue_for
from workers.waiting import Wait, explain

MOST_JOBS = 200  # the newest
KEPT_S = 60.0
OUT_OF_MEMORY = 1.5  # times what it had: what a task that ran out may have needed

_kept: list[tuple[float, Past]] = []  # at most one; each process looks anew after KEPT_S


def past() -> Past:
    """What ended in this installation, oldest first; two queries, once a minute."""
    if _kept and time.monotonic() - _kept[0][0] < KEPT_S:
        return _kept[0][1]
    with rls.platform():  # sizes and times alone, of everybody
        found = Past(_runs())
    _kept[:] = [(time.monotonic(), found)]
    return found


def _runs() -> list[Run]:
    width = Func(F("columns"), function="jsonb_array_length", output_field=IntegerField())
    jobs = TrainingJob.objects.filter(finished_at__isnull=False).order_by("-created_at")
    cells = {
        pk: float(rows * (count + 1))
        for pk, rows, count in jobs.annotate(width=width).values_list("pk", "rows", "width")[
            :MOST_JOBS
        ]
    }
    tasks = (
        Task.objects.filter(subject__in=list(cells), kind=TRAIN, finished_at__isnull=False)
        .exclude(payload__has_key="model")  # one model that was asked for is no race
        .order_by("finished_at")
        .values(
            "subject", "engine", "worker__name", "state", "code", "attempt", "started_at",
            "finished_at", "ram_mib", "payload__budget_s", "usage__ram_peak_mib",
        )
    )  # fmt: skip
    found = [_run(task, cells[task["subject"]]) for task in tasks]
    return [run for run in found if run.seconds or run.ram_mib]


def _run(task: Mapping[str, Any], cells: float) -> Run:
    done = task["state"] == Task.State.SUCCEEDED and task["attempt"] == 1
    peak = _number(task["usage__ram_peak_mib"])
    seconds = None
    if done and task["started_at"]:
        seconds = (task["finished_at"] - task["started_at"]).total_seconds()
    if task["code"] == "memory":
        peak = max(peak or 0.0, OUT_OF_MEMORY * task["ram_mib"])
    elif not done:
        peak = None
    return Run(
        engine=task["engine"],
        node=task["worker__name"] or "",
        cells=cells,
        budget_s=_number(task["payload__budget_s"]) or 0.0,
        seconds=seconds,
        ram_mib=peak,
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and value > 0 else None


def cells_of(rows: int, columns: int) -> float:
    """The size by which tables are compared, with the target's column."""
    return float(max(1, rows) * (columns + 1))


def ram_mib(engine: str, plan: Plan) -> int:
    """The memory that a task of this engine asks for."""
    return past().ask_mib(engine, cells_of(plan.rows, len(plan.columns)))


# What a race would take --------------------------------------------------------------------------


def outlook(
    home: Organization, version: DatasetVersion, plan: Plan, budgets: Mapping[str, float]
) -> dict[str, Any]:
    """Seconds, memory, queue, nodes and wait, by engine and in all, with how far off the past was.

    ``seconds`` in all is None when no engine has a node that serves it.
    """
    assert version.data is not None
    known = past()
    cells = cells_of(plan.rows, len(plan.columns))
    own = version.data.own_node
    engines: list[dict[str, Any]] = []
    slots: dict[str, int] = {}
    with rls.platform():  # nodes and lines are everybody's; only what they mean is told
        nodes = [
            node
            for node in Worker.objects.filter(last_seen_at__gte=Worker.alive_since())
            if not node.draining and node.organization_id in ({home.pk} if own else {home.pk, None})
        ]
        busy = Task.objects.filter(
            state=Task.State.RUNNING, light=False, worker__in=nodes
        ).values_list("worker", flat=True)
        taken = list(busy)
        for engine, budget_s in budgets.items():
            queue = (OWN_NODES if own else "") + queue_for(Requirements(engine))
            serving = [node for node in nodes if queue in node.queues]
            names = [node.name for node in serving]
            guess = known.seconds(engine, cells, budget_s, names)
            asked = known.ask_mib(engine, cells)
            wait = _wait(home, engine, queue, asked)
            free = sum(max(0, node.concurrency - taken.count(node.pk)) for node in serving)
            at_once = wait.reason == "room" and free > 0
            slots |= {node.name: node.concurrency for node in serving}
            engines.append(
                {
                    "engine": engine,
                    "budget_s": budget_s,
                    "seconds": guess.value,
                    "seconds_low": guess.low,
                    "seconds_high": guess.high,
                    "runs": guess.runs,
                    "ram_mib": asked,
                    "queue": queue,
                    "nodes": names,
                    "starts_in_s": 0.0 if at_once else wait.expected_in_s,
                    "waits": "" if at_once else wait.text,
                }
            )
    able = [one for one in engines if one["nodes"]]
    ends = [0.0] * sum(slots.values())
    seconds = _side_by_side([one["seconds"] for one in able], ends) if ends else None
    begins = [one["starts_in_s"] for one in able]
    return {
        "rows": plan.rows,
        "columns": len(plan.columns),
        "seconds": seconds,
        "starts_in_s": max(begins) if begins and None not in begins else None,
        "ram_mib": max((one["ram_mib"] for one in engines), default=0),
        "from_history": any(one["runs"] for one in engines),
        "explanation": _words(engines, known.seconds_error),
        "seconds_error": known.seconds_error,
        "ram_error": known.ram_error,
        "engines": engines,
    }


def _wait(home: Organization, engine: str, queue: str, asked: int) -> Wait:
    """Why such a task would not start now, if it were queued: it is not stored."""
    task = Task(
        organization=home, kind=TRAIN, engine=engine, queue=queue, ram_mib=asked, cpu_millis=1000
    )
    return explain(task, home)


def _side_by_side(seconds: Iterable[float], ends: list[float]) -> float:
    """When the last of them ends, the longest first, on slots that are free at ``ends``."""
    heapq.heapify(ends)
    for one in sorted(seconds, reverse=True):
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)


def _words(engines: Iterable[Mapping[str, Any]], error: Error | None) -> str:
    known = [one["engine"] for one in engines if one["runs"]]
    unknown = [one["engine"] for one in engines if not one["runs"]]
    if error is None:
        return "Nothing was trained here yet, so this is the time budget."
    text = (
        f"Half of the last {error.runs} estimates were off by a factor of {error.median:.2f} at "
        f"most, nine of ten by {error.p90:.2f}."
    )
    if not known:
        return f"None of these engines has trained here yet: others stand in for them. {text}"
    if unknown:
        return f"Of {', '.join(unknown)} nothing is known here yet: others stand in. {text}"
    return text


# While it runs -----------------------------------------------------------------------------------


def left_s(job: TrainingJob, tasks: Iterable[Task]) -> float | None:
    """Seconds until the race of a job is likely over; None when it has ended.

    What waits follows what runs, as many side by side as now. A task that goes on longer than was
    thought is given the rest of its budget by degrees.
    """
    race = [task for task in tasks if task.kind == TRAIN and not task.has_ended]
    if job.has_ended or not race:
        return None
    known, cells = past(), cells_of(job.rows, len(job.columns))
    ends, waiting = [], []
    for task in race:
        budget_s = float(job.budgets.get(task.engine) or job.budget_s)
        expected = known.seconds(task.engine, cells, budget_s).value
        if task.state != Task.State.RUNNING:
            waiting.append(max(0.0, expected - task.spent_s))
            continue
        gone = task.spent_s + _since(task.started_at)
        if gone >= expected:
            expected = (gone + max(gone, most_s(budget_s))) / 2
        ends.append(expected - gone)
    return _side_by_side(waiting, ends or [0.0])


def _since(moment: datetime | None) -> float:
    return (timezone.now() - moment).total_seconds() if moment else 0.0
