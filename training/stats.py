"""Counts and rates of one organization. Each function is a handful of aggregate queries."""

from datetime import timedelta
from typing import Any

from django.db.models import Aggregate, Count, F, FloatField, Q, QuerySet
from django.db.models.functions import Extract, TruncDate
from django.utils import timezone

from datasets.models import Dataset
from organizations.models import Organization
from training.models import BatchPrediction, TrainedModel, TrainingJob
from workers.models import Worker

DAYS = 30


class Median(Aggregate):
    """PostgreSQL's middle value, null over no rows."""

    function = "percentile_cont"
    template = "%(function)s(0.5) WITHIN GROUP (ORDER BY %(expressions)s)"
    output_field = FloatField()


def overview(organization: Organization) -> dict[str, Any]:
    """What an organization has, and what is new since a week."""
    week = Q(created_at__gte=timezone.now() - timedelta(days=7))
    counts = {"total": Count("pk"), "new": Count("pk", filter=week)}
    datasets = Dataset.objects.of(organization).aggregate(**counts)
    models = TrainedModel.objects.of(organization).filter(state="scored").aggregate(**counts)
    jobs = TrainingJob.objects.of(organization).aggregate(**_by_state(), new=counts["new"])
    new_jobs = jobs.pop("new")
    return {
        "datasets": datasets["total"],
        "jobs": jobs,
        "models": models["total"],
        "file_predictions": BatchPrediction.objects.of(organization).count(),
        "nodes_alive": Worker.objects.filter(last_seen_at__gte=Worker.alive_since()).count(),
        "success_rate": _success_rate(jobs),
        "last_7_days": {"datasets": datasets["new"], "jobs": new_jobs, "models": models["new"]},
    }


def _by_state() -> dict[str, Any]:
    states = TrainingJob.State.values
    return {"total": Count("pk")} | {s: Count("pk", filter=Q(state=s)) for s in states}


def _success_rate(jobs: dict[str, int]) -> float | None:
    ended = jobs["succeeded"] + jobs["failed"]
    return jobs["succeeded"] / ended if ended else None


def jobs(organization: Organization) -> dict[str, Any]:
    """Jobs by state, task and day; how many succeed, how long they take and wait."""
    mine = TrainingJob.objects.of(organization).order_by()
    figures = mine.aggregate(
        **_by_state(),
        duration=Median(
            Extract(F("finished_at") - F("started_at"), "epoch"), filter=Q(state="succeeded")
        ),
        wait=Median(Extract(F("started_at") - F("created_at"), "epoch")),
    )
    duration, wait = figures.pop("duration"), figures.pop("wait")
    by_task = dict(mine.values_list("task").annotate(n=Count("pk")).order_by("task"))
    return {
        "by_state": figures,
        "by_task": by_task,
        "success_rate": _success_rate(figures),
        "median_duration_s": duration,
        "median_wait_s": wait,
        "per_day": _per_day(mine),
    }


def _per_day(mine: QuerySet[TrainingJob]) -> list[dict[str, Any]]:
    today = timezone.now().date()
    first = today - timedelta(days=DAYS - 1)
    rows = (
        mine.filter(created_at__date__gte=first)
        .annotate(day=TruncDate("created_at"))
        .values("day")
        .annotate(
            created=Count("pk"),
            succeeded=Count("pk", filter=Q(state="succeeded")),
            failed=Count("pk", filter=Q(state="failed")),
        )
    )
    found = {row["day"]: row for row in rows}
    days = [first + timedelta(days=n) for n in range(DAYS)]
    nothing = {"created": 0, "succeeded": 0, "failed": 0}
    return [{**nothing, **found.get(day, {}), "day": day} for day in days]


def models(organization: Organization) -> dict[str, Any]:
    """Models by engine and by family, and how often each kind wins."""
    mine = TrainedModel.objects.of(organization).order_by()
    by_engine = _groups(mine, "engine")
    return {
        "total": sum(group["models"] for group in by_engine),
        "by_engine": by_engine,
        "by_family": _groups(mine, "family"),
    }


def _groups(mine: QuerySet[TrainedModel], what: str) -> list[dict[str, Any]]:
    rows = (
        mine.annotate(name_of=F(what))
        .values("name_of")
        .annotate(
            models=Count("pk", filter=Q(state="scored")),
            invalid=Count("pk", filter=Q(state="invalid")),
            wins=Count("pk", filter=Q(pk__in=_winners(mine))),
            median_fit_s=Median("fit_s", filter=Q(state="scored")),
        )
        .order_by("-models", "name_of")
    )
    return [{("name" if k == "name_of" else k): v for k, v in row.items()} for row in rows]


def _winners(mine: QuerySet[TrainedModel]) -> QuerySet[Any, Any]:
    return TrainingJob.objects.filter(state="succeeded", best_model__in=mine).values("best_model")
