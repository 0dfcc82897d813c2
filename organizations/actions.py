"""What people do with organizations."""

from urllib.parse import urlsplit

from django.conf import settings
from django.db import connection, transaction

from accounts.errors import FlowError, Invalid
from accounts.models import User
from organizations import rls
from organizations.models import Membership, Organization, Role


class SignupClosed(FlowError):
    code = "signup-closed"
    status = 403


def awaits_operator() -> bool:
    """Whether the next account becomes the operator's: it is the first, and nobody else can come.

    Only an installation that is reached at a loopback address is set up from its pages; on any
    other the first stranger would own it, so there `manage.py createsuperuser` makes the operator.
    """
    host = urlsplit(settings.PUBLIC_URL).hostname
    return host in {"localhost", "127.0.0.1", "::1"} and not User.objects.exists()


@transaction.atomic
def set_up(*, username: str, email: str, password: str) -> User:
    """Make the first account: the operator's. Raises SignupClosed when it is not the first."""
    with connection.cursor() as cursor:  # of two at once, one comes second
        cursor.execute("LOCK TABLE accounts_user IN SHARE ROW EXCLUSIVE MODE")
    if not awaits_operator():
        raise SignupClosed("This installation has its operator already: sign in.")
    user = register(username=username, email=email, password=password, allowed=True)
    user.is_staff = user.is_superuser = True
    user.save(update_fields=["is_staff", "is_superuser"])
    return user


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
    with rls.platform():  # whoever asks may be at work for another one
        organization = Organization.objects.create(name=name)
        return Membership.objects.create(organization=organization, user=by, role=Role.ADMIN)
