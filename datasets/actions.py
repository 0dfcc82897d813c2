"""What people and nodes do with data sets."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import PurePath
from typing import IO, Any

import polars as pl
from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.db import transaction
from django.utils import timezone

from accounts.errors import Conflict, Invalid, TooLarge, Unavailable
from datasets import registry
from datasets.models import Dataset, DatasetVersion
from datasets.samples import SAMPLES
from organizations.models import Membership
from workers import actions as work
from workers.actions import emit
from workers.models import Artifact, Stream, Task

INGEST = "dataset.ingest"
ROLES = ("numeric", "categorical", "text", "datetime", "boolean", "identifier", "constant")
# Reading a table needs a few times its blocks, and Polars a floor of its own.
INGEST_RAM_MIB = 3072
INGEST_TIME_S = 3600
MAX_DECODED_TIMES = 50  # a file may unpack to this many times the upload limit
log = logging.getLogger(__name__)


class InUse(Conflict):
    code = "dataset-in-use"


# --- Getting data in ------------------------------------------------------------------------------


def upload(by: Membership, file: UploadedFile | None, *, name: str = "") -> Dataset:
    """A new data set from an uploaded file, to be read by a node.

    Raises Invalid without a file, TooLarge past MAX_UPLOAD_SIZE_MB.
    """
    file = _checked(file)
    filename = file.name or "table"
    return _new_dataset(by, file, filename=filename, name=name or PurePath(filename).name)


def load_sample(by: Membership, key: str) -> Dataset:
    """A new data set from a table that ships with FlowML. Raises Invalid for an unknown key."""
    sample = SAMPLES.get(key)
    if sample is None:
        raise Invalid(f"There is no sample {key!r}: there are {', '.join(SAMPLES)}.")
    with sample.path.open("rb") as file:
        return _new_dataset(by, file, filename=sample.path.name, name=sample.title)


def add_version(by: Membership, dataset: Dataset, file: UploadedFile | None) -> DatasetVersion:
    """The next version of a data set. Raises Invalid without a file, TooLarge, and Conflict while
    another version is being read."""
    file = _checked(file)
    if dataset.versions.filter(state=DatasetVersion.State.INGESTING).exists():
        raise Conflict("A version of this data set is still being read: wait until it is ready.")
    artifact = work.store_artifact(by.organization, "upload", file)
    with _kept_only_if_it_works(artifact), transaction.atomic():
        Dataset.objects.select_for_update(no_key=True).get(pk=dataset.pk)
        newest = dataset.versions.order_by("-number").values_list("number", flat=True).first() or 0
        return _ingest(by, dataset, artifact, filename=file.name or "table", number=newest + 1)


def _checked(file: UploadedFile | None) -> UploadedFile:
    limit = settings.MAX_UPLOAD_SIZE_MB
    if file is None:
        raise Invalid("Choose a file to upload.", errors={"file": ["There is no file here."]})
    if (file.size or 0) > limit * 2**20:
        sentence = f"The file is larger than this installation takes ({limit} MB)."
        raise TooLarge(sentence, errors={"file": [sentence]})
    return file


def _new_dataset(by: Membership, file: IO[bytes] | Any, *, filename: str, name: str) -> Dataset:
    artifact = work.store_artifact(by.organization, "upload", file)
    with _kept_only_if_it_works(artifact), transaction.atomic():
        dataset = Dataset.objects.create(
            organization=by.organization, name=name[:120], created_by=by.user
        )
        _ingest(by, dataset, artifact, filename=filename, number=1)
    return dataset


class _kept_only_if_it_works:  # noqa: N801 - reads as a sentence where it is used
    """Delete a file that was stored for something that then was refused."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact

    def __enter__(self) -> None:
        return None

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        if failed:
            _forget([self.artifact])


def _ingest(
    by: Membership, dataset: Dataset, artifact: Artifact, *, filename: str, number: int
) -> DatasetVersion:
    version = DatasetVersion.objects.create(
        organization=by.organization,
        dataset=dataset,
        number=number,
        filename=filename[:255],
        upload=artifact,
        upload_size=artifact.size,
        created_by=by.user,
    )
    previous = dataset.latest.columns if dataset.latest else []
    version.task = work.add_task(
        by.organization,
        kind=INGEST,
        subject=version.pk,
        topic=dataset.topic,
        payload={
            "dataset": str(dataset.pk),
            "version": str(version.pk),
            "filename": filename,
            "max_decoded_bytes": MAX_DECODED_TIMES * settings.MAX_UPLOAD_SIZE_MB * 2**20,
            "previous_columns": [{"name": c["name"], "dtype": c["dtype"]} for c in previous],
        },
        inputs={"upload": artifact},
        light=True,
        ram_mib=INGEST_RAM_MIB,
        time_limit_s=INGEST_TIME_S,
    )
    version.save(update_fields=["task"])
    return version


@transaction.atomic
def finish_ingest(task: Task) -> None:
    """Take over what a node made of an upload, or why it could not. Doing it again changes nothing.

    The upload goes either way: what was in it is in the version, its rejects and the notices.
    """
    version = (
        DatasetVersion.objects.select_for_update(no_key=True, of=("self",))
        .select_related("dataset", "upload")
        .filter(pk=task.subject, state=DatasetVersion.State.INGESTING)
        .first()
    )
    if version is None:
        return
    upload_artifact = version.upload
    if task.state == Task.State.SUCCEEDED:
        _fill(version, task.result)
    else:
        error = {
            "detail": task.error or "Reading the file was cancelled.",
            "code": task.code or str(task.state),
            "fault": task.fault,
            **(task.result.get("data") or {}),
        }
        version.move_to(DatasetVersion.State.FAILED, error=error, upload=None)
    dataset = version.dataset
    if version.state == DatasetVersion.State.READY:
        Dataset.objects.filter(pk=dataset.pk).update(
            state=Dataset.State.READY, latest=version, updated_at=timezone.now()
        )
    elif dataset.latest_id is None:
        Dataset.objects.filter(pk=dataset.pk).update(state=Dataset.State.FAILED)
    emit(dataset.topic, "state", {"version": str(version.pk), "state": version.state})
    if upload_artifact is not None:
        _forget([upload_artifact])


def _fill(version: DatasetVersion, result: Mapping[str, Any]) -> None:
    data, files = result["data"], result["files"]
    stored = Artifact.objects.in_bulk(files.values())
    by_name = {name: stored[pk] for name, key in files.items() for pk in stored if str(pk) == key}
    parquet = by_name["data"]
    version.move_to(
        DatasetVersion.State.READY,
        rows=data["rows"],
        columns=data["columns"],
        column_count=len(data["columns"]),
        sha256=parquet.sha256,
        size_bytes=parquet.size,
        rejected=data.get("rejected", 0),
        notices=data.get("notices", []),
        source={
            name: data[name]
            for name in ("format", "encoding", "delimiter", "header")
            if data.get(name) is not None
        },
        data=parquet,
        rejects=by_name.get("rejects"),
        upload=None,
        ready_at=timezone.now(),
    )


# --- Looking at it, changing it, letting it go ----------------------------------------------------


def preview(version: DatasetVersion, *, offset: int, rows: int) -> list[dict[str, Any]]:
    """Rows ``offset`` to ``offset + rows`` of a ready version, as plain values.

    Reads only the row groups that they lie in. Raises Conflict while the version is not ready.
    """
    frame = _slice(version, offset, rows, version.column_names)
    return frame.with_columns(
        pl.col(pl.Date, pl.Datetime, pl.Time).cast(pl.String), pl.col(pl.Float64).fill_nan(None)
    ).to_dicts()


def _slice(version: DatasetVersion, offset: int, rows: int, names: list[str]) -> pl.DataFrame:
    if version.data is None:
        raise Conflict("This version can't be shown: it is still being read, or could not be.")
    try:
        with version.data.file.open("rb") as file:
            path = getattr(file, "name", "")
            source = pl.scan_parquet(path if path and path.startswith("/") else file)
            return source.select(names).slice(offset, rows).collect()
    except (OSError, pl.exceptions.PolarsError):
        log.exception("a version's file can't be read", extra={"version": str(version.pk)})
        raise Unavailable("The stored table can't be read right now.") from None


@transaction.atomic
def change_dataset(
    by: Membership,
    dataset: Dataset,
    *,
    name: str | None = None,
    description: str | None = None,
    roles: Mapping[str, str] | None = None,
) -> Dataset:
    """Rename, describe, or say what columns of the latest version really are.

    Raises Invalid for a column that is not there or a role that is none.
    """
    stored = Dataset.objects.select_for_update(no_key=True, of=("self",)).get(pk=dataset.pk)
    if name is not None:
        stored.name = name
    if description is not None:
        stored.description = description
    stored.save(update_fields=["name", "description", "updated_at"])
    if roles:
        version = stored.latest
        if version is None:
            raise Conflict("No version of this data set is ready yet.")
        unknown = set(roles) - set(version.column_names)
        wrong = {column: role for column, role in roles.items() if role not in ROLES}
        if unknown or wrong:
            errors = {f"roles.{c}": ["There is no column of this name."] for c in unknown} | {
                f"roles.{c}": [f"{r!r} is no role: use {', '.join(ROLES)}."]
                for c, r in wrong.items()
            }
            raise Invalid("Some roles can't be set.", errors=errors)
        for column in version.columns:
            column["role"] = roles.get(column["name"], column["role"])
        version.save(update_fields=["columns"])
    return stored


@transaction.atomic
def delete_dataset(by: Membership, dataset: Dataset) -> None:
    """Delete a data set with all its versions and files. Raises InUse while something needs it."""
    stored = Dataset.objects.select_for_update(no_key=True, of=("self",)).get(pk=dataset.pk)
    versions = list(stored.versions.select_for_update(no_key=True, of=("self",)))
    uses = registry.uses_of(stored)
    if uses:
        raise InUse(" ".join(["This data set is in use.", *uses]), uses=uses)
    for version in versions:
        if version.task is not None and not version.task.has_ended:
            work.cancel_task(version.task, by=by.user.get_username())
    ids = {pk for v in versions for pk in (v.upload_id, v.data_id, v.rejects_id) if pk}
    artifacts = list(Artifact.objects.filter(pk__in=ids))
    stored.delete()
    Stream.objects.filter(topic=dataset.topic, tasks__isnull=True).delete()
    _forget(artifacts)


def _forget(artifacts: list[Artifact]) -> None:
    """Delete rows now and their files once that is committed."""
    for artifact in artifacts:
        file = artifact.file
        Artifact.objects.filter(pk=artifact.pk).delete()
        transaction.on_commit(lambda file=file: file.storage.delete(file.name))  # type: ignore[misc]
