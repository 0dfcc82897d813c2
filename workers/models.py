import hashlib
import json
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar

from django.conf import settings
from django.contrib.postgres.indexes import BrinIndex
from django.db import connection, models, transaction
from django.db.models.functions import Coalesce
from django.utils import timezone

from accounts.errors import Conflict
from accounts.models import User
from organizations.models import Organization, OrgOwned
from workers import metrics, push

# Before the name of a queue: for nodes of the organization whose task lies there, and no others.
OWN_NODES = "own."


class Stream(models.Model):
    """A topic that people may listen to, and how many events it has.

    The counter's row lock gives events their sequence numbers in the order of their commits, so
    that a listener who has seen number N has seen all before it.
    """

    topic = models.CharField(max_length=80, primary_key=True)
    organization = models.ForeignKey(Organization, models.CASCADE, related_name="streams")
    last_seq = models.PositiveIntegerField(default=0)

    def __str__(self) -> str:
        return self.topic


class Worker(models.Model):
    """A node: one machine's supervisor. It works for everybody, or for its organization alone."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    organization = models.ForeignKey(
        Organization,
        models.CASCADE,
        null=True,
        blank=True,
        related_name="workers",
        help_text="Empty: the platform's own, which works for everybody.",
    )
    name = models.CharField(max_length=80)
    version = models.CharField(max_length=40, blank=True)
    capabilities = models.JSONField(default=dict)
    queues = models.JSONField(default=list)
    usage = models.JSONField(default=dict)
    address = models.CharField(max_length=255, blank=True, help_text="Where predictions go.")
    concurrency = models.PositiveSmallIntegerField(default=1)
    classes = models.JSONField(default=list, help_text="Work that it asked for; empty: all.")
    wanted = models.JSONField(
        default=dict,
        help_text="What was set here (concurrency, queues) in place of its own wishes.",
    )
    draining = models.BooleanField(default=False)
    restart_asked_at = models.DateTimeField(null=True, blank=True)
    broker_hash = models.CharField(
        max_length=64, blank=True, help_text="SHA-256 of its password at the broker, if it has one."
    )
    token_hash = models.CharField(max_length=64, unique=True)
    registered_at = models.DateTimeField(auto_now_add=True)
    last_seen_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["name"],
                condition=models.Q(organization=None),
                name="worker_of_platform_unique",
            ),
            models.UniqueConstraint(fields=["organization", "name"], name="worker_unique"),
        ]

    def __str__(self) -> str:
        return self.name

    @staticmethod
    def hash_token(token: str) -> str:
        return hashlib.sha256(token.encode()).hexdigest()

    @staticmethod
    def alive_since() -> datetime:
        """A node that was heard at this time or later counts as alive."""
        return timezone.now() - timedelta(seconds=settings.LEASE_S)

    @property
    def is_alive(self) -> bool:
        return self.last_seen_at >= self.alive_since()


class JoinToken(models.Model):
    """Lets machines join for a short while: the platform's own, or one organization's."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    organization = models.ForeignKey(
        Organization, models.CASCADE, null=True, blank=True, related_name="join_tokens"
    )
    made_by = models.ForeignKey(User, models.SET_NULL, null=True, blank=True, related_name="+")
    token_hash = models.CharField(max_length=64, unique=True)
    max_uses = models.PositiveSmallIntegerField(default=1)
    uses = models.PositiveSmallIntegerField(default=0)
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()

    class Meta:
        ordering: ClassVar = ["-created_at"]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=models.Q(uses__lte=models.F("max_uses")), name="join_token_uses_left"
            )
        ]

    def __str__(self) -> str:
        return f"for {self.organization or 'the platform'}, until {self.expires_at:%H:%M}"


class IllegalMove(Conflict):
    code = "illegal-move"


class StaleWrite(Conflict):
    code = "stale-write"


class Task(OrgOwned):
    """One unit of work that a node can do, and how far it has come."""

    class State(models.TextChoices):
        QUEUED = "queued"  # waits for a node with room that claims it
        RUNNING = "running"  # a node holds the lease
        LOST = "lost"  # the lease ran out
        SUCCEEDED = "succeeded"
        FAILED = "failed"
        CANCELLED = "cancelled"

    class Fault(models.TextChoices):
        NONE = ""
        WORK = "work"  # bad data, budget, a crash of its own
        PLATFORM = "platform"  # lost too often

    MOVES: ClassVar = {
        State.QUEUED: {State.RUNNING, State.CANCELLED},
        State.RUNNING: {
            State.SUCCEEDED,
            State.FAILED,
            State.LOST,
            State.CANCELLED,
            State.QUEUED,  # handed back unharmed by a node that drains or shuts down
        },
        State.LOST: {State.QUEUED, State.FAILED, State.CANCELLED},
    }
    ENDED: ClassVar = (State.SUCCEEDED, State.FAILED, State.CANCELLED)

    stream = models.ForeignKey(Stream, models.CASCADE, related_name="tasks")
    kind = models.CharField(max_length=40)
    subject = models.UUIDField(db_index=True, help_text="What it is done for: a job, a version.")
    payload = models.JSONField(default=dict)
    inputs = models.JSONField(default=dict, help_text="Artifact ids by name.")

    engine = models.CharField(max_length=40, blank=True)
    device = models.CharField(max_length=8, default="cpu", help_text="cpu, gpu or llm.")
    queue = models.CharField(max_length=80)
    light = models.BooleanField(default=False)
    cpu_millis = models.PositiveIntegerField(default=1000)
    ram_mib = models.PositiveIntegerField(default=2048)
    gpus = models.PositiveSmallIntegerField(default=0, help_text="Whole devices.")
    gpu_ram_mib = models.PositiveIntegerField(default=0, help_text="Needed on each device.")
    time_limit_s = models.PositiveIntegerField(default=600)
    priority = models.SmallIntegerField(default=0, help_text="Higher goes first.")

    state = models.CharField(max_length=16, choices=State, default=State.QUEUED)
    attempt = models.PositiveSmallIntegerField(default=1)
    losses = models.PositiveSmallIntegerField(default=0)
    max_losses = models.PositiveSmallIntegerField(default=3)
    worker = models.ForeignKey(Worker, models.SET_NULL, null=True, blank=True, related_name="tasks")
    lease_expires_at = models.DateTimeField(null=True, blank=True)
    queued_at = models.DateTimeField(default=timezone.now)
    line_at = models.DateTimeField(
        default=timezone.now,
        help_text="Its place in its organization's line: when it was queued, or earlier.",
    )
    held_on = models.ForeignKey(
        Worker,
        models.SET_NULL,
        null=True,
        blank=True,
        related_name="held",
        help_text="The node that is kept free for it: it waited long and needs much.",
    )
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    spent_s = models.FloatField(default=0, help_text="Seconds that earlier attempts took.")
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    stop_requested_at = models.DateTimeField(null=True, blank=True)

    progress = models.FloatField(default=0, help_text="0 to 1.")
    message = models.CharField(max_length=300, blank=True)
    events_kept = models.PositiveIntegerField(default=0, help_text="Of what nodes reported.")
    event_bytes = models.PositiveBigIntegerField(default=0, help_text="As JSON.")
    result = models.JSONField(default=dict)
    code = models.CharField(max_length=60, blank=True)
    error = models.TextField(blank=True)
    fault = models.CharField(max_length=16, choices=Fault, default=Fault.NONE, blank=True)
    usage = models.JSONField(default=dict)
    handled_at = models.DateTimeField(null=True, blank=True, help_text="Its end was reacted to.")
    tries = models.PositiveSmallIntegerField(default=0)

    more: bool = True  # of a task just claimed, not stored: asking again at once may bring another

    class Meta:
        indexes: ClassVar = [
            models.Index(
                # The first of a line, for a claim.
                fields=["queue", "light", "organization", "priority", "line_at"],
                condition=models.Q(state="queued"),
                name="task_lines",
            ),
            models.Index(
                # All that runs, for the sweep. Not by lease, which heartbeats write: each would
                # have to write every other index, too (no "heap-only" update).
                fields=["worker"],
                condition=models.Q(state="running"),
                name="task_running",
            ),
            models.Index(
                # How long it took lately, for those who wait.
                fields=["queue", "kind", "-finished_at"],
                condition=models.Q(state="succeeded"),
                name="task_durations",
            ),
            models.Index(
                fields=["finished_at"],
                condition=models.Q(finished_at__isnull=False),
                name="task_ends",
            ),
            BrinIndex(fields=["queued_at"], name="task_queued_at"),
            models.Index(
                fields=["finished_at"],
                condition=models.Q(handled_at=None, finished_at__isnull=False),
                name="task_unhandled",
            ),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=~models.Q(state="running") | models.Q(lease_expires_at__isnull=False),
                name="task_running_has_lease",
            ),
            models.CheckConstraint(
                condition=models.Q(
                    finished_at__isnull=False, state__in=["succeeded", "failed", "cancelled"]
                )
                | (
                    models.Q(finished_at__isnull=True)
                    & ~models.Q(state__in=["succeeded", "failed", "cancelled"])
                ),
                name="task_finished_is_final",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {str(self.pk)[:8]}"

    @property
    def has_ended(self) -> bool:
        return self.state in self.ENDED

    def move_to(
        self, new: "Task.State", *, by: str = "system", reason: str = "", **fields: object
    ) -> None:
        """Write ``new`` and ``fields`` if the stored row has this instance's state and attempt.

        Raises IllegalMove when MOVES has no such arrow, StaleWrite when another process won.
        """
        old = self.State(self.state)
        if new not in self.MOVES.get(old, set()):
            raise IllegalMove(f"A task that is {old} can't become {new}.")
        if new in self.ENDED:
            fields.setdefault("finished_at", timezone.now())
        fields["state"] = new
        with transaction.atomic(savepoint=False):
            stored = Task.objects.filter(pk=self.pk, state=old, attempt=self.attempt)
            moved = stored.update(**fields)
            if moved:
                for name, value in fields.items():
                    setattr(self, name, value)
                told = {"from": old, "why": reason, "by": by}
                told |= {"kind": self.kind, "engine": self.engine}
                emit(self.stream_id, f"task.{new}", told, task=self)
        if not moved:
            raise StaleWrite(f"The task is no longer {old} in attempt {self.attempt}.")
        metrics.MOVES.labels(self.kind, new, self.fault).inc()


class Event(models.Model):
    """Something that happened, numbered within its stream; only ``handled_at`` ever changes."""

    HANDLED: ClassVar = frozenset({"candidate", "notice", "started"})  # types that others react to

    stream = models.ForeignKey(Stream, models.CASCADE, related_name="events")
    seq = models.PositiveIntegerField()
    at = models.DateTimeField(default=timezone.now)
    type = models.CharField(max_length=40)
    data = models.JSONField(default=dict)
    files = models.JSONField(default=dict, help_text="Artifact ids by name.")
    task = models.ForeignKey(Task, models.CASCADE, null=True, blank=True, related_name="events")
    attempt = models.PositiveSmallIntegerField(null=True, blank=True)
    key = models.CharField(max_length=120, blank=True, help_text="A candidate's stable name.")
    handled_at = models.DateTimeField(null=True, blank=True)
    tries = models.PositiveSmallIntegerField(default=0)

    class Meta:
        ordering: ClassVar = ["stream", "seq"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["stream", "seq"], name="event_seq_unique"),
            models.UniqueConstraint(
                fields=["task", "key"],
                condition=models.Q(type="candidate"),
                name="event_candidate_unique",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["task", "seq"],
                condition=models.Q(handled_at=None),
                name="event_unhandled",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.stream_id} {self.seq} {self.type}"


# One statement, since everything that happens passes here. The counter's row stays locked until the
# commit: see Stream.
_EMIT = """
WITH stream AS (
  UPDATE workers_stream SET last_seq = last_seq + 1 WHERE topic = %s RETURNING topic, last_seq
)
INSERT INTO workers_event
       (stream_id, seq, at, type, data, files, task_id, attempt, key, handled_at, tries)
SELECT topic, last_seq, %s, %s, %s::jsonb, %s::jsonb, %s, %s, %s, %s, 0 FROM stream
RETURNING id, seq
"""


def emit(
    topic: str,
    type: str,
    data: Mapping[str, Any],
    *,
    task: Task | None = None,
    files: Mapping[str, str] | None = None,
    key: str = "",
    at: datetime | None = None,
) -> Event:
    """Append an event to a topic's stream, and push it to those who listen once it is committed.

    Raises Stream.DoesNotExist when nothing has opened the topic.
    """
    event = Event(
        stream_id=topic,
        at=at or timezone.now(),
        type=type,
        data=dict(data),
        files=dict(files or {}),
        task=task,
        attempt=task.attempt if task else None,
        key=key,
        handled_at=None if type in Event.HANDLED else timezone.now(),
    )
    with transaction.atomic(savepoint=False), connection.cursor() as cursor:
        cursor.execute(
            _EMIT,
            [
                topic,
                event.at,
                type,
                json.dumps(event.data),
                json.dumps(event.files),
                event.task_id,
                event.attempt,
                key,
                event.handled_at,
            ],
        )
        row = cursor.fetchone()
        if row is None:
            raise Stream.DoesNotExist(topic)
        event.pk, seq = row
        event.seq, event._state.adding = seq, False
        transaction.on_commit(lambda: push.notify(topic, seq))
    return event


class Artifact(OrgOwned):
    """A stored file: an upload, or what a node wrote. Hashed, and signed, when it arrived."""

    task = models.ForeignKey(Task, models.SET_NULL, null=True, blank=True, related_name="artifacts")
    name = models.CharField(max_length=200)
    file = models.FileField(max_length=300)
    sha256 = models.CharField(max_length=64)
    size = models.PositiveBigIntegerField()
    signature = models.CharField(max_length=128)
    own_node = models.BooleanField(
        default=False, help_text="Written by the organization's own node: only those load it."
    )

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["task", "name", "sha256"], name="artifact_of_task_unique"
            )
        ]

    def __str__(self) -> str:
        return self.name


class Allocation(models.Model):
    """What a running task takes of its node, or a replica of a deployment: that has no task.

    Deleted when it leaves the node.
    """

    worker = models.ForeignKey(Worker, models.CASCADE, related_name="allocations")
    task = models.OneToOneField(
        Task, models.CASCADE, null=True, blank=True, related_name="allocation"
    )
    organization = models.ForeignKey(Organization, models.CASCADE, related_name="+")
    cpu_millis = models.PositiveIntegerField()
    ram_mib = models.PositiveIntegerField()
    gpus = models.PositiveSmallIntegerField(default=0)
    gpu_ram_mib = models.PositiveIntegerField(default=0)
    light = models.BooleanField(default=False)
    share = models.FloatField(
        default=0, help_text="Of the shared fleet, for its organization's weight. A light slot: 1."
    )
    since = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.task_id or 'a replica'} on {self.worker_id}"


class Pause(models.Model):
    """An operator's word that nothing new starts: on one queue, of one organization, or at all."""

    queue = models.CharField(max_length=80, blank=True, help_text="Empty: on every queue.")
    organization = models.ForeignKey(
        Organization,
        models.CASCADE,
        null=True,
        blank=True,
        related_name="pauses",
        help_text="Empty: of every organization.",
    )
    reason = models.CharField(max_length=200, blank=True, help_text="Those who wait read it.")
    by = models.CharField(max_length=160, blank=True)
    since = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                "queue",
                # Two nulls are one: `nulls_distinct` would want PostgreSQL 15.
                Coalesce("organization", models.Value(uuid.UUID(int=0))),
                name="pause_unique",
            )
        ]

    def __str__(self) -> str:
        what = f"the queue {self.queue}" if self.queue else "every queue"
        return f"{what} of {self.organization}" if self.organization else what


class Turn(models.Model):
    """A line that may have something waiting: an organization's, of one queue, class and urgency.

    A trigger of the database sees that every queued task has its line's row here, whoever queued
    it; `lines.forget_idle` takes away the rows of those that are empty. So a claim needs to look at
    the first task of only those lines that may be next.
    """

    organization = models.ForeignKey(Organization, models.CASCADE, related_name="turns")
    queue = models.CharField(max_length=80)
    light = models.BooleanField()
    priority = models.SmallIntegerField()
    since = models.DateTimeField(
        default=timezone.now, help_text="It waits since then: its last start, or its first task."
    )
    at = models.DateTimeField(null=True, help_text="When something of it was last started.")
    out_of_turn = models.BooleanField(default=False, help_text="It went first, having waited long.")
    log_used = models.FloatField(
        null=True, help_text="What its organization used lately (`fairshare.added`)."
    )

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["organization", "queue", "light", "priority"], name="turn_unique"
            )
        ]

    def __str__(self) -> str:
        return f"{self.queue} of {self.organization_id} since {self.since}"


class Pulse(models.Model):
    """When the sweep last ran: the one row by which it notices that it did not run for a while."""

    swept_at = models.DateTimeField()
    heard_since = models.DateTimeField(
        default=timezone.now, help_text="Since when nodes could be heard without a break."
    )

    def __str__(self) -> str:
        return f"swept at {self.swept_at}"
