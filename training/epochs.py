"""How a network learnt, epoch by epoch: what nodes tell of it, and how it is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from django.utils.translation import gettext as _

from training.engines.named import models_of
from training.pages import Chart
from workers.models import Event, Task

MOST = 500  # epochs that are kept of a model
LOSSES = {"loss": "training rows", "validation_loss": "rows to stop by"}
ACCURACY = "validation_accuracy"
Point = dict[str, float]


def cleaned(told: object) -> list[Point]:
    """Epochs with their figures, of what a node says; what is none is left out."""
    points = []
    for one in (told if isinstance(told, list) else [])[-MOST:]:
        if not isinstance(one, Mapping):
            continue
        point = {
            name: float(one[name])
            for name in ("epoch", *LOSSES, ACCURACY)
            if isinstance(one.get(name), int | float) and math.isfinite(one[name])
        }
        if len(point) > 1 and "epoch" in point:
            points.append(point)
    return points


def tells(engine: str) -> bool:
    """Whether it fits networks."""
    models = models_of(engine).values()
    return any(one.name == "epochs" for model in models for one in model.parameters)


def live(task: Task) -> list[Point]:
    """What the fit that a task is at has told so far."""
    if task.state != Task.State.RUNNING or not tells(task.engine):
        return []
    said = Event.objects.filter(task=task, stream=task.stream_id, type="progress").order_by("-seq")
    newest = said.values_list("data", flat=True).first() or {}
    return cleaned(newest.get("curve"))


def begun(params: Mapping[str, Any]) -> str:
    """What weights a network of texts or pictures began with; empty for other models."""
    start = params.get("started_from")
    if start != "random weights":
        return _("It started from %(start)s.") % {"start": start} if start else ""
    return _(
        "It started from random weights, not from pretrained ones. From few texts or pictures such "
        "a network learns little."
    )


def charts(points: Sequence[Point] | None, id: str = "epochs") -> list[Chart]:
    """Losses and accuracy by epoch, as far as there are any."""
    if points is None or len(points) < 2:
        return []
    best = min(
        (point for point in points if "validation_loss" in point),
        key=lambda point: point["validation_loss"],
        default=None,
    )
    text = str(_("One point per epoch, a pass over the training rows."))
    if best:
        text += " " + _("The dashed line is the best epoch: its network is kept.")
    found = [
        _chart(f"{id}-loss", _("Loss by epoch"), text, _("Loss"), LOSSES, points),
        _chart(
            f"{id}-accuracy",
            _("Accuracy by epoch"),
            text,
            _("Accuracy"),
            {ACCURACY: LOSSES["validation_loss"]},
            points,
        ),
    ]
    shown = [chart for chart in found if chart.data["series"]]
    if best:
        for chart in shown:
            chart.data["mark"] = best["epoch"]
    return shown


def _chart(
    id: str,
    title: str,
    text: str,
    y: str,
    lines: Mapping[str, str],
    points: Sequence[Point],
) -> Chart:
    there = {name: words for name, words in lines.items() if any(name in one for one in points)}
    data: dict[str, Any] = {
        "series": [
            {"name": words, "points": [[one["epoch"], one[name]] for one in points if name in one]}
            for name, words in there.items()
        ],
        "x": _("Epoch"),
        "y": y,
        "still": True,
    }
    if ACCURACY in lines:
        data["yRange"] = {"min": 0, "max": 1}
    rows = [[int(one["epoch"]), *(one.get(name) for name in there)] for one in points]
    return Chart(id, "xy", title, text, data, [_("epoch"), *there.values()], rows)
