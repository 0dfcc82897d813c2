import uuid
from typing import ClassVar, Self, TypeVar

from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.db import models

from accounts.models import User

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
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return self.name

    @property
    def job_limit(self) -> int:
        """Training jobs that may wait or run at once."""
        return self.max_concurrent_jobs or settings.MAX_CONCURRENT_JOBS


class Membership(models.Model):
    organization = models.ForeignKey(Organization, models.CASCADE, related_name="memberships")
    user = models.ForeignKey(User, models.CASCADE, related_name="memberships")
    role = models.PositiveSmallIntegerField(choices=Role, default=Role.VIEWER)
    joined_at = models.DateTimeField(auto_now_add=True)
    cap = Role.ADMIN  # of one request: the most that the credential it came with may do

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["organization", "user"], name="membership_unique")
        ]

    def __str__(self) -> str:
        return f"{self.user} in {self.organization}"

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
