"""Reading the audit log: filters that page and API share, and CSV."""

from collections.abc import Mapping
from datetime import UTC, datetime, time

from django.db.models import Q
from django.http import HttpResponse
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter

from accounts.errors import Invalid
from organizations import csvs
from organizations.audit import record
from organizations.models import AuditEntry, Membership, OrgQuerySet

MOST_ROWS = 50_000
COLUMNS = (
    "created_at", "actor", "actor_kind", "via", "verb", "object_kind", "object_id", "object_name",
    "changes", "address", "request_id",
)  # fmt: skip
PARAMETERS = [
    OpenApiParameter("verb", str, description="dataset.deleted, or dataset for all of data sets."),
    OpenApiParameter("actor", str, description="Part of a name."),
    OpenApiParameter("object_id", str),
    OpenApiParameter("search", str, description="In the names of people and objects."),
    OpenApiParameter("since", OpenApiTypes.DATETIME, description="A day or a time, included."),
    OpenApiParameter("until", OpenApiTypes.DATETIME, description="Excluded; a day is included."),
]


def found(by: Membership, asked: Mapping[str, str]) -> OrgQuerySet[AuditEntry]:
    """The organization's entries that the filters leave, newest first. Raises Invalid."""
    entries = AuditEntry.objects.of(by.organization)
    word = {key: asked.get(key, "").replace("\0", "").strip()[:200] for key in _FILTERS}
    if verb := word["verb"]:
        same = Q(verb=verb) if "." in verb else Q(verb__startswith=f"{verb}.")
        entries = entries.filter(same)
    if word["actor"]:
        entries = entries.filter(actor__icontains=word["actor"])
    if word["object_id"]:
        entries = entries.filter(object_id=word["object_id"])
    if text := word["search"]:
        entries = entries.filter(Q(object_name__icontains=text) | Q(actor__icontains=text))
    if word["since"]:
        entries = entries.filter(created_at__gte=_moment("since", word["since"]))
    if word["until"]:
        entries = entries.filter(created_at__lt=_moment("until", word["until"]))
    return entries


_FILTERS = ("verb", "actor", "object_id", "search", "since", "until")


def _moment(name: str, text: str) -> datetime:
    try:
        day = parse_date(text)
        if day is not None:
            return datetime.combine(day, time.max if name == "until" else time.min, UTC)
        moment = parse_datetime(text)
        if moment is not None:
            aware = moment if timezone.is_aware(moment) else moment.replace(tzinfo=UTC)
            return aware.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise Invalid(f"{name} must be a day or a time.", errors={name: ["Write it as 2026-01-31."]})


def as_csv(by: Membership, asked: Mapping[str, str]) -> HttpResponse:
    """What ``found`` finds, at most MOST_ROWS of it, for a spreadsheet."""
    rows = found(by, asked).values_list(*COLUMNS)[:MOST_ROWS]
    body = csvs.written(COLUMNS, ((row[0].isoformat(), *row[1:]) for row in rows))
    record("audit.exported", by.organization, by=by)
    answer = HttpResponse(body, content_type="text/csv; charset=utf-8")
    answer["Content-Disposition"] = 'attachment; filename="audit.csv"'
    answer["X-Content-Type-Options"] = "nosniff"
    return answer
