"""Rows that a model learnt from, to compare one row with: chosen by control, kept in Valkey.

They are the same for all models of a job, and gone when the data set is.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any
from uuid import UUID

import numpy as np
from django.core.cache import cache
from redis.exceptions import RedisError

from accounts.errors import Conflict, Unavailable
from organizations import rls
from training import scoring
from training.evaluation import InvalidCandidate
from training.models import TrainingJob
from workers import bells

log = logging.getLogger(__name__)

ROWS = 100
MOST_CHARACTERS = 300_000  # all of them as JSON: a request to a node takes 1 MiB
KEPT_S = 24 * 3600
ASKED_S = 30  # before it is asked for again
WAIT_S = 10.0
VERSION = 1
_NONE = "none"  # control could not read them


def of(job: TrainingJob) -> list[list[Any]]:
    """Rows of values in the order of the job's columns, as a client would send them.

    Waits for control the first time. Raises Conflict when the data set is gone, Unavailable when
    they can't be had now.
    """
    version = job.dataset_version
    if version is None or version.data_id is None:
        raise Conflict(
            "The data set is gone, so there are no rows left to compare this one with.",
            code="data-gone",
        )
    key = _key(job.pk)
    try:
        found = cache.get(key)
        if found is None:
            if cache.add(f"{key}:asked", 1, ASKED_S) and not ask_control(job.pk):
                cache.delete(f"{key}:asked")
                raise Unavailable("Rows to compare with can't be read now: the broker is away.")
            found = _wait(key)
    except RedisError:
        raise Unavailable("Rows to compare with can't be read now: Valkey is away.") from None
    if found is None or found == _NONE:
        raise Unavailable(
            "The rows to compare this one with are still being read. Try again in a moment."
            if found is None
            else "The rows to compare this one with can't be read. Tell the operator.",
            code="no-background",
        )
    rows: list[list[Any]] = json.loads(found)
    return rows


def _key(job: UUID) -> str:
    return f"background:{VERSION}:{job}"


def ask_control(job: UUID) -> bool:
    """Whether control could be told to choose them."""
    return bells.send("training.tasks.choose_background", args=[str(job)], queue="control")


def _wait(key: str) -> str | None:
    until = time.monotonic() + WAIT_S
    with rls.waiting():
        found: str | None
        while (found := cache.get(key)) is None and time.monotonic() < until:
            time.sleep(0.05)
    return found


def choose(job: UUID) -> None:
    """Draw the rows from those that train, and keep them. Runs in control."""
    stored = TrainingJob.objects.select_related("dataset_version__data").get(pk=job)
    try:
        told = _drawn(stored)
    except (InvalidCandidate, OSError, ValueError):
        log.exception("no background", extra={"job": str(job)})
        told = _NONE
    cache.set(_key(job), told, KEPT_S if told != _NONE else ASKED_S)


def _drawn(job: TrainingJob) -> str:
    training = scoring.truth_of(job).training
    random = np.random.default_rng(job.seed % 2**32)
    chosen = np.sort(random.permutation(training)[:ROWS])
    rows = scoring.values_of(job, chosen)
    # Drawn rows in any order are as good: long texts mean fewer of them.
    told = [json.dumps(rows[place], ensure_ascii=False) for place in random.permutation(len(rows))]
    kept: list[str] = []
    for one in told:
        if kept and sum(map(len, kept)) + len(one) > MOST_CHARACTERS:
            break
        kept.append(one)
    if not kept:
        raise InvalidCandidate("No row trains.")
    return f"[{','.join(kept)}]"
