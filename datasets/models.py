from typing import Any, ClassVar

from django.conf import settings
from django.db import models, transaction

from organizations.models import OrgOwned
from workers.models import Artifact, IllegalMove, StaleWrite, Task


class Dataset(OrgOwned):
    """A table under one name, in numbered versions."""

    class State(models.TextChoices):
        INGESTING = "ingesting"  # its first version is being read
        READY = "ready"  # at least one version can be used
        FAILED = "failed"  # no version could be read

    name = models.CharField(max_length=120)
    description = models.TextField(blank=True, max_length=2000)
    state = models.CharField(max_length=16, choices=State, default=State.INGESTING)
    latest = models.ForeignKey(
        "DatasetVersion",
        models.SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        help_text="The ready version with the highest number.",
    )
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering: ClassVar = ["-created_at", "id"]
        indexes: ClassVar = [
            models.Index(fields=["organization", "-created_at"], name="dataset_newest")
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def topic(self) -> str:
        """Where its live events appear."""
        return f"dataset:{self.pk}"


class DatasetVersion(OrgOwned):
    """One upload, read into an immutable Parquet file. Only the roles of columns may be changed."""

    class State(models.TextChoices):
        INGESTING = "ingesting"
        READY = "ready"
        FAILED = "failed"

    MOVES: ClassVar = {State.INGESTING: {State.READY, State.FAILED}}

    dataset = models.ForeignKey(Dataset, models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    state = models.CharField(max_length=16, choices=State, default=State.INGESTING)
    error = models.JSONField(
        null=True, blank=True, help_text='Why it failed: {"detail", "code", ...}.'
    )
    filename = models.CharField(max_length=255, help_text="As it was called where it came from.")
    options = models.JSONField(default=dict, blank=True, help_text="What the upload asked for.")
    origin = models.JSONField(
        default=dict, blank=True,
        help_text='What made it, where nobody uploaded it: {"text", "url", ...}.',
    )  # fmt: skip
    upload_size = models.PositiveBigIntegerField(help_text="Bytes.")
    source = models.JSONField(
        default=dict, blank=True, help_text="Format, encoding, delimiter and header, as found."
    )
    rows = models.PositiveBigIntegerField(default=0)
    columns = models.JSONField(
        default=list, blank=True, help_text="Name, dtype, role and statistics of each column."
    )
    associations = models.JSONField(
        null=True, blank=True,
        help_text="What each two columns have to do with each other (datasets/associations.py).",
    )  # fmt: skip
    column_count = models.PositiveIntegerField(default=0)
    sha256 = models.CharField(max_length=64, blank=True, help_text="Of the Parquet file.")
    size_bytes = models.PositiveBigIntegerField(default=0, help_text="Of the Parquet file.")
    rejected = models.PositiveBigIntegerField(default=0, help_text="Rows set aside.")
    notices = models.JSONField(default=list, blank=True)
    # PROTECT: an artifact that a version needs can't go; the version goes first, then its files.
    upload = models.ForeignKey(
        Artifact, models.PROTECT, null=True, blank=True, related_name="+",
        help_text="The file as it came; gone once it was read.",
    )  # fmt: skip
    data = models.ForeignKey(Artifact, models.PROTECT, null=True, blank=True, related_name="+")
    rejects = models.ForeignKey(Artifact, models.PROTECT, null=True, blank=True, related_name="+")
    task = models.ForeignKey(Task, models.SET_NULL, null=True, blank=True, related_name="+")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="+"
    )
    ready_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["dataset", "-number"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["dataset", "number"], name="version_number_unique"),
            models.CheckConstraint(
                condition=~models.Q(state="ready") | models.Q(data__isnull=False),
                name="version_ready_has_data",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.dataset_id} version {self.number}"

    @property
    def column_names(self) -> list[str]:
        return [column["name"] for column in self.columns]

    def column(self, name: str) -> dict[str, Any] | None:
        """What is known of one column, or None where there is none of that name."""
        return next((column for column in self.columns if column["name"] == name), None)

    def move_to(self, new: "DatasetVersion.State", **fields: object) -> None:
        """Write ``new`` and ``fields`` if the stored row still has this instance's state.

        Raises IllegalMove when MOVES has no such arrow, StaleWrite when another process won.
        """
        old = self.State(self.state)
        if new not in self.MOVES.get(old, set()):
            raise IllegalMove(f"A version that is {old} can't become {new}.")
        fields["state"] = new
        with transaction.atomic():
            if not DatasetVersion.objects.filter(pk=self.pk, state=old).update(**fields):
                raise StaleWrite(f"The version is no longer {old}.")
        for name, value in fields.items():
            setattr(self, name, value)
