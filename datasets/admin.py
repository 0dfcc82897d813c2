from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.decorators import display

from accounts.console import ReadOnly, acts, operator
from datasets import actions
from datasets.models import Dataset, DatasetVersion
from workers.admin import STATES


@admin.register(Dataset)
class DatasetAdmin(ReadOnly):
    list_display = ("name", "organization", "is_now", "rows", "columns", "created_by", "created_at")
    list_filter = ("state", ("organization", AutocompleteSelectFilter))
    list_select_related = ("organization", "latest", "created_by")
    search_fields = ("id", "name", "organization__name")
    date_hierarchy = "created_at"
    actions = ("remove",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Dataset]:
        return super().get_queryset(request).defer("latest__columns", "latest__associations")

    @display(description="State", ordering="state", label=STATES)
    def is_now(self, dataset: Dataset) -> str:
        return str(dataset.state)

    @admin.display(ordering="latest__rows")
    def rows(self, dataset: Dataset) -> int | None:
        return dataset.latest.rows if dataset.latest else None

    @admin.display(ordering="latest__column_count")
    def columns(self, dataset: Dataset) -> int | None:
        return dataset.latest.column_count if dataset.latest else None

    @acts(
        "Delete with all versions and files",
        done="deleted",
        consequence="The data sets go for good, with every version and file. Models that were "
        "trained on them stay.",
        permission="remove",
    )
    def remove(self, request: HttpRequest, dataset: Dataset) -> None:
        actions.delete_dataset(operator(request), dataset)


@admin.register(DatasetVersion)
class DatasetVersionAdmin(ReadOnly):
    list_display = (
        "dataset", "number", "organization", "is_now", "filename", "rows", "column_count",
        "rejected", "size_bytes", "problem", "created_at", "ready_at",
    )  # fmt: skip
    list_filter = ("state", ("organization", AutocompleteSelectFilter))
    list_select_related = ("organization", "dataset")
    search_fields = ("id", "dataset__name", "filename", "sha256")
    date_hierarchy = "created_at"
    exclude = ("columns", "associations")

    def get_queryset(self, request: HttpRequest) -> QuerySet[DatasetVersion]:
        return super().get_queryset(request).defer("columns", "associations")

    @display(description="State", ordering="state", label=STATES)
    def is_now(self, version: DatasetVersion) -> str:
        return str(version.state)

    @admin.display(description="Error")
    def problem(self, version: Any) -> str:
        return str((version.error or {}).get("detail", ""))[:120]
