"""Learning curves: asked of a node once for each model, and scored here like all else."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from django.db import transaction
from django.utils import timezone

from accounts.errors import Conflict, Unavailable
from organizations import quotas
from organizations.audit import record
from organizations.models import Membership, Role
from training import scoring
from training.evaluation import METRICS, InvalidCandidate
from training.learned import LearningCurve
from training.models import TrainedModel
from training.plots import Plot, Series
from workers.actions import add_task
from workers.models import Artifact, Task

LEARNING_CURVE = "training.learning_curve"  # a kind of task
BUDGET_S = 120.0
GRACE_S = 30
State = LearningCurve.State


def curve_of(by: Membership, model: TrainedModel) -> LearningCurve:
    """The model's curve; one that nobody has asked for yet is begun, if ``by`` may train.

    Raises Conflict for a model that has none, QuotaReached.
    """
    found = LearningCurve.objects.filter(model=model).first()
    if found is not None and not _is_lost(found):
        return found
    race = model.task
    version = model.job.dataset_version
    if model.is_ensemble or race is None or model.artifact is None:
        raise Conflict("There is no learning curve of this model: it can't be fitted again.",
                       code="no-curve")  # fmt: skip
    if version is None or version.data is None:
        raise Conflict("The data set is gone, so there is no learning curve.", code="no-curve")
    if not by.may(Role.DEVELOPER):
        raise Conflict("Nobody has asked for this curve yet. Making it takes the role developer.",
                       code="not-made")  # fmt: skip
    with transaction.atomic():
        quotas.reserve(by.organization, cpu_hours=0)
        curve, _ = LearningCurve.objects.update_or_create(
            model=model,
            defaults={"organization": by.organization, "state": State.RUNNING, "error": ""},
        )
        curve.work = add_task(
            by.organization,
            kind=LEARNING_CURVE,
            subject=curve.pk,
            topic=f"curve:{curve.pk}",
            payload={**race.payload, "budget_s": BUDGET_S},
            inputs={"data": version.data, "model": model.artifact},
            engine=model.engine,
            cpu_millis=race.cpu_millis,
            ram_mib=race.ram_mib,
            time_limit_s=int(BUDGET_S + GRACE_S),
        )
        curve.save(update_fields=["work"])
        record("model.learning-curve-asked", model, by=by)
    return curve


def ask(by: Membership, model: TrainedModel) -> LearningCurve:
    """The model's curve; one that isn't there, or that failed, is begun. Raises as curve_of."""
    LearningCurve.objects.filter(model=model, state=State.FAILED).delete()
    return curve_of(by, model)


def on_page(model: TrainedModel) -> dict[str, Any]:
    """What templates/training/_learning_curve.html shows."""
    found = LearningCurve.objects.filter(model=model).first()
    metric = METRICS[model.job.metric]
    can = not model.is_ensemble and model.task_id is not None and model.origin_id is None
    if found is None or _is_lost(found):
        return {"state": "", "can": can}
    points = found.points
    line: dict[str, Any] = {
        "name": metric.title,
        "points": [[point["rows"], point["score"]] for point in points],
    }
    if all(point["low"] is not None for point in points):
        line["band"] = [[point["rows"], point["low"], point["high"]] for point in points]
    data = {"series": [line], "x": "Rows to learn from", "y": metric.title, "xRange": {"min": 0}}
    return {
        "state": str(found.state),
        "can": can,
        "error": found.error,
        "points": points,
        "metric": metric,
        "picture_json": json.dumps(data),
        "text": f"How the same recipe does with fewer rows: its {metric.title} on rows that it had "
        f"not seen. {_words(points, metric.greater_is_better)}",
    }


def _words(points: list[dict[str, Any]], greater_is_better: bool) -> str:
    """What the end of the curve says of more rows."""
    if len(points) < 2:
        return ""
    before, last = points[-2], points[-1]
    better = (last["score"] > before["score"]) == greater_is_better
    apart = None not in (last["low"], last["high"]) and not (
        last["low"] <= before["score"] <= last["high"]
    )
    if better and apart:
        return "It still gets better at the end, so more rows would likely help."
    return "It is about level at the end, so more rows alone would hardly help."


def _is_lost(curve: LearningCurve) -> bool:
    return curve.state == State.RUNNING and curve.work_id is None


def plot_of(model: TrainedModel, curve: LearningCurve) -> Plot:
    """Raises Unavailable, with the reason, when it could not be made."""
    if curve.state == State.FAILED:
        raise Unavailable(curve.error or "The learning curve could not be made.", code="no-curve")
    points = curve.points
    rows = [point["rows"] for point in points]
    scores = [point["score"] for point in points]
    lows, highs = ([point[name] for point in points] for name in ("low", "high"))
    every = [*scores, *(one for one in [*lows, *highs] if one is not None)]
    room = (max(every) - min(every)) * 0.1 or 0.05
    banded = all(one is not None for one in [*lows, *highs])
    return Plot(
        "Learning curve",
        "Rows to learn from",
        METRICS[model.job.metric].title,
        [
            Series(
                "on rows that it had not seen",
                rows,
                scores,
                low=lows if banded else (),
                high=highs if banded else (),
            )
        ],
        (0, max(rows) * 1.05, min(every) - room, max(every) + room),
    )


@transaction.atomic
def finish(task: Task) -> None:
    """A node has ended with a curve: score its points. Runs in control."""
    curve = (
        LearningCurve.objects.select_for_update(no_key=True, of=("self",))
        .select_related("model__job__dataset_version__data")
        .filter(pk=task.subject, state=State.RUNNING)
        .first()
    )
    if curve is None:
        return
    made = {str(artifact.pk): artifact for artifact in task.artifacts.all()}
    try:
        if task.state != Task.State.SUCCEEDED:
            raise InvalidCandidate(task.error or "It was stopped.")
        curve.points = _scored(curve.model, task, made)
        curve.state = State.SUCCEEDED
    except InvalidCandidate as refusal:
        curve.state, curve.error = State.FAILED, str(refusal)
    curve.finished_at = timezone.now()
    curve.save()
    for artifact in made.values():  # the figures are all that is shown
        artifact.delete()
        transaction.on_commit(partial(artifact.file.delete, save=False))


def _scored(model: TrainedModel, task: Task, made: dict[str, Artifact]) -> list[dict[str, Any]]:
    truth = scoring.truth_of(model.job)
    files = task.result.get("files") or {}
    points = []
    for told in (task.result.get("data") or {}).get("points") or []:
        stored = made.get(str(files.get(str(told.get("name")))))
        if stored is None:
            raise InvalidCandidate("The predictions did not arrive.")
        said = scoring.read_predictions(stored, model.job, most_rows=len(truth.target))
        found = scoring.evaluate_part(model.job, said, truth)
        low, high = found.interval or (None, None)
        points.append(
            {"rows": int(told.get("rows") or 0), "score": found.score, "low": low, "high": high}
        )
    if not points:
        raise InvalidCandidate("The node sent no points.")
    return sorted(points, key=lambda point: float(point["rows"]))
