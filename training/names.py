"""The tables of names: models that are asked for without ids. What is done with them: named.py.

A name has numbered versions, each a model of some job, and aliases that point at one of them.
Imports no other table of this app, which imports these.
"""

import re
from typing import Any, ClassVar, Self

from django.conf import settings
from django.db import models
from django.db.models import Count, Exists, Max, OuterRef, Q, Subquery

from organizations.models import OrgOwned, OrgQuerySet

CHAMPION = "champion"  # the alias whose version a bare name means, where there is one
LATEST = "latest"  # after an @, the newest version that can be used
USABLE = ("scored", "refitted")  # states of a model that predicts
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,119}")
ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,39}")
RESERVED = frozenset({"all"})


class NamedQuerySet(OrgQuerySet["NamedModel"]):
    def for_list(self) -> Self:
        """With ``version_count``, ``newest`` (number) and ``answers`` (the version of a bare name).

        ``answers`` is the id of the champion, or else of the newest version that can be used; None
        as long as there is none.
        """
        champion = NamedAlias.objects.filter(version=OuterRef("pk"), name=CHAMPION)
        ready = (
            NamedVersion.objects.filter(named=OuterRef("pk"), model__state__in=USABLE)
            .annotate(chosen=Exists(champion))
            .order_by("-chosen", "-number")
        )
        return self.annotate(
            version_count=Count("versions"),
            newest=Max("versions__number"),
            answers=Subquery(ready.values("pk")[:1]),
        )


class NamedModel(OrgOwned):
    """A name that models are asked for by, such as ``RandomForestClassifier_iris``."""

    name = models.CharField(max_length=120)
    description = models.TextField(blank=True, max_length=2000)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    objects: ClassVar[Any] = NamedQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["name", "id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["organization", "name"], name="named_model_unique")
        ]

    def __str__(self) -> str:
        return self.name


class VersionQuerySet(OrgQuerySet["NamedVersion"]):
    def with_model(self) -> Self:
        """Each with its name, job and model; the bulky columns stay behind."""
        return self.select_related("named", "job", "model").defer(
            "job__columns", "job__request", "job__notices", "job__split",
            "model__curves", "model__test", "model__params",
        )  # fmt: skip

    def ready(self) -> Self:
        return self.filter(model__state__in=USABLE)


class NamedVersion(OrgOwned):
    """What a name stood for from its training on. ``model`` is None until it was trained."""

    class State(models.TextChoices):
        TRAINING = "training"
        READY = "ready"
        FAILED = "failed"  # its job has ended without it

    named = models.ForeignKey(NamedModel, models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    job = models.ForeignKey("TrainingJob", models.CASCADE, related_name="named_versions")
    key = models.CharField(max_length=120, help_text="Of the job's candidate that it becomes.")
    model = models.ForeignKey(
        "TrainedModel", models.CASCADE, null=True, blank=True, related_name="named_versions"
    )
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )

    objects: ClassVar[Any] = VersionQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["named", "-number"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["named", "number"], name="named_version_unique"),
            models.UniqueConstraint(fields=["named", "job", "key"], name="named_version_once"),
            models.CheckConstraint(condition=Q(number__gte=1), name="named_version_from_one"),
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["job", "key"], condition=Q(model=None), name="named_version_waiting"
            )
        ]  # fmt: skip

    def __str__(self) -> str:
        return f"{self.named.name}@{self.number}"

    @property
    def state(self) -> "NamedVersion.State":
        if self.model is not None and self.model.state in USABLE:
            return self.State.READY
        if self.model is None and not self.job.has_ended:
            return self.State.TRAINING
        return self.State.FAILED

    @property
    def reason(self) -> str:
        """Why there is no model, in a sentence; empty where there is one or may be."""
        if self.state != self.State.FAILED:
            return ""
        if self.model is not None:
            return str(self.model.reason)
        return str(self.job.error) or "Its training ended without it: see the job's notices."


class NamedAlias(models.Model):
    """A second name for one version of a name, which can be moved to another."""

    named = models.ForeignKey(NamedModel, models.CASCADE, related_name="aliases")
    name = models.CharField(max_length=40)
    version = models.ForeignKey(NamedVersion, models.CASCADE, related_name="aliases")
    moved_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering: ClassVar = ["name"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["named", "name"], name="named_alias_unique")
        ]

    def __str__(self) -> str:
        return f"{self.named.name}@{self.name}"
