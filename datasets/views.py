"""Pages of data sets. Rules are in actions; how a column's card looks is in cards."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.conf import settings
from django.contrib import messages
from django.db.models.functions import Coalesce, Lower
from django.http import Http404, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.cache import patch_vary_headers
from django.utils.text import slugify
from django.views.decorators.http import require_GET, require_POST

from accounts.errors import FlowError
from accounts.listing import listed, listing
from accounts.pages import tell, tells_problems, wants_json, whole
from accounts.pagination import Paginator
from datasets import actions, related
from datasets.cards import card
from datasets.models import Dataset, DatasetVersion
from datasets.samples import SAMPLES, Sample
from datasets.uploads import picture_response, take
from organizations.access import OrgRequest, org_role
from organizations.models import Role
from workers.files import file_response
from workers.models import Stream
from workers.waiting import waits_for

PER_PAGE = 25
CARDS_PER_PAGE = 60
ROWS_PER_PAGE = 50
COLUMNS_SHOWN = 60
REJECTS_SHOWN = 200
SORTS = {
    "name": Lower("name"),
    "state": "state",
    "rows": "latest__rows",
    "columns": "latest__column_count",
    "size": "latest__size_bytes",
    "newest": Coalesce("latest__created_at", "created_at"),
    "owner": Lower("created_by__username"),
}
TABS = ("columns", "associations", "rows", "rejects", "versions")


def max_bytes() -> int:
    return settings.MAX_UPLOAD_SIZE_MB * 2**20


def samples() -> list[Sample]:
    """What can be loaded without an upload."""
    return list(SAMPLES.values())


# --- The list ------------------------------------------------------------------------------------


@require_GET
@org_role(Role.VIEWER)
def index(request: OrgRequest) -> HttpResponse:
    return _index(request)


def _index(request: OrgRequest, *, problem: str = "", status: int = 200) -> HttpResponse:
    search = request.GET.get("search", "").replace("\0", "").strip()
    found = (
        Dataset.objects.of(request.membership.organization)
        .select_related("latest", "created_by")
        .defer("latest__columns", "latest__associations")
    )
    asked = listing(request, SORTS)
    found = listed(found, asked, SORTS)
    if search:
        found = found.filter(name__icontains=search)
    page = Paginator(found, PER_PAGE).get_page(request.GET.get("page"))
    context = {
        "section": "data",
        "page": page,
        "moving": any(dataset.state == Dataset.State.INGESTING for dataset in page),
        "search": search,
        "asked": asked,
        "may_upload": request.membership.may(Role.DEVELOPER),
        "max_bytes": max_bytes(),
        "samples": samples(),
        "problem": problem,
    }
    return render(request, "datasets/list.html", context, status=status)


# --- Getting data in -----------------------------------------------------------------------------


@require_POST
@org_role(Role.DEVELOPER)
def upload(request: OrgRequest) -> HttpResponse:
    """Take a file as a new data set. A script gets JSON with where to go, a form a redirect."""
    try:
        dataset = actions.upload(request.membership, take(request))
    except FlowError as error:
        if wants_json(request):
            return tell(request, error)
        return _index(request, problem=error.detail, status=error.status)
    return _go(request, dataset)


@require_POST
@org_role(Role.DEVELOPER)
def new_version(request: OrgRequest, dataset_id: UUID) -> HttpResponse:
    dataset = _dataset(request, dataset_id)
    try:
        actions.add_version(request.membership, dataset, take(request))
    except FlowError as error:
        if wants_json(request):
            return tell(request, error)
        return _detail(request, dataset, tab="versions", problem=error.detail, status=error.status)
    return _go(request, dataset)


@require_POST
@org_role(Role.DEVELOPER)
@tells_problems
def sample(request: OrgRequest, key: str) -> HttpResponse:
    """Load a sample; from the start page on to training on it, else to look at it."""
    dataset = actions.load_sample(request.membership, key)
    if request.POST.get("then") == "train":
        start = {"dataset": dataset.pk, "target": SAMPLES[key].target}
        # By name alone: this app knows of the form, not of the app that has it.
        return redirect(f"{reverse('training:new')}?{urlencode(start)}")
    return redirect("datasets:detail", dataset.pk)


def _go(request: OrgRequest, dataset: Dataset) -> HttpResponse:
    address = reverse("datasets:detail", args=[dataset.pk])
    if wants_json(request):
        return JsonResponse({"location": address}, status=202)
    return redirect(address)


# --- One data set --------------------------------------------------------------------------------


def _dataset(request: OrgRequest, dataset_id: UUID) -> Dataset:
    found = Dataset.objects.of(request.membership.organization).select_related("latest")
    return get_object_or_404(found, pk=dataset_id)


@require_GET
@org_role(Role.VIEWER)
@tells_problems
def detail(request: OrgRequest, dataset_id: UUID) -> HttpResponse:
    return _detail(request, _dataset(request, dataset_id), tab=request.GET.get("tab", "columns"))


def _detail(
    request: OrgRequest, dataset: Dataset, *, tab: str, problem: str = "", status: int = 200
) -> HttpResponse:
    # Before the rows are read: what happens in between is then told again, and never missed.
    after = Stream.objects.filter(topic=dataset.topic).values_list("last_seq", flat=True).first()
    versions = list(
        dataset.versions.select_related("created_by", "task__worker")
        .defer("columns", "associations")
        .order_by("-number")
    )
    newest = versions[0]
    version = _shown_version(request, dataset, newest)
    if version.state != DatasetVersion.State.READY:
        tab = "versions"
    context: dict[str, Any] = {
        "section": "data",
        "dataset": dataset,
        "version": version,
        "newest": newest,
        "versions": versions,
        "after": after or 0,
        "tab": tab if tab in TABS else "columns",
        "may_change": request.membership.may(Role.DEVELOPER),
        "max_bytes": max_bytes(),
        "problem": problem,
        **_reading(request, newest),
    }
    if context["tab"] == "columns":
        page = Paginator(version.columns, CARDS_PER_PAGE).get_page(request.GET.get("page"))
        cards = [card(column, version.rows, version.associations) for column in page]
        context |= {"page": page, "cards": cards}
        if context["may_change"] and version.pk == dataset.latest_id:
            context["roles"] = actions.ROLES
    elif tab == "associations":
        context |= related.on_page(version.associations, request.GET.get("of", ""))
    elif tab == "rows":
        context["grid"] = grid(request, version)
        if request.headers.get("HX-Request"):
            response = render(request, "datasets/_grid.html", context)
            patch_vary_headers(response, ["HX-Request"])  # one address, two answers
            return response
    elif tab == "rejects":
        context |= _rejects(version)
    return render(request, "datasets/detail.html", context, status=status)


def _shown_version(request: OrgRequest, dataset: Dataset, newest: DatasetVersion) -> DatasetVersion:
    """The version in the URL (its id), else the newest that can be used, else the newest."""
    wanted = request.GET.get("version")
    if wanted:
        try:
            key = UUID(wanted)
        except ValueError:
            key = dataset.pk  # no version's id
        return get_object_or_404(dataset.versions.select_related("created_by"), pk=key)
    return dataset.latest or newest


def _reading(request: OrgRequest, version: DatasetVersion) -> dict[str, Any]:
    """How far reading the file has come, while it is being read."""
    task = version.task
    if version.state != DatasetVersion.State.INGESTING or task is None:
        return {"task": None, "waits": ""}
    return {"task": task, "waits": waits_for([task], request.membership.organization)}


def grid(request: OrgRequest, version: DatasetVersion) -> dict[str, Any]:
    """One page of rows, as text. Offsets live in the URL, so back and reload work."""
    offset = whole(request.GET.get("offset"))
    offset = min(offset, max(0, version.rows - 1)) // ROWS_PER_PAGE * ROWS_PER_PAGE
    names = version.column_names[:COLUMNS_SHOWN]
    shows = {c["name"] for c in version.columns if c["role"] == "image"}
    address = reverse("datasets:picture", args=[version.pk])
    numeric = {c["name"] for c in version.columns if c["dtype"] in {"integer", "float"}}
    rows = actions.preview(version, offset=offset, rows=ROWS_PER_PAGE)
    query = request.GET.copy()
    query.pop("offset", None)
    query["tab"] = "rows"
    return {
        "columns": [{"name": name, "numeric": name in numeric} for name in names],
        "rows": [
            [
                _cell(row.get(name), name in numeric)
                | (
                    {"picture": f"{address}?{urlencode({'column': name, 'row': number})}"}
                    if name in shows
                    else {}
                )
                for name in names
            ]
            for number, row in enumerate(rows, offset)
        ],
        "offset": offset,
        "first": offset + 1 if rows else 0,
        "last": offset + len(rows),
        "total": version.rows,
        "hidden_columns": len(version.columns) > len(names),
        "all_columns": len(version.columns),
        "query": query.urlencode(),
        "before": offset - ROWS_PER_PAGE if offset else None,
        "after": offset + ROWS_PER_PAGE if offset + ROWS_PER_PAGE < version.rows else None,
    }


def _cell(value: Any, numeric: bool) -> dict[str, Any]:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return {"text": text, "empty": value is None, "numeric": numeric}


def _rejects(version: DatasetVersion) -> dict[str, Any]:
    """The first rows that did not fit, with the line they stand on and why."""
    first = actions.first_rejects(version, rows=REJECTS_SHOWN)
    return {
        "rejects": first,
        "more": max(0, version.rejected - len(first)),
        "download": reverse("datasets:rejects", args=[version.pk]) if first else "",
    }


@require_GET
@org_role(Role.VIEWER)
def ingest(request: OrgRequest, version_id: UUID) -> HttpResponse:
    """The fragment of a version that is being read; once it is not, the page starts anew."""
    version = _version(request, version_id)
    if version.state != DatasetVersion.State.INGESTING:
        response = HttpResponse()
        response["HX-Refresh"] = "true"
        return response
    context = {"version": version, **_reading(request, version)}
    return render(request, "datasets/_ingest.html", context)


def _version(request: OrgRequest, version_id: UUID) -> DatasetVersion:
    found = DatasetVersion.objects.of(request.membership.organization).select_related(
        "dataset", "task__worker", "rejects"
    )
    return get_object_or_404(found.defer("columns", "associations"), pk=version_id)


@require_GET
@org_role(Role.VIEWER)
@tells_problems
def rejects(request: OrgRequest, version_id: UUID) -> HttpResponseBase:
    """All rows that did not fit, as CSV."""
    version = _version(request, version_id)
    if version.rejects is None:
        raise Http404
    name = slugify(version.dataset.name) or "data"
    filename = f"{name}-v{version.number}-rejects.csv"
    return file_response(version.rejects.file, filename=filename, content_type="text/csv")


@require_GET
@org_role(Role.VIEWER)
@tells_problems
def picture(request: OrgRequest, version_id: UUID) -> HttpResponse:
    """One picture of a version, for the page of its rows."""
    found = DatasetVersion.objects.of(request.membership.organization).select_related("data")
    version = get_object_or_404(found, pk=version_id)
    row, column = whole(request.GET.get("row")), request.GET.get("column", "")
    return picture_response(*actions.picture(version, column=column, row=row))


@require_POST
@org_role(Role.DEVELOPER)
@tells_problems
def role(request: OrgRequest, dataset_id: UUID) -> HttpResponse:
    """Say what a column of the newest version really is. With htmx its card comes back."""
    dataset = _dataset(request, dataset_id)
    name = request.POST.get("column", "")
    actions.change_dataset(request.membership, dataset, roles={name: request.POST.get("role", "")})
    if not request.headers.get("HX-Request"):
        return redirect("datasets:detail", dataset_id)
    version = _dataset(request, dataset_id).latest
    column = version.column(name) if version else None
    assert version is not None
    assert column is not None
    shown = card(column, version.rows, version.associations)
    context = {"dataset": dataset, "version": version, "card": shown, "roles": actions.ROLES}
    return render(request, "datasets/_column_card.html", context)


@require_POST
@org_role(Role.DEVELOPER)
def delete(request: OrgRequest, dataset_id: UUID) -> HttpResponse:
    dataset = _dataset(request, dataset_id)
    try:
        actions.delete_dataset(request.membership.name, dataset)
    except FlowError as error:
        messages.error(request, error.detail)
        return redirect("datasets:detail", dataset_id)
    messages.success(request, f"The data set {dataset.name} is deleted.")
    return redirect("datasets:list")
