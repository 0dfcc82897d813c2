"""What a queued task waits for, and since when until when, for the person who queued it."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from django.db.models import Count, Q
from django.utils import timezone

from organizations import rls
from organizations.models import Organization
from workers import fairshare, routing
from workers.lines import pause_of
from workers.models import OWN_NODES, Task, Worker

BLINK_S = 2  # a wait this short is not worth a sentence
RECENT = 20  # ends from which a typical duration is told
State = Task.State
_WAITS = {State.QUEUED, State.LOST}


@dataclass(frozen=True)
class Wait:
    """Why a task waits: a word for programs, a sentence, its place, when it may start.

    ``position`` counts from 1 within the organization's line; ``expected_start_at`` None means that
    nobody can tell.
    """

    reason: str  # paused | no-node | too-large | limit | behind | held | room
    text: str
    position: int
    expected_start_at: datetime | None = None

    @property
    def expected_in_s(self) -> float | None:
        """Seconds until then, at least one."""
        if self.expected_start_at is None:
            return None
        return max(1.0, (self.expected_start_at - timezone.now()).total_seconds())


def waits_for(tasks: Sequence[Task], organization: Organization) -> str:
    """One sentence for the oldest of ``tasks`` that waits; empty for none or a short wait."""
    wait = wait_of(tasks, organization)
    return wait.text if wait else ""


def wait_of(tasks: Sequence[Task], organization: Organization) -> Wait | None:
    """Why the first of ``tasks`` that waits does so; None for none or a short wait."""
    if not any(task.state in _WAITS for task in tasks):
        return None
    task = first_waiting(tasks)
    if timezone.now() - task.queued_at < timedelta(seconds=BLINK_S):
        return None
    with rls.platform():  # nodes, pauses and lines are everybody's; only what they mean is told
        return explain(task, organization)


def first_waiting(tasks: Sequence[Task]) -> Task:
    """The one of ``tasks`` that waits and is the first in line; there has to be one."""
    waiting = [task for task in tasks if task.state in _WAITS]
    return min(waiting, key=lambda one: (one.line_at, one.queued_at))


def explain(task: Task, organization: Organization) -> Wait:
    """Why ``task`` of ``organization`` does not start now; what keeps it longest comes first."""
    line = Task.objects.filter(
        organization=organization, state=State.QUEUED, queue=task.queue, light=task.light
    )
    before = line.filter(
        Q(priority__gt=task.priority) | Q(priority=task.priority, line_at__lt=task.line_at)
    )
    counts = before.aggregate(tasks=Count("pk"), jobs=Count("subject", distinct=True))
    position = counts["tasks"] + 1
    paused = pause_of(task)
    if paused is not None:
        whose = "your organization's work" if paused.organization_id else "all work"
        what = f"the queue {paused.queue.removeprefix(OWN_NODES)}" if paused.queue else whose
        why = f" ({paused.reason})" if paused.reason else ""
        return Wait("paused", f"The operator has paused {what}{why}. It starts after.", position)

    alive = list(
        Worker.objects.filter(
            Q(organization=None) | Q(organization=organization),
            last_seen_at__gte=Worker.alive_since(),
        )
    )
    serving = [
        node
        for node in alive
        if task.queue in node.queues and not node.draining and node.restart_asked_at is None
    ]
    if not serving:
        return Wait("no-node", _no_node(task, alive), position)
    head = head_of(task)
    able = [
        node
        for node in serving
        if head.fits(fairshare.Room.of_empty(node.capabilities, node.concurrency))
    ]
    if not able:
        return Wait("too-large", _too_large(task, serving), position)

    running = Task.objects.filter(state=State.RUNNING, light=task.light)
    mine = running.filter(organization=organization)
    jobs = set(mine.values_list("subject", flat=True)) if not task.light else set()
    limit = organization.job_limit
    each_s = _typical_s(task)
    if len(jobs) >= limit and task.subject not in jobs:
        text = (
            f"Your organization has {len(jobs)} of {limit} jobs running: "
            "this one starts when one of them ends."
        )
        ends = _free_in_s(mine.values_list("started_at", flat=True), each_s)
        start = fairshare.expected_wait_s(ends, counts["jobs"], each_s or 0) if each_s else None
        return replace(Wait("limit", text, position), expected_start_at=_at(start))

    slots = sum(fairshare.LIGHT_SLOTS if task.light else node.concurrency for node in able)
    busy = running.filter(worker__in=able).values_list("started_at", flat=True)
    ends = _free_in_s(busy, each_s)[:slots]
    free = [*ends, *[0.0] * (slots - len(ends))]
    # Organizations take turns: each has as many turns before it as this one has, at most.
    others = (
        Task.objects.filter(state=State.QUEUED, queue=task.queue, light=task.light)
        .exclude(organization=organization)
        .order_by()
        .values("organization")
        .annotate(n=Count("pk"))
        .values_list("n", flat=True)
    )
    ahead = counts["tasks"] + sum(min(n, position) for n in others)
    start_s = fairshare.expected_wait_s(free, ahead, each_s) if each_s else None
    names = ", ".join(node.name for node in able[:3]) + (" and others" if len(able) > 3 else "")
    if task.held_on_id is not None and any(node.pk == task.held_on_id for node in able):
        name = next(node.name for node in able if node.pk == task.held_on_id)
        text = f"{name} is kept free for it: it starts there when what runs now has ended."
        return Wait("held", text, position, _at(start_s))
    if counts["jobs"]:
        jobs_before = f"{counts['jobs']} job{'s' if counts['jobs'] != 1 else ''}"
        text = f"Waits behind {jobs_before} of your organization, for room on {names}."
        return Wait("behind", text, position, _at(start_s))
    crowd = f", which other organizations wait for, too ({len(others)})" if others else ""
    text = f"Waits for room on {names}{crowd}. It is the next one of your organization."
    return Wait("room", text, position, _at(start_s))


def _no_node(task: Task, alive: list[Worker]) -> str:
    words = routing.in_words(task.queue)
    own = task.queue.startswith(OWN_NODES)
    if own:
        # Whatever lies there needs a file that such a node wrote, which no other loads.
        alive = [node for node in alive if node.organization_id is not None]
        whose = "a node of your organization's own, which made a file that it needs"
        text = f"Waits for {whose}{f', with {words}' if words else ''}: "
    else:
        text = f"Waits for a node{f' with {words}' if words else ''} (queue {task.queue}): "
    if not alive and own:
        return f"{text}none is connected. Start one of them, or add one on the page Workers."
    if not alive:
        return f"{text}no node is connected. Start one, or tell the operator of this installation."
    leaving = [node for node in alive if task.queue in node.queues]
    if leaving:
        names = ", ".join(node.name for node in leaving[:3])
        why = "could do it, but takes no new work at the moment"
        if all(node.restart_asked_at for node in leaving):
            why = "restarts, and will do it then"
        return f"{text}{names} {why}."
    served = {
        node.name: [queue for queue in node.queues if queue.startswith(OWN_NODES) == own]
        for node in alive
    }
    near = routing.nearest(task.queue, served)
    nearest = f"; nearest: {near[0].removeprefix(OWN_NODES)} on node {near[1]}" if near else ""
    return f"{text}none is online{nearest}."


def _too_large(task: Task, serving: list[Worker]) -> str:
    def has(name: str, of_each: float) -> float:
        return max(float(node.capabilities.get(name, 0)) * of_each for node in serving)

    ram_gib = has("ram_mib", fairshare.USABLE_RAM / 1024)
    return (
        f"Needs {task.cpu_millis / 1000:g} cores and {task.ram_mib / 1024:.1f} GiB of memory, "
        f"which no connected node has: the most are {has('cpu', 1):g} cores and {ram_gib:.1f} GiB. "
        "Use less data, or connect a larger node."
    )


def head_of(task: Task) -> fairshare.Waiting[str]:
    """A task as the pure choice sees it."""
    return fairshare.Waiting(
        str(task.pk),
        str(task.organization_id),
        task.queue,
        task.light,
        task.priority,
        task.queued_at.timestamp(),
        task.line_at.timestamp(),
        task.cpu_millis,
        task.ram_mib,
        task.gpus,
        task.gpu_ram_mib,
    )


def _typical_s(task: Task) -> float | None:
    """The median duration (s) of what ended lately on the same queue; None without any."""
    ended = Task.objects.filter(
        queue=task.queue, kind=task.kind, state=State.SUCCEEDED, started_at__isnull=False
    ).order_by("-finished_at")
    took = [
        (finished - started).total_seconds()
        for started, finished in ended.values_list("started_at", "finished_at")[:RECENT]
        if started and finished
    ]
    return statistics.median(took) if took else None


def _free_in_s(started: Iterable[datetime | None], each_s: float | None) -> list[float]:
    now = timezone.now()
    return sorted(
        max(0.0, (each_s or 0.0) - (now - at).total_seconds()) for at in started if at is not None
    )


def _at(in_s: float | None) -> datetime | None:
    return None if in_s is None else timezone.now() + timedelta(seconds=in_s)
