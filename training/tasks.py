"""Control's side of training: giving up what nobody can do, and getting warm, so that the first
leaderboard row is soon there.

The work itself hangs on the signals of the workers app (see reactions.py).
"""

import importlib
from typing import Any
from uuid import UUID

from celery import shared_task
from celery.signals import worker_process_init

from training import background, comparing, finish, general, telling


@shared_task(name="training.tasks.sweep")
def sweep() -> None:
    """Give up what waits for nodes that are not there, and go on with what was forgotten."""
    finish.end_unserved()
    general.sweep()


@worker_process_init.connect(dispatch_uid="training.warm_up")
def warm_up(**_: Any) -> None:
    """Import what scoring needs, in the child: Polars must not have threads when control forks."""
    for name in ("polars", "training.scoring"):
        importlib.import_module(name)


@shared_task(name="training.tasks.infer")
def infer(request: str) -> None:
    """Ask a node what somebody wants to know, and keep the answer."""
    general.answer(UUID(request))


@shared_task(name="training.tasks.draw", soft_time_limit=90, time_limit=100)
def draw(model: str, kind: str) -> None:
    """Draw a model's curve, which somebody has asked to see."""
    from training import pictures

    pictures.draw(UUID(model), kind)


@shared_task(name="training.tasks.compare", soft_time_limit=90, time_limit=100)
def compare(first: str, other: str) -> None:
    """Compute by how much two models differ, which somebody looks at side by side."""
    comparing.compare(UUID(first), UUID(other))


@shared_task(name="training.tasks.choose_background")
def choose_background(job: str) -> None:
    """Choose rows that a job's models learnt from, since somebody wants an answer explained."""
    background.choose(UUID(job))


@shared_task(name="training.tasks.tell")
def tell(job: str) -> None:
    """Write to who started a training that has ended, if they want that."""
    telling.tell(UUID(job))
