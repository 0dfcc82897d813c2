"""When a pipeline runs by itself: its schedule, and what celery beat knows of it.

A schedule is {"cron": "0 3 * * *"} or {"every_s": 3600}, with "time_zone" (of the cron) and
"overlap": what happens when its time comes while another run is still going.
"""

import json
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import available_timezones

from celery.schedules import ParseException
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

from accounts.errors import Invalid
from organizations import rls
from pipelines.models import Pipeline

OVERLAPS = ("skip", "queue", "cancel")
LEAST_S, MOST_S = 60, 366 * 24 * 3600
_FIELDS = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
_LATE_S = 3600  # a message that lay so long starts nothing any more


def check(given: Any) -> dict[str, Any]:
    """The schedule as it is stored; {} for none. Raises Invalid by field."""
    if given is None or given == {}:
        return {}
    errors: dict[str, list[str]] = {}
    if not isinstance(given, dict):
        raise _invalid({"schedule": ['Give {"cron": "0 3 * * *"} or {"every_s": 3600}.']})
    known = {"cron", "every_s", "time_zone", "overlap"}
    for name in sorted(given.keys() - known, key=str):
        errors[f"schedule.{str(name)[:40]}"] = ["A schedule has no such field."]
    zone, overlap = given.get("time_zone") or "UTC", given.get("overlap") or "skip"
    if not isinstance(zone, str) or zone not in available_timezones():
        errors["schedule.time_zone"] = ["Give a time zone by its name, such as Europe/Berlin."]
    if overlap not in OVERLAPS:
        errors["schedule.overlap"] = [f"Use one of: {', '.join(OVERLAPS)}."]
    made: dict[str, Any] = {"time_zone": zone, "overlap": overlap}
    cron, every = given.get("cron"), given.get("every_s")
    if (cron is None) == (every is None):
        errors["schedule"] = ["Give either cron or every_s."]
    elif every is not None:
        is_whole = isinstance(every, int) and not isinstance(every, bool)
        if not is_whole or not LEAST_S <= every <= MOST_S:
            errors["schedule.every_s"] = [f"Give whole seconds from {LEAST_S} to {MOST_S}."]
        made["every_s"] = every
    else:
        if problem := _cron_problem(cron):
            errors["schedule.cron"] = [problem]
        else:
            made["cron"] = " ".join(str(cron).split())
    if errors:
        raise _invalid(errors)
    return made


def _invalid(errors: dict[str, list[str]]) -> Invalid:
    text = " ".join(sentence for sentences in errors.values() for sentence in sentences)
    return Invalid(text, errors=errors)


def _cron_problem(cron: Any) -> str:
    wanted = "Give five fields: minute, hour, day of month, month, day of week (0 3 * * *)."
    parts = cron.split() if isinstance(cron, str) and len(cron) <= 200 else []
    if len(parts) != len(_FIELDS):
        return wanted
    try:
        _crontab(cron, "UTC").schedule.remaining_estimate(timezone.now())
    except (ParseException, ValueError, KeyError, OverflowError) as problem:
        return f"{str(problem).rstrip('.')}. {wanted}"
    except RuntimeError:  # how Celery says that no such day ever comes
        return "No day fits this: it would never run."
    return ""


def _crontab(cron: str, zone: str) -> CrontabSchedule:
    return CrontabSchedule(timezone=zone, **dict(zip(_FIELDS, cron.split(), strict=True)))


def apply(pipeline: Pipeline) -> None:
    """Let beat know what the pipeline's row says. Call it in a transaction, with the row locked."""
    with rls.platform():  # beat's tables are nobody's: they name a pipeline's id and no more
        before, schedule = pipeline.beat, pipeline.schedule
        if not schedule:
            pipeline.beat = None
            pipeline.save(update_fields=["beat"])
            if before is not None:
                before.delete()
            return
        beat = before or PeriodicTask(name=f"pipeline {pipeline.pk}")
        beat.task, beat.queue, beat.args = (
            "pipelines.tasks.scheduled", "control", json.dumps([str(pipeline.pk)]),
        )  # fmt: skip
        beat.expire_seconds, beat.enabled = _LATE_S, pipeline.is_enabled
        beat.crontab = beat.interval = None
        if "cron" in schedule:
            fields = dict(zip(_FIELDS, schedule["cron"].split(), strict=True))
            fields["timezone"] = schedule["time_zone"]
            there = CrontabSchedule.objects.filter(**fields).first()
            beat.crontab = there or CrontabSchedule.objects.create(**fields)
        else:
            fields = {"every": schedule["every_s"], "period": IntervalSchedule.SECONDS}
            found = IntervalSchedule.objects.filter(**fields).first()
            beat.interval = found or IntervalSchedule.objects.create(**fields)
        beat.save()
        pipeline.beat = beat
        pipeline.save(update_fields=["beat"])


def next_at(pipeline: Pipeline, now: datetime | None = None) -> datetime | None:
    """When it runs next by itself; None: it doesn't."""
    schedule, now = pipeline.schedule, now or timezone.now()
    if not schedule or not pipeline.is_enabled:
        return None
    if "cron" in schedule:
        left = _crontab(schedule["cron"], schedule["time_zone"]).schedule.remaining_estimate(now)
        # To the minute: Celery counts from its own now, an instant later.
        return (now + left + timedelta(seconds=30)).replace(second=0, microsecond=0)
    beat = pipeline.beat
    last = (beat.last_run_at or beat.date_changed) if beat else now
    return max(now, (last or now) + timedelta(seconds=schedule["every_s"]))


def in_words(schedule: dict[str, Any]) -> str:
    """ "0 3 * * * in Europe/Berlin", "every 2 h", or ""."""
    if not schedule:
        return ""
    if "cron" in schedule:
        return f"{schedule['cron']} in {schedule['time_zone']}"
    every = schedule["every_s"]
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if every % size == 0:
            return f"every {every // size} {unit}"
    return f"every {every} s"
