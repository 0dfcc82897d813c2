"""Artifacts on this node: verified, unpacked safely, forgotten when space is short."""

import hashlib
import os
import re
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

MAX_FILES = 20_000
MAX_UNPACKED_BYTES = 8 * 1024**3


class NotTrusted(Exception):
    """An artifact that must not be loaded. The text says why."""


def signed_bytes(
    artifact: UUID, sha256: str, organization: UUID, *, own_node: bool = False
) -> bytes:
    """What the web side signs (Ed25519, RFC 8032) when it stores an artifact.

    ``own_node``: one of the organization's own nodes wrote it, and only such nodes load it.
    """
    domain = b"flowml-artifact-own\0" if own_node else b"flowml-artifact\0"
    return domain + artifact.bytes + bytes.fromhex(sha256) + organization.bytes


def verify(
    signing_key: str,
    *,
    artifact: str,
    sha256: str,
    organization: str,
    signature: str,
    own: str = "",
) -> None:
    """Check that the web side made this artifact for this organization. Raises NotTrusted.

    ``signing_key`` is the public key, ``signature`` the signature, both in hexadecimal; ``own`` is
    the organization whose node this is, empty for the platform's. That the bytes fit ``sha256`` is
    checked where they are read.
    """
    for own_node in (False, True) if own == organization else (False,) if not own else ():
        try:
            message = signed_bytes(UUID(artifact), sha256, UUID(organization), own_node=own_node)
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signing_key))
            key.verify(bytes.fromhex(signature), message)
            return
        except (InvalidSignature, ValueError, TypeError):
            pass
    raise NotTrusted(
        "The model's signature does not fit its content and organization; it is not loaded."
    )


def hash_fits(file: Path, sha256: str) -> bool:
    """Whether the file's bytes are those that ``sha256`` (hexadecimal) names."""
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest() == sha256


def unpack(archive: Path, target: Path) -> None:
    """Unpack a zip into the new folder ``target``, all or nothing. Raises NotTrusted.

    Refuses names that lead outside, links, devices, and archives that would unpack to more than
    8 GiB or 20,000 files. Does nothing when the target exists.
    """
    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".part-"))
    try:
        with zipfile.ZipFile(archive) as bundle:
            members = bundle.infolist()
            if len(members) > MAX_FILES:
                raise NotTrusted("The model's archive holds too many files.")
            left = MAX_UNPACKED_BYTES
            for member in members:
                if member.is_dir():
                    continue
                path = scratch.joinpath(*safe_parts(member))
                path.parent.mkdir(parents=True, exist_ok=True)
                with bundle.open(member) as source, path.open("xb") as sink:
                    # The sizes in the directory may lie: count what really comes out.
                    while chunk := source.read(1024 * 1024):
                        left -= len(chunk)
                        if left < 0:
                            raise NotTrusted("The model's archive unpacks to more than 8 GiB.")
                        sink.write(chunk)
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():  # else another request was quicker
                raise
    except (
        zipfile.BadZipFile,
        FileExistsError,
        NotADirectoryError,
        RuntimeError,
    ) as error:
        raise NotTrusted(f"The model's archive cannot be read: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def safe_parts(member: zipfile.ZipInfo) -> tuple[str, ...]:
    """The parts of a member's path, none of which leads out of a folder. Raises NotTrusted."""
    name = member.filename
    parts = PurePosixPath(name).parts
    kind = stat.S_IFMT(member.external_attr >> 16)
    if (
        not parts
        or name.startswith("/")
        or "\\" in name
        or "\0" in name
        or re.match(r"[A-Za-z]:", name)
        or any(part in ("..", ".") for part in parts)
        or kind not in (0, stat.S_IFREG)
    ):
        raise NotTrusted(f"The model's archive holds a file that may not be unpacked: {name!r}")
    return parts


def trim(folder: Path, keep_mib: int) -> None:
    """Remove the entries used longest ago until at most ``keep_mib`` MiB are left."""
    entries = []
    for path in folder.iterdir():
        size = _size(path)
        if size is not None:
            entries.append((path.lstat().st_mtime, size, path))
    left = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if left <= keep_mib * 1024 * 1024:
            return
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        left -= size


def _size(path: Path) -> int | None:
    try:
        if not path.is_dir():
            return path.lstat().st_size
        return sum(
            os.lstat(os.path.join(root, name)).st_size
            for root, _, names in os.walk(path)
            for name in names
        )
    except OSError:
        return None
