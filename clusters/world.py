"""What a cluster is at one moment, read in a fixed number of queries, as the planner wants it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.models import Q
from django.utils import timezone

from clusters import scheduling
from clusters.models import (
    CONTAINERS,
    Cluster,
    Dependency,
    Deployment,
    Replica,
    canary_replicas,
)
from clusters.scheduling import NOTHING, Ending, Resources, Snapshot
from workers.fairshare import Room
from workers.models import Allocation, IllegalMove, Pulse, Worker

State = Replica.State
OWN_NODE = "own-node"
OVER_S = 30.0  # a task that reached its limit is gone so long after it


def plus(*all_: Resources) -> Resources:
    return Resources(*(sum(column) for column in zip(NOTHING, *all_, strict=True)))


def minus(one: Resources, other: Resources) -> Resources:
    return Resources(*(a - b for a, b in zip(one, other, strict=True)))


def fits(one: Resources, room: Resources) -> bool:
    return all(a <= b for a, b in zip(one, room, strict=True))


def total_of(capabilities: Mapping[str, Any]) -> Resources:
    """What an empty node has for work: the rule of the claim."""
    room = Room.of_empty(capabilities, 1)
    return Resources(room.ram_mib, room.cpu_millis, len(room.gpus))


def labels_of(capabilities: Mapping[str, Any], organization: UUID | None) -> frozenset[str]:
    own = [OWN_NODE] if organization else []
    contained = [CONTAINERS] if capabilities.get("containers") else []
    return frozenset([*capabilities.get("engines", ()), *own, *contained])


def silent_before(now: datetime) -> datetime:
    """A node that was last heard of before this is gone. Time in which we were deaf is no silence.

    So no node counts as gone until it could have been heard for a whole lease.
    """
    lease = timedelta(seconds=settings.LEASE_S)
    heard_since = Pulse.objects.values_list("heard_since", flat=True).first()
    if heard_since is not None and heard_since > now - lease:
        return datetime.min.replace(tzinfo=now.tzinfo)
    return now - lease


@dataclass(slots=True)
class Node:
    id: str
    name: str
    total: Resources
    labels: frozenset[str]
    in_cluster: bool
    is_draining: bool
    is_restarting: bool
    is_silent: bool
    taken: Resources = NOTHING  # by tasks, and by replicas of other clusters
    tasks: Resources = NOTHING
    endings: list[Ending] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        return self.in_cluster and not (self.is_draining or self.is_restarting or self.is_silent)


@dataclass(slots=True)
class Placed:
    """An active replica. The cycle changes it here, and writes what has changed."""

    id: UUID
    deployment: str
    number: int
    generation: int
    revision: int
    node: str | None
    node_name: str
    state: str
    has_room: bool
    holds: Resources | None  # its allocation; None: that went with its node
    room_for: UUID | None
    said: str
    said_why: str
    stop_by: datetime | None
    running_since: datetime | None
    why: str = ""
    fault: str = ""
    ended_at: datetime | None = None
    was: tuple[Any, ...] = ()

    @property
    def facts(self) -> tuple[Any, ...]:
        """The columns that the cycle writes, after the id."""
        return (
            self.state, self.has_room, self.why, self.fault, self.room_for, self.stop_by,
            self.running_since, self.ended_at,
        )  # fmt: skip

    def move_to(self, new: Replica.State) -> None:
        """Raises IllegalMove when MOVES has no such arrow."""
        if new not in Replica.MOVES.get(State(self.state), set()):
            raise IllegalMove(f"A replica that is {self.state} can't become {new}.")
        self.state = new

    @property
    def is_there(self) -> bool:
        """It runs, or is to, and nobody has told it to go."""
        return self.state in {State.SCHEDULED, State.STARTING, State.RUNNING}


@dataclass(slots=True)
class Wanted:
    """A deployment, with what the cycle writes of it."""

    id: str
    name: str
    topic: str
    organization: UUID
    needs: Resources
    replicas: int
    priority: int
    preemptible: bool
    spread: bool
    is_started: bool
    is_deleted: bool
    revision: int | None
    labels: frozenset[str]
    state: str
    ready: int
    generation: int
    waiting_since: datetime | None
    wait: dict[str, Any]
    preempted_by: str
    failures: int
    not_before: datetime | None
    error: str
    created_at: datetime
    waits_for: tuple[str, ...] = ()
    placed: list[Placed] = field(default_factory=list)
    # A canary is planned as if it were a deployment of its own: that of which it is one.
    canary_of: str = ""
    was: dict[str, Any] = field(default_factory=dict)

    @property
    def pk(self) -> UUID:
        """Of the deployment's row, a canary's too."""
        return UUID(self.canary_of or self.id)

    @property
    def canary_is(self) -> dict[str, Any]:
        """What is stored of a canary."""
        return {
            "ready": self.ready,
            "failures": self.failures,
            "not_before": self.not_before.isoformat() if self.not_before else None,
            "error": self.error,
            "wait": self.wait,
        }

    @property
    def is_wanted(self) -> bool:
        return self.is_started and not self.is_deleted and self.revision is not None


@dataclass(slots=True)
class World:
    now: datetime
    limit: Resources | None
    nodes: dict[str, Node]
    wanted: dict[str, Wanted]

    def placed(self) -> Iterator[Placed]:
        for one in self.wanted.values():
            yield from one.placed

    def is_leaving(self, one: Placed) -> bool:
        """Whether another is wanted in its place: of a new revision, or on another node."""
        node = self.nodes.get(one.node or "")
        wanted = self.wanted[one.deployment]
        if one.revision != wanted.revision or node is None or not node.in_cluster:
            return True
        return node.is_draining or not wanted.labels <= node.labels

    def snapshot(self) -> Snapshot:
        """As the planner wants it. What was told to go is gone for it: its room will be free."""
        now = self.now
        nodes = [
            scheduling.Node(
                node.id, node.total, node.taken, node.is_open, tuple(node.endings), node.labels
            )
            for node in self.nodes.values()
            if node.in_cluster
        ]
        deployments = [
            scheduling.Deployment(
                one.id,
                one.needs,
                one.replicas,
                one.priority,
                waited_s=_since(one.waiting_since, now),
                preemptible=one.preemptible,
                spread=one.spread,
                waits_for=one.waits_for,
                not_before_s=-_since(one.not_before, now),
                labels=one.labels,
            )
            for one in self.wanted.values()
            if one.is_wanted
        ]
        running = [
            scheduling.Replica(
                one.deployment,
                one.number,
                one.node,
                _since(one.running_since, now),
                self.is_leaving(one),
            )
            for one in self.placed()
            if one.is_there and one.node and self.wanted[one.deployment].is_wanted
        ]
        return Snapshot(nodes, deployments, running, self.limit)


def _since(when: datetime | None, now: datetime) -> float:
    return (now - when).total_seconds() if when else 0.0


_DEPLOYMENT = (
    "pk", "name", "organization_id", "ram_mib", "cpu_millis", "gpus", "replicas", "priority",
    "preemptible", "spread", "is_started", "deleted_at", "revision__number", "revision__engines",
    "revision__own_nodes", "state", "ready", "generation", "waiting_since", "wait", "preempted_by",
    "failures", "not_before", "error", "created_at", "canary__number", "canary__engines",
    "canary__own_nodes", "canary_percent", "canary_is",
)  # fmt: skip
_REPLICA = (
    "pk", "deployment_id", "number", "generation", "revision__number", "node_id", "node_name",
    "state", "has_room", "allocation__ram_mib", "allocation__cpu_millis", "allocation__gpus",
    "room_for_id", "said", "said_why", "stop_by", "running_since", "why",
)  # fmt: skip


def read(cluster: Cluster) -> World:
    """Six queries, however large the cluster is."""
    now = timezone.now()
    wanted = {one.id: one for one in _deployments(cluster)}
    canaries = {(one.canary_of, one.revision): one.id for one in wanted.values() if one.canary_of}
    for placed in _replicas(cluster):
        known = (placed.deployment, placed.revision)
        placed.deployment = canaries.get(known, placed.deployment)
        wanted[placed.deployment].placed.append(placed)
    nodes = {one.id: one for one in _nodes(cluster, silent_before(now))}
    _take_in_the_ledger(cluster, nodes, now)
    waits: dict[str, list[str]] = defaultdict(list)
    lacking = Dependency.objects.filter(deployment__cluster=cluster).exclude(
        needs__state=Deployment.State.RUNNING
    )
    for pk, name in lacking.order_by("needs__name").values_list("deployment_id", "needs__name"):
        waits[str(pk)].append(name)
    for waiting, names in waits.items():
        if waiting in wanted:
            wanted[waiting].waits_for = tuple(names)
    return World(now, cluster.limit, nodes, wanted)


def _deployments(cluster: Cluster) -> Iterable[Wanted]:
    asked = Q(is_started=True, deleted_at=None)
    rows = Deployment.objects.filter(
        asked | ~Q(state=Deployment.State.STOPPED) | Q(deleted_at__isnull=False), cluster=cluster
    )
    for row in rows.order_by("created_at", "pk").values_list(*_DEPLOYMENT):
        pk, name, organization, ram, cpu, gpus, count, priority, may_go, spread, *more = row
        is_started, deleted_at, revision, engines, own, state, *rest = more
        *rest, canary, engines_of_canary, own_of_canary, percent, canary_is = rest
        one = Wanted(
            str(pk), name, f"deployment:{pk}", organization, Resources(ram, cpu, gpus), count,
            priority, may_go, spread, is_started, deleted_at is not None, revision,
            _labels(engines, own), state, *rest,
        )  # fmt: skip
        yield one
        if canary is not None and canary != revision:
            when = canary_is.get("not_before")
            yield replace(
                one,
                id=f"{pk}~canary",
                name=f"the canary of {name}",
                canary_of=one.id,
                replicas=canary_replicas(count, percent),
                revision=canary,
                labels=_labels(engines_of_canary, own_of_canary),
                ready=0,
                waiting_since=None,
                wait=canary_is.get("wait") or {},
                preempted_by="",
                failures=canary_is.get("failures") or 0,
                not_before=datetime.fromisoformat(when) if when else None,
                error=canary_is.get("error") or "",
                placed=[],
                was=canary_is,
            )


def _labels(engines: Iterable[str] | None, own: bool | None) -> frozenset[str]:
    return frozenset([*(engines or ()), *([OWN_NODE] if own else [])])


def _replicas(cluster: Cluster) -> Iterable[Placed]:
    rows = Replica.objects.filter(deployment__cluster=cluster, ended_at__isnull=True)
    for row in rows.order_by("deployment", "generation").values_list(*_REPLICA):
        pk, deployment, number, generation, revision, node, name, state, has_room, *more = row
        ram, cpu, gpus, *rest = more
        holds = None if ram is None else Resources(ram, cpu, gpus)
        one = Placed(
            pk, str(deployment), number, generation, revision, str(node) if node else None, name,
            state, has_room, holds, *rest,
        )  # fmt: skip
        one.was = one.facts
        yield one


def _nodes(cluster: Cluster, silent: datetime) -> Iterable[Node]:
    ours = Replica.objects.filter(deployment__cluster=cluster, ended_at__isnull=True)
    rows = Worker.objects.filter(
        Q(cluster_node__cluster=cluster) | Q(pk__in=ours.values("node"))
    ).values_list(
        "pk", "name", "capabilities", "organization_id", "cluster_node__cluster_id", "draining",
        "restart_asked_at", "last_seen_at",
    )  # fmt: skip
    for pk, name, has, organization, home, draining, restart, seen in rows.order_by("name", "pk"):
        yield Node(
            str(pk), name, total_of(has), labels_of(has, organization), home == cluster.pk,
            draining, restart is not None, seen < silent,
        )  # fmt: skip


def _take_in_the_ledger(cluster: Cluster, nodes: dict[str, Node], now: datetime) -> None:
    rows = Allocation.objects.filter(worker__in=list(nodes), light=False).exclude(
        replica__deployment__cluster=cluster
    )
    for worker, ram, cpu, gpus, task, began, limit_s in rows.values_list(
        "worker_id", "ram_mib", "cpu_millis", "gpus", "task_id", "task__started_at",
        "task__time_limit_s",
    ):  # fmt: skip
        node, holds = nodes[str(worker)], Resources(ram, cpu, gpus)
        node.taken = plus(node.taken, holds)
        if task is not None:
            node.tasks = plus(node.tasks, holds)
            left_s = (limit_s or 0) + OVER_S - _since(began, now)
            node.endings.append(Ending(max(0.0, left_s), holds))
