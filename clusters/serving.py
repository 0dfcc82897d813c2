"""Predictions of deployments: from any replica that answers, in turn, and from another when one
dies. A prediction changes nothing, so it is simply asked again."""

import itertools
import json
import logging
import math
import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from django.http import Http404

from accounts.errors import Conflict, FlowError, Unavailable
from clusters import inflight, watch, words
from clusters.models import Deployment, Replica
from clusters.nodes import what_is
from organizations import rls
from organizations.models import Organization
from training import serving
from training.actions import RowsRefused
from training.models import TrainedModel
from training.rows import BadRows, check_rows
from workers.models import Worker

log = logging.getLogger(__name__)

PATIENCE_S = 5.0  # for a replica to come, where others were just going
AGAIN_S = 0.25


@dataclass(frozen=True, slots=True)
class Place:
    """A replica that answers."""

    replica: UUID
    number: int
    revision: int
    model: UUID | None  # None: it is a container
    node: Worker
    timeout_s: int  # of its deployment, as are the others
    max_in_flight: int
    samples: bool
    is_canary: bool
    percent: int  # of the requests, that the canary answers, or is asked as well
    is_shadow: bool


class IsContainer(Conflict):
    code = "is-a-container"


class TooSlow(FlowError):
    """The model took longer than the deployment's time limit."""

    code = "no-answer-in-time"
    status = 504


_places: "serving.Kept[tuple[UUID, UUID], list[Place]]" = serving.Kept(1, 500)
_shadows = ThreadPoolExecutor(4, thread_name_prefix="shadow")
_shadows_waiting = threading.BoundedSemaphore(32)  # what is being asked included
_turns: dict[UUID, "itertools.count[int]"] = {}


def places_of(home: Organization, deployment: UUID) -> list[Place]:
    """The replicas that answer now, as they were a second ago at most. Raises Http404."""

    def find() -> list[Place]:
        rows = (
            Replica.objects.of(home)
            .filter(
                deployment=deployment,
                deployment__deleted_at=None,
                state=Replica.State.RUNNING,
                node__last_seen_at__gte=Worker.alive_since(),
            )
            .select_related("node", "revision", "deployment")
            .order_by("generation")
        )
        return [
            Place(
                one.pk,
                one.number,
                one.revision.number,
                one.revision.model_id,
                one.node,
                one.deployment.timeout_s,
                one.deployment.max_in_flight,
                one.deployment.samples,
                one.deployment.canary_id == one.revision_id,
                one.deployment.canary_percent,
                one.deployment.canary_id == one.revision_id and one.deployment.canary_is_shadow,
            )
            for one in rows
            if one.node is not None and (one.revision.model_id or one.revision.image)
        ]

    return _places.get((home.pk, deployment), find)


def predict(home: Organization, deployment: UUID, rows: Any) -> dict[str, Any]:
    """Predict rows by a replica of the deployment.

    Raises Http404 where there is none such, Invalid when the model refuses the rows, Unavailable
    when no replica answers, Busy when too many wait already, TooSlow when the time is over.
    """
    with watch.telling() as said:
        return _counted(home, deployment, rows, said)


def _counted(
    home: Organization, deployment: UUID, rows: Any, said: watch.Commands
) -> dict[str, Any]:
    began = time.perf_counter()
    status, revision, count = 500, 0, 0
    try:
        places = places_of(home, deployment)
        if not places:
            refuse(home, deployment, {})
        if places[0].model is None:
            raise IsContainer(
                "This deployment runs a container, which is asked over HTTP: "
                f"/api/deployments/{deployment}/http/…"
            )
        with inflight.slot(deployment, places[0].max_in_flight, places[0].timeout_s, said):
            answer = _predict(home, deployment, places[0].timeout_s, rows, said)
        status, revision, count = 200, answer["revision"], len(answer["predictions"])
        return answer
    except FlowError as error:
        status = error.status
        if status >= 429:
            told = {"deployment": str(deployment), "code": error.code, "why": error.detail}
            log.warning("a deployment did not answer", extra=told)
        raise
    except Http404:
        status = 0
        raise
    finally:
        if status:
            ms = 1000 * (time.perf_counter() - began)
            watch.note(deployment, revision, status, ms, count, said=said)


def _predict(
    home: Organization, deployment: UUID, timeout_s: int, rows: Any, said: watch.Commands
) -> dict[str, Any]:
    tried: dict[UUID, str] = {}
    began = time.monotonic()
    until = began + timeout_s
    while True:
        places = [one for one in places_of(home, deployment) if one.replica not in tried]
        if not places and (not tried or time.monotonic() - began > PATIENCE_S):
            refuse(home, deployment, tried)
        if not places:  # those that there were went: others come
            with rls.waiting():
                time.sleep(AGAIN_S)
            _places.clear()
            continue
        place = choose(deployment, places)
        shadow = None if place.is_shadow else _shadow(places)
        try:
            # The only one may just be connecting anew, or be hard to reach where web is busy.
            tries = 1 if len(places) > 1 else serving.PATIENT_TRIES
            return _ask(home, deployment, place, rows, until, tries, said, shadow)
        except serving.NodeSlow as slow:  # another would be as slow
            watch.note_failed(deployment, place.revision)
            raise TooSlow(
                f"The model gave no answer within {timeout_s} s. Send fewer rows at once, add "
                "replicas if many ask, or raise the deployment's timeout_s."
            ) from slow
        except serving.NodeFailed as failure:
            watch.note_failed(deployment, place.revision)
            tried[place.replica] = str(failure)
            _places.clear()


def forget_places() -> None:
    """Look anew: one of them has gone."""
    _places.clear()


def choose(deployment: UUID, places: Sequence[Place]) -> Place:
    """Whose turn it is: the canary's by its share, and the others' one after the other.

    Whichever side has no replica left that answers, the other takes its requests.
    """
    turn = next(_turns.setdefault(deployment, itertools.count()))
    canary = [one for one in places if one.is_canary]
    others = [one for one in places if not one.is_canary]
    if canary and others:
        is_its_turn = not canary[0].is_shadow and random.random() * 100 < canary[0].percent
        chosen = canary if is_its_turn else others
    else:
        chosen = canary or others
    return chosen[turn % len(chosen)]


def _shadow(places: Sequence[Place]) -> Place | None:
    """The shadow that is to be asked the same, if it is this request's turn."""
    shadows = [one for one in places if one.is_shadow]
    if not shadows or random.random() * 100 >= shadows[0].percent:
        return None
    return random.choice(shadows)


def _ask_shadow(
    home: Organization,
    deployment: UUID,
    place: Place,
    rows: Sequence[Sequence[Any]],
    schema: Any,
    said: Sequence[Any],
) -> None:
    """Ask a shadow what another has answered, in a thread: nobody waits for it.

    A model with other columns can't be asked the same. With many waiting the question is dropped.
    """
    model = serving.servable(home, place.model) if place.model else None
    if model is None or [one["name"] for one in model.schema] != [one["name"] for one in schema]:
        return
    if not _shadows_waiting.acquire(blocking=False):
        return

    def ask() -> None:
        began = time.perf_counter()
        status, found = 503, []
        try:
            found = _answer(model, place, rows, place.timeout_s, 1).predictions
            status = 200
        except FlowError as error:
            status = error.status
        except serving.NodeFailed:
            pass
        finally:
            _shadows_waiting.release()
            ms = 1000 * (time.perf_counter() - began)
            pairs = list(zip(found, said, strict=False))
            same = sum(_is_same(one, other) for one, other in pairs)
            revision = place.revision
            watch.note(deployment, revision, status, ms, len(found), compared=len(pairs), same=same)

    _shadows.submit(ask)


def _is_same(one: Any, other: Any) -> bool:
    """Numbers are the same to within a thousandth."""
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-9)
    return bool(one == other)


def _ask(
    home: Organization,
    deployment: UUID,
    place: Place,
    rows: Any,
    until: float,
    tries: int,
    said: watch.Commands,
    shadow: Place | None = None,
) -> dict[str, Any]:
    model = serving.servable(home, place.model) if place.model else None
    if model is None:
        raise serving.NodeFailed("its model is gone")
    try:
        checked = check_rows(model.schema, rows)
    except BadRows as bad:
        raise RowsRefused(str(bad), errors=bad.errors) from None
    left_s = until - time.monotonic()
    if left_s <= 0:
        raise serving.NodeSlow("the time is over")
    with rls.waiting(comes_back=shadow is not None):
        answer = _answer(model, place, checked, left_s, tries)
    told = {
        "id": str(uuid4()),
        "deployment": str(deployment),
        "revision": place.revision,
        "replica": place.number,
        "model": str(model.pk),
        "predictions": answer.predictions,
        "probabilities": answer.by_class,
        "classes": answer.classes,
        "ms": answer.ms,
    }
    if place.samples and len(answer.predictions) == len(checked):
        names = [column["name"] for column in model.schema]
        watch.sample(deployment, told, names, checked, said=said)
    if shadow is not None:
        _ask_shadow(home, deployment, shadow, checked, model.schema, answer.predictions)
    return told


def _answer(
    model: TrainedModel, place: Place, rows: Sequence[Sequence[Any]], within_s: float, tries: int
) -> serving.Answer:
    columns = [column["name"] for column in model.schema]
    if not model.is_ensemble:
        return _ask_for(model, place, columns, rows, within_s, tries)
    parts = model.parts()
    with ThreadPoolExecutor(len(parts)) as pool:
        asked = [
            pool.submit(_ask_for, part.model, place, columns, rows, within_s, tries)
            for part in parts
        ]
        answers = [one.result() for one in asked]
    return serving.together(answers, [part.weight for part in parts])


def _ask_for(
    model: TrainedModel,
    place: Place,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    within_s: float,
    tries: int,
) -> serving.Answer:
    """The answer of one of the replica's model servers."""
    if model.artifact is None:
        raise serving.NodeFailed("its files are gone")
    body = {
        "model": what_is(model),
        "replica": str(place.replica),
        "columns": columns,
        "rows": rows,
    }
    return serving.ask_node(place.node, json.dumps(body, allow_nan=False).encode(), tries, within_s)


def refuse(home: Organization, deployment: UUID, tried: dict[UUID, str]) -> None:
    """Say why nobody answers. Raises Http404, Unavailable."""
    found = Deployment.objects.of(home).there().filter(pk=deployment).first()
    if found is None:
        raise Http404
    told = "; ".join(dict.fromkeys(tried.values()))
    if not found.is_started:
        raise Unavailable(f"{found} is stopped: start it first.", code="stopped")
    why = f" ({told})" if told else f": it is {found.state}"
    if not told and found.wait:
        why += f". {words.reason(found.wait)}"
    raise Unavailable(
        f"No replica of {found} answers just now{why}", code="no-replica", retry_after_s=5
    )
