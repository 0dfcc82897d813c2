"""What people and nodes do with tasks. Every change of a task goes through here."""

import json
import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import DateTimeField, ExpressionWrapper, F, Func, JSONField, Q
from django.utils import timezone

from accounts.errors import Conflict, TooLarge
from organizations.models import Organization
from workers import bells, routing
from workers.claiming import claim, free
from workers.files import CHECKPOINT, store_artifact
from workers.keys import task_token
from workers.models import (
    OWN_NODES,
    Artifact,
    IllegalMove,
    Pulse,
    Stream,
    Task,
    Worker,
    emit,
)

__all__ = ["claim", "emit", "store_artifact"]
log = logging.getLogger(__name__)
State = Task.State

# What nodes may report of one task. A node may be a tenant's own, and the database is everybody's.
MOST_EVENTS, MOST_EVENT_BYTES = 20_000, 64 * 2**20
MORE_FOR_RESULTS = 1.25  # times as much, once there is no room for lines of a log
FLEETING = frozenset({"progress", "log"})  # left out when there are too many
# A node ends a task at its limit. This is for what fetching, starting and delivering take as well.
OVERTIME = timedelta(minutes=30)


# --- People, and the apps on the right ------------------------------------------------------------


def open_stream(topic: str, organization: Organization) -> Stream:
    """The stream of a topic, made if it is not there yet."""
    return Stream.objects.get_or_create(topic=topic, defaults={"organization": organization})[0]


@transaction.atomic
def add_task(
    organization: Organization,
    *,
    kind: str,
    subject: UUID,
    topic: str,
    payload: Mapping[str, Any],
    inputs: Mapping[str, Artifact] | None = None,
    engine: str = "",
    device: str = "cpu",
    light: bool = False,
    cpu_millis: int = 1000,
    ram_mib: int = 2048,
    gpu_ram_mib: int = 0,
    time_limit_s: int = 600,
    priority: int = 0,
) -> Task:
    """Queue a unit of work, and ring its queue once the transaction is committed.

    Its events go to ``topic``. A light task is short and takes one of a node's light slots.
    """
    stream = open_stream(topic, organization)
    own = any(artifact.own_node for artifact in (inputs or {}).values())
    queue = (OWN_NODES if own else "") + routing.queue_for(
        routing.Requirements(
            engine=engine, device=device, gpu_ram_mib=gpu_ram_mib, urgent=priority > 0
        )
    )
    now = timezone.now()
    task = Task.objects.create(
        organization=organization,
        stream=stream,
        kind=kind,
        subject=subject,
        payload=dict(payload),
        inputs={name: str(artifact.pk) for name, artifact in (inputs or {}).items()},
        engine=engine,
        device=device,
        queue=queue,
        light=light,
        queued_at=now,
        line_at=now,
        cpu_millis=cpu_millis,
        ram_mib=ram_mib,
        gpus=int(device == "gpu"),
        gpu_ram_mib=gpu_ram_mib,
        time_limit_s=time_limit_s,
        priority=priority,
    )
    emit(topic, "task.queued", {"kind": kind, "engine": engine, "task": str(task.pk)}, task=task)
    transaction.on_commit(lambda: bells.ring(queue))
    return task


def cancel_task(task: Task, *, by: str) -> None:
    """Cancel at once what waits; ask the node to kill what runs, within seconds."""
    _wish(task, by=by, field="cancel_requested_at")


def stop_task(task: Task, *, by: str) -> None:
    """Ask a running task to end now and keep what it has. One that still waits is cancelled."""
    _wish(task, by=by, field="stop_requested_at")


@transaction.atomic
def _wish(task: Task, *, by: str, field: str) -> None:
    stored = Task.objects.select_for_update(no_key=True).get(pk=task.pk)
    if stored.has_ended or getattr(stored, field):
        return
    setattr(stored, field, timezone.now())
    stored.save(update_fields=[field])
    if stored.state == State.QUEUED:
        stored.move_to(State.CANCELLED, by=by, reason="before it started")
        _ended(stored)
    else:
        wish = "cancel" if field.startswith("cancel") else "stop"
        emit(stored.stream_id, f"task.{wish}_asked", {"by": by}, task=stored)
        # A node that hears its bell beats at once, and so learns the wish now and not in 2 s.
        transaction.on_commit(lambda: bells.ring(stored.queue))


@transaction.atomic
def requeue_task(task: Task, *, by: str) -> Task:
    """Do a failed or cancelled task again, as a new one."""
    stored = Task.objects.select_for_update(no_key=True).get(pk=task.pk)
    if stored.state not in {State.FAILED, State.CANCELLED}:
        raise IllegalMove(
            f"Only a failed or cancelled task can be queued again: it is {stored.state}."
        )
    return add_task(
        stored.organization,
        kind=stored.kind,
        subject=stored.subject,
        topic=stored.stream_id,
        payload=stored.payload,
        inputs={
            name: Artifact.objects.get(pk=artifact) for name, artifact in stored.inputs.items()
        },
        engine=stored.engine,
        device=stored.device,
        light=stored.light,
        cpu_millis=stored.cpu_millis,
        ram_mib=stored.ram_mib,
        gpu_ram_mib=stored.gpu_ram_mib,
        time_limit_s=stored.time_limit_s,
        priority=stored.priority,
    )


@transaction.atomic
def change_priority(task: Task, priority: int, *, by: str) -> None:
    """Let a waiting task go before, or after, the others. Raises IllegalMove once it has left."""
    stored = Task.objects.select_for_update(no_key=True).get(pk=task.pk)
    if stored.state != State.QUEUED:
        raise IllegalMove(f"Only a waiting task has a place in line: this one is {stored.state}.")
    if stored.priority != priority:
        told = {"by": by, "from": stored.priority, "to": priority}
        stored.priority = priority
        stored.save(update_fields=["priority"])
        emit(stored.stream_id, "task.priority", told, task=stored)
        transaction.on_commit(lambda: bells.ring(stored.queue))


# --- Nodes ---


def register_worker(
    *,
    name: str,
    version: str,
    capabilities: Mapping[str, Any],
    address: str,
    concurrency: int,
    classes: Sequence[str] = (),
    organization: Organization | None = None,
) -> tuple[Worker, str]:
    """A node joins, or joins again under its name: then the older process's token is void.

    With an ``organization`` it works for that one alone. Names are each organization's own, so
    nobody can take over another's node by its name. Returns the node and its token, which is
    stored only as a hash.
    """
    token = secrets.token_urlsafe(32)
    worker, _ = Worker.objects.update_or_create(
        name=name,
        organization=organization,
        defaults={
            "version": version,
            "capabilities": dict(capabilities),
            "queues": routing.narrowed(routing.queues_for(capabilities_of(capabilities)), classes),
            "classes": list(classes),
            "address": address,
            "concurrency": concurrency,
            "token_hash": Worker.hash_token(token),
            "last_seen_at": timezone.now(),
            "draining": False,
        },
    )
    return worker, token


def capabilities_of(said: Mapping[str, Any]) -> routing.Capabilities:
    """What routing asks of a node's capabilities."""
    return routing.Capabilities(
        engines=frozenset(said.get("engines", ())),
        gpu_ram_mib=tuple(int(gpu.get("memory_mib", 0)) for gpu in said.get("gpus", ())),
        llm=bool(said.get("llm")),
    )


def _word(task: Task) -> str:
    if task.cancel_requested_at:
        return "cancel"
    return "stop" if task.stop_requested_at else "ok"


def claim_answer(task: Task) -> dict[str, Any]:
    """All that a node needs to do a task that it has just claimed."""
    artifacts = Artifact.objects.filter(pk__in=task.inputs.values()).in_bulk()
    done = task.events.filter(type="candidate").values_list("key", flat=True)
    return {
        "task": str(task.pk),
        "attempt": task.attempt,
        "kind": task.kind,
        "engine": task.engine,
        "organization": str(task.organization_id),
        "payload": task.payload,
        "inputs": {
            name: {"artifact": pk, "sha256": found.sha256, "size": found.size}
            for name, pk in task.inputs.items()
            if (found := artifacts.get(UUID(pk)))
        },
        "limits": {"time_s": task.time_limit_s, "ram_mib": task.ram_mib},
        "light": task.light,
        "cpu_millis": task.cpu_millis,
        "gpus": task.gpus,
        "gpu_ram_mib": task.gpu_ram_mib,
        "done": list(done) if task.attempt > 1 else [],
        "checkpoints": _checkpoints(task) if task.attempt > 1 else {},
        "spent_s": task.spent_s,
        "token": task_token(task.pk, task.attempt),
        "lease_s": settings.LEASE_S,
        "more": task.more,
    }


def _checkpoints(task: Task) -> dict[str, dict[str, Any]]:
    """By the name of a fit, the newest file of how far the attempts before have come with it.

    Like a model it is read only in the trust domain that wrote it.
    """
    assert task.worker is not None
    kept = Artifact.objects.filter(
        task=task,
        name__startswith=CHECKPOINT,
        own_node=task.worker.organization_id is not None,
    )
    return {
        one.name.removeprefix(CHECKPOINT): {
            "artifact": str(one.pk),
            "sha256": one.sha256,
            "size": one.size,
        }
        for one in kept.order_by("created_at")
    }


class NotYours(Conflict):
    """A late writer: the attempt that it speaks for was lost, or has ended."""

    code = "attempt-gone"


def held_task(task: UUID, attempt: int) -> Task:
    """The running task, locked, if ``attempt`` is still the one that holds it. Raises NotYours."""
    held = (
        Task.objects.select_for_update(no_key=True)
        .filter(pk=task, attempt=attempt, state=State.RUNNING)
        .first()
    )
    if held is None:
        raise NotYours("This attempt no longer holds the task: drop it.")
    return held


@transaction.atomic
def record_events(
    task: UUID, attempt: int, events: Iterable[Mapping[str, Any]], *, hasten: bool = True
) -> str:
    """Store what a node reports about the attempt that it runs; returns ok, cancel or stop.

    A candidate of a key that is stored already is left out, so a repeated report does no harm.
    Where a task has told very much, so are further lines of its log, and anything else raises
    TooLarge. Without ``hasten`` the reactions wait for that to the task's end, or for the sweep.
    Raises NotYours from a late writer.
    """
    held = held_task(task, attempt)
    for said in events:
        kind, data, key = said["type"], said.get("data") or {}, said.get("key") or ""
        if kind == "candidate" and held.events.filter(type="candidate", key=key).exists():
            continue
        if kind == "progress":
            held.progress = max(held.progress, min(1.0, _fraction(data)))
            held.message = str(data.get("message") or "")[:300]
            data = {**data, "fraction": held.progress}
        if not _count(held, kind, {**data, **(said.get("files") or {})}):
            continue
        event = emit(
            held.stream_id,
            kind,
            data,
            task=held,
            files=said.get("files"),
            key=key,
            at=_at(held, said.get("at")),
        )
        if event.handled_at is None and hasten:
            _hasten("workers.tasks.handle_event", event.pk)
    # Whoever reports lives, even where its heartbeats don't come through.
    assert held.lease_expires_at is not None
    until = timezone.now() + timedelta(seconds=settings.LEASE_S)
    held.lease_expires_at = max(held.lease_expires_at, until)
    held.save(
        update_fields=["progress", "message", "events_kept", "event_bytes", "lease_expires_at"]
    )
    return _word(held)


def _count(task: Task, kind: str, data: Mapping[str, Any]) -> bool:
    """Count one more event of ``task``; False where it is left out. Raises TooLarge."""
    kept, size = task.events_kept + 1, task.event_bytes + len(json.dumps(data))
    more = 1.0 if kind in FLEETING else MORE_FOR_RESULTS
    if kept <= more * MOST_EVENTS and size <= more * MOST_EVENT_BYTES:
        task.events_kept, task.event_bytes = kept, size
        return True
    if kind in FLEETING:
        return False
    raise TooLarge(
        f"This task has told {task.events_kept:,} things, {task.event_bytes / 2**20:.1f} MiB "
        "together: no more of it is kept.",
        code="too-many-events",
    )


def _at(task: Task, said: datetime | None) -> datetime:
    """When it happened: as the node says, if that lies within its attempt; else now."""
    now = timezone.now()
    return said if said and (task.started_at or said) <= said <= now else now


def _fraction(data: Mapping[str, Any]) -> float:
    """How far a node says that it is; 0 for what is no number."""
    said = data.get("fraction")
    return float(said) if isinstance(said, int | float) else 0.0


@transaction.atomic
def end_task(
    task: UUID,
    attempt: int,
    *,
    outcome: str,
    result: Mapping[str, Any],
    error: str = "",
    code: str = "",
    fault: str = "",
    usage: Mapping[str, Any] | None = None,
    events: Sequence[Mapping[str, Any]] = (),
) -> Task:
    """A node reports how its attempt ended: succeeded, failed, cancelled, or returned (unharmed).

    ``events`` came before (see `record_events`). Saying the same of the same attempt again changes
    nothing. Raises NotYours from a late writer.
    """
    stored = Task.objects.select_for_update(no_key=True).filter(pk=task).first()
    if stored is not None and stored.attempt == attempt and stored.has_ended:
        return stored
    if events:
        ends = outcome != "returned" and fault != Task.Fault.PLATFORM
        record_events(task, attempt, events, hasten=not ends)
    held = held_task(task, attempt)
    held.usage = dict(usage or {})
    held.result = dict(result)
    held.save(update_fields=["usage", "result"])
    if held.cancel_requested_at and outcome != "succeeded":
        held.move_to(State.CANCELLED, by="node", lease_expires_at=None)
    elif outcome == "succeeded":
        held.move_to(State.SUCCEEDED, by="node", progress=1.0, lease_expires_at=None)
    elif outcome == "returned":
        _again(held, reason=error or "its node handed it back", lost=False)
        return held
    elif outcome == "failed" and fault == Task.Fault.PLATFORM:
        _lose(held, reason=error or "the node could not do it")
        return held
    else:
        held.move_to(
            State.CANCELLED if outcome == "cancelled" else State.FAILED,
            by="node",
            reason=error,
            error=error,
            code=code,
            fault=Task.Fault.WORK,
            lease_expires_at=None,
        )
    _ended(held)
    return held


def _ended(task: Task) -> None:
    free(task)
    _hasten("workers.tasks.handle_end", task.pk)


def _lose(task: Task, *, reason: str) -> None:
    """The attempt is lost: the next one begins, unless there were too many."""
    node = task.worker.name if task.worker else "its node"
    task.move_to(State.LOST, reason=reason, losses=task.losses + 1, lease_expires_at=None)
    if task.cancel_requested_at:
        task.move_to(State.CANCELLED, reason=reason)
        _ended(task)
    elif task.losses >= task.max_losses:
        task.move_to(
            State.FAILED,
            reason=reason,
            code="lost-too-often",
            fault=Task.Fault.PLATFORM,
            error=f"The platform tried this {task.losses} times and failed each time; the last "
            f"time on {node}: {reason.rstrip('.')}. "
            "Nothing is wrong with your data as far as we know: ask the operator.",
        )
        _ended(task)
    else:
        _again(task, reason=reason, lost=True)


def _again(task: Task, *, reason: str, lost: bool) -> None:
    spent = (timezone.now() - task.started_at).total_seconds() if task.started_at else 0.0
    task.move_to(
        State.QUEUED,
        reason=reason,
        attempt=task.attempt + 1,
        spent_s=task.spent_s + spent,
        worker=None,
        lease_expires_at=None,
    )
    free(task)
    queue = task.queue
    transaction.on_commit(lambda: bells.ring(queue))


# --- Control ---


def _hasten(name: str, pk: Any) -> None:
    """Ask control to react now. The sweep would, a little later, if this message got lost."""

    transaction.on_commit(lambda: bells.send(name, args=[str(pk)], queue="control"))


def expire_leases(now: datetime, *, web_answers: bool) -> int:
    """Take back what nodes no longer answer for; returns how many tasks were lost.

    Time in which the platform could not hear does not count. When the sweep itself did not run for
    half a lease, or web does not answer, every lease starts anew instead.
    """
    with transaction.atomic():
        pulse, _ = Pulse.objects.select_for_update(no_key=True).get_or_create(
            pk=1, defaults={"swept_at": now}
        )
        deaf = (now - pulse.swept_at).total_seconds() > settings.LEASE_S / 2 or not web_answers
        pulse.swept_at = now
        pulse.heard_since = now if deaf else pulse.heard_since
        pulse.save()
        if deaf:
            Task.objects.filter(state=State.RUNNING).update(
                lease_expires_at=now + timedelta(seconds=settings.LEASE_S)
            )
            return 0
    overdue = Task.objects.filter(state=State.RUNNING, lease_expires_at__lt=now)
    lost = 0
    for pk in overdue.values_list("pk", flat=True):
        with transaction.atomic():
            task = (
                Task.objects.select_for_update(no_key=True, skip_locked=True, of=("self",))
                .select_related("worker")
                .filter(pk=pk, state=State.RUNNING, lease_expires_at__lt=now)
                .first()
            )
            if task is not None:
                _lose(task, reason="its node did not answer any more")
                lost += 1
    _end_overtime(now, heard_since=pulse.heard_since)
    return lost


def _end_overtime(now: datetime, *, heard_since: datetime) -> None:
    """Fail what its node should have ended by itself long ago. The node hears that it is gone."""
    if heard_since + OVERTIME > now:
        return  # nodes may still be delivering what they did meanwhile
    limit = ExpressionWrapper(
        F("started_at") + F("time_limit_s") * timedelta(seconds=1), output_field=DateTimeField()
    )
    over = Task.objects.filter(state=State.RUNNING).alias(limit_at=limit)
    over = over.filter(limit_at__lt=now - OVERTIME)
    for pk in over.values_list("pk", flat=True):
        with transaction.atomic():
            mine = over.select_for_update(no_key=True, skip_locked=True, of=("self",))
            task = mine.select_related("worker").filter(pk=pk).first()
            if task is None:
                continue
            if task.cancel_requested_at:
                task.move_to(State.CANCELLED, reason="its node never did", lease_expires_at=None)
                _ended(task)
                continue
            node = task.worker.name if task.worker else "Its node"
            minutes = max(1, round(task.time_limit_s / 60))
            error = (
                f"It may take {minutes} {'minute' if minutes == 1 else 'minutes'}, and {node} "
                "still ran it half an hour after that. Look at this node, or give it more time."
            )
            task.move_to(
                State.FAILED,
                reason=error,
                error=error,
                code="time-limit",
                fault=Task.Fault.WORK,
                lease_expires_at=None,
            )
            _ended(task)


def ring_waiting() -> set[str]:
    """Ring again for every queue on which something waits and no bell lies; returns those.

    A node that is gone, takes nothing new or not from that queue is no longer held for anybody.
    """
    held = Task.objects.filter(state=State.QUEUED, held_on__isnull=False)
    gone = Q(held_on__last_seen_at__lt=Worker.alive_since()) | Q(held_on__draining=True)
    restarts = Q(held_on__restart_asked_at__isnull=False)
    its_queue = Func(F("queue"), function="to_jsonb", output_field=JSONField())
    held.filter(gone | restarts | ~Q(held_on__queues__contains=its_queue)).update(held_on=None)
    waiting = set(
        Task.objects.filter(state=State.QUEUED).values_list("queue", flat=True).distinct()
    )
    quiet = waiting - bells.unanswered(waiting) if waiting else set()
    for queue in quiet:
        bells.ring(queue)
    return quiet
