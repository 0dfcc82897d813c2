from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.decorators import display

from accounts.console import ReadOnly, acts, operator
from training import actions
from training.jobrequests import JobRequest
from training.learned import Dependence, Importance, LearningCurve
from training.models import (
    BatchPrediction,
    DataCheck,
    EnsembleMember,
    TrainedModel,
    TrainingJob,
)
from training.names import NamedAlias, NamedModel, NamedVersion
from workers.admin import STATES


@admin.register(TrainingJob)
class TrainingJobAdmin(ReadOnly):
    list_display = (
        "name", "organization", "task", "metric", "is_now", "stopped_early", "model_count",
        "best_score", "created_by", "created_at", "started_at", "finished_at",
    )  # fmt: skip
    list_filter = (
        "state", "task", "metric", "stopped_early", ("organization", AutocompleteSelectFilter),
    )  # fmt: skip
    search_fields = ("id", "name", "target", "organization__name", "error")
    date_hierarchy = "created_at"
    actions = ("cancel", "stop")

    def get_queryset(self, request: HttpRequest) -> QuerySet[TrainingJob]:
        jobs: QuerySet[TrainingJob] = TrainingJob.objects.for_list().select_related("organization")
        return jobs.order_by("-created_at")

    @display(description="State", ordering="state", label=STATES)
    def is_now(self, job: TrainingJob) -> str:
        return str(job.state)

    @admin.display(description="Models")
    def model_count(self, job: Any) -> int:
        return int(job.model_count)

    @admin.display(description="Best score")
    def best_score(self, job: TrainingJob) -> float | None:
        return job.best_model.ranked_score if job.best_model else None

    @acts(
        "Cancel",
        done="will be cancelled",
        consequence="The jobs end now. Models that are stored already stay.",
    )
    def cancel(self, request: HttpRequest, job: TrainingJob) -> None:
        actions.cancel_job(operator(request), job)

    @acts(
        "Stop and keep the best",
        done="will be stopped",
        consequence="The jobs stop now, and the best model so far becomes the winner.",
    )
    def stop(self, request: HttpRequest, job: TrainingJob) -> None:
        actions.stop_job(operator(request), job)


@admin.register(TrainedModel)
class TrainedModelAdmin(ReadOnly):
    list_display = (
        "name", "job", "organization", "engine", "family", "state", "score", "fit_s",
        "predict_ms_row", "created_at",
    )  # fmt: skip
    list_filter = ("state", "engine", "family", ("organization", AutocompleteSelectFilter))
    list_select_related = ("job", "organization")
    search_fields = ("id", "name", "key", "job__name", "organization__name")
    date_hierarchy = "created_at"
    exclude = ("curves",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[TrainedModel]:
        return super().get_queryset(request).defer("curves")


@admin.register(BatchPrediction)
class BatchPredictionAdmin(ReadOnly):
    list_display = (
        "filename", "model", "organization", "state", "rows", "created_by", "created_at",
        "finished_at",
    )  # fmt: skip
    list_filter = ("state", ("organization", AutocompleteSelectFilter))
    list_select_related = ("model", "organization", "created_by")
    date_hierarchy = "created_at"
    search_fields = ("id", "filename", "organization__name", "error")


@admin.register(DataCheck)
class DataCheckAdmin(ReadOnly):
    list_display = (
        "target", "dataset", "organization", "task", "is_now", "count", "rows", "sample", "seconds",
        "created_by", "created_at", "finished_at",
    )  # fmt: skip
    list_filter = ("state", "task", ("organization", AutocompleteSelectFilter))
    list_select_related = ("dataset_version__dataset", "organization", "created_by")
    search_fields = ("id", "target", "dataset_version__dataset__name", "organization__name")
    date_hierarchy = "created_at"

    def get_queryset(self, request: HttpRequest) -> QuerySet[DataCheck]:
        return (
            super()
            .get_queryset(request)
            .defer("dataset_version__columns", "dataset_version__associations")
        )

    @admin.display(description="Data set", ordering="dataset_version__dataset__name")
    def dataset(self, check: DataCheck) -> str:
        return f"{check.dataset_version.dataset} v{check.dataset_version.number}"

    @display(description="State", ordering="state", label=STATES)
    def is_now(self, check: DataCheck) -> str:
        return str(check.state)

    @admin.display(description="Findings")
    def count(self, check: DataCheck) -> int:
        return len(check.findings)


@admin.register(JobRequest)
class JobRequestAdmin(ReadOnly):
    list_display = (
        "__str__", "kind", "model_type", "organization", "is_now", "cached", "created_by",
        "created_at", "finished_at",
    )  # fmt: skip
    list_filter = ("kind", "model_type", ("organization", AutocompleteSelectFilter))
    search_fields = ("id", "description", "model_type", "organization__name", "error")
    date_hierarchy = "created_at"
    exclude = ("result",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[JobRequest]:
        found: QuerySet[JobRequest] = JobRequest.objects.for_list()
        return found.select_related("organization", "created_by")

    @display(description="State", label=STATES)
    def is_now(self, asked: JobRequest) -> str:
        return asked.now


@admin.register(LearningCurve)
class LearningCurveAdmin(ReadOnly):
    list_display = ("model", "organization", "is_now", "created_at", "finished_at")
    list_filter = ("state", ("organization", AutocompleteSelectFilter))
    list_select_related = ("model", "organization")
    search_fields = ("id", "model__name", "organization__name", "error")
    date_hierarchy = "created_at"

    @display(description="State", ordering="state", label=STATES)
    def is_now(self, curve: LearningCurve) -> str:
        return str(curve.state)


@admin.register(Importance)
class ImportanceAdmin(ReadOnly):
    list_display = ("model", "organization", "is_now", "rows", "created_at", "finished_at")
    list_filter = ("state", ("organization", AutocompleteSelectFilter))
    list_select_related = ("model", "organization")
    search_fields = ("id", "model__name", "organization__name", "error")
    date_hierarchy = "created_at"

    @display(description="State", ordering="state", label=STATES)
    def is_now(self, found: Importance) -> str:
        return str(found.state)


@admin.register(Dependence)
class DependenceAdmin(ReadOnly):
    list_display = ("model", "organization", "is_now", "rows", "created_at", "finished_at")
    list_filter = ("state", ("organization", AutocompleteSelectFilter))
    list_select_related = ("model", "organization")
    search_fields = ("id", "model__name", "organization__name", "error")
    date_hierarchy = "created_at"
    exclude = ("columns",)

    @display(description="State", ordering="state", label=STATES)
    def is_now(self, found: Dependence) -> str:
        return str(found.state)


@admin.register(NamedModel)
class NamedModelAdmin(ReadOnly):
    list_display = ("name", "organization", "version_count", "newest", "created_by", "created_at")
    list_filter = (("organization", AutocompleteSelectFilter),)
    list_select_related = ("organization", "created_by")
    search_fields = ("id", "name", "description", "organization__name")
    date_hierarchy = "created_at"

    def get_queryset(self, request: HttpRequest) -> QuerySet[NamedModel]:
        names: QuerySet[NamedModel] = NamedModel.objects.for_list()
        return names.order_by("name")

    @admin.display(description="Versions")
    def version_count(self, name: Any) -> int:
        return int(name.version_count)

    @admin.display(description="Newest")
    def newest(self, name: Any) -> int | None:
        return name.newest  # type: ignore[no-any-return]


@admin.register(NamedVersion)
class NamedVersionAdmin(ReadOnly):
    list_display = ("named", "number", "organization", "model", "job", "created_by", "created_at")
    list_filter = (("organization", AutocompleteSelectFilter),)
    list_select_related = ("named", "organization", "model", "job", "created_by")
    search_fields = ("id", "named__name", "organization__name")
    date_hierarchy = "created_at"


@admin.register(NamedAlias)
class NamedAliasAdmin(ReadOnly):
    list_display = ("named", "name", "version", "moved_at")
    list_select_related = ("named", "version__named")
    search_fields = ("name", "named__name")


@admin.register(EnsembleMember)
class EnsembleMemberAdmin(ReadOnly):
    list_display = ("ensemble", "model", "weight")
    list_select_related = ("ensemble", "model")
    search_fields = ("ensemble__id", "ensemble__job__name", "model__name")
