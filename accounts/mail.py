"""Messages to people. Written in the request, sent by control: SMTP takes its time, and the time
an answer takes must not tell whether somebody has an account."""

import logging
from urllib.parse import urlencode

from celery import current_app
from django.conf import settings
from django.contrib.auth.tokens import default_token_generator
from django.core import signing
from django.core.mail import send_mail
from django.db import transaction
from django.urls import reverse
from django.utils.crypto import salted_hmac
from django.utils.encoding import force_bytes
from django.utils.http import urlsafe_base64_encode

from accounts.errors import Unavailable
from accounts.models import User

SALT = "accounts.email"
VERIFY_S = 3 * 24 * 3600  # how long a link that shows an address to be one's own is good for
log = logging.getLogger(__name__)

NOTICES = {  # subject, text
    "password-changed": (
        "Your password was changed",
        """The password of your FlowML account {name} was changed.
Every other sign-in was ended. Look through your API tokens under {tokens}.""",
    ),
    "email-changed": (
        "Your e-mail address was changed",
        """Your FlowML account {name} has another e-mail address now.
Messages no longer come here.""",
    ),
    "second-factor-on": (
        "A second factor was turned on",
        "Signing in to your FlowML account {name} takes a code of your authenticator now.",
    ),
    "second-factor-off": (
        "The second factor was turned off",
        "Signing in to your FlowML account {name} takes the password alone now.",
    ),
    "recovery-code-used": (
        "A recovery code was used",
        "Somebody signed in to your FlowML account {name} with a recovery code.",
    ),
}
NOT_YOU = "If that wasn't you, set a new password at once: {reset}"


def later(what: str, *arguments: str) -> None:
    """Have control call ``accounts.tasks.<what>`` once this transaction is through.

    Raises Unavailable when the broker doesn't take it.
    """
    transaction.on_commit(lambda: _enqueue(what, *arguments))


def _enqueue(what: str, *arguments: str) -> None:
    try:
        current_app.send_task(
            f"accounts.tasks.{what}", args=arguments, queue="control", retry=False
        )
    except current_app.connection_for_write().connection_errors as problem:
        log.warning("a message can't be sent", extra={"problem": str(problem)})
        raise Unavailable("Messages can't be sent right now. Try again in a minute.") from None


def link(name: str, **query: str) -> str:
    """An address of ours as it stands in a message: never by the Host of somebody's request.

    What is secret stands in the query: logs have the path alone.
    """
    return f"{settings.PUBLIC_URL}{reverse(name)}" + (f"?{urlencode(query)}" if query else "")


def address(path: str) -> str:
    """The same for a path."""
    return f"{settings.PUBLIC_URL}{path}"


def send_text(to: str, subject: str, text: str) -> None:
    """A message that an app on the right has written. Control's: it takes its time."""
    _send(to, " ".join(subject.split())[:200], text)


def send_reset(user: User) -> None:
    uid = urlsafe_base64_encode(force_bytes(user.pk))
    address = link("accounts:reset", uid=uid, token=default_token_generator.make_token(user))
    minutes = settings.PASSWORD_RESET_TIMEOUT // 60
    _send(
        user.email,
        "Set a new password",
        f"Somebody, you we hope, asked for a new password of the FlowML account "
        f"{user.get_username()}. Set it here, within {minutes} minutes:\n\n{address}\n\n"
        "If it wasn't you, do nothing: the old one stays.",
    )


def send_verification(user: User, email: str) -> None:
    """A link to show that ``email`` is the person's own; it becomes theirs if it wasn't."""
    _send(
        email,
        "Confirm your e-mail address",
        f"Confirm that this is the address of the FlowML account {user.get_username()}:\n\n"
        f"{link('accounts:verify', token=verification(user, email))}\n\n"
        "The link is good for three days. "
        "If you know nothing of this, do nothing.",
    )


def send_notice(user: User, to: str, what: str) -> None:
    """Tell somebody what was done to the account: the first that a burglary is noticed by."""
    subject, text = NOTICES[what]
    text = text.format(name=user.get_username(), tokens=link("accounts:tokens"))
    _send(to, subject, f"{text}\n\n{NOT_YOU.format(reset=link('accounts:forgotten'))}")


def verification(user: User, email: str) -> str:
    """What a link of ``send_verification`` carries. It is good once: it names the state before."""
    return signing.dumps([str(user.pk), email, _state(user)], salt=SALT, compress=True)


def read_verification(token: str) -> tuple[User, str] | None:
    """Who and which address; None for a link that is forged, too old or used."""
    try:
        pk, email, state = signing.loads(token, salt=SALT, max_age=VERIFY_S)
    except (signing.BadSignature, ValueError):
        return None
    user = User.objects.filter(pk=pk, is_active=True).first()
    return (user, email) if user is not None and _state(user) == state else None


def _state(user: User) -> list[str]:
    """The password is part of it: whoever changes theirs voids the links that another asked for."""
    password = salted_hmac(SALT, user.password).hexdigest()[:20]
    verified = user.email_verified_at and user.email_verified_at.timestamp()
    return [user.email, str(verified), password]


def _send(to: str, subject: str, text: str) -> None:
    send_mail(f"FlowML: {subject}", f"{text}\n\n{settings.PUBLIC_URL}\n", None, [to])
