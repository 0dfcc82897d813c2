"""What of a cluster's deployments runs where. Pure: from a snapshot to a plan.

``plan`` places what waits, and says which running replicas make room for it:

* Urgency goes first. Within one urgency, whoever has waited longer than `PATIENCE_S` goes first, by
  age; the others are packed, the largest first.
* Packing is vector best fit: the node on which least is left over, each resource measured in what
  the cluster has of it (the L2 norm of Panigrahy, Talwar, Uyeda, Wieder: "Heuristics for Vector Bin
  Packing", 2011). What needs no GPU goes to a node with a GPU only when no other is left. Where not
  all of a batch fits, ``packing`` looks for a choice that uses more of the cluster.
* What fits nowhere may evict replicas of less urgent deployments that are preemptible: as few as
  can be, of those the least urgent, of those the ones that have run shortest; never one too many,
  and none for what would not fit even so. A victim waits anew in the same plan. Because only the
  less urgent make room, nothing can be evicted for what it has evicted.
* The first that has waited too long and can evict nobody gets a reservation on the node where it
  fits soonest, if work that ends by itself is in its way there. Others go past it only with what
  it will leave over (EASY backfilling: Lifka, "The ANL/IBM SP Scheduling System", 1995).

``explain`` says why something waits, and the least change that would let it run. The same snapshot
always gives the same plan, and a plan that was carried out leaves nothing to plan.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from clusters import packing

PATIENCE_S = 600.0
MOST_URGENT = 3  # LOW is 0
PACKING_STEPS = 200_000  # of a wish looked at with a node, spent on packing a batch: 0.1 s or so
AT_ONCE = 256  # wishes, of which those without any hope are told at one stroke
FEWEST_ROUNDS = 10  # with so many wishes and nodes that there are fewer, no better choice is sought
MOST_TOGETHER = 3  # victims on one node of which the best set is sought; more are found greedily
NODES_SEARCHED = 64  # for such sets, those nodes first that lack least

Vector = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]


class Resources(NamedTuple):
    """Memory (MiB), processor time (thousandths of a core) and whole GPUs."""

    ram_mib: int = 0
    cpu_millis: int = 0
    gpus: int = 0


NOTHING = Resources()


class Ending(NamedTuple):
    """Work that ends by itself, unlike a deployment: when at the latest (s from now), and what it
    frees."""

    in_s: float
    frees: Resources


@dataclass(frozen=True, slots=True)
class Node:
    """``used`` is what tasks and the like hold, without the replicas of the snapshot; ``endings``
    are parts of it that will be free. ``is_open``: whether the node takes new replicas. ``labels``:
    what it has that a deployment may ask for, as engines."""

    id: str
    total: Resources
    used: Resources = NOTHING
    is_open: bool = True
    endings: tuple[Ending, ...] = ()
    labels: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Replica:
    """One that runs, or starts. ``running_s`` is what an eviction would lose. ``is_leaving``: it
    holds its room still, but another is wanted in its place (its node drains, it stops)."""

    deployment: str
    number: int
    node: str
    running_s: float = 0.0
    is_leaving: bool = False


@dataclass(frozen=True, slots=True)
class Deployment:
    """What should run. ``needs`` is per replica; a greater ``priority`` is more urgent.

    ``waits_for`` names the deployments that must run and be healthy first and are not;
    ``not_before_s`` how long a crash keeps it back; ``labels`` what a node must have to run it.
    """

    id: str
    needs: Resources
    replicas: int = 1
    priority: int = 1
    waited_s: float = 0.0
    preemptible: bool = True
    spread: bool = False
    waits_for: tuple[str, ...] = ()
    not_before_s: float = 0.0
    labels: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One cluster. ``limit`` is what its deployments may hold together, where that is less than its
    nodes have. A replica whose node or deployment isn't here is not looked at."""

    nodes: Sequence[Node]
    deployments: Sequence[Deployment]
    running: Sequence[Replica] = ()
    limit: Resources | None = None


class Placement(NamedTuple):
    deployment: str
    number: int
    node: str


class Eviction(NamedTuple):
    """A replica that makes room for a deployment."""

    deployment: str
    number: int
    node: str
    room_for: str


class Reservation(NamedTuple):
    """Whom a node is kept for, and in how many seconds it will have the room at the latest."""

    deployment: str
    node: str
    in_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in this order: evict, then place (a placement may stand on an eviction)."""

    evictions: tuple[Eviction, ...] = ()
    placements: tuple[Placement, ...] = ()
    reservation: Reservation | None = None

    def __bool__(self) -> bool:
        return bool(self.evictions or self.placements)


@dataclass(frozen=True, slots=True)
class Wait:
    """Why a deployment waits: a ``code``, and what belongs to it.

    =============  ======================================================================
    dependencies   ``names`` must run first
    backoff        it crashed; it is tried again in ``in_s`` seconds
    closed         no node of the cluster takes new replicas
    labels         none of those that do has what it asks for: ``names``
    limit          the cluster's limit leaves ``lacks`` too little
    room           no node has the room; on ``node``, which lacks least, it is ``lacks``
    reserved       there is room, but it is kept for ``names``, who have waited longer
    =============  ======================================================================

    The least change: ``less``, by which it fits if it needs so much less (the same as ``lacks``);
    or ``priority``, the least at which others would make room for it, if there is one.
    """

    code: str
    names: tuple[str, ...] = ()
    node: str = ""
    lacks: Resources = NOTHING
    priority: int | None = None
    in_s: float | None = None


def plan(snapshot: Snapshot) -> Plan:
    """Where what waits is to run, and what has to go for it."""
    return _Planner(snapshot).plan()


def explain(snapshot: Snapshot, deployment: str, after: Plan | None = None) -> Wait | None:
    """Why a deployment still waits when ``after``, or else the snapshot's plan, is carried out.

    None if it waits for nothing.
    """
    done = carried_out(snapshot, plan(snapshot) if after is None else after)
    planner = _Planner(done)
    i = next((i for i, one in enumerate(done.deployments) if one.id == deployment), None)
    return None if i is None or not planner.missing(i) else planner.explain(i)


def carried_out(snapshot: Snapshot, plan: Plan) -> Snapshot:
    """The snapshot after a plan."""
    gone = {(one.deployment, one.number, one.node) for one in plan.evictions}
    kept = [one for one in snapshot.running if (one.deployment, one.number, one.node) not in gone]
    new = [Replica(*one) for one in plan.placements]
    return Snapshot(snapshot.nodes, snapshot.deployments, (*kept, *new), snapshot.limit)


def impossible(
    needs: Resources, nodes: Iterable[Node], limit: Resources | None
) -> Resources | None:
    """What a request lacks though all nodes were empty; None if some node could run it one day."""
    best: tuple[float, Resources] | None = None
    for node in nodes:
        most = node.total if limit is None else Resources(*map(min, node.total, limit))
        lacks = Resources(*(max(0, need - has) for need, has in zip(needs, most, strict=True)))
        if not any(lacks):
            return None
        size = sum(lack / max(need, 1) for lack, need in zip(lacks, needs, strict=True))
        if best is None or size < best[0]:
            best = (size, lacks)
    return best[1] if best else needs


class _Wish(NamedTuple):
    """One replica that should run and doesn't. ``worth`` is its share of the cluster."""

    of: Deployment
    number: int
    needs: Vector
    worth: float


class _Planner:
    """A snapshot as arrays. Rows are nodes, sorted by id; columns are resources."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.nodes = sorted(snapshot.nodes, key=lambda node: node.id)
        self.total = _matrix([node.total for node in self.nodes])
        self.size: Numbers = 1.0 / np.maximum(self.total.sum(axis=0), 1)
        self.weight: Numbers = self.size * len(self.nodes)
        self.has_gpus = self.total[:, 2] > 0
        self.is_open = np.array([node.is_open for node in self.nodes], dtype=bool)
        self.ending = [row for row, one in enumerate(self.nodes) if one.is_open and one.endings]
        self._suits: dict[frozenset[str], npt.NDArray[np.bool_] | None] = {}

        self.deployments = snapshot.deployments
        self.needs = _matrix([one.needs for one in self.deployments])
        self.worths = self.needs @ self.size
        index = {one.id: i for i, one in enumerate(self.deployments)}
        row = {node.id: row for row, node in enumerate(self.nodes)}
        self.running = [r for r in snapshot.running if r.node in row and r.deployment in index]
        self.where = np.array([row[one.node] for one in self.running], dtype=np.int64)
        self.what = np.array([index[one.deployment] for one in self.running], dtype=np.int64)
        self.holds = self.needs[self.what]
        self.age = np.array([one.running_s for one in self.running], dtype=np.float64)
        leaves = np.array([one.is_leaving for one in self.running], dtype=bool)
        wished = self.deployments
        self.urgency = np.array([one.priority for one in wished], dtype=np.int64)[self.what]
        self.may_go = np.array([one.preemptible for one in wished], dtype=bool)[self.what] & ~leaves

        # The numbers of the replicas that are there, of deployments of which one isn't; and on
        # which nodes they are, of those that are to be spread.
        stay = np.flatnonzero(~leaves)
        count = np.bincount(self.what[stay], minlength=len(wished))
        is_whole = count == np.array([one.replicas for one in wished], dtype=np.int64)
        self.numbers: dict[int, set[int]] = {int(i): set() for i in np.flatnonzero(~is_whole)}
        for r in stay[~is_whole[self.what[stay]]].tolist():
            self.numbers[int(self.what[r])].add(self.running[r].number)
        is_spread = np.array([one.spread for one in wished], dtype=bool)
        self.spread: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        for r in stay[is_spread[self.what[stay]]].tolist():
            self.spread[self.running[r].deployment][int(self.where[r])] += 1

        free = self.total - _matrix([node.used for node in self.nodes])
        np.subtract.at(free, self.where, self.holds)
        # Closed nodes have no room for anybody: the one place where they differ.
        self.free: Vector = np.where(self.is_open[:, None], free, -1)
        limit = snapshot.limit
        self.left: Vector | None = (
            None if limit is None else np.array(limit) - self.holds.sum(axis=0)
        )
        self.kept: int | None = None  # the row of the node that is reserved
        self.evictions: list[Eviction] = []
        self.placements: list[Placement] = []
        self.reservation: Reservation | None = None

    # The plan

    def plan(self) -> Plan:
        waiting: dict[int, list[int]] = defaultdict(list)
        for i in self.numbers:
            one = self.deployments[i]
            if not one.waits_for and one.not_before_s <= 0:
                waiting[one.priority].append(i)
        again: dict[int, list[_Wish]] = defaultdict(list)
        while waiting or again:
            priority = max({*waiting, *again})
            wishes = self.wishes(priority, waiting.pop(priority, [])) + again.pop(priority, [])
            late = [wish for wish in wishes if wish.of.waited_s >= PATIENCE_S]
            young = [wish for wish in wishes if wish.of.waited_s < PATIENCE_S]
            victims = self.in_order(sorted(late, key=_by_age))
            victims += self.in_order(self.pack(young))
            for victim in victims:  # all of them less urgent than this
                again[victim.of.priority].append(victim)
        return Plan(tuple(self.evictions), tuple(self.placements), self.reservation)

    def wishes(self, priority: int, which: Sequence[int]) -> list[_Wish]:
        """The replicas that are missing of deployments of one urgency, sorted by their ids.

        Without those that can't be helped: while one urgency is placed, the room that there is or
        that evictions could make only shrinks.
        """
        room = self.could_be_free(self.evictable(priority))
        hope = fit_some(self.needs[which], room)
        some = [
            i
            for i, may in zip(which, hope.tolist(), strict=True)
            if may or (self.ending and self.deployments[i].waited_s >= PATIENCE_S)
        ]
        return [
            _Wish(self.deployments[i], number, self.needs[i], float(self.worths[i]))
            for i in sorted(some, key=lambda i: self.deployments[i].id)
            for number in self.missing(i)
        ]

    def missing(self, i: int) -> list[int]:
        """The numbers of the replicas that should run and don't."""
        there = self.numbers.get(i)
        if there is None:
            return []
        return [number for number in range(self.deployments[i].replicas) if number not in there]

    def in_order(self, wishes: Sequence[_Wish]) -> list[_Wish]:
        """Place wishes of one urgency one after the other, by eviction where it must be.

        Returns the victims, which wait anew.
        """
        victims: list[_Wish] = []
        for start in range(0, len(wishes), AT_ONCE):
            some = wishes[start : start + AT_ONCE]
            room = self.could_be_free(self.evictable(some[0].of.priority))
            hope = fit_some(np.array([wish.needs for wish in some]), room)
            for wish, may in zip(some, hope.tolist(), strict=True):
                node = self.best_node(wish) if may else None
                if node is None:
                    found = self.victims_for(wish) if may else None
                    if found is None:
                        self.maybe_reserve(wish)
                        continue
                    node, rows = found
                    victims += self.evict(rows, wish)
                self.take(wish, node)
        return victims

    def suits(self, one: Deployment) -> npt.NDArray[np.bool_] | None:
        """Which nodes have what it asks for; None: all."""
        if one.labels not in self._suits:
            has = np.array([one.labels <= node.labels for node in self.nodes], dtype=bool)
            self._suits[one.labels] = None if has.all() else has
        return self._suits[one.labels]

    def evictable(self, priority: int) -> Vector:
        """The rows of ``running`` that may go for what has this priority."""
        return np.flatnonzero(self.may_go & (self.urgency < priority))

    def could_be_free(self, rows: Vector) -> Vector:
        """The room of the nodes without these rows of ``running``."""
        room = self.free.copy()
        rows = rows[self.is_open[self.where[rows]]]
        np.add.at(room, self.where[rows], self.holds[rows])
        if self.kept is not None:
            room[self.kept] = self.free[self.kept]
        return room

    def best_node(self, wish: _Wish) -> int | None:
        """The row of the node on which least is left over."""
        needs = wish.needs
        if self.left is not None and (needs > self.left).any():
            return None
        a, b, c = needs.tolist()
        free = self.free
        fits = np.flatnonzero((free[:, 0] >= a) & (free[:, 1] >= b) & (free[:, 2] >= c))
        if (has := self.suits(wish.of)) is not None:
            fits = fits[has[fits]]
        if not len(fits):
            return None
        if not c and (spare := fits[~self.has_gpus[fits]]).size:
            fits = spare
        if wish.of.spread:
            there = self.spread[wish.of.id]
            count = np.array([there.get(int(row), 0) for row in fits])
            fits = fits[count == count.min()]
        over = (free[fits] - needs) * self.weight
        return int(fits[int(np.argmin(np.einsum("ij,ij->i", over, over)))])

    def take(self, wish: _Wish, node: int) -> None:
        self.free[node] -= wish.needs
        if self.left is not None:
            self.left -= wish.needs
        if wish.of.spread:
            self.spread[wish.of.id][node] += 1
        self.placements.append(Placement(wish.of.id, wish.number, self.nodes[node].id))

    def pack(self, wishes: Sequence[_Wish]) -> list[_Wish]:
        """Place as much as fits of what may go in any order; returns the rest, largest first."""
        order = sorted(wishes, key=lambda wish: (-wish.worth, *_by_age(wish)))
        if not order:
            return order
        hope = fit_some(np.array([wish.needs for wish in order]), self.free)
        batch = [wish for wish, may in zip(order, hope.tolist(), strict=True) if may]
        free, left, done = self.free.copy(), self.left, len(self.placements)
        left = None if left is None else left.copy()
        out = []
        for wish in batch:
            node = self.best_node(wish)
            if node is None:
                out.append(wish)
            else:
                self.take(wish, node)
        rounds = min(packing.ROUNDS, PACKING_STEPS // max(1, len(batch) * len(self.nodes)))
        simple = not any(wish.of.spread or self.suits(wish.of) is not None for wish in batch)
        if not out or rounds < FEWEST_ROUNDS or not simple:
            return _without(order, batch) + out
        where = packing.pack(
            [_triple(wish.needs) for wish in batch],
            [_triple(room) for room in free],
            [wish.worth for wish in batch],
            weights=self.weight.tolist(),
            limit=None if left is None else _triple(left),
            rounds=rounds,
        )
        if sum(batch[i].worth for i in where) > sum(w.worth for w in _without(batch, out)) + 1e-9:
            self.free, self.left = free, left
            del self.placements[done:]
            for i, node in sorted(where.items()):
                self.take(batch[i], node)
            out = [wish for i, wish in enumerate(batch) if i not in where]
        return _without(order, batch) + out

    # Making room

    def victims_for(self, wish: _Wish, priority: int | None = None) -> tuple[int, list[int]] | None:
        """The node to place it on and the rows of ``running`` that must go, or None."""
        everywhere = self.evictable(wish.of.priority if priority is None else priority)
        if priority is not None:  # its own replicas are no less urgent than it
            mine = [self.running[row].deployment == wish.of.id for row in everywhere]
            everywhere = everywhere[~np.array(mine, dtype=bool)]
        may = everywhere[self.is_open[self.where[everywhere]]]
        if self.kept is not None:
            may = may[self.where[may] != self.kept]
        fits = (self.could_be_free(may) >= wish.needs).all(axis=1)
        if (has := self.suits(wish.of)) is not None:
            fits &= has
            may = may[has[self.where[may]]]
        nodes = np.flatnonzero(fits)
        if not len(nodes) or not len(everywhere):
            return None
        most = None if self.left is None else self.left + self.holds[everywhere].sum(axis=0)
        if most is not None and (most < wish.needs).any():
            return None
        found = self.lone_victim(wish, may) or self.victims_together(wish, may, nodes)
        node, chosen = found
        return node, self.within_limit(wish, node, everywhere, chosen)

    def lone_victim(self, wish: _Wish, may: Vector) -> tuple[int, list[int]] | None:
        """None needed on some node (only the limit is in the way), or the best single one."""
        fits = (self.free >= wish.needs).all(axis=1)
        if (has := self.suits(wish.of)) is not None:
            fits &= has
        if fits.any():
            return int(np.argmax(fits)), []
        room = self.free[self.where[may]] + self.holds[may]
        alone = may[(room >= wish.needs).all(axis=1)]
        if not len(alone):
            return None
        best = alone[np.lexsort((alone, self.age[alone], self.urgency[alone]))[0]]
        return int(self.where[best]), [int(best)]

    def victims_together(self, wish: _Wish, may: Vector, nodes: Vector) -> tuple[int, list[int]]:
        lacks = np.maximum(wish.needs - self.free[nodes], 0) * self.weight
        near = nodes[np.argsort(lacks.sum(axis=1), kind="stable")][:NODES_SEARCHED]
        best: tuple[Any, int, list[int]] | None = None
        for node in near:
            here = [int(row) for row in may[self.where[may] == node]]
            chosen = self.fewest(wish.needs - self.free[node], here)
            key = (len(chosen), *self.cost(chosen), self.nodes[node].id)
            if best is None or key < best[0]:
                best = (key, int(node), chosen)
        assert best is not None
        return best[1], best[2]

    def cost(self, rows: Sequence[int]) -> tuple[int, float]:
        return int(self.urgency[list(rows)].sum()), float(self.age[list(rows)].sum())

    def fewest(self, lacks: Vector, rows: Sequence[int]) -> list[int]:
        """As few of the rows as free what is lacking; of those the cheapest."""
        for count in range(2, MOST_TOGETHER + 1):
            fit = [
                (self.cost(some), some)
                for some in itertools.combinations(rows, count)
                if (self.holds[list(some)].sum(axis=0) >= lacks).all()
            ]
            if fit:
                return list(min(fit)[1])
        return self.greedily(lacks, rows)

    def greedily(self, lacks: Vector, rows: Sequence[int]) -> list[int]:
        """Enough of the rows, none of which could stay."""
        left, chosen = list(rows), []
        short = np.maximum(lacks, 0)
        while short.any():
            scale = np.maximum(lacks, 1)
            best = min(
                left,
                key=lambda row: (
                    -float((np.minimum(self.holds[row], short) / scale).sum()),
                    *self.cost([row]),
                    row,
                ),
            )
            left.remove(best)
            chosen.append(best)
            short = np.maximum(short - self.holds[best], 0)
        for row in sorted(chosen, key=lambda row: self.cost([row]), reverse=True):
            rest = [one for one in chosen if one != row]
            if (self.holds[rest].sum(axis=0) >= lacks).all():
                chosen = rest
        return chosen

    def within_limit(
        self, wish: _Wish, node: int, everywhere: Vector, chosen: list[int]
    ) -> list[int]:
        """The chosen, and whoever else of the cluster must go for its limit."""
        if self.left is None:
            return chosen
        lacks = wish.needs - self.left - self.holds[chosen].sum(axis=0)
        if (lacks <= 0).all():
            return chosen
        more = self.greedily(lacks, [int(row) for row in everywhere if row not in chosen])
        # With those gone, one that was chosen before may stay.
        short = wish.needs - self.free[node]
        for row in sorted(chosen, key=lambda row: self.cost([row]), reverse=True):
            rest = [one for one in chosen + more if one != row]
            here = [one for one in rest if self.where[one] == node]
            if (self.holds[here].sum(axis=0) >= short).all() and (
                self.holds[rest].sum(axis=0) >= wish.needs - self.left
            ).all():
                chosen = [one for one in chosen if one != row]
        return chosen + more

    def evict(self, rows: Sequence[int], wish: _Wish) -> list[_Wish]:
        """Let replicas go; returns those that wait anew for it."""
        again = []
        for row in rows:
            victim = self.running[row]
            node = int(self.where[row])
            if self.is_open[node]:
                self.free[node] += self.holds[row]
            if self.left is not None:
                self.left += self.holds[row]
            self.may_go[row] = False
            self.evictions.append(Eviction(*_place_of(victim), room_for=wish.of.id))
            i = int(self.what[row])
            one = self.deployments[i]
            if one.spread:
                self.spread[one.id][node] -= 1
            if victim.number < one.replicas and not one.waits_for and one.not_before_s <= 0:
                again.append(_Wish(one, victim.number, self.needs[i], float(self.worths[i])))
        return again

    # Waiting for what ends by itself

    def maybe_reserve(self, wish: _Wish) -> None:
        """Keep a node for the first that has waited too long, where time alone will help it."""
        if self.kept is not None or wish.of.waited_s < PATIENCE_S or not self.ending:
            return
        if self.left is not None and (wish.needs > self.left).any():
            return
        could = self.could_be_free(self.evictable(wish.of.priority))
        best: tuple[float, int, Vector] | None = None
        has = self.suits(wish.of)
        for row in self.ending:
            if has is not None and not has[row]:
                continue
            room = could[row].copy()
            for ending in sorted(self.nodes[row].endings):
                room += ending.frees
                if (room >= wish.needs).all():
                    if best is None or ending.in_s < best[0]:
                        best = (ending.in_s, row, room)
                    break
        if best is None:
            return
        in_s, self.kept, room = best
        self.reservation = Reservation(wish.of.id, self.nodes[self.kept].id, in_s)
        # What others may have of it: no more than is over when the one it is kept for is there.
        self.free[self.kept] = np.minimum(self.free[self.kept], room - wish.needs)

    # Why

    def explain(self, i: int) -> Wait:
        one = self.deployments[i]
        if one.waits_for:
            return Wait("dependencies", names=one.waits_for)
        if one.not_before_s > 0:
            return Wait("backoff", in_s=one.not_before_s)
        if not self.is_open.any():
            return Wait("closed")
        has = self.suits(one)
        if has is not None and not (has & self.is_open).any():
            return Wait("labels", names=tuple(sorted(one.labels)))
        needs = self.needs[i]
        wish = _Wish(one, 0, needs, float(self.worths[i]))
        priority = next(
            (
                int(level) + 1
                for level in sorted({*self.urgency.tolist()})
                if one.priority <= level < MOST_URGENT and self.victims_for(wish, int(level) + 1)
            ),
            None,
        )
        if self.left is not None and (needs > self.left).any():
            lacks = Resources(*np.maximum(needs - self.left, 0).tolist())
            return Wait("limit", lacks=lacks, priority=priority)
        short = np.maximum(needs - self.free, 0)
        good = self.is_open if has is None else self.is_open & has
        size = np.where(good, (short * self.weight).sum(axis=1), np.inf)
        nearest = int(np.argmin(size))
        if size[nearest] == 0:
            self.plan()
            kept = self.reservation
            return Wait(
                "reserved",
                names=(kept.deployment,) if kept else (),
                node=kept.node if kept else "",
                in_s=kept.in_s if kept else None,
            )
        self.maybe_reserve(wish)
        kept = self.reservation
        return Wait(
            "room",
            node=self.nodes[nearest].id,
            lacks=Resources(*short[nearest].tolist()),
            priority=priority,
            in_s=kept.in_s if kept else None,
        )


def _matrix(rows: Sequence[Resources]) -> Vector:
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


def _triple(row: Vector) -> packing.Need:
    a, b, c = row.tolist()
    return a, b, c


def _without(wishes: Sequence[_Wish], some: Sequence[_Wish]) -> list[_Wish]:
    gone = {(wish.of.id, wish.number) for wish in some}
    return [wish for wish in wishes if (wish.of.id, wish.number) not in gone]


def _place_of(one: Replica) -> tuple[str, int, str]:
    return one.deployment, one.number, one.node


def _by_age(wish: _Wish) -> tuple[float, str, int]:
    return -wish.of.waited_s, wish.of.id, wish.number


def fit_some(needs: Vector, rooms: Vector) -> npt.NDArray[np.bool_]:
    """Which rows of ``needs`` fit some row of ``rooms``.

    Whatever fits one fits one that no other exceeds in every resource, and a full cluster has few
    of those.
    """
    hope = np.zeros(len(needs), dtype=bool)
    if len(needs) and len(rooms):
        a, b, c = needs.T.copy()
        for x, y, z in _greatest(rooms).tolist():
            hope |= (a <= x) & (b <= y) & (c <= z)
    return hope


def _greatest(rooms: Vector) -> Vector:
    """The rows that no other row exceeds or equals in every column."""
    left = np.unique(rooms, axis=0)[::-1]
    found = []
    while len(left):
        first = left[int(np.argmax(left.sum(axis=1)))]
        found.append(first)
        left = left[(left > first).any(axis=1)]
    return np.array(found)
