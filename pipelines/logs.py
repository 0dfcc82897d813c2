"""The log of a run: what was noted as events of its topic, in words."""

from collections.abc import Iterable, Iterator
from typing import Any

from django.db.models import Q, QuerySet

from pipelines.models import Run
from workers.models import Event

_SAYS = {
    "run.queued": "Waits.",
    "run.running": "Begins.",
    "run.succeeded": "Succeeded.",
    "run.failed": "Failed.",
    "run.cancelled": "Cancelled.",
    "run.skipped": "Left out.",
    "run.cancelling": "Is being cancelled.",
    "run.retried": "Goes on.",
    "step.running": "Begins.",
    "step.succeeded": "Done.",
    "step.skipped": "Skipped.",
    "step.failed": "Failed.",
    "step.not_run": "Does not run.",
    "step.cancelled": "Cancelled.",
    "step.again": "Is tried again later.",
}
_ERRORS = frozenset({"run.failed", "step.failed", "task.failed"})
_WARNINGS = frozenset({"step.again", "step.not_run", "task.lost", "run.cancelled", "notice"})


def events_of(run: Run, *, step: str = "", after: int = 0) -> QuerySet[Event]:
    """Oldest first; those of one step, if one is named."""
    found = Event.objects.filter(stream=run.topic, seq__gt=after).order_by("seq")
    if step:
        mine = run.steps.filter(key=step).values("task")
        found = found.filter(Q(data__step=step) | Q(task__in=mine))
    return found


def lines(run: Run, events: Iterable[Event]) -> Iterator[dict[str, Any]]:
    """Each event as {"seq", "at", "step", "level", "message"}."""
    of_tasks: dict[Any, str] = {one.task_id: one.key for one in run.steps.all() if one.task_id}
    for event in events:
        data = event.data
        step = str(data.get("step") or of_tasks.get(event.task_id) or "")
        level = "error" if event.type in _ERRORS else "info"
        if event.type in _WARNINGS:
            level = "warning"
        yield {
            "seq": event.seq,
            "at": event.at,
            "step": step,
            "level": str(data.get("level") or level).lower(),
            "message": _message(event.type, data),
        }


def text(run: Run, events: Iterable[Event]) -> Iterator[str]:
    """The same as lines of a file."""
    for line in lines(run, events):
        at = f"{line['at']:%Y-%m-%d %H:%M:%S}Z"
        yield f"{at} {line['level'].upper():7} {line['step'] or '-':12} {line['message']}\n"


def _message(type: str, data: dict[str, Any]) -> str:
    if type in _SAYS:
        more = data.get("error") or data.get("skipped_because") or data.get("why") or ""
        if type == "step.running" and data.get("attempt", 1) > 1:
            more = f"Attempt {data['attempt']}."
        if type == "run.retried":
            more = f"{data.get('by', '')}: {', '.join(data.get('steps', []))}."
        return f"{_SAYS[type]} {more}".strip()
    said = data.get("message") or data.get("text") or data.get("line")
    if said:
        return str(said)
    if type.startswith("task."):
        word = type.removeprefix("task.")
        return f"The node's work is {word}. {data.get('why') or ''}".strip()
    return type
