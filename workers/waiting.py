"""What a queued task waits for, in words for the person who queued it."""

from collections.abc import Sequence
from datetime import timedelta

from django.utils import timezone

from organizations import rls
from organizations.models import Organization
from workers.models import Task, Worker

BLINK_S = 2  # a wait this short is not worth a sentence


def waits_for(tasks: Sequence[Task], organization: Organization) -> str:
    """One sentence for the oldest of ``tasks`` that waits; empty for none or a short wait."""
    waiting = [task for task in tasks if task.state in {Task.State.QUEUED, Task.State.LOST}]
    if not waiting:
        return ""
    task = min(waiting, key=lambda one: one.queued_at)
    if timezone.now() - task.queued_at < timedelta(seconds=BLINK_S):
        return ""
    alive = Worker.objects.filter(last_seen_at__gte=Worker.alive_since())
    serving = [node for node in alive.filter(queues__contains=[task.queue]) if not node.draining]
    if not serving:
        others = alive.exists()
        return (
            f"Waits for a node that can do “{task.queue}” work: "
            f"{'none of the connected nodes can' if others else 'no node is connected'}. "
            "Start one, or tell the operator of this installation."
        )
    running = Task.objects.filter(
        organization=organization, state=Task.State.RUNNING, light=False
    ).values("subject")
    busy = running.distinct().count()
    if not task.light and busy >= organization.job_limit:
        return (
            f"Your organization runs {busy} of at most {organization.job_limit} trainings at once: "
            "this one starts when one of them ends."
        )
    with rls.platform():  # the line is everybody's; only its length is told
        before = Task.objects.filter(
            state=Task.State.QUEUED,
            queue=task.queue,
            light=task.light,
            queued_at__lt=task.queued_at,
        ).count()
    names = ", ".join(node.name for node in serving[:3])
    ahead = f"{before} other task{'s' if before != 1 else ''} before it" if before else "it is next"
    return f"Waits for room on {names}: {ahead}."
