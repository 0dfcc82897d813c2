import uuid
from datetime import timedelta
from typing import Any, ClassVar, Self

from django.conf import settings
from django.contrib.auth.models import AbstractUser
from django.contrib.sessions.base_session import AbstractBaseSession
from django.db import models
from django.db.models.functions import Lower
from django.utils import timezone

from accounts import devices, tokens

SEEN_EVERY = timedelta(minutes=1)  # how often the use of a token is written down, at most
BCRYPT = ("$2a$", "$2b$", "$2y$")


class User(AbstractUser):
    """A person who can sign in. What they may do, their memberships say; staff are operators."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    email = models.EmailField()
    email_verified_at = models.DateTimeField(null=True, blank=True, editable=False)
    mail_after_min = models.PositiveSmallIntegerField(
        "mail when a training ends",
        null=True,
        blank=True,
        default=10,
        help_text="One that took at least so many minutes. Empty: never.",
    )

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(Lower("email"), name="user_email_unique"),
            models.UniqueConstraint(Lower("username"), name="user_username_unique"),
        ]

    @property
    def awaits_verification(self) -> bool:
        """Whether the person must show first that the e-mail address is theirs."""
        return bool(settings.REQUIRE_VERIFIED_EMAIL) and self.email_verified_at is None

    def check_password(self, raw_password: str | None) -> bool:
        """As Django does it. A hash of plain bcrypt, from another program's table, will do."""
        if self.password.startswith(BCRYPT):
            self.password = f"bcrypt${self.password}"
        return super().check_password(raw_password)


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
    def find(cls, digest: str) -> "PersonalToken | None":
        return PersonalToken.objects.select_related("user").filter(digest=digest).first()

    @property
    def principal(self) -> User:
        return self.user


class SignIn(models.Model):
    """One place where a person is signed in: a browser, or a program with a refresh token."""

    device = models.CharField(max_length=200, blank=True, editable=False)  # as it calls itself
    address = models.GenericIPAddressField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    last_seen_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        abstract = True

    @property
    def device_name(self) -> str:
        return devices.name_of(self.device)


class BrowserSession(SignIn, AbstractBaseSession):
    """Django's session, with whose it is and where it is used. Who deletes it signs it out."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    session_key = models.CharField(
        max_length=40, unique=True, editable=False
    )  # what a cookie holds
    user = models.ForeignKey(
        User, models.CASCADE, null=True, editable=False, related_name="browser_sessions"
    )

    def __str__(self) -> str:
        return f"{self.user or 'nobody yet'}: {self.device_name}"

    @classmethod
    def get_session_store_class(cls) -> Any:
        from accounts.sessions import SessionStore

        return SessionStore


class TokenFamily(SignIn):
    """A sign-in by the API: every access and refresh token that stems from it names it.

    Only the refresh token ``jti`` is good, and only once: it is then replaced by the next. An
    older one that comes back has been stolen, or its successor has, so the family ends.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(User, models.CASCADE, editable=False, related_name="token_families")
    jti = models.CharField(max_length=32, editable=False)
    former_jti = models.CharField(max_length=32, blank=True, editable=False)
    rotated_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField(db_index=True, editable=False)

    class Meta:
        verbose_name_plural = "token families"

    def __str__(self) -> str:
        return f"{self.user}: {self.device_name}"


class RecoveryCode(models.Model):
    """Stands in for a code of the authenticator, once. Kept as a digest: it has 80 random bits."""

    user = models.ForeignKey(User, models.CASCADE, related_name="recovery_codes")
    digest = models.CharField(max_length=64, editable=False)
    used_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["user", "digest"], name="recovery_code_unique")
        ]

    def __str__(self) -> str:
        return f"one of {self.user}'s"
