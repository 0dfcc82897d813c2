import uuid
from datetime import timedelta
from typing import Any, ClassVar, Self

from django.contrib.auth.models import AbstractUser
from django.db import models
from django.db.models.functions import Lower
from django.utils import timezone

from accounts import tokens

SEEN_EVERY = timedelta(minutes=1)  # how often the use of a token is written down, at most


class User(AbstractUser):
    """A person who can sign in. What they may do, their memberships say; staff are operators."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    email = models.EmailField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(Lower("email"), name="user_email_unique"),
            models.UniqueConstraint(Lower("username"), name="user_username_unique"),
        ]


class Scope(models.TextChoices):
    """How much of what its owner may do a token may do; each includes those before it."""

    READ = "read", "Read"  # look at everything
    WRITE = "write", "Write"  # upload, train, predict, deploy
    ADMIN = "admin", "Admin"  # everything, the account itself included

    def includes(self, other: str) -> bool:
        order = list(Scope)
        return order.index(self) >= order.index(Scope(other))


class AbstractToken(models.Model):
    """A secret that a program shows instead of a person's password. Only its digest is kept."""

    KIND: ClassVar[str]

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=80)
    scope = models.CharField(max_length=8, choices=Scope, default=Scope.READ)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    hint = models.CharField(max_length=4, editable=False)  # the last characters, to tell it by
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_used_from = models.GenericIPAddressField(null=True, blank=True, editable=False)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return f"{self.name} (…{self.hint})"

    @classmethod
    def issue(cls, **fields: Any) -> tuple[Self, str]:
        """A new token and its secret, which nobody can look up again."""
        secret = tokens.new(cls.KIND)
        digest = tokens.digest(secret)
        return cls._default_manager.create(digest=digest, hint=secret[-4:], **fields), secret

    @classmethod
    def find(cls, digest: str) -> Self | None:
        """The token with this digest and its principal, in one query."""
        raise NotImplementedError

    @property
    def principal(self) -> Any:
        """In whose name a request with this token is made: it becomes ``request.user``."""
        raise NotImplementedError

    @property
    def has_expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= timezone.now()

    @property
    def is_usable(self) -> bool:
        return self.revoked_at is None and not self.has_expired

    def touch(self, address: str | None) -> None:
        """Note that the token was used, at most once a minute."""
        now = timezone.now()
        if self.last_used_at is None or now - self.last_used_at >= SEEN_EVERY:
            self.last_used_at, self.last_used_from = now, address or None
            type(self)._default_manager.filter(pk=self.pk).update(
                last_used_at=now, last_used_from=self.last_used_from
            )


class PersonalToken(AbstractToken):
    """A person's own: it acts for them in every organization they belong to, up to its scope."""

    KIND = "pat"

    user = models.ForeignKey(User, models.CASCADE, related_name="api_tokens")

    @classmethod
    def find(cls, digest: str) -> Self | None:
        return cls._default_manager.select_related("user").filter(digest=digest).first()

    @property
    def principal(self) -> User:
        return self.user
