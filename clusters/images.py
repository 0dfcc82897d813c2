"""Names of container images, and which of them an operator lets run. Pure."""

import re
from collections.abc import Sequence
from typing import NamedTuple

DOCKER_HUB = "docker.io"
_REGISTRY = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)(?:\.[a-z0-9-]+)*(?::\d{1,5})?")
_PART = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Image(NamedTuple):
    """A whole reference: nothing of it is left to how a machine is set up."""

    registry: str
    path: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.registry}/{self.path}{tag}" + (f"@{self.digest}" if self.digest else "")


def parse(text: str) -> Image:
    """A reference as people write it: ``nginx`` is ``docker.io/library/nginx:latest``.

    The grammar is that of github.com/distribution/reference. Raises ValueError with a sentence.
    """
    name, at, digest = text.strip().partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise ValueError("What follows @ is a digest: sha256: and 64 hexadecimal digits.")
    head, slash, rest = name.partition("/")
    if slash and (head == "localhost" or "." in head or ":" in head):
        registry, path = head, rest
    else:
        registry, path = DOCKER_HUB, name
    path, colon, tag = path.partition(":")
    if registry in {"index.docker.io", "registry-1.docker.io"}:
        registry = DOCKER_HUB
    if registry == DOCKER_HUB and "/" not in path:
        path = f"library/{path}"
    if colon and not _TAG.fullmatch(tag):
        raise ValueError("What follows the colon is a tag: letters, digits, dots, dashes.")
    good = all(_PART.fullmatch(part) for part in path.split("/"))
    if not good or not _REGISTRY.fullmatch(registry):
        raise ValueError(
            "That is no name of an image: registry/path:tag, as in ghcr.io/acme/scorer:1.4."
        )
    return Image(registry, path, tag or ("" if digest else "latest"), digest)


def is_allowed(image: Image, registries: Sequence[str]) -> bool:
    """Whether an entry names the image's registry, alone or with the beginning of its path."""
    whole = f"{image.registry}/{image.path}"
    return any(whole.startswith(one.strip("/") + "/") or whole == one for one in registries)
