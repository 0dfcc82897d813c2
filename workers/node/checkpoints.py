"""How far a task's fits have come, on its way to the web side: the newest file of each, no more.

Another node goes on from there when this one dies. Nothing waits for it, and what can't be stored
is not missed: the work goes on without.
"""

import asyncio
import logging
import time
from pathlib import Path

from workers.node.api import Api, Gone, Refused

log = logging.getLogger("flowml.node.checkpoints")

PREFIX = "checkpoint:"  # before the name of a fit, as web knows the file
MOST_BYTES = 256 * 1024 * 1024  # web takes no more
EVERY_S = 5.0  # between two files, however quick the epochs are
SHARE = 0.1  # of the time, at most, goes into sending


class Checkpoints:
    """The checkpoints of one attempt. ``newest`` are files of this node by the name of the fit."""

    def __init__(self, api: Api, task: str, attempt: int, token: str) -> None:
        self.newest: dict[str, Path] = {}
        self._api, self._task, self._attempt, self._token = api, task, attempt, token
        self._waiting: dict[str, None] = {}  # names, in order
        self._count = 0
        self._refused = False
        self._sending: asyncio.Task[None] | None = None

    def take(self, name: str, file: Path, folder: Path) -> None:
        """Keep ``file`` in ``folder``, in place of what there was, and send it by and by."""
        folder.mkdir(exist_ok=True)
        self._count += 1
        kept = folder / str(self._count)
        file.rename(kept)
        before = self.newest.get(name)
        self.newest[name] = kept
        if before is not None:
            before.unlink(missing_ok=True)
        if self._refused or kept.stat().st_size > MOST_BYTES:
            return
        self._waiting[name] = None
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())

    def end(self) -> None:
        """Send no more."""
        if self._sending is not None:
            self._sending.cancel()

    async def _send(self) -> None:
        while self._waiting:
            name = next(iter(self._waiting))
            del self._waiting[name]
            began = time.monotonic()
            # A second name: the file may be replaced while it is read.
            file = self.newest[name].with_suffix(".sent")
            file.unlink(missing_ok=True)
            file.hardlink_to(self.newest[name])
            try:
                await self._api.upload(self._task, self._attempt, self._token, PREFIX + name, file)
            except Gone:
                return
            except Refused as why:
                log.warning("task %s: its checkpoints are not stored: %s", self._task, why)
                self._refused = True
                return
            except OSError as error:
                log.warning("task %s: a checkpoint is not sent: %s", self._task, error)
            finally:
                file.unlink(missing_ok=True)
            took = time.monotonic() - began
            await asyncio.sleep(max(EVERY_S, took / SHARE))
