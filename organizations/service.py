"""Service tokens: how programs act for an organization when no person stands behind them."""

from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from accounts.errors import Conflict, Invalid, NotFound
from accounts.models import Scope
from organizations.audit import record
from organizations.models import Membership, Organization, ServiceToken

MOST = 100  # of one organization
MOST_DAYS = 3650
_objects: dict[str, Callable[[Organization, UUID], str]] = {}


def register_object(kind: str, name_of: Callable[[Organization, UUID], str]) -> None:
    """Let tokens be made for one object of a kind; ``name_of`` is "" where there is none such."""
    _objects[kind] = name_of


@transaction.atomic
def make(
    by: Membership,
    *,
    name: str,
    actions: str = ServiceToken.Actions.PREDICT,
    model: UUID | None = None,
    deployment: UUID | None = None,
    expires_in_days: int | None = 365,
) -> tuple[ServiceToken, str]:
    """A token and its secret, which nobody can look up again.

    It may be for one model or one deployment alone. Raises Invalid without a name, for odd days,
    for an object that isn't there, and for one with other actions than to predict: they are about
    more than that object.
    """
    name = " ".join(name.split())[:80]
    if not name or not name.isprintable():
        raise Invalid("Give the token a name.", errors={"name": ["What is it for?"]})
    if expires_in_days is not None and not 1 <= expires_in_days <= MOST_DAYS:
        sentence = f"Choose 1 to {MOST_DAYS:,} days, or leave it empty: it never expires."
        raise Invalid(sentence, errors={"expires_in_days": [sentence]})
    only_kind, only_id, only_name = _only(by, actions, model=model, deployment=deployment)
    if ServiceToken.objects.of(by.organization).filter(revoked_at=None).count() >= MOST:
        raise Conflict(f"There are {MOST} service tokens already: revoke what nobody uses.")
    expires = timezone.now() + timedelta(days=expires_in_days) if expires_in_days else None
    token, secret = ServiceToken.issue(
        organization=by.organization,
        name=name,
        actions=actions,
        scope=Scope.READ if actions == ServiceToken.Actions.READ else Scope.WRITE,
        only_kind=only_kind,
        only_id=only_id,
        only_name=only_name[:160],
        expires_at=expires,
        made_by=by.name,
    )
    told = {"actions": str(actions), only_kind or "only": only_name or None, "expires_at": expires}
    record("service-token.made", token, by=by, changes=told)
    return token, secret


def _only(by: Membership, actions: str, **named: UUID | None) -> tuple[str, UUID | None, str]:
    """The kind, id and name of the one object that is named; "", None, "" without any."""
    given = [(kind, key) for kind, key in named.items() if key is not None]
    if not given:
        return "", None, ""
    kind, key = given[-1]
    if len(given) > 1:
        sentence = "A token is for one model or for one deployment, not for both."
        raise Invalid(sentence, errors={kind: [sentence]})
    if actions != ServiceToken.Actions.PREDICT:
        sentence = f"A token for one {kind} can only predict."
        raise Invalid(sentence, errors={"actions": [sentence]})
    name = _objects[kind](by.organization, key)
    if not name:
        sentence = f"There is no such {kind} in this organization."
        raise Invalid(sentence, errors={kind: [sentence]})
    return kind, key, name


def revoke(by: Membership, token: UUID) -> None:
    """End a token at once. Raises NotFound; doing it again changes nothing."""
    found = ServiceToken.objects.of(by.organization).filter(pk=token).first()
    if found is None:
        raise NotFound("There is no such service token.")
    revoke_token(found)


@transaction.atomic
def revoke_token(token: ServiceToken) -> None:
    """The same, for an operator too."""
    open_ = ServiceToken.objects.filter(pk=token.pk, revoked_at=None)
    if open_.update(revoked_at=timezone.now()):
        record("service-token.revoked", token)
