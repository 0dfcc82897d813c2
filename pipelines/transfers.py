"""A file sent or fetched in pieces: which, side by side, checked, tried again, and resumed.

Each chunk is read, hashed and written alone, and read again by the far side, which says what it
really has. What an earlier try left there counts where its bytes are the same: so a transfer that
was cut short sends only the rest. The name of the file changes at the very end, when the digest of
the whole is right, so that nobody ever sees a part of it. Runs on nodes; no Django.
"""

import asyncio
import contextlib
import hashlib
import os
import posixpath
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from workers.node.channel import WorkError

MOST_CHUNKS = 1000  # of one file: larger files get larger chunks
BLOCK = 64 * 1024  # chunks begin at multiples of it
AWAY_S = 180.0  # how long a far side may be away in the middle of a transfer
TELL_S = 1.0
LANE_S = 0.5  # from one lane to the next, from the third on
PART = ".flowml-part"

WAITING, THERE, DONE, FAILED = "waiting", "there", "done", "failed"
Tell = Callable[["Transfer"], None]


class Away(Exception):
    """The far side is gone for now: worth waiting for. The text says what was seen."""


class Damaged(Exception):
    """A chunk did not arrive as it was sent: worth another try. The text, if any, says why."""


@dataclass(frozen=True)
class Rules:
    """How files travel: the operator's settings, or the connection's own."""

    chunk_bytes: int = 8 << 20
    workers: int = 4
    retries: int = 5
    verify: bool = True
    away_s: float = AWAY_S

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Rules":
        """From {"chunk_mib", "workers", "retries", "verify"}, each of which may be missing."""
        usual = cls()
        return cls(
            chunk_bytes=int(told.get("chunk_mib") or 0) << 20 or usual.chunk_bytes,
            workers=int(told.get("workers") or usual.workers),
            retries=int(told.get("retries", usual.retries)),
            verify=bool(told.get("verify", usual.verify)),
        )


@dataclass
class Chunk:
    """``state``: waiting, there (an earlier try had sent it), done or failed."""

    id: int
    offset: int
    size: int
    sha256: str = ""
    state: str = WAITING
    retry_count: int = 0


@dataclass
class Transfer:
    """How one file stands. ``moved``: bytes that travelled, those sent twice counted twice.
    ``busy``: chunks that are on their way, or being compared, right now."""

    path: str
    size: int
    chunks: list[Chunk]
    moved: int = 0
    busy: int = 0
    was_there: bool = False  # the whole of it, from before
    sha256: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def settled(self) -> int:
        """Bytes that need not travel any more."""
        return sum(one.size for one in self.chunks if one.state in {THERE, DONE})

    @property
    def fraction(self) -> float:
        return self.settled / self.size if self.size else 1.0

    def stands(self, rate: float | None) -> dict[str, Any]:
        """How far it is, for who watches. ``rate``: bytes in a second; None: not known yet."""
        states = [one.state for one in self.chunks]
        return {
            "path": self.path,
            "size": self.size,
            "settled": self.settled,
            "rate": rate and round(rate),
            "chunks": {
                "of": len(states),
                "there": states.count(THERE),
                "done": states.count(DONE),
                "running": self.busy,
                "failed": states.count(FAILED),
                "again": sum(one.retry_count for one in self.chunks),
            },
        }

    def told(self) -> dict[str, Any]:
        """As it goes to the web side, which keeps a row for each chunk."""
        return {
            "path": self.path,
            "size": self.size,
            "moved": self.moved,
            "was_there": self.was_there,
            "sha256": self.sha256,
            "chunks": [asdict(one) for one in self.chunks],
        }


class Lane(Protocol):
    """One of the ways to the far side that are used side by side. Its methods raise Away for what
    is worth another try once the far side is back, WorkError for what is not."""

    async def has(self, chunk: Chunk, data: bytes) -> bool:
        """Whether the far side, asked anew, has just these bytes there."""
        ...

    async def write(self, chunk: Chunk, data: bytes) -> None: ...

    async def read(self, chunk: Chunk) -> bytes: ...

    async def close(self) -> None: ...


class Far(Protocol):
    """One file at the far side. ``most_lanes``: how many may write at once. ``compares``: whether
    it can say what it has without sending it once more."""

    most_lanes: int
    compares: bool

    async def lane(self) -> Lane: ...

    async def size(self) -> int | None:
        """Of the finished file; None where there is none."""
        ...

    async def digest(self, *, partial: bool) -> str:
        """SHA-256 of the file, as the far side reads it; "" where it can't say."""
        ...

    async def begin(self, size: int, sha256: str) -> int:
        """Make ready for writing. Returns how many bytes an earlier try may have left."""
        ...

    async def finish(self) -> None:
        """Give the file its name, in place of one that has it."""
        ...

    async def leave(self) -> None:
        """Hang up: the transfer has ended, well or not."""
        ...


def below(folder: str, name: str) -> str:
    """The path of a file in ``folder``. Raises WorkError for a name that leads out of it."""
    if not name or name.startswith("/") or ".." in name.split("/") or not name.isprintable():
        raise WorkError(
            f'"{name[:100]}" is no path within the connection\'s folder: write "name" or '
            '"folder/name".',
            code="path",
        )
    return posixpath.normpath(posixpath.join(folder, name))


def cut(size: int, chunk_bytes: int) -> list[Chunk]:
    """A file of ``size`` bytes in chunks: MOST_CHUNKS at most, each beginning at a BLOCK's edge."""
    least = -(-size // MOST_CHUNKS)
    step = -(-max(chunk_bytes, least, 1) // BLOCK) * BLOCK
    return [
        Chunk(n, offset, min(step, size - offset)) for n, offset in enumerate(range(0, size, step))
    ]


async def send(source: Path, far: Far, path: str, rules: Rules, tell: Tell) -> Transfer:
    """Bring a file to the far side. Raises WorkError; its data tell how far it came."""
    with source.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        made = Transfer(path, size, cut(size, rules.chunk_bytes))
        whole = asyncio.create_task(asyncio.to_thread(_digest_of, source))
        try:
            await _send(file.fileno(), far, made, rules, tell, whole)
        except WorkError as error:
            error.data = {**error.data, "transfer": made.told()}
            raise
        finally:
            await asyncio.wait({whole})
            await far.leave()
    return made


async def _send(
    file: int, far: Far, made: Transfer, rules: Rules, tell: Tell, whole: "asyncio.Task[str]"
) -> None:
    there = await _patiently(far.size, rules)  # while the file is hashed here
    made.sha256 = await whole
    if there == made.size:
        found = await _patiently(lambda: far.digest(partial=False), rules)
        if found == made.sha256:
            made.was_there = True
            for chunk in made.chunks:
                chunk.state = THERE
            return
    left = await _patiently(lambda: far.begin(made.size, made.sha256), rules)
    suspects = [one for one in made.chunks if one.offset + one.size <= left]

    async def is_there(lane: Lane, chunk: Chunk) -> None:
        data = await _read(file, chunk)
        if await lane.has(chunk, data):
            chunk.state = THERE

    async def bring(lane: Lane, chunk: Chunk) -> None:
        data = await _read(file, chunk)
        await lane.write(chunk, data)
        made.moved += chunk.size
        if rules.verify and not await lane.has(chunk, data):
            raise Damaged
        chunk.state = DONE

    await _each(far, suspects, is_there, made, rules, tell)
    for turn in (1, 2):
        waiting = [one for one in made.chunks if one.state == WAITING]
        await _each(far, waiting, bring, made, rules, tell)
        if not rules.verify:
            break
        found = await _patiently(lambda: far.digest(partial=True), rules)
        if found in ("", made.sha256):
            break
        if turn == 2:
            raise WorkError(
                f"{made.path} arrived damaged, also when it was sent again: the disk or the memory "
                "of one of the machines may be failing. Nothing was put in place.",
                code="damaged",
            )
        made.notes.append(f"{made.path} was not right as a whole: its chunks are compared again.")
        for chunk in made.chunks:
            chunk.state = WAITING
        await _each(far, made.chunks, is_there, made, rules, tell)
    await _patiently(far.finish, rules)
    tell(made)


async def fetch(
    far: Far, path: str, target: Path, rules: Rules, tell: Tell, *, most_bytes: int = 0
) -> Transfer:
    """Bring a file from the far side to ``target``. What lies in its .flowml-part counts.

    Raises WorkError for one that is not there, or is larger than ``most_bytes``.
    """
    try:
        return await _fetch(far, path, target, rules, tell, most_bytes)
    finally:
        await far.leave()


async def _fetch(
    far: Far, path: str, target: Path, rules: Rules, tell: Tell, most_bytes: int
) -> Transfer:
    size = await _patiently(far.size, rules)
    if size is None:
        raise WorkError(f"There is no file {path}.", code="no-file", path=path)
    if most_bytes and size > most_bytes:
        raise WorkError(
            f"{path} is larger ({size >> 20:,} MiB) than a data set may be "
            f"({most_bytes >> 20:,} MiB).",
            code="too-large",
        )
    made = Transfer(path, size, cut(size, rules.chunk_bytes))
    part = target.with_name(target.name + PART)
    left = part.stat().st_size if far.compares and part.exists() else 0
    file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(file, size)

        async def is_here(lane: Lane, chunk: Chunk) -> None:
            data = await _read(file, chunk)
            if await lane.has(chunk, data):
                chunk.state = THERE

        async def bring(lane: Lane, chunk: Chunk) -> None:
            data = await lane.read(chunk)
            made.moved += len(data)
            if len(data) != chunk.size:
                raise WorkError(f"{path} was changed while it was read.", code="changed")
            chunk.sha256 = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
            if rules.verify and far.compares and not await lane.has(chunk, data):
                raise Damaged
            os.pwrite(file, data, chunk.offset)
            chunk.state = DONE

        suspects = [one for one in made.chunks if one.offset + one.size <= left]
        await _each(far, suspects, is_here, made, rules, tell)
        waiting = [one for one in made.chunks if one.state == WAITING]
        await _each(far, waiting, bring, made, rules, tell)
    except WorkError as error:
        error.data = {**error.data, "transfer": made.told()}
        raise
    finally:
        os.close(file)
    made.sha256 = await asyncio.to_thread(_digest_of, part)
    if rules.verify:
        found = await _patiently(lambda: far.digest(partial=False), rules)
        if found not in ("", made.sha256):
            part.unlink()
            raise WorkError(
                f"{path} arrived damaged, or was changed while it was read. Run it again.",
                code="damaged",
                transfer=made.told(),
            )
    os.replace(part, target)
    tell(made)
    return made


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _read(file: int, chunk: Chunk) -> bytes:
    """A chunk of the file that is here; it knows its digest then."""

    def read() -> bytes:
        data = os.pread(file, chunk.size, chunk.offset)
        chunk.sha256 = hashlib.sha256(data).hexdigest()
        return data

    return await asyncio.to_thread(read)


async def _patiently(ask: Callable[[], Awaitable[Any]], rules: Rules) -> Any:
    """What ``ask`` gives, waiting for a far side that is away. Raises WorkError at last."""
    gone_at: float | None = None
    while True:
        try:
            return await ask()
        except Away as error:
            gone_at = await _wait(error, gone_at, rules)


async def _wait(error: Away, gone_at: float | None, rules: Rules) -> float:
    """Wait before another try; for two seconds at most. Returns since when it is away."""
    now = time.monotonic()
    gone_at = now if gone_at is None else gone_at
    if now - gone_at > rules.away_s:
        raise WorkError(
            f"The far side was away for more than {rules.away_s:g} s: {error} What has arrived "
            "stays there; run it again once it is back.",
            code="away",
        ) from None
    await asyncio.sleep(min(2.0, max(0.2, (now - gone_at) / 2)))
    return gone_at


async def _each(
    far: Far,
    chunks: Sequence[Chunk],
    do: Callable[[Lane, Chunk], Awaitable[None]],
    made: Transfer,
    rules: Rules,
    tell: Tell,
) -> None:
    """Do something with each chunk, in several lanes, each chunk tried alone. Raises WorkError."""
    left = list(reversed(chunks))
    told_at = time.monotonic()
    nearly = asyncio.Event()  # nothing is left to begin with

    async def work(n: int) -> None:
        nonlocal told_at
        lane: Lane | None = None
        if n > 1:  # each costs a connection: two do for what is over soon
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(nearly.wait(), LANE_S * (n - 1))
        try:
            while left:
                chunk, failures, gone_at = left.pop(), 0, None
                while True:
                    try:
                        lane = lane or await far.lane()
                        made.busy += 1
                        try:
                            await do(lane, chunk)
                        finally:
                            made.busy -= 1
                        break
                    except Away as error:  # counted, but not against it: the way is at fault
                        chunk.retry_count += 1
                        if gone_at is None:
                            made.notes.append(f"The far side is away: {error}")
                            tell(made)
                        gone_at = await _wait(error, gone_at, rules)
                        if lane is not None:
                            await lane.close()
                            lane = None
                    except Damaged as error:
                        chunk.retry_count += 1
                        failures += 1
                        why = str(error) or "other bytes arrived than were sent."
                        made.notes.append(f"Chunk {chunk.id} of {made.path} is sent again: {why}")
                        if failures > rules.retries:
                            chunk.state = FAILED
                            raise WorkError(
                                f"Chunk {chunk.id} of {made.path} failed {failures} times: {why} "
                                "Nothing was put in place.",
                                code="damaged",
                            ) from None
                        await asyncio.sleep(min(2.0, 0.1 * 2**failures))
                if time.monotonic() - told_at > TELL_S:
                    told_at = time.monotonic()
                    tell(made)
            nearly.set()
        finally:
            if lane is not None:
                await lane.close()

    count = max(1, min(rules.workers, far.most_lanes, len(left)))
    if left:
        tasks = [asyncio.create_task(work(n)) for n in range(count)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
