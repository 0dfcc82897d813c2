"""The place with files, or the machine, that a task names. No Django."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from pipelines import reach
from pipelines.stages.warehouse import _connector as connector
from pipelines.transfers import Away, Damaged, Far, Rules, Transfer
from workers.node.channel import WorkError

T = TypeVar("T")
RATE_OF = 10  # the rate is that of so many tellings: some ten seconds


class Place(Protocol):
    """Somewhere that keeps files. What fails is told as transfers.Away or WorkError."""

    where: str

    async def check(self) -> str:
        """Reach it and write there. Returns a sentence on what was found."""
        ...

    def file(self, name: str, *, reading: bool = False) -> Far:
        """The file ``name``, below the connection's folder. Raises WorkError for what lies
        elsewhere."""
        ...


def opened(task: Mapping[str, Any]) -> tuple[Place, Rules]:
    """The place of ``task``, and how files travel there. Raises WorkError where it has none."""
    told = task.get("confidential") or {}
    if problem := told.get("problem"):
        raise WorkError(str(problem), code="connection")
    kind, settings = str(told.get("kind") or ""), told.get("settings") or {}
    secrets, rules = told.get("secrets") or {}, reach.parse(str(told.get("reach") or ""))
    place: Place
    if kind == "ssh":
        place = connector("ssh").Machine(settings, secrets, rules)
    elif kind == "local":
        roots, programs = told.get("roots") or [], bool(told.get("programs"))
        place = connector("local").Folder(settings, roots, programs=programs)
    elif kind == "s3":
        place = connector("s3").Bucket(settings, secrets, rules)
    elif kind == "hdfs":
        place = connector("hdfs").Hdfs(settings, secrets, rules)
    else:
        raise WorkError(
            f'A connection of the kind "{kind}" keeps no files that FlowML can reach.',
            code="connection",
        )
    wanted = Rules.of(told.get("transfer") or {})
    least = getattr(place, "least_chunk", 0)
    return place, replace(wanted, chunk_bytes=max(wanted.chunk_bytes, least))


def wait_for(work: Callable[[], Awaitable[T]]) -> T:
    """What ``work`` gives, with what can't be waited for any longer told in a sentence."""
    try:
        return asyncio.run(_one(work))
    except KeyError as error:
        raise WorkError(f"It is not there: {error.args[0]}", code="no-file") from None
    except (Away, Damaged) as error:
        text = str(error)
        raise WorkError(f"{text[:1].upper()}{text[1:]}", code="away") from None


async def _one(work: Callable[[], Awaitable[T]]) -> T:
    return await work()


def teller(channel: Any, verb: str) -> Callable[[Transfer], None]:
    """Tells a transfer's progress, and once each what went wrong and was mended."""
    noted = 0
    seen: deque[tuple[float, int]] = deque([(time.monotonic(), 0)], maxlen=RATE_OF)

    def tell(transfer: Transfer) -> None:
        nonlocal noted
        for note in transfer.notes[noted : noted + 20]:
            channel.notice(note, level="warning")
        noted = len(transfer.notes)
        done, size = transfer.settled >> 20, transfer.size >> 20
        (begun, before), now = seen[0], time.monotonic()
        seen.append((now, transfer.moved))
        rate = (transfer.moved - before) / (now - begun) if now - begun > 0.5 else None
        channel.progress(
            0.95 * transfer.fraction,
            f"{verb} {transfer.path}: {done:,} of {size:,} MiB",
            transfer=transfer.stands(rate),
        )

    return tell
