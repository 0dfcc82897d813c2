"""Stored files in and out of HTTP, in pieces: no whole file is ever held in memory."""

import hashlib
from functools import partial
from typing import IO, Any
from uuid import UUID, uuid4

from django.core.files import File
from django.core.files.storage import default_storage
from django.db import transaction

from accounts.errors import NoRoom, TooLarge
from organizations import quotas
from organizations.files import CHUNK, file_response
from organizations.models import Organization
from workers.keys import sign_artifact
from workers.models import Artifact, Task

__all__ = ["file_response", "forget_checkpoints", "refuse_upload", "store_artifact"]

MOST_FILES = 1000  # of one task, all its attempts together
CHECKPOINT = "checkpoint:"  # before the name of a fit: a file of how far it has come
MOST_CHECKPOINT_BYTES = 256 * 1024 * 1024
MOST_CHECKPOINTS = 20  # of one task: the fits that came on last


class _Hashing(File):  # type: ignore[type-arg]
    """Hashes and counts what passes through on its way to the storage."""

    def __init__(self, source: IO[bytes], name: str) -> None:
        super().__init__(source, name=name)
        self.source = source
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    def chunks(self, chunk_size: int | None = None) -> Any:
        while piece := self.source.read(chunk_size or CHUNK):
            self.sha256.update(piece)
            self.bytes += len(piece)
            yield piece


def _is_own(task: Task | None) -> bool:
    """Whether a node of the organization's own does the task."""
    return bool(task and task.worker and task.worker.organization_id)


def _reserve(organization: Organization, task: Task | None, size: int, name: str) -> None:
    """Raise QuotaReached where what is stored counts before it is kept, TooLarge for too many."""
    if task is None:
        quotas.reserve(organization, storage_bytes=size)
        return
    checkpoint = name.startswith(CHECKPOINT)
    if checkpoint and size > MOST_CHECKPOINT_BYTES:
        raise TooLarge(
            f'"{name}" is not stored: it has more than {MOST_CHECKPOINT_BYTES >> 20} MiB.',
            code="checkpoint-too-large",
        )
    if Artifact.objects.filter(task=task).count() >= MOST_FILES:
        raise TooLarge(
            f'"{name}" is not stored: a task keeps at most {MOST_FILES} files, and this one has '
            "them already.",
            code="too-many-files",
        )
    if checkpoint or _is_own(task):  # a fit goes on without: its result is what is always kept
        try:
            quotas.reserve(organization, storage_bytes=size)
        except quotas.QuotaReached as reached:
            # To a node 429 says "again, in a moment", which would go on for ever.
            raise quotas.QuotaReached(reached.detail, status=413, **reached.extra) from None


def refuse_upload(task: Task, name: str, size: int) -> None:
    """Raise what ``store_artifact`` would, before ``size`` bytes are read in vain."""
    again = not name.startswith(CHECKPOINT)  # the same file may be sent once more
    if not (again and Artifact.objects.filter(task=task, name=name).exists()):
        with transaction.atomic():
            _reserve(task.organization, task, size, name)


def store_artifact(
    organization: Organization, name: str, source: IO[bytes], *, task: Task | None = None
) -> Artifact:
    """Store, hash and sign what ``source`` reads. The same bytes under the same name of the same
    task are stored once.

    What a task wrote on the platform's nodes is kept even past the quota of storage, for its work
    is done; anything else raises QuotaReached there: what an organization's own node sends is
    whatever the organization likes. Raises TooLarge for a task's file too many, NoRoom when the
    disk is full.
    """
    identity: UUID = uuid4()
    content = _Hashing(source, name)
    own = _is_own(task)
    path = f"artifacts/{organization.pk}/{identity}"
    try:
        path = default_storage.save(path, content)
    except OSError as error:
        if not NoRoom.is_full(error):
            raise
        default_storage.delete(path)  # the part that found room
        raise NoRoom from error
    sha256 = content.sha256.hexdigest()
    if task is not None:
        twin = Artifact.objects.filter(task=task, name=name, sha256=sha256).first()
        if twin is not None:
            default_storage.delete(path)
            return twin
    try:
        with transaction.atomic():
            _reserve(organization, task, content.bytes, name)
            return Artifact.objects.create(
                id=identity,
                organization=organization,
                task=task,
                name=name,
                file=path,
                sha256=sha256,
                size=content.bytes,
                signature=sign_artifact(identity, sha256, organization.pk, own_node=own),
                own_node=own,
            )
    except Exception:
        default_storage.delete(path)
        raise


@transaction.atomic
def forget_checkpoints(task: UUID, *, but: Artifact | None = None) -> None:
    """Delete how far the fits of a task had come; with ``but``, what this one makes useless."""
    found = Artifact.objects.filter(task=task, name__startswith=CHECKPOINT)
    if but is not None:
        newest = found.exclude(name=but.name).order_by("-created_at").values_list("pk", flat=True)
        kept = [but.pk, *newest[: MOST_CHECKPOINTS - 1]]
        found = found.exclude(pk__in=kept)
    gone = list(found)
    if gone:
        Artifact.objects.filter(pk__in=[one.pk for one in gone]).delete()
    for artifact in gone:
        transaction.on_commit(partial(artifact.file.delete, save=False))
