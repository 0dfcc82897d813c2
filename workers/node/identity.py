"""Who this node is to its server: the token that it was given, kept in its folder.

With it a node joins again after a restart, when the join token has long run out.
"""

import json
import os
from pathlib import Path

from workers.node.settings import Settings


def _file(settings: Settings) -> Path:
    return settings.folder / "identity.json"


def load(settings: Settings) -> str:
    """The token from last time, or nothing if there is none for this server and this name."""
    try:
        kept = json.loads(_file(settings).read_text(encoding="utf-8"))
        if (kept["url"], kept["name"]) == (settings.url, settings.name):
            return str(kept["token"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return ""


def save(settings: Settings, token: str) -> None:
    """Keep the token, for this user alone. A full disk is no reason not to be a node."""
    new = _file(settings).with_suffix(".new")
    try:
        handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"url": settings.url, "name": settings.name, "token": token}, file)
        new.replace(_file(settings))
    except OSError:
        new.unlink(missing_ok=True)
