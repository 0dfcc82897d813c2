from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.errors import FlowError
from training import actions
from training.models import BatchPrediction, TrainedModel, TrainingJob
from workers.admin import ReadOnly


@admin.register(TrainingJob)
class TrainingJobAdmin(ReadOnly):
    list_display = (
        "name", "organization", "task", "metric", "state", "stopped_early", "model_count",
        "best_score", "created_by", "created_at", "started_at", "finished_at",
    )  # fmt: skip
    list_filter = ("state", "task", "metric", "stopped_early")
    list_select_related = ("organization",)
    search_fields = ("id", "name", "target", "organization__name", "error")
    date_hierarchy = "created_at"
    actions = ("cancel", "stop")

    def get_queryset(self, request: HttpRequest) -> QuerySet[TrainingJob]:
        jobs: QuerySet[TrainingJob] = TrainingJob.objects.for_list().select_related("organization")
        return jobs.order_by("-created_at")

    @admin.display(description="Models")
    def model_count(self, job: Any) -> int:
        return int(job.model_count)

    @admin.display(description="Best score")
    def best_score(self, job: TrainingJob) -> float | None:
        return job.best_model.ranked_score if job.best_model else None

    def has_act_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("training.change_trainingjob")

    @admin.action(description="Cancel now; stored models stay", permissions=["act"])
    def cancel(self, request: HttpRequest, jobs: QuerySet[TrainingJob]) -> None:
        self._each(request, jobs, actions.cancel_job, "will be cancelled")

    @admin.action(description="Stop now and keep the best", permissions=["act"])
    def stop(self, request: HttpRequest, jobs: QuerySet[TrainingJob]) -> None:
        self._each(request, jobs, actions.stop_job, "will be stopped")

    def _each(
        self,
        request: HttpRequest,
        jobs: QuerySet[TrainingJob],
        act: Callable[..., Any],
        done: str,
    ) -> None:
        for job in jobs:
            try:
                act(request.user.get_username(), job)
                self.message_user(request, f"{job}: {done}.", messages.SUCCESS)
            except FlowError as refusal:
                self.message_user(request, f"{job}: {refusal.detail}", messages.ERROR)


@admin.register(TrainedModel)
class TrainedModelAdmin(ReadOnly):
    list_display = (
        "name", "job", "organization", "engine", "family", "state", "score", "fit_s",
        "predict_ms_row", "created_at",
    )  # fmt: skip
    list_filter = ("state", "engine", "family")
    list_select_related = ("job", "organization")
    search_fields = ("id", "name", "key", "job__name", "organization__name")
    exclude = ("curves",)
    show_full_result_count = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[TrainedModel]:
        return super().get_queryset(request).defer("curves")


@admin.register(BatchPrediction)
class BatchPredictionAdmin(ReadOnly):
    list_display = (
        "filename", "model", "organization", "state", "rows", "created_by", "created_at",
        "finished_at",
    )  # fmt: skip
    list_filter = ("state",)
    list_select_related = ("model", "organization", "created_by")
    search_fields = ("id", "filename", "organization__name", "error")
