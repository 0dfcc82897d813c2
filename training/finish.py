"""How a training job ends. Runs in control, when a node has reported the end of a task.

The race ends with its last engine. Then models of several engines are blended, and if the job
wants it, the winner's recipe is fitted again on training and validation rows: a task of its own (or
one for each member of an ensemble), with whose end the job ends, however it went.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Min, Q
from django.utils import timezone

from training import actions, blends, importances, reliance, scoring, telling
from training.actions import MOST_NOTICES
from training.evaluation import METRICS, Evaluation, InvalidCandidate
from training.models import BEST_ORDER, ENSEMBLE, REFIT, TRAIN, TrainedModel, TrainingJob
from workers.actions import add_task, cancel_task, emit
from workers.models import Task, Worker

log = logging.getLogger(__name__)

# A refit has a third more rows or so, and a blend's members, which the race fitted in turn, all
# at once: it may take longer than any one model did.
REFIT_SHARE = 1.5  # of the budget, at most, on top of it
LEAST_REFIT_S = 30.0
UNSERVED_S = 60.0  # without a node that could do it, after which a task is given up
ALL_SILENT_S = 600.0  # the same when no node at all is heard: that may be the platform's own fault
NO_NODE = "no-node"  # the code of a task that was given up
Notices = list[dict[str, str]]


@transaction.atomic
def finish_job(task: Task) -> TrainingJob | None:
    """A task of a job has ended: when it was the job's last, the job ends too, or a refit begins.

    Returns the job once it has ended, None while something is at work. Called after every
    candidate of ``task`` was handled.
    """
    job = (
        TrainingJob.objects.select_for_update(no_key=True, of=("self",))
        .select_related("dataset_version__data")
        .defer("dataset_version__columns", "dataset_version__associations")
        .filter(pk=task.subject)
        .first()
    )
    if job is None or job.has_ended:
        return job
    tasks = list(job.tasks)
    # Another task that has ended but whose candidates are still being scored will come here itself,
    # after us: the job's row is locked until this one counts as handled.
    if any(other.handled_at is None for other in tasks if other.pk != task.pk):
        return None
    scored = job.models.filter(state=TrainedModel.State.SCORED).select_related("task", "artifact")
    best = scored.order_by(*BEST_ORDER).first()
    outcome, error, notices = _outcome(job, tasks, best)
    if best is not None and outcome == TrainingJob.State.SUCCEEDED:
        refits = [one for one in tasks if one.kind == REFIT]
        if not refits and job.ensemble:
            best = _blend(job, best, task)
        if not refits and job.wants_refit and _begin_refit(job, best, notices):
            return None
        _open_seal(job, best, notices)
        if refits:
            best = _finish_refit(job, best, refits, notices)
        _look_for_a_leak(job, best.origin or best, notices)
    for notice in notices:
        if notice not in job.notices:
            job.notices.append(notice)
    times = job.tasks.aggregate(first=Min("started_at"))
    job.move_to(
        outcome,
        reason=error,
        error=error,
        notices=job.notices[:MOST_NOTICES],
        best_model=best,
        stopped_early=job.stop_requested_at is not None and best is not None,
        started_at=times["first"] or job.started_at,
        finished_at=timezone.now(),
    )
    telling.ended(job)
    if best is not None and outcome == TrainingJob.State.SUCCEEDED:
        importances.ask_for_winner(best)
    return job


def _outcome(
    job: TrainingJob, tasks: Sequence[Task], best: TrainedModel | None
) -> tuple[TrainingJob.State, str, Notices]:
    """How the job ended, the sentence that says why it did not succeed, and what else to tell."""
    failed = [t for t in tasks if t.state == Task.State.FAILED and t.kind != REFIT]
    cancelled = [t for t in tasks if t.state == Task.State.CANCELLED and t.kind != REFIT]
    unserved = [t for t in cancelled if t.code == NO_NODE]
    told = [_notice(t, f"{t.engine} did not run: {t.error}") for t in unserved]
    if job.cancel_requested_at and any(t.state == Task.State.CANCELLED for t in tasks):
        return TrainingJob.State.CANCELLED, "", []
    if best is not None:
        for t in failed:
            end = f"{t.engine} did not come to its end: {t.error} What it had finished counts."
            told.append(_notice(t, end))
        for t in cancelled:
            if job.stop_requested_at and t.started_at is None and t not in unserved:
                early = f"{t.engine} did not run: the training was stopped before its turn."
                told.append(_notice(t, early))
        return TrainingJob.State.SUCCEEDED, "", told
    if failed:
        return TrainingJob.State.FAILED, failed[0].error or "The work failed.", told
    if len(cancelled) > len(unserved):
        why = "It was stopped before the first model was done." if job.stop_requested_at else ""
        return TrainingJob.State.CANCELLED, why, []
    invalid = job.models.filter(state=TrainedModel.State.INVALID).first()
    if invalid is not None:
        return TrainingJob.State.FAILED, f"No model could be scored. {invalid.reason}", told
    if job.stop_requested_at:
        return TrainingJob.State.CANCELLED, "It was stopped before the first model was done.", []
    return TrainingJob.State.FAILED, "No model was finished within the time budget.", told


def _notice(task: Task, message: str) -> dict[str, str]:
    return {"message": message, "engine": task.engine}


# What nobody can do ------------------------------------------------------------------------------


def end_unserved() -> int:
    """Give up what waits for a node that is not there, where all else of its job has ended.

    Until then it waits and says so: a node may come. Returns how many tasks were given up.
    """
    now = timezone.now()
    heard = Worker.objects.filter(last_seen_at__gte=Worker.alive_since()).exists()
    since = now - timedelta(seconds=UNSERVED_S if heard else ALL_SILENT_S)
    waiting = Task.objects.filter(
        kind__in=(TRAIN, REFIT), state=Task.State.QUEUED, queued_at__lt=since
    )
    jobs = TrainingJob.objects.active().filter(pk__in=waiting.values("subject"))
    return sum(_end_unserved(job.pk, since) for job in jobs.only("pk"))


@transaction.atomic
def _end_unserved(pk: UUID, since: datetime) -> int:
    # The job first, then its tasks: as everybody locks them.
    jobs = TrainingJob.objects.select_for_update(no_key=True, of=("self",))
    job = jobs.active().filter(pk=pk).first()
    if job is None:
        return 0
    tasks = list(job.tasks.select_for_update(no_key=True, of=("self",)))
    left = [task for task in tasks if not task.has_ended]
    ended = [task.finished_at for task in tasks if task.finished_at is not None]
    if not ended or max(ended) > since or not left:
        return 0
    if any(task.state != Task.State.QUEUED or _is_served(task, since) for task in left):
        return 0
    for task in left:
        task.code, task.error = NO_NODE, "no node has it."
        task.save(update_fields=["code", "error"])
        cancel_task(task, by="the platform, for no node can do it")
    return len(left)


def _is_served(task: Task, since: datetime) -> bool:
    """Whether a node that could do it was heard of since then."""
    nodes = Worker.objects.filter(
        Q(organization=None) | Q(organization=task.organization_id),
        last_seen_at__gte=since,
        draining=False,
    )
    return any(task.queue in queues for queues in nodes.values_list("queues", flat=True))


_STRICTER = (
    "{} is the best model though others have a better score. Weights that were chosen on all rows "
    "beat every single model there; its score is stricter, from weights that were chosen without "
    "the row, while the best of many single models is always a little lucky."
)


def _blend(job: TrainingJob, best: TrainedModel, task: Task) -> TrainedModel:
    """The job's best model once an ensemble has been tried: that one, if there is any."""
    if job.models.filter(engine=ENSEMBLE).exists():
        return best
    found = blends.make(job, task)
    if found.model is not None:
        actions.publish(found.model)
        if actions.rank_of(found.model) != 1:
            actions.add_notice(job.pk, _STRICTER.format(found.model.name))
    elif found.why:
        actions.add_notice(job.pk, f"There is no ensemble: {found.why}.")
    job.refresh_from_db(fields=["best_model", "notices"])
    return job.best_model or best


def _open_seal(job: TrainingJob, model: TrainedModel, notices: Notices) -> None:
    """Give the winner, or its refit, its figures on the sealed test rows, which ranked nothing."""
    try:
        truth = scoring.truth_of(job)
        if model.predictions is None or not len(truth.sealed):
            return
        predictions = scoring.read_predictions(model.predictions, job, most_rows=len(truth.target))
        found = scoring.evaluate_part(job, predictions, truth, sealed=True)
    except Exception as error:  # whatever it is, the job has ended and has a best model
        if not isinstance(error, InvalidCandidate):
            log.exception("no test figures", extra={"job": job.pk})
        why = str(error) if isinstance(error, InvalidCandidate) else type(error).__name__
        notices.append(
            {"message": f"The best model has no test figures: {why}", "engine": model.engine}
            if model.origin is None
            else {"message": f"Its refit has no test figures: {why}", "engine": model.engine}
        )
        return
    model.test = _test_figures(found)
    model.save(update_fields=["test"])


def _look_for_a_leak(job: TrainingJob, model: TrainedModel, notices: Notices) -> None:
    """A notice when the winner rests on one column almost alone."""
    try:
        truth = scoring.truth_of(job)
        said = blends.said_of(job, model, truth, truth.ranked)
        found = (
            None if said is None else reliance.suspect(said, scoring.columns_of(job, truth.ranked))
        )
    except Exception:  # it is a look, and no part of the job
        log.exception("no look for a leak", extra={"job": job.pk})
        return
    if found is not None:
        name, share = found
        text = (
            f"{model.name} rests on '{name}' almost alone: this column by itself explains "
            f"{share:.0%} of what it says. If its value is not known at the time of the "
            "prediction, leave it out and train again."
        )
        notices.append({"message": text, "engine": model.engine})


def _test_figures(found: Evaluation) -> dict[str, Any]:
    return {
        "score": found.score,
        "metrics": found.metrics,
        "interval": list(found.interval) if found.interval else None,
        "rows": found.rows,
        "notes": found.notes,
        "curves": found.curves,
    }


# The refit ---------------------------------------------------------------------------------------


def _begin_refit(job: TrainingJob, best: TrainedModel, notices: Notices) -> bool:
    """Queue the refit of the winner, or of all its members. False, and a notice, when there is to
    be none."""
    version = job.dataset_version
    if job.stop_requested_at or job.cancel_requested_at:
        _note(notices, best, "it was not fitted again on all rows: the training was stopped.")
        return False
    origins = _parts(best)
    gone = any(one.task is None or one.artifact is None for one in origins)
    if gone or version is None or version.data is None:
        _note(notices, best, "it was not fitted again on all rows: its files are gone.")
        return False
    for one in origins:
        race = one.task
        assert race is not None
        assert one.artifact is not None
        add_task(
            job.organization,
            kind=REFIT,
            subject=job.pk,
            topic=job.topic,
            payload={
                **race.payload,
                "split": {**job.split, "refit": True},
                "budget_s": max(LEAST_REFIT_S, REFIT_SHARE * race.payload["budget_s"]),
            },
            inputs={"data": version.data, "model": one.artifact},
            engine=one.engine,
            cpu_millis=race.cpu_millis,
            ram_mib=race.ram_mib,
            time_limit_s=int(REFIT_SHARE * race.time_limit_s),  # later than it ends by itself
            priority=race.priority,
        )
    return True


def _parts(best: TrainedModel) -> list[TrainedModel]:
    """The models that are fitted: its members, or itself."""
    return [part.model for part in best.parts()] if best.is_ensemble else [best]


def _finish_refit(
    job: TrainingJob, best: TrainedModel, tasks: Sequence[Task], notices: Notices
) -> TrainedModel:
    """Put what the refit gave beside its origin. Returns the one of the two that is the job's best.

    That is the refit if it is not worse on the sealed rows, the only ones that both have not seen.
    """
    by_artifact = {task.inputs.get("model"): task for task in tasks}
    twins: dict[Any, TrainedModel] = {}
    for origin in _parts(best):
        task = by_artifact.get(str(origin.artifact_id))
        who = "" if origin.pk == best.pk else f" {origin.name}:"
        if task is None or task.state != Task.State.SUCCEEDED:
            why = task.error if task and task.error else "it was stopped."
            _note(notices, best, f"it could not be fitted again on all rows:{who} {why}")
            return best
        twin = _twin(job, origin, task)
        if twin is None:
            _note(notices, best, "it was fitted again on all rows, but the files did not arrive.")
            return best
        twins[origin.pk] = twin
    twin = twins.get(best.pk)
    if twin is None:
        try:
            with transaction.atomic():
                twin = blends.refit(job, best, tasks[-1], twins)
        except InvalidCandidate as refusal:
            _note(notices, best, f"it was fitted again, but could not be blended: {refusal}")
            return best
    _open_seal(job, twin, notices)
    better = _not_worse(job, twin, best)
    for one in {twin, *twins.values()}:
        _tell(job, one, best=better and one == twin)
    return twin if better else best


def _twin(job: TrainingJob, origin: TrainedModel, task: Task) -> TrainedModel | None:
    """What a refit's task left, as a model beside its origin; None when its files did not come."""
    made = {str(artifact.pk): artifact for artifact in task.artifacts.all()}
    files, data = task.result.get("files", {}), task.result.get("data", {})
    artifact = made.get(str(files.get("artifact")))
    if artifact is None:
        return None
    twin, _ = TrainedModel.objects.get_or_create(
        job=job,
        key=f"{origin.key[:114]}:refit",
        defaults={
            "organization_id": job.organization_id,
            "origin": origin,
            "task": task,
            "name": str(data.get("name") or f"{origin.name}, refitted")[:160],
            "family": origin.family,
            "engine": origin.engine,
            "params": origin.params,
            "fit_s": float(data.get("fit_s") or 0),
            "predict_ms_row": data.get("predict_ms_row"),
            "train_rows": int(data.get("train_rows") or 0),
            "artifact": artifact,
            "predictions": made.get(str(files.get("predictions"))),
            "state": TrainedModel.State.REFITTED,
        },
    )
    return twin


def _tell(job: TrainingJob, model: TrainedModel, *, best: bool) -> None:
    emit(
        job.topic,
        "leaderboard",
        {
            "model": str(model.pk),
            "name": model.name,
            "engine": model.engine,
            "state": model.state,
            "metric": job.metric,
            "score": None,
            "best": best,
            "reason": "",
        },
    )


def _not_worse(job: TrainingJob, twin: TrainedModel, origin: TrainedModel) -> bool:
    """False too where nothing tells: a model without sealed figures replaces none that ranked."""
    if twin.test is None or origin.test is None:
        return False
    now, before = float(twin.test["score"]), float(origin.test["score"])
    return now >= before if METRICS[job.metric].greater_is_better else now <= before


def _note(notices: Notices, best: TrainedModel, text: str) -> None:
    notices.append({"message": f"{best.name} stays as it was ranked: {text}", "engine": ""})
