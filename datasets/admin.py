from typing import Any

from django.contrib import admin, messages
from django.contrib.auth.models import AbstractUser
from django.db.models import QuerySet
from django.http import HttpRequest

from accounts.errors import FlowError
from datasets import actions
from datasets.models import Dataset, DatasetVersion
from workers.admin import ReadOnly


@admin.register(Dataset)
class DatasetAdmin(ReadOnly):
    list_display = ("name", "organization", "state", "rows", "columns", "created_by", "created_at")
    list_filter = ("state", "organization")
    list_select_related = ("organization", "latest", "created_by")
    search_fields = ("id", "name", "organization__name")
    date_hierarchy = "created_at"
    actions = ("remove",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Dataset]:
        return super().get_queryset(request).defer("latest__columns")

    @admin.display(ordering="latest__rows")
    def rows(self, dataset: Dataset) -> int | None:
        return dataset.latest.rows if dataset.latest else None

    @admin.display(ordering="latest__column_count")
    def columns(self, dataset: Dataset) -> int | None:
        return dataset.latest.column_count if dataset.latest else None

    def has_remove_permission(self, request: HttpRequest) -> bool:
        assert isinstance(request.user, AbstractUser)
        return request.user.has_perm("datasets.delete_dataset")

    @admin.action(description="Delete with all versions and files", permissions=["remove"])
    def remove(self, request: HttpRequest, chosen: QuerySet[Dataset]) -> None:
        for dataset in chosen:
            try:
                actions.delete_dataset(request.user.get_username(), dataset)
                self.message_user(request, f"{dataset} is deleted.", messages.SUCCESS)
            except FlowError as error:
                self.message_user(request, f"{dataset}: {error.detail}", messages.ERROR)


@admin.register(DatasetVersion)
class DatasetVersionAdmin(ReadOnly):
    list_display = (
        "dataset", "number", "organization", "state", "filename", "rows", "column_count",
        "rejected", "size_bytes", "problem", "created_at", "ready_at",
    )  # fmt: skip
    list_filter = ("state", "organization")
    list_select_related = ("organization", "dataset")
    search_fields = ("id", "dataset__name", "filename", "sha256")
    date_hierarchy = "created_at"
    exclude = ("columns",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[DatasetVersion]:
        return super().get_queryset(request).defer("columns")

    @admin.display(description="Error")
    def problem(self, version: Any) -> str:
        return str((version.error or {}).get("detail", ""))[:120]
