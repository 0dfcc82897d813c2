"""The keys of the platform: artifact signatures (Ed25519) and the tokens of tasks."""

import hashlib
from functools import cache
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings
from django.core import signing

TASK_SALT = "flowml.task"


@cache
def _signing_key(seed: str, secret: str) -> Ed25519PrivateKey:
    raw = (
        bytes.fromhex(seed)
        if seed
        else hashlib.sha256(b"flowml-artifact-signing\0" + secret.encode()).digest()
    )
    return Ed25519PrivateKey.from_private_bytes(raw)


def _key() -> Ed25519PrivateKey:
    return _signing_key(settings.SIGNING_KEY, settings.SECRET_KEY)


def public_key() -> str:
    """The half that nodes hold, 32 bytes as hex."""
    return _key().public_key().public_bytes_raw().hex()


def sign_artifact(
    artifact: UUID, sha256: str, organization: UUID, *, own_node: bool = False
) -> str:
    """The signature (hex) by which a node knows that these bytes came through the platform.

    What an ``own_node`` of the organization wrote is signed so that only such nodes load it.
    """
    domain = b"flowml-artifact-own\0" if own_node else b"flowml-artifact\0"
    message = domain + artifact.bytes + bytes.fromhex(sha256) + organization.bytes
    return _key().sign(message).hex()


def task_token(task: UUID, attempt: int) -> str:
    """What a node shows to speak for one attempt of one task, and for nothing else."""
    return signing.dumps([str(task), attempt], salt=TASK_SALT)


def read_task_token(token: str) -> tuple[UUID, int]:
    """Task and attempt. Raises signing.BadSignature for anything that `task_token` did not make."""
    task, attempt = signing.loads(token, salt=TASK_SALT)
    return UUID(task), int(attempt)
