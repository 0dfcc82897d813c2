"""The table of learning curves: how a model's recipe does with fewer rows.

Imports no other table of this app, which imports this. What is done with it: curves.py.
"""

import uuid
from typing import ClassVar

from django.db import models

from organizations.models import OrgOwned
from workers.models import Task


class LearningCurve(OrgOwned):
    """Asked for once for a model; ``points``: [{"rows", "score", "low", "high"}, ...]."""

    class State(models.TextChoices):
        RUNNING = "running"
        SUCCEEDED = "succeeded"
        FAILED = "failed"

    model = models.OneToOneField("TrainedModel", models.CASCADE, related_name="learning_curve")
    work = models.ForeignKey(Task, models.SET_NULL, null=True, blank=True, related_name="+")
    state = models.CharField(max_length=12, choices=State, default=State.RUNNING)
    points = models.JSONField(default=list)
    error = models.TextField(blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["-created_at", "id"]

    def __str__(self) -> str:
        return f"learning curve {str(self.model_id)[:8]}"


class AboutColumns(OrgOwned):
    """What a model makes of its columns: nodes are asked once for each model (asking.py)."""

    class State(models.TextChoices):
        RUNNING = "running"
        SUCCEEDED = "succeeded"
        FAILED = "failed"

    model_id: uuid.UUID
    state = models.CharField(max_length=12, choices=State, default=State.RUNNING)
    asked_at = models.DateTimeField(help_text="Tasks that were queued before are not looked at.")
    columns = models.JSONField(default=list)
    rows = models.PositiveIntegerField(default=0)
    unseen = models.BooleanField(default=True, help_text="Whether the model had not seen them.")
    error = models.TextField(blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        abstract = True
        ordering: ClassVar = ["-created_at", "id"]

    def __str__(self) -> str:
        return f"{self._meta.model_name} {str(self.model_id)[:8]}"

    @property
    def has_ended(self) -> bool:
        return self.state != self.State.RUNNING


class Importance(AboutColumns):
    """What a model loses when a column is shuffled; ``columns``: [{"column", "drops"}, ...].

    ``drops``: by how much the job's metric became worse, each time. What is done with it:
    importances.py.
    """

    model = models.OneToOneField("TrainedModel", models.CASCADE, related_name="importance")
    score = models.FloatField(null=True, blank=True, help_text="Of the rows as they are.")


class Dependence(AboutColumns):
    """How what a model says changes with one column; ``columns`` as engines/dependence.py tells.

    ``classes``: the names of those whose probability is followed, empty for a number. What is done
    with it: dependences.py.
    """

    model = models.OneToOneField("TrainedModel", models.CASCADE, related_name="dependence")
    classes = models.JSONField(default=list)
