"""Short jobs of the control process: messages to people, and what has expired."""

import logging
from importlib import import_module

from celery import shared_task
from django.conf import settings
from django.utils import timezone

from accounts import limits, mail
from accounts.models import TokenFamily, User

log = logging.getLogger(__name__)


@shared_task(name="accounts.tasks.reset")
def reset(email: str) -> None:
    """Send a link for a new password, if there is such a person. Who asked hears nothing of it."""
    user = User.objects.filter(email__iexact=email, is_active=True).first()
    if user is not None:
        mail.send_reset(user)


@shared_task(name="accounts.tasks.verify_again")
def verify_again(email: str) -> None:
    """Send the link that confirms an address again, if somebody waits for it."""
    waiting = User.objects.filter(email__iexact=email, is_active=True, email_verified_at=None)
    if (user := waiting.first()) is not None:
        mail.send_verification(user, user.email)


@shared_task(name="accounts.tasks.verify")
def verify(user: str, email: str) -> None:
    mail.send_verification(User.objects.get(pk=user), email)


@shared_task(name="accounts.tasks.notice")
def notice(user: str, to: str, what: str) -> None:
    if limits.may_notify(to):
        mail.send_notice(User.objects.get(pk=user), to, what)
    else:
        log.warning("a notice was not sent: there were many", extra={"user": user, "what": what})


@shared_task(name="accounts.tasks.tidy")
def tidy() -> None:
    """Delete sessions and sign-ins that nobody can go on with."""
    import_module(settings.SESSION_ENGINE).SessionStore.clear_expired()
    TokenFamily.objects.filter(expires_at__lt=timezone.now()).delete()
