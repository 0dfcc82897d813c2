"""What a step's transfer consists of: as its node tells meanwhile, and its rows at the end."""

from collections.abc import Iterable, Mapping
from typing import Any

from django.db import transaction
from django.db.models import Count, Sum

from pipelines.models import Step, TransferChunk
from workers.models import Event

MOST = 2000  # more than pipelines.transfers ever cuts
STATES = frozenset(TransferChunk.State.values)


def note(step: Step, told: Any) -> None:
    """Keep what a node told of a transfer. What makes no sense is left out: nobody relies on it."""
    try:
        rows = _rows(step, told)
    except (KeyError, TypeError, ValueError, AttributeError):
        return
    with transaction.atomic():
        step.chunks.all().delete()
        TransferChunk.objects.bulk_create(rows)


def _rows(step: Step, told: Mapping[str, Any]) -> list[TransferChunk]:
    path = str(told["path"])[:1000].replace("\0", "")
    return [
        TransferChunk(
            step=step,
            number=number,
            path=path,
            offset=min(max(0, int(one["offset"])), 2**62),
            size=min(max(0, int(one["size"])), 2**62),
            sha256=str(one["sha256"])[:64].replace("\0", ""),
            state=one["state"] if one["state"] in STATES else TransferChunk.State.FAILED,
            retry_count=min(max(0, int(one["retry_count"])), 2**31 - 1),
        )
        for number, one in enumerate(told["chunks"][:MOST])
    ]


TRANSFERS = frozenset({"upload", "download"})
COUNTS = ("of", "there", "done", "running", "failed", "again")


def standing(steps: Iterable[Step]) -> dict[int, dict[str, Any]]:
    """How the transfers among the steps stand, by step: {"path", "size", "settled", "share",
    "rate" and "left_s" (None: not known), and the numbers of chunks, COUNTS}."""
    transfers = [one for one in steps if one.stage in TRANSFERS and one.task_id]
    ended = [one for one in transfers if one.state in Step.ENDED]
    going = {one.task_id: one for one in transfers if one.state == Step.State.RUNNING}
    found = _ended(ended) if ended else {}
    if going:
        last = Event.objects.filter(task__in=list(going), type="progress")
        for event in last.order_by("task", "-seq").distinct("task"):
            try:
                found[going[event.task_id].pk] = _going(event.data["transfer"])
            except (KeyError, TypeError, ValueError, AttributeError):
                continue  # it has said nothing yet, or nothing that makes sense
    return found


def _going(told: Mapping[str, Any]) -> dict[str, Any]:
    size, settled, rate = int(told["size"]), int(told["settled"]), told["rate"]
    left_s = (size - settled) / float(rate) if rate else None
    counts = {name: int(told["chunks"][name]) for name in COUNTS}
    return _shown(str(told["path"])[:1000], size, settled, rate, left_s, counts)


def _ended(steps: Iterable[Step]) -> dict[int, dict[str, Any]]:
    groups = TransferChunk.objects.filter(step__in=steps).values("step", "path", "state")
    told: dict[int, dict[str, Any]] = {}
    for row in groups.annotate(n=Count("pk"), bytes=Sum("size"), again=Sum("retry_count")):
        one = told.setdefault(
            row["step"], {"path": row["path"], "size": 0, "settled": 0, **dict.fromkeys(COUNTS, 0)}
        )
        one["size"] += row["bytes"]
        one["of"] += row["n"]
        one["again"] += row["again"]
        if row["state"] in {TransferChunk.State.THERE, TransferChunk.State.DONE}:
            one["settled"] += row["bytes"]
        if row["state"] in COUNTS:
            one[row["state"]] += row["n"]
    return {
        step: _shown(
            one["path"],
            one["size"],
            one["settled"],
            None,
            None,
            {name: one[name] for name in COUNTS},
        )
        for step, one in told.items()
    }


def _shown(
    path: str,
    size: int,
    settled: int,
    rate: float | None,
    left_s: float | None,
    counts: Mapping[str, int],
) -> dict[str, Any]:
    return {
        "path": path,
        "size": size,
        "settled": settled,
        "share": min(100, 100 * settled // size) if size else 100,
        "rate": rate,
        "left_s": left_s,
        **counts,
    }
