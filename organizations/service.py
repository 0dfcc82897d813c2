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
    expires_in_days: int | None = 365,
) -> tuple[ServiceToken, str]:
    """A token and its secret, which nobody can look up again.

    Raises Invalid without a name, for odd days, for a model that isn't there, and for one with
    other actions than to predict: they are about more than a model.
    """
    name, only_name = " ".join(name.split())[:80], ""
    if not name or not name.isprintable():
        raise Invalid("Give the token a name.", errors={"name": ["What is it for?"]})
    if expires_in_days is not None and not 1 <= expires_in_days <= MOST_DAYS:
        sentence = f"Choose 1 to {MOST_DAYS:,} days, or leave it empty: it never expires."
        raise Invalid(sentence, errors={"expires_in_days": [sentence]})
    if model is not None:
        if actions != ServiceToken.Actions.PREDICT:
            sentence = "A token for one model can only predict."
            raise Invalid(sentence, errors={"actions": [sentence]})
        only_name = _objects["model"](by.organization, model)
        if not only_name:
            sentence = "There is no such model in this organization."
            raise Invalid(sentence, errors={"model": [sentence]})
    if ServiceToken.objects.of(by.organization).filter(revoked_at=None).count() >= MOST:
        raise Conflict(f"There are {MOST} service tokens already: revoke what nobody uses.")
    expires = timezone.now() + timedelta(days=expires_in_days) if expires_in_days else None
    token, secret = ServiceToken.issue(
        organization=by.organization,
        name=name,
        actions=actions,
        scope=Scope.READ if actions == ServiceToken.Actions.READ else Scope.WRITE,
        only_kind="model" if model else "",
        only_id=model,
        only_name=only_name[:160],
        expires_at=expires,
        made_by=by.name,
    )
    told = {"actions": str(actions), "model": only_name or None, "expires_at": expires}
    record("service-token.made", token, by=by, changes=told)
    return token, secret


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
