"""The table of the general job API: what was asked for by kind of model, and what came of it.

Imports no other table of this app, which imports this. What is done with it: general.py.
"""

from typing import Any, ClassVar, Self

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Coalesce

from datasets.models import Dataset, DatasetVersion
from organizations.models import OrgOwned, OrgQuerySet


class RequestQuerySet(OrgQuerySet["JobRequest"]):
    def for_list(self) -> Self:
        """With ``status``, and without the bulky columns."""
        return (
            self.select_related("training", "batch", "output", "model")
            .defer(
                "request", "result", "training__request", "training__columns", "training__split",
                "model__curves", "model__test", "model__params",
            )
            .annotate(status=Coalesce("training__state", "batch__state", "state"))
        )  # fmt: skip


class JobRequest(OrgOwned):
    """A training by kind of model, or an inference.

    The training job or the batch that it became has the state then: ``status`` of ``for_list``.
    """

    class Kind(models.TextChoices):
        TRAINING = "training"
        INFERENCE = "inference"

    class State(models.TextChoices):
        QUEUED = "queued"
        RUNNING = "running"
        SUCCEEDED = "succeeded"
        FAILED = "failed"
        CANCELLED = "cancelled"

    kind = models.CharField(max_length=10, choices=Kind)
    model_type = models.CharField(max_length=40, blank=True)
    description = models.CharField(max_length=160, blank=True)
    request = models.JSONField(default=dict, help_text="The request as it came.")
    state = models.CharField(max_length=12, choices=State, default=State.QUEUED)
    error = models.TextField(blank=True)
    reading = models.ForeignKey(
        DatasetVersion, models.SET_NULL, null=True, blank=True, related_name="+",
        help_text="The file that is read before the training starts.",
    )  # fmt: skip
    training = models.ForeignKey(
        "TrainingJob", models.CASCADE, null=True, blank=True, related_name="job_requests"
    )
    model = models.ForeignKey(
        "TrainedModel", models.CASCADE, null=True, blank=True, related_name="job_requests"
    )
    batch = models.ForeignKey(
        "BatchPrediction", models.CASCADE, null=True, blank=True, related_name="job_requests"
    )
    output = models.ForeignKey(
        Dataset, models.SET_NULL, null=True, blank=True, related_name="+",
        help_text="The data set that a batch became.",
    )  # fmt: skip
    result = models.JSONField(null=True, blank=True)
    cached = models.BooleanField(default=False, help_text="Answered from what was asked before.")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    objects: ClassVar[Any] = RequestQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at", "id"]
        indexes: ClassVar = [
            models.Index(fields=["organization", "-created_at"], name="job_request_newest"),
            models.Index(
                fields=["state"],
                condition=Q(state__in=["queued", "running"]),
                name="job_request_open",
            ),
        ]

    def __str__(self) -> str:
        return self.description or f"{self.kind} {str(self.pk)[:8]}"

    @property
    def now(self) -> str:
        """Its state, or that of what it became."""
        became = self.training or self.batch
        return str(became.state if became else self.state)
