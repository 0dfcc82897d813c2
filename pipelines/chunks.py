"""The rows of what a step's transfer consisted of, as its node tells at its end."""

from collections.abc import Mapping
from typing import Any

from django.db import transaction

from pipelines.models import Step, TransferChunk

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
