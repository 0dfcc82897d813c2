import math
from typing import Any, ClassVar

from django.conf import settings
from django.core.validators import RegexValidator
from django.db import models
from django.db.models import Q
from django.urls import reverse
from django.utils import timezone

from accounts import sealing
from clusters.scheduling import Resources
from organizations.models import OrgOwned, OrgQuerySet
from training.models import TrainedModel, TrainingJob
from workers.models import Allocation, Worker

NAME = RegexValidator(
    r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z",
    "Use letters, digits, dots, dashes and underscores, and begin with a letter or a digit.",
)

CONTAINERS = "containers"  # among what a node must have: Docker or Podman


def canary_replicas(replicas: int, percent: int) -> int:
    """How many replicas a canary with this share of a deployment's requests has."""
    return max(1, math.ceil(replicas * percent / 100))


class Priority(models.IntegerChoices):
    """How urgent a deployment is: it may take the place of those below it."""

    LOW = 0, "LOW"
    MEDIUM = 1, "MEDIUM"
    HIGH = 2, "HIGH"
    CRITICAL = 3, "CRITICAL"


class Cluster(OrgOwned):
    """A pool of nodes on which an organization's deployments run.

    Without limits they may use all that the nodes have; with them no more than that together.
    """

    name = models.CharField(max_length=63, validators=[NAME])
    max_ram_mib = models.PositiveIntegerField(null=True, blank=True)
    max_cpu_millis = models.PositiveIntegerField(null=True, blank=True)
    max_gpus = models.PositiveIntegerField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["name"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["organization", "name"], name="cluster_name_unique")
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("clusters:cluster", args=[self.pk])

    @property
    def limit(self) -> Resources | None:
        """What its deployments may hold together; None: all that the nodes have."""
        said = (self.max_ram_mib, self.max_cpu_millis, self.max_gpus)
        if said == (None, None, None):
            return None
        return Resources(*(2**40 if one is None else one for one in said))


class ClusterNode(OrgOwned):
    """A node in a cluster. A node is in one at most, so that two plans never meet on it."""

    cluster = models.ForeignKey(Cluster, models.CASCADE, related_name="nodes")
    worker = models.OneToOneField(Worker, models.CASCADE, related_name="cluster_node")

    class Meta:
        ordering: ClassVar = ["worker__name"]

    def __str__(self) -> str:
        return f"{self.worker} in {self.cluster}"


class ClusterLoad(models.Model):
    """What a cluster had, what was taken of it and what was free at a moment: scheduling.Resources.

    Kept for a week: see clusters/history.py.
    """

    cluster = models.ForeignKey(Cluster, models.CASCADE, related_name="loads")
    at = models.DateTimeField()
    nodes = models.PositiveIntegerField()
    online = models.PositiveIntegerField(help_text="Of the nodes.")
    total = models.JSONField()
    allocated = models.JSONField()
    free = models.JSONField()

    class Meta:
        ordering: ClassVar = ["cluster", "-at"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["cluster", "at"], name="cluster_load_unique")
        ]
        indexes: ClassVar = [models.Index(fields=["at"], name="cluster_load_when")]

    def __str__(self) -> str:
        return f"{self.cluster} at {self.at:%Y-%m-%d %H:%M}"


class DeploymentQuerySet(OrgQuerySet["Deployment"]):
    def there(self) -> "DeploymentQuerySet":
        """Without those that are about to be gone."""
        return self.filter(deleted_at=None)


class Deployment(OrgOwned):
    """Something that keeps running: replicas of its current revision, on nodes of its cluster.

    People change what is wanted. ``state``, and all that follows it here, only the cycle writes
    (clusters/cycle.py), under the cluster's lock.
    """

    class State(models.TextChoices):
        PENDING = "pending"  # no node has room, or something must come first: ``wait`` says which
        SCHEDULED = "scheduled"  # a node was chosen and has not begun
        STARTING = "starting"
        RUNNING = "running"  # at least one replica answers
        STOPPING = "stopping"
        STOPPED = "stopped"
        FAILED = "failed"  # it crashed, and is tried again at ``not_before``
        PREEMPTED = "preempted"  # it made room for something more urgent, and waits

    cluster = models.ForeignKey(Cluster, models.RESTRICT, related_name="deployments")
    name = models.CharField(max_length=63, validators=[NAME])
    revision = models.ForeignKey(
        "Revision", models.SET_NULL, null=True, blank=True, related_name="+",
        help_text="The one that should run.",
    )  # fmt: skip
    canary = models.ForeignKey(
        "Revision", models.SET_NULL, null=True, blank=True, related_name="+",
        help_text="One that is tried beside it.",
    )  # fmt: skip
    canary_percent = models.PositiveSmallIntegerField(
        default=0, help_text="Of the requests, that the canary answers."
    )
    canary_is_shadow = models.BooleanField(
        default=False, help_text="It is asked that share as well, and nobody gets its answers."
    )
    ram_mib = models.PositiveIntegerField(help_text="Per replica.")
    cpu_millis = models.PositiveIntegerField(help_text="Per replica.")
    gpus = models.PositiveSmallIntegerField(default=0, help_text="Whole devices, per replica.")
    priority = models.SmallIntegerField(choices=Priority, default=Priority.MEDIUM)
    preemptible = models.BooleanField(default=True)
    spread = models.BooleanField(default=False, help_text="Over as many nodes as can be.")
    replicas = models.PositiveSmallIntegerField(default=1, help_text="Wanted while it is started.")
    is_started = models.BooleanField(default=True, help_text="Whether people want it to run.")
    timeout_s = models.PositiveSmallIntegerField(
        default=30, help_text="A request that is not answered by then gets 504."
    )
    max_in_flight = models.PositiveSmallIntegerField(
        default=64, help_text="Requests that may wait for an answer at a time."
    )
    samples = models.BooleanField(
        default=True, help_text="Keep some of what it is asked and answers, to watch for drift."
    )
    drift_threshold = models.FloatField(
        default=0.2, help_text="A column whose PSI is past it has drifted: see clusters/drift.py."
    )
    follows = models.CharField(
        max_length=170, blank=True, help_text="The name, or name@alias, whose model it runs."
    )
    not_followed = models.JSONField(
        default=dict, blank=True, help_text="The model that it could not become, and why."
    )
    retraining = models.ForeignKey(
        TrainingJob, models.SET_NULL, null=True, blank=True, related_name="+",
        help_text="The last training that was started here, on newer data.",
    )  # fmt: skip
    deleted_at = models.DateTimeField(null=True, blank=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    state = models.CharField(max_length=12, choices=State, default=State.PENDING)
    ready = models.PositiveSmallIntegerField(default=0, help_text="Replicas that answer.")
    generation = models.PositiveIntegerField(default=0, help_text="Replicas placed so far.")
    waiting_since = models.DateTimeField(
        null=True, blank=True, default=timezone.now, help_text="Since when a replica is lacking."
    )
    wait = models.JSONField(default=dict, help_text="Why it waits: scheduling.Wait, with names.")
    preempted_by = models.CharField(
        max_length=80, blank=True, help_text="What took its place, until it has one again."
    )
    failures = models.PositiveSmallIntegerField(default=0, help_text="Crashes in a row.")
    not_before = models.DateTimeField(null=True, blank=True)
    error = models.TextField(blank=True, help_text="Of the last crash.")
    canary_is = models.JSONField(
        default=dict, blank=True, help_text="The same of the canary: ready, failures, wait, ..."
    )

    objects: ClassVar[Any] = DeploymentQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at", "id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["organization", "name"],
                condition=Q(deleted_at=None),
                name="deployment_name_unique",
            ),
            models.CheckConstraint(condition=Q(replicas__gte=1), name="deployment_wants_a_replica"),
            models.CheckConstraint(
                condition=Q(canary_percent__lte=100), name="deployment_canary_is_share"
            ),
        ]
        indexes: ClassVar = [
            models.Index(fields=["cluster", "state"], name="deployment_of_cluster"),
            models.Index(fields=["organization", "-created_at"], name="deployment_newest"),
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("clusters:deployment", args=[self.pk])

    @property
    def topic(self) -> str:
        """Where its live events appear."""
        return f"deployment:{self.pk}"

    @property
    def needs(self) -> Resources:
        return Resources(self.ram_mib, self.cpu_millis, self.gpus)

    @property
    def canary_replicas(self) -> int:
        """How many the canary's share of the requests takes."""
        return canary_replicas(self.replicas, self.canary_percent)


class Revision(models.Model):
    """What a deployment ran at some time, and can run again. Never changed."""

    deployment = models.ForeignKey(Deployment, models.CASCADE, related_name="revisions")
    number = models.PositiveIntegerField()
    model = models.ForeignKey(
        TrainedModel, models.RESTRICT, null=True, blank=True, related_name="revisions"
    )
    image = models.CharField(max_length=300, blank=True)
    env_sealed = models.TextField(blank=True, help_text="Encrypted: see accounts/sealing.py.")
    env_names = models.JSONField(default=list)
    port = models.PositiveIntegerField(default=8080)
    health_path = models.CharField(max_length=200, default="/health")
    engines = models.JSONField(default=list, help_text="A node must have them all.")
    own_nodes = models.BooleanField(
        default=False, help_text="Trained on the organization's own node: it runs on those alone."
    )
    made_by = models.CharField(max_length=160, blank=True, help_text="A name, as it was then.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["-number"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["deployment", "number"], name="revision_unique")
        ]

    def __str__(self) -> str:
        return f"revision {self.number}"

    @property
    def labels(self) -> frozenset[str]:
        """What a node must have to run it, as in ``scheduling.Node``."""
        return frozenset([*self.engines, *(["own-node"] if self.own_nodes else [])])

    @property
    def env(self) -> dict[str, str]:
        """Raises sealing.Unreadable."""
        return sealing.unseal(self.env_sealed) if self.env_sealed else {}


class Dependency(models.Model):
    """``deployment`` starts only while ``needs`` runs."""

    deployment = models.ForeignKey(Deployment, models.CASCADE, related_name="dependencies")
    needs = models.ForeignKey(Deployment, models.CASCADE, related_name="dependents")

    class Meta:
        verbose_name_plural = "dependencies"
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["deployment", "needs"], name="dependency_unique"),
            models.CheckConstraint(
                condition=~Q(deployment=models.F("needs")), name="dependency_not_on_itself"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.deployment} after {self.needs}"


class Replica(OrgOwned):
    """One placement of one replica: a row of its own each time, so that no report of a node can be
    mistaken for one about a later placement.

    ``said`` is what its node reported last; the cycle makes a state of it.
    """

    class State(models.TextChoices):
        SCHEDULED = "scheduled"
        STARTING = "starting"
        RUNNING = "running"  # loaded, and answers
        STOPPING = "stopping"
        STOPPED = "stopped"
        FAILED = "failed"
        PREEMPTED = "preempted"

    MOVES: ClassVar = {
        State.SCHEDULED: {
            State.STARTING, State.RUNNING, State.STOPPING, State.STOPPED, State.FAILED,
            State.PREEMPTED,
        },
        State.STARTING: {State.RUNNING, State.STOPPING, State.FAILED},
        State.RUNNING: {State.STARTING, State.STOPPING, State.FAILED},  # its node began anew
        State.STOPPING: {State.STOPPED, State.PREEMPTED},
    }  # fmt: skip
    ACTIVE: ClassVar = (State.SCHEDULED, State.STARTING, State.RUNNING, State.STOPPING)

    class Fault(models.TextChoices):
        NONE = ""
        WORK = "work"  # it crashed: counted, and tried again later and later
        NODE = "node"  # its node went: tried elsewhere at once

    deployment = models.ForeignKey(Deployment, models.CASCADE, related_name="placed")
    revision = models.ForeignKey(Revision, models.CASCADE, related_name="placed")
    number = models.PositiveSmallIntegerField(help_text="0 to the wanted replicas, less one.")
    generation = models.PositiveIntegerField(help_text="The deployment's count of placements.")
    node = models.ForeignKey(
        Worker, models.SET_NULL, null=True, blank=True, related_name="replicas"
    )
    node_name = models.CharField(max_length=80, blank=True, help_text="As it was then.")
    allocation = models.OneToOneField(
        Allocation, models.SET_NULL, null=True, blank=True, related_name="replica"
    )
    state = models.CharField(max_length=12, choices=State, default=State.SCHEDULED)
    has_room = models.BooleanField(
        default=False, help_text="What made room for it is gone: its node may start it."
    )
    why = models.TextField(blank=True)
    fault = models.CharField(max_length=8, choices=Fault, default=Fault.NONE, blank=True)
    room_for = models.ForeignKey(
        Deployment, models.SET_NULL, null=True, blank=True, related_name="+",
        help_text="The deployment that it makes room for.",
    )  # fmt: skip
    said = models.CharField(max_length=12, blank=True)
    said_why = models.TextField(blank=True)
    stop_by = models.DateTimeField(null=True, blank=True, help_text="When its node ends it.")
    running_since = models.DateTimeField(null=True, blank=True)
    metered_until = models.DateTimeField(
        default=timezone.now, help_text="What it held up to then is in its organization's ledger."
    )
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["deployment", "-generation"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["deployment", "generation"], name="replica_generation_unique"
            ),
            models.CheckConstraint(
                condition=Q(ended_at__isnull=True, state__in=["scheduled", "starting", "running",
                                                              "stopping"])
                | Q(ended_at__isnull=False, state__in=["stopped", "failed", "preempted"]),
                name="replica_ended_is_final",
            ),
        ]  # fmt: skip
        indexes: ClassVar = [
            models.Index(
                fields=["node"], condition=Q(ended_at__isnull=True), name="replica_of_node"
            ),
            models.Index(
                fields=["deployment"],
                condition=Q(ended_at__isnull=True),
                name="replica_of_deployment",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.deployment} #{self.number}, placement {self.generation}"


class LogLine(models.Model):
    """A line that a replica has printed. The newest of a deployment are kept."""

    deployment = models.ForeignKey(Deployment, models.CASCADE, related_name="log_lines")
    replica = models.PositiveSmallIntegerField(help_text="Its number.")
    generation = models.PositiveIntegerField(help_text="Of its placement.")
    revision = models.PositiveIntegerField()
    at = models.DateTimeField()
    text = models.TextField()

    class Meta:
        ordering: ClassVar = ["deployment", "-id"]
        indexes: ClassVar = [models.Index(fields=["deployment", "-id"], name="log_line_newest")]

    def __str__(self) -> str:
        return self.text[:80]


class ServedMinute(models.Model):
    """What a deployment was asked in one minute, by revision; 0: when none answered."""

    deployment = models.ForeignKey(Deployment, models.CASCADE, related_name="minutes")
    revision = models.PositiveIntegerField()
    minute = models.DateTimeField(help_text="When it began.")
    requests = models.PositiveIntegerField(help_text="All of them.")
    refused = models.PositiveIntegerField(default=0, help_text="Of these with a status of 4xx.")
    errors = models.PositiveIntegerField(default=0, help_text="Of these with a status of 5xx.")
    failed = models.PositiveIntegerField(
        default=0, help_text="Times that a replica could not answer: others were asked then."
    )
    rows = models.PositiveBigIntegerField(default=0, help_text="Predicted.")
    compared = models.PositiveBigIntegerField(
        default=0, help_text="Rows that a shadow predicted as well."
    )
    same = models.PositiveBigIntegerField(default=0, help_text="Of these with the same prediction.")
    latency = models.JSONField(
        default=dict, help_text="How many were answered in the time of each bucket: watch.upper_ms."
    )

    class Meta:
        ordering: ClassVar = ["deployment", "minute", "revision"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["deployment", "minute", "revision"], name="served_minute_unique"
            )
        ]

    def __str__(self) -> str:
        return f"{self.deployment} at {self.minute:%Y-%m-%d %H:%M}"


class Sample(models.Model):
    """A row that a deployment was asked about, and what it said."""

    deployment = models.ForeignKey(Deployment, models.CASCADE, related_name="sampled")
    prediction = models.UUIDField(help_text="The id of the answer.")
    row = models.PositiveIntegerField(help_text="Of the request, from 0.")
    revision = models.PositiveIntegerField()
    at = models.DateTimeField()
    values = models.JSONField(help_text="By column.")
    predicted = models.JSONField(null=True)

    class Meta:
        ordering: ClassVar = ["deployment", "-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["deployment", "prediction", "row"], name="sample_unique"
            )
        ]
        indexes: ClassVar = [models.Index(fields=["deployment", "-id"], name="sample_newest")]

    def __str__(self) -> str:
        return f"row {self.row} of {self.prediction}"


class DriftReport(models.Model):
    """How far what a deployment was asked lately is from what its model was trained on."""

    deployment = models.ForeignKey(Deployment, models.CASCADE, related_name="drift_reports")
    revision = models.PositiveIntegerField()
    at = models.DateTimeField(auto_now_add=True)
    rows = models.PositiveIntegerField(help_text="That were looked at.")
    columns = models.JSONField(help_text="clusters.drift.Drift of each, the farthest first.")
    drifted = models.JSONField(default=list, help_text="Names of columns past the threshold.")

    class Meta:
        ordering: ClassVar = ["deployment", "-at"]
        indexes: ClassVar = [models.Index(fields=["deployment", "-at"], name="drift_newest")]

    def __str__(self) -> str:
        return f"{self.deployment}, {self.rows} rows"


class Outcome(models.Model):
    """What became true of a sampled prediction, and what was predicted: it outlives the sample."""

    deployment = models.ForeignKey(Deployment, models.CASCADE, related_name="outcomes")
    prediction = models.UUIDField(help_text="The id of the answer.")
    row = models.PositiveIntegerField()
    revision = models.PositiveIntegerField()
    at = models.DateTimeField(help_text="When it was predicted.")
    predicted = models.JSONField(null=True)
    truth = models.JSONField()

    class Meta:
        ordering: ClassVar = ["deployment", "-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["deployment", "prediction", "row"], name="outcome_unique"
            )
        ]
        indexes: ClassVar = [models.Index(fields=["deployment", "-at"], name="outcome_newest")]

    def __str__(self) -> str:
        return f"row {self.row} of {self.prediction}"
