"""What several training pages need."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.core.paginator import Page
from django.db.models.functions import Lower
from django.shortcuts import get_object_or_404
from django.utils import timezone

from organizations.access import OrgRequest
from training import pages
from training.models import TrainingJob
from workers.models import Stream

PER_PAGE = 25
SORTS = {
    "predicts": Lower("target"),
    "data": Lower("dataset_version__dataset__name"),
    "state": "state",
    "model": Lower("best_model__name"),
    "started": "created_at",
    "owner": Lower("created_by__username"),
}


def last_seq(topic: str) -> int:
    """The number of a topic's newest event. Read it before the rows that the page shows: what
    happens in between is then told again, and never missed."""
    seq = Stream.objects.filter(topic=topic).values_list("last_seq", flat=True).first()
    return seq or 0


# --- Lists ---------------------------------------------------------------------------------------


def job_facts(job: TrainingJob) -> dict[str, Any]:
    """What templates show of a job from ``for_list``: nothing here asks the database."""
    state = str(job.state)
    if job.state == TrainingJob.State.SUCCEEDED and job.stopped_early:
        state = "stopped"
    elif not job.has_ended and job.cancel_requested_at:
        state = "cancelling"
    elif not job.has_ended and job.stop_requested_at:
        state = "stopping"
    end = job.finished_at or timezone.now()
    best = job.best_model
    return {
        "pk": job.pk,
        "target": job.target,
        "name": str(job),
        "task_words": pages.task_words(job.task, job.classes),
        "dataset_id": job.dataset["id"],
        "dataset_name": job.dataset["name"],
        "version_number": job.dataset["version"],
        "shown_state": state,
        "has_ended": job.has_ended,
        "failed": job.state == TrainingJob.State.FAILED or bool(job.error),
        "error": job.error,
        "best_id": best.pk if best else None,
        "best_name": best.name if best else "",
        "best_score": best.ranked_score if best else None,
        "metric_title": job.metric_info.title,
        "models": getattr(job, "model_count", None),
        "progress": getattr(job, "progress", 0.0),
        "owner": job.created_by.get_username() if job.created_by else "",
        "created_at": job.created_at,
        "started_at": job.started_at,
        "ended_at": job.finished_at,
        "took_s": (end - (job.started_at or job.created_at)).total_seconds(),
        "budget_s": job.budget_s,
        "engine_count": len(job.engines),
        "budget_is_each": job.budget_mode == "per_engine" and len(job.engines) > 1,
        "stop_asked": job.stop_requested_at is not None,
    }


def facts_page(page: Page[TrainingJob]) -> Page[Any]:
    """The page with each job's facts in its place."""
    shown: Page[Any] = page
    shown.object_list = [job_facts(job) for job in page.object_list]
    return shown


def job_of(request: OrgRequest, job_id: UUID) -> TrainingJob:
    found = TrainingJob.objects.of(request.membership.organization).for_list()
    return get_object_or_404(found, pk=job_id)
