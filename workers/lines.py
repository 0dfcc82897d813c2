"""What a person may change about who goes next: move a job to the front, pause, resume."""

from datetime import timedelta
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Min
from django.utils import timezone

from accounts.errors import Conflict
from organizations.audit import record
from organizations.models import Organization
from workers import bells
from workers.claiming import seconds_of
from workers.fairshare import PATIENCE_S, log_use
from workers.models import Pause, Task, emit

State = Task.State


class NothingWaits(Conflict):
    code = "nothing-waits"


@transaction.atomic
def move_to_front(organization: Organization, subject: UUID, *, by: str) -> int:
    """Let what waits for ``subject`` go before all else of its organization that is as urgent.

    Other organizations lose nothing by it: the organization's own turn comes no sooner. Returns how
    many tasks were moved. Raises NothingWaits when none waits.
    """
    waiting = Task.objects.of(organization).filter(state=State.QUEUED)
    mine = list(waiting.filter(subject=subject).select_for_update(no_key=True).order_by("pk"))
    if not mine:
        raise NothingWaits("Nothing of it waits: it runs already, or has ended.")
    for task in mine:
        line = waiting.filter(queue=task.queue, light=task.light, priority=task.priority)
        first = line.exclude(subject=subject).aggregate(at=Min("line_at"))["at"]
        if first is not None and first <= task.line_at:
            task.line_at = first - timedelta(milliseconds=1)
            task.save(update_fields=["line_at"])
    emit(mine[0].stream_id, "moved_to_front", {"by": by})
    return len(mine)


@transaction.atomic
def pause(
    *, queue: str = "", organization: Organization | None = None, by: str, reason: str = ""
) -> Pause:
    """Start nothing new on one queue, of one organization, or (neither given) at all.

    What runs goes on, and work may still be queued; those who wait read ``reason``.
    """
    pause, _ = Pause.objects.update_or_create(
        queue=queue, organization=organization, defaults={"by": by, "reason": reason[:200]}
    )
    told = {"queue": queue, "reason": reason}
    record("work.paused", pause, organization=organization, by=by, changes=told)
    return pause


@transaction.atomic
def resume(*, queue: str = "", organization: Organization | None = None, by: str) -> bool:
    """End such a pause, and ring for what waited. False when there was none."""
    found = Pause.objects.filter(queue=queue, organization=organization).first()
    if found is None:
        return False
    record("work.resumed", found, organization=organization, by=by, changes={"queue": queue})
    found.delete()
    waiting = Task.objects.filter(state=State.QUEUED)
    if queue:
        waiting = waiting.filter(queue=queue)
    if organization is not None:
        waiting = waiting.filter(organization=organization)
    for name in waiting.order_by("queue").values_list("queue", flat=True).distinct():
        transaction.on_commit(lambda name=name: bells.ring(name))  # type: ignore[misc]
    return True


def forget_idle() -> int:
    """Forget lines in which nothing waits, runs or was used lately; returns how many.

    Nobody queues meanwhile (the trigger of `Turn` holds the lock together with others), so that no
    line goes to which somebody has just added.
    """
    long_ago = timezone.now() - timedelta(seconds=PATIENCE_S)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(hashtext('workers_turn'))")
        if not cursor.fetchone()[0]:
            return 0
        cursor.execute(
            """
            DELETE FROM workers_turn line
             WHERE (at IS NULL OR at < %s) AND (log_used IS NULL OR log_used < %s)
               AND NOT EXISTS (
                SELECT 1 FROM workers_task t
                 WHERE t.state = 'queued' AND t.queue = line.queue AND t.light = line.light
                   AND t.organization_id = line.organization_id AND t.priority = line.priority)
               AND NOT EXISTS (
                SELECT 1 FROM workers_allocation a JOIN workers_task t ON t.id = a.task_id
                 WHERE a.organization_id = line.organization_id AND t.queue = line.queue
                   AND t.light = line.light AND t.priority = line.priority)
            """,
            [long_ago, log_use(1, 1, seconds_of(long_ago))],
        )
        return cursor.rowcount


def pause_of(task: Task) -> Pause | None:
    """The widest pause that keeps ``task`` waiting."""
    here = [
        pause
        for pause in Pause.objects.all()
        if pause.queue in {"", task.queue} and pause.organization_id in {None, task.organization_id}
    ]
    return min(here, key=lambda p: (p.organization_id is not None, p.queue != ""), default=None)
