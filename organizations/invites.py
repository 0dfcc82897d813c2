"""Invite codes: how people get into an organization that isn't theirs."""

import hashlib
import hmac
import logging
from datetime import timedelta

from django.core.cache import cache
from django.db import transaction
from django.db.models import F
from django.utils import timezone
from redis.exceptions import RedisError

from accounts.errors import Invalid, NotFound
from accounts.limits import TooManyTries
from accounts.models import User
from organizations import audit
from organizations.audit import record
from organizations.models import Invite, Membership, Organization, Role

DAYS = 7  # that a code is good for, unless told
MOST_DAYS, MOST_USES = 365, 10_000
GUESSES, WINDOW_S = 20, 15 * 60  # wrong codes by one person, or from one address
log = logging.getLogger(__name__)


class BadCode(Invalid):
    code = "bad-invite-code"


# --- Admins --------------------------------------------------------------------------------------


def current(by: Membership) -> Invite:
    """The organization's invite, good or not; the first one is made now.

    Raises NotFound when it was withdrawn and there is no new one.
    """
    newest = Invite.objects.of(by.organization).order_by("-created_at").first()
    if newest is None:
        return renew(by)
    if newest.withdrawn_at is not None:
        raise NotFound("The invite code was withdrawn: make a new one.", code="no-invite-code")
    return newest


@transaction.atomic
def renew(
    by: Membership,
    *,
    role: int = Role.VIEWER,
    valid_days: int | None = DAYS,
    max_uses: int | None = None,
) -> Invite:
    """A new code; the one before it opens nothing any more.

    ``valid_days`` None: until it is withdrawn. ``max_uses`` None: for any number of people.
    """
    errors = {}
    if role > by.role:
        errors["role"] = ["A code can't grant more than your own role."]
    if valid_days is not None and not 1 <= valid_days <= MOST_DAYS:
        errors["valid_days"] = [f"Choose 1 to {MOST_DAYS} days."]
    if max_uses is not None and not 1 <= max_uses <= MOST_USES:
        errors["max_uses"] = [f"Choose 1 to {MOST_USES:,} people."]
    if errors:
        raise Invalid(" ".join(said for [said] in errors.values()), errors=errors)
    Organization.objects.select_for_update(no_key=True).get(pk=by.organization_id)
    _withdraw(by.organization)
    invite = Invite.objects.create(
        organization=by.organization,
        role=role,
        expires_at=timezone.now() + timedelta(days=valid_days) if valid_days else None,
        max_uses=max_uses,
        created_by=by.user,
    )
    told = {"role": Role(role).label, "expires_at": invite.expires_at, "max_uses": max_uses}
    record("invite.made", invite, by=by, name="Invite code", changes=told)
    return invite


@transaction.atomic
def withdraw(by: Membership) -> None:
    """From now on nobody joins by the code. Doing it again changes nothing."""
    Organization.objects.select_for_update(no_key=True).get(pk=by.organization_id)
    if _withdraw(by.organization):
        record("invite.withdrawn", by.organization, by=by, name="Invite code")


def forget_known(by: Membership) -> None:
    """Withdraw the code, since somebody who left the organization's admins may know it."""
    if _withdraw(by.organization):
        record("invite.withdrawn", by.organization, by=by, name="Invite code")


def _withdraw(organization: Organization) -> int:
    return (
        Invite.objects.of(organization)
        .filter(withdrawn_at=None)
        .update(withdrawn_at=timezone.now())
    )


# --- Those who come in ---------------------------------------------------------------------------


def look(code: str, user: User | None = None) -> Invite:
    """The invite that a code opens, to show before joining. Raises BadCode and TooManyTries."""
    keys = _keys(user)
    _check(keys)
    hashed = Invite.hash_of(code)
    found = Invite.objects.select_related("organization").filter(code_hash=hashed).first()
    # The index found it; that it is the same, a comparison says that takes the same time always.
    if found is None or not hmac.compare_digest(found.code_hash, hashed) or found.problem:
        _count(keys)
        raise _refused(found.problem if found else "")
    if found.organization.delete_after is not None:
        raise _refused("")
    return found


def _refused(why: str) -> BadCode:
    sentence = {
        "expired": "This invite code has expired. Ask an admin of the organization for a new one.",
        "used-up": "This invite code was used as often as it may be. Ask for a new one.",
    }.get(why, "This invite code opens nothing. Check it, or ask for a new one.")
    return BadCode(sentence, errors={"code": [sentence]})


def accept(user: User, code: str) -> Membership:
    """Join the organization that ``code`` opens, with the role that it grants.

    Whoever is a member already stays what they are, and the code isn't used up. ``joined`` of the
    answer says which it was. Raises BadCode and TooManyTries.
    """
    found = look(code, user)
    with transaction.atomic():
        # Of two who come for the last place, the second sees the first's use.
        invite = Invite.objects.select_for_update(no_key=True, of=("self",)).get(pk=found.pk)
        if invite.problem:
            raise _refused(invite.problem)
        membership, joined = Membership.objects.select_related("organization").get_or_create(
            organization=found.organization, user=user, defaults={"role": invite.role}
        )
        membership.joined = joined
        if joined:
            Invite.objects.filter(pk=invite.pk).update(uses=F("uses") + 1)
            told = {"role": Role(membership.role).label}
            record("member.joined", user, organization=found.organization, by=user, changes=told)
    return membership


def _keys(user: User | None) -> list[str]:
    who = hashlib.sha256((audit.address() or "unknown").encode()).hexdigest()[:32]
    return [f"invite:{who}", *([f"invite:{user.pk}"] if user else [])]


def _check(keys: list[str]) -> None:
    try:
        counts = cache.get_many(keys)
    except RedisError as problem:
        log.warning("invite codes can't be limited", extra={"problem": str(problem)})
        return
    if any(count >= GUESSES for count in counts.values()):
        raise TooManyTries(
            "Too many invite codes were wrong. Wait a quarter of an hour and try again.",
            retry_after_s=WINDOW_S,
        )


def _count(keys: list[str]) -> None:
    try:
        for key in keys:
            cache.add(key, 0, WINDOW_S)
            cache.incr(key)
    except (RedisError, ValueError) as problem:
        log.warning("invite codes can't be counted", extra={"problem": str(problem)})
