from django.contrib import admin
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.decorators import display

from accounts.console import ReadOnly
from pipelines.models import (
    Connection,
    Experiment,
    ExperimentVersion,
    Pipeline,
    PipelineVersion,
    Run,
    Step,
    TransferChunk,
)
from workers.admin import STATES

LABELS = {**STATES, "pending": "info", "skipped": "success", "not_run": "warning"}


@admin.register(Connection)
class ConnectionAdmin(ReadOnly):
    list_display = ("name", "organization", "kind", "created_by", "created_at", "changed_at")
    list_filter = ("kind", ("organization", AutocompleteSelectFilter))
    list_select_related = ("organization", "created_by")
    search_fields = ("name", "id", "organization__name")
    exclude = ("secrets_sealed",)


@admin.register(Experiment)
class ExperimentAdmin(ReadOnly):
    list_display = ("name", "organization", "version", "created_by", "created_at")
    list_filter = (("organization", AutocompleteSelectFilter),)
    list_select_related = ("organization", "version", "created_by")
    search_fields = ("name", "id", "organization__name")


@admin.register(ExperimentVersion)
class ExperimentVersionAdmin(ReadOnly):
    list_display = ("experiment", "number", "made_by", "created_at")
    list_select_related = ("experiment",)
    search_fields = ("experiment__name", "experiment__id", "made_by")


@admin.register(Pipeline)
class PipelineAdmin(ReadOnly):
    list_display = ("name", "organization", "version", "is_enabled", "created_by", "created_at")
    list_filter = ("is_enabled", ("organization", AutocompleteSelectFilter))
    list_select_related = ("organization", "version", "created_by")
    search_fields = ("name", "id", "organization__name")


@admin.register(PipelineVersion)
class PipelineVersionAdmin(ReadOnly):
    list_display = ("pipeline", "number", "made_by", "created_at")
    list_select_related = ("pipeline",)
    search_fields = ("pipeline__name", "made_by")
    date_hierarchy = "created_at"


@admin.register(Run)
class RunAdmin(ReadOnly):
    list_display = (
        "pipeline", "number", "organization", "is_now", "trigger", "by_name", "why", "created_at",
        "started_at", "finished_at",
    )  # fmt: skip
    list_filter = ("state", "trigger", ("organization", AutocompleteSelectFilter))
    list_select_related = ("pipeline", "organization")
    search_fields = ("pipeline__name", "id", "organization__name", "why")
    date_hierarchy = "created_at"

    @display(description="State", ordering="state", label=LABELS)
    def is_now(self, one: Run) -> str:
        return str(one.state)


@admin.register(Step)
class StepAdmin(ReadOnly):
    list_display = (
        "key", "run", "stage", "is_now", "attempt", "retry_count", "error", "started_at",
        "finished_at",
    )  # fmt: skip
    list_filter = ("state", "stage")
    list_select_related = ("run__pipeline",)
    search_fields = ("key", "run__id", "run__pipeline__name", "error")

    @display(description="State", ordering="state", label=LABELS)
    def is_now(self, one: Step) -> str:
        return str(one.state)


@admin.register(TransferChunk)
class TransferChunkAdmin(ReadOnly):
    list_display = ("path", "number", "step", "offset", "size", "state", "retry_count")
    list_filter = ("state",)
    list_select_related = ("step__run__pipeline",)
    search_fields = ("path", "step__run__id", "step__run__pipeline__name")
