"""What an attempt has to tell the web side, kept on disk until the web side has it.

A folder per attempt holds ``claim.json``, ``outbox.jsonl`` (what must not be lost, in order),
``sent`` (how many of those lines have arrived), the files that they name, and ``end.json`` once the
attempt has its outcome. It outlives the work folder, the web side's absence and this process.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

FLEETING = frozenset({"progress", "log"})  # worth telling, not worth keeping
MAX_LOG_LINES_AT_ONCE = 200


class Entry(NamedTuple):
    """One event. ``files`` maps a name to a file in the spool folder. ``number`` 0 is not kept."""

    number: int
    type: str
    at: str
    data: dict[str, Any]
    key: str | None
    files: dict[str, str]

    def event(self, artifacts: Mapping[str, str]) -> dict[str, Any]:
        """The event as the protocol has it, ``artifacts`` standing for the files."""
        event: dict[str, Any] = {"type": self.type, "at": self.at, "data": self.data}
        if self.key is not None:
            event["key"] = self.key
        if artifacts:
            event["files"] = dict(artifacts)
        return event


class BadFile(Exception):
    """A file that the work named is missing or lies outside its folder."""


class Spool:
    """One attempt's outgoing events and outcome."""

    def __init__(self, folder: Path, claim: dict[str, Any]) -> None:
        self.folder = folder
        self.claim = claim
        self.end: dict[str, Any] | None = None
        self.candidates: list[str] = list(claim.get("done") or [])
        self._pending: deque[Entry] = deque()
        self._taken = 0
        self._count = 0
        self._changed = asyncio.Event()
        self._urgent = asyncio.Event()
        self._ended = asyncio.Event()

    @property
    def task(self) -> str:
        """The task's id."""
        return str(self.claim["task"])

    @property
    def attempt(self) -> int:
        """The attempt's number."""
        return int(self.claim["attempt"])

    @property
    def token(self) -> str:
        """The token for this task and attempt alone."""
        return str(self.claim["token"])

    @classmethod
    def create(cls, root: Path, claim: dict[str, Any]) -> "Spool":
        """A new spool for an attempt that was just claimed."""
        # Its own name each time: a task that was handed back may come again before we cleared up.
        folder = root / f"{claim['task']}.{claim['attempt']}.{secrets.token_hex(3)}"
        folder.mkdir(parents=True, mode=0o700)
        _write(folder / "claim.json", claim)
        return cls(folder, claim)

    @classmethod
    def open(cls, folder: Path) -> "Spool":
        """What an earlier process left. Raises ValueError or OSError when it cannot be read."""
        spool = cls(folder, json.loads((folder / "claim.json").read_text()))
        sent_file, outbox, end = (folder / name for name in ("sent", "outbox.jsonl", "end.json"))
        sent = int(sent_file.read_text() or 0) if sent_file.exists() else 0
        lines = outbox.read_text().splitlines() if outbox.exists() else []
        for line in lines:
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError):
                break  # the last line, cut off by a crash in the middle of writing it
            spool._count = entry.number
            if entry.type == "candidate" and entry.key not in spool.candidates:
                spool.candidates.append(str(entry.key))
            whole = all((folder / name).exists() for name in entry.files.values())
            if entry.number > sent and whole:
                spool._pending.append(entry)
        if end.exists():
            spool.end = json.loads(end.read_text())
            spool._ended.set()
        return spool

    def add(
        self,
        type: str,
        data: dict[str, Any],
        *,
        key: str | None = None,
        files: Mapping[str, Path] | None = None,
    ) -> None:
        """Append an event. Its files are linked, so the work may remove its own afterwards."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        if type in FLEETING:
            self._merge(Entry(0, type, at, data, key, {}))
        else:
            number = self._count + 1
            linked = self._link(f"{number}", files or {})
            entry = Entry(number, type, at, data, key, linked)
            with (self.folder / "outbox.jsonl").open("a") as file:
                file.write(json.dumps(entry._asdict()) + "\n")
            self._count = number
            self._pending.append(entry)
            if type == "candidate" and key not in self.candidates:
                self.candidates.append(str(key))
            self._urgent.set()
        self._changed.set()

    def finish(self, end: dict[str, Any], files: Mapping[str, Path] | None = None) -> None:
        """Set the attempt's outcome; its files are linked as those of events are."""
        self.end = {**end, "files": self._link("end", files or {})}
        self._urgent.set()
        self._changed.set()
        self._ended.set()
        _write(self.folder / "end.json", self.end)

    def take(self, limit: int = 100) -> list[Entry]:
        """The oldest events not yet delivered. They stay until ``arrived``."""
        batch = list(self._pending)[:limit]
        self._taken = len(batch)
        self._changed.clear()
        if not any(entry.number for entry in list(self._pending)[limit:]) and self.end is None:
            self._urgent.clear()
        return batch

    def arrived(self, batch: list[Entry]) -> None:
        """Forget events that the web side has (or will never take)."""
        for _ in batch:
            self._pending.popleft()
        self._taken = 0
        kept = [entry for entry in batch if entry.number]
        if kept:
            (self.folder / "sent").write_text(str(kept[-1].number))
        for entry in kept:
            for name in entry.files.values():
                (self.folder / name).unlink(missing_ok=True)

    async def wait(self) -> None:
        """Until there is something to take, or the end is known."""
        if not self._pending and self.end is None:
            await self._changed.wait()

    async def pause(self, seconds: float) -> None:
        """Let fleeting events gather for a while, unless something better comes."""
        try:
            await asyncio.wait_for(self._urgent.wait(), seconds)
        except TimeoutError:
            pass

    async def wait_for_end(self, seconds: float) -> None:
        """Until the outcome is known, for so long at most."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ended.wait(), seconds)

    def is_last(self, batch: list[Entry]) -> bool:
        """Whether ``batch`` is all that comes before an outcome that is known."""
        return self.end is not None and len(batch) == len(self._pending)

    def discard(self) -> None:
        """Remove everything: it is delivered, or nobody wants it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _merge(self, new: Entry) -> None:
        """Append, or let the newest progress replace the last, and log lines join the last."""
        last = self._pending[-1] if len(self._pending) > self._taken else None
        if last is not None and last.type == new.type == "progress":
            self._pending[-1] = new
        elif last is not None and last.type == new.type == "log":
            lines = [*last.data["lines"], *new.data["lines"]]
            if len(lines) <= MAX_LOG_LINES_AT_ONCE:
                self._pending[-1] = last._replace(data={"lines": lines})
            else:
                self._pending.append(new)
        else:
            self._pending.append(new)

    def _link(self, prefix: str, files: Mapping[str, Path]) -> dict[str, str]:
        linked = {}
        for index, (name, path) in enumerate(sorted(files.items())):
            target = self.folder / f"{prefix}-{index}"
            target.unlink(missing_ok=True)
            try:
                os.link(path, target)
            except OSError:  # another file system
                shutil.copyfile(path, target)
            linked[name] = target.name
        return linked


def inside(folder: Path, files: Mapping[str, str]) -> dict[str, Path]:
    """The files that the work named, checked to be plain files within its folder."""
    root, found = folder.resolve(), {}
    for name, relative in files.items():
        path = (root / str(relative)).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            raise BadFile(f'The file "{relative}" ({name}) is not in the work folder.')
        found[str(name)] = path
    return found


def _write(path: Path, value: Any) -> None:
    part = path.with_suffix(".part")
    part.touch(mode=0o600)
    part.write_text(json.dumps(value))
    part.replace(path)
