"""An ensemble's download: one zip that holds each member's own zip, and what blends their answers.

It is made while it is sent, in pieces; nothing is stored for it.
"""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from django.http import StreamingHttpResponse
from django.utils.http import content_disposition_header

from accounts.errors import NotFound
from organizations.files import CHUNK
from training.models import EnsembleMember, TrainedModel

SCRIPT = Path(__file__).parent / "engines" / "alone" / "blend.py"
_WHEN = (2000, 1, 1, 0, 0, 0)  # equal content gives an equal zip


def response(model: TrainedModel) -> StreamingHttpResponse:
    """The download of an ensemble. NotFound when the files of a member are gone."""
    parts = model.parts()
    if not parts or any(part.model.artifact is None for part in parts):
        raise NotFound("The files of this model are gone.")
    pieces = _zip(model, parts)

    async def sent() -> AsyncIterator[bytes]:
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece

    answer = StreamingHttpResponse(sent(), content_type="application/zip")
    disposition = content_disposition_header(True, model.download_name)
    if disposition:
        answer["Content-Disposition"] = disposition
    answer["X-Content-Type-Options"] = "nosniff"
    return answer


class _Pipe(io.RawIOBase):
    """Takes what is written, for somebody to fetch piece by piece."""

    def __init__(self) -> None:
        self._written: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, piece: Any) -> int:
        self._written.append(bytes(piece))
        return len(piece)

    def fetch(self) -> bytes:
        written, self._written = self._written, []
        return b"".join(written)


def _zip(model: TrainedModel, parts: list[EnsembleMember]) -> Iterator[bytes]:
    pipe = _Pipe()
    told = _told(model, parts)
    with zipfile.ZipFile(pipe, "w") as archive:
        for name, text in (
            ("README.md", _readme(model, told)),
            ("ensemble.json", json.dumps(told, indent=1, ensure_ascii=False) + "\n"),
            ("blend.py", SCRIPT.read_text(encoding="utf-8")),
        ):
            info = zipfile.ZipInfo(name, _WHEN)
            info.external_attr = 0o644 << 16
            archive.writestr(info, text)
        yield pipe.fetch()
        for part, one in zip(parts, told["members"], strict=True):
            artifact = part.model.artifact
            assert artifact is not None
            info = zipfile.ZipInfo(one["file"], _WHEN)  # stored as it is: it is a zip already
            info.external_attr = 0o644 << 16
            with (
                artifact.file.storage.open(str(artifact.file.name), "rb") as source,
                archive.open(info, "w", force_zip64=True) as target,
            ):
                while piece := source.read(CHUNK):
                    target.write(piece)
                    yield pipe.fetch()
    yield pipe.fetch()


def _told(model: TrainedModel, parts: list[EnsembleMember]) -> dict[str, Any]:
    job = model.job
    return {
        "name": model.name,
        "task": job.task,
        "target": job.target,
        "classes": job.classes,
        "members": [
            {
                "file": f"members/{place}-{part.model.engine}.zip",
                "name": part.model.name,
                "engine": part.model.engine,
                "weight": part.weight,
            }
            for place, part in enumerate(parts, start=1)
        ],
    }


def _readme(model: TrainedModel, told: dict[str, Any]) -> str:
    rows = "\n".join(
        f"| {one['name']} | {one['engine']} | {one['weight']:.3f} |" for one in told["members"]
    )
    return f"""# {model.name} for {told["target"]}

A blend of models that FlowML trained with several engines. Their libraries do not go together, so
each keeps a virtualenv of its own; `blend.py`, which needs nothing but Python, asks them in turn.

| model | engine | weight |
| --- | --- | --- |
{rows}

## Use it

    python blend.py --install                 # unpacks the members, makes their virtualenvs
    python blend.py rows.csv                  # writes rows.predictions.csv

Each zip in `members/` is a whole model: its README tells the columns that `rows.csv` needs, how to
use it alone, and how to make it again.
"""
