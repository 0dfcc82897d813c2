"""What happens to jobs and predictions when a node reports something. Runs in control."""

from typing import Any

from datasets.models import Dataset
from datasets.registry import register_use
from organizations import service
from organizations.models import Organization
from organizations.quotas import register_meter
from training import actions, finish
from training.models import REFIT, TRAIN, TrainedModel, TrainingJob, jobs_using
from workers.models import Event, Task
from workers.signals import task_ended, task_event

_OURS = (TRAIN, REFIT, actions.PREDICT_FILE)


def connect() -> None:
    task_event.connect(_reported, dispatch_uid="training.reported")
    task_ended.connect(_ended, dispatch_uid="training.ended")
    register_use(_uses)
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
        actions.score_candidate(event, task)
    elif event.type == "notice" and event.data.get("message"):
        actions.add_notice(task.subject, str(event.data["message"]), engine=task.engine)


def _ended(task: Task, **_: Any) -> None:
    if task.kind in {TRAIN, REFIT}:
        finish.finish_job(task)
    elif task.kind == actions.PREDICT_FILE:
        actions.finish_batch(task)


def _uses(dataset: Dataset) -> list[str]:
    jobs = jobs_using(dataset.organization, dataset.pk).only("id", "name", "target", "state")
    return [f"The training job '{job}' is {job.state} on it." for job in jobs[:10]]
