"""Uploads on their way to the disk: counted as they come, and stopped past the limit. And pictures
on their way out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.core.files.uploadhandler import StopUpload, TemporaryFileUploadHandler
from django.http import HttpRequest, HttpResponse

from accounts.errors import NoRoom, TooLarge


class LimitedUploadHandler(TemporaryFileUploadHandler):
    """Writes an upload to a temporary file, as far as MAX_UPLOAD_SIZE_MB allows.

    Past it the rest is not read any more, and ``take`` says so. Raising here would end in a 500
    where the form is read early, by the CSRF check.
    """

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        if start + len(raw_data) > settings.MAX_UPLOAD_SIZE_MB * 2**20:
            if self.request is not None:
                self.request.upload_too_large = True  # type: ignore[attr-defined]
            self.file.close()
            raise StopUpload(connection_reset=False)
        with self._told_when_full():
            super().receive_data_chunk(raw_data, start)

    def file_complete(self, file_size: int) -> UploadedFile | None:
        with self._told_when_full():
            return super().file_complete(file_size)

    @contextlib.contextmanager
    def _told_when_full(self) -> Iterator[None]:
        """Stop reading when the disk is full, and have ``take`` say so."""
        try:
            yield
        except OSError as error:
            if not NoRoom.is_full(error):
                raise
            if self.request is not None:
                self.request.upload_without_room = True  # type: ignore[attr-defined]
            with contextlib.suppress(OSError):  # what is left in a buffer has no room either
                self.file.close()
            raise StopUpload(connection_reset=False) from error


def take(request: Any, field: str = "file") -> UploadedFile | None:
    """The uploaded file of a request, or None.

    Raises TooLarge when it was stopped at the limit, NoRoom when the disk was full.
    """
    inner: HttpRequest = getattr(request, "_request", request)
    found = request.FILES.get(field)
    if getattr(inner, "upload_without_room", False):
        raise NoRoom
    if getattr(inner, "upload_too_large", False):
        sentence = (
            f"The file is larger than this installation takes ({settings.MAX_UPLOAD_SIZE_MB} MB)."
        )
        raise TooLarge(sentence, errors={field: [sentence]})
    return found


def picture_response(data: bytes, content_type: str) -> HttpResponse:
    """Bytes that somebody uploaded: shown as a picture or not at all. A version never changes."""
    response = HttpResponse(data, content_type=content_type)
    response["X-Content-Type-Options"] = "nosniff"
    response["Content-Security-Policy"] = "default-src 'none'; sandbox"
    response["Cache-Control"] = "private, max-age=86400, immutable"
    return response
