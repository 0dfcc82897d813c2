"""HTTP requests to containers of deployments: from any replica that answers, in turn.

Whoever asks shows FlowML a token; the container never sees it, nor any cookie. What it answers is
its own: nothing of it may act in FlowML's name in somebody's browser.
"""

import base64
import http.client
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from django.http import Http404

from accounts.errors import Conflict, FlowError, TooLarge, Unavailable
from clusters import inflight, watch
from clusters.serving import PATIENCE_S, Place, TooSlow, choose, forget_places, places_of, refuse
from organizations import rls
from organizations.models import Organization
from training import serving
from workers import relay

log = logging.getLogger(__name__)

AGAIN_S = 0.25
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})  # may be asked again of another replica
# Of one hop, or meant for FlowML: neither the container nor a tenant's own node sees the caller's
# token.
KEPT = frozenset(
    {
        "authorization", "connection", "content-length", "cookie", "expect", "forwarded", "host",
        "keep-alive", "proxy-authorization", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade", "x-csrftoken", "x-organization",
    }
)  # fmt: skip
# Of an answer. Cookies and what tells browsers how to treat FlowML's own address stay behind.
PASSED = frozenset(
    {
        "cache-control", "content-disposition", "content-encoding", "content-language",
        "content-type", "etag", "last-modified", "link", "location", "retry-after", "vary",
    }
)  # fmt: skip


class NotContainer(Conflict):
    code = "not-a-container"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the container gets it. ``path`` begins with / and holds the query."""

    method: str
    path: str
    headers: Sequence[tuple[str, str]]
    body: bytes


@dataclass(frozen=True, slots=True)
class Answered:
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    revision: int
    replica: int


class _NotReached(Exception):
    """This replica could not be asked, or broke off. ``sent``: it may have heard the question."""

    def __init__(self, detail: str, *, sent: bool) -> None:
        super().__init__(detail)
        self.sent = sent


def forward(home: Organization, deployment: UUID, asked: Asked) -> Answered:
    """The answer of a replica's container.

    Raises Http404 where there is no such deployment, NotContainer where it runs a model,
    Unavailable when no replica answers, Busy when too many wait already, TooSlow, TooLarge.
    """
    with watch.telling() as said:
        return _counted(home, deployment, asked, said)


def _counted(home: Organization, deployment: UUID, asked: Asked, said: watch.Commands) -> Answered:
    began = time.perf_counter()
    status, revision = 500, 0
    try:
        places = places_of(home, deployment)
        if not places:
            refuse(home, deployment, {})
        if places[0].model is not None:
            raise NotContainer(
                "This deployment runs a model: ask it for predictions, with POST …/predict."
            )
        with inflight.slot(deployment, places[0].max_in_flight, places[0].timeout_s, said):
            answer = _forward(home, deployment, places[0].timeout_s, asked)
        status, revision = answer.status, answer.revision
        return answer
    except FlowError as error:
        status = error.status
        raise
    except Http404:
        status = 0
        raise
    finally:
        if status:
            ms = 1000 * (time.perf_counter() - began)
            watch.note(deployment, revision, status, ms, 0, said=said)


def _forward(home: Organization, deployment: UUID, timeout_s: int, asked: Asked) -> Answered:
    began = time.monotonic()
    tried: dict[UUID, str] = {}
    while True:
        places = [one for one in places_of(home, deployment) if one.replica not in tried]
        if not places and (not tried or time.monotonic() - began > PATIENCE_S):
            refuse(home, deployment, tried)
        if not places:  # those that there were went: others come
            with rls.waiting():
                time.sleep(AGAIN_S)
            forget_places()
            continue
        place = choose(deployment, places)
        left_s = timeout_s - (time.monotonic() - began)
        tries = 1 if len(places) > 1 else serving.PATIENT_TRIES
        try:
            with rls.waiting(comes_back=False):
                return _ask(place, asked, max(0.1, left_s), tries)
        except TimeoutError:
            watch.note_failed(deployment, place.revision)
            raise TooSlow(
                f"The container gave no answer within {timeout_s} s. Raise the deployment's "
                "timeout_s, or add replicas if many ask."
            ) from None
        except _NotReached as failure:
            watch.note_failed(deployment, place.revision)
            tried[place.replica] = str(failure)
            forget_places()
            if failure.sent and asked.method not in SAFE:
                raise Unavailable(
                    f"The container broke off: {failure}. What was asked may have been done.",
                    code="broke-off",
                ) from None


def _ask(place: Place, asked: Asked, within_s: float, tries: int) -> Answered:
    """Raises _NotReached, TimeoutError, TooLarge."""
    body = {
        "replica": str(place.replica),
        "http": {
            "method": asked.method,
            "path": asked.path,
            "headers": [one for one in asked.headers if one[0].lower() not in KEPT],
            "body": base64.b64encode(asked.body).decode(),
            "within_s": within_s,
        },
    }
    try:
        status, raw = serving.post(place.node, json.dumps(body).encode(), tries, within_s + 1)
        told: Any = json.loads(raw)
    except TimeoutError:
        raise
    except relay.NotConnected:
        raise _NotReached("its node is not connected", sent=False) from None
    except relay.TooLarge:
        raise TooLarge(
            "This is too much for one request to a node on another machine, which takes 1 MB."
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _NotReached(
            f"its node can't be reached ({type(error).__name__})", sent=True
        ) from None
    if status == 504:
        raise TimeoutError
    if status == 413:
        raise TooLarge(str(told.get("detail")))
    if status != 200:
        raise _NotReached(str(told.get("detail")), sent=status != 410)
    headers = [(name, value) for name, value in told["headers"] if name.lower() in PASSED]
    return Answered(
        int(told["status"]), headers, base64.b64decode(told["body"]), place.revision, place.number
    )
