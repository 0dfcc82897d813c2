from typing import Any, ClassVar

from django.conf import settings as conf
from django.core.validators import RegexValidator
from django.db import models, transaction
from django.db.models import Q
from django.urls import reverse
from django.utils import timezone

from accounts import sealing
from organizations.models import OrgOwned
from workers.models import IllegalMove, StaleWrite, Task, emit

NAME = RegexValidator(
    r"\A[A-Za-z0-9][A-Za-z0-9._ -]*\Z",
    "Use letters, digits, spaces, dots, dashes and underscores, and begin with a letter or digit.",
)


class Connection(OrgOwned):
    """A way out of the house: a warehouse, a place with files, a machine.

    ``settings`` are shown to who may look; secrets are written and never read back by people.
    """

    class Kind(models.TextChoices):
        DUCKDB = "duckdb", "DuckDB (your data sets)"
        POSTGRES = "postgres", "PostgreSQL"
        HIVE = "hive", "Hive (HiveServer2)"
        LOCAL = "local", "Folder on a node"
        HDFS = "hdfs", "HDFS (WebHDFS)"
        S3 = "s3", "S3"
        SSH = "ssh", "Machine by SSH"
        WEBHOOK = "webhook", "Web hook"

    name = models.CharField(max_length=63, validators=[NAME])
    kind = models.CharField(max_length=12, choices=Kind)
    settings = models.JSONField(default=dict, blank=True, help_text="Host, port, and so on.")
    secrets_sealed = models.TextField(blank=True, help_text="Encrypted: see accounts/sealing.py.")
    sealed_names = models.JSONField(default=list, blank=True)
    created_by = models.ForeignKey(
        conf.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    changed_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering: ClassVar = ["name", "id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["organization", "name"], name="connection_name_unique")
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def secrets(self) -> dict[str, Any]:
        """Raises sealing.Unreadable."""
        return sealing.unseal(self.secrets_sealed) if self.secrets_sealed else {}


class Experiment(OrgOwned):
    """One model with its hyperparameters, under a name: what a training is told by its id."""

    name = models.CharField(max_length=63, validators=[NAME])
    version = models.ForeignKey(
        "ExperimentVersion", models.SET_NULL, null=True, blank=True, related_name="+",
        help_text="The one that trains from now on.",
    )  # fmt: skip
    created_by = models.ForeignKey(
        conf.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    class Meta:
        ordering: ClassVar = ["name", "id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["organization", "name"], name="experiment_name_unique")
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("pipelines:experiment", args=[self.pk])


class ExperimentVersion(models.Model):
    """What an experiment said at some time. Never changed."""

    experiment = models.ForeignKey(Experiment, models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    text = models.TextField(help_text="YAML, as it was written.")
    config = models.JSONField(default=dict, help_text="What it says: see pipelines/experiments.py.")
    made_by = models.CharField(max_length=160, blank=True, help_text="A name, as it was then.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["-number"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["experiment", "number"], name="experiment_version_unique"
            )
        ]

    def __str__(self) -> str:
        return f"version {self.number}"


class Pipeline(OrgOwned):
    """A named chain of stages that runs when somebody, or its schedule, says so."""

    name = models.CharField(max_length=63, validators=[NAME])
    description = models.CharField(max_length=300, blank=True)
    version = models.ForeignKey(
        "PipelineVersion", models.SET_NULL, null=True, blank=True, related_name="+",
        help_text="The one that runs from now on.",
    )  # fmt: skip
    schedule = models.JSONField(
        default=dict, blank=True,
        help_text='{"cron" or "every_s", "time_zone", "overlap"}; empty: it runs when asked.',
    )  # fmt: skip
    is_enabled = models.BooleanField(default=True, help_text="Whether its schedule counts.")
    beat = models.OneToOneField(
        "django_celery_beat.PeriodicTask", models.SET_NULL, null=True, blank=True,
        related_name="pipeline",
    )  # fmt: skip
    created_by = models.ForeignKey(
        conf.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    class Meta:
        ordering: ClassVar = ["name", "id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["organization", "name"], name="pipeline_name_unique")
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("pipelines:pipeline", args=[self.pk])


class PipelineVersion(models.Model):
    """What a pipeline was at some time. Never changed: a run keeps the one that it ran."""

    pipeline = models.ForeignKey(Pipeline, models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    definition = models.JSONField(default=dict, help_text="See pipelines/graph.py.")
    made_by = models.CharField(max_length=160, blank=True, help_text="A name, as it was then.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering: ClassVar = ["-number"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["pipeline", "number"], name="pipeline_version_unique")
        ]

    def __str__(self) -> str:
        return f"version {self.number}"


class Run(OrgOwned):
    """One passage through a version of a pipeline. Control drives it (pipelines/driving.py)."""

    class State(models.TextChoices):
        QUEUED = "queued"  # waits until an earlier run of the pipeline has ended
        RUNNING = "running"
        SUCCEEDED = "succeeded"
        FAILED = "failed"
        CANCELLED = "cancelled"
        SKIPPED = "skipped"  # its time had come while an earlier one was still going

    class Trigger(models.TextChoices):
        PERSON = "person"
        SCHEDULE = "schedule"
        WORKFLOW = "workflow"  # by /api/workflow/tasks

    MOVES: ClassVar = {
        State.QUEUED: {State.RUNNING, State.CANCELLED},
        State.RUNNING: {State.SUCCEEDED, State.FAILED, State.CANCELLED},
        # Retried from a step.
        State.SUCCEEDED: {State.RUNNING},
        State.FAILED: {State.RUNNING},
        State.CANCELLED: {State.RUNNING},
    }
    ACTIVE: ClassVar = (State.QUEUED, State.RUNNING)

    pipeline = models.ForeignKey(Pipeline, models.CASCADE, related_name="runs")
    version = models.ForeignKey(PipelineVersion, models.CASCADE, related_name="runs")
    number = models.PositiveIntegerField(help_text="Counted within the pipeline.")
    state = models.CharField(max_length=12, choices=State, default=State.QUEUED)
    trigger = models.CharField(max_length=12, choices=Trigger, default=Trigger.PERSON)
    started_by = models.ForeignKey(
        conf.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    by_name = models.CharField(max_length=160, blank=True, help_text="A name, as it was then.")
    why = models.TextField(blank=True, help_text="Why it failed, waits or was skipped.")
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    cancelled_by = models.CharField(max_length=160, blank=True)
    told_at = models.DateTimeField(null=True, blank=True, help_text="Its end was told by mail.")

    class Meta:
        ordering: ClassVar = ["-created_at", "id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["pipeline", "number"], name="run_number_unique"),
            models.CheckConstraint(
                condition=Q(state__in=["queued", "running"], finished_at__isnull=True)
                | (~Q(state__in=["queued", "running"]) & Q(finished_at__isnull=False)),
                name="run_finished_is_final",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["created_at"], condition=Q(state__in=["queued", "running"]),
                name="run_active",
            ),
            models.Index(fields=["organization", "-created_at"], name="run_newest"),
        ]  # fmt: skip

    def __str__(self) -> str:
        return f"{self.pipeline} #{self.number}"

    def get_absolute_url(self) -> str:
        return reverse("pipelines:run", args=[self.pk])

    @property
    def topic(self) -> str:
        """Where its live events and the log of its steps appear."""
        return f"pipeline-run:{self.pk}"

    @property
    def has_ended(self) -> bool:
        return self.state not in self.ACTIVE

    def move_to(self, new: "Run.State", *, reason: str = "", **fields: object) -> None:
        """Write ``new`` and ``fields`` if the stored row still has this instance's state.

        Raises IllegalMove when MOVES has no such arrow, StaleWrite when another process won.
        """
        old = self.State(self.state)
        if new not in self.MOVES.get(old, set()):
            raise IllegalMove(f"A run that is {old} can't become {new}.")
        fields["state"] = new
        fields["finished_at"] = None if new in self.ACTIVE else timezone.now()
        with transaction.atomic():
            if not Run.objects.filter(pk=self.pk, state=old).update(**fields):
                raise StaleWrite(f"The run is no longer {old}.")
            for name, value in fields.items():
                setattr(self, name, value)
            emit(self.topic, f"run.{new}", {"state": new, "from": old, "why": reason})


class Step(models.Model):
    """A stage of one run, and how far it has come.

    ``subject`` is what it waits for: a training job, a batch prediction, a data set's version, or
    itself where a node's task does the work.
    """

    class State(models.TextChoices):
        PENDING = "pending"  # others come first, or it is tried again at ``not_before``
        RUNNING = "running"
        SUCCEEDED = "succeeded"
        SKIPPED = "skipped"  # an earlier run did the same with the same: its output counts
        FAILED = "failed"
        NOT_RUN = "not_run"  # a step before it failed, or the run was cancelled
        CANCELLED = "cancelled"

    DONE: ClassVar = (State.SUCCEEDED, State.SKIPPED)
    ENDED: ClassVar = (*DONE, State.FAILED, State.NOT_RUN, State.CANCELLED)

    run = models.ForeignKey(Run, models.CASCADE, related_name="steps")
    key = models.CharField(max_length=40)
    position = models.PositiveSmallIntegerField(help_text="In the order of the definition.")
    stage = models.CharField(max_length=24)
    state = models.CharField(max_length=12, choices=State, default=State.PENDING)
    attempt = models.PositiveSmallIntegerField(default=0, help_text="Starts so far.")
    retry_count = models.PositiveSmallIntegerField(
        default=0, help_text="Of its attempts, those after a failure, since it was last asked for."
    )
    not_before = models.DateTimeField(null=True, blank=True)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    error = models.TextField(blank=True)
    inputs_digest = models.CharField(
        max_length=64, blank=True, help_text="SHA-256 of stage, parameters and what came in."
    )
    output = models.JSONField(default=dict, blank=True)
    subject = models.UUIDField(null=True, blank=True, db_index=True)
    task = models.ForeignKey(Task, models.SET_NULL, null=True, blank=True, related_name="+")
    skipped_because = models.TextField(blank=True)

    class Meta:
        ordering: ClassVar = ["run", "position"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["run", "key"], name="step_key_unique")
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["inputs_digest"], condition=Q(state="succeeded"), name="step_done_before"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.key} of {self.run_id}"


class TransferChunk(models.Model):
    """A piece of a file that a step sent or fetched, as its node last told of it."""

    class State(models.TextChoices):
        WAITING = "waiting"
        THERE = "there"  # an earlier try had brought it
        DONE = "done"
        FAILED = "failed"

    step = models.ForeignKey(Step, models.CASCADE, related_name="chunks")
    number = models.PositiveIntegerField(help_text="Counted within the file, from 0.")
    path = models.CharField(max_length=1000, help_text="Of the file, at the far side.")
    offset = models.BigIntegerField(help_text="Bytes.")
    size = models.BigIntegerField(help_text="Bytes.")
    sha256 = models.CharField(max_length=64, blank=True)
    state = models.CharField(max_length=8, choices=State, default=State.WAITING)
    retry_count = models.PositiveIntegerField(default=0)

    class Meta:
        ordering: ClassVar = ["step", "path", "number"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["step", "path", "number"], name="chunk_unique")
        ]

    def __str__(self) -> str:
        return f"{self.path} from {self.offset:,}"
