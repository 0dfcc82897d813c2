import base64
import hashlib
import uuid
from typing import ClassVar, Self, TypeVar

from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.db import models
from django.utils import timezone
from django.utils.crypto import salted_hmac

from accounts.models import AbstractToken, User

M = TypeVar("M", bound=models.Model)


class Role(models.IntegerChoices):
    """What a member may do; each role includes those below it."""

    VIEWER = 10, "viewer"  # reads
    DEVELOPER = 20, "developer"  # uploads, trains, predicts, deploys
    ADMIN = 30, "admin"  # members, quotas, tokens, nodes


class Organization(models.Model):
    """A tenant. Nothing that belongs to one is ever seen by another."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=120)
    max_concurrent_jobs = models.PositiveIntegerField(
        null=True, blank=True, help_text="Empty: the installation's MAX_CONCURRENT_JOBS."
    )
    max_queued_jobs = models.PositiveIntegerField(
        null=True, blank=True, help_text="Trainings that wait. Empty: MAX_QUEUED_JOBS."
    )
    max_storage_bytes = models.PositiveBigIntegerField(
        null=True, blank=True, help_text="Of all files together. Empty: MAX_STORAGE_GB."
    )
    max_upload_bytes = models.PositiveBigIntegerField(
        null=True, blank=True, help_text="Of one file. Empty: MAX_UPLOAD_SIZE_MB, the most."
    )
    max_cpu_hours = models.PositiveIntegerField(
        null=True, blank=True, help_text="A month. Empty: MAX_CPU_HOURS."
    )
    max_gpu_hours = models.PositiveIntegerField(
        null=True, blank=True, help_text="A month. Empty: MAX_GPU_HOURS."
    )
    max_deployments = models.PositiveIntegerField(
        null=True, blank=True, help_text="Empty: MAX_DEPLOYMENTS."
    )
    delete_after = models.DateTimeField(
        null=True,
        blank=True,
        db_index=True,
        help_text="Its deletion was asked for: closed till then.",
    )
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name

    @property
    def job_limit(self) -> int:
        """Training jobs that may wait or run at once."""
        own = self.max_concurrent_jobs
        return settings.MAX_CONCURRENT_JOBS if own is None else own


class Membership(models.Model):
    organization = models.ForeignKey(Organization, models.CASCADE, related_name="memberships")
    user = models.ForeignKey(User, models.CASCADE, related_name="memberships")
    role = models.PositiveSmallIntegerField(choices=Role, default=Role.VIEWER)
    joined_at = models.DateTimeField(auto_now_add=True)
    joined = False  # just now, by an invite: see invites.accept
    cap = Role.ADMIN  # of one request: the most that the credential it came with may do
    token: "ServiceToken | None" = None  # of one request: it stands in for a person

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["organization", "user"], name="membership_unique")
        ]

    def __str__(self) -> str:
        return f"{self.user} in {self.organization}"

    @property
    def author(self) -> User | None:
        """Who is to stand with what is made: nobody, when a service token made it."""
        return None if self.token else self.user

    @property
    def name(self) -> str:
        return self.token.name if self.token else self.user.get_username()

    def may(self, role: int) -> bool:
        return min(self.role, self.cap) >= role


class OrgQuerySet(models.QuerySet[M]):
    """Rows of tenants. Every read outside control and admin starts with one of these two."""

    def of(self, organization: Organization) -> Self:
        return self.filter(organization=organization)

    def visible_to(self, user: User | AnonymousUser) -> Self:
        """Rows of the organizations that ``user`` belongs to."""
        if not user.is_authenticated:
            return self.none()
        return self.filter(organization__memberships__user=user)


class OrgOwned(models.Model):
    """Base of everything that belongs to an organization."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    organization = models.ForeignKey(Organization, models.CASCADE, related_name="%(class)ss")
    created_at = models.DateTimeField(auto_now_add=True)

    objects = OrgQuerySet.as_manager()

    class Meta:
        abstract = True


# Crockford's base 32: no letter that could be read as another, or as a digit.
_LETTERS = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", "0123456789ABCDEFGHJKMNPQRSTVWXYZ")
_MISREAD = str.maketrans("OIL", "011")


class Invite(OrgOwned):
    """A code by which people join. An organization has at most one that isn't withdrawn.

    The code is made from the row's id and SECRET_KEY: an admin can look at it again, yet whoever
    reads the table can't use it. Found it is by its hash.
    """

    role = models.PositiveSmallIntegerField(choices=Role, default=Role.VIEWER)
    expires_at = models.DateTimeField(null=True, blank=True)
    max_uses = models.PositiveIntegerField(null=True, blank=True)
    uses = models.PositiveIntegerField(default=0)
    withdrawn_at = models.DateTimeField(null=True, blank=True)
    code_hash = models.CharField(max_length=64, unique=True, editable=False)
    created_by = models.ForeignKey(User, models.SET_NULL, null=True, blank=True, related_name="+")

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["organization"],
                condition=models.Q(withdrawn_at=None),
                name="invite_one_is_open",
            ),
            models.CheckConstraint(
                condition=models.Q(max_uses=None) | models.Q(uses__lte=models.F("max_uses")),
                name="invite_not_used_too_often",
            ),
        ]

    def __str__(self) -> str:
        return f"invite to {self.organization_id}"

    def save(self, *args: object, **kwargs: object) -> None:
        self.code_hash = self.code_hash or self.hash_of(self.code)
        super().save(*args, **kwargs)  # type: ignore[arg-type]

    @property
    def code(self) -> str:
        """Sixteen letters and digits in fours: 80 bits."""
        key = salted_hmac("organizations.invite", str(self.pk), algorithm="sha256").digest()
        text = base64.b32encode(key[:10]).decode().translate(_LETTERS)
        return "-".join(text[i : i + 4] for i in range(0, 16, 4))

    @staticmethod
    def hash_of(code: str) -> str:
        """The hash of a code, however it was typed: case, spaces and hyphens don't matter."""
        typed = "".join(c for c in code.upper() if c.isascii() and c.isalnum())
        return hashlib.sha256(typed.translate(_MISREAD).encode()).hexdigest()

    @property
    def problem(self) -> str:
        """Why nobody can join by it any more: "withdrawn", "expired", "used-up"; else ""."""
        if self.withdrawn_at is not None:
            return "withdrawn"
        if self.expires_at is not None and self.expires_at <= timezone.now():
            return "expired"
        return "used-up" if self.max_uses is not None and self.uses >= self.max_uses else ""


class ServiceToken(AbstractToken, OrgOwned):
    """A program's way in that is no person's: it outlives whoever made it.

    It does one set of actions, and only with one object where it names one.
    """

    KIND = "svc"

    class Actions(models.TextChoices):
        PREDICT = "predict"  # ask models for predictions, and nothing else
        READ = "read"  # what a viewer does
        WRITE = "write"  # what a developer does

    ROLES: ClassVar = {
        Actions.PREDICT: Role.DEVELOPER,
        Actions.READ: Role.VIEWER,
        Actions.WRITE: Role.DEVELOPER,
    }

    organization = models.ForeignKey(Organization, models.CASCADE, related_name="service_tokens")
    actions = models.CharField(max_length=8, choices=Actions)
    only_kind = models.CharField(max_length=20, blank=True, help_text='For example "model".')
    only_id = models.UUIDField(null=True, blank=True, help_text="The one object it works with.")
    only_name = models.CharField(max_length=160, blank=True)
    made_by = models.CharField(max_length=160, blank=True, help_text="A name, as it was then.")

    class Meta:
        ordering: ClassVar = ["-created_at", "id"]

    def __str__(self) -> str:
        return f"service token {self.name} (…{self.hint})"

    @classmethod
    def find(cls, digest: str) -> "ServiceToken | None":  # type: ignore[override]
        return cls.objects.select_related("organization").filter(digest=digest).first()

    @property
    def principal(self) -> "ServiceAccount":
        return ServiceAccount(self)

    @property
    def role(self) -> Role:
        """The most that a member with its actions may do."""
        return self.ROLES[self.Actions(self.actions)]

    def allows(self, serves: str | None, key: object) -> bool:
        """Whether it may ask a view that predicts with the object ``key`` of the kind ``serves``.

        ``serves`` is None for views that are about anything else.
        """
        if self.actions != self.Actions.PREDICT and not self.only_id:
            return True
        if serves is None:
            return False
        # "of-model": a list or a result that the view itself narrows down to the model.
        return (
            not self.only_id
            or serves == f"of-{self.only_kind}"
            or (serves == self.only_kind and str(key) == str(self.only_id))
        )


class ServiceAccount:
    """Who a request with a service token comes from: nobody who could sign in."""

    is_authenticated, is_active = True, True
    is_anonymous = is_staff = is_superuser = False
    audit_kind = "service"

    def __init__(self, token: ServiceToken) -> None:
        self.token = token
        self.pk = self.id = token.pk

    def get_username(self) -> str:
        return self.token.name

    __str__ = get_username


class AuditEntry(OrgOwned):
    """Something that somebody did. Appended by ``audit.record``; the database refuses changes.

    Names stand here as they were then, and ids without a foreign key, so that an entry outlives
    whom and what it tells of. Without an organization it is the installation's own.
    """

    class Kind(models.TextChoices):
        PERSON = "person"
        OPERATOR = "operator"  # staff, in the console
        SERVICE = "service"  # a service token
        SYSTEM = "system"  # FlowML itself

    organization = models.ForeignKey(  # type: ignore[assignment]
        Organization, models.CASCADE, null=True, blank=True, related_name="audit_entries"
    )
    actor_kind = models.CharField(max_length=12, choices=Kind)
    actor_id = models.UUIDField(null=True, blank=True)
    actor = models.CharField(max_length=160, blank=True, help_text="A name, as it was then.")
    via = models.CharField(max_length=120, blank=True, help_text="The token that was used, if any.")
    verb = models.CharField(max_length=60, help_text="For example dataset.deleted.")
    object_kind = models.CharField(max_length=40, blank=True)
    object_id = models.CharField(max_length=64, blank=True)
    object_name = models.CharField(max_length=200, blank=True)
    changes = models.JSONField(default=dict, blank=True)
    address = models.GenericIPAddressField(null=True, blank=True)
    request_id = models.CharField(max_length=64, blank=True)

    class Meta:
        ordering: ClassVar = ["-created_at", "id"]
        verbose_name_plural = "audit entries"
        indexes: ClassVar = [
            models.Index(fields=["organization", "-created_at"], name="audit_newest"),
            models.Index(fields=["organization", "verb", "-created_at"], name="audit_verb"),
            models.Index(fields=["-created_at"], name="audit_all"),
        ]

    def __str__(self) -> str:
        return f"{self.actor} {self.verb} {self.object_name}"

    @property
    def words(self) -> str:
        """The verb for people: "Data set deleted"."""
        text = self.verb.replace(".", " ").replace("-", " ").replace("dataset", "data set")
        return text[:1].upper() + text[1:]


class UsageEntry(OrgOwned):
    """What one attempt of a task really used. One row per attempt, however often it is reported.

    Or what a replica of a deployment held on one day: that row grows (usage.note_held).
    """

    task = models.UUIDField()
    attempt = models.PositiveSmallIntegerField()
    kind = models.CharField(max_length=40)
    cpu_s = models.FloatField(default=0)
    gpu_s = models.FloatField(default=0, help_text="Devices times seconds.")
    wall_s = models.FloatField(default=0)
    ended_at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["-ended_at"]
        verbose_name_plural = "usage entries"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["task", "attempt"], name="usage_once_per_attempt")
        ]
        indexes: ClassVar = [models.Index(fields=["organization", "ended_at"], name="usage_when")]

    def __str__(self) -> str:
        return f"{self.kind} {self.task} attempt {self.attempt}"


class UsageMonth(OrgOwned):
    """The sum of an organization's usage entries of a month, and the most that it stored then."""

    month = models.DateField(help_text="Its first day, UTC.")
    cpu_s = models.FloatField(default=0)
    gpu_s = models.FloatField(default=0)
    tasks = models.PositiveIntegerField(default=0)
    storage_bytes = models.PositiveBigIntegerField(default=0, help_text="The most on any day.")

    class Meta:
        ordering: ClassVar = ["-month"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["organization", "month"], name="usage_month_unique")
        ]

    def __str__(self) -> str:
        return f"{self.organization_id} {self.month:%Y-%m}"


class OrganizationExport(OrgOwned):
    """A zip of all that an organization has: asked for, made by control, kept for some days."""

    class State(models.TextChoices):
        QUEUED = "queued"
        RUNNING = "running"
        READY = "ready"
        FAILED = "failed"
        EXPIRED = "expired"

    state = models.CharField(max_length=8, choices=State, default=State.QUEUED)
    asked_by = models.CharField(max_length=160, blank=True, help_text="A name, as it was then.")
    file = models.FileField(max_length=300, blank=True)
    size = models.PositiveBigIntegerField(default=0)
    error = models.TextField(blank=True)
    tries = models.PositiveSmallIntegerField(default=0)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["-created_at", "id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["organization"],
                condition=models.Q(state__in=["queued", "running"]),
                name="export_one_at_a_time",
            )
        ]

    def __str__(self) -> str:
        return f"export {self.created_at:%Y-%m-%d %H:%M}"
