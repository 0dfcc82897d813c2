"""What pipelines do when something that a step waits for has ended, and when an organization is
taken along, stopped or goes."""

from typing import Any

from django.db import transaction
from django.db.models.signals import post_delete

from organizations import parts
from organizations.models import Organization
from pipelines import actions, driving, logs, schedules
from pipelines.models import (
    Connection,
    Experiment,
    ExperimentVersion,
    Pipeline,
    PipelineVersion,
    Run,
    Step,
    TransferChunk,
)
from workers.models import Task
from workers.signals import task_ended


def connect() -> None:
    task_ended.connect(_ended, dispatch_uid="pipelines.ended")
    post_delete.connect(_forget_log, sender=Run, dispatch_uid="pipelines.log")
    parts.register(export=_export, stop=_stop, purge=_purge)


def _ended(task: Task, **_: Any) -> None:
    """Only ask: who reacts to a task may hold the lock of its job, and the run's comes first."""
    waiting = Step.objects.filter(state=Step.State.RUNNING, subject__in=[task.subject, task.pk])
    for run in waiting.order_by().values_list("run", flat=True).distinct():
        driving.ask(run)


def _forget_log(instance: Run, **_: Any) -> None:
    run = instance.pk
    transaction.on_commit(lambda: logs.forget(run))


def _export(home: Organization, bundle: parts.Bundle) -> None:
    kept = ("secrets_sealed", "sealed_names")
    bundle.add_table("connections", Connection.objects.of(home), *kept)
    bundle.add_table("experiments", Experiment.objects.of(home))
    said = ExperimentVersion.objects.filter(experiment__organization=home)
    bundle.add_table("experiment_versions", said)
    bundle.add_table("pipelines", Pipeline.objects.of(home))
    versions = PipelineVersion.objects.filter(pipeline__organization=home)
    bundle.add_table("pipeline_versions", versions)
    bundle.add_table("pipeline_runs", Run.objects.of(home))
    steps = Step.objects.filter(run__organization=home)
    bundle.add_table("pipeline_steps", steps, "inputs_digest")
    chunks = TransferChunk.objects.filter(step__run__organization=home)
    bundle.add_table("pipeline_chunks", chunks)


def _stop(home: Organization) -> None:
    for run in Run.objects.of(home).filter(state__in=Run.ACTIVE).order_by("pk"):
        actions.cancel_run("the organization's deletion", run)


def _purge(home: Organization) -> None:
    for pipeline in Pipeline.objects.of(home).exclude(beat=None).select_related("beat"):
        pipeline.schedule = {}
        schedules.apply(pipeline)
    Run.objects.of(home).delete()
    Pipeline.objects.of(home).delete()
    Connection.objects.of(home).delete()
    Experiment.objects.of(home).delete()
