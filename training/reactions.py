"""What happens to jobs and predictions when a node reports something. Runs in control."""

from typing import Any

from datasets.actions import INGEST
from datasets.models import Dataset
from datasets.registry import register_use
from organizations import parts, service
from organizations.models import Organization
from organizations.quotas import register_meter
from training import actions, curves, dependences, findings, finish, general, importances, named
from training.jobrequests import JobRequest
from training.learned import Dependence, Importance, LearningCurve
from training.models import (
    CHECK,
    REFIT,
    TRAIN,
    BatchPrediction,
    DataCheck,
    EnsembleMember,
    TrainedModel,
    TrainingJob,
    jobs_using,
)
from training.names import NamedAlias, NamedModel, NamedVersion
from workers.models import Event, Task
from workers.signals import task_ended, task_event

_OURS = (TRAIN, REFIT, actions.PREDICT_FILE)


def connect() -> None:
    task_event.connect(_reported, dispatch_uid="training.reported")
    task_ended.connect(_ended, dispatch_uid="training.ended")
    register_use(_uses)
    parts.register(export=_export, stop=_stop, purge=_purge)
    service.register_object(
        "model",
        lambda home, pk: str(
            TrainedModel.objects.of(home).filter(pk=pk).values_list("name", flat=True).first() or ""
        ),
    )
    register_meter("queued_jobs", lambda home: _jobs(home, TrainingJob.State.QUEUED))
    register_meter("concurrent_jobs", lambda home: _jobs(home, TrainingJob.State.RUNNING))


def _jobs(home: Organization, state: TrainingJob.State) -> int:
    return int(TrainingJob.objects.of(home).filter(state=state).count())


def _reported(event: Event, task: Task, **_: Any) -> None:
    if task is None or task.kind not in _OURS:
        return
    actions.note_start(task)
    if task.kind == actions.PREDICT_FILE:
        return
    if event.type == "candidate" and task.kind == TRAIN:
        model = actions.score_candidate(event, task)
        if model is not None:
            named.attach(model)
    elif event.type == "notice" and event.data.get("message"):
        actions.add_notice(task.subject, str(event.data["message"]), engine=task.engine)


def _ended(task: Task, **_: Any) -> None:
    if task.kind in {TRAIN, REFIT}:
        finish.finish_job(task)
    elif task.kind == actions.PREDICT_FILE:
        actions.finish_batch(task)
        general.keep_batch(task.subject)
    elif task.kind == CHECK:
        findings.finish(task)
    elif task.kind == curves.LEARNING_CURVE:
        curves.finish(task)
    elif task.kind == importances.IMPORTANCE:
        importances.finish(task)
    elif task.kind == dependences.DEPENDENCE:
        dependences.finish(task)
    elif task.kind == INGEST:
        general.go_on(task.subject)


def _uses(dataset: Dataset) -> list[str]:
    jobs = jobs_using(dataset.organization, dataset.pk).only("id", "name", "target", "state")
    return [f"The training job '{job}' is {job.state} on it." for job in jobs[:10]]


# --- A whole organization ------------------------------------------------------------------------


def _export(home: Organization, bundle: parts.Bundle) -> None:
    models, batches = TrainedModel.objects.of(home), BatchPrediction.objects.of(home)
    bundle.add_table("training_jobs", TrainingJob.objects.of(home))
    bundle.add_table("models", models)
    members = EnsembleMember.objects.filter(ensemble__organization=home)
    bundle.add_table("ensemble_members", members)
    bundle.add_table("predictions", batches)
    bundle.add_table("job_requests", JobRequest.objects.of(home))
    bundle.add_table("model_names", NamedModel.objects.of(home))
    bundle.add_table("model_versions", NamedVersion.objects.of(home))
    bundle.add_table("model_aliases", NamedAlias.objects.filter(named__organization=home))
    bundle.add_table("learning_curves", LearningCurve.objects.of(home))
    bundle.add_table("importances", Importance.objects.of(home))
    bundle.add_table("dependences", Dependence.objects.of(home))
    bundle.add_table("data_checks", DataCheck.objects.of(home))
    for model in models.select_related("artifact").only("pk", "artifact__file").iterator(100):
        if model.artifact is not None:
            bundle.add_file(f"models/{model.pk}.zip", model.artifact.file.name)
    for batch in batches.select_related("csv").only("pk", "csv__file").iterator(100):
        if batch.csv is not None:
            bundle.add_file(f"predictions/{batch.pk}.csv", batch.csv.file.name)


def _stop(home: Organization) -> None:
    for job in TrainingJob.objects.of(home).active().order_by("pk"):
        actions.cancel_job("the organization's deletion", job)


def _purge(home: Organization) -> None:
    DataCheck.objects.of(home).delete()
    BatchPrediction.objects.of(home).delete()
    JobRequest.objects.of(home).delete()
    NamedModel.objects.of(home).delete()
    TrainingJob.objects.of(home).update(best_model=None)
    TrainedModel.objects.of(home).delete()
    TrainingJob.objects.of(home).delete()
