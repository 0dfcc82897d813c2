"""How a training job ends. Runs in control, when a node has reported the end of a task."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from django.db import transaction
from django.db.models import Min
from django.utils import timezone

from training import scoring
from training.actions import MOST_NOTICES
from training.evaluation import Evaluation, InvalidCandidate
from training.models import BOARD_ORDER, TrainedModel, TrainingJob
from workers.models import Task

log = logging.getLogger(__name__)


@transaction.atomic
def finish_job(task: Task) -> TrainingJob | None:
    """A training task has ended: when it was the job's last, the job ends too.

    Returns the job once it has ended, None while other engines are at work. Called after every
    candidate of ``task`` was handled.
    """
    job = (
        TrainingJob.objects.select_for_update(no_key=True, of=("self",))
        .select_related("dataset_version__data")
        .defer("dataset_version__columns")
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
    best = job.models.filter(state=TrainedModel.State.SCORED).order_by(*BOARD_ORDER).first()
    outcome, error, notices = _outcome(job, tasks, best)
    if best is not None and outcome == TrainingJob.State.SUCCEEDED:
        _open_seal(job, best, notices)
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
    return job


def _outcome(
    job: TrainingJob, tasks: Sequence[Task], best: TrainedModel | None
) -> tuple[TrainingJob.State, str, list[dict[str, str]]]:
    """How the job ended, the sentence that says why it did not succeed, and what else to tell."""
    failed = [task for task in tasks if task.state == Task.State.FAILED]
    if job.cancel_requested_at and any(t.state == Task.State.CANCELLED for t in tasks):
        return TrainingJob.State.CANCELLED, "", []
    if best is not None:
        notices = [
            {
                "message": f"{task.engine} did not come to its end: {task.error} "
                "What it had finished counts.",
                "engine": task.engine,
            }
            for task in failed
        ]
        return TrainingJob.State.SUCCEEDED, "", notices
    if failed:
        return TrainingJob.State.FAILED, failed[0].error or "The work failed.", []
    if any(task.state == Task.State.CANCELLED for task in tasks):
        why = "It was stopped before the first model was done." if job.stop_requested_at else ""
        return TrainingJob.State.CANCELLED, why, []
    invalid = job.models.filter(state=TrainedModel.State.INVALID).first()
    if invalid is not None:
        return TrainingJob.State.FAILED, f"No model could be scored. {invalid.reason}", []
    if job.stop_requested_at:
        return TrainingJob.State.CANCELLED, "It was stopped before the first model was done.", []
    return TrainingJob.State.FAILED, "No model was finished within the time budget.", []


def _open_seal(job: TrainingJob, best: TrainedModel, notices: list[dict[str, str]]) -> None:
    """Give the winner its figures on the sealed test rows, which nothing was chosen by."""
    try:
        truth = scoring.truth_of(job)
        if best.predictions is None or not len(truth.sealed):
            return
        predictions = scoring.read_predictions(best.predictions, job, most_rows=len(truth.target))
        found = scoring.evaluate_part(job, predictions, truth, sealed=True)
    except Exception as error:  # whatever it is, the job has ended and has a best model
        if not isinstance(error, InvalidCandidate):
            log.exception("no test figures", extra={"job": job.pk})
        why = str(error) if isinstance(error, InvalidCandidate) else type(error).__name__
        notices.append(
            {"message": f"The best model has no test figures: {why}", "engine": best.engine}
        )
        return
    best.test = _test_figures(found)
    best.save(update_fields=["test"])


def _test_figures(found: Evaluation) -> dict[str, Any]:
    return {
        "score": found.score,
        "metrics": found.metrics,
        "interval": list(found.interval) if found.interval else None,
        "rows": found.rows,
        "notes": found.notes,
        "curves": found.curves,
    }
