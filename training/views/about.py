"""Parts of a model's page that a node computes once somebody asks, and that are renewed alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import UUID

from django.http import HttpResponse, QueryDict
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_GET, require_POST

from accounts.pages import tells_problems
from organizations.access import OrgRequest, org_role
from organizations.models import Membership, Role
from training import curves, dependences, importances
from training.checks import of_pictures
from training.models import TrainedModel


class Part(NamedTuple):
    """``shown``: what the part's template takes, by the model and what is in the address."""

    ask: Callable[[Membership, TrainedModel], object]
    shown: Callable[[TrainedModel, QueryDict], dict[str, Any]]
    template: str


PARTS = {
    "importance": Part(
        importances.ask,
        lambda model, _: {"importance": importances.on_page(model)},
        "training/_importance.html",
    ),
    "learning-curve": Part(
        curves.ask,
        lambda model, _: {"learning": curves.on_page(model)},
        "training/_learning_curve.html",
    ),
    "dependence": Part(dependences.ask, dependences.on_page, "training/_dependence.html"),
}


def shown(model: TrainedModel, chosen: QueryDict) -> dict[str, Any]:
    """What the whole page takes for all of them, and whether there are columns to tell of."""
    found = [part.shown(model, chosen) for part in PARTS.values()]
    told = {name: value for one in found for name, value in one.items()}
    return told | {"has_columns": not of_pictures(model.job.columns)}


@require_GET
@org_role(Role.VIEWER)
def part(request: OrgRequest, model_id: UUID, what: str) -> HttpResponse:
    """That part of the page alone: while it is computed, and for another choice in it."""
    return _part(request, _model(request, model_id), what)


@require_POST
@org_role(Role.DEVELOPER)
@tells_problems
def ask(request: OrgRequest, model_id: UUID, what: str) -> HttpResponse:
    stored = _model(request, model_id)
    PARTS[what].ask(request.membership, stored)
    if request.headers.get("HX-Request"):
        return _part(request, stored, what)
    return redirect("training:model", stored.pk)


def _model(request: OrgRequest, model_id: UUID) -> TrainedModel:
    found = TrainedModel.objects.of(request.membership.organization).select_related(
        "job__dataset_version__data", "artifact", "task"
    )
    return get_object_or_404(found.defer("curves", "test"), pk=model_id)


def _part(request: OrgRequest, stored: TrainedModel, what: str) -> HttpResponse:
    context = {
        "model": stored,
        "may_change": request.membership.may(Role.DEVELOPER),
        **PARTS[what].shown(stored, request.GET),
    }
    return render(request, PARTS[what].template, context)
