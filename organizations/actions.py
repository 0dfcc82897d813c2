"""What people do with organizations."""

from urllib.parse import urlsplit
from uuid import UUID

from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from accounts import mail
from accounts.errors import Conflict, FlowError, Invalid, NotFound
from accounts.models import User
from organizations import invites, rls
from organizations.audit import record
from organizations.models import Membership, Organization, Role


class SignupClosed(FlowError):
    code = "signup-closed"
    status = 403


class LastAdmin(Conflict):
    code = "last-admin"


class TooManyOrganizations(Conflict):
    code = "too-many-organizations"


class NotAllowed(FlowError):
    code = "permission-denied"
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
    # Verified: the operator is there before FlowML can send mail.
    user = register(username=username, email=email, password=password, allowed=True, verified=True)
    user.is_staff = user.is_superuser = True
    user.save(update_fields=["is_staff", "is_superuser"])
    return user


@transaction.atomic
def register(
    *,
    username: str,
    email: str,
    password: str,
    allowed: bool,
    verified: bool = False,
    invite_code: str = "",
) -> User:
    """Make an account and its personal organization, of which the person is the admin.

    ``password`` has passed Django's validators already; unless the address is ``verified``, a link
    goes there where addresses have to be. An ``invite_code`` opens an organization, which is then
    the person's first. Raises SignupClosed unless ``allowed``, Invalid when the name or the address
    is taken or the code is no good.
    """
    if not allowed:
        raise SignupClosed("This installation takes no sign-ups: ask its operator for an account.")
    if taken := _taken(username, email):
        raise taken
    try:
        with transaction.atomic():
            user = User.objects.create_user(
                username=username,
                email=email,
                password=password,
                email_verified_at=timezone.now() if verified else None,
            )
    except IntegrityError:  # of two who take the same name at once, one comes second
        raise _taken(username, email) or Conflict("Try again.") from None
    if invite_code:
        try:
            invites.accept(user, invite_code)
        except invites.BadCode as problem:
            raise Invalid(
                problem.detail, code=problem.code, errors={"invite_code": [problem.detail]}
            ) from None
    _make(user, name=f"{username[:100]}'s organization")  # everybody has one, limit or not
    if user.awaits_verification:
        mail.later("verify", str(user.pk), user.email)
    return user


def _taken(username: str, email: str) -> Invalid | None:
    errors = {}
    if User.objects.filter(username__iexact=username).exists():
        errors["username"] = ["Somebody has this name already."]
    if User.objects.filter(email__iexact=email).exists():
        errors["email"] = ["There is an account with this address already: sign in instead."]
    sentence = " ".join(message for messages in errors.values() for message in messages)
    return Invalid(sentence, errors=errors) if errors else None


# --- Organizations and who is in them -------------------------------------------------------------


@transaction.atomic
def make_organization(by: User, *, name: str) -> Membership:
    """A new organization with ``by`` as its admin.

    Each has quotas of its own, so a person makes only so many: raises TooManyOrganizations for an
    admin of MAX_ORGANIZATIONS, those among them that are about to be deleted.
    """
    with rls.platform():
        User.objects.select_for_update(no_key=True).get(pk=by.pk)  # two at once count each other
        has = Membership.objects.filter(user=by, role=Role.ADMIN).count()
    if has >= settings.MAX_ORGANIZATIONS:
        raise TooManyOrganizations(
            f"You are admin of {has} organizations, and one person makes at most "
            f"{settings.MAX_ORGANIZATIONS} here. Leave one, or hand one over. The operator can "
            "raise it."
        )
    return _make(by, name=name)


def _make(by: User, *, name: str) -> Membership:
    with rls.platform():  # whoever asks may be at work for another one
        organization = Organization.objects.create(name=_name(name))
        membership = Membership.objects.create(organization=organization, user=by, role=Role.ADMIN)
    record("organization.created", organization, by=membership)
    return membership


@transaction.atomic
def rename(by: Membership, name: str) -> Organization:
    organization = locked(by.organization)
    before, organization.name = organization.name, _name(name)
    if before != organization.name:
        organization.save(update_fields=["name"])
        told = {"from": before, "to": organization.name}
        record("organization.renamed", organization, by=by, changes=told)
    return organization


def _name(text: str) -> str:
    name = " ".join(text.split())
    if not name or not name.isprintable() or len(name) > 120:
        sentence = "An organization's name has 1 to 120 characters that can be printed."
        raise Invalid(sentence, errors={"name": [sentence]})
    return name


def locked(organization: Organization) -> Organization:
    """The organization with its row locked: who changes members or quotas takes turns."""
    return Organization.objects.select_for_update(no_key=True).get(pk=organization.pk)


def _member(by: Membership, user: UUID) -> Membership:
    members = Membership.objects.filter(organization=by.organization_id)
    # Another admin may have been quicker: what holds is the stored role, not the request's.
    if not members.filter(user=by.user_id, role=Role.ADMIN).exists():
        raise NotAllowed("You are no admin of this organization any more.")
    found = members.select_related("user", "organization").filter(user=user).first()
    if found is None:
        raise NotFound("This person is not a member of the organization.")
    return found


def _keep_an_admin(leaving: Membership, sentence: str) -> None:
    admins = Membership.objects.filter(
        organization=leaving.organization_id, role=Role.ADMIN, user__is_active=True
    )
    if leaving.role == Role.ADMIN and not admins.exclude(pk=leaving.pk).exists():
        raise LastAdmin(sentence)


@transaction.atomic
def change_role(by: Membership, user: UUID, role: int) -> Membership:
    """Give a member another role. Raises LastAdmin rather than leave nobody in charge."""
    locked(by.organization)
    member = _member(by, user)
    before, member.role = Role(member.role), Role(role)
    if before == member.role:
        return member
    if member.role < Role.ADMIN:
        stands = Membership(pk=member.pk, organization_id=member.organization_id, role=before)
        _keep_an_admin(
            stands, "This is the last admin: make somebody else one first, then change this role."
        )
    member.save(update_fields=["role"])
    told = {"from": before.label, "to": Role(member.role).label}
    record("member.role-changed", member.user, organization=by.organization, by=by, changes=told)
    if member.role < before:  # they may know a code that grants what was taken from them
        invites.forget_known(by)
    return member


@transaction.atomic
def remove_member(by: Membership, user: UUID) -> None:
    """Take somebody out. The invite code goes too: they may know it. Raises LastAdmin."""
    locked(by.organization)
    member = _member(by, user)
    _keep_an_admin(member, "This is the last admin: make somebody else one first.")
    member.delete()
    told = {"role": Role(member.role).label}
    record("member.removed", member.user, organization=by.organization, by=by, changes=told)
    invites.forget_known(by)


@transaction.atomic
def leave(by: Membership) -> None:
    """Leave the organization. Raises LastAdmin: it would be nobody's."""
    locked(by.organization)
    member = Membership.objects.select_related("user").filter(pk=by.pk).first()
    if member is None:
        raise NotFound("You are not a member of this organization any more.")
    _keep_an_admin(
        member,
        "You are its last admin: hand the organization over to another member first, or delete it.",
    )
    told = {"role": Role(member.role).label}
    record("member.left", member.user, organization=by.organization, by=by, changes=told)
    member.delete()
    if member.role == Role.ADMIN:  # who knows the code, and could come back by it
        invites.forget_known(by)


@transaction.atomic
def transfer(by: Membership, user: UUID) -> Membership:
    """Hand the organization over: another member becomes admin, and ``by`` developer."""
    locked(by.organization)
    member = _member(by, user)
    if member.user_id == by.user_id:
        raise Invalid("Choose another member.", errors={"user": ["This is you."]})
    if not member.user.is_active:
        raise Conflict("This account is switched off: choose another member.")
    Membership.objects.filter(pk=member.pk).update(role=Role.ADMIN)
    Membership.objects.filter(organization=by.organization_id, user=by.user_id).update(
        role=Role.DEVELOPER
    )
    told = {"from": by.user.get_username(), "to": member.user.get_username()}
    record("organization.transferred", by.organization, by=by, changes=told)
    invites.forget_known(by)
    member.role = Role.ADMIN
    return member
