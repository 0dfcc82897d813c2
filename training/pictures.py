"""Pictures of named models: drawn by control in a child, kept in Valkey, shown by name."""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.cache import cache
from redis.exceptions import RedisError

from accounts.errors import Conflict, Unavailable
from organizations import rls
from organizations.models import Membership, Organization
from training import curves, named, plots
from training.learned import LearningCurve
from training.models import TrainedModel
from training.names import NamedVersion
from workers import bells

log = logging.getLogger(__name__)

KEPT_S = 24 * 3600  # what a model's curves look like never changes
ASKED_S = 60  # before it is asked for again
DRAW_S = 30
DRAW_MIB = 2048
MOST_WAIT_S = 10.0
MOST_ON_PAGE = 50
LEARNING_CURVE = "learning_curve"
VERSION = 1  # of how they look
_FAILED = b"failed"


def picture(by: Membership, address: str, kind: str, *, wait_s: float = 0) -> bytes | None:
    """The PNG of a named model's curve, or None while control draws it.

    Waits so many seconds for it. Raises what ``named.find`` raises, Conflict for a curve that the
    model has none of, Unavailable when it can't be drawn.
    """
    version = named.find(by.organization, address)
    assert version.model_id is not None
    key = f"picture:{VERSION}:{version.model_id}:{kind}"
    try:
        if (found := _kept(key)) is None:
            if not _is_there(by, version.model_id, kind):
                return None
            if cache.add(f"{key}:asked", 1, ASKED_S) and not ask_control(version.model_id, kind):
                cache.delete(f"{key}:asked")
                raise Unavailable("Pictures can't be drawn now: the broker is away.")
            if wait_s > 0:
                found = _wait(key, min(wait_s, MOST_WAIT_S))
    except RedisError:
        raise Unavailable("Pictures can't be drawn now: Valkey is away.") from None
    return found


def ask_control(model: UUID, kind: str) -> bool:
    """Whether control could be told to draw it."""
    return bells.send("training.tasks.draw", args=[str(model), kind], queue="control")


def _kept(key: str) -> bytes | None:
    found: bytes | None = cache.get(key)
    if found == _FAILED:
        raise Unavailable("The picture could not be drawn. Tell the operator.", code="not-drawn")
    return found


def _wait(key: str, seconds: float) -> bytes | None:
    until = time.monotonic() + seconds
    with rls.waiting():
        while (found := _kept(key)) is None and time.monotonic() < until:
            time.sleep(0.1)
    return found


def _is_there(by: Membership, model: UUID, kind: str) -> bool:
    """Whether there is something to draw; a learning curve is begun. Raises what says no."""
    if kind != LEARNING_CURVE:
        plot_of(model, kind)
        return True
    wanted = TrainedModel.objects.select_related("job__dataset_version__data", "task", "artifact")
    return curves.curve_of(by, wanted.get(pk=model)).state != LearningCurve.State.RUNNING


def plot_of(model: UUID, kind: str) -> plots.Plot:
    """Raises Conflict for a kind that the model has no curve of."""
    stored = TrainedModel.objects.select_related("job", "origin").defer("test", "params")
    found = stored.get(pk=model)
    if kind == LEARNING_CURVE:
        return curves.plot_of(found, LearningCurve.objects.get(model=model))
    made = plots.plots(_curves(found), found.job.target)
    if kind not in made:
        what = "predicts numbers" if found.job.classes is None else "gives no probabilities"
        raise Conflict(f"There is no such curve of this model: it {what}.", code="no-curve")
    return made[kind]


def _curves(model: TrainedModel) -> Mapping[str, Any]:
    """Of a refit, which ranked on no rows, those of the model whose recipe it is."""
    curves: Mapping[str, Any] = model.curves or (model.origin.curves if model.origin else {})
    return curves


def draw(model: UUID, kind: str) -> None:
    """Draw a picture in a child with limits, and keep it. Runs in control."""
    key = f"picture:{VERSION}:{model}:{kind}"
    told = plots.as_json(plot_of(model, kind))
    with tempfile.TemporaryDirectory() as scratch:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "training.plots"],
                input=told.encode(),
                capture_output=True,
                cwd=settings.BASE_DIR,
                # Nothing of ours: not its secrets, and no more threads than one.
                env={
                    "PATH": os.environ.get("PATH", ""),
                    "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR") or scratch,
                    "MPLBACKEND": "agg",
                    "OPENBLAS_NUM_THREADS": "1",
                },
                preexec_fn=_limit,
                timeout=2 * DRAW_S,
                check=True,
            )
        except (subprocess.SubprocessError, OSError) as failure:
            said = getattr(failure, "stderr", b"") or b""
            log.exception("no picture", extra={"model": str(model), "said": said[-500:].decode()})
            cache.set(key, _FAILED, ASKED_S)
            return
    cache.set(key, done.stdout, KEPT_S)


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (DRAW_MIB * 2**20,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (DRAW_S, DRAW_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def shown(home: Organization) -> tuple[list[dict[str, Any]], int]:
    """For the page of all: each named model with its figures and pictures, by name.

    And how many more there are.
    """
    every = named.answering(home).order_by("named__name")
    curved = every.select_related("model__origin").defer(None).defer(
        "job__columns", "job__request", "job__notices", "job__split", "model__test",
        "model__params", "model__origin__test", "model__origin__params",
    )  # fmt: skip
    versions = list(curved[:MOST_ON_PAGE])
    more = every.count() - len(versions) if len(versions) == MOST_ON_PAGE else 0
    return [_card(version) for version in versions], more


def _card(version: NamedVersion) -> dict[str, Any]:
    model = version.model
    assert model is not None
    drawn = plots.plots(_curves(model), version.job.target)
    return {
        "version": version,
        "metrics": [(name, value) for name, value in model.metrics.items() if value is not None],
        "pictures": [plots.svg(one) for one in drawn.values()],
    }
