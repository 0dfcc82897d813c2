"""From the spool to the web side: in order, files first, for as long as it takes."""

import asyncio
import logging
from collections.abc import Callable

from workers.node.api import Api, Gone, Refused
from workers.node.spool import Entry, Spool

log = logging.getLogger("flowml.node.delivery")

EVENTS_PAUSE_S = 0.25
SHORT_S = 0.03  # what has ended within it is told in one request, start and all


async def deliver(out: Spool, api: Api, hear: Callable[[str], None]) -> None:
    """Tell the web side everything in the spool, in order, until it has the end, then empty it.

    Waits out any absence of the web side. ``hear`` gets the wishes that its answers carry.
    Raises Gone when the attempt is no longer this node's.
    """
    await out.wait()
    await out.wait_for_end(SHORT_S)
    while True:
        await out.wait()
        batch = out.take()
        if out.is_last(batch) and not any(entry.files for entry in batch):
            await _send_end(out, api, batch, hear)
            return
        if batch:
            await _send(out, api, batch, hear)
            out.arrived(batch)
            await out.pause(EVENTS_PAUSE_S)


async def _send(out: Spool, api: Api, batch: list[Entry], hear: Callable[[str], None]) -> None:
    try:
        events = [entry.event(await _upload(out, api, entry.files)) for entry in batch]
        hear(await api.events(out.task, out.attempt, out.token, events))
    except Refused as error:
        if len(batch) > 1:  # one of them is to blame: find it, the others must not be lost
            for entry in batch:
                await _send(out, api, [entry], hear)
            return
        log.error(
            "task %s: the web side refused a %s event: %s",
            out.task,
            batch[0].type,
            error,
        )
        if batch[0].type == "candidate":
            text = f"The model {batch[0].key} could not be stored: {error.detail}"
            out.add("notice", {"message": text, "level": "error"})


async def _send_end(out: Spool, api: Api, batch: list[Entry], hear: Callable[[str], None]) -> None:
    """Tell the outcome, and with it the last events, which have no files."""
    end = dict(out.end or {})
    files = end.pop("files", {})
    try:
        artifacts = await _upload(out, api, files)
        result = {"data": end.pop("data", {}), "files": artifacts}
        body = {"attempt": out.attempt, "result": result, **end}
        if batch:
            body["events"] = [entry.event({}) for entry in batch]
        await api.end(out.task, out.token, body)
    except Refused as error:
        if batch:  # which of them is to blame?
            await _send(out, api, batch, hear)
            await _send_end(out, api, [], hear)
            return
        log.error("task %s: the web side refused its end: %s", out.task, error)
        body = {
            "attempt": out.attempt,
            "outcome": "failed",
            "result": {"data": {}, "files": {}},
            "error": f"The result could not be stored: {error.detail}",
            "code": "refused",
            # Too large for the organization's quota: it would be for the next node's as well.
            "fault": "work" if error.status == 413 else "platform",
            "usage": end.get("usage", {}),
        }
        try:
            await api.end(out.task, out.token, body)
        except Refused:
            log.exception("task %s: its end is refused in any form; dropping it", out.task)


async def _upload(out: Spool, api: Api, files: dict[str, str]) -> dict[str, str]:
    """Artifact ids by name, for files of the spool that are now stored."""
    names = list(files)
    stored = await asyncio.gather(
        *(
            api.upload(out.task, out.attempt, out.token, name, out.folder / files[name])
            for name in names
        )
    )
    return {name: str(answer["artifact"]) for name, answer in zip(names, stored, strict=True)}


async def recover(out: Spool, api: Api) -> None:
    """Deliver what an earlier process of this node left in its spool, as far as it may.

    An attempt that had no outcome yet has lost its child with that process. It is reported as lost
    and not as handed back, so that work which takes its node down does so only a few times.
    """
    if out.end is None:
        out.finish(
            {
                "outcome": "failed",
                "data": {"candidates": len(out.candidates)},
                "error": "The node was restarted in the middle of it.",
                "code": "node_restarted",
                "fault": "platform",
                "usage": {},
            }
        )
    try:
        await deliver(out, api, lambda _: None)
        log.info("task %s attempt %d: delivered after a restart", out.task, out.attempt)
    except Gone:
        log.info(
            "task %s attempt %d: not ours any more after a restart",
            out.task,
            out.attempt,
        )
    out.discard()
