"""What the apps on the right do when a whole organization is taken along, stopped or deleted.

Each says so in its ``AppConfig.ready``. What they have refers to what lies further left, so things
are deleted from right to left.
"""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from django.core.files.storage import default_storage
from django.core.serializers.json import DjangoJSONEncoder
from django.db.models import QuerySet

from organizations.models import Organization

CHUNK = 1024 * 1024


class Bundle:
    """The zip file that an export becomes. Everything goes in piece by piece."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.names: list[str] = []

    def add_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """``name``.jsonl: one JSON object a line."""
        name = f"{name}.jsonl"
        with self.archive.open(name, "w", force_zip64=True) as out:
            for row in rows:
                line = json.dumps(dict(row), cls=DjangoJSONEncoder, ensure_ascii=False)
                out.write(line.encode() + b"\n")
        self.names.append(name)

    def add_table(self, name: str, found: QuerySet[Any], *without: str) -> None:
        """Every column of the rows, but those named."""
        columns = [
            field.attname
            for field in found.model._meta.concrete_fields
            if field.name not in without
        ]
        self.add_rows(name, found.order_by("pk").values(*columns).iterator(1000))

    def add_file(self, name: str, stored: str | None) -> None:
        """A file of the storage. One that is gone is left out, and its row says that it was."""
        if not stored or not default_storage.exists(stored):
            return
        info = zipfile.ZipInfo(name)
        # What is compressed already doesn't get smaller.
        packed = name.endswith((".zip", ".parquet", ".gz", ".zst"))
        info.compress_type = zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED
        with (
            default_storage.open(stored, "rb") as source,
            self.archive.open(info, "w", force_zip64=True) as out,
        ):
            shutil.copyfileobj(source, out, CHUNK)
        self.names.append(name)


Export = Callable[[Organization, Bundle], None]
Act = Callable[[Organization], None]
exports: list[Export] = []
stops: list[Act] = []
purges: list[Act] = []


def register(
    *, export: Export | None = None, stop: Act | None = None, purge: Act | None = None
) -> None:
    """Add what an app does: export its part, stop what runs, delete its rows and files."""
    for known, one in ((exports, export), (stops, stop), (purges, purge)):
        if one is not None and one not in known:
            known.append(one)  # type: ignore[arg-type]
