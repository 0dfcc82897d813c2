"""API tokens: what they look like, and how one is found again by its digest.

A token is ``flowml_<kind>_<30 random characters><6 of a checksum>``. The prefix lets scanners of
source code find one that leaked (``flowml_[a-z]{3}_[0-9A-Za-z]{36}``), and the checksum, a CRC-32
in base 62 as GitHub's tokens have it, tells a typing error or a made-up token without asking the
database. 30 characters are 178 random bits, so that a plain SHA-256 is as good as a slow hash.

Kinds: ``pat`` is a person's, ``svc`` an organization's. The app that has the table says so in its
``AppConfig.ready`` by ``register``.
"""

import hashlib
import re
import secrets
import string
import zlib
from typing import Any

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
RANDOM, CHECK = 30, 6
PREFIX = "flowml_"
_FORM = re.compile(rf"{PREFIX}([a-z]{{3}})_[0-9A-Za-z]{{{RANDOM + CHECK}}}")
_tables: dict[str, Any] = {}


def register(table: Any) -> None:
    """Let ``table``, a subclass of accounts.models.AbstractToken, answer for its kind."""
    _tables[table.KIND] = table


def table_of(secret: str) -> Any | None:
    """The table that would hold this token; None for text that is no token of ours."""
    form = _FORM.fullmatch(secret)
    if form is None or not secrets.compare_digest(_check(secret[:-CHECK]), secret[-CHECK:]):
        return None
    return _tables.get(form[1])


def new(kind: str) -> str:
    """A fresh secret. It is shown once; only its digest is kept."""
    start = f"{PREFIX}{kind}_" + "".join(secrets.choice(ALPHABET) for _ in range(RANDOM))
    return start + _check(start)


def digest(secret: str) -> str:
    """What is stored of a token: its SHA-256, in hexadecimal."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _check(text: str) -> str:
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(CHECK):
        number, rest = divmod(number, len(ALPHABET))
        digits = ALPHABET[rest] + digits
    return digits
