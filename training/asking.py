"""What nodes are asked about the columns of a model, once for each model: a light task, or one for
each member of an ensemble, whose answers become one when the last has come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from django.utils import timezone

from accounts.errors import Conflict
from organizations import quotas
from organizations.models import Organization
from training.checks import of_pictures
from training.evaluation import InvalidCandidate
from training.learned import AboutColumns
from training.models import TrainedModel
from workers.actions import add_task
from workers.models import Task

A = TypeVar("A", bound=AboutColumns)
State = AboutColumns.State


def begin(
    home: Organization,
    model: TrainedModel,
    kept_as: type[A],
    *,
    kind: str,
    payload: dict[str, Any],
    **how: Any,
) -> A:
    """Ask nodes about ``model``, within a transaction. ``how`` goes to add_task.

    Raises Conflict for a model that can't be asked, QuotaReached.
    """
    check(model)
    quotas.reserve(home, cpu_hours=0)
    objects: Any = kept_as._default_manager
    found, _ = objects.update_or_create(
        model=model,
        defaults={
            "organization": home, "state": State.RUNNING, "asked_at": timezone.now(), "error": "",
        },
    )  # fmt: skip
    topic = f"{kept_as._meta.model_name}:{found.pk}"
    _ask_nodes(model, kind=kind, subject=found.pk, topic=topic, payload=payload, **how)
    begun: A = found
    return begun


def tasks_of(found: AboutColumns) -> Any:
    return Task.objects.filter(subject=found.pk, queued_at__gte=found.asked_at)


def is_lost(found: AboutColumns) -> bool:
    """Whether nothing of it goes on any more, though it has not ended."""
    return found.state == State.RUNNING and not tasks_of(found).exists()


def weights_of(model: TrainedModel) -> dict[str, float]:
    """How much each model that is asked counts, by its id: 1 where it is no ensemble."""
    if not model.is_ensemble:
        return {str(model.pk): 1.0}
    return {str(part.model_id): part.weight for part in model.parts()}


def finish(kept_as: type[A], task: Task, keep: Callable[[A, list[Task]], None]) -> list[Task]:
    """A node has ended with its part: once all have, ``keep`` what they say. Within a transaction.

    Returns the tasks if it was the last. ``keep`` raises InvalidCandidate for no answer to what was
    asked.
    """
    objects: Any = kept_as._default_manager
    found = (
        objects.select_for_update(no_key=True, of=("self",))
        .select_related("model__job__dataset_version__data")
        .filter(pk=task.subject, state=State.RUNNING)
        .first()
    )
    if found is None:
        return []
    tasks = list(tasks_of(found))
    if any(not one.has_ended for one in tasks):
        return []
    try:
        failed = next((one for one in tasks if one.state != Task.State.SUCCEEDED), None)
        if failed is not None:
            raise InvalidCandidate(failed.error or "It was stopped.")
        keep(found, tasks)
        found.state = State.SUCCEEDED
    except InvalidCandidate as refusal:
        found.state, found.error = State.FAILED, str(refusal)
    found.finished_at = timezone.now()
    found.save()
    return tasks


def check(model: TrainedModel) -> None:
    """Raise Conflict for a model that can't be asked about columns of its data set."""
    check_columns(model)
    asked = _asked(model)
    version = model.job.dataset_version
    if not model.is_usable or not asked or any(one.artifact is None for one in asked):
        raise Conflict("This model can't be asked: its files are gone.", code="model-gone")
    if version is None or version.data is None:
        raise Conflict("The data set is gone, so no column of it can be shuffled.",
                       code="data-gone")  # fmt: skip
    if any(one.task is None for one in asked):
        raise Conflict("How this model was trained is no longer known.", code="task-gone")


def check_columns(model: TrainedModel) -> None:
    """Raise Conflict for a model that has none to tell apart: one that reads a picture alone."""
    if of_pictures(model.job.columns):
        raise Conflict(
            "This model reads a picture alone: it has no columns to compare.", code="no-columns"
        )


def _asked(model: TrainedModel) -> list[TrainedModel]:
    return [part.model for part in model.parts()] if model.is_ensemble else [model]


def _ask_nodes(model: TrainedModel, *, payload: dict[str, Any], **how: Any) -> None:
    """Queue light work on a model's rows: one task, or one for each member of an ensemble.

    ``payload`` is added to that of the race; ``how`` goes to add_task.
    """
    version = model.job.dataset_version
    for one in _asked(model):
        assert one.task is not None
        assert one.artifact is not None
        assert version is not None
        assert version.data is not None
        add_task(
            model.organization,
            payload={**one.task.payload, "member": str(one.pk), **payload},
            inputs={"data": version.data, "model": one.artifact},
            engine=one.engine,
            light=True,
            ram_mib=one.task.ram_mib,
            **how,
        )
