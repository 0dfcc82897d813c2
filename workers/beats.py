"""Heartbeats in bulk: those that come within a blink are answered with three statements together.

Many nodes say the same thing every few seconds; one by one they would cost web more than all else.
"""

import asyncio
import contextvars
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID
from weakref import WeakKeyDictionary

from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import connection
from django.utils import timezone

from accounts.errors import Conflict
from workers import actions

GATHER_S = 0.02  # how long the first heartbeat of a batch waits for others

# What is needed for the answers is read without locks, and what can't be locked at once is left
# out: a node's row is a claim's at that moment, a task's that of somebody who ends, cancels or
# renews it. So no heartbeat waits for another request, and two batches never for each other.
_NODES = """
WITH free AS (
  SELECT id, token_hash FROM workers_worker WHERE token_hash = ANY(%(hashes)s)
   ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
), seen AS (
  UPDATE workers_worker w SET last_seen_at = greatest(w.last_seen_at, %(now)s), usage = said.usage
    FROM free JOIN unnest(%(hashes)s::text[], %(usages)s::jsonb[]) AS said(hash, usage)
         ON said.hash = free.token_hash
   WHERE w.id = free.id
)
SELECT token_hash, id::text, organization_id::text, queues, draining, concurrency,
       restart_asked_at IS NOT NULL
  FROM workers_worker WHERE token_hash = ANY(%(hashes)s)
"""
_LEASES = """
WITH held AS (
  SELECT t.id, t.worker_id, t.attempt, t.cancel_requested_at, t.stop_requested_at
    FROM workers_task t
    JOIN unnest(%(tasks)s::uuid[], %(attempts)s::int[], %(nodes)s::uuid[])
         AS said(id, attempt, node)
      ON t.id = said.id AND t.attempt = said.attempt AND t.worker_id = said.node
   WHERE t.state = 'running'
), free AS (
  SELECT t.id, t.attempt FROM workers_task t JOIN held ON held.id = t.id
   WHERE t.state = 'running' AND t.attempt = held.attempt AND t.worker_id = held.worker_id
   ORDER BY t.id FOR NO KEY UPDATE OF t SKIP LOCKED
), renewed AS (
  UPDATE workers_task t SET lease_expires_at = greatest(t.lease_expires_at, %(until)s)
    FROM free WHERE t.id = free.id
)
SELECT worker_id::text, id::text, attempt,
       CASE WHEN cancel_requested_at IS NOT NULL THEN 'cancel'
            WHEN stop_requested_at IS NOT NULL THEN 'stop' ELSE 'ok' END
  FROM held
"""
# A node names what it runs from the moment on when it hears of it. What it was granted half a lease
# ago and has never named (the lease is the one that the claim gave), it has never heard of.
_UNHEARD = """
SELECT id, attempt FROM workers_task
 WHERE state = 'running' AND worker_id = ANY(%(nodes)s::uuid[])
   AND lease_expires_at < %(now)s + %(lease)s / 2
   AND lease_expires_at <= started_at + %(lease)s AND NOT id = ANY(%(named)s::uuid[])
"""
# By one step into the index `task_lines` each, in its order: the planner would read all that waits,
# or the whole table, to find out that there is nothing.
_WAITING = """
SELECT asked.queue, asked.organization::text
  FROM unnest(%(queues)s::text[], %(organizations)s::uuid[]) AS asked(queue, organization)
 WHERE CASE WHEN asked.organization IS NULL THEN (
   SELECT true FROM workers_task t WHERE t.state = 'queued' AND t.queue = asked.queue
    ORDER BY t.queue, t.light, t.organization_id, t.priority, t.line_at LIMIT 1
 ) ELSE EXISTS (
   SELECT 1 FROM (VALUES (true), (false)) AS class(light) CROSS JOIN LATERAL (
     SELECT 1 FROM workers_task t WHERE t.state = 'queued' AND t.queue = asked.queue
        AND t.light = class.light AND t.organization_id = asked.organization
      ORDER BY t.queue, t.light, t.organization_id, t.priority, t.line_at LIMIT 1
   ) first
 ) END
"""


@dataclass(frozen=True)
class Beat:
    """What one node says: who it is, what it runs (task, attempt), how it is."""

    token_hash: str
    running: Sequence[tuple[UUID, int]]
    usage: Mapping[str, Any]
    replicas: Sequence[Mapping[str, Any]] = ()  # how what it keeps running for deployments is


# Gets a cursor and (node, its beat) of each; gives what to add to the answer of each node.
Part = Callable[[Any, Sequence[tuple[str, Beat]]], Mapping[str, Mapping[str, Any]]]
_parts: list[Part] = []


def register(part: Part) -> None:
    """Let an app on the right take in, and answer, its part of heartbeats."""
    if part not in _parts:
        _parts.append(part)


def renew(beats: Sequence[Beat]) -> list[dict[str, Any] | None]:
    """Renew the leases of what the nodes run; tell each what to do. None for a void token."""
    now = timezone.now()
    latest = {beat.token_hash: beat for beat in beats}
    with connection.cursor() as cursor:
        cursor.execute(
            _NODES,
            {
                "now": now,
                "hashes": list(latest),
                "usages": [json.dumps(dict(beat.usage)) for beat in latest.values()],
            },
        )
        nodes = {row[0]: row[1:] for row in cursor.fetchall()}
        held = [
            (task, attempt, nodes[beat.token_hash][0])
            for beat in beats
            if beat.token_hash in nodes
            for task, attempt in beat.running
        ]
        words: dict[tuple[str, str, int], str] = {}
        asked: dict[str, Any]
        if held:
            tasks, attempts, owners = (list(column) for column in zip(*held, strict=True))
            until = now + timedelta(seconds=settings.LEASE_S)
            asked = {
                "tasks": tasks,
                "attempts": attempts,
                "nodes": owners,
                "until": until,
            }
            cursor.execute(_LEASES, asked)
            words = {(node, task, n): word for node, task, n, word in cursor.fetchall()}
        asked = {
            "nodes": [node[0] for node in nodes.values()],
            "now": now,
            "lease": timedelta(seconds=settings.LEASE_S),
            "named": [task for task, _, _ in held],
        }
        cursor.execute(_UNHEARD, asked)
        for task, attempt in cursor.fetchall():
            _take_back(task, attempt)
        pairs = {
            (queue, organization)
            for _, organization, queues, draining, _, restart in map(_parsed, nodes.values())
            for queue in queues
            if not draining and not restart
        }
        waiting: set[tuple[str, str | None]] = set()
        if pairs:
            queues, organizations = (list(column) for column in zip(*pairs, strict=True))
            cursor.execute(_WAITING, {"queues": queues, "organizations": organizations})
            waiting = set(cursor.fetchall())
        more: dict[str, dict[str, Any]] = defaultdict(dict)
        known = [(nodes[beat.token_hash][0], beat) for beat in beats if beat.token_hash in nodes]
        for part in _parts if known else ():
            for node, answer in part(cursor, known).items():
                more[node] |= answer
    return [
        _answer(beat, _parsed(nodes[beat.token_hash]), words, waiting)
        | more[nodes[beat.token_hash][0]]
        if beat.token_hash in nodes
        else None
        for beat in beats
    ]


def _take_back(task: UUID, attempt: int) -> None:
    try:
        actions.end_task(
            task, attempt, outcome="returned", result={}, error="its node never heard of it"
        )
    except Conflict:  # it has ended meanwhile
        pass


def _parsed(node: Sequence[Any]) -> tuple[str, str | None, list[str], bool, int, bool]:
    pk, organization, queues, draining, concurrency, restart = node
    return (
        pk,
        organization,
        json.loads(queues) if isinstance(queues, str) else queues,
        draining,
        concurrency,
        restart,
    )


def _answer(
    beat: Beat,
    node: tuple[str, str | None, list[str], bool, int, bool],
    words: Mapping[tuple[str, str, int], str],
    waiting: set[tuple[str, str | None]],
) -> dict[str, Any]:
    pk, organization, queues, draining, concurrency, restart = node
    told: dict[str, str] = {}
    for task, attempt in beat.running:
        word = words.get((pk, str(task), attempt), "gone")
        if told.get(str(task), "gone") == "gone":
            told[str(task)] = word
    return {
        "tasks": told,
        "waiting": not (draining or restart)
        and any((queue, organization) in waiting for queue in queues),
        "queues": queues,
        "concurrency": concurrency,
        "restart": restart,
    }


class _Gathering:
    """One event loop's heartbeats that wait to be answered together."""

    def __init__(self) -> None:
        self.beats: list[tuple[Beat, asyncio.Future[dict[str, Any] | None]]] = []
        self.running: set[asyncio.Task[None]] = set()

    async def answer(self, beat: Beat) -> dict[str, Any] | None:
        waits: asyncio.Future[dict[str, Any] | None] = asyncio.get_running_loop().create_future()
        self.beats.append((beat, waits))
        if len(self.beats) == 1:
            # Of no request's context: whoever came first may act as a tenant, or be gone soon.
            work = asyncio.create_task(self._flush(), context=contextvars.Context())
            self.running.add(work)
            work.add_done_callback(self.running.discard)
        return await waits

    async def _flush(self) -> None:
        await asyncio.sleep(GATHER_S)
        batch, self.beats = self.beats, []
        try:
            answers = await _renewed([beat for beat, _ in batch])
        except Exception:
            # One by one, so that what is wrong with one node's stays that node's.
            for beat, waits in batch:
                if waits.done():
                    continue
                try:
                    waits.set_result((await _renewed([beat]))[0])
                except Exception as problem:
                    waits.set_exception(problem)
            return
        for (_, waits), answer in zip(batch, answers, strict=True):
            if not waits.done():
                waits.set_result(answer)


def _renew_here(beats: Sequence[Beat]) -> list[dict[str, Any] | None]:
    """No request ends in this thread, so nothing else would give its connection back."""
    try:
        return renew(beats)
    finally:
        connection.close()


# One thread: what comes while it renews is the next batch, so a slow database makes batches large
# and not many.
_thread = ThreadPoolExecutor(1, "heartbeats")
_renewed = sync_to_async(_renew_here, thread_sensitive=False, executor=_thread)


_gatherings: WeakKeyDictionary[asyncio.AbstractEventLoop, _Gathering] = WeakKeyDictionary()


async def answer(beat: Beat) -> dict[str, Any] | None:
    """The answer to one heartbeat, found together with those of others; None for a void token."""
    loop = asyncio.get_running_loop()
    return await _gatherings.setdefault(loop, _Gathering()).answer(beat)
