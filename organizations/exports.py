"""Taking an organization along: a zip of everything that it has, made by control."""

import json
import logging
import tempfile
import zipfile
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from celery import current_app
from django.conf import settings
from django.core.files import File
from django.core.files.storage import default_storage
from django.db import transaction
from django.db.models import Q, QuerySet, Sum
from django.utils import timezone
from django.utils.text import slugify

from accounts.errors import Conflict
from organizations import quotas, usage
from organizations.audit import record
from organizations.models import (
    AuditEntry,
    Invite,
    Membership,
    Organization,
    OrganizationExport,
    Role,
    ServiceToken,
    UsageEntry,
    UsageMonth,
)
from organizations.parts import Bundle, exports, register

State = OrganizationExport.State
FORMAT = 1
GIVEN_UP_AFTER = timedelta(hours=4)  # whoever worked on one for longer is gone
TRIES = 3
A_DAY = 3  # exports that an organization asks for: each reads all that it has
QUEUE = "control-long"  # has a process of its own, so that nothing short waits for it
log = logging.getLogger(__name__)


@transaction.atomic
def ask(by: Membership) -> OrganizationExport:
    """Have the organization exported. While one is being made, that one is the answer.

    Raises Conflict when enough were asked for in the last 24 hours.
    """
    Organization.objects.select_for_update(no_key=True).get(pk=by.organization_id)
    mine = OrganizationExport.objects.of(by.organization)
    under_way = mine.filter(state__in=(State.QUEUED, State.RUNNING)).first()
    if under_way is not None:
        return under_way
    day_ago = timezone.now() - timedelta(days=1)
    lately = mine.filter(created_at__gt=day_ago).exclude(state=State.FAILED)
    times = list(lately.order_by("-created_at").values_list("created_at", flat=True)[:A_DAY])
    if len(times) == A_DAY:
        raise Conflict(
            f"An organization is exported at most {A_DAY} times in 24 hours. The last export can "
            f"be downloaded; the next one made from {times[-1] + timedelta(days=1):%H:%M} UTC.",
            code="exported-too-often",
        )
    export = mine.create(organization=by.organization, asked_by=by.name)
    record("organization.export-asked", by.organization, by=by)
    transaction.on_commit(lambda: hasten(export.pk))
    return export


def hasten(pk: UUID) -> None:
    """Ask control to make it now; the sweep would, a little later."""
    try:
        current_app.send_task(
            "organizations.tasks.build_export", args=[str(pk)], queue=QUEUE, retry=False
        )
    except Exception as problem:
        log.warning("control not hastened", extra={"export": str(pk), "problem": str(problem)})


def build(pk: UUID) -> None:
    """Make an export, unless another process is at it."""
    now = timezone.now()
    mine = OrganizationExport.objects.filter(
        Q(state=State.QUEUED) | Q(state=State.RUNNING, started_at__lt=now - GIVEN_UP_AFTER), pk=pk
    )
    export = mine.select_related("organization").first()
    if export is None:
        return
    if not mine.update(state=State.RUNNING, started_at=now, tries=export.tries + 1):
        return  # another was quicker
    try:
        path, size = _written(export)
    except Exception as problem:
        log.exception("an export failed", extra={"export": str(pk)})
        again = export.tries + 1 < TRIES
        OrganizationExport.objects.filter(pk=pk).update(
            state=State.QUEUED if again else State.FAILED,
            error=f"It could not be made ({type(problem).__name__}). Tell the operator.",
            finished_at=None if again else timezone.now(),
        )
        return
    ready = OrganizationExport.objects.filter(pk=pk, state=State.RUNNING).update(
        state=State.READY, file=path, size=size, error="", finished_at=timezone.now(),
        expires_at=timezone.now() + timedelta(days=settings.EXPORT_DAYS),
    )  # fmt: skip
    if not ready:
        default_storage.delete(path)
        return
    older = OrganizationExport.objects.of(export.organization).filter(state=State.READY)
    _expire(older.exclude(pk=pk))  # one at a time takes room


def _written(export: OrganizationExport) -> tuple[str, int]:
    with tempfile.NamedTemporaryFile(dir=settings.FILE_UPLOAD_TEMP_DIR, suffix=".zip") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive:
            bundle = Bundle(archive)
            for part in exports:
                part(export.organization, bundle)
            about = {
                "format": FORMAT,
                "organization": {
                    "id": str(export.organization_id),
                    "name": str(export.organization),
                },
                "made_at": timezone.now().isoformat(),
                "files": bundle.names,
            }
            archive.writestr("about.json", json.dumps(about, indent=1, ensure_ascii=False))
        size = file.tell()
        file.seek(0)
        path = default_storage.save(
            f"exports/{export.organization_id}/{export.pk}.zip", File(file, name="export.zip")
        )
    return path, size


def download(by: Membership, export: OrganizationExport) -> tuple[Any, str]:
    """The stored file and what to call it. Raises Conflict unless it is ready."""
    if export.state != State.READY:
        raise Conflict(f"There is nothing to download: the export is {export.state}.")
    record("organization.exported", by.organization, by=by)
    name = slugify(export.organization.name) or "organization"
    return export.file, f"{name}-{export.created_at:%Y-%m-%d}.zip"


def expire() -> None:
    """Delete the files of exports that are too old."""
    _expire(OrganizationExport.objects.filter(state=State.READY, expires_at__lte=timezone.now()))


def discard(by: Membership, export: OrganizationExport) -> None:
    """Delete the file of an export before its time. Raises Conflict where there is none."""
    if export.state != State.READY:
        raise Conflict(f"There is nothing to delete: the export is {export.state}.")
    _expire(OrganizationExport.objects.of(by.organization).filter(pk=export.pk))
    record("organization.export-deleted", by.organization, by=by)


def _expire(old: QuerySet[OrganizationExport]) -> None:
    for export in old:
        with transaction.atomic():
            OrganizationExport.objects.filter(pk=export.pk).update(state=State.EXPIRED, file="")
            transaction.on_commit(partial(default_storage.delete, str(export.file)))


def waiting() -> list[UUID]:
    """Exports that nobody makes, though they should be made."""
    now = timezone.now()
    found = OrganizationExport.objects.filter(
        Q(state=State.QUEUED, created_at__lt=now - timedelta(seconds=30))
        | Q(state=State.RUNNING, started_at__lt=now - GIVEN_UP_AFTER)
    )
    return list(found.values_list("pk", flat=True))


# --- This app's own part -------------------------------------------------------------------------


def _export(home: Organization, bundle: Bundle) -> None:
    bundle.add_table("organization", Organization.objects.filter(pk=home.pk))
    members = Membership.objects.filter(organization=home).select_related("user")
    bundle.add_rows(
        "members",
        (
            {"user": one.user_id, "username": one.user.get_username(), "email": one.user.email,
             "role": Role(one.role).label, "joined_at": one.joined_at}
            for one in members.order_by("pk").iterator(1000)
        ),
    )  # fmt: skip
    bundle.add_table("invites", Invite.objects.of(home), "code_hash")
    bundle.add_table("service_tokens", ServiceToken.objects.of(home), "digest")
    bundle.add_table("usage_months", UsageMonth.objects.of(home))
    bundle.add_table("usage", UsageEntry.objects.of(home))
    bundle.add_table("audit", AuditEntry.objects.of(home))
    bundle.add_table("exports", OrganizationExport.objects.of(home), "file")


def _purge(home: Organization) -> None:
    for export in OrganizationExport.objects.of(home).exclude(file=""):
        export.file.delete(save=False)


def _stored(home: Organization) -> int:
    kept = OrganizationExport.objects.of(home).exclude(file="")
    return kept.aggregate(n=Sum("size"))["n"] or 0


def _stored_by_all() -> dict[UUID, int]:
    kept = OrganizationExport.objects.exclude(file="").order_by()
    return dict(kept.values_list("organization").annotate(n=Sum("size")))


def connect() -> None:
    # Counted, but never refused: who is out of room may take everything along.
    quotas.register_meter("storage_bytes", _stored)
    usage.register_storage(_stored_by_all)
    register(export=_export, purge=_purge)
