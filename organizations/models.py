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

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["organization", "user"], name="membership_unique")
        ]

    def __str__(self) -> str:
        return f"{self.user} in {self.organization}"

    def may(self, role: int) -> bool:
        return self.role >= role


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
