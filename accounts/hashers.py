"""Hashes of passwords that came from elsewhere."""

from typing import Any

import bcrypt
from django.contrib.auth.hashers import BCryptPasswordHasher

READS = 72  # bytes: what bcrypt takes of a password


class BcryptHasher(BCryptPasswordHasher):
    """Plain bcrypt, to check what was made elsewhere; signing in replaces it by Argon2id.

    What comes after the 72nd byte is left out, as bcrypt always did. The library in use refuses
    such passwords instead, and their owners could never sign in.
    """

    def encode(self, password: str, salt: Any) -> str:
        data = bcrypt.hashpw(password.encode()[:READS], salt)
        return f"{self.algorithm}${data.decode('ascii')}"

    def verify(self, password: str, encoded: str) -> bool:
        try:
            return super().verify(password, encoded)
        except ValueError:  # imported, and no hash of bcrypt at all
            return False
