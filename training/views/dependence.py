"""How what a model says changes with one column: a part of its page."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from accounts.pages import tells_problems
from organizations.access import OrgRequest, org_role
from organizations.models import Role
from training import dependences
from training.models import TrainedModel


def _model(request: OrgRequest, model_id: UUID) -> TrainedModel:
    found = TrainedModel.objects.of(request.membership.organization).select_related(
        "job__dataset_version__data", "artifact", "task"
    )
    return get_object_or_404(found.defer("curves", "test"), pk=model_id)


@require_GET
@org_role(Role.VIEWER)
def dependence(request: OrgRequest, model_id: UUID) -> HttpResponse:
    """That part of the page alone: while it is computed, and for another column or class."""
    return _part(request, _model(request, model_id))


@require_POST
@org_role(Role.DEVELOPER)
@tells_problems
def ask(request: OrgRequest, model_id: UUID) -> HttpResponse:
    stored = _model(request, model_id)
    dependences.ask(request.membership, stored)
    if request.headers.get("HX-Request"):
        return _part(request, stored)
    return redirect("training:model", stored.pk)


def _part(request: OrgRequest, stored: TrainedModel) -> HttpResponse:
    context = {
        "model": stored,
        "may_change": request.membership.may(Role.DEVELOPER),
        **dependences.on_page(stored, request.GET),
    }
    return render(request, "training/_dependence.html", context)
