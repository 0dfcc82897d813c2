"""Secrets that FlowML must be able to read again: kept encrypted, under a key from SECRET_KEY.

Fernet (AES-128 in CBC mode with an HMAC, of the library ``cryptography``). Whoever reads a backup
of the database learns nothing without SECRET_KEY. What was sealed under one of
SECRET_KEY_FALLBACKS can still be opened.
"""

import base64
import hashlib
import json
from functools import cache
from typing import Any

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings


class Unreadable(Exception):
    """It was sealed under another SECRET_KEY."""


@cache
def _box(secrets: tuple[str, ...]) -> MultiFernet:
    keys = [hashlib.sha256(b"flowml-sealing\0" + secret.encode()).digest() for secret in secrets]
    return MultiFernet([Fernet(base64.urlsafe_b64encode(key)) for key in keys])


def _ours() -> MultiFernet:
    return _box((settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS))


def seal(value: Any) -> str:
    """Anything that JSON can say, as text that only this installation can open."""
    return _ours().encrypt(json.dumps(value).encode()).decode()


def unseal(text: str) -> Any:
    """What was sealed. Raises Unreadable."""
    try:
        return json.loads(_ours().decrypt(text.encode()))
    except InvalidToken:
        raise Unreadable("It was encrypted under another SECRET_KEY.") from None
