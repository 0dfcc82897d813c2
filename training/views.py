"""Pages of trainings and models. Each reads or calls one action; what it says, pages.py makes."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.core.paginator import Page, Paginator
from django.db.models import Q
from django.http import Http404, HttpResponse, HttpResponseBase, QueryDict
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from accounts.errors import FlowError
from accounts.pages import tells_problems
from datasets.cards import card
from datasets.models import Dataset, DatasetVersion
from organizations.access import OrgRequest, org_role
from organizations.models import Role
from training import actions, catalog, pages
from training.checks import Refused, Wish, check
from training.evaluation import METRICS, metrics_for
from training.models import BatchPrediction, TrainedModel, TrainingJob
from workers.models import Event, Stream, Task
from workers.waiting import waits_for

PER_PAGE = 25
LOG_EVENTS = 60
LOG_LINES = 200
FILTERS = {
    "active": ("Running", Q(state__in=TrainingJob.ACTIVE)),
    "succeeded": ("Succeeded", Q(state=TrainingJob.State.SUCCEEDED)),
    "failed": ("Failed", Q(state=TrainingJob.State.FAILED)),
    "cancelled": ("Cancelled", Q(state=TrainingJob.State.CANCELLED)),
}
TABS = {
    "performance": "Performance",
    "try": "Try it",
    "use": "Use it",
    "details": "Details",
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
        "best_score": best.score if best else None,
        "metric_title": job.metric_info.title,
        "models": getattr(job, "model_count", None),
        "created_at": job.created_at,
        "started_at": job.started_at,
        "ended_at": job.finished_at,
        "took_s": (end - (job.started_at or job.created_at)).total_seconds(),
        "budget_s": job.budget_s,
        "stop_asked": job.stop_requested_at is not None,
    }


def facts_page(page: Page[TrainingJob]) -> Page[Any]:
    page.object_list = [job_facts(job) for job in page.object_list]
    return page


@require_GET
@org_role(Role.VIEWER)
def jobs(request: OrgRequest) -> HttpResponse:
    state = request.GET.get("state", "")
    found = TrainingJob.objects.of(request.membership.organization)
    if state in FILTERS:
        found = found.filter(FILTERS[state][1])
    page = Paginator(found.for_list(), PER_PAGE).get_page(request.GET.get("page"))
    context = {
        "section": "training",
        "page": facts_page(page),
        "state": state if state in FILTERS else "",
        "states": [(key, words) for key, (words, _) in FILTERS.items()],
        "may_train": request.membership.may(Role.DEVELOPER),
    }
    return render(request, "training/list.html", context)


@require_GET
@org_role(Role.VIEWER)
def models(request: OrgRequest) -> HttpResponse:
    """The best model of each training, newest training first."""
    found = (
        TrainingJob.objects.of(request.membership.organization)
        .filter(best_model__isnull=False)
        .for_list()
    )
    page = Paginator(found, PER_PAGE).get_page(request.GET.get("page"))
    context = {"section": "models", "page": facts_page(page)}
    return render(request, "training/models.html", context)


# --- New training --------------------------------------------------------------------------------


@org_role(Role.DEVELOPER)
@tells_problems
def new(request: OrgRequest) -> HttpResponse:
    """The form of a new training; a POST starts it, or gives the form back with what is wrong."""
    data = request.POST if request.method == "POST" else request.GET
    again = None
    if request.method == "GET" and "again" in data:
        again = _job(request, _uuid(data["again"]))
    if not (again or data.get("dataset")):
        return _choose_data(request)
    dataset_id = _uuid(str(again.dataset["id"]) if again else data["dataset"])
    dataset = get_object_or_404(
        Dataset.objects.of(request.membership.organization).select_related("latest"),
        pk=dataset_id,
    )
    version = _version(dataset, data.get("version"))
    values = _asked_before(again) if again else _values(data)
    errors: dict[str, list[str]] = {}
    problem = ""
    if request.method == "POST" and "look" not in data:
        try:
            started = _start(request, version, values)
        except FlowError as error:
            errors, problem = error.errors, "" if error.errors else error.detail
        else:
            return redirect(started)
    context = {
        "section": "training",
        "dataset": dataset,
        "version": version,
        "after": last_seq(dataset.topic),
        "columns": version.columns,
        "values": values,
        "errors": errors,
        "problem": problem,
        "other_errors": _elsewhere(errors),
        "finding": _finding(version, values),
        "budgets": [{"seconds": s, "text": text} for s, text in _budgets()],
        "max_minutes": settings.MAX_TIME_BUDGET,
        "task_types": pages.TASK_TYPES,
        "engines": list(catalog.engines().values()),
        "open_more": bool(
            {"task_type", "engines", "exclude"} & errors.keys()
            or values["time_budget"] == "own"
            or values["exclude"]
        ),
    }
    return render(request, "training/new.html", context, status=422 if errors or problem else 200)


def _elsewhere(errors: dict[str, list[str]]) -> list[tuple[str, list[str]]]:
    """Errors of fields that the form has no place for: no message may get lost."""
    shown = {"target", "time_budget", "task_type", "engines", "exclude", "metric", "positive_class"}
    return [(name, texts) for name, texts in errors.items() if name not in shown]


@require_GET
@org_role(Role.DEVELOPER)
def finding(request: OrgRequest) -> HttpResponse:
    """The fragment that tells what choosing this target means."""
    dataset = get_object_or_404(
        Dataset.objects.of(request.membership.organization).select_related("latest"),
        pk=_uuid(request.GET.get("dataset", "")),
    )
    version = _version(dataset, request.GET.get("version"))
    found = _finding(version, _values(request.GET))
    return render(request, "training/_finding.html", {"finding": found, "errors": {}})


def _choose_data(request: OrgRequest) -> HttpResponse:
    ready = (
        Dataset.objects.of(request.membership.organization)
        .filter(latest__isnull=False)
        .select_related("latest")
        .defer("latest__columns")
    )
    page = Paginator(ready, PER_PAGE).get_page(request.GET.get("page"))
    context = {"section": "training", "page": page}
    return render(request, "training/choose_data.html", context)


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise Http404 from None


def _version(dataset: Dataset, wanted: str | None) -> DatasetVersion:
    """The version asked for, else the newest that can be used, else the newest."""
    if wanted:
        return get_object_or_404(dataset.versions, pk=_uuid(wanted))
    version = dataset.latest or dataset.versions.order_by("-number").first()
    if version is None:
        raise Http404
    return version


def _budgets() -> list[tuple[int, str]]:
    most = settings.MAX_TIME_BUDGET * 60
    return [(seconds, text) for seconds, text in pages.BUDGETS if seconds <= most]


def _values(data: QueryDict) -> dict[str, Any]:
    """What the form was given, as it has to be shown again."""
    named = [line.strip() for line in data.get("exclude_text", "").splitlines() if line.strip()]
    offered = _budgets()
    usual = str(offered[min(1, len(offered) - 1)][0]) if offered else "own"
    return {
        "target": data.get("target", ""),
        "time_budget": data.get("time_budget") or usual,
        "minutes": data.get("minutes", ""),
        "task_type": data.get("task_type") or "auto",
        "engines": data.getlist("engines") or list(catalog.engines()),
        "exclude": [*data.getlist("exclude"), *named],
        "exclude_text": data.get("exclude_text", ""),
        "metric": data.get("metric", ""),
        "positive_class": data.get("positive_class", ""),
    }


def _asked_before(job: TrainingJob) -> dict[str, Any]:
    """The values of an earlier training, to start from."""
    asked = job.request
    budget = float(asked.get("time_budget") or job.budget_s)
    offered = {str(seconds) for seconds, _ in _budgets()}
    own = f"{budget:g}" not in offered
    return {
        "target": job.target,
        "time_budget": "own" if own else f"{budget:g}",
        "minutes": f"{budget / 60:g}" if own else "",
        "task_type": asked.get("task_type") or "auto",
        "engines": asked.get("engines") or list(catalog.engines()),
        "exclude": asked.get("exclude") or [],
        "exclude_text": "\n".join(asked.get("exclude") or []),
        "metric": job.metric,
        "positive_class": job.positive_class or "",
    }


def _seconds(values: dict[str, Any]) -> float:
    """The budget in seconds; what is no number becomes 0, which the check refuses."""
    try:
        if values["time_budget"] == "own":
            return float(values["minutes"].replace(",", ".")) * 60
        return float(values["time_budget"])
    except ValueError:
        return 0.0


def _start(request: OrgRequest, version: DatasetVersion, values: dict[str, Any]) -> TrainingJob:
    return actions.start_job(
        request.membership,
        version.dataset_id,
        version=version.number,
        target=values["target"],
        task_type=values["task_type"],
        engines=values["engines"],
        time_budget=_seconds(values),
        metric=values["metric"],
        # The chosen target's box is ticked in no-one's mind: a target is never a feature.
        exclude=[name for name in values["exclude"] if name != values["target"]],
        positive_class=values["positive_class"] or None,
    )


def _finding(version: DatasetVersion, values: dict[str, Any]) -> dict[str, Any] | None:
    """What the check says to this target before anything is started; None without a target."""
    column = version.column(values["target"]) if values["target"] else None
    if column is None:
        return None
    found: dict[str, Any] = {"card": card(column, version.rows), "problems": [], "task": None}
    wish = Wish(target=values["target"], task_type=values["task_type"])
    try:
        plan = check(
            wish,
            version.columns,
            version.rows,
            engines={info.name: info.tasks for info in catalog.engines().values()},
            max_budget_s=max(settings.MAX_TIME_BUDGET * 60, wish.time_budget_s),
        )
    except Refused as refused:
        found["problems"] = [text for texts in refused.errors.values() for text in texts]
        return found
    fitting = metrics_for(plan.task)
    metric = values["metric"] if values["metric"] in {m.name for m in fitting} else plan.metric
    positive = values["positive_class"]
    return found | {
        "task": plan.task,
        "reason": plan.reason,
        "notices": plan.notices,
        "metrics": fitting,
        "metric": metric,
        "classes": plan.classes,
        "positive_class": positive if positive in (plan.classes or ()) else plan.positive_class,
    }


# --- A job ---------------------------------------------------------------------------------------


def _job(request: OrgRequest, job_id: UUID) -> TrainingJob:
    found = TrainingJob.objects.of(request.membership.organization).for_list()
    return get_object_or_404(found, pk=job_id)


@require_GET
@org_role(Role.VIEWER)
def job(request: OrgRequest, job_id: UUID) -> HttpResponse:
    after = last_seq(f"job:{job_id}")
    stored = _job(request, job_id)
    context = {
        "after": after,
        **_live(request, stored),
        **_board(stored),
        "log": _log(stored) if stored.has_ended else [],
    }
    return render(request, "training/job.html", context)


@require_GET
@org_role(Role.VIEWER)
def job_live(request: OrgRequest, job_id: UUID) -> HttpResponse:
    stored = _job(request, job_id)
    response = render(request, "training/_job_live.html", _live(request, stored))
    if stored.has_ended:
        response["HX-Refresh"] = "true"  # the page of a job that has ended no longer asks
    return response


@require_GET
@org_role(Role.VIEWER)
def leaderboard(request: OrgRequest, job_id: UUID) -> HttpResponse:
    return render(request, "training/_leaderboard.html", _board(_job(request, job_id)))


@require_GET
@org_role(Role.VIEWER)
def job_log(request: OrgRequest, job_id: UUID) -> HttpResponse:
    return render(request, "training/_job_log.html", {"log": _log(_job(request, job_id))})


def _live(request: OrgRequest, stored: TrainingJob) -> dict[str, Any]:
    tasks = list(stored.tasks.select_related("worker"))
    scored = stored.models.filter(state=TrainedModel.State.SCORED).values_list(
        "created_at", "score"
    )
    began = stored.started_at or stored.created_at
    end = stored.finished_at or timezone.now()
    line = pages.best_line(list(scored), began, end, stored.metric)
    waits = ""
    if not stored.has_ended:
        waits = waits_for(tasks, request.membership.organization)
    return {
        "section": "training",
        "job": job_facts(stored),
        "metric": stored.metric_info,
        "lanes": [_lane(task) for task in tasks],
        "line": line,
        "best": _best(stored),
        "notices": [_notice(one) for one in stored.notices],
        "waits": waits,
        "may_change": request.membership.may(Role.DEVELOPER),
    }


def _best(stored: TrainingJob) -> dict[str, Any] | None:
    best = stored.best_model
    return {"id": best.pk, "name": best.name, "score": best.score} if best else None


def _notice(notice: dict[str, str] | str) -> str:
    return notice if isinstance(notice, str) else notice.get("message", "")


def _lane(task: Task) -> dict[str, Any]:
    info = catalog.engines().get(task.engine)
    state = str(task.state)
    if state == Task.State.RUNNING and task.cancel_requested_at:
        state = "cancelling"
    elif state == Task.State.RUNNING and task.stop_requested_at:
        state = "stopping"
    ended_well = task.state == Task.State.SUCCEEDED
    return {
        "title": info.title if info else task.engine,
        "state": state,
        "progress": 1.0 if ended_well else task.progress,
        "message": "" if task.has_ended else task.message,
        "error": task.error,
        "node": task.worker.name if task.worker and not task.has_ended else "",
        "attempt": task.attempt,
    }


def _board(stored: TrainingJob) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    scored_rows = 0
    for one in TrainedModel.objects.leaderboard(stored.pk):
        interval = one.interval or (None, None)
        scored_rows = scored_rows or one.scored_rows
        rows.append(
            {
                "rank": one.rank if one.is_scored else None,
                "id": one.pk,
                "name": one.name,
                "engine": one.engine,
                "score": one.score,
                "low": interval[0],
                "high": interval[1],
                "fit_s": one.fit_s,
                "predict_ms": one.predict_ms_row,
                "error": "" if one.is_scored else one.reason,
            }
        )
    folds = stored.split.get("folds")
    how = (
        f"out of fold, in {folds} folds, over all {scored_rows:,} training rows"
        if folds
        else f"on {scored_rows:,} validation rows that no model saw"
    )
    return {
        "job": job_facts(stored),
        "metric": stored.metric_info,
        "rows": rows,
        "scored_on": f"Ranked {how}. A sealed test part gives the winner's own figure at the end.",
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


def _wish(request: OrgRequest, job_id: UUID, act: Any, done: str) -> HttpResponse:
    stored = _job(request, job_id)
    try:
        act(request.membership, stored)
    except FlowError as error:
        messages.error(request, error.detail)
    else:
        messages.success(request, done)
    return redirect(stored)


# --- A model -------------------------------------------------------------------------------------


def _model(request: OrgRequest, model_id: UUID) -> TrainedModel:
    found = TrainedModel.objects.of(request.membership.organization).select_related(
        "job__dataset_version", "artifact", "task"
    )
    return get_object_or_404(found, pk=model_id)


@require_GET
@org_role(Role.VIEWER)
def model(request: OrgRequest, model_id: UUID) -> HttpResponse:
    stored = _model(request, model_id)
    tab = request.GET.get("tab", "performance")
    return _model_page(request, stored, tab if tab in TABS else "performance")


def _model_page(
    request: OrgRequest, stored: TrainedModel, tab: str, status: int = 200, **more: Any
) -> HttpResponse:
    parts = {
        "performance": _performance,
        "try": _try,
        "use": _use,
        "details": _details,
    }
    job = stored.job
    tabs = [(key, words) for key, words in TABS.items() if stored.is_scored or key == "details"]
    if not stored.is_scored:
        tab = "details"
    context = {
        "section": "models",
        "model": _model_facts(stored),
        "job": job_facts(job),
        "target": job.target,
        "headline": _headline(stored),
        "tab": tab,
        "tabs": tabs,
        "part": f"training/_model_{tab}.html",
        "may_change": request.membership.may(Role.DEVELOPER),
        **parts[tab](request, stored),
        **more,
    }
    return render(request, "training/model.html", context, status=status)


def _model_facts(stored: TrainedModel) -> dict[str, Any]:
    """Name and place. The place is counted, not ranked: one query over an index."""
    rank = of = None
    if stored.is_scored:
        scored = stored.job.models.filter(state=TrainedModel.State.SCORED)
        of = scored.count()
        best = stored.job.best_model_id == stored.pk
        rank = 1 if best else scored.filter(order_score__lt=stored.order_score).count() + 1
    return {
        "pk": stored.pk,
        "name": stored.name,
        "is_scored": stored.is_scored,
        "reason": stored.reason,
        "rank": rank,
        "of": of,
        "created_at": stored.created_at,
    }


def _headline(stored: TrainedModel) -> str:
    if not stored.is_scored:
        return f"This model could not be scored: {stored.reason}"
    if test := stored.test:
        figures = pages.Figures(test["metrics"], test["rows"], True, test.get("curves") or {})
    else:
        figures = pages.Figures(stored.metrics, stored.scored_rows, False, stored.curves)
    return pages.headline(stored.job.task, stored.job.target, figures)


def _performance(request: OrgRequest, stored: TrainedModel) -> dict[str, Any]:
    job = stored.job
    curves = (stored.test or {}).get("curves") or stored.curves
    rows = stored.test["rows"] if stored.test else stored.scored_rows
    part = "the sealed test rows" if stored.test else "rows that the model did not see"
    return {
        "metrics": pages.metric_rows(
            job.task, job.metric, stored.metrics, stored.interval, stored.test
        ),
        "ranked_on": "Out of fold" if job.split.get("folds") else "Validation",
        "has_test": bool(stored.test),
        "confusion": pages.confusion_table(curves.get("confusion")),
        "charts": pages.charts(curves, job.target),
        "scored_on": f"Ranked on {stored.scored_rows:,} rows. Pictures: {rows:,} rows, {part}.",
        "notes": [note for note in [stored.reason] if note],
    }


def _columns(stored: TrainedModel) -> list[dict[str, Any]]:
    version = stored.job.dataset_version
    return version.columns if version else []


def _try(request: OrgRequest, stored: TrainedModel) -> dict[str, Any]:
    batches = stored.batch_predictions.order_by("-created_at")[:5]
    return {
        "fields": pages.schema_fields(stored.schema, _columns(stored)),
        "answer": None,
        "runs": batches,
        "after": 0,
    }


def _use(request: OrgRequest, stored: TrainedModel) -> dict[str, Any]:
    typical = {
        one.name: _typed(one.value, str(column["dtype"]))
        for one, column in zip(
            pages.schema_fields(stored.schema, _columns(stored)), stored.schema, strict=True
        )
    }
    return {"snippets": pages.snippets(settings.PUBLIC_URL, str(stored.pk), typical)}


def _typed(text: str, dtype: str) -> Any:
    """A form's text as a client would send it."""
    if text == "":
        return None
    if dtype in {"integer", "float"}:
        value = float(text)
        return int(value) if value.is_integer() else value
    return text == "true" if dtype == "boolean" else text


def _details(request: OrgRequest, stored: TrainedModel) -> dict[str, Any]:
    job = stored.job
    facts = [
        ("Algorithm", stored.name),
        ("Family", stored.family or "–"),
        ("Engine", stored.engine),
        ("Trained on", f"{stored.train_rows:,} rows"),
        ("Data set", f"{job.dataset['name']}, version {job.dataset['version']}"),
        ("Data hash", str(job.dataset.get("sha256", ""))[:16]),
        ("Kind of task", pages.task_words(job.task, job.classes)),
        ("Ranked by", METRICS[job.metric].title),
        ("Split", "out of fold" if job.split.get("folds") else "train, validation and test"),
        ("Seed", str(job.seed)),
    ]
    return {
        "facts": facts,
        "columns": stored.schema,
        "parameters": sorted((str(k), v) for k, v in stored.params.items()),
    }


@require_POST
@org_role(Role.DEVELOPER)
def predict(request: OrgRequest, model_id: UUID) -> HttpResponse:
    """One row from the form. With htmx the answer alone, else the page around it."""
    stored = _model(request, model_id)
    row = pages.row_of(stored.schema, request.POST)
    problem: FlowError | None = None
    answer: dict[str, Any]
    try:
        said = actions.predict(stored, [row])
    except FlowError as error:
        problem = error
        errors = {_column(place): texts for place, texts in error.errors.items()}
        text = "Some values do not fit." if errors else error.detail
        answer = {"problem": text, "errors": errors}
    else:
        probabilities = said.probabilities[0] if said.probabilities else None
        answer = pages.answer(said.predictions[0], probabilities, said.classes)
        answer["ms"] = said.ms.get("node") or said.ms.get("model")
        answer["typical_error"] = _typical_error(stored)
    # htmx shows 200 and 422 alike, and a value half typed is no fault worth a red line in a log.
    status = 200 if problem is None else 422 if problem.status < 500 else 503
    if request.headers.get("HX-Request"):
        context = {"answer": answer, "target": stored.job.target}
        return render(request, "training/_answer.html", context, status=200)
    fields = pages.schema_fields(
        stored.schema, _columns(stored), request.POST.dict(), answer.get("errors")
    )
    return _model_page(request, stored, "try", status, answer=answer, fields=fields)


def _column(place: str) -> str:
    """``rows[0].name`` as the column's name."""
    return place.split(".", 1)[1] if place.startswith("rows[") and "." in place else place


def _typical_error(stored: TrainedModel) -> str:
    """How far off a number may be: on the sealed rows where there are figures."""
    metrics = (stored.test or {}).get("metrics") or stored.metrics
    middle = metrics.get("median_ae")
    if stored.job.task != "regression" or middle is None:
        return ""
    return f"Half of the time it is off by {pages.number(middle)} or less."


@require_POST
@org_role(Role.DEVELOPER)
def predict_file(request: OrgRequest, model_id: UUID) -> HttpResponse:
    stored = _model(request, model_id)
    upload = request.FILES.get("file")
    if upload is None:
        return _model_page(request, stored, "try", 422, file_problem="Choose a file first.")
    try:
        queued = actions.predict_file(request.membership, stored, upload)
    except FlowError as error:
        texts = [text for each in error.errors.values() for text in each]
        problem = " ".join([error.detail, *(t for t in texts if t not in error.detail)])
        return _model_page(request, stored, "try", 422, file_problem=problem)
    return redirect("training:batch", queued.pk)


@require_GET
@org_role(Role.DEVELOPER)
@tells_problems
def download(request: OrgRequest, model_id: UUID) -> HttpResponseBase:
    return actions.download(_model(request, model_id))


# --- A file of predictions -----------------------------------------------------------------------


def _batch(request: OrgRequest, batch_id: UUID) -> BatchPrediction:
    found = BatchPrediction.objects.of(request.membership.organization).select_related(
        "model__job", "task__worker", "csv", "parquet"
    )
    return get_object_or_404(found, pk=batch_id)


@require_GET
@org_role(Role.VIEWER)
def batch(request: OrgRequest, batch_id: UUID) -> HttpResponse:
    after = last_seq(f"prediction:{batch_id}")
    stored = _batch(request, batch_id)
    waits = ""
    if stored.task and not stored.has_ended:
        waits = waits_for([stored.task], request.membership.organization)
    context = {
        "section": "models",
        "after": after,
        "batch": stored,
        "model": stored.model,
        "job": stored.model.job,
        "task": stored.task,
        "waits": waits,
    }
    if request.headers.get("HX-Request"):
        return render(request, "training/_batch.html", context)
    return render(request, "training/batch.html", context)


@require_GET
@org_role(Role.DEVELOPER)
@tells_problems
def batch_result(request: OrgRequest, batch_id: UUID) -> HttpResponseBase:
    return actions.download_result(_batch(request, batch_id), request.GET.get("as", "csv"))
