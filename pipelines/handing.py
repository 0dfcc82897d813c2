"""What a node is told of a connection when it claims a task that uses one: all of it, as it is now.

A task's payload names the connection. Its settings and secrets come from its row together, so that
a new password never goes to an old address.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.conf import settings

from accounts import sealing
from pipelines import kinds
from pipelines.models import Connection
from workers import confidential
from workers.models import Task

TEST = "pipeline.test"
KINDS = (
    "pipeline.sql", "pipeline.write-back", "pipeline.upload", "pipeline.download",
    "pipeline.remote", "pipeline.remote-end", "pipeline.hook", TEST,
)  # fmt: skip


def connect() -> None:
    for kind in KINDS:
        confidential.register(kind, give)


def give(task: Task) -> dict[str, Any]:
    """{"kind", "settings", "secrets", "reach", "max_bytes"}, or {"problem": a sentence}.

    A place with files adds "transfer"; one on the node itself "roots" and "programs".
    """
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
    told = {
        "kind": found.kind,
        "settings": found.settings,
        "secrets": secrets,
        "reach": settings.REACH,
        "max_bytes": settings.MAX_UPLOAD_SIZE_MB * 2**20,
    }
    if found.kind in kinds.KINDS and kinds.KINDS[found.kind].keeps_files:
        told["transfer"] = _travel(found.settings)
    if found.kind == Connection.Kind.LOCAL:
        home = str(task.organization_id)
        told["roots"] = [one.replace("{organization}", home) for one in settings.LOCAL_ROOTS]
        told["programs"] = settings.LOCAL_PROGRAMS
    return told


def _travel(own: Mapping[str, Any]) -> dict[str, Any]:
    """How files travel: as the operator has set it, where the connection has nothing of its own."""
    wanted = {key: own[key] for key in ("chunk_mib", "workers", "retries") if key in own}
    verify = {"verify": own["verify"] == "yes"} if own.get("verify") else {}
    return {**settings.TRANSFER, **wanted, **verify}
