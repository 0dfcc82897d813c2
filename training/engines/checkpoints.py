"""How far a fit has come, in a file: arrays and plain JSON, so that another node may go on.

Nodes do not trust each other: what comes from another one is read as numbers and text, never
unpickled, and a file that does not fit is as good as none.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .tables import Array

MOST_BYTES = 256 * 1024 * 1024  # of one file, packed or not
TOLD = "told.json"  # this entry is the JSON, as bytes


class Bad(Exception):
    """The file cannot be used. The text says why."""


def write(path: Path, told: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Replace the checkpoint at ``path`` in one step."""
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        text = json.dumps(told).encode()
        whole: dict[str, Any] = {TOLD: np.frombuffer(text, dtype=np.uint8), **arrays}
        np.savez(file, **whole)
    new.replace(path)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """What :func:`write` wrote. Raises Bad for anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MOST_BYTES:
                raise Bad("it is too large")
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        told = json.loads(arrays.pop(TOLD).tobytes())
    except Bad:
        raise
    except Exception as error:  # whatever a file of anybody's may hold
        raise Bad(f"it cannot be read ({type(error).__name__})") from error
    if not isinstance(told, dict):
        raise Bad("it tells nothing")
    return told, arrays


def part(arrays: Mapping[str, Array], name: str) -> dict[str, Array]:
    """The arrays whose names begin with ``name`` and a dot, without these."""
    return {
        key.removeprefix(f"{name}."): a for key, a in arrays.items() if key.startswith(f"{name}.")
    }


def named(name: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The same arrays as :func:`part` finds."""
    return {f"{name}.{key}": array for key, array in arrays.items()}
