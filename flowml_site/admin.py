"""Tables of libraries in the console: schedules, and what operators did."""

from typing import Any

from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django_celery_beat.admin import (
    ClockedScheduleAdmin,
    CrontabScheduleAdmin,
    PeriodicTaskAdmin,
    PeriodicTaskForm,
    TaskSelectWidget,
)
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)
from unfold.admin import ModelAdmin
from unfold.contrib.filters.admin import RelatedDropdownFilter
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from accounts.console import ReadOnly

SCHEDULES = (PeriodicTask, IntervalSchedule, CrontabSchedule, SolarSchedule, ClockedSchedule)
for schedule in SCHEDULES:
    admin.site.unregister(schedule)


class _TaskSelect(UnfoldAdminSelectWidget, TaskSelectWidget):
    pass


class _PeriodicTaskForm(PeriodicTaskForm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["task"].widget = UnfoldAdminTextInputWidget()
        self.fields["regtask"].widget = _TaskSelect()


@admin.register(PeriodicTask)
class ScheduledTaskAdmin(PeriodicTaskAdmin, ModelAdmin):
    form = _PeriodicTaskForm


@admin.register(IntervalSchedule)
class IntervalAdmin(ModelAdmin):
    list_display = ("__str__", "every", "period")


@admin.register(CrontabSchedule)
class CrontabAdmin(CrontabScheduleAdmin, ModelAdmin):
    inlines = ()


@admin.register(SolarSchedule)
class SolarAdmin(ModelAdmin):
    list_display = ("event", "latitude", "longitude")


@admin.register(ClockedSchedule)
class ClockedAdmin(ClockedScheduleAdmin, ModelAdmin):
    inlines = ()


@admin.register(LogEntry)
class LogEntryAdmin(ReadOnly):
    """What was done in the console, by whom: every row's history in one list."""

    list_display = ("action_time", "user", "content_type", "object_repr", "action_flag", "told")
    list_filter = ("action_flag", ("content_type", RelatedDropdownFilter))
    list_select_related = ("user", "content_type")
    search_fields = ("user__username", "object_repr", "object_id", "change_message")
    date_hierarchy = "action_time"

    @admin.display(description="What")
    def told(self, entry: LogEntry) -> str:
        return entry.get_change_message()
