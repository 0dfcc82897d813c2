"""The pages of experiments."""

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from accounts.errors import FlowError
from accounts.pagination import Paginator
from organizations.access import OrgRequest, org_role
from organizations.models import Role
from pipelines import experimenting, experiments
from pipelines.api.experiments import NewExperiment
from pipelines.models import Experiment
from training.engines import named
from training.views.common import PER_PAGE

SECTION = "experiments"
VERSIONS = 20


@require_GET
@org_role(Role.VIEWER)
def listed(request: OrgRequest) -> HttpResponse:
    found = Experiment.objects.of(request.membership.organization).order_by("name", "id")
    page = Paginator(found.select_related("version"), PER_PAGE).get_page(request.GET.get("page"))
    context = {
        "section": SECTION,
        "page": page,
        "may_change": request.membership.may(Role.DEVELOPER),
    }
    return render(request, "pipelines/experiments.html", context)


@require_http_methods(["GET", "POST"])
@org_role(Role.DEVELOPER)
def new(request: OrgRequest) -> HttpResponse:
    values, errors = {"name": "", "config": experiments.TEMPLATE}, dict[str, Any]()
    if request.method == "POST":
        values, errors = _typed(request)
        if not errors:
            try:
                return redirect(experimenting.make(request.membership, **values))
            except FlowError as refusal:
                errors = refusal.errors or {"name": [refusal.detail]}
    return _editor(request, None, values, errors)


def _typed(request: OrgRequest) -> tuple[dict[str, str], dict[str, Any]]:
    """What was typed, and what is wrong with it at first sight."""
    text = request.POST.get("config", "").replace("\r\n", "\n")
    values = {"name": request.POST.get("name", "").strip(), "config": text}
    form = NewExperiment(data=values)
    form.is_valid()
    return values, {key: [str(one) for one in said] for key, said in form.errors.items()}


def _editor(
    request: OrgRequest, one: Experiment | None, values: dict[str, str], errors: dict[str, Any]
) -> HttpResponse:
    config = one.version.config if one and one.version else {}
    engine = config.get("engine", experiments.ENGINE)
    context: dict[str, Any] = {
        "section": SECTION,
        "one": one,
        "values": values,
        "name_errors": errors.get("name"),
        "config_errors": errors.get("config"),
        "lines": max(18, min(40, values["config"].count("\n") + 3)),
        "engine": engine,
        "models": named.models_of(engine).values(),
        "may_change": request.membership.may(Role.DEVELOPER),
    }
    if one is not None:
        versions = one.versions.order_by("-number")
        context |= {
            "config": config,
            "model": named.models_of(engine).get(config.get("model", "")),
            "users": experimenting.users_of(one),
            "page": Paginator(versions, VERSIONS).get_page(request.GET.get("page")),
        }
    return render(request, "pipelines/experiment.html", context, status=400 if errors else 200)


def _experiment(request: OrgRequest, experiment: UUID) -> Experiment:
    mine = Experiment.objects.of(request.membership.organization)
    found: Experiment = get_object_or_404(
        mine.select_related("version", "organization"), pk=experiment
    )
    return found


@require_GET
@org_role(Role.VIEWER)
def detail(request: OrgRequest, experiment: UUID) -> HttpResponse:
    """What it says, with the text of an older version in the editor if one is asked for."""
    one = _experiment(request, experiment)
    shown = one.version
    said = request.GET.get("version", "")
    if said.isascii() and said.isdecimal() and len(said) < 8:
        shown = get_object_or_404(one.versions, number=int(said))
    values = {"name": one.name, "config": shown.text if shown else ""}
    return _editor(request, one, values, {})


@require_POST
@org_role(Role.DEVELOPER)
def change(request: OrgRequest, experiment: UUID) -> HttpResponse:
    one = _experiment(request, experiment)
    values, errors = _typed(request)
    if not errors:
        try:
            changed = experimenting.change(request.membership, one, **values)
            text = _("%(name)s is saved. Trainings keep what they were told.")
            messages.success(request, text % {"name": changed.name})
            return redirect(changed)
        except FlowError as refusal:
            errors = refusal.errors or {"name": [refusal.detail]}
    return _editor(request, one, values, errors)


@require_POST
@org_role(Role.DEVELOPER)
def delete(request: OrgRequest, experiment: UUID) -> HttpResponse:
    one = _experiment(request, experiment)
    try:
        experimenting.delete(request.membership, one)
    except FlowError as refusal:
        messages.error(request, refusal.detail)
        return redirect(one)
    messages.success(request, _("The experiment %(name)s is deleted.") % {"name": one.name})
    return redirect("pipelines:experiments")
