"""Stored files in and out of HTTP, in pieces: no whole file is ever held in memory."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import IO, Any
from uuid import UUID, uuid4

from django.core.files import File
from django.core.files.storage import default_storage
from django.db import transaction
from django.http import StreamingHttpResponse
from django.utils.http import content_disposition_header

from accounts.errors import NoRoom
from organizations import quotas
from organizations.models import Organization
from workers.keys import sign_artifact
from workers.models import Artifact, Task

CHUNK = 1024 * 1024


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


def store_artifact(
    organization: Organization, name: str, source: IO[bytes], *, task: Task | None = None
) -> Artifact:
    """Store, hash and sign what ``source`` reads. The same bytes under the same name of the same
    task are stored once.

    What a task wrote is kept even past the quota of storage, for its work is done; anything else
    raises QuotaReached there. Raises NoRoom when the disk is full.
    """
    identity: UUID = uuid4()
    content = _Hashing(source, name)
    own = bool(task and task.worker and task.worker.organization_id)
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
            if task is None:
                quotas.reserve(organization, storage_bytes=content.bytes)
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


def file_response(
    stored: Any, *, filename: str, content_type: str = "application/octet-stream"
) -> StreamingHttpResponse:
    """Stream a stored file (a FieldFile) as a download named ``filename``.

    An async iterator, since Django reads a plain one whole into memory when it serves ASGI.
    """
    size = stored.size
    source = stored.storage.open(stored.name, "rb")

    async def pieces() -> AsyncIterator[bytes]:
        try:
            while piece := await asyncio.to_thread(source.read, CHUNK):
                yield piece
        finally:
            source.close()

    response = StreamingHttpResponse(pieces(), content_type=content_type)
    response["Content-Length"] = str(size)
    disposition = content_disposition_header(True, filename)
    if disposition:
        response["Content-Disposition"] = disposition
    response["X-Content-Type-Options"] = "nosniff"
    return response
