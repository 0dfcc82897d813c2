"""The log of a run: what was noted as events of its topic, in words; and as files for operators.

What comes from nodes has its secrets masked there already: neither the events nor the files ever
hold one.
"""

import fcntl
import logging
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.models import Q, QuerySet
from django.utils import timezone

from pipelines.models import Run
from workers.models import Event

MOST_AT_ONCE = 5000  # lines that one turn writes to files
log = logging.getLogger(__name__)

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
        # What goes on in another line can't be taken for one of its own.
        said = "\n    ".join(line["message"].splitlines())
        yield f"{at} {line['level'].upper():7} {line['step'] or '-':12} {said}\n"


_OF_TASKS = {
    "queued": "Waits for a node.",
    "started": "A node has begun with it.",
    "running": "A node has begun with it.",
    "succeeded": "The node has done it.",
    "failed": "The node could not do it.",
    "lost": "Its node was lost.",
    "cancelled": "The node has stopped it.",
    "cancel_asked": "The node is told to stop it.",
    "stop_asked": "The node is told to come to an end.",
}


def _message(type: str, data: dict[str, Any]) -> str:
    if type in _SAYS:
        more = data.get("error") or data.get("skipped_because") or data.get("why") or ""
        if type == "step.running" and data.get("attempt", 1) > 1:
            more = f"Attempt {data['attempt']}."
        if type == "run.retried":
            more = f"{data.get('by', '')}: {', '.join(data.get('steps', []))}."
        return f"{_SAYS[type]} {more}".strip()
    said = data.get("message") or data.get("text") or data.get("line")
    said = said or "\n".join(map(str, data.get("lines") or ()))
    if said:
        return str(said)
    if type == "started":  # said by the node's child itself, where the other was its claim
        return "The work itself begins."
    if type.startswith("task."):
        word = type.removeprefix("task.")
        told = _OF_TASKS.get(word, f"On the node: {word.replace('_', ' ')}.")
        return f"{told} {data.get('why') or ''}".strip()
    return type


# --- Files ---------------------------------------------------------------------------------------


def folder() -> Path:
    return Path(settings.FLOWML_VAR) / "logs" / "workflow"


def folder_of(run: UUID) -> Path:
    return folder() / f"task_{run}"


def write(run: Run) -> None:
    """Bring the files of a run's log up to date: ``task_<id>/<time>.log``, another one whenever the
    last has grown to LOG_ROTATION_SIZE_MB. Doing it again writes nothing twice.

    A disk that is full is no trouble: the next turn goes on where this one stopped.
    """
    home = folder_of(run.pk)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with (home / "written").open("a+") as mark:
            fcntl.flock(mark, fcntl.LOCK_EX)
            mark.seek(0)
            seq, size, name = (mark.read().split() or ["0", "0", ""])[:3]
            events = list(events_of(run, after=int(seq))[:MOST_AT_ONCE])
            if not events:
                return
            file = _as_marked(home, name, int(size))
            with file.open("a", encoding="utf-8") as output:
                output.writelines(text(run, events))
            mark.truncate(0)
            mark.write(f"{events[-1].seq} {file.stat().st_size} {file.name}")
    except (OSError, ValueError) as problem:
        log.warning("a log was not written", extra={"run": str(run.pk), "problem": str(problem)})


def _as_marked(home: Path, name: str, size: int) -> Path:
    """The file to go on with, without what a crash has left behind the mark."""
    for later in home.glob("*.log"):
        if later.name > name:
            later.unlink()
    file = home / name
    if not name or not file.exists() or size >= settings.LOG_ROTATION_SIZE_MB * 2**20:
        return home / f"{timezone.now():%Y%m%dT%H%M%S.%f}Z.log"
    with file.open("r+b") as cut:
        cut.truncate(size)
    return file


def forget(run: UUID) -> None:
    """Remove the files of a run that is gone."""
    shutil.rmtree(folder_of(run), ignore_errors=True)


def tidy() -> None:
    """Remove the files of runs to which nothing was added for LOG_KEEP_DAYS."""
    oldest = time.time() - settings.LOG_KEEP_DAYS * 24 * 3600
    for home in folder().glob("task_*"):
        newest = max((file.stat().st_mtime for file in home.iterdir()), default=0.0)
        if newest < oldest:
            shutil.rmtree(home, ignore_errors=True)
