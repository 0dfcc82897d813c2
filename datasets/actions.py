"""What people and nodes do with data sets."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import IO, Any

import polars as pl
from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.db import transaction
from django.utils import timezone

from accounts.errors import Conflict, FlowError, Invalid, NotFound, TooLarge, Unavailable
from datasets import associations, registry
from datasets.models import Dataset, DatasetVersion
from datasets.samples import SAMPLES
from organizations import quotas
from organizations.audit import record
from organizations.models import Membership
from workers import actions as work
from workers.actions import emit
from workers.models import Artifact, Stream, Task

INGEST = "dataset.ingest"
ROLES = ("numeric", "categorical", "text", "datetime", "boolean", "identifier", "constant")
# What a column may be said to be, by how its values are stored. An identifier takes no part.
ROLES_OF = {
    "integer": ("numeric", "categorical", "identifier"),
    "float": ("numeric", "categorical", "identifier"),
    "boolean": ("boolean", "categorical", "identifier"),
    "string": ("categorical", "text", "identifier"),
    "date": ("datetime", "categorical", "identifier"),
    "datetime": ("datetime", "categorical", "identifier"),
    "binary": ("image",),
}
# Reading a table needs a few times its blocks, and Polars a floor of its own.
INGEST_RAM_MIB = 3072
INGEST_TIME_S = 3600
MOST_READING = 100  # files of one organization that are being read, or wait for it
MAX_DECODED_TIMES = 8  # a file may unpack to this many times the upload limit
MAX_CELLS = 200_000  # of one preview
MAX_CELL = 2_000  # characters of a text that a preview shows
log = logging.getLogger(__name__)


class InUse(Conflict):
    code = "dataset-in-use"


class TooManyUploads(FlowError):
    code = "too-many-uploads"
    status = 429


# --- Getting data in ------------------------------------------------------------------------------


def upload(
    by: Membership,
    file: UploadedFile | None,
    *,
    name: str = "",
    description: str = "",
    options: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Dataset:
    """A new data set from an uploaded file, to be read by a node.

    ``origin`` says what made the file, where nobody uploaded it: {"text", "url", ...}. ``options``
    say what the file itself leaves open: {"delimiter", "header", "encoding",
    "columns": {name: dtype}}. Raises Invalid without a file, TooLarge past MAX_UPLOAD_SIZE_MB,
    QuotaReached past what the organization may store or upload at once, TooManyUploads.
    """
    file = _checked(by, file)
    filename = file.name or "table"
    return _new_dataset(
        by,
        file,
        filename=filename,
        name=name or PurePath(filename).name,
        description=description,
        options=options,
        origin=origin,
    )


def load_sample(by: Membership, key: str) -> Dataset:
    """A new data set from a table that ships with FlowML. Raises Invalid for an unknown key."""
    sample = SAMPLES.get(key)
    if sample is None:
        raise Invalid(f"There is no sample {key!r}: there are {', '.join(SAMPLES)}.")
    with sample.path.open("rb") as file:
        return _new_dataset(by, file, filename=sample.path.name, name=sample.title)


def add_version(
    by: Membership,
    dataset: Dataset,
    file: UploadedFile | None,
    *,
    options: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> DatasetVersion:
    """The next version of a data set.

    Its columns keep their types: a row whose value does not fit is set aside. Raises Invalid
    without a file, TooLarge, TooManyUploads, and Conflict while another version is being read.
    """
    file = _checked(by, file)
    _refuse_too_many(by)
    _refuse_while_reading(dataset)  # before a large file is stored for nothing
    artifact = work.store_artifact(by.organization, "upload", file)
    with _kept_only_if_it_works(artifact), transaction.atomic():
        stored, number = _next_of(dataset)
        filename = file.name or "table"
        told = {"file": filename, "bytes": artifact.size, "version": number}
        record("dataset.version-added", stored, by=by, changes=told)
        return _ingest(
            by, stored, artifact, filename=filename, number=number, options=options, origin=origin
        )


def take_over(
    by: Membership,
    artifact: Artifact,
    dataset: Dataset | None,
    *,
    name: str,
    filename: str,
    origin: Mapping[str, Any],
    lent: bool = False,
) -> DatasetVersion:
    """The next version of ``dataset``, or a new one called ``name``, from a file that is stored
    already: nothing is copied. It goes once it was read, unless it is ``lent``.

    Raises TooLarge, QuotaReached, TooManyUploads, and Conflict while another version is being read.
    """
    _refuse_too_large(by, artifact.size)
    quotas.check(by.organization, storage_bytes=0)  # the file counts there already
    _refuse_too_many(by)
    with transaction.atomic():
        if dataset is None:
            stored = Dataset.objects.create(
                organization=by.organization, name=name[:120], created_by=by.author
            )
            record("dataset.created", stored, by=by, changes={"file": filename})
            return _ingest(
                by, stored, artifact, filename=filename, number=1, origin=origin, lent=lent
            )
        stored, number = _next_of(dataset)
        told = {"file": filename, "bytes": artifact.size, "version": number}
        record("dataset.version-added", stored, by=by, changes=told)
        return _ingest(
            by, stored, artifact, filename=filename, number=number, origin=origin, lent=lent
        )


def _next_of(dataset: Dataset) -> tuple[Dataset, int]:
    """The data set, locked, and the number of its next version. Raises NotFound, Conflict."""
    stored = (
        Dataset.objects.select_for_update(no_key=True, of=("self",))
        .select_related("latest")
        .filter(pk=dataset.pk)
        .first()
    )
    if stored is None:
        raise NotFound("The data set was deleted meanwhile.")
    _refuse_while_reading(stored)
    newest = stored.versions.order_by("-number").values_list("number", flat=True).first() or 0
    if stored.state == Dataset.State.FAILED:
        Dataset.objects.filter(pk=stored.pk).update(state=Dataset.State.INGESTING)
    return stored, newest + 1


def _refuse_while_reading(dataset: Dataset) -> None:
    if dataset.versions.filter(state=DatasetVersion.State.INGESTING).exists():
        raise Conflict("A version of this data set is still being read: wait until it is ready.")


def _refuse_too_many(by: Membership) -> None:
    """However small the files are, each is a task: storage does not bound them."""
    reading = DatasetVersion.objects.of(by.organization).filter(
        state=DatasetVersion.State.INGESTING
    )
    if reading.count() >= MOST_READING:
        raise TooManyUploads(
            f"{MOST_READING} files of your organization wait to be read already: wait until some "
            "are, or delete them.",
            retry_after_s=10,
        )


def _checked(by: Membership, file: UploadedFile | None) -> UploadedFile:
    if file is None:
        raise Invalid("Choose a file to upload.", errors={"file": ["There is no file here."]})
    _refuse_too_large(by, file.size or 0)
    quotas.check(by.organization, storage_bytes=file.size or 0)
    return file


def _refuse_too_large(by: Membership, size: int) -> None:
    limit = settings.MAX_UPLOAD_SIZE_MB
    if size > limit * 2**20:
        sentence = f"The file is larger than this installation takes ({limit} MB)."
        raise TooLarge(sentence, errors={"file": [sentence]})
    quotas.check(by.organization, upload_bytes=size)


def _new_dataset(
    by: Membership,
    file: IO[bytes] | Any,
    *,
    filename: str,
    name: str,
    description: str = "",
    options: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Dataset:
    _refuse_too_many(by)
    artifact = work.store_artifact(by.organization, "upload", file)
    with _kept_only_if_it_works(artifact), transaction.atomic():
        dataset = Dataset.objects.create(
            organization=by.organization,
            name=name[:120],
            description=description,
            created_by=by.author,
        )
        _ingest(by, dataset, artifact, filename=filename, number=1, options=options, origin=origin)
        told = {"file": filename, "bytes": artifact.size}
        record("dataset.created", dataset, by=by, changes=told)
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
    by: Membership,
    dataset: Dataset,
    artifact: Artifact,
    *,
    filename: str,
    number: int,
    options: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
    lent: bool = False,
) -> DatasetVersion:
    version = DatasetVersion.objects.create(
        organization=by.organization,
        dataset=dataset,
        number=number,
        filename=filename[:255],
        options=dict(options or {}),
        origin=dict(origin or {}),
        upload=None if lent else artifact,  # it goes with the reading
        upload_size=artifact.size,
        created_by=by.author,
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
            "options": dict(options or {}),
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
        .select_related("dataset__latest", "upload")
        .filter(pk=task.subject, state=DatasetVersion.State.INGESTING)
        .first()
    )
    if version is None:
        return
    upload_artifact = version.upload
    files = _sent(task)
    if task.state == Task.State.SUCCEEDED and "data" in files:
        _fill(version, task.result["data"], files)
    elif task.state == Task.State.SUCCEEDED:
        error = {"detail": "The node sent no table.", "code": "no-result", "fault": "platform"}
        version.move_to(DatasetVersion.State.FAILED, error=error, upload=None)
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


def _sent(task: Task) -> dict[str, Artifact]:
    """The files of a task's result by name: only what it has sent itself, whatever it names."""
    stored = {str(artifact.pk): artifact for artifact in task.artifacts.all()}
    named = (task.result.get("files") or {}).items()
    return {name: stored[key] for name, key in named if key in stored}


def _fill(version: DatasetVersion, data: Mapping[str, Any], files: Mapping[str, Artifact]) -> None:
    parquet = files["data"]
    columns = [dict(column) for column in data["columns"]]
    # What a person said of a column of the version before holds for this one's too.
    said = {
        column["name"]: column["role"]
        for column in (version.dataset.latest.columns if version.dataset.latest else ())
        if column.get("role_said")
    }
    for column in columns:
        role = said.get(column["name"])
        if role in ROLES_OF.get(column["dtype"], ()) and column["role"] != "constant":
            column |= {"role": role, "role_said": True}
    version.move_to(
        DatasetVersion.State.READY,
        rows=data["rows"],
        columns=columns,
        associations=associations.checked(data.get("associations"), columns),
        column_count=len(data["columns"]),
        sha256=parquet.sha256,
        size_bytes=parquet.size,
        rejected=data.get("rejected", 0),
        notices=data.get("notices", []),
        source=data.get("source", {}),
        data=parquet,
        rejects=files.get("rejects"),
        upload=None,
        ready_at=timezone.now(),
    )


# --- Looking at it, changing it, letting it go ----------------------------------------------------


def preview(version: DatasetVersion, *, offset: int, rows: int) -> list[dict[str, Any]]:
    """Rows ``offset`` to ``offset + rows`` of a ready version, as plain values.

    Reads only the row groups that they lie in; long texts are cut, and of a picture there is its
    size: ``picture`` has it. Raises Conflict while the
    version is not ready, Invalid when that many cells are too much for one answer.
    """
    if rows * version.column_count > MAX_CELLS:
        most = max(1, MAX_CELLS // version.column_count)
        sentence = f"Ask for {most:,} rows at most: the table has {version.column_count:,} columns."
        raise Invalid(sentence, errors={"rows": [sentence]})
    frame = _slice(version, offset, rows, version.column_names)
    for name, dtype in frame.schema.items():
        if dtype == pl.Binary:
            told = pl.format("picture, {} bytes", pl.col(name).bin.size())
            frame = frame.with_columns(told.alias(name))
    texts = pl.col(pl.String)
    return frame.with_columns(
        pl.col(pl.Date, pl.Datetime, pl.Time).cast(pl.String),
        pl.col(pl.Float64).fill_nan(None),
        pl.when(texts.str.len_chars() > MAX_CELL)
        .then(texts.str.head(MAX_CELL) + "…")
        .otherwise(texts),
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


def picture(version: DatasetVersion, *, column: str, row: int) -> tuple[bytes, str]:
    """The picture in a column of a row (from 0), and its media type.

    Raises Invalid for a column without pictures, NotFound for a row that is not there.
    """
    about = version.column(column)
    if about is None or about["role"] != "image":
        sentence = f"There is no column '{column[:100]}' of pictures."
        raise Invalid(sentence, errors={"column": [sentence]})
    if not 0 <= row < version.rows:
        raise NotFound(f"There is no row {row}: they count from 0 to {version.rows - 1}.")
    data = _slice(version, row, 1, [column]).item()
    if data is None:
        raise NotFound(f"There is no picture in row {row}.")
    return data, "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"


def first_rejects(version: DatasetVersion, *, rows: int) -> list[dict[str, Any]]:
    """The first rows that were set aside: {"line", "reason", "raw"}. ``line`` counts from 1."""
    if version.rejects is None:
        return []
    try:
        with version.rejects.file.open("rb") as file:
            shapes = {"line": pl.Int64, "reason": pl.String, "raw": pl.String}
            # The file's head only: a reject's line is cut at 4 KiB.
            head = file.read(rows * 5_000)
            return pl.read_csv(head, schema=shapes, n_rows=rows, ignore_errors=True).to_dicts()
    except (OSError, pl.exceptions.PolarsError):
        log.exception("rejects can't be read", extra={"version": str(version.pk)})
        raise Unavailable("The rows that were set aside can't be read right now.") from None


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
    wishes = {"name": name, "description": description, "roles": roles}
    told = {key: value for key, value in wishes.items() if value is not None}
    record("dataset.changed", stored, by=by, changes=told)
    if name is not None:
        stored.name = name
    if description is not None:
        stored.description = description
    stored.save(update_fields=["name", "description", "updated_at"])
    if roles:
        version = stored.latest
        if version is None:
            raise Conflict("No version of this data set is ready yet.")
        errors: dict[str, list[str]] = {}
        for name_, role in roles.items():
            column = version.column(name_)
            if column is None:
                errors[f"roles.{name_}"] = ["There is no column of this name."]
                continue
            fitting = ROLES_OF.get(column["dtype"], ROLES)
            if role != column["role"] and role not in fitting:
                errors[f"roles.{name_}"] = [
                    f"A column of {column['dtype']} values can be {_one_of(fitting)}, not {role!r}."
                ]
            else:
                column |= {"role": role, "role_said": True}
        if errors:
            raise Invalid(" ".join(said for [said] in errors.values()), errors=errors)
        version.save(update_fields=["columns"])
    return stored


def _one_of(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"


@transaction.atomic
def delete_dataset(by: str, dataset: Dataset) -> None:
    """Delete a data set with all its versions and files, for ``by``, a user's name.

    Raises InUse while something needs it.
    """
    stored = Dataset.objects.select_for_update(no_key=True, of=("self",)).get(pk=dataset.pk)
    versions = list(stored.versions.select_for_update(no_key=True, of=("self",)))
    uses = registry.uses_of(stored)
    if uses:
        raise InUse(" ".join(["This data set is in use.", *uses]), uses=uses)
    for version in versions:
        if version.task is not None and not version.task.has_ended:
            work.cancel_task(version.task, by=by)
    ids = {pk for v in versions for pk in (v.upload_id, v.data_id, v.rejects_id) if pk}
    artifacts = list(Artifact.objects.filter(pk__in=ids))
    record("dataset.deleted", stored, by=by, changes={"versions": len(versions)})
    stored.delete()
    Stream.objects.filter(topic=dataset.topic, tasks__isnull=True).delete()
    _forget(artifacts)


def _forget(artifacts: list[Artifact]) -> None:
    """Delete rows now and their files once that is committed."""
    for artifact in artifacts:
        file = artifact.file
        Artifact.objects.filter(pk=artifact.pk).delete()
        transaction.on_commit(lambda file=file: file.storage.delete(file.name))  # type: ignore[misc]
