"""Short jobs of the control process: load, hand to an action or a signal's receivers."""

import logging
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import redis
from celery import shared_task
from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone

from workers import actions, broker, lines, signals, spare
from workers.files import forget_checkpoints
from workers.models import Event, Task

log = logging.getLogger(__name__)

MAX_TRIES = 5


@shared_task(name="workers.tasks.sweep")
def sweep() -> None:
    """Take back expired leases, ring for what waits, react to what was missed."""
    actions.expire_leases(timezone.now(), web_answers=_web_answers())
    actions.ring_waiting()
    lines.forget_idle()
    try:
        broker.restore()
    except redis.RedisError as problem:
        log.warning("broker users not looked after", extra={"problem": str(problem)})
    spare.look_after()
    overdue = timezone.now() - timedelta(seconds=5)
    events = Event.objects.filter(handled_at=None, at__lt=overdue, tries__lt=MAX_TRIES)
    for pk in events.order_by("pk").values_list("pk", flat=True)[:200]:
        handle_event(pk)
    finished = Task.objects.filter(
        handled_at=None, finished_at__lt=overdue, finished_at__isnull=False, tries__lt=MAX_TRIES
    )
    for task in finished.values_list("pk", flat=True)[:200]:
        handle_end(str(task))


def _web_answers() -> bool:
    """Whether nodes could have been heard. Asked only when a lease is about to be taken back."""
    if not Task.objects.filter(state="running", lease_expires_at__lt=timezone.now()).exists():
        return True
    try:
        httpx.get(f"{settings.INTERNAL_URL}/health/live", timeout=2).raise_for_status()
    except httpx.HTTPError:
        return False
    return True


@shared_task(name="workers.tasks.handle_event")
def handle_event(pk: Any) -> None:
    """Let the apps react to one event, once, unless another process is just doing it."""
    _handle(pk, skip_locked=True)


@transaction.atomic
def _handle(pk: Any, *, skip_locked: bool) -> None:
    event = (
        Event.objects.select_for_update(no_key=True, skip_locked=skip_locked, of=("self",))
        .select_related("task__organization")
        .filter(pk=pk, handled_at=None, tries__lt=MAX_TRIES)
        .first()
    )
    if event is None:
        return
    event.tries += 1
    try:
        with transaction.atomic():
            signals.task_event.send(sender=Event, event=event, task=event.task)
        event.handled_at = timezone.now()
    except Exception:
        log.exception("reaction failed", extra={"event": event.pk, "tries": event.tries})
    event.save(update_fields=["handled_at", "tries"])


@shared_task(name="workers.tasks.handle_end")
def handle_end(pk: str) -> None:
    """Let the apps react to a task's end, after all its events have been handled.

    Each reaction is a transaction of its own: one with hundreds of candidates would keep rows
    locked for minutes, and be done again from the start if this process died.
    """
    pending = Event.objects.filter(task=UUID(pk), handled_at=None, tries__lt=MAX_TRIES)
    for event in pending.order_by("seq").values_list("pk", flat=True):
        # Not skip_locked: one that another process is reacting to is waited for.
        _handle(event, skip_locked=False)
    with transaction.atomic():
        # An advisory lock and not the row's: receivers lock a job before its tasks, as people's
        # actions do, and the other order would end in a deadlock.
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [UUID(pk).int % 2**63])
            mine = cursor.fetchone()[0]
        task = (
            Task.objects.select_related("organization")
            .filter(pk=pk, handled_at=None, finished_at__isnull=False)
            .first()
        )
        if task is None or not mine:
            return
        task.tries += 1
        try:
            with transaction.atomic():
                signals.task_ended.send(sender=Task, task=task)
                forget_checkpoints(task.pk)
            task.handled_at = timezone.now()
        except Exception:
            log.exception("reaction failed", extra={"task": pk, "tries": task.tries})
        task.save(update_fields=["handled_at", "tries"])
