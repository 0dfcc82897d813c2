from collections.abc import Collection
from typing import Any, ClassVar, Self
from uuid import UUID

from django.conf import settings
from django.db import models, transaction
from django.db.models import Case, F, Q, QuerySet, TextChoices, Value, When
from django.db.models.functions import Coalesce
from django.urls import reverse
from django.utils.text import slugify

from datasets.models import DatasetVersion
from organizations.models import Organization, OrgOwned, OrgQuerySet
from training.evaluation import METRICS, Metric
from training.jobrequests import JobRequest  # noqa: F401 - Django looks for tables here
from training.learned import Dependence, Importance, LearningCurve  # noqa: F401 - for Django
from training.names import NamedModel  # noqa: F401 - Django looks for tables here
from workers.actions import emit
from workers.models import Artifact, IllegalMove, StaleWrite, Task

# Among equal scores, common by accuracy on few rows, the better probabilities lead.
BOARD_ORDER = (F("order_score").asc(nulls_last=True), "tie_score", "fit_s", "key")
# An ensemble beat every single model on the rows that rank, whatever its stricter score says.
BEST_ORDER = (Case(When(engine="ensemble", then=Value(0)), default=Value(1)), *BOARD_ORDER)
RACE_SHARE = 0.9  # of a job's progress, when a refit comes after the race
TRAIN = "training.train"  # kinds of task
REFIT = "training.refit"
CHECK = "training.check"
ENSEMBLE = "ensemble"  # what stands in place of an engine's name
_BEST = ("best_model", "best_model__origin")


class JobQuerySet(OrgQuerySet["TrainingJob"]):
    def for_list(self) -> Self:
        """What a list row or a detail page shows, in one query; the bulky columns stay behind.

        Adds ``model_count``, the models that have a score, and ``progress``, 0 to 1 over its race.
        """
        race = Task.objects.filter(subject=models.OuterRef("pk"), kind=TRAIN).order_by()
        progress = race.values("subject").annotate(mean=models.Avg("progress")).values("mean")
        share = Case(
            When(refit=True, split__folds__isnull=True, then=Value(RACE_SHARE)), default=Value(1.0)
        )
        scored = (
            TrainedModel.objects.filter(job=models.OuterRef("pk"), state="scored")
            .order_by()
            .values("job")
            .annotate(n=models.Count("*"))
            .values("n")
        )
        return (
            self.select_related("dataset_version__dataset", "best_model__origin", "created_by")
            .defer(
                "dataset_version__columns",
                "dataset_version__associations",
                *(f"{model}__{bulky}" for model in _BEST for bulky in ("curves", "test")),
            )
            .annotate(
                model_count=Coalesce(models.Subquery(scored), 0),
                progress=Coalesce(models.Subquery(progress), 0.0) * share,
            )
        )

    def active(self) -> Self:
        return self.filter(state__in=TrainingJob.ACTIVE)


class TrainingJob(OrgOwned):
    """A race of engines for one target, on one version of a data set."""

    class State(TextChoices):
        QUEUED = "queued"  # none of its tasks has started
        RUNNING = "running"
        SUCCEEDED = "succeeded"  # a model can be used; ``stopped_early`` and ``notices`` tell more
        FAILED = "failed"
        CANCELLED = "cancelled"

    MOVES: ClassVar = {
        State.QUEUED: {State.RUNNING, State.SUCCEEDED, State.FAILED, State.CANCELLED},
        State.RUNNING: {State.SUCCEEDED, State.FAILED, State.CANCELLED},
    }
    ACTIVE: ClassVar = (State.QUEUED, State.RUNNING)

    name = models.CharField(max_length=160, blank=True)
    dataset_version = models.ForeignKey(
        DatasetVersion, models.SET_NULL, null=True, blank=True, related_name="training_jobs"
    )
    dataset = models.JSONField(
        default=dict, help_text="Id, name, version and sha256, kept when the data set is deleted."
    )
    target = models.CharField(max_length=255)
    task = models.CharField(
        max_length=12,
        choices=[(name, name) for name in ("binary", "multiclass", "regression")],
    )
    task_reason = models.CharField(max_length=300, blank=True)
    metric = models.CharField(max_length=24, choices=[(m.name, m.title) for m in METRICS.values()])
    classes = models.JSONField(null=True, blank=True)
    positive_class = models.CharField(max_length=255, null=True, blank=True)
    columns = models.JSONField(default=list, help_text="Features: name, role and dtype, in order.")
    preset = models.CharField(max_length=12, blank=True)
    engines = models.JSONField(default=list)
    budget_s = models.FloatField(help_text="As asked for: see budget_mode.")
    budget_mode = models.CharField(
        max_length=12, default="per_engine", help_text="total, or per_engine."
    )
    budgets = models.JSONField(default=dict, help_text="Seconds by engine.")
    ensemble = models.BooleanField(default=False)
    split = models.JSONField(default=dict)
    seed = models.BigIntegerField(default=0)
    refit = models.BooleanField(default=False)
    priority = models.SmallIntegerField(default=0)
    request = models.JSONField(default=dict, help_text="The request as it came.")
    rows = models.PositiveBigIntegerField(default=0, help_text="Rows that have a target.")
    accepted = models.JSONField(
        null=True,
        blank=True,
        help_text="Severe findings with which it was started all the same: by whom and why.",
    )

    state = models.CharField(max_length=12, choices=State, default=State.QUEUED)
    stopped_early = models.BooleanField(default=False)
    notices = models.JSONField(default=list, help_text='[{"message", "engine"}, ...]')
    error = models.TextField(blank=True)
    cancel_requested_at = models.DateTimeField(null=True, blank=True)
    stop_requested_at = models.DateTimeField(null=True, blank=True)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    best_model = models.ForeignKey(
        "TrainedModel", models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    idempotency_key = models.CharField(max_length=255, null=True, blank=True)

    objects: ClassVar[Any] = JobQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at", "id"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["organization", "idempotency_key"], name="job_idempotency_key_unique"
            ),
            models.CheckConstraint(
                condition=Q(state__in=["queued", "running"], finished_at__isnull=True)
                | (~Q(state__in=["queued", "running"]) & Q(finished_at__isnull=False)),
                name="job_finished_is_final",
            ),
        ]
        indexes: ClassVar = [
            models.Index(fields=["organization", "-created_at"], name="job_newest"),
            models.Index(
                fields=["organization"], condition=Q(state__in=["queued", "running"]),
                name="job_active",
            ),
        ]  # fmt: skip

    def __str__(self) -> str:
        return self.name or f"{self.target} {str(self.pk)[:8]}"

    def get_absolute_url(self) -> str:
        return reverse("training:job", args=[self.pk])

    @property
    def topic(self) -> str:
        """Where its live events appear."""
        return f"job:{self.pk}"

    @property
    def has_ended(self) -> bool:
        return self.state not in self.ACTIVE

    @property
    def metric_info(self) -> Metric:
        return METRICS[self.metric]

    @property
    def tasks(self) -> QuerySet[Task]:
        """Its units of work, oldest first: one per engine, then the winner's refit, if any."""
        return Task.objects.filter(subject=self.pk).order_by("queued_at", "pk")

    @property
    def wants_refit(self) -> bool:
        """Whether a refit was asked for and has rows to add.

        Models that rank out of fold are fitted on all rows but the sealed ones already.
        """
        return self.refit and not self.split.get("folds")

    def move_to(self, new: "TrainingJob.State", *, reason: str = "", **fields: object) -> None:
        """Write ``new`` and ``fields`` if the stored row still has this instance's state.

        Raises IllegalMove when MOVES has no such arrow, StaleWrite when another process won.
        """
        old = self.State(self.state)
        if new not in self.MOVES.get(old, set()):
            raise IllegalMove(f"A training job that is {old} can't become {new}.")
        fields["state"] = new
        with transaction.atomic():
            if not TrainingJob.objects.filter(pk=self.pk, state=old).update(**fields):
                raise StaleWrite(f"The training job is no longer {old}.")
            for name, value in fields.items():
                setattr(self, name, value)
            emit(self.topic, f"job.{new}", {"state": new, "from": old, "why": reason})


class ModelQuerySet(OrgQuerySet["TrainedModel"]):
    def leaderboard(self, job: UUID, engine: str = "") -> Self:
        """A job's candidates, best first, each with its ``rank``, the invalid ones last.

        A refit follows its origin and has the same rank. With ``engine`` that one's alone, with
        the ranks that they have among all. The bulky columns stay behind.
        """
        order = [
            Coalesce("origin__order_score", "order_score").asc(nulls_last=True),
            Coalesce("origin__tie_score", "tie_score"),
            Coalesce("origin__fit_s", "fit_s"),
            Coalesce("origin__key", "key"),
        ]
        scored = models.Count("pk", filter=~Q(state=TrainedModel.State.REFITTED))
        board = (
            self.filter(job=job)
            .defer("curves", "test", "params")
            .annotate(
                rank=models.Window(scored, order_by=order),
                test_score=F("test__score"),
                origin_test_score=F("origin__test__score"),
            )
            .order_by(*order, F("origin").asc(nulls_first=True))
        )
        if engine:
            # Through a window: a plain filter would leave only these to be ranked.
            its = models.Window(models.Max("engine"), partition_by=F("pk"))
            board = board.annotate(its_engine=its).filter(its_engine=engine)
        return board


class TrainedModel(OrgOwned):
    """A candidate of a job: what an engine fitted, and the figures that the platform made."""

    class State(TextChoices):
        SCORED = "scored"
        REFITTED = "refitted"  # fitted on the rows that rank as well, so it has no score of its own
        INVALID = "invalid"  # its predictions could not be scored; ``reason`` says why

    job = models.ForeignKey(TrainingJob, models.CASCADE, related_name="models")
    origin = models.ForeignKey(
        "self", models.CASCADE, null=True, blank=True, related_name="refits",
        help_text="The model whose recipe was fitted again.",
    )  # fmt: skip
    task = models.ForeignKey(Task, models.SET_NULL, null=True, blank=True, related_name="+")
    key = models.CharField(max_length=120)
    name = models.CharField(max_length=160)
    family = models.CharField(max_length=60, blank=True)
    engine = models.CharField(max_length=40)
    params = models.JSONField(default=dict)
    fit_s = models.FloatField(default=0)
    predict_ms_row = models.FloatField(null=True, blank=True)
    train_rows = models.PositiveBigIntegerField(default=0)
    # RESTRICT: the file of a model can't go while the model is there; with it, it can.
    artifact = models.ForeignKey(Artifact, models.RESTRICT, null=True, blank=True, related_name="+")
    predictions = models.ForeignKey(
        Artifact, models.RESTRICT, null=True, blank=True, related_name="+"
    )
    state = models.CharField(max_length=12, choices=State)
    reason = models.TextField(blank=True)
    metrics = models.JSONField(default=dict)
    score = models.FloatField(null=True, blank=True, help_text="The job's metric.")
    order_score = models.FloatField(
        null=True, blank=True, help_text="The score turned so that lower is better."
    )
    tie_score = models.FloatField(
        default=0,
        help_text="What decides between equal scores, lower first: the log loss, if there is one.",
    )
    interval_low = models.FloatField(null=True, blank=True)
    interval_high = models.FloatField(null=True, blank=True)
    scored_rows = models.PositiveBigIntegerField(default=0)
    curves = models.JSONField(default=dict)
    test = models.JSONField(
        null=True,
        blank=True,
        help_text="Figures on the sealed rows: for a job's winner, and its refit.",
    )

    objects: ClassVar[Any] = ModelQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at", "id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["job", "key"], name="model_key_unique"),
            models.CheckConstraint(
                condition=~Q(state="scored")
                | Q(score__isnull=False, order_score__isnull=False)
                & (Q(artifact__isnull=False) | Q(engine=ENSEMBLE)),
                name="model_scored_has_score",
            ),
            models.CheckConstraint(
                condition=~Q(state="refitted")
                | Q(score__isnull=True, origin__isnull=False)
                & (Q(artifact__isnull=False) | Q(engine=ENSEMBLE)),
                name="model_refitted_has_origin",
            ),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["job", "order_score", "tie_score", "fit_s", "key"], name="model_board"
            ),
            models.Index(fields=["organization", "-created_at"], name="model_newest"),
        ]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("training:model", args=[self.pk])

    @property
    def is_scored(self) -> bool:
        return self.state == self.State.SCORED

    @property
    def is_usable(self) -> bool:
        """Whether it can predict and be downloaded as a model."""
        return self.state in {self.State.SCORED, self.State.REFITTED}

    @property
    def is_ensemble(self) -> bool:
        """Whether it is a blend of other models of its job: it has members and no artifact."""
        return self.engine == ENSEMBLE

    def parts(self) -> "list[EnsembleMember]":
        """Members, the heaviest first, each with its model and artifact; one query at most."""
        models.prefetch_related_objects([self], _MEMBERS)
        return list(self.members.all())

    @property
    def ranked_score(self) -> float | None:
        """The score by which it stands on the leaderboard: for a refit, that of its origin."""
        return self.origin.score if self.origin else self.score

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% bootstrap interval of the score, or None."""
        if self.interval_low is None or self.interval_high is None:
            return None
        return self.interval_low, self.interval_high

    @property
    def schema(self) -> list[dict[str, Any]]:
        """The columns that a prediction takes, in order: name, role and dtype."""
        columns: list[dict[str, Any]] = self.job.columns
        return columns

    @property
    def download_name(self) -> str:
        data = slugify(str(self.job.dataset.get("name", ""))) or "model"
        return f"{data}-{slugify(self.name) or 'model'}-{str(self.pk)[:8]}.zip"


class EnsembleMember(models.Model):
    """A model that an ensemble asks, and how much its answer weighs there."""

    ensemble = models.ForeignKey(TrainedModel, models.CASCADE, related_name="members")
    model = models.ForeignKey(TrainedModel, models.CASCADE, related_name="ensembles")
    weight = models.FloatField(help_text="All of an ensemble add up to 1.")

    class Meta:
        ordering: ClassVar = ["-weight", "id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["ensemble", "model"], name="member_unique"),
            models.CheckConstraint(
                condition=Q(weight__gt=0, weight__lte=1), name="member_weight_is_share"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.weight:.0%} of {self.ensemble_id}"


_MEMBERS = models.Prefetch(
    "members",
    EnsembleMember.objects.select_related("model__artifact", "model__predictions").defer(
        "model__curves", "model__test", "model__params", "model__metrics"
    ),
)


class BatchPrediction(OrgOwned):
    """A file of rows to predict, and the file that came of it."""

    class State(TextChoices):
        QUEUED = "queued"
        RUNNING = "running"
        SUCCEEDED = "succeeded"
        FAILED = "failed"
        CANCELLED = "cancelled"

    MOVES: ClassVar = {
        State.QUEUED: {State.RUNNING, State.SUCCEEDED, State.FAILED, State.CANCELLED},
        State.RUNNING: {State.SUCCEEDED, State.FAILED, State.CANCELLED},
    }

    model = models.ForeignKey(TrainedModel, models.CASCADE, related_name="batch_predictions")
    task = models.ForeignKey(Task, models.SET_NULL, null=True, blank=True, related_name="+")
    filename = models.CharField(max_length=255)
    upload = models.ForeignKey(
        Artifact, models.RESTRICT, null=True, blank=True, related_name="+",
        help_text="The rows; gone once they were predicted.",
    )  # fmt: skip
    csv = models.ForeignKey(Artifact, models.RESTRICT, null=True, blank=True, related_name="+")
    parquet = models.ForeignKey(Artifact, models.RESTRICT, null=True, blank=True, related_name="+")
    rows = models.PositiveBigIntegerField(default=0)
    state = models.CharField(max_length=12, choices=State, default=State.QUEUED)
    error = models.TextField(blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    class Meta:
        ordering: ClassVar = ["-created_at", "id"]
        indexes: ClassVar = [
            models.Index(fields=["organization", "-created_at"], name="batch_newest")
        ]

    def __str__(self) -> str:
        return self.filename

    @property
    def topic(self) -> str:
        """Where its live events appear."""
        return f"prediction:{self.pk}"

    @property
    def has_ended(self) -> bool:
        return self.state not in (self.State.QUEUED, self.State.RUNNING)

    @property
    def tasks(self) -> QuerySet[Task]:
        """One, or one for each member of an ensemble."""
        return Task.objects.filter(subject=self.pk).order_by("queued_at", "pk")

    def result_name(self, format: str) -> str:
        return f"{self.filename.split('.', 1)[0] or 'rows'}-predicted.{format}"

    def move_to(self, new: "BatchPrediction.State", **fields: object) -> None:
        """Write ``new`` and ``fields`` if the stored row still has this instance's state.

        Raises IllegalMove when MOVES has no such arrow, StaleWrite when another process won.
        """
        old = self.State(self.state)
        if new not in self.MOVES.get(old, set()):
            raise IllegalMove(f"A prediction that is {old} can't become {new}.")
        fields["state"] = new
        with transaction.atomic():
            if not BatchPrediction.objects.filter(pk=self.pk, state=old).update(**fields):
                raise StaleWrite(f"The prediction is no longer {old}.")
            for name, value in fields.items():
                setattr(self, name, value)
            emit(self.topic, f"prediction.{new}", {"state": new, "from": old})


class DataCheck(OrgOwned):
    """What the data gate says of training on a version: one row for all that its answer depends on.

    ``key`` is a hash of that: target, task, split, the columns' roles and the gate's rules.
    """

    class State(TextChoices):
        RUNNING = "running"  # asked for, and not answered yet
        SUCCEEDED = "succeeded"
        FAILED = "failed"

    dataset_version = models.ForeignKey(DatasetVersion, models.CASCADE, related_name="checks")
    key = models.CharField(max_length=64)
    target = models.CharField(max_length=255)
    task = models.CharField(max_length=12)
    split = models.JSONField(default=dict)
    state = models.CharField(max_length=12, choices=State, default=State.RUNNING)
    work = models.ForeignKey(Task, models.SET_NULL, null=True, blank=True, related_name="+")
    findings = models.JSONField(default=list, help_text="Gravest first; see training/gate.py.")
    rows = models.PositiveBigIntegerField(default=0)
    sample = models.PositiveBigIntegerField(default=0, help_text="Rows that were measured.")
    seconds = models.FloatField(default=0)
    error = models.TextField(blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    class Meta:
        ordering: ClassVar = ["-created_at", "id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["dataset_version", "key"], name="check_key_unique")
        ]

    def __str__(self) -> str:
        return f"{self.target} {str(self.pk)[:8]}"

    @property
    def topic(self) -> str:
        """Where its live events appear."""
        return f"check:{self.pk}"

    @property
    def has_ended(self) -> bool:
        return self.state != self.State.RUNNING

    def told(self, exclude: Collection[str] = ()) -> list[dict[str, Any]]:
        """The findings, but those about columns that are left out anyway."""
        out = set(exclude)
        return [
            found for found in self.findings
            if not found["columns"] or not out.issuperset(found["columns"])
        ]  # fmt: skip

    def severe(self, exclude: Collection[str] = ()) -> list[dict[str, Any]]:
        return [found for found in self.told(exclude) if found["severity"] == "severe"]


def jobs_using(organization: Organization, dataset: UUID) -> QuerySet[TrainingJob]:
    """The active jobs that read some version of a data set."""
    jobs: QuerySet[TrainingJob] = TrainingJob.objects.of(organization).active()
    return jobs.filter(dataset_version__dataset=dataset)
