"""Asking a node's model server for predictions: HTTP over the node's Unix socket, kept alive.

Each web process keeps a few idle connections per node. A prediction changes nothing, so a request
that met a closed connection or a dying node is simply sent again. A node on another machine has no
socket that web can open; it is asked over the one that it opened itself (``workers.relay``).
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import socket
import stat
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import wraps
from typing import Any, Generic, ParamSpec, TypeVar
from uuid import UUID

import numpy as np
from django.db.models import Q

from accounts.errors import FlowError, Invalid, TooLarge, Unavailable
from organizations import rls
from organizations.models import Organization
from training.ensemble import Said, blend
from training.models import TrainedModel
from workers import relay
from workers.models import Worker

K = TypeVar("K")
V = TypeVar("V")
P = ParamSpec("P")

CONNECT_S = 2.0
ANSWER_S = 30.0  # the first request of a model fetches, checks and loads it
KEPT_PER_NODE = 8
ASKED_SIDE_BY_SIDE = 8  # models of one request to all
PATIENT_TRIES = 6  # of half a second each: a node that connects anew is back within
MOST_AT_ONCE = relay.MAX_IN_FLIGHT // 2  # of one organization, in each web process


@dataclass(frozen=True, slots=True)
class Answer:
    """``predictions``: class names or numbers, one per row; ``probabilities``: rows x classes.

    ``parts``, of a row that was to be explained: what each model that was asked said, unchecked,
    and how much it weighs.
    """

    predictions: list[Any]
    probabilities: list[list[float]] | None
    classes: list[str] | None
    ms: dict[str, float]
    node: str
    parts: tuple[tuple[Any, float], ...] = ()

    @property
    def by_class(self) -> list[dict[str, float]] | None:
        """Each row's probabilities by class name."""
        if self.probabilities is None or self.classes is None:
            return None
        names = self.classes
        return [dict(zip(names, shares, strict=True)) for shares in self.probabilities]


class NodeFailed(Exception):
    """This node could not answer; another one may."""


class NotConnected(NodeFailed):
    """This node has no connection to web just now."""


class NodeSlow(NodeFailed):
    """This node took longer than there was time."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("node", timeout=ANSWER_S)
        self.path = path

    def answer_within(self, seconds: float) -> None:
        """Wait so long for what is asked next."""
        self.timeout = seconds
        if self.sock is not None:
            self.sock.settimeout(seconds)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CONNECT_S)
        self.sock.connect(self.path)
        self.sock.settimeout(self.timeout)


class _Pool:
    """Idle connections by address; the one used last is taken first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[str, list[_UnixConnection]] = defaultdict(list)

    def post(self, address: str, path: str, body: bytes, within_s: float) -> tuple[int, bytes]:
        """Status and body. Raises OSError or HTTPException when the node cannot be talked to."""
        while True:
            with self._lock:
                kept = self._idle[address].pop() if self._idle[address] else None
            connection = kept or _UnixConnection(address)
            connection.answer_within(within_s)
            try:
                connection.request(
                    "POST", path, body=body, headers={"Content-Type": "application/json"}
                )
                response = connection.getresponse()
                answer = response.read()
            except TimeoutError:
                connection.close()
                raise
            except (OSError, http.client.HTTPException):
                connection.close()
                if kept is None:
                    raise
                continue  # the node had closed it meanwhile: try the next, in the end a fresh one
            with self._lock:
                if not response.will_close and len(self._idle[address]) < KEPT_PER_NODE:
                    self._idle[address].append(connection)
                    return response.status, answer
            connection.close()
            return response.status, answer


_pool = _Pool()


class Kept(Generic[K, V]):
    """Answers of the database, kept in this process for a short while: half a prediction's cost."""

    def __init__(self, seconds: float, most: int) -> None:
        self._seconds, self._most = seconds, most
        self._found: dict[K, tuple[float, V]] = {}

    def get(self, key: K, find: Callable[[], V]) -> V:
        """What was found for ``key``, or what ``find`` finds now. Something empty isn't kept."""
        until, found = self._found.get(key, (0.0, None))
        if found is not None and time.monotonic() < until:
            return found
        found = find()
        if found:
            if len(self._found) >= self._most:
                self._found.clear()
            self._found[key] = (time.monotonic() + self._seconds, found)
        return found

    def clear(self) -> None:
        self._found.clear()


_models: Kept[tuple[UUID, UUID], TrainedModel | None] = Kept(10, 200)
_nodes: Kept[tuple[str, UUID, bool], list[Worker]] = Kept(1, 200)


def servable(organization: Organization, model: UUID) -> TrainedModel | None:
    """A model of the organization as predictions need it, read-only: what it is never changes."""
    wanted = TrainedModel.objects.of(organization).select_related("job", "artifact")
    slim = wanted.defer("curves", "test", "params", "metrics", "job__request", "job__notices")

    def find() -> TrainedModel | None:
        found: TrainedModel | None = slim.filter(pk=model).first()
        if found is not None and found.is_ensemble:
            found.parts()
        return found

    return _models.get((organization.pk, model), find)


def nodes_for(engine: str, model: TrainedModel) -> list[Worker]:
    """Live nodes that can answer for ``model``, in an order that keeps a model on the same node.

    The platform's and those of the model's organization; another organization's never.
    """
    whose = Q(organization=model.organization_id)
    own = model.artifact is not None and model.artifact.own_node
    if not own:  # what an organization's own node wrote, no other loads
        whose |= Q(organization=None)
    alive = Worker.objects.filter(
        whose,
        last_seen_at__gte=Worker.alive_since(),
        capabilities__engines__contains=[engine],
    )
    found = _nodes.get((engine, model.organization_id, own), lambda: list(alive))
    return sorted(found, key=lambda node: hashlib.sha256(model.pk.bytes + node.pk.bytes).digest())


class Busy(FlowError):
    code = "too-many-predictions"
    status = 429


def _few_at_once(asks: Callable[P, Answer]) -> Callable[P, Answer]:
    """Refuse what an organization asks while many of its questions wait already: nodes may be slow,
    or a tenant's own, and the room to wait is everybody's."""
    waiting: Counter[UUID] = Counter()
    lock = threading.Lock()

    @wraps(asks)
    def counted(*args: P.args, **kwargs: P.kwargs) -> Answer:
        model = args[0]
        assert isinstance(model, TrainedModel)
        home = model.organization_id
        with lock:
            if waiting[home] >= MOST_AT_ONCE:
                raise Busy(
                    f"{MOST_AT_ONCE} predictions of your organization wait for an answer already. "
                    "Try again in a moment, or send many rows at once.",
                    retry_after_s=1,
                )
            waiting[home] += 1
        try:
            return asks(*args, **kwargs)
        finally:
            with lock:
                waiting[home] -= 1
                if not waiting[home]:
                    del waiting[home]

    return counted


@_few_at_once
def ask(
    model: TrainedModel,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    background: Sequence[Sequence[Any]] | None = None,
) -> Answer:
    """Predict checked ``rows`` (values in the order of ``columns``) with a model that can.

    Members of an ensemble are asked side by side, each where its engine is. With a ``background``
    of rows to compare with, the one row is explained as well. Raises Invalid when the model refuses
    the rows, Unavailable when no node can answer.
    """
    asking = _asking(model, columns, rows, background)
    with rls.waiting():
        return asking()


@dataclass(frozen=True, slots=True)
class Question:
    """Checked ``rows`` for a model: values in the order of ``columns``."""

    model: TrainedModel
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


def ask_all(questions: Sequence[Question]) -> list[Answer | FlowError]:
    """The answer to each, or why there is none. Models are asked side by side."""
    found: list[Callable[[], Answer] | FlowError] = []
    for one in questions:
        try:
            found.append(_asking(one.model, one.columns, one.rows))
        except FlowError as error:
            found.append(error)

    def answer(question: Question, asking: Callable[[], Answer] | FlowError) -> Answer | FlowError:
        try:
            return asking if isinstance(asking, FlowError) else _counted(question.model, asking)
        except FlowError as error:
            return error

    with rls.waiting(), ThreadPoolExecutor(ASKED_SIDE_BY_SIDE) as pool:
        return list(pool.map(answer, questions, found))


@_few_at_once
def _counted(_: TrainedModel, asking: Callable[[], Answer]) -> Answer:
    return asking()


def _asking(
    model: TrainedModel,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    background: Sequence[Sequence[Any]] | None = None,
) -> Callable[[], Answer]:
    """What asks: all that needs the database is done before it is called."""
    said = {"columns": list(columns), "rows": rows}
    if background is not None:
        said["background"] = background
    what = json.dumps(said, allow_nan=False)
    if not model.is_ensemble:
        return _question(model, what)
    parts = model.parts()
    if not parts:
        raise Unavailable("The models of this ensemble are gone.", code="model-gone")
    questions = [_question(part.model, what) for part in parts]

    def all_of_them() -> Answer:
        with ThreadPoolExecutor(len(questions)) as pool:
            answers = [asked.result() for asked in [pool.submit(one) for one in questions]]
        return together(answers, [part.weight for part in parts])

    return all_of_them


def together(answers: Sequence[Answer], weights: Sequence[float]) -> Answer:
    """What the members of an ensemble answered to the same rows, as one answer.

    Raises Unavailable where their answers don't go together.
    """
    classes = answers[0].classes
    try:
        said = [Said(one.predictions, one.probabilities) for one in answers]
        found = blend(said, weights, classes)
    except ValueError as error:  # what a node said is no answer to the same rows
        raise Unavailable(f"The members of the ensemble disagree: {error}") from error
    shares = found.probabilities
    return Answer(
        list(found.predictions),
        None if shares is None else np.asarray(shares).tolist(),
        classes,
        {name: max(one.ms.get(name, 0.0) for one in answers) for name in answers[0].ms},
        ", ".join(dict.fromkeys(one.node for one in answers)),
        tuple(
            (told, weight)
            for one, weight in zip(answers, weights, strict=True)
            for told, _ in one.parts
        ),
    )


def _question(model: TrainedModel, what: str) -> Callable[[], Answer]:
    """What asks the nodes for a model's answer. Raises Unavailable when there is nobody to ask."""
    artifact = model.artifact
    if artifact is None:
        raise Unavailable("The files of this model are gone.", code="model-gone")
    nodes = nodes_for(model.engine, model)
    if not nodes:
        raise Unavailable(
            f"No node with engine {model.engine} is online to answer. Start one, or ask your "
            "operator.",
            code="no-node",
            engine=model.engine,
        )
    who = json.dumps(
        {
            "artifact": str(artifact.pk),
            "sha256": artifact.sha256,
            "signature": artifact.signature,
            "engine": model.engine,
            "organization": str(model.organization_id),
        }
    )
    body = f'{{"model": {who}, {what[1:]}'.encode()
    return lambda: _ask_nodes(nodes, body)


def _ask_nodes(nodes: list[Worker], body: bytes) -> Answer:
    reasons = {}
    # First whoever is there at once; then, with patience, who may just be connecting anew.
    for tries in (1, PATIENT_TRIES):
        for node in list(nodes):
            try:
                return ask_node(node, body, tries)
            except NodeFailed as failure:
                _nodes.clear()
                reasons[node.name] = str(failure)
                if not isinstance(failure, NotConnected):
                    nodes.remove(node)
    told = "; ".join(f"{name}: {why}" for name, why in reasons.items())
    raise Unavailable(f"No node could answer with this model ({told}).", code="no-answer")


def post(node: Worker, body: bytes, tries: int, within_s: float) -> tuple[int, bytes]:
    """Status and body of the node's answer, by the quickest way there is."""
    path = node.address.removeprefix("unix:")
    if _is_socket_of_ours(path):
        try:
            return _pool.post(path, "/predict", body, within_s)
        except (FileNotFoundError, ConnectionRefusedError):
            pass  # what a node that has ended left behind; it may be back elsewhere
    return relay.ask(node.pk, body, tries=tries, timeout_s=within_s)


def _is_socket_of_ours(path: str) -> bool:
    """Whether the node listens on this machine, as this user. A path alone is only its word."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISSOCK(found.st_mode) and found.st_uid == os.geteuid()


def ask_node(node: Worker, body: bytes, tries: int, within_s: float | None = None) -> Answer:
    """One node's answer, within `ANSWER_S` unless told otherwise; one that is just connecting anew
    is tried so many times.

    Raises NodeFailed, with what it did, when another may be asked (NodeSlow: it took too long);
    Invalid and TooLarge for rows that none would take.
    """
    within_s = ANSWER_S if within_s is None else within_s
    try:
        status, raw = post(node, body, tries, within_s)
        answer = json.loads(raw)
    except TimeoutError:
        raise NodeSlow(f"gave no answer within {within_s:.0f} s") from None
    except relay.NotConnected:
        raise NotConnected("is not connected") from None
    except relay.TooLarge:
        raise TooLarge(
            "These rows are too many for one request to a node on another machine. Send them as a "
            "file: then they become a task, and the answer a file."
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise NodeFailed(f"cannot be reached ({error.__class__.__name__})") from None
    except ValueError:
        raise NodeFailed("gave an answer that is no JSON") from None
    if status == 200:
        if not isinstance(answer, dict) or not isinstance(answer.get("predictions"), list):
            raise NodeFailed("gave an answer without predictions")
        return Answer(
            answer["predictions"],
            answer.get("probabilities"),
            answer.get("classes"),
            answer.get("ms") or {},
            node.name,
            ((answer["explanation"], 1.0),) if "explanation" in answer else (),
        )
    answer = answer if isinstance(answer, dict) else {}
    detail = str(answer.get("detail") or f"answered {status}")
    code = str(answer.get("code") or "bad-rows").replace("_", "-")
    if status == 413:
        raise TooLarge(detail)
    if status in (400, 422) and code != "not-trusted":
        # The rows are at fault: another node would say the same.
        columns = answer.get("columns") or {}
        raise Invalid(
            detail,
            code=code,
            errors={str(name): [str(why)] for name, why in columns.items()},
        )
    raise (NodeSlow if status == 504 else NodeFailed)(detail)
