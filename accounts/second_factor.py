"""A second factor for those who want it: codes of an authenticator (TOTP, RFC 6238).

The device, its codes, and how often one may be tried are django-otp's; a code is good once. Ten
recovery codes stand in for a lost phone, each once.
"""

import base64
import hashlib
import math
import re
import secrets
from typing import Any

import segno
from django.db import transaction
from django.utils import timezone
from django_otp.plugins.otp_totp.models import TOTPDevice

from accounts import mail
from accounts.actions import told
from accounts.errors import Conflict, FlowError, Invalid
from accounts.limits import TooManyTries
from accounts.models import RecoveryCode, User

RECOVERY_CODES = 10


class OtpRequired(FlowError):
    """The password was right, and a code has to come with it."""

    code = "otp-required"
    status = 401


class OtpWrong(FlowError):
    code = "otp-wrong"
    status = 401


def is_on(user: User) -> bool:
    return TOTPDevice.objects.filter(user=user, confirmed=True).exists()


def begin(user: User) -> TOTPDevice:
    """A new authenticator that counts once a code of it was shown. Raises Conflict if one does."""
    with transaction.atomic():
        _lock(user)
        if is_on(user):
            raise Conflict("The second factor is on already. Turn it off to set up another.")
        TOTPDevice.objects.filter(user=user).delete()
        return TOTPDevice.objects.create(user=user, name="Authenticator", confirmed=False)


def pending(user: User) -> TOTPDevice | None:
    """The authenticator that is being set up."""
    return TOTPDevice.objects.filter(user=user, confirmed=False).first()


def setup(device: TOTPDevice) -> dict[str, str]:
    """What an authenticator needs: the secret to type, the address, and a picture of that."""
    picture = segno.make(device.config_url, error="m")
    return {
        "secret": base64.b32encode(device.bin_key).decode().rstrip("="),
        "uri": device.config_url,
        # Attributes only, no style: it may stand in a page under our policy.
        "qr_svg": picture.svg_inline(scale=4, border=4, dark="#000", light="#fff", svgclass="qr"),
    }


def confirm(user: User, code: str, *, request: Any = None) -> list[str]:
    """Turn it on with a first code; the recovery codes. Raises OtpWrong, TooManyTries, Conflict."""
    with transaction.atomic():
        _lock(user)
        device = TOTPDevice.objects.filter(user=user, confirmed=False).first()
        if device is None:
            raise Conflict("Nothing is being set up. Begin again.")
        _refuse_if_too_many(device)
        good = _is_six_digits(code) and device.verify_token(code)
        if good:
            device.confirmed = True
            device.save(update_fields=["confirmed"])
            codes = _new_codes(user)
            told(user, "second-factor-on", request=request)
            mail.later("notice", str(user.pk), user.email, "second-factor-on")
    if not good:
        raise Invalid(WRONG, code="otp-wrong", errors={"code": [WRONG]})
    return codes


def verify(user: User, code: str) -> None:
    """Let a code of the authenticator, or a recovery code, pass once.

    Raises OtpWrong, and TooManyTries with the seconds to wait: twice as many after each failure.
    """
    code = re.sub(r"[\s-]", "", code)
    with transaction.atomic():
        device = (
            TOTPDevice.objects.select_for_update(no_key=True)
            .filter(user=user, confirmed=True)
            .first()
        )
        if device is None:
            return
        _refuse_if_too_many(device)
        if _is_six_digits(code):
            good = device.verify_token(code)
        else:
            good = bool(
                RecoveryCode.objects.filter(
                    user=user, digest=_digest(user, code), used_at=None
                ).update(used_at=timezone.now())
            )
            if good:
                device.throttle_reset()
                mail.later("notice", str(user.pk), user.email, "recovery-code-used")
            else:
                device.throttle_increment()
    if not good:
        raise OtpWrong(WRONG)


WRONG = "This code is not right, or was used before. Wait for the next one and try again."


def turn_off(user: User, *, request: Any = None) -> None:
    """Sign in by password alone again. Whoever calls has seen the password."""
    with transaction.atomic():
        was_on = is_on(user)
        TOTPDevice.objects.filter(user=user).delete()
        RecoveryCode.objects.filter(user=user).delete()
        if was_on:
            told(user, "second-factor-off", request=request)
            mail.later("notice", str(user.pk), user.email, "second-factor-off")


def new_recovery_codes(user: User, *, request: Any = None) -> list[str]:
    """Ten fresh codes; the old ones are void. Raises Conflict while the second factor is off."""
    with transaction.atomic():
        _lock(user)
        if not is_on(user):
            raise Conflict("The second factor is off: it needs no recovery codes.")
        told(user, "recovery-codes-made", request=request)
        return _new_codes(user)


def codes_left(user: User) -> int:
    return RecoveryCode.objects.filter(user=user, used_at=None).count()


def _lock(user: User) -> None:
    User.objects.select_for_update(no_key=True).get(pk=user.pk)


def _is_six_digits(code: str) -> bool:
    return re.fullmatch(r"[0-9]{6}", code) is not None


def _refuse_if_too_many(device: TOTPDevice) -> None:
    allowed, why = device.verify_is_allowed()
    if not allowed:
        left = (why["locked_until"] - timezone.now()).total_seconds()
        wait = max(1, math.ceil(left))
        raise TooManyTries(
            f"Too many codes were wrong. Wait {wait} s and try again.", retry_after_s=wait
        )


def _new_codes(user: User) -> list[str]:
    RecoveryCode.objects.filter(user=user).delete()
    plain = [
        base64.b32encode(secrets.token_bytes(10)).decode().lower() for _ in range(RECOVERY_CODES)
    ]
    RecoveryCode.objects.bulk_create(
        RecoveryCode(user=user, digest=_digest(user, code)) for code in plain
    )
    return ["-".join(code[i : i + 4] for i in range(0, 16, 4)) for code in plain]


def _digest(user: User, code: str) -> str:
    return hashlib.sha256(f"{user.pk}:{code.lower()}".encode("utf-8", "replace")).hexdigest()
