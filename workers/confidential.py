"""What a node is told with a claim and nobody else ever reads: secrets that a task needs.

No row of a task holds them; they are opened when a node claims it. The app that knows them
registers in its ``AppConfig.ready``:

    confidential.register("pipeline.sql", lambda task: {"secrets": {"password": ...}})

Whatever stands under ``secrets`` is masked in what the task says (workers/node/attempt.py).
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from workers.models import Task

log = logging.getLogger(__name__)

Give = Callable[[Task], Mapping[str, Any]]
_givers: dict[str, Give] = {}


def register(kind: str, give: Give) -> None:
    """Say what a node is told with a task of this kind. ``give`` returns plain JSON."""
    _givers[kind] = give


def of(task: Task) -> dict[str, Any]:
    """What its node is told beside the claim: {"confidential": {...}}, or {}.

    Only to a node of the platform or of the task's own organization. A claim gives no other a task;
    that it is looked at here again costs nothing.
    """
    give = _givers.get(task.kind)
    if give is None:
        return {}
    node = task.worker
    if node is None or node.organization_id not in {None, task.organization_id}:
        log.error("no secrets for a task on another's node", extra={"task": str(task.pk)})
        return {}
    return {"confidential": dict(give(task))}
