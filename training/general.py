"""The general job API: training by kind of model, and inference. What people ask, and control does.

A training becomes a training job, an inference over a data set a batch; both go on as such. An
inference over rows is control's: it asks a node and keeps the answer with the request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import PurePath
from typing import Any, cast
from uuid import UUID

from django.conf import settings
from django.core.cache import cache
from django.core.files.base import File
from django.db import transaction
from django.utils import timezone
from redis.exceptions import RedisError

from accounts.errors import FlowError, Invalid, NotFound, TooLarge
from datasets import actions as data_actions
from datasets.models import Dataset, DatasetVersion
from organizations import rls
from organizations.audit import record
from organizations.models import Membership, Role, ServiceToken
from training import actions, catalog, inference, jobtypes, named, offers, roots, serving
from training.jobrequests import JobRequest
from training.models import BatchPrediction, TrainedModel
from training.rows import MOST_PICTURE_BYTES, BadRows, check_rows
from workers import bells

log = logging.getLogger(__name__)
State, Kind = JobRequest.State, JobRequest.Kind

TIME_BUDGET_S = 300.0
KEPT_S = 3600  # an answer to the same question
LOST_S = 120  # after which an inference that nobody works on is asked again
MOST_WAIT_S = 30.0
NO_DATA = (
    "'data_path' names a data set, or a file under a storage root that the operator allowed; "
    "'{}' is neither."
)


def locks() -> set[str]:
    """The engines that this installation has a lock file of."""
    return {path.stem.removeprefix("engine-") for path in catalog.LOCKS.glob("engine-*.txt")}


# Training ----------------------------------------------------------------------------------------


@transaction.atomic
def train(
    by: Membership,
    *,
    model_type: str,
    data_path: str = "",
    dataset: str = "",
    target: str = "",
    hyperparameters: Mapping[str, Any] | None = None,
    description: str = "",
    requires_gpu: bool = False,
    framework_override: str = "",
    time_budget: float | None = None,
) -> JobRequest:
    """Train one model of this kind on a data set, or on a file that is read first.

    Raises Invalid where no engine does it, for hyperparameters and for a target that is not plain;
    NotFound for the data, and what ``actions.start_job`` raises.
    """
    try:
        route = jobtypes.route(model_type, framework_override, requires_gpu, locks=locks())
    except jobtypes.NoRoute as refusal:
        raise Invalid(str(refusal), errors={refusal.field: [str(refusal)]}) from None
    if bool(data_path) == bool(dataset):
        sentence = "Give 'dataset' or 'data_path', one of them."
        raise Invalid(sentence, errors={"dataset": [sentence]})
    asked = JobRequest(
        organization=by.organization,
        kind=Kind.TRAINING,
        model_type=model_type,
        description=description,
        request={
            "target": target,
            "hyperparameters": dict(hyperparameters or {}),
            "engine": route.engine,
            "device": route.device,
            "time_budget": time_budget or TIME_BUDGET_S,
            "data": dataset or data_path,
        },
        created_by=by.author,
    )
    found = _data(by, asked, dataset or data_path, is_path=bool(data_path))
    if found.state == Dataset.State.INGESTING and found.latest_id is None:
        asked.reading = found.versions.order_by("-number").first()
        asked.save()
    else:
        _start(by, asked, found)
    return asked


def _data(by: Membership, asked: JobRequest, called: str, *, is_path: bool) -> Dataset:
    """The data set of this name, or a new one made of the file."""
    try:
        return named.find_dataset(by.organization, called)
    except NotFound:
        if not is_path:
            raise
    file = roots.open_file(called, settings.DATA_ROOTS, by.organization.pk)
    if file is None:
        text = NO_DATA.format(called[:200])
        raise NotFound(text, errors={"data_path": [text]})
    with file:
        size = file.seek(0, 2)
        file.seek(0)
        shown = File(file, name=PurePath(called).name)
        shown.size = size
        return data_actions.upload(by, cast("Any", shown))


def _start(by: Membership, asked: JobRequest, dataset: Dataset) -> None:
    """Begin the training of a request whose data can be read."""
    wish = asked.request
    target = wish["target"]
    described = dataset.latest.columns if dataset.latest else []
    if not target:
        columns = [str(column["name"]) for column in described]
        target = jobtypes.target_of(columns)
        if target is None:
            sentence = "Name the column to predict as 'target'."
            shown = ", ".join(columns[:30])
            raise Invalid(f"{sentence} There are: {shown}.", errors={"target": [sentence]})
    ask = offers.Ask(wish["engine"], asked.model_type, wish["hyperparameters"])
    try:
        choice = jobtypes.choice(asked.model_type, described, target)
    except jobtypes.NoRoute as refusal:
        raise Invalid(str(refusal), errors={refusal.field: [str(refusal)]}) from None
    asked.training = actions.start_job(
        by,
        dataset.pk,
        target=target,
        name=asked.description,
        time_budget=wish["time_budget"],
        budget_mode="per_engine",
        asks=[ask],
        device=wish["device"],
        ensemble=False,
        refit=False,
        **choice,
    )
    asked.save()


@transaction.atomic
def go_on(version: UUID) -> None:
    """A file was read, or could not be: the training that waits for it starts, or fails."""
    waiting = JobRequest.objects.select_for_update(no_key=True, of=("self",)).filter(
        reading=version, training=None, state=State.QUEUED
    )
    for asked in waiting.select_related("organization", "reading__dataset__latest"):
        read = asked.reading
        assert read is not None
        try:
            if read.state != DatasetVersion.State.READY:
                why = (read.error or {}).get("message") if isinstance(read.error, dict) else ""
                raise Invalid(f"The file could not be read. {why or 'See its data set.'}")
            with transaction.atomic():
                _start(_on_behalf(asked), asked, read.dataset)
        except FlowError as refusal:
            _end(asked, State.FAILED, error=refusal.detail)


def _on_behalf(asked: JobRequest) -> Membership:
    """Who asked, in control, where nobody is signed in. It was looked at then whether they may."""
    home, person = asked.organization, asked.created_by
    member = home.memberships.filter(user=person).first() if person else None
    if member is None:  # a service token asked, or somebody who has left since
        member = Membership(organization=home, role=Role.DEVELOPER)
        member.token = ServiceToken(organization=home, name="job request")
    return member


def _end(asked: JobRequest, state: JobRequest.State, **fields: Any) -> None:
    fields |= {"state": state, "finished_at": timezone.now()}
    for name, value in fields.items():
        setattr(asked, name, value)
    asked.save(update_fields=list(fields))


# Inference ---------------------------------------------------------------------------------------


def infer(
    by: Membership,
    *,
    model_id: str,
    input_data: object,
    parameters: Mapping[str, Any] | None = None,
    wait_s: float = 0,
) -> JobRequest:
    """Ask a model, by its id or name, for rows or for all rows of a data set.

    What was asked before is answered at once. Otherwise control asks a node; it is waited for so
    many seconds. Raises Invalid for the input and the parameters, NotFound, Conflict.
    """
    model = _model(by, model_id)
    texts = any(column["role"] == "text" for column in model.schema)
    try:
        chosen = inference.check_parameters(parameters or {}, model.job.classes, texts=texts)
        asked_for = inference.read_input(input_data, model.schema, chosen.get("max_length"))
    except inference.Refused as refused:
        raise Invalid(str(refused), errors=refused.errors) from None
    asked = JobRequest(
        organization=by.organization,
        kind=Kind.INFERENCE,
        model=model,
        request={"parameters": chosen},
        created_by=by.author,
    )
    if asked_for.path is not None or asked_for.row is not None:
        asked_for = _picture(by, model, asked_for)
    if asked_for.dataset is not None:
        return _infer_all(by, asked, model, asked_for.dataset)
    try:
        rows = check_rows(model.schema, asked_for.rows)
    except BadRows as bad:
        errors = {f"input_data.{place}": texts_ for place, texts_ in bad.errors.items()}
        raise Invalid(str(bad), code="bad-rows", errors=errors) from None
    asked.request["rows"] = rows
    if (before := _answered_before(asked)) is not None:
        asked.result, asked.cached, asked.request = before, True, _to_keep(asked)
        asked.state, asked.finished_at = State.SUCCEEDED, timezone.now()
        asked.save()
        return asked
    with transaction.atomic():
        asked.save()
        record("inference.started", asked, by=by, changes={"model": model.name})
        transaction.on_commit(lambda: hasten(asked.pk))
    return _waited_for(asked, min(wait_s, MOST_WAIT_S)) if wait_s > 0 else asked


def picture_of(upload: File[bytes], field: str) -> str:
    """A picture that came as a file, as base64. Raises TooLarge, naming the field."""
    if (upload.size or 0) > MOST_PICTURE_BYTES:
        sentence = f"A picture may have {MOST_PICTURE_BYTES >> 20} MiB at most."
        raise TooLarge(sentence, errors={field: [sentence]})
    return base64.b64encode(upload.read()).decode("ascii")


def _picture(by: Membership, model: TrainedModel, asked: inference.Asked) -> inference.Asked:
    """The picture that a request names, as a row of its own. Raises Invalid, NotFound."""
    if asked.path is not None:
        file = roots.open_file(asked.path, settings.DATA_ROOTS, by.organization.pk)
        if file is None:
            text = "'image_path' names a file under a storage root that the operator allowed."
            raise NotFound(text, errors={"input_data.image_path": [text]})
        with file:
            data = file.read(MOST_PICTURE_BYTES + 1)
    else:
        dataset = named.find_dataset(by.organization, asked.dataset or "")
        version = actions.ready_version(by, dataset.pk)
        shows = [str(c["name"]) for c in version.columns if c["role"] == "image"]
        column = next((name for name in shows), "")
        data, _ = data_actions.picture(version, column=column, row=asked.row or 0)
    (name,) = [str(column["name"]) for column in model.schema if column["role"] == "image"][:1]
    return inference.Asked(rows=[{name: base64.b64encode(data).decode("ascii")}])


def _model(by: Membership, called: str) -> TrainedModel:
    home = by.organization
    try:
        pk: UUID | None = UUID(called)
    except ValueError:
        pk = named.find(home, called).model_id
    model = serving.servable(home, pk) if pk else None
    if model is None:
        raise NotFound("There is no such model.", errors={"model_id": ["There is no such model."]})
    if by.token is not None and by.token.only_id not in {None, model.pk}:
        told = "This service token is made for another model."
        raise FlowError(told, code="forbidden", status=403)
    actions.check_usable(model)
    return model


@transaction.atomic
def _infer_all(by: Membership, asked: JobRequest, model: TrainedModel, called: str) -> JobRequest:
    """A batch over a data set's latest version, which becomes a new data set when it is done."""
    if asked.request["parameters"]:
        sentence = "A data set is predicted as a whole: leave the parameters out."
        raise Invalid(sentence, errors={"parameters": [sentence]})
    dataset = named.find_dataset(by.organization, called)
    version = actions.ready_version(by, dataset.pk)
    assert version.data is not None
    stem = offers.label_of(dataset.name)
    asked.batch = actions.queue_file(by, model, version.data, f"{stem}.parquet", keep=True)
    asked.request |= {"dataset": dataset.name, "version": version.number}
    asked.save()
    return asked


def hasten(pk: UUID) -> None:
    """Let control ask now; its sweep would, a little later."""
    bells.send("training.tasks.infer", args=[str(pk)], queue="control")


def _waited_for(asked: JobRequest, seconds: float) -> JobRequest:
    until = time.monotonic() + seconds
    with rls.waiting():
        pass  # what was stored is committed now, so that control sees it
    while asked.state in {State.QUEUED, State.RUNNING} and time.monotonic() < until:
        with rls.waiting():
            time.sleep(0.05)
        asked.refresh_from_db(fields=["state", "result", "error", "finished_at"])
    return asked


def answer(pk: UUID) -> None:
    """Ask a node what a request wants to know, and keep the answer. Runs in control."""
    now = timezone.now()
    mine = JobRequest.objects.filter(pk=pk, kind=Kind.INFERENCE, batch=None)
    if not mine.filter(state=State.QUEUED).update(state=State.RUNNING, started_at=now):
        return
    asked = mine.select_related("organization").get()
    try:
        model = asked.model_id and serving.servable(asked.organization, asked.model_id)
        if not model:
            raise NotFound("The model is gone.")
        names = [column["name"] for column in model.schema]
        said = serving.ask(model, names, asked.request["rows"])
    except FlowError as refusal:
        _end(asked, State.FAILED, error=refusal.detail, request=_to_keep(asked))
        return
    result = {
        "answers": inference.shape(
            said.predictions, said.probabilities, said.classes, asked.request["parameters"]
        ),
        "ms": said.ms,
    }
    _remember(asked, result)
    _end(asked, State.SUCCEEDED, result=result, request=_to_keep(asked))


def _to_keep(asked: JobRequest) -> dict[str, Any]:
    """The request without pictures, which are too large to be kept for ever."""
    request: dict[str, Any] = asked.request
    if asked.model and any(column["role"] == "image" for column in asked.model.schema):
        return request | {"rows": f"{len(request['rows'])} with pictures"}
    return request


def sweep() -> None:
    """Ask again what nobody answers any more, and go on where a file was read meanwhile."""
    before = timezone.now() - timedelta(seconds=LOST_S)
    rows = JobRequest.objects.filter(kind=Kind.INFERENCE, batch=None)
    rows.filter(state=State.RUNNING, started_at__lt=before).update(state=State.QUEUED)
    for pk in rows.filter(state=State.QUEUED, created_at__lt=before).values_list("pk", flat=True):
        hasten(pk)
    read = JobRequest.objects.filter(
        state=State.QUEUED, training=None, reading__state__in=["ready", "failed"]
    )
    for version in read.values_list("reading", flat=True):
        go_on(version)
    done = JobRequest.objects.filter(
        batch__state=BatchPrediction.State.SUCCEEDED, output=None, state=State.QUEUED
    )
    for batch in done.values_list("batch", flat=True):
        keep_batch(batch)


# What was asked before


def _key(asked: JobRequest) -> str:
    told = [str(asked.model_id), asked.request["rows"], asked.request["parameters"]]
    text = json.dumps(told, sort_keys=True)
    return f"inference:{asked.organization_id}:{hashlib.sha256(text.encode()).hexdigest()}"


def _answered_before(asked: JobRequest) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] | None = cache.get(_key(asked))
    except RedisError:
        return None
    return found


def _remember(asked: JobRequest, result: Mapping[str, Any]) -> None:
    try:
        cache.set(_key(asked), dict(result), KEPT_S)
    except RedisError:
        log.warning("an answer was not kept", extra={"request": str(asked.pk)})


@transaction.atomic
def keep_batch(batch: UUID) -> None:
    """A batch over a data set is done: what came of it becomes a data set, once."""
    found = JobRequest.objects.select_for_update(no_key=True, of=("self",)).filter(
        batch=batch, output=None, state=State.QUEUED
    )
    asked = found.select_related("organization", "batch__parquet").first()
    if asked is None or asked.batch is None:
        return
    file = asked.batch.parquet
    if asked.batch.state != BatchPrediction.State.SUCCEEDED or file is None:
        if asked.batch.has_ended:
            _end(asked, State.FAILED, error=asked.batch.error)
        return
    try:
        with transaction.atomic(), file.file.open("rb") as rows:
            shown = File(rows, name=asked.batch.result_name("parquet"))
            made = data_actions.upload(_on_behalf(asked), cast("Any", shown))
    except FlowError as refusal:
        _end(asked, State.FAILED, error=refusal.detail)
        return
    _end(asked, State.SUCCEEDED, output=made)


def visible(by: Membership) -> Any:
    """The requests that somebody may see: all of the organization, or a token's own model's."""
    found = JobRequest.objects.of(by.organization).for_list()
    token = by.token
    if token is not None and token.actions == token.Actions.PREDICT:
        found = found.filter(kind=Kind.INFERENCE)
        if token.only_id:
            found = found.filter(model=token.only_id)
    return found
