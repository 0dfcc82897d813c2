"""Files under the storage roots that the operator allowed, and no others."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

ORGANIZATION = "{organization}"  # in a root: the id of whose request it is


def open_file(named: str, roots: Iterable[str], organization: UUID) -> BinaryIO | None:
    """Open a regular file that lies under a root, named from there or absolutely.

    None for anything else, without telling which: what is elsewhere on this machine is nobody's
    business. What a link leads to counts, not where the link lies; names that begin with a dot are
    hidden. The file is looked at once it is open, so that nobody can swap it in between.
    """
    if not named or "\0" in named:
        return None
    for one in roots:
        with suppress(OSError, ValueError):
            root = os.path.realpath(one.replace(ORGANIZATION, str(organization)), strict=True)
            real = os.path.realpath(os.path.join(root, named), strict=True)
            if not _is_inside(real, root):
                continue
            # NONBLOCK: to open a pipe would wait for a writer. It is refused below.
            opened = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                where = os.path.realpath(f"/proc/self/fd/{opened}", strict=True)
                if stat.S_ISREG(os.fstat(opened).st_mode) and _is_inside(where, root):
                    return os.fdopen(opened, "rb")
            except BaseException:
                os.close(opened)
                raise
            os.close(opened)
    return None


def _is_inside(path: str, root: str) -> bool:
    place = Path(path)
    if not place.is_relative_to(root) or path == root:
        return False
    return not any(part.startswith(".") for part in place.relative_to(root).parts)
