"""Stored files out of HTTP, in pieces: no whole file is ever held in memory."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from django.http import StreamingHttpResponse
from django.utils.http import content_disposition_header

CHUNK = 1024 * 1024


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
