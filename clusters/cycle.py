"""The cycle: one look at a cluster, one plan, one transaction that carries it out.

Under the lock of the cluster's row it takes in what nodes said, lets go what nobody wants any more,
asks the planner what goes where, and writes all of it with a fixed number of statements. It alone
writes states. It runs whenever something has changed, and every few seconds for what nobody tells:
a node that fell silent, a pause after a crash that is over. To lose such a message loses nothing.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from django.core.cache import cache
from django.db import connection, transaction
from django.utils import timezone

from clusters import metering, queue, scheduling
from clusters.models import Cluster, Deployment, Replica, Revision
from clusters.scheduling import Plan, Resources
from clusters.world import Placed, Wanted, World, fits, minus, plus, read
from workers import bells, push, relay
from workers.models import Allocation, Event, Stream, Worker

log = logging.getLogger(__name__)
State = Replica.State
Is = Deployment.State

GRACE_S = 10.0  # that a replica gets to finish what it was asked, before it is killed
BACKOFF_S = (10.0, 300.0)  # after the first crash, and at most
GOOD_AFTER_S = 300.0  # what has run for so long starts counting its crashes anew
EXPLAINED = 20  # of those that wait, the first in line are told why; others when somebody looks
KEPT_ENDED = 50  # replicas of a deployment that have ended, as its history


def backoff_s(failures: int) -> float:
    """How long to wait after so many crashes in a row: 10 s, 20 s, 40 s, ... 5 min."""
    first, most = BACKOFF_S
    return min(most, first * 2.0 ** min(max(failures, 1) - 1, 20))


def ask(cluster: UUID) -> None:
    """Have control run the cycle once this transaction is committed. Several wishes make one."""
    transaction.on_commit(lambda: ask_now(cluster))


def ask_now(cluster: UUID) -> None:
    try:
        if not cache.add(_key(cluster), 1, 10):
            return  # a message lies there already, and was not looked at yet
    except Exception as problem:  # Valkey is away: beat does it a little later
        log.warning("no cycle asked for", extra={"problem": str(problem)})
        return
    bells.send("clusters.tasks.cycle", args=[str(cluster)], queue="control")


def _key(cluster: UUID) -> str:
    return f"clusters-cycle:{cluster}"


@dataclass
class _Changes:
    """What to tell once it is done."""

    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    nodes: set[str] = field(default_factory=set)  # that have something to do now
    freed: list[UUID] = field(default_factory=list)  # replicas whose allocation goes


def run(cluster: UUID) -> Plan | None:
    """One cycle; the plan that was made, or None where there is no such cluster."""
    cache.delete(_key(cluster))
    with transaction.atomic():
        home = Cluster.objects.select_for_update(no_key=True).filter(pk=cluster).first()
        if home is None:
            return None
        world = read(home)
        changes = _Changes()
        _take_in(world, changes)
        _let_go(world, changes)
        plan = scheduling.plan(world.snapshot())
        plan = _still_true(world, plan)
        _evict(world, changes, plan)
        made = _place(world, changes, plan)
        _give_room(world, changes)
        _settle(world, changes)
        _write(world, changes, made)
        waiting = [one for one in world.wanted.values() if _lacks(one) and not one.canary_of]
        transaction.on_commit(lambda: queue.rebuild(cluster, waiting))
        for node in changes.nodes:
            transaction.on_commit(partial(relay.tell, UUID(node), {"type": "relay.beat"}))
    return plan


# --- What has happened ---


def _take_in(world: World, changes: _Changes) -> None:
    """Make states of what nodes said, and of their silence."""
    for one in world.placed():
        node = world.nodes.get(one.node or "")
        if node is None:
            _end(world, changes, one, f"Its node {one.node_name} was removed.", Replica.Fault.NODE)
        elif node.is_silent:
            why = f"Its node {node.name} does not answer any more."
            _end(world, changes, one, why, Replica.Fault.NODE)
        elif one.said == "failed":
            _crashed(world, changes, one)
        elif one.said == "gone":
            why = one.why if one.state == State.STOPPING else "Its process ended with its node's."
            _end(world, changes, one, why, Replica.Fault.NODE)
        elif one.said == "running" and one.state in {State.SCHEDULED, State.STARTING}:
            one.move_to(State.RUNNING)
            one.running_since = world.now
            _tell(changes, world, one, "")
        elif one.said == "starting" and one.state == State.SCHEDULED:
            one.move_to(State.STARTING)
            _tell(changes, world, one, "")
        elif one.said == "starting" and one.state == State.RUNNING:
            one.move_to(State.STARTING)
            one.running_since = None
            _tell(changes, world, one, "Its node was started again.")
        if one.state == State.RUNNING and one.running_since:
            wanted = world.wanted[one.deployment]
            ran_s = (world.now - one.running_since).total_seconds()
            if wanted.failures and ran_s > GOOD_AFTER_S:
                wanted.failures = 0


def _crashed(world: World, changes: _Changes, one: Placed) -> None:
    wanted = world.wanted[one.deployment]
    why = one.said_why or "Its process ended."
    if one.state != State.STOPPING:
        wanted.failures += 1
        wanted.not_before = world.now + timedelta(seconds=backoff_s(wanted.failures))
        wanted.error = why
    _end(world, changes, one, why, Replica.Fault.WORK)


def _end(world: World, changes: _Changes, one: Placed, why: str, fault: str = "") -> None:
    """It holds nothing any more."""
    wanted = world.wanted[one.deployment]
    one.ended_at = world.now
    if one.state == State.STOPPING or not fault:
        one.move_to(State.PREEMPTED if one.room_for else State.STOPPED)
        why = one.why or why
    else:
        one.move_to(State.FAILED)
        one.fault = fault
    one.why = why
    changes.freed.append(one.id)
    if one.state == State.PREEMPTED and _lacks(wanted):
        other = world.wanted.get(str(one.room_for))
        wanted.preempted_by = other.name if other else "something more urgent"
    _tell(changes, world, one, why)


def _tell(changes: _Changes, world: World, one: Placed, why: str) -> None:
    told = {"replica": one.number, "node": one.node_name, "why": why, "state": one.state}
    changes.events.append((world.wanted[one.deployment].topic, f"replica.{one.state}", told))


# --- What nobody wants any more ---


def _let_go(world: World, changes: _Changes) -> None:
    for wanted in world.wanted.values():
        there = [one for one in wanted.placed if one.is_there]
        if not wanted.is_wanted:
            for one in there:
                why = "The deployment was deleted." if wanted.is_deleted else "It was stopped."
                _stop(world, changes, one, why)
            continue
        best: dict[int, Placed] = {}
        for one in sorted(there, key=_goodness):
            if one.number >= wanted.replicas:
                _stop(world, changes, one, "Fewer replicas are wanted.")
            elif not world.is_leaving(one):
                if one.number in best:
                    _stop(world, changes, one, "There is another in its place.")
                else:
                    best[one.number] = one
        for one in there:
            if not one.is_there or not world.is_leaving(one):
                continue
            heir = best.get(one.number)
            if heir is not None and heir.state == State.RUNNING:
                _stop(world, changes, one, _why_leaving(world, one))
            elif one.revision != wanted.revision and one.state != State.RUNNING:
                _stop(world, changes, one, "A newer revision is wanted.")


def _goodness(one: Placed) -> tuple[int, int]:
    order = (State.RUNNING, State.STARTING, State.SCHEDULED)
    return order.index(State(one.state)), one.generation


def _why_leaving(world: World, one: Placed) -> str:
    wanted = world.wanted[one.deployment].revision
    if one.revision != wanted:
        newer = wanted is None or one.revision < wanted
        return "The new revision answers in its place." if newer else "It is not wanted any more."
    return f"It moved away from {one.node_name}."


def _stop(world: World, changes: _Changes, one: Placed, why: str) -> None:
    """Tell its node to end it, well if it can. What its node has never heard of just ends."""
    one.why = why
    if one.state == State.SCHEDULED and not one.has_room:
        _end(world, changes, one, why)
        return
    one.move_to(State.STOPPING)
    one.stop_by = world.now + timedelta(seconds=GRACE_S)
    if one.node:
        changes.nodes.add(one.node)
    _tell(changes, world, one, why)


# --- The plan ---


def _still_true(world: World, plan: Plan) -> Plan:
    """The part of the plan that tasks have not overtaken: a node's row is locked from here on.

    Whatever stands on an eviction goes together: with one node overtaken, none is evicted now.
    """
    if not plan:
        return plan
    nodes = sorted({one.node for one in plan.placements})
    ids = [UUID(node) for node in nodes]
    locked = Worker.objects.select_for_update(no_key=True).filter(pk__in=ids).order_by("pk")
    list(locked.values_list("pk", flat=True))
    now: dict[str, Resources] = defaultdict(Resources)
    tasks = Allocation.objects.filter(worker__in=ids, light=False, task__isnull=False)
    for worker, *holds in tasks.values_list("worker_id", "ram_mib", "cpu_millis", "gpus"):
        now[str(worker)] = plus(now[str(worker)], Resources(*holds))
    gone = {(one.deployment, one.number, one.node) for one in plan.evictions}
    room = {}
    for pk in nodes:
        node = world.nodes[pk]
        foreign = minus(node.taken, node.tasks)
        room[pk] = minus(node.total, plus(foreign, now[pk]))
    for one in world.placed():
        if one.is_there and one.node in room and _place_of(one) not in gone:
            room[one.node] = minus(room[one.node], one.holds or world.wanted[one.deployment].needs)
    overtaken = set()
    for place in plan.placements:
        room[place.node] = minus(room[place.node], world.wanted[place.deployment].needs)
        if not fits(Resources(), room[place.node]):
            overtaken.add(place.node)
    if not overtaken:
        return plan
    overtaken |= {one.node for one in plan.evictions}
    kept = tuple(one for one in plan.placements if one.node not in overtaken)
    return Plan((), kept, plan.reservation)


def _place_of(one: Placed) -> tuple[str, int, str | None]:
    return one.deployment, one.number, one.node


def _evict(world: World, changes: _Changes, plan: Plan) -> None:
    there = {_place_of(one): one for one in world.placed() if one.is_there}
    for eviction in plan.evictions:
        victim = there[eviction.deployment, eviction.number, eviction.node]
        taker = world.wanted[eviction.room_for]
        victim.room_for = taker.pk
        urgency = _priority(taker)
        _stop(world, changes, victim, f"It makes room for {taker.name}, which is {urgency}.")


def _priority(one: Wanted) -> str:
    return str(Deployment._meta.get_field("priority").choices[one.priority][1])  # type: ignore[index]


def _place(world: World, changes: _Changes, plan: Plan) -> list[Placed]:
    made = []
    for place in plan.placements:
        wanted, node = world.wanted[place.deployment], world.nodes[place.node]
        numbered = world.wanted[wanted.canary_of or wanted.id]  # placements are counted together
        numbered.generation += 1
        wanted.preempted_by = ""
        assert wanted.revision is not None
        one = Placed(
            uuid4(), wanted.id, place.number, numbered.generation, wanted.revision, node.id,
            node.name, State.SCHEDULED, False, wanted.needs, None, "", "", None, None,
        )  # fmt: skip
        wanted.placed.append(one)
        made.append(one)
        _tell(changes, world, one, "")
    return made


def _give_room(world: World, changes: _Changes) -> None:
    """Let nodes start what was placed, once what was in its way is really gone."""
    waiting: dict[str, list[Placed]] = defaultdict(list)
    room = {pk: minus(node.total, node.taken) for pk, node in world.nodes.items()}
    for one in world.placed():
        if one.node is None or one.ended_at is not None or one.node not in room:
            continue
        if one.state == State.SCHEDULED and not one.has_room:
            waiting[one.node].append(one)
        else:
            room[one.node] = minus(room[one.node], one.holds or Resources())
    for pk, ones in waiting.items():
        for one in sorted(ones, key=lambda one: -world.wanted[one.deployment].priority):
            needs = one.holds or Resources()
            if fits(needs, room[pk]):
                room[pk] = minus(room[pk], needs)
                one.has_room = True
                changes.nodes.add(pk)


# --- What becomes of it ---


def _settle(world: World, changes: _Changes) -> None:
    waiting = []
    for one in world.wanted.values():
        active = [placed for placed in one.placed if placed.ended_at is None]
        old, one.ready = one.state, sum(placed.state == State.RUNNING for placed in active)
        one.state = state_of(one, {placed.state for placed in active}, world)
        if not _lacks(one):
            one.waiting_since, one.wait, one.preempted_by = None, {}, ""
        else:
            one.waiting_since = one.waiting_since or world.now
            waiting.append(one)
        if one.state != old and not one.canary_of:
            told = {"state": one.state, "from": old, "ready": one.ready, "of": one.replicas}
            changes.events.append((one.topic, f"deployment.{one.state}", told))
    waiting.sort(key=queue.score)
    if waiting:
        snapshot = world.snapshot()
        for one in waiting[:EXPLAINED]:
            why = scheduling.explain(snapshot, one.id, Plan())
            told = told_of(why, world) if why else {}
            # Times go on by themselves: only what is new is told.
            if told.get("code") != one.wait.get("code"):
                changes.events.append((one.topic, "deployment.waits", told))
            one.wait = told


def state_of(one: Wanted, active: set[str], world: World) -> Is:
    """What a deployment is, by what it should be and what there is of it."""
    if not one.is_wanted:
        return Is.STOPPING if active else Is.STOPPED
    for state in (State.RUNNING, State.STARTING, State.SCHEDULED, State.STOPPING):
        if state in active:
            return Is(state.value)
    if one.preempted_by:
        return Is.PREEMPTED
    if one.failures and one.not_before and one.not_before > world.now:
        return Is.FAILED
    return Is.PENDING


def _lacks(one: Wanted) -> bool:
    """Whether a replica of it is wanted that has no place."""
    numbers = {
        placed.number
        for placed in one.placed
        if placed.is_there and placed.revision == one.revision
    }
    return one.is_wanted and len(numbers) < one.replicas


def told_of(why: scheduling.Wait, world: World) -> dict[str, Any]:
    """A reason as it is stored and told: names in place of ids."""
    node = world.nodes.get(why.node)
    names = [world.wanted[one].name if one in world.wanted else one for one in why.names]
    told = {
        "code": why.code,
        "names": names,
        "node": node.name if node else "",
        "lacks": list(why.lacks),
        "priority": why.priority,
    }
    return {key: value for key, value in told.items() if value or key == "code"}


# --- Writing ---

_MOVE = """
UPDATE clusters_replica r
   SET state = m.state, has_room = m.has_room, why = m.why, fault = m.fault,
       room_for_id = m.room_for, stop_by = m.stop_by, running_since = m.running_since,
       ended_at = m.ended_at
  FROM unnest(%s::uuid[], %s::text[], %s::bool[], %s::text[], %s::text[], %s::uuid[],
              %s::timestamptz[], %s::timestamptz[], %s::timestamptz[])
       AS m(id, state, has_room, why, fault, room_for, stop_by, running_since, ended_at)
 WHERE r.id = m.id
"""
_SETTLE = """
UPDATE clusters_deployment d
   SET state = s.state, ready = s.ready, generation = s.generation,
       waiting_since = s.waiting_since, wait = s.wait, preempted_by = s.preempted_by,
       failures = s.failures, not_before = s.not_before, error = s.error
  FROM unnest(%s::uuid[], %s::text[], %s::int[], %s::int[], %s::timestamptz[], %s::jsonb[],
              %s::text[], %s::int[], %s::timestamptz[], %s::text[])
       AS s(id, state, ready, generation, waiting_since, wait, preempted_by, failures, not_before,
            error)
 WHERE d.id = s.id AND (d.state, d.ready, d.generation, d.waiting_since, d.wait, d.preempted_by,
       d.failures, d.not_before, d.error) IS DISTINCT FROM (s.state, s.ready, s.generation,
       s.waiting_since, s.wait, s.preempted_by, s.failures, s.not_before, s.error)
"""
_NUMBERS = """
UPDATE workers_stream s SET last_seq = s.last_seq + n.count
  FROM unnest(%s::text[], %s::int[]) AS n(topic, count) WHERE s.topic = n.topic
RETURNING s.topic, s.last_seq
"""


def _write(world: World, changes: _Changes, made: list[Placed]) -> None:
    if changes.freed:
        Allocation.objects.filter(replica__in=changes.freed).delete()
    _write_new(world, made)
    new = {one.id for one in made}
    moved = [one for one in world.placed() if one.id not in new and one.facts != one.was]
    with connection.cursor() as cursor:
        if moved:
            cursor.execute(
                _MOVE,
                _columns((one.id, *one.facts) for one in moved),
            )
        if world.wanted:
            cursor.execute(
                _SETTLE,
                _columns(
                    (one.id, one.state, one.ready, one.generation, one.waiting_since,
                     json.dumps(one.wait), one.preempted_by, one.failures, one.not_before,
                     one.error)
                    for one in world.wanted.values()
                    if not one.canary_of
                ),
            )  # fmt: skip
    # The work of a node that went is nobody's fault: what wasn't metered yet costs nothing.
    metering.meter_ended(
        [one.id for one in moved if one.ended_at and one.fault != Replica.Fault.NODE]
    )
    for one in world.wanted.values():
        if one.canary_of and one.canary_is != one.was:
            Deployment.objects.filter(pk=one.pk).update(canary_is=one.canary_is)
    emit_all(changes.events)
    there = {placed.deployment for placed in world.placed() if not placed.ended_at}
    there |= {world.wanted[one].canary_of for one in there}
    done = [
        one.id
        for one in world.wanted.values()
        if one.is_deleted and one.id not in there and not one.canary_of
    ]
    if done:
        forget(done)


def _columns(rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def _write_new(world: World, made: list[Placed]) -> None:
    if not made:
        return
    of = {one.deployment: world.wanted[one.deployment] for one in made}
    revisions = {
        (str(deployment), number): pk
        for pk, deployment, number in Revision.objects.filter(
            deployment__in={one.pk for one in of.values()},
            number__in={one.revision for one in made},
        ).values_list("pk", "deployment_id", "number")
    }
    allocations = Allocation.objects.bulk_create(
        Allocation(
            worker_id=UUID(one.node),
            organization_id=of[one.deployment].organization,
            ram_mib=of[one.deployment].needs.ram_mib,
            cpu_millis=of[one.deployment].needs.cpu_millis,
            gpus=of[one.deployment].needs.gpus,
        )
        for one in made
    )
    Replica.objects.bulk_create(
        Replica(
            id=one.id,
            organization_id=of[one.deployment].organization,
            deployment_id=of[one.deployment].pk,
            revision_id=revisions[str(of[one.deployment].pk), one.revision],
            number=one.number,
            generation=one.generation,
            node_id=UUID(one.node),
            node_name=one.node_name,
            allocation=allocation,
            state=one.state,
            has_room=one.has_room,
        )
        for one, allocation in zip(made, allocations, strict=True)
    )


def emit_all(events: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
    """Append many events, of many topics, with two statements. Unknown topics are left out."""
    if not events:
        return
    counts: dict[str, int] = defaultdict(int)
    for topic, _, _ in events:
        counts[topic] += 1
    with connection.cursor() as cursor:
        cursor.execute(_NUMBERS, [list(counts), list(counts.values())])
        last = dict(cursor.fetchall())
    seq = {topic: number - counts[topic] for topic, number in last.items()}
    rows, at = [], timezone.now()
    for topic, type_, data in events:
        if topic in seq:
            seq[topic] += 1
            rows.append(
                Event(stream_id=topic, seq=seq[topic], at=at, type=type_, data=data, handled_at=at)
            )
    Event.objects.bulk_create(rows)
    for topic, number in last.items():
        transaction.on_commit(partial(push.notify, topic, number))


def forget(deployments: Sequence[str]) -> None:
    """Delete what nothing of is left, with its events."""
    Deployment.objects.filter(pk__in=deployments).delete()
    Stream.objects.filter(topic__in=[f"deployment:{pk}" for pk in deployments]).delete()
