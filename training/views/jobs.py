"""Trainings: the list, and one of them live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.db.models import Q
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_GET, require_POST

from accounts.errors import FlowError
from accounts.listing import listed, listing
from accounts.pagination import Paginator
from organizations.access import OrgRequest, org_role
from organizations.models import Role
from training import actions, catalog, epochs, history, pages
from training.engines.named import MODELS
from training.models import ENSEMBLE, REFIT, TRAIN, TrainedModel, TrainingJob
from training.views.common import PER_PAGE, SORTS, facts_page, job_facts, job_of, last_seq
from workers.models import Event, Task
from workers.waiting import first_waiting, wait_of

LOG_EVENTS = 60
LOG_LINES = 200
_AFTER_RACE = {REFIT: ": the winner again, on all rows but the sealed ones"}
FILTERS = {
    "active": (_("Running"), Q(state__in=TrainingJob.ACTIVE)),
    "succeeded": (_("Succeeded"), Q(state=TrainingJob.State.SUCCEEDED)),
    "failed": (_("Failed"), Q(state=TrainingJob.State.FAILED)),
    "cancelled": (_("Cancelled"), Q(state=TrainingJob.State.CANCELLED)),
}


@require_GET
@org_role(Role.VIEWER)
def jobs(request: OrgRequest) -> HttpResponse:
    state = request.GET.get("state", "")
    found = TrainingJob.objects.of(request.membership.organization)
    if state in FILTERS:
        found = found.filter(FILTERS[state][1])
    asked = listing(request, SORTS)
    found = listed(found.for_list(), asked, SORTS)
    page = Paginator(found, PER_PAGE).get_page(request.GET.get("page"))
    shown = facts_page(page)
    context = {
        "section": "training",
        "page": shown,
        "moving": any(not job["has_ended"] for job in shown),
        "asked": asked,
        "state": state if state in FILTERS else "",
        "states": [(key, words) for key, (words, _) in FILTERS.items()],
        "may_train": request.membership.may(Role.DEVELOPER),
    }
    return render(request, "training/list.html", context)


@require_GET
@org_role(Role.VIEWER)
def job(request: OrgRequest, job_id: UUID) -> HttpResponse:
    after = last_seq(f"job:{job_id}")
    stored = job_of(request, job_id)
    context = {
        "after": after,
        **_live(request, stored),
        **_board(request, stored),
        "log": _log(stored) if stored.has_ended else [],
    }
    return render(request, "training/job.html", context)


@require_GET
@org_role(Role.VIEWER)
def job_live(request: OrgRequest, job_id: UUID) -> HttpResponse:
    stored = job_of(request, job_id)
    response = render(request, "training/_job_live.html", _live(request, stored))
    if stored.has_ended:
        response["HX-Refresh"] = "true"  # the page of a job that has ended no longer asks
    return response


@require_GET
@org_role(Role.VIEWER)
def leaderboard(request: OrgRequest, job_id: UUID) -> HttpResponse:
    return render(request, "training/_leaderboard.html", _board(request, job_of(request, job_id)))


@require_GET
@org_role(Role.VIEWER)
def job_log(request: OrgRequest, job_id: UUID) -> HttpResponse:
    return render(request, "training/_job_log.html", {"log": _log(job_of(request, job_id))})


def _live(request: OrgRequest, stored: TrainingJob) -> dict[str, Any]:
    tasks = list(stored.tasks.select_related("worker"))
    found = stored.models.filter(state=TrainedModel.State.SCORED)
    scored = [
        (at, score, None if engine == ENSEMBLE else task)  # a blend is no lane's
        for at, score, engine, task in found.values_list("created_at", "score", "engine", "task")
        if score is not None
    ]
    began = stored.started_at or stored.created_at
    end = stored.finished_at or timezone.now()
    points = [(at, score) for at, score, _ in scored]
    line = pages.best_line(points, began, end, stored.metric)
    wait = None if stored.has_ended else wait_of(tasks, request.membership.organization)
    if wait is not None and len(tasks) > 1:
        wait = replace(wait, text=f"{_title(first_waiting(tasks))}: {wait.text}")
    return {
        "section": "training",
        "job": job_facts(stored),
        "metric": stored.metric_info,
        "lanes": [_lane(task, stored, scored) for task in tasks],
        "line": line,
        "best": _best(stored),
        "epochs": [_epochs(task) for task in tasks if task.state == Task.State.RUNNING],
        "draws": any(not task.has_ended and epochs.tells(task.engine) for task in tasks),
        "notices": [_notice(one) for one in stored.notices],
        "wait": wait,
        "left_s": history.left_s(stored, tasks) if stored.started_at else None,
        "may_change": request.membership.may(Role.DEVELOPER),
    }


def _epochs(task: Task) -> dict[str, Any]:
    return {"title": task.message, "charts": epochs.charts(epochs.live(task), f"epochs-{task.pk}")}


def _best(stored: TrainingJob) -> dict[str, Any] | None:
    best = stored.best_model
    if best is None:
        return None
    when = " before the refit" if best.origin_id else ""
    return {"id": best.pk, "name": best.name, "score": best.ranked_score, "when": when}


def _notice(notice: dict[str, str] | str) -> str:
    return notice if isinstance(notice, str) else notice.get("message", "")


def _title(task: Task) -> str:
    """What tells a task from the others of its job: of named models, each is one."""
    info = catalog.engines().get(task.engine)
    title = info.title if info else task.engine
    if name := str(task.payload.get("model") or ""):
        family = task.engine.partition("-")[0]
        model = MODELS.get(family, {}).get(name)
        return f"{model.title if model else name} ({title})"
    return title


def _lane(
    task: Task, stored: TrainingJob, scored: Sequence[tuple[datetime, float, UUID | None]]
) -> dict[str, Any]:
    state = str(task.state)
    if state == Task.State.RUNNING and task.cancel_requested_at:
        state = "cancelling"
    elif state == Task.State.RUNNING and task.stop_requested_at:
        state = "stopping"
    ended_well = task.state == Task.State.SUCCEEDED
    scores = [score for _, score, made_by in scored if made_by == task.pk]
    pick = max if stored.metric_info.greater_is_better else min
    races = task.kind == TRAIN
    return {
        "models": len(scores) if races else None,
        "best": pick(scores) if scores and races else None,
        "gets_s": stored.budgets.get(task.engine) if races and len(stored.engines) > 1 else None,
        "title": f"{_title(task)}{_AFTER_RACE.get(task.kind, '')}",
        "state": state,
        "progress": 1.0 if ended_well else task.progress,
        "message": "" if task.has_ended else task.message,
        "error": task.error,
        "node": task.worker.name if task.worker and not task.has_ended else "",
        "attempt": task.attempt,
    }


def _board(request: OrgRequest, stored: TrainingJob) -> dict[str, Any]:
    engine = request.GET.get("engine", "")
    rows: list[dict[str, Any]] = []
    scored_rows = 0
    for one in TrainedModel.objects.leaderboard(stored.pk, engine):
        interval = one.interval or (None, None)
        scored_rows = scored_rows or one.scored_rows
        rows.append(
            {
                "rank": getattr(one, "rank", None) if one.is_scored else None,
                "is_best": one.pk == stored.best_model_id,
                "id": one.pk,
                "name": one.name,
                "engine": one.engine,
                "score": one.score,
                "low": interval[0],
                "high": interval[1],
                "fit_s": one.fit_s,
                "predict_ms": one.predict_ms_row,
                "error": "" if one.is_usable else one.reason,
                "refit": _refit(stored, one) if one.origin_id else None,
            }
        )
    folds = stored.split.get("folds")
    count = f"{scored_rows:,} " if scored_rows else ""
    how = (
        f"out of fold, in {folds} folds, over all {count}training rows"
        if folds
        else f"on {count}validation rows that no model saw"
    )
    return {
        "job": job_facts(stored),
        "metric": stored.metric_info,
        "rows": rows,
        "engine": engine,
        "engines": _engines(stored),
        "scored_on": f"Ranked {how}. A sealed test part gives the winner's own figure at the end.",
    }


def _engines(stored: TrainingJob) -> list[tuple[str, str]]:
    """What the leaderboard can be narrowed to, by name and title; empty without a choice."""
    if len(stored.engines) < 2:
        return []
    known = catalog.engines()
    named = [(name, known[name].title if name in known else name) for name in stored.engines]
    return [*named, *([(ENSEMBLE, "Ensemble")] if stored.ensemble else [])]


def _refit(stored: TrainingJob, twin: TrainedModel) -> dict[str, Any]:
    """A refit's figure on the sealed rows beside its origin's; without, when it is a member's."""
    return {
        "score": getattr(twin, "test_score", None),
        "before": getattr(twin, "origin_test_score", None),
        "title": stored.metric_info.title,
    }


def _log(stored: TrainingJob) -> list[dict[str, Any]]:
    """The newest lines, oldest first: what engines print, and how their tasks fared."""
    events = list(
        Event.objects.filter(stream=stored.topic)
        .filter(Q(type__in=["log", "notice"]) | Q(type__startswith="task."))
        .select_related("task")
        .order_by("-seq")[:LOG_EVENTS]
    )
    lines = []
    for event in reversed(events):
        engine = event.task.engine if event.task else ""
        lines += [{"at": event.at, "engine": engine, "text": text} for text in _lines(event)]
    return lines[-LOG_LINES:]


def _lines(event: Event) -> list[str]:
    data = event.data
    if event.type == "log":
        return [str(line) for line in data.get("lines") or [data.get("line", "")]]
    if event.type == "notice":
        return [str(data.get("message", ""))]
    why = data.get("why") or ""
    return [f"{event.type.removeprefix('task.').replace('_', ' ')}{f': {why}' if why else ''}"]


@require_POST
@org_role(Role.DEVELOPER)
def cancel(request: OrgRequest, job_id: UUID) -> HttpResponse:
    return _wish(request, job_id, actions.cancel_job, "The training is being cancelled.")


@require_POST
@org_role(Role.DEVELOPER)
def stop(request: OrgRequest, job_id: UUID) -> HttpResponse:
    return _wish(
        request, job_id, actions.stop_job, "The training stops now and keeps the best so far."
    )


@require_POST
@org_role(Role.DEVELOPER)
def front(request: OrgRequest, job_id: UUID) -> HttpResponse:
    done = "The training goes first now among those of your organization."
    return _wish(request, job_id, actions.front_job, done)


def _wish(request: OrgRequest, job_id: UUID, act: Any, done: str) -> HttpResponse:
    stored = job_of(request, job_id)
    try:
        act(request.membership, stored)
    except FlowError as error:
        messages.error(request, error.detail)
    else:
        messages.success(request, done)
    return redirect(stored)
