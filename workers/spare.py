"""This machine's spare node: it runs while work waits that it could do and no other node could.

``manage.py up --without-node`` offers it. Control looks with every sweep and touches a file while
the node is wanted; ``up`` starts the process when it sees that, and ends it when nobody has touched
the file for a while, which is when nothing ran there and nothing waited for it.
"""

import json
import logging
import os
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.cache import cache
from django.utils import timezone

from workers import fairshare, routing
from workers.actions import capabilities_of
from workers.lines import pause_of
from workers.models import Allocation, Task
from workers.served import unserved
from workers.waiting import head_of

log = logging.getLogger(__name__)

NAME = os.environ.get("FLOWML_NODE_NAME") or "local"  # as `up` calls the node of its machine
MOST = 50  # waiting tasks that are looked at
PROBED_FOR_S = 600
_PROBED = "workers:spare:capabilities"


def look_after() -> bool:
    """Say whether the spare node is wanted now, to whoever starts it as well."""
    if not settings.SPARE_FILE:
        return False
    spare = Allocation.objects.filter(worker__name=NAME, worker__organization=None)
    wanted = spare.exists() or _somebody_waits()
    if wanted:
        Path(settings.SPARE_FILE).touch()
    return wanted


def _somebody_waits() -> bool:
    """Whether something waits that no node but ours could do, and ours could.

    What was queued a moment ago doesn't count: a node may just be starting again.
    """
    patience = timedelta(seconds=settings.LEASE_S)
    queued = Task.objects.filter(queued_at__lt=timezone.now() - patience)
    waiting = unserved(queued, but=NAME)
    if not waiting.exists():
        return False
    has = capabilities()
    if has is None:
        return False
    room = fairshare.Room.of_empty(has, max(1, int(has["cpu"]) // 2))
    able = waiting.filter(queue__in=routing.queues_for(capabilities_of(has)))
    return any(
        head_of(task).fits(room) and pause_of(task) is None
        for task in able.order_by("queued_at")[:MOST]
    )


def capabilities() -> dict[str, Any] | None:
    """What a node on this machine could do, as it would find out itself; None: it can't tell."""
    known: dict[str, Any] | None = cache.get(_PROBED)
    if known is None:
        venvs = Path(os.environ.get("FLOWML_VENVS") or settings.BASE_DIR / ".venvs")
        python = venvs / "node" / "bin" / "python"
        command = [str(python), "-m", "workers.cli", "--probe-only", "--json"]
        try:
            probed = subprocess.run(
                command, cwd=settings.BASE_DIR, capture_output=True, timeout=60, check=True
            )
            known = dict(json.loads(probed.stdout))
        except (OSError, subprocess.SubprocessError, ValueError) as problem:
            log.warning("this machine can't be probed", extra={"problem": str(problem)})
            return None
        cache.set(_PROBED, known, PROBED_FOR_S)
    return known
