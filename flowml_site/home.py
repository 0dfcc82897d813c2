"""The first page: what to do first, and later what runs and what came of it."""

from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET

from datasets.models import Dataset
from datasets.views import max_bytes, samples
from flowml_site import attention
from organizations.access import OrgRequest, org_role
from organizations.actions import awaits_operator
from organizations.models import Role
from training.models import TrainingJob
from training.views.common import job_facts

SHOWN = 5
QUOTAS = 4


@require_GET
def home(request: HttpRequest) -> HttpResponseBase:
    """The overview; on a new installation, the page that sets it up."""
    if not request.user.is_authenticated and awaits_operator():
        return redirect("organizations:sign-up")
    return overview(request)


@org_role(Role.VIEWER)
def overview(request: OrgRequest) -> HttpResponse:
    organization = request.membership.organization
    jobs = TrainingJob.objects.of(organization).for_list()
    running = [job_facts(job) for job in jobs.active()[:SHOWN]]
    recent = [job_facts(job) for job in jobs.exclude(state__in=TrainingJob.ACTIVE)[: SHOWN + 3]]
    datasets = list(
        Dataset.objects.of(organization)
        .select_related("latest")
        .defer("latest__columns", "latest__associations")[:SHOWN]
    )
    context = {
        "section": "home",
        "findings": attention.findings(organization),
        "quotas": attention.limited(organization)[:QUOTAS],
        "running": running,
        "moving": bool(running) or any(d.state == Dataset.State.INGESTING for d in datasets),
        "recent": recent,
        "datasets": datasets,
        "first_visit": not (running or recent),
        "may_change": request.membership.may(Role.DEVELOPER),
        "samples": samples(),
        "max_bytes": max_bytes(),
    }
    return render(request, "home.html", context)
