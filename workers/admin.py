from datetime import timedelta
from typing import Any

from django import forms
from django.contrib import admin
from django.db.models import Count, DurationField, ExpressionWrapper, F, QuerySet
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.decorators import display
from unfold.widgets import UnfoldAdminIntegerFieldWidget

from accounts.console import ReadOnly, acts, link, operator
from accounts.models import User
from workers import actions, joining, lines
from workers.models import Allocation, Artifact, Event, JoinToken, Pause, Stream, Task, Worker
from workers.served import unserved

STATES = {
    "queued": "info", "running": "primary", "ingesting": "primary", "lost": "warning",
    "succeeded": "success", "ready": "success", "failed": "danger",
}  # fmt: skip
__all__ = ["ReadOnly"]


def _who(request: HttpRequest) -> User:
    assert isinstance(request.user, User)
    return request.user


class ConcurrencyForm(forms.Form):
    concurrency = forms.IntegerField(
        min_value=0, max_value=256, widget=UnfoldAdminIntegerFieldWidget,
        help_text="Heavy tasks at a time. 0: as many as the node chooses itself.",
    )  # fmt: skip


class PriorityForm(forms.Form):
    priority = forms.IntegerField(
        min_value=-100, max_value=100, initial=0, widget=UnfoldAdminIntegerFieldWidget,
        help_text="Higher goes first, before all that is lower, whosever it is. Usual: 0.",
    )  # fmt: skip


class AliveFilter(admin.SimpleListFilter):
    """Nodes by whether they were heard of lately."""

    title = _("how it is")
    parameter_name = "is"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("alive", "Alive"), ("draining", "Draining"), ("gone", "Gone")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Worker]) -> QuerySet[Worker]:
        alive = queryset.filter(last_seen_at__gte=Worker.alive_since())
        if self.value() == "gone":
            return queryset.filter(last_seen_at__lt=Worker.alive_since())
        if self.value() == "draining":
            return alive.filter(draining=True)
        return alive if self.value() == "alive" else queryset


@admin.register(Worker)
class WorkerAdmin(ReadOnly):
    list_display = (
        "name", "how", "owner", "running", "concurrency", "load", "version", "last_seen_at",
        "registered_at",
    )  # fmt: skip
    list_filter = (AliveFilter, ("organization", AutocompleteSelectFilter), "version")
    list_select_related = ("organization",)
    search_fields = ("name", "id", "address", "organization__name")
    exclude = ("token_hash", "broker_hash")
    ordering = ("name",)
    actions = ("drain", "resume", "restart", "set_concurrency", "remove")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Worker]:
        return super().get_queryset(request).annotate(running_count=Count("allocations__task"))

    @display(description="Is", label={"alive": "success", "draining": "warning", "gone": "danger"})
    def how(self, worker: Worker) -> str:
        if not worker.is_alive:
            return "gone"
        return "draining" if worker.draining else "alive"

    @admin.display(description="For", ordering="organization__name")
    def owner(self, worker: Worker) -> str:
        return str(worker.organization or "everybody")

    @admin.display(ordering="running_count")
    def running(self, worker: Any) -> int:
        return int(worker.running_count)

    @admin.display(description="CPU, memory, disk free")
    def load(self, worker: Worker) -> str:
        cpu, used = worker.usage.get("cpu_percent"), worker.usage.get("ram_used_mib")
        free, memory = worker.usage.get("disk_free_mib"), worker.capabilities.get("ram_mib")
        parts = [
            "" if cpu is None else f"{cpu:.0f}%",
            f"{used / memory:.0%}" if used is not None and memory else "",
            "" if free is None else f"{free / 1024:.0f} GiB",
        ]
        return ", ".join(part or "?" for part in parts) if any(parts) else "—"

    @acts(
        "Drain",
        done="takes nothing new",
        consequence="These nodes finish what they run and take nothing new until resumed.",
    )
    def drain(self, request: HttpRequest, node: Worker) -> None:
        joining.drain(node, by=_who(request))

    @acts(
        "Resume",
        done="takes work again",
        consequence="These nodes take work again, at once where some waits.",
    )
    def resume(self, request: HttpRequest, node: Worker) -> None:
        joining.resume(node, by=_who(request))

    @acts(
        "Restart",
        done="restarts once it has finished what it runs",
        consequence="These nodes finish what they run, then start anew with the code that their "
        "machine has then.",
    )
    def restart(self, request: HttpRequest, node: Worker) -> None:
        joining.restart(node, by=_who(request))

    @acts(
        "Set concurrency",
        done="runs that many tasks at a time",
        consequence="The nodes learn of it with their next heartbeat; what runs goes on.",
        form=ConcurrencyForm,
    )
    def set_concurrency(self, request: HttpRequest, node: Worker, concurrency: int) -> None:
        joining.change(node, by=_who(request), concurrency=concurrency)

    @acts(
        "Remove",
        done="removed",
        consequence="Their tokens are void at once, and what they run is queued again. A machine "
        "that still runs has to join anew.",
        permission="remove",
    )
    def remove(self, request: HttpRequest, node: Worker) -> None:
        joining.remove(node, by=_who(request))


@admin.register(JoinToken)
class JoinTokenAdmin(ReadOnly):
    list_display = ("id", "owner", "made_by", "uses", "max_uses", "created_at", "expires_at")
    list_filter = ("expires_at",)
    list_select_related = ("organization", "made_by")
    search_fields = ("id", "organization__name", "made_by__username")
    exclude = ("token_hash",)
    date_hierarchy = "created_at"
    actions = ("revoke",)

    @acts(
        "Revoke",
        done="revoked",
        consequence="No machine can join with these any more. Those that did stay.",
    )
    def revoke(self, request: HttpRequest, token: JoinToken) -> None:
        joining.revoke_join_token(token, by=_who(request))

    @admin.display(description="For", ordering="organization__name")
    def owner(self, token: JoinToken) -> str:
        return str(token.organization or "the platform")


class WaitsFilter(admin.SimpleListFilter):
    """Tasks by what an operator looks for: who is stuck, and how."""

    title = _("trouble")
    parameter_name = "trouble"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            ("unserved", "Waits and nobody serves its queue"),
            ("overdue", "Runs past its time limit"),
            ("unhandled", "Ended, and nothing reacted"),
            ("failed-today", "Failed in the last 24 hours"),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Task]) -> QuerySet[Task]:
        now = timezone.now()
        match self.value():
            case "unserved":
                return unserved(queryset)
            case "overdue":
                limit = ExpressionWrapper(
                    F("time_limit_s") * timedelta(seconds=1), output_field=DurationField()
                )
                return queryset.filter(state=Task.State.RUNNING, started_at__lt=now - limit)
            case "unhandled":
                since = now - timedelta(minutes=1)
                return queryset.filter(handled_at=None, finished_at__lt=since)
            case "failed-today":
                since = now - timedelta(days=1)
                return queryset.filter(state=Task.State.FAILED, finished_at__gte=since)
        return queryset


@admin.register(Task)
class TaskAdmin(ReadOnly):
    list_display = (
        "short", "is_now", "kind", "engine", "organization", "queue", "worker", "queued_at",
        "started_at", "finished_at", "why",
    )  # fmt: skip
    list_filter = (
        WaitsFilter, "state", "fault", "kind", "engine", "queue", "code",
        ("worker", AutocompleteSelectFilter), ("organization", AutocompleteSelectFilter),
    )  # fmt: skip
    list_select_related = ("organization", "worker")
    search_fields = ("id", "subject", "organization__name", "error")
    date_hierarchy = "queued_at"
    ordering = ("-queued_at",)
    readonly_fields = ("its_events", "its_files")
    actions = ("cancel", "stop", "requeue", "to_front", "set_priority")

    @admin.display(description="Task", ordering="pk")
    def short(self, task: Task) -> str:
        again = f", attempt {task.attempt}" if task.attempt > 1 else ""
        return f"{str(task.pk)[:8]}{again}"

    @display(description="State", ordering="state", label=STATES)
    def is_now(self, task: Task) -> str:
        return str(task.state)

    @admin.display(description="Fault, code", ordering="code")
    def why(self, task: Task) -> str:
        return ", ".join(part for part in (task.fault, task.code) if part) or "—"

    @admin.display(description="Events")
    def its_events(self, task: Task) -> str:
        return _filtered("event", f"task__id__exact={task.pk}", "Its events")

    @admin.display(description="Files")
    def its_files(self, task: Task) -> str:
        return _filtered("artifact", f"task__id__exact={task.pk}", "Its files")

    @acts(
        "Cancel",
        done="cancelled, or about to be",
        consequence="Waiting tasks are cancelled at once; of running ones the node kills the "
        "whole process tree within seconds. What they have stored stays.",
    )
    def cancel(self, request: HttpRequest, task: Task) -> None:
        actions.cancel_task(task, by=operator(request))

    @acts(
        "Stop and keep what it has",
        done="asked to stop",
        consequence="Running tasks end now and keep what they have; waiting ones are cancelled.",
    )
    def stop(self, request: HttpRequest, task: Task) -> None:
        actions.stop_task(task, by=operator(request))

    @acts(
        "Queue again",
        done="queued again, as a new task",
        consequence="Each failed or cancelled task is done once more, as a new task with the same "
        "input. Whatever its owner saw of the old one stays as it is.",
    )
    def requeue(self, request: HttpRequest, task: Task) -> str:
        again = actions.requeue_task(task, by=operator(request))
        return f"queued again as {again}"

    @acts(
        "Move to the front",
        done="goes first in its organization",
        consequence="Whatever waits for the same job or data set goes before all else of its "
        "organization. Other organizations lose nothing by it.",
    )
    def to_front(self, request: HttpRequest, task: Task) -> None:
        lines.move_to_front(task.organization, task.subject, by=operator(request))

    @acts(
        "Change priority",
        done="has that priority now",
        consequence="Waiting tasks of a higher priority go before all others, of every "
        "organization.",
        form=PriorityForm,
    )
    def set_priority(self, request: HttpRequest, task: Task, priority: int) -> None:
        actions.change_priority(task, priority, by=operator(request))


def _filtered(model: str, query: str, text: str) -> str:
    address = reverse(f"admin:workers_{model}_changelist")
    return format_html('<a href="{}?{}">{}</a>', address, query, text)


@admin.register(Event)
class EventAdmin(ReadOnly):
    list_display = ("stream_id", "seq", "type", "at", "its_task", "attempt", "handled_at", "tries")
    list_filter = ("type", ("handled_at", admin.EmptyFieldListFilter))
    list_select_related = ("task",)
    search_fields = ("stream__topic", "key")
    ordering = ("-id",)

    @admin.display(description="Task")
    def its_task(self, event: Event) -> str:
        return link(event.task)


@admin.register(Stream)
class StreamAdmin(ReadOnly):
    list_display = ("topic", "organization", "last_seq")
    list_filter = (("organization", AutocompleteSelectFilter),)
    list_select_related = ("organization",)
    search_fields = ("topic",)


@admin.register(Artifact)
class ArtifactAdmin(ReadOnly):
    list_display = ("name", "organization", "bytes", "sha256", "task", "created_at")
    list_filter = (("organization", AutocompleteSelectFilter),)
    list_select_related = ("organization", "task")
    search_fields = ("name", "sha256", "id")
    date_hierarchy = "created_at"
    ordering = ("-created_at",)

    @admin.display(description="Size", ordering="size")
    def bytes(self, artifact: Artifact) -> str:
        return filesizeformat(artifact.size)


@admin.register(Allocation)
class AllocationAdmin(ReadOnly):
    list_display = ("worker", "task", "organization", "cpu_millis", "ram_mib", "light", "since")
    list_filter = (
        "light", ("worker", AutocompleteSelectFilter), ("organization", AutocompleteSelectFilter),
    )  # fmt: skip
    list_select_related = ("worker", "task", "organization")
    search_fields = ("worker__name", "organization__name")


@admin.register(Pause)
class PauseAdmin(ReadOnly):
    list_display = ("__str__", "reason", "by", "since")
    list_select_related = ("organization",)
    search_fields = ("queue", "organization__name", "reason", "by")
    fields = ("queue", "organization", "reason")
    autocomplete_fields = ("organization",)
    actions = ("resume",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "add")

    def save_model(self, request: HttpRequest, obj: Pause, form: Any, change: bool) -> None:
        made = lines.pause(
            queue=obj.queue,
            organization=obj.organization,
            by=operator(request),
            reason=obj.reason,
        )
        obj.pk = made.pk

    @acts(
        "Resume",
        done="resumed",
        consequence="Work that waited because of these may start at once.",
    )
    def resume(self, request: HttpRequest, pause: Pause) -> None:
        lines.resume(queue=pause.queue, organization=pause.organization, by=operator(request))
