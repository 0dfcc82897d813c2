"""What people do with organizations."""

from django.db import transaction

from accounts.errors import FlowError, Invalid
from accounts.models import User
from organizations.models import Membership, Organization, Role


class SignupClosed(FlowError):
    code = "signup-closed"
    status = 403


@transaction.atomic
def register(*, username: str, email: str, password: str, allowed: bool) -> User:
    """Make an account and its personal organization, of which the person is the admin.

    ``password`` has passed Django's validators already. Raises SignupClosed unless ``allowed``,
    Invalid when the name or the address is taken.
    """
    if not allowed:
        raise SignupClosed("This installation takes no sign-ups: ask its operator for an account.")
    errors = {}
    if User.objects.filter(username__iexact=username).exists():
        errors["username"] = ["Somebody has this name already."]
    if User.objects.filter(email__iexact=email).exists():
        errors["email"] = ["There is an account with this address already: sign in instead."]
    if errors:
        raise Invalid(" ".join(m for ms in errors.values() for m in ms), errors=errors)
    user = User.objects.create_user(username=username, email=email, password=password)
    make_organization(user, name=f"{username}'s organization")
    return user


@transaction.atomic
def make_organization(by: User, *, name: str) -> Membership:
    """A new organization with ``by`` as its admin."""
    organization = Organization.objects.create(name=name)
    return Membership.objects.create(organization=organization, user=by, role=Role.ADMIN)
