"""Models: how well they do, trying them, using them; files of predictions."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from django.conf import settings
from django.http import HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.cache import patch_vary_headers
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_GET, require_POST

from accounts.errors import FlowError
from accounts.listing import listed, listing
from accounts.pages import tells_problems
from accounts.pagination import Paginator
from datasets.cards import number
from datasets.uploads import take
from organizations.access import OrgRequest, org_role
from organizations.models import Role
from training import (
    actions,
    epochs,
    explaining,
    general,
    named,
    pages,
    thresholds,
)
from training.evaluation import METRICS
from training.models import BatchPrediction, TrainedModel, TrainingJob
from training.names import CHAMPION
from training.rows import MOST_ROWS
from training.views import about
from training.views.common import PER_PAGE, SORTS, facts_page, job_facts, last_seq
from workers.waiting import waits_for

TABS = {
    "performance": _("Performance"),
    "try": _("Try it"),
    "use": _("Use it"),
    "details": _("Details"),
}
_WITH_VALIDATION = ": training and validation"


@require_GET
@org_role(Role.VIEWER)
def models(request: OrgRequest) -> HttpResponse:
    """The best model of each training, newest training first."""
    found = (
        TrainingJob.objects.of(request.membership.organization)
        .filter(best_model__isnull=False)
        .for_list()
    )
    asked = listing(request, SORTS)
    page = Paginator(listed(found, asked, SORTS), PER_PAGE).get_page(request.GET.get("page"))
    context = {"section": "models", "page": facts_page(page), "asked": asked}
    return render(request, "training/models.html", context)


def _model(request: OrgRequest, model_id: UUID) -> TrainedModel:
    found = TrainedModel.objects.of(request.membership.organization).select_related(
        "job__dataset_version", "artifact", "task", "origin"
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
    tabs = [(key, words) for key, words in TABS.items() if stored.is_usable or key == "details"]
    if not stored.is_usable:
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
        "may_deploy": stored.is_usable,
        **parts[tab](request, stored),
        **more,
    }
    return render(request, "training/model.html", context, status=status)


def _model_facts(stored: TrainedModel) -> dict[str, Any]:
    scored = stored.job.models.filter(state=TrainedModel.State.SCORED)
    return {
        "pk": stored.pk,
        "name": stored.name,
        "is_scored": stored.is_scored,
        "origin": stored.origin,
        "is_best": stored.job.best_model_id == stored.pk,
        "reason": stored.reason,
        "rank": actions.rank_of(stored),
        "of": scored.count() if stored.is_scored else None,
        "created_at": stored.created_at,
    }


def _headline(stored: TrainedModel) -> str:
    if not stored.is_usable:
        return f"This model could not be scored: {stored.reason}"
    if test := stored.test:
        figures = pages.Figures(test["metrics"], test["rows"], True, test.get("curves") or {})
    elif stored.origin:
        return pages.UNMEASURED
    else:
        figures = pages.Figures(stored.metrics, stored.scored_rows, False, stored.curves)
    return pages.headline(stored.job.task, stored.job.target, figures)


def _performance(request: OrgRequest, stored: TrainedModel) -> dict[str, Any]:
    if stored.origin:
        return _refit_performance(request, stored, stored.origin)
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
        "charts": _charts(stored, curves),
        "threshold": _threshold(request, curves),
        **about.shown(stored, request.GET),
        "scored_on": f"Ranked on {stored.scored_rows:,} rows. Pictures: {rows:,} rows, {part}.",
        "notes": [
            note
            for note in [
                pages.BLENDED if stored.is_ensemble else "",
                epochs.begun(stored.params),
                stored.reason,
            ]
            if note
        ],
    }


def _charts(learnt: TrainedModel, curves: dict[str, Any]) -> list[pages.Chart]:
    """How well it does by its curves, and how it was ``learnt``, if by epochs."""
    return [*pages.charts(curves, learnt.job.target), *epochs.charts(learnt.curves.get("epochs"))]


def _threshold(request: OrgRequest, curves: dict[str, Any]) -> dict[str, Any] | None:
    """What _threshold.html takes, at the threshold in the address; None but for binary models."""
    told = thresholds.of(curves)
    if told is None:
        return None
    at = thresholds.chosen(request.GET.get("threshold", ""))
    return {
        "told": told,
        "at": at,
        "now": thresholds.at(told, at),
        "most_f1": thresholds.best_f1(told),
        "chart": pages.threshold_chart(told, at),
        "rows": told["positives"] + told["negatives"],
    }


def _refit_performance(
    request: OrgRequest, stored: TrainedModel, origin: TrainedModel
) -> dict[str, Any]:
    """A refit has seen all rows but the sealed ones: it is shown on those, beside its origin."""
    job = stored.job
    test, before = stored.test or {}, origin.test or {}
    curves = test.get("curves") or {}
    return {
        "metrics": pages.metric_rows(
            job.task, job.metric, before.get("metrics") or {}, before.get("interval"), stored.test
        ),
        "ranked_on": "Sealed test, before",
        "has_test": True,
        "confusion": pages.confusion_table(curves.get("confusion")),
        "charts": _charts(origin, curves),
        "threshold": _threshold(request, curves),
        **about.shown(stored, request.GET),
        "scored_on": pages.refit_words(origin.name, test.get("rows")),
        "notes": [],
    }


def _columns(stored: TrainedModel) -> list[dict[str, Any]]:
    version = stored.job.dataset_version
    return version.columns if version else []


def _try(request: OrgRequest, stored: TrainedModel) -> dict[str, Any]:
    batches = stored.batch_predictions.order_by("-created_at")[:5]
    return {
        "fields": pages.schema_fields(stored.schema, _columns(stored)),
        "answer": None,
        "shows": bool(_pictures(stored)),
        "runs": batches,
    }


def _pictures(stored: TrainedModel) -> list[str]:
    return [str(column["name"]) for column in stored.schema if column["dtype"] == "binary"]


def typical_row(stored: TrainedModel) -> dict[str, Any]:
    """A row that the model takes, of usual values, as a client would send it."""
    return {
        one.name: _typed(one.value, str(column["dtype"]))
        for one, column in zip(
            pages.schema_fields(stored.schema, _columns(stored)), stored.schema, strict=True
        )
    }


def _use(request: OrgRequest, stored: TrainedModel) -> dict[str, Any]:
    typical = typical_row(stored)
    return {
        "snippets": pages.snippets(settings.PUBLIC_URL, str(stored.pk), typical, _pictures(stored)),
        "most_rows": MOST_ROWS,
        "names": [
            {
                "id": version.pk,
                "text": str(version),
                "aliases": [alias.name for alias in version.aliases.all()],
                "is_champion": any(alias.name == CHAMPION for alias in version.aliases.all()),
            }
            for version in named.names_of(stored)
        ],
    }


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
        ("Trained on", f"{stored.train_rows:,} rows{_WITH_VALIDATION if stored.origin else ''}"),
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
        "members": [
            {
                "id": part.model_id,
                "name": part.model.name,
                "engine": part.model.engine,
                "weight": part.weight,
            }
            for part in (stored.parts() if stored.is_ensemble else ())
        ],
        "parameters": sorted((str(k), v) for k, v in stored.params.items()),
    }


@require_POST
@org_role(Role.DEVELOPER)
def predict(request: OrgRequest, model_id: UUID) -> HttpResponse:
    """One row from the form. With htmx the answer alone, else the page around it."""
    stored = _model(request, model_id)
    problem: FlowError | None = None
    answer: dict[str, Any]
    try:
        said = actions.predict(stored, [_row(request, stored)])
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
        context = {"answer": answer, "target": stored.job.target, "shows": _pictures(stored)}
        return render(request, "training/_answer.html", context, status=200)
    fields = pages.schema_fields(
        stored.schema, _columns(stored), request.POST.dict(), answer.get("errors")
    )
    return _model_page(request, stored, "try", status, answer=answer, fields=fields)


def _row(request: OrgRequest, stored: TrainedModel) -> dict[str, Any]:
    """The form's row, with the pictures that came as files. Raises TooLarge."""
    row = pages.row_of(stored.schema, request.POST)
    for place, column in enumerate(stored.schema):
        name = str(column["name"])
        if column["dtype"] == "binary" and (upload := take(request, f"column-{place}")):
            row[name] = general.picture_of(upload, f"rows[0].{name}")
    return row


@require_POST
@org_role(Role.DEVELOPER)
def sensitivity(request: OrgRequest, model_id: UUID) -> HttpResponse:
    """How the answer changes with one column of the form's row: that part of the page alone.

    ``column`` is the number of the control, ``of`` the class whose probability is shown.
    """
    stored = _model(request, model_id)
    schema = stored.schema
    known = {str(column["name"]): column for column in _columns(stored)}
    row = pages.row_of(schema, request.POST)
    offered = [
        (i, str(column["name"]), found)
        for i, column in enumerate(schema)
        if (found := pages.tried(
            column, known.get(str(column["name"]), {}), request.POST.get(f"column-{i}", "")
        ))
    ]  # fmt: skip
    context: dict[str, Any] = {
        "model": stored, "columns": [(i, name) for i, name, _ in offered], "classes": [],
    }  # fmt: skip
    wanted = request.POST.get("column", "")
    chosen = next(
        (one for one in offered if str(one[0]) == wanted), offered[0] if offered else None
    )
    if chosen is None:
        return render(request, "training/_sensitivity.html", context)
    place, name, (kind, values) = chosen
    context["column"] = place
    try:
        said = actions.predict(stored, [{**row, name: value} for value in values])
    except FlowError as error:
        texts = [text for each in error.errors.values() for text in each]
        return render(
            request, "training/_sensitivity.html",
            context | {"problem": " ".join(dict.fromkeys([error.detail, *texts[:1]]))},
        )  # fmt: skip
    # Without probabilities a node need not tell the classes.
    names = [str(one) for one in said.classes or stored.job.classes or ()]
    numbers: list[float] = [] if names else [float(one) for one in said.predictions]
    what = f"Predicted {stored.job.target}"
    if names:
        of = request.POST.get("of", "")
        usual = stored.job.positive_class or names[-1]
        of = of if of in names else usual
        context |= {"classes": names, "of": of}
        what = f"Probability of {of}"
        code = names.index(of)
        numbers = (
            [float(each[code]) for each in said.probabilities]
            if said.probabilities
            else [float(str(one) == of) for one in said.predictions]
        )
    if len(numbers) != len(values):
        return render(
            request, "training/_sensitivity.html",
            context | {"problem": "The node did not answer for every value. Try again."},
        )  # fmt: skip
    now = request.POST.get(f"column-{place}", "")
    if kind == "number":
        now = next((v for v in values if _same(v, now)), "")
    context["chart"] = pages.sensitivity(name, kind, values, now, numbers, what)
    context["picture_json"] = json.dumps(context["chart"].data)
    return render(request, "training/_sensitivity.html", context)


def _same(value: str, text: str) -> bool:
    try:
        return float(value) == float(text)
    except ValueError:
        return False


@require_POST
@org_role(Role.DEVELOPER)
def explain(request: OrgRequest, model_id: UUID) -> HttpResponse:
    """Why the model says what it says of the form's row. With htmx that part of the page alone."""
    stored = _model(request, model_id)
    row = pages.row_of(stored.schema, request.POST)
    status, errors, why = 200, {}, {}
    try:
        found = explaining.explain(stored, row, request.POST.get("class") or None)
    except FlowError as error:
        status = 422 if error.status < 500 else 503
        errors = {_column(place): texts for place, texts in error.errors.items()}
        why = {"problem": error.detail}
    else:
        why = explaining.on_page(found)
    if request.headers.get("HX-Request"):
        return render(request, "training/_why.html", {"why": why, "model": stored})
    fields = pages.schema_fields(stored.schema, _columns(stored), request.POST.dict(), errors)
    return _model_page(request, stored, "try", status, why=why, fields=fields)


def _column(place: str) -> str:
    """``rows[0].name`` or ``row.name`` as the column's name."""
    is_of_row = place.startswith(("rows[", "row.")) and "." in place
    return place.split(".", 1)[1] if is_of_row else place


def _typical_error(stored: TrainedModel) -> str:
    """How far off a number may be: on the sealed rows where there are figures."""
    metrics = (stored.test or {}).get("metrics") or stored.metrics
    middle = metrics.get("median_ae")
    if stored.job.task != "regression" or middle is None:
        return ""
    return f"Half of the time it is off by {number(middle)} or less."


@require_POST
@org_role(Role.DEVELOPER)
def predict_file(request: OrgRequest, model_id: UUID) -> HttpResponse:
    stored = _model(request, model_id)
    try:
        upload = take(request)
        if upload is None:
            return _model_page(request, stored, "try", 422, file_problem="Choose a file first.")
        queued = actions.predict_file(request.membership, stored, upload)
    except FlowError as error:
        texts = [text for each in error.errors.values() for text in each]
        problem = " ".join([error.detail, *(t for t in texts if t not in error.detail)])
        return _model_page(request, stored, "try", 422, file_problem=problem)
    return redirect("training:batch", queued.pk)


@require_GET
@org_role(Role.VIEWER)
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
    if not stored.has_ended:
        waits = waits_for(list(stored.tasks), request.membership.organization)
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
        response = render(request, "training/_batch.html", context)
        patch_vary_headers(response, ["HX-Request"])  # one address, two answers
        return response
    return render(request, "training/batch.html", context)


@require_GET
@org_role(Role.VIEWER)
@tells_problems
def batch_result(request: OrgRequest, batch_id: UUID) -> HttpResponseBase:
    return actions.download_result(_batch(request, batch_id), request.GET.get("as", "csv"))
