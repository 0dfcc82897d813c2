"""What a node is told of a connection when it claims a task that uses one: all of it, as it is now.

A task's payload names the connection. Its settings and secrets come from its row together, so that
a new password never goes to an old address.
"""

from typing import Any
from uuid import UUID

from django.conf import settings

from accounts import sealing
from pipelines.models import Connection
from workers import confidential
from workers.models import Task

TEST = "pipeline.test"
KINDS = ("pipeline.sql", "pipeline.write-back", TEST)


def connect() -> None:
    for kind in KINDS:
        confidential.register(kind, give)


def give(task: Task) -> dict[str, Any]:
    """{"kind", "settings", "secrets", "reach", "max_bytes"}, or {"problem": a sentence}."""
    try:
        pk = UUID(str((task.payload.get("connection") or {}).get("id")))
    except ValueError:
        return {"problem": "The task names no connection."}
    found = Connection.objects.of(task.organization).filter(pk=pk).first()
    if found is None:
        return {"problem": "The connection was deleted."}
    try:
        secrets = found.secrets
    except sealing.Unreadable:
        return {
            "problem": f"The secrets of the connection {found} can't be opened any more: the "
            "platform's key has changed. Enter them again."
        }
    return {
        "kind": found.kind,
        "settings": found.settings,
        "secrets": secrets,
        "reach": settings.REACH,
        "max_bytes": settings.MAX_UPLOAD_SIZE_MB * 2**20,
    }
