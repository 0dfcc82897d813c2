"""A folder of the node's own machine, below a root that the operator allows. No Django."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.transfers import PART, Chunk
from workers.node.channel import WorkError


class Folder:
    """``settings``: folder. ``roots``: folders of the operator, one of which must hold it.

    What links lead to counts, not where they lie. ``programs``: whether programs may run there.
    """

    def __init__(
        self, settings: Mapping[str, Any], roots: Sequence[str], *, programs: bool = False
    ) -> None:
        self.where = str(settings.get("folder") or "")
        self._roots = roots
        self._programs = programs

    def _real(self, *names: str) -> Path:
        """A path below the folder. Raises WorkError for one that lies, or leads, elsewhere."""
        roots = [os.path.realpath(one) for one in self._roots]
        home = os.path.realpath(self.where)
        real = os.path.realpath(os.path.join(home, *names))
        if not any(Path(home).is_relative_to(root) for root in roots):
            raise WorkError(
                f"The folder {self.where} lies below no root that the operator allows "
                "(FLOWML_LOCAL_ROOTS on the platform).",
                code="not-allowed",
            )
        if not Path(real).is_relative_to(home) or "\0" in real or (names and real == home):
            raise WorkError(
                f'"{"/".join(names)[:100]}" is no path within the connection\'s folder.',
                code="path",
            )
        return Path(real)

    async def check(self) -> str:
        home = self._real()
        with _words(self.where):
            home.mkdir(parents=True, exist_ok=True)
            probe = home / ".flowml-test"
            probe.write_text("FlowML was here.\n")
            probe.unlink()
        free = shutil.disk_usage(home).free >> 30
        programs = " Programs can run there." if self._programs else ""
        return f"{home} on this node takes files; {free:,} GiB are free.{programs}"

    def file(self, name: str, *, reading: bool = False) -> "LocalFile":
        return LocalFile(self._real(name), reading=reading)

    def program(self, command: str, work: str) -> Iterator[str | int]:
        """Run it in the shell: the lines that it prints, then its status."""
        if not self._programs:
            raise WorkError(
                "Programs may not run on the node itself: its operator has not allowed it "
                "(FLOWML_LOCAL_PROGRAMS). Use a machine by SSH.",
                code="not-allowed",
            )
        folder = self._real(work) if work else self._real()
        folder.mkdir(parents=True, exist_ok=True)
        # Not in a group of its own: it ends with the task.
        with subprocess.Popen(
            ["sh", "-c", command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as running:
            assert running.stdout is not None
            for line in running.stdout:
                yield line.rstrip("\n")
        yield running.returncode


class LocalFile:
    """A transfers.Far and, since a disk needs no more than one, its own lane."""

    most_lanes = 1
    compares = True

    def __init__(self, path: Path, *, reading: bool) -> None:
        self._path = path
        self._part = path.with_name(path.name + PART)
        self._open = path if reading else self._part

    async def lane(self) -> "LocalFile":
        return self

    async def close(self) -> None:
        pass

    async def leave(self) -> None:
        pass

    async def size(self) -> int | None:
        with _words(str(self._path)), contextlib.suppress(FileNotFoundError):
            return self._path.stat().st_size if self._path.is_file() else None
        return None

    async def digest(self, *, partial: bool) -> str:
        def read() -> str:
            with (self._part if partial else self._path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()

        return await asyncio.to_thread(read)

    async def begin(self, size: int, sha256: str) -> int:
        with _words(str(self._path)):
            self._part.parent.mkdir(parents=True, exist_ok=True)
            with self._part.open("ab") as file:
                if file.tell() > size:
                    file.truncate(size)
                return min(file.tell(), size)

    async def has(self, chunk: Chunk, data: bytes) -> bool:
        return await self.read(chunk) == data

    async def write(self, chunk: Chunk, data: bytes) -> None:
        def write() -> None:
            with self._open.open("r+b") as file:
                file.seek(chunk.offset)
                file.write(data)

        with _words(str(self._path)):
            await asyncio.to_thread(write)

    async def read(self, chunk: Chunk) -> bytes:
        def read() -> bytes:
            with self._open.open("rb") as file:
                file.seek(chunk.offset)
                return file.read(chunk.size)

        with _words(str(self._path)):
            return await asyncio.to_thread(read)

    async def finish(self) -> None:
        with _words(str(self._path)):
            with self._part.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(self._part, self._path)


@contextlib.contextmanager
def _words(where: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise WorkError(f"{where}: {error.strerror}.", code="folder") from None
