"""What people and nodes do with training jobs and their models."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any
from uuid import UUID

from django.conf import settings
from django.core.files.base import File
from django.db import IntegrityError, transaction
from django.db.models import F, Q
from django.http import StreamingHttpResponse
from django.utils import timezone

from accounts.errors import Conflict, Invalid, NotFound, TooLarge
from datasets.models import DatasetVersion
from organizations import quotas
from organizations.audit import record
from organizations.models import Membership, Organization
from training import (
    blends,
    bundle,
    catalog,
    epochs,
    findings,
    history,
    offers,
    presets,
    scoring,
    serving,
)
from training.checks import Plan, Refused, Wish, check, of_pictures
from training.evaluation import InvalidCandidate
from training.models import (
    BEST_ORDER,
    RACE_SHARE,
    REFIT,
    TRAIN,
    BatchPrediction,
    DataCheck,
    TrainedModel,
    TrainingJob,
)
from training.rows import BadRows, check_rows
from workers.actions import add_task, cancel_task, emit, stop_task, store_artifact
from workers.files import file_response
from workers.lines import move_to_front
from workers.models import OWN_NODES, Artifact, Event, StaleWrite, Stream, Task, Worker
from workers.routing import Requirements, queue_for
from workers.waiting import BLINK_S, Wait, wait_of, waits_for

log = logging.getLogger(__name__)

PREDICT_FILE = "training.predict_file"
PRIORITIES = {"low": -1, "normal": 0, "high": 1}
FORMATS = ("csv", "parquet")
MOST_NOTICES = 50
TRIES = 3  # of scoring a candidate, when the fault seems to be the platform's own

# An engine ends by itself inside its budget; this is when the node ends it from outside.
GRACE_S = 30
SMALL_TABLE_CELLS = 200_000  # below this a second thread gains less than it takes from others


class RowsRefused(Invalid):
    code = "bad-rows"


# People: jobs ------------------------------------------------------------------------------------


def start_job(
    by: Membership,
    dataset: UUID,
    *,
    target: str,
    version: int | None = None,
    name: str = "",
    task_type: str = "auto",
    preset: str = "",
    engines: Sequence[str] | str = (),
    time_budget: float | None = None,
    budget_mode: str = "",
    metric: str = "",
    priority: str = "normal",
    exclude: Sequence[str] = (),
    column_types: Mapping[str, str] | None = None,
    positive_class: object = None,
    split: Mapping[str, Any] | None = None,
    ensemble: bool | None = None,
    refit: bool | None = None,
    accept_findings: bool = False,
    reason: str = "",
    asks: Sequence[offers.Ask] = (),
    device: str = "cpu",
    idempotency_key: str | None = None,
) -> TrainingJob:
    """Accept a race: a job, and a queued task per engine, or nothing at all.

    Where the request is silent about engines ("all" or names), ``time_budget`` (seconds),
    ``budget_mode``, ensemble or refit, the preset speaks (training/presets.py). How many jobs of an
    organization run at once is the claim's matter: one too many waits. The same
    ``idempotency_key`` with the same request gives the job that it made before.
    With ``asks`` nothing races: each names a model of an engine, and has a task of its own, with
    all of the ``time_budget``. ``device`` is what each task wants, "cpu" or "gpu".
    What an earlier check of the data found severe stops it, unless ``accept_findings`` with a
    ``reason``; it waits for no check.
    Raises NotFound, Conflict (data set not ready, key reused for something else, severe findings),
    QuotaReached and Invalid with every problem by field.
    """
    request = {
        "dataset": str(dataset),
        "version": version,
        "target": target,
        "name": name,
        "task_type": task_type,
        "preset": preset,
        "engines": engines if isinstance(engines, str) else list(engines),
        "time_budget": time_budget,
        "budget_mode": budget_mode,
        "metric": metric,
        "priority": priority,
        "exclude": list(exclude),
        "column_types": dict(column_types or {}),
        "positive_class": positive_class,
        "split": dict(split) if split else None,
        "ensemble": ensemble,
        "refit": refit,
        "accept_findings": accept_findings,
        "reason": reason,
    }
    if asks:
        engines = list(dict.fromkeys(ask.engine for ask in asks))
        request |= {"engines": engines, "asks": [ask.as_json() for ask in asks], "device": device}
    if idempotency_key and (earlier := _made_before(by, idempotency_key, request)):
        return earlier
    chosen = _preset(preset, budget_mode)
    named = [engines] if isinstance(engines, str) and engines != presets.ALL else engines
    wish = Wish(
        target=target,
        task_type=task_type,
        engines=() if named == presets.ALL else named,
        time_budget_s=chosen.time_budget_s if time_budget is None else time_budget,
        metric=metric,
        exclude=exclude,
        column_types=column_types or {},
        positive_class=positive_class,
        split=split,
    )
    try:
        with transaction.atomic():
            return _start(by, dataset, version, wish, chosen, request, idempotency_key, asks)
    except IntegrityError:
        # Two requests with one key at the same moment: the other was quicker.
        if idempotency_key and (earlier := _made_before(by, idempotency_key, request)):
            return earlier
        raise


def _preset(name: str, budget_mode: str) -> presets.Preset:
    """The preset by its name, the usual one for none, with another budget mode if one is given."""
    known: dict[str, tuple[str, Mapping[str, object]]] = {
        "preset": (name, presets.PRESETS),
        "budget_mode": (budget_mode, presets.BUDGET_MODES),
    }
    errors = {
        field: [f"There is no {field.replace('_', ' ')} '{value}'. Use one of: {', '.join(these)}."]
        for field, (value, these) in known.items()
        if value and value not in these
    }
    if errors:
        raise Invalid(" ".join(text for texts in errors.values() for text in texts), errors=errors)
    found = presets.PRESETS[name or presets.DEFAULT]
    most = settings.MAX_TIME_BUDGET * 60  # what it takes by itself is never refused
    return replace(
        found,
        budget_mode=budget_mode or found.budget_mode,
        time_budget_s=min(found.time_budget_s, most),
    )


def _made_before(by: Membership, key: str, request: Mapping[str, Any]) -> TrainingJob | None:
    earlier = TrainingJob.objects.of(by.organization).filter(idempotency_key=key).first()
    if earlier is not None and earlier.request != request:
        raise Conflict(
            "This Idempotency-Key was used for another request. Use a new key.",
            code="idempotency-key-reused",
        )
    return earlier


def _start(
    by: Membership,
    dataset: UUID,
    number: int | None,
    wish: Wish,
    preset: presets.Preset,
    request: Mapping[str, Any],
    key: str | None,
    asks: Sequence[offers.Ask],
) -> TrainingJob:
    # Each of them starts only while there is some left; one more job may wait.
    quotas.reserve(by.organization, queued_jobs=1, cpu_hours=0, storage_bytes=0)
    version = ready_version(by, dataset, number)
    plan = _plan(wish, version)
    if request["priority"] not in PRIORITIES:
        raise Invalid(
            f"'{request['priority']}' is no priority.",
            errors={"priority": [f"Use one of: {', '.join(PRIORITIES)}."]},
        )
    budgets = _budgets(by.organization, version, wish, plan, preset, request["engines"])
    try:
        if of_pictures(plan.columns):
            asks = asks or offers.on_pictures(list(budgets))
        asks = offers.judge(asks, plan.task)
    except offers.Refused as refused:
        raise Invalid(str(refused), errors=refused.errors) from None
    accepted = findings.admit(
        by,
        version,
        plan,
        exclude=wish.exclude,
        column_types=wish.column_types,
        accept=request["accept_findings"],
        reason=request["reason"],
    )
    notices = [*plan.notices, *([findings.in_words(accepted)] if accepted else [])]
    job = TrainingJob.objects.create(
        organization=by.organization,
        name=request["name"] or f"{version.dataset.name}: {plan.target}"[:160],
        dataset_version=version,
        dataset={
            "id": str(version.dataset_id),
            "name": version.dataset.name,
            "version": version.number,
            "version_id": str(version.pk),
            "sha256": version.sha256,
        },
        target=plan.target,
        task=plan.task,
        task_reason=plan.reason,
        metric=plan.metric,
        classes=plan.classes,
        positive_class=plan.positive_class,
        columns=plan.columns,
        preset=preset.name,
        engines=list(budgets),
        budget_s=plan.budget_s,
        budget_mode=preset.budget_mode,
        budgets=budgets,
        ensemble=_either(request["ensemble"], preset.ensemble),
        split=plan.split,
        seed=plan.split["seed"],
        refit=_either(request["refit"], preset.refit),
        priority=PRIORITIES[request["priority"]],
        request=dict(request),
        rows=plan.rows,
        notices=[{"message": text, "engine": ""} for text in notices],
        accepted=accepted,
        created_by=by.author,
        idempotency_key=key or None,
    )
    assert version.data is not None
    cells = version.rows * len(version.columns)
    threads = 1 if cells < SMALL_TABLE_CELLS else 2
    device = request.get("device", "cpu")
    parts: list[tuple[str, dict[str, Any]]] = [
        (ask.engine, {"model": ask.model, "hyperparameters": dict(ask.hyperparameters)})
        for ask in asks
    ] or [(engine, {}) for engine in budgets]
    for engine, one_model in parts:
        budget_s = budgets[engine]
        add_task(
            by.organization,
            kind=TRAIN,
            subject=job.pk,
            topic=job.topic,
            payload=_payload(job, budget_s, threads) | one_model,
            inputs={"data": version.data},
            engine=engine,
            device=device,
            cpu_millis=threads * 1000,
            ram_mib=history.ram_mib(engine, plan),
            time_limit_s=int(budget_s * 1.1 + GRACE_S),
            priority=job.priority,
        )
    told = {"dataset": version.dataset.name, "target": job.target, "engines": job.engines}
    record("training.started", job, by=by, changes=told)
    if accepted:
        codes = [f"{one['code']}: {', '.join(one['columns'])}" for one in accepted["findings"]]
        said = {"reason": accepted["reason"], "findings": codes}
        record("training.findings-accepted", job, by=by, changes=said)
    return job


@transaction.atomic
def check_data(
    by: Membership,
    dataset: UUID,
    *,
    target: str,
    version: int | None = None,
    task_type: str = "auto",
    column_types: Mapping[str, str] | None = None,
    split: Mapping[str, Any] | None = None,
) -> DataCheck:
    """Ask what speaks against training like this: the check that there is, or a new one.

    Raises what ``start_job`` would for such a request.
    """
    wish = Wish(target=target, task_type=task_type, column_types=column_types or {}, split=split)
    ready = ready_version(by, dataset, version)
    return findings.ask(by, ready, _plan(wish, ready), wish.column_types)


@transaction.atomic
def estimate_job(
    by: Membership,
    dataset: UUID,
    *,
    target: str,
    version: int | None = None,
    task_type: str = "auto",
    preset: str = "",
    engines: Sequence[str] | str = (),
    time_budget: float | None = None,
    budget_mode: str = "",
    exclude: Sequence[str] = (),
    column_types: Mapping[str, str] | None = None,
    split: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What such a race would take, and where (training/history.py). Nothing is queued.

    Raises what ``start_job`` would for such a request.
    """
    chosen = _preset(preset, budget_mode)
    wish = Wish(
        target=target,
        task_type=task_type,
        engines=() if isinstance(engines, str) else engines,
        time_budget_s=chosen.time_budget_s if time_budget is None else time_budget,
        exclude=exclude,
        column_types=column_types or {},
        split=split,
    )
    ready = ready_version(by, dataset, version)
    plan = _plan(wish, ready)
    budgets = _budgets(by.organization, ready, wish, plan, chosen, engines)
    return history.outlook(by.organization, ready, plan, budgets)


def plan_job(by: Membership, dataset: UUID, **wish: Any) -> Plan:
    """What a start would do, which is the fields of ``Wish``. Raises what ``start_job`` would."""
    return _plan(Wish(**wish), ready_version(by, dataset, None))


def ready_version(by: Membership, dataset: UUID, number: int | None = None) -> DatasetVersion:
    """The version to train on, the latest for None, locked until the job is stored."""
    versions = (
        DatasetVersion.objects.of(by.organization)
        .select_for_update(no_key=True, of=("self",))
        .select_related("dataset", "data")
        .filter(dataset=dataset)
    )
    if number is not None:
        versions = versions.filter(number=number)
    else:
        versions = versions.filter(dataset__latest=F("pk"))
    version = versions.first()
    if version is None:
        known = DatasetVersion.objects.of(by.organization).filter(dataset=dataset)
        if number is None and known.exists():
            raise Conflict(
                "This data set has no version that can be used yet. Wait until it is ready, or "
                "look at why reading it failed.",
                code="dataset-not-ready",
            )
        what = f"There is no version {number} of it" if number and known.exists() else "No such one"
        raise NotFound(
            f"The data set is not there. {what}.",
            errors={"dataset": ["There is no such data set."]},
        )
    if version.state != DatasetVersion.State.READY or version.data is None:
        raise Conflict(
            f"Version {version.number} of the data set is {version.state}, not ready.",
            code="dataset-not-ready",
        )
    return version


def _plan(wish: Wish, version: DatasetVersion) -> Plan:
    try:
        return check(
            wish,
            version.columns,
            version.rows,
            engines={info.name: info.tasks for info in catalog.engines().values()},
            max_budget_s=settings.MAX_TIME_BUDGET * 60,
        )
    except Refused as refused:
        raise Invalid(str(refused), errors=refused.errors) from None


def _either(asked: bool | None, preset: bool) -> bool:
    return preset if asked is None else asked


def _budgets(
    home: Organization,
    version: DatasetVersion,
    wish: Wish,
    plan: Plan,
    preset: presets.Preset,
    asked: Sequence[str] | str,
) -> dict[str, float]:
    """Who races, and how many seconds each gets. Invalid when that is too little to do anything."""
    racing: Sequence[str] = plan.engines
    if not wish.engines:
        assert version.data is not None
        known, served = engines_of_nodes(home, own=version.data.own_node)
        every = asked == presets.ALL
        # Another version of an engine does nothing unless it is asked for by name.
        fitting = [name for name in plan.engines if not catalog.engines()[name].version_of]
        racing = presets.racers(fitting, preset, every=every, known=known, served=served)
    try:
        return presets.shares(racing, plan.budget_s, preset.budget_mode, named=bool(wish.engines))
    except presets.TooShort as short:
        raise Invalid(str(short), errors={"time_budget": [str(short)]}) from None


def engines_of_nodes(home: Organization, *, own: bool = False) -> tuple[set[str], set[str]]:
    """Engines that any node for this organization ever had, and those that live ones serve now.

    ``own``: data of the organization's own nodes, which no other node may have.
    """
    whose = Q(organization=home) if own else Q(organization=home) | Q(organization=None)
    nodes = Worker.objects.filter(whose).values_list(
        "capabilities__engines", "queues", "draining", "last_seen_at"
    )
    known: set[str] = set()
    served: set[str] = set()
    since = Worker.alive_since()
    for engines, queues, draining, seen_at in nodes:
        known.update(engines or ())
        if seen_at >= since and not draining:
            prefix = OWN_NODES if own else ""
            waits_on = {one: f"{prefix}{queue_for(Requirements(one))}" for one in engines or ()}
            served.update(one for one, queue in waits_on.items() if queue in queues)
    return known, served


def _payload(job: TrainingJob, budget_s: float, threads: int) -> dict[str, Any]:
    return {
        "job": str(job.pk),
        "target": job.target,
        "task": job.task,
        "classes": job.classes,
        "positive_class": job.positive_class,
        "metric": job.metric,
        "columns": job.columns,
        "split": job.split,
        "budget_s": budget_s,
        "seed": job.seed,
        "threads": threads,
        "dataset": {
            "id": job.dataset["id"],
            "version": job.dataset["version"],
            "sha256": job.dataset["sha256"],
            "name": job.dataset["name"],
        },
    }


def cancel_job(by: Membership | str, job: TrainingJob) -> TrainingJob:
    """Kill the job's work now. Models that are stored already stay. Conflict when it has ended.

    ``by`` is a member, or the name of an operator.
    """
    return _wish(job, cancel_task, "cancel_requested_at", by=_name(by))


def stop_job(by: Membership | str, job: TrainingJob) -> TrainingJob:
    """End the job now and keep the best so far. Conflict when it has ended."""
    return _wish(job, stop_task, "stop_requested_at", by=_name(by))


@transaction.atomic
def front_job(by: Membership, job: TrainingJob) -> TrainingJob:
    """Let the job go before all else of its organization that is as urgent.

    Conflict when nothing of it waits.
    """
    move_to_front(by.organization, job.pk, by=_name(by))
    record("training.moved-to-front", job, by=by)
    return job


def wait_of_job(job: TrainingJob) -> Wait | None:
    """Why the job does not go on; None when it does, has ended, or was made just now."""
    fresh = timezone.now() - job.created_at < timedelta(seconds=BLINK_S)
    return None if job.has_ended or fresh else wait_of(list(job.tasks.all()), job.organization)


def _name(by: Membership | str) -> str:
    return by if isinstance(by, str) else by.name


@transaction.atomic
def _wish(job: TrainingJob, ask: Any, field: str, *, by: str) -> TrainingJob:
    # The job first, then its tasks, then its stream: everybody locks them in this order.
    stored = TrainingJob.objects.select_for_update(no_key=True, of=("self",)).get(pk=job.pk)
    if stored.has_ended:
        ended = stored.get_state_display().lower()
        raise Conflict(f"The training job has ended already: it is {ended}.", code="has-ended")
    # All of the tasks before the first word on the stream: a node that reports holds one of them.
    running = stored.tasks.select_for_update(no_key=True, of=("self",))
    for task in list(running.exclude(state__in=Task.ENDED).order_by("pk")):
        ask(task, by=by)
    if getattr(stored, field) is None:
        setattr(stored, field, timezone.now())
        stored.save(update_fields=[field])
        wish = "cancel" if field.startswith("cancel") else "stop"
        emit(stored.topic, f"job.{wish}_asked", {"by": by})
        done = {"cancel": "cancelled", "stop": "stopped"}[wish]
        record(f"training.{done}", stored, by=by)
    setattr(job, field, getattr(stored, field))
    job.state = stored.state
    return job


def progress_of(job: TrainingJob) -> dict[str, Any]:
    """How far a job has come: its tasks, its best model, and what it waits for, in words.

    ``fraction`` runs from 0 to 1; ``seq`` is the last event of its topic, to listen after.
    """
    tasks = list(job.tasks.defer("payload", "result", "usage"))
    raced = _mean([task.progress for task in tasks if task.kind == TRAIN])
    running = [task for task in tasks if task.state == Task.State.RUNNING]
    until = job.finished_at or timezone.now()
    return {
        "id": job.pk,
        "state": job.state,
        "fraction": 1.0 if job.has_ended else raced * (RACE_SHARE if job.wants_refit else 1.0),
        "message": next((task.message for task in running if task.message), ""),
        "waiting_for": "" if job.has_ended else waits_for(tasks, job.organization),
        "elapsed_s": (until - job.started_at).total_seconds() if job.started_at else 0.0,
        "budget_s": job.budget_s,
        "left_s": history.left_s(job, tasks),
        "model_count": job.models.filter(state=TrainedModel.State.SCORED).count(),
        "best_model": job.best_model,
        "tasks": tasks,
        "topic": job.topic,
        "seq": Stream.objects.values_list("last_seq", flat=True).get(pk=job.topic),
    }


def rank_of(model: TrainedModel) -> int | None:
    """The model's place on its job's leaderboard, from 1; None without a score."""
    if not model.is_scored:
        return None
    ahead = TrainedModel.objects.filter(job=model.job_id).filter(
        Q(order_score__lt=model.order_score)
        | Q(order_score=model.order_score, tie_score__lt=model.tie_score)
        | Q(
            order_score=model.order_score,
            tie_score=model.tie_score,
            fit_s__lt=model.fit_s,
        )
        | Q(
            order_score=model.order_score,
            tie_score=model.tie_score,
            fit_s=model.fit_s,
            key__lt=model.key,
        )
    )
    return ahead.count() + 1


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


# People: predictions and downloads ---------------------------------------------------------------


def predict(model: TrainedModel, rows: object) -> serving.Answer:
    """Predict rows that came as JSON, on a node that holds the model.

    Raises RowsRefused with what is wrong where, Conflict for a model that has no score, Unavailable
    when no node can answer.
    """
    check_usable(model)
    try:
        checked = check_rows(model.schema, rows)
    except BadRows as bad:
        raise RowsRefused(str(bad), errors=bad.errors) from None
    return serving.ask(model, [column["name"] for column in model.schema], checked)


def predict_file(by: Membership, model: TrainedModel, upload: File[bytes]) -> BatchPrediction:
    """Take a CSV or Parquet file of rows and queue its prediction.

    The results, one of each format, hold the file's own columns and what was predicted.
    Raises Invalid for a kind of file that is not read here, TooLarge past the upload limit.
    """
    check_usable(model)
    size = upload.size or 0
    quotas.check(by.organization, upload_bytes=size, storage_bytes=size)
    name = (upload.name or "rows").rsplit("/", 1)[-1][-200:]
    if name.rsplit(".", 1)[-1].lower() not in FORMATS:
        raise Invalid(
            f"'{name}' is neither CSV nor Parquet by its name.",
            errors={"file": ["Send a file named *.csv or *.parquet."]},
        )
    if upload.size is not None and upload.size > settings.MAX_UPLOAD_SIZE_MB * 2**20:
        raise TooLarge(f"The file is larger than {settings.MAX_UPLOAD_SIZE_MB} MB.")
    if not upload.size:
        raise Invalid("The file is empty.", errors={"file": ["The file is empty."]})
    stored = store_artifact(by.organization, name, _plain(upload))
    try:
        with transaction.atomic():
            return queue_file(by, model, stored, name)
    except BaseException:
        stored.file.delete(save=False)
        stored.delete()
        raise


def _plain(upload: File[bytes]) -> IO[bytes]:
    upload.seek(0)
    return upload  # type: ignore[return-value]


def queue_file(
    by: Membership, model: TrainedModel, stored: Artifact, name: str, *, keep: bool = False
) -> BatchPrediction:
    """A task, or one for each member of an ensemble: what they answer is blended afterwards.

    The rows go once they are predicted, unless they are to be kept: those of a data set.
    """
    quotas.reserve(by.organization, cpu_hours=0)
    batch = BatchPrediction.objects.create(
        organization=by.organization,
        model=model,
        filename=name,
        upload=None if keep else stored,
        created_by=by.author,
    )
    tasks = []
    # The slowest first: it is the one whose progress is the batch's.
    asked = [part.model for part in model.parts()] if model.is_ensemble else [model]
    for one in sorted(asked, key=lambda one: -(one.predict_ms_row or 0)):
        if one.artifact is None:
            raise NotFound("The files of this model are gone.")
        task = add_task(
            by.organization,
            kind=PREDICT_FILE,
            subject=batch.pk,
            topic=batch.topic,
            payload={"batch": str(batch.pk), "model": str(one.pk), "filename": name},
            inputs={"model": one.artifact, "data": stored},
            engine=one.engine,
            light=True,
            time_limit_s=3600,
        )
        tasks.append(task)
    batch.task = tasks[0]
    batch.save(update_fields=["task"])
    record("prediction.started", batch, by=by, changes={"model": model.name})
    return batch


def download(model: TrainedModel) -> StreamingHttpResponse:
    """The model as a zip that works without FlowML; an ensemble's holds one zip per member."""
    if model.is_ensemble:
        response = bundle.response(model)
        record("model.downloaded", model)
        return response
    if model.artifact is None:
        raise NotFound("The files of this model are gone.")
    record("model.downloaded", model)
    return file_response(
        model.artifact.file, filename=model.download_name, content_type="application/zip"
    )


def download_result(batch: BatchPrediction, format: str = "csv") -> StreamingHttpResponse:
    """The predicted file, as "csv" or "parquet". Conflict until there is one."""
    if format not in FORMATS:
        raise Invalid(
            f"'{format}' is no format of results.",
            errors={"format": [f"Use one of: {', '.join(FORMATS)}."]},
        )
    result = batch.csv if format == "csv" else batch.parquet
    if result is None:
        raise Conflict(f"There is no result: the prediction is {batch.state}.", code="no-result")
    record("prediction.downloaded", batch, changes={"as": format})
    kind = "text/csv; charset=utf-8" if format == "csv" else "application/vnd.apache.parquet"
    return file_response(result.file, filename=batch.result_name(format), content_type=kind)


def check_usable(model: TrainedModel) -> None:
    """Raises Conflict for a model that could not be scored."""
    if not model.is_usable:
        raise Conflict(f"This model cannot predict: {model.reason}", code="model-invalid")


# Control: what nodes report ----------------------------------------------------------------------


def note_start(task: Task) -> None:
    """A node has begun with the task: what it belongs to runs."""
    owner = TrainingJob if task.kind in {TRAIN, REFIT} else BatchPrediction
    waiting = owner.objects.filter(pk=task.subject, state="queued").first()
    if waiting is None:
        return
    with contextlib.suppress(StaleWrite):  # another of its tasks was quicker
        if isinstance(waiting, TrainingJob):
            waiting.move_to(
                TrainingJob.State.RUNNING,
                reason=f"{task.engine} has started",
                started_at=task.started_at or timezone.now(),
            )
        else:
            waiting.move_to(BatchPrediction.State.RUNNING)


@transaction.atomic
def add_notice(job: UUID, message: str, *, engine: str = "") -> None:
    """Keep something worth knowing with the job, once."""
    stored = TrainingJob.objects.select_for_update(no_key=True, of=("self",)).filter(pk=job).first()
    notice = {"message": message[:1000], "engine": engine}
    if stored is None or notice in stored.notices or len(stored.notices) >= MOST_NOTICES:
        return
    stored.notices.append(notice)
    stored.save(update_fields=["notices"])


def score_candidate(event: Event, task: Task) -> TrainedModel | None:
    """Turn a candidate that a node has sent into a row of the leaderboard, once.

    What cannot be scored becomes an invalid row that says why. Returns None when the job is gone.
    """
    job = (
        TrainingJob.objects.filter(pk=task.subject)
        .select_related("dataset_version__data")
        .defer("dataset_version__columns", "dataset_version__associations")
        .first()
    )
    if job is None:
        return None
    earlier = job.models.filter(key=event.key).first()
    if earlier is not None:
        return earlier
    files = {
        str(artifact.pk): artifact
        for artifact in Artifact.objects.filter(pk__in=event.files.values(), task=task)
    }
    artifact = files.get(str(event.files.get("artifact")))
    stored = files.get(str(event.files.get("predictions")))
    data = event.data
    fields: dict[str, Any] = {
        "organization_id": job.organization_id,
        "task": task,
        "name": str(data.get("name") or event.key)[:160],
        "family": str(data.get("family") or "")[:60],
        "engine": task.engine,
        "params": data.get("params") or {},
        "fit_s": float(data.get("fit_s") or 0),
        "predict_ms_row": data.get("predict_ms_row"),
        "train_rows": int(data.get("train_rows") or 0),
        "artifact": artifact,
        "predictions": stored,
    }
    try:
        fields |= _figures(job, artifact, stored)
        if told := epochs.cleaned(data.get("curve")):
            fields["curves"] |= {"epochs": told}
    except InvalidCandidate as refusal:
        fields |= {"state": TrainedModel.State.INVALID, "reason": str(refusal)}
    except Exception as error:
        if event.tries < TRIES:
            raise  # the sweep comes back to it
        # Kept as what it is rather than lost: its files may be scored by a mended platform.
        log.exception("candidate not scored", extra={"job": job.pk, "key": event.key})
        reason = f"The platform could not score it ({type(error).__name__}). Tell its operator."
        fields |= {"state": TrainedModel.State.INVALID, "reason": reason}
    with transaction.atomic():
        model, created = TrainedModel.objects.get_or_create(job=job, key=event.key, defaults=fields)
        if created:
            publish(model)
    return model


def _figures(
    job: TrainingJob, artifact: Artifact | None, stored: Artifact | None
) -> dict[str, Any]:
    if artifact is None:
        raise InvalidCandidate("The model's files did not arrive.")
    if stored is None:
        raise InvalidCandidate("The model came without predictions for the held-out rows.")
    truth = scoring.truth_of(job)
    predictions = scoring.read_predictions(stored, job, most_rows=len(truth.target))
    return scoring.figures(job, predictions, truth)


def publish(model: TrainedModel) -> None:
    """Make it the job's best if it is, and tell who watches."""
    job = TrainingJob.objects.select_for_update(no_key=True, of=("self",)).get(pk=model.job_id)
    best = (
        job.models.filter(state=TrainedModel.State.SCORED)
        .order_by(*BEST_ORDER)
        .values_list("pk", flat=True)
        .first()
    )
    if best != job.best_model_id:
        job.best_model_id = best
        job.save(update_fields=["best_model"])
    emit(
        job.topic,
        "leaderboard",
        {
            "model": str(model.pk),
            "name": model.name,
            "engine": model.engine,
            "state": model.state,
            "metric": job.metric,
            "score": model.score,
            "best": model.pk == best,
            "reason": model.reason if not model.is_scored else "",
        },
    )


@transaction.atomic
def finish_batch(task: Task) -> None:
    """A file was predicted, or could not be. The uploaded rows go.

    By an ensemble it is predicted when all members have: one that fails ends the others' work.
    """
    batch = (
        BatchPrediction.objects.select_for_update(no_key=True, of=("self",))
        .filter(pk=task.subject)
        .first()
    )
    if batch is None or batch.has_ended:
        return
    tasks = list(batch.tasks)
    upload = batch.upload
    fields: dict[str, Any] = {"upload": None, "finished_at": timezone.now()}
    state = BatchPrediction.State(task.state)
    if state != BatchPrediction.State.SUCCEEDED:
        fields["error"] = task.error
        others = Task.objects.select_for_update(no_key=True, of=("self",)).filter(
            pk__in=[one.pk for one in tasks if not one.has_ended]
        )
        for other in list(others.order_by("pk")):
            cancel_task(other, by="the end of another part")
    elif any(not one.has_ended for one in tasks):
        return
    else:
        try:
            fields |= _results(batch, tasks)
        except ValueError as error:
            state, fields["error"] = BatchPrediction.State.FAILED, str(error)
    batch.move_to(state, **fields)
    if upload is not None:
        upload.delete()
        transaction.on_commit(lambda: upload.file.delete(save=False))


def _results(batch: BatchPrediction, tasks: Sequence[Task]) -> dict[str, Any]:
    """The files and the number of rows. Raises ValueError, with a sentence, when there are none."""
    made = [{str(artifact.pk): artifact for artifact in task.artifacts.all()} for task in tasks]
    sent = [
        {name: these.get(str(task.result.get("files", {}).get(name))) for name in FORMATS}
        for task, these in zip(tasks, made, strict=True)
    ]
    if not all(files[name] for files in sent for name in FORMATS):
        raise ValueError("The node sent no result.")
    if not batch.model.is_ensemble:
        return sent[0] | {"rows": int(tasks[0].result.get("data", {}).get("rows") or 0)}
    weights = {str(part.model_id): part.weight for part in batch.model.parts()}
    parts = []
    for task, files in zip(tasks, sent, strict=True):
        added = task.result.get("data", {}).get("columns") or []
        file = files["parquet"]
        assert file is not None
        parts.append(blends.Part(file, added, weights[task.payload["model"]]))
    with TemporaryDirectory(prefix="flowml-blend-") as folder:
        rows = blends.blend_files(parts, batch.model.job.classes, Path(folder))
        found: dict[str, Any] = {"rows": rows}
        for name in FORMATS:
            with (Path(folder) / f"predictions.{name}").open("rb") as blended:
                found[name] = store_artifact(
                    batch.organization, f"blended predictions.{name}", blended, task=tasks[-1]
                )
    for artifact in [one for these in made for one in these.values()]:  # the members' own answers
        artifact.delete()
        transaction.on_commit(partial(artifact.file.delete, save=False))
    return found
