"""Deleting an organization: asked for, taken back within some days, and then for good."""

import logging
from datetime import timedelta
from typing import ClassVar

from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from accounts.errors import Conflict, Invalid
from organizations import invites
from organizations.audit import record
from organizations.models import Membership, Organization
from organizations.parts import purges, stops

log = logging.getLogger(__name__)


class BeingDeleted(Conflict):
    code: ClassVar[str] = "organization-being-deleted"


def refuse(organization: Organization) -> None:
    """Raise BeingDeleted for one whose deletion was asked for."""
    if organization.delete_after is not None:
        raise BeingDeleted(
            f"{organization} will be deleted after {organization.delete_after:%-d %B %Y, %H:%M} "
            "UTC. Until then its admins can restore it, and take its data along.",
            delete_after=organization.delete_after.isoformat(),
        )


@transaction.atomic
def ask(by: Membership | str, organization: Organization, *, name: str) -> Organization:
    """Stop everything and close the organization; delete it when the days of grace are over.

    ``name`` is its name, typed again. ``by`` is an admin of it, or the name of an operator.
    """
    stored = Organization.objects.select_for_update(no_key=True).get(pk=organization.pk)
    if " ".join(name.split()) != stored.name:
        sentence = "Type the organization's name, exactly, to delete it."
        raise Invalid(sentence, errors={"name": [sentence]})
    refuse(stored)
    stored.delete_after = timezone.now() + timedelta(days=settings.DELETION_DAYS)
    stored.save(update_fields=["delete_after"])
    for stop in reversed(stops):
        stop(stored)
    if isinstance(by, Membership):
        invites.forget_known(by)
    record("organization.deletion-asked", stored, by=by, changes={"after": stored.delete_after})
    return stored


@transaction.atomic
def restore(by: Membership | str, organization: Organization) -> Organization:
    """Take the deletion back. Raises Conflict where there is none, or it has begun."""
    stored = Organization.objects.select_for_update(no_key=True).get(pk=organization.pk)
    if stored.delete_after is None:
        raise Conflict("Nobody has asked for this organization to be deleted.")
    if _due().filter(pk=stored.pk).exists():
        raise Conflict("It is too late: the organization is being deleted.")
    stored.delete_after = None
    stored.save(update_fields=["delete_after"])
    record("organization.restored", stored, by=by)
    return stored


def purge_due() -> int:
    """Delete what is due, rows and files; returns how many organizations went.

    One that fails is left for the next time, and the others go.
    """
    gone = 0
    for home in _due():
        try:
            gone += _purge(home)
        except Exception:
            log.exception("an organization can't be deleted", extra={"organization": str(home.pk)})
    return gone


def _due() -> QuerySet[Organization]:
    """By the database's clock, as its trigger that lets the audit log go too: web's may be off."""
    return Organization.objects.filter(delete_after__lte=Now())


def _purge(home: Organization) -> bool:
    """Delete it; False where it was restored, or is gone, meanwhile."""
    with transaction.atomic():
        # Whoever restores it holds this row. Once we had it and it was due, it stays due: nobody
        # restores what is, so the lock may go before the long part.
        if not _due().select_for_update(no_key=True).filter(pk=home.pk).exists():
            return False
    # From right to left: a model refers to its data, and that to its files. Nothing here has to
    # happen at once: access is closed for good, and what is left after a crash the next one does.
    for purge in reversed(purges):
        purge(home)
    with transaction.atomic():
        home.delete()
        record("organization.deleted", None, name=home.name, changes={"id": home.pk})
    return True
