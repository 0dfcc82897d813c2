from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.db.models import Count, QuerySet
from django.http import HttpRequest
from unfold.admin import ModelAdmin

from accounts.errors import FlowError
from workers import actions
from workers.models import Allocation, Artifact, Event, Stream, Task, Worker


class ReadOnly(ModelAdmin):
    """For rows that a state machine owns: to look at, never to edit."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


@admin.register(Worker)
class WorkerAdmin(ReadOnly):
    list_display = ("name", "alive", "running", "version", "last_seen_at", "registered_at")
    search_fields = ("name",)
    exclude = ("token_hash",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Worker]:
        return super().get_queryset(request).annotate(running_count=Count("allocations"))

    @admin.display(boolean=True)
    def alive(self, worker: Worker) -> bool:
        return worker.is_alive

    @admin.display(ordering="running_count")
    def running(self, worker: Any) -> int:
        return int(worker.running_count)


@admin.register(Task)
class TaskAdmin(ReadOnly):
    list_display = (
        "id", "kind", "engine", "organization", "state", "attempt", "progress", "queue",
        "worker", "queued_at", "started_at", "finished_at", "fault",
    )  # fmt: skip
    list_filter = ("state", "kind", "queue", "fault", "worker")
    list_select_related = ("organization", "worker")
    search_fields = ("id", "subject", "organization__name", "error")
    date_hierarchy = "queued_at"
    actions = ("cancel", "requeue")

    def has_act_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("workers.change_task")

    @admin.action(description="Cancel", permissions=["act"])
    def cancel(self, request: HttpRequest, tasks: QuerySet[Task]) -> None:
        self._each(request, tasks, actions.cancel_task, "cancelled")

    @admin.action(description="Queue again as a new task", permissions=["act"])
    def requeue(self, request: HttpRequest, tasks: QuerySet[Task]) -> None:
        self._each(request, tasks, actions.requeue_task, "queued again")

    def _each(
        self, request: HttpRequest, tasks: QuerySet[Task], act: Callable[..., Any], done: str
    ) -> None:
        for task in tasks:
            try:
                act(task, by=request.user.get_username())
                self.message_user(request, f"{task}: {done}.", messages.SUCCESS)
            except FlowError as refusal:
                self.message_user(request, f"{task}: {refusal.detail}", messages.ERROR)


@admin.register(Event)
class EventAdmin(ReadOnly):
    list_display = ("stream", "seq", "type", "at", "task", "attempt", "handled_at", "tries")
    list_filter = ("type",)
    list_select_related = ("task",)
    search_fields = ("stream__topic", "key")
    show_full_result_count = False


@admin.register(Stream)
class StreamAdmin(ReadOnly):
    list_display = ("topic", "organization", "last_seq")
    list_select_related = ("organization",)
    search_fields = ("topic",)


@admin.register(Artifact)
class ArtifactAdmin(ReadOnly):
    list_display = ("name", "organization", "size", "sha256", "task", "created_at")
    list_select_related = ("organization", "task")
    search_fields = ("name", "sha256", "id")
    show_full_result_count = False


@admin.register(Allocation)
class AllocationAdmin(ReadOnly):
    list_display = ("worker", "task", "organization", "cpu_millis", "ram_mib", "light", "since")
    list_select_related = ("worker", "task", "organization")
