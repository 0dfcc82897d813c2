"""Which waiting task a node gets next. Pure: from a snapshot to a decision.

Urgency goes first; among equals the organization that uses least of what is scarce to it, for its
weight (its weighted dominant share: Ghodsi et al., Dominant Resource Fairness, NSDI 2011); where
those are equal, the one that used least lately; where that is equal, too, they take turns; then
age. Two rules keep everybody's wait finite, whatever others send:

* a line that has waited for longer than `PATIENCE_S`, counted from its last start (of a new line
  from its first task), goes before all of that, the longest wait first, whatever its urgency and
  share; but of two starts one is by rank, so that a fleet with work for days still knows both;
* if its task fits the node only once our work there has ended, the node is held for it: heavy work
  does not start there any more, so that small tasks can't slip past a large one forever.

So of a line that some node can serve something is started within `PATIENCE_S` and the time in which
the fleet makes two starts for each line that has waited longer (once each: after its start a line
waits anew), and empties a node for each that needs a whole one.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

K = TypeVar("K")

PATIENCE_S = 900.0
LIGHT_SLOTS = 2
USABLE_RAM = 0.9  # the rest is the operating system's and the node's own
FORGIVEN = 0.95  # a card sold as 8 GB reports a little less than 8 GiB
MILLIS_PER_GPU = 1000  # kept free of other work for each idle GPU: it needs feeding
HALF_LIFE_S = 3600.0  # after which what was used counts half
LEAST_S = 0.1  # what a task counts at least, so that those that take no time go in turn


@dataclass(frozen=True)
class Room:
    """What a node has left: slots, CPU in thousandths of a core, memory and each free GPU's in MiB.

    ``gpu_slots`` and ``gpu_millis`` are the part of ``slots`` and ``cpu_millis`` that only work for
    a GPU may use.
    """

    slots: int
    light_slots: int
    cpu_millis: int
    ram_mib: int
    gpus: tuple[int, ...] = ()
    gpu_slots: int = 0
    gpu_millis: int = 0

    @classmethod
    def of_empty(cls, has: Mapping[str, Any], slots: int) -> "Room":
        """The room of a node with nothing to do, from its capabilities."""
        return cls(
            slots=slots,
            light_slots=LIGHT_SLOTS,
            cpu_millis=int(1000 * has.get("cpu", 0)),
            ram_mib=int(has.get("ram_mib", 0) * USABLE_RAM),
            gpus=tuple(int(gpu.get("memory_mib", 0)) for gpu in has.get("gpus", ())),
        )

    def with_reserve(self, empty: "Room") -> "Room":
        """This room with a part kept for the GPUs that are idle.

        At most half the cores, and never the node's only slot: a node with a GPU does serve the
        queues without.
        """
        idle = len(self.gpus)
        return replace(
            self,
            gpu_slots=min(idle, empty.slots - 1),
            gpu_millis=min(idle * MILLIS_PER_GPU, empty.cpu_millis // 2),
        )

    def without(self, kept: Iterable["Taken"]) -> "Room":
        """This room less what is kept for good. Only the node knows which GPUs that takes."""
        kept = list(kept)
        gpus = max(0, len(self.gpus) - sum(one.gpus for one in kept))
        return replace(
            self,
            cpu_millis=self.cpu_millis - sum(one.cpu_millis for one in kept),
            ram_mib=self.ram_mib - sum(one.ram_mib for one in kept),
            gpus=tuple(sorted(self.gpus)[:gpus]),
        )

    def without_reserve(self) -> "Room":
        return replace(self, gpu_slots=0, gpu_millis=0)


class Waiting(NamedTuple, Generic[K]):
    """The head of one line: of one organization, on one queue, of one class and urgency.

    Times are seconds since the epoch: a thousand of these are made and compared for each choice.
    """

    task: K
    organization: K
    queue: str
    light: bool
    priority: int
    queued_at: float
    line_at: float
    cpu_millis: int
    ram_mib: int
    gpus: int = 0
    gpu_ram_mib: int = 0
    held_on: K | None = None  # the live node that is held for it
    since: float = 0.0  # since when its line waits: its last start, or its first task before that
    used: float = 0.0  # what the organization used lately in its class (`log_use`); 0: nothing
    turn_at: float = 0.0  # the organization's last start of its class; 0: not lately

    @property
    def line(self) -> tuple[K, str, bool, int]:
        return self.organization, self.queue, self.light, self.priority

    def is_late(self, overdue: float) -> bool:
        """Whether it, and its line, have waited since before ``overdue``."""
        return self.since < overdue and self.queued_at < overdue

    def fits(self, room: Room) -> bool:
        """Whether it can start in ``room`` now."""
        # Light work has slots of its own, so that a long race never blocks a preview.
        if self.light:
            return room.light_slots > 0
        if self.ram_mib > room.ram_mib:
            return False
        if self.gpus:
            good = sum(ram >= self.gpu_ram_mib * FORGIVEN for ram in room.gpus)
            return room.slots > 0 and self.cpu_millis <= room.cpu_millis and good >= self.gpus
        return room.slots > room.gpu_slots and self.cpu_millis <= room.cpu_millis - room.gpu_millis


class Taken(NamedTuple):
    """What one running task of ours takes of its node; ``gpu_ram_mib`` of each of its GPUs."""

    light: bool
    cpu_millis: int = 0
    ram_mib: int = 0
    gpus: int = 0
    gpu_ram_mib: int = 0


def room_left(said: Room, empty: Room, ours: Iterable[Taken]) -> Room:
    """The room to start in: what the node says and what the ledger says, whichever is less."""
    taken = _sum(ours)
    # Which devices are taken only the node knows: the smallest may be what is left.
    free = max(0, len(empty.gpus) - taken.gpus)
    return Room(
        slots=min(said.slots, empty.slots - taken.slots),
        light_slots=min(said.light_slots, empty.light_slots - taken.light_slots),
        cpu_millis=min(said.cpu_millis, empty.cpu_millis - taken.cpu_millis),
        ram_mib=min(said.ram_mib, empty.ram_mib - taken.ram_mib),
        gpus=tuple(sorted(said.gpus)[:free]),
    ).with_reserve(empty)


def room_once_freed(said: Room, empty: Room, ours: Iterable[Taken]) -> Room:
    """The room that there will be when all that runs of ours has ended.

    What other programs of the machine use stays used: nobody knows when they end.
    """
    ours = list(ours)
    taken = _sum(ours)
    used = sorted(empty.gpus)
    for free in sorted(said.gpus):  # memory is said, not which: the smallest device with as much
        if used:
            used.remove(next((size for size in used if size >= free), used[-1]))
    freed: list[int] = []
    for one in sorted(ours, key=lambda one: one.gpu_ram_mib, reverse=True):
        for _ in range(one.gpus):
            if fitting := [size for size in used if size >= one.gpu_ram_mib * FORGIVEN]:
                used.remove(fitting[0])
                freed.append(fitting[0])
    return Room(
        slots=min(said.slots + taken.slots, empty.slots),
        light_slots=min(said.light_slots + taken.light_slots, empty.light_slots),
        cpu_millis=min(said.cpu_millis + taken.cpu_millis, empty.cpu_millis),
        ram_mib=min(said.ram_mib + taken.ram_mib, empty.ram_mib),
        gpus=tuple(sorted([*said.gpus, *freed])),
    )


class _Sum(NamedTuple):
    slots: int
    light_slots: int
    cpu_millis: int
    ram_mib: int
    gpus: int


def _sum(ours: Iterable[Taken]) -> _Sum:
    """Light work takes nothing but its slot."""
    ours = list(ours)
    heavy = [one for one in ours if not one.light]
    return _Sum(
        slots=len(heavy),
        light_slots=len(ours) - len(heavy),
        cpu_millis=sum(one.cpu_millis for one in heavy),
        ram_mib=sum(one.ram_mib for one in heavy),
        gpus=sum(one.gpus for one in heavy),
    )


class Choice(NamedTuple, Generic[K]):
    """What to start now, and what to hold the node for. Either may be None.

    ``out_of_turn``: it goes first because it waited long, and not by its rank.
    """

    start: Waiting[K] | None = None
    hold: Waiting[K] | None = None
    out_of_turn: bool = False


def dominant_share(
    used: Mapping[str, float], total: Mapping[str, float], weight: float = 1.0
) -> float:
    """The largest fraction of any one resource that is in use, for its weight.

    0 where nothing is there at all.
    """
    most = max((used.get(name, 0) / size for name, size in total.items() if size > 0), default=0.0)
    return most / weight


def log_use(share: float, seconds: float, at: float) -> float:
    """What a task counts that ended ``at`` (s since 2026), of those `added` to: see there.

    ``share`` is its dominant share of the fleet, for its organization's weight; of light work that
    of one slot, 1. Raises ValueError where it is 0 or less.
    """
    return math.log2(share * max(seconds, LEAST_S)) + at / HALF_LIFE_S


def added(log_used: float, log_more: float) -> float:
    """Use and more use together.

    Each second of a share counts half after `HALF_LIFE_S`. Weights that grow with time say the same
    as weights that shrink, and need no renewing: forward decay (Cormode et al., ICDE 2009). They
    grow beyond any number, so their logarithms (base 2) are kept.
    """
    low, high = sorted((log_used, log_more))
    return high + math.log2(1 + 2 ** (low - high))


def choose(
    waiting: Iterable[Waiting[K]],
    shares: Mapping[K, float],
    room: Room,
    *,
    node: K | None = None,
    freed: Room | None = None,
    overdue: float | None = None,
    in_turn: bool = False,
) -> Choice[K]:
    """The task to start on ``node`` with this ``room``; neither start nor hold when none fits.

    ``shares`` has the weighted dominant share of each organization that uses something. A line that
    has waited since before ``overdue`` is late; with ``in_turn`` it goes first only where nothing
    else fits. ``freed`` is the room once what runs has ended (`room_once_freed`): without it no
    node is held.
    """
    heads = list(waiting)
    late = [] if overdue is None else [one for one in heads if one.is_late(overdue)]
    hold: Waiting[K] | None = None
    rescue: Waiting[K] | None = None
    whole = room.without_reserve()
    for head in sorted(late, key=lambda one: one.since):
        if head.fits(whole) and (hold is None or head.light):
            rescue = head
            break
        free = head.held_on is None or head.held_on == node
        if hold is None and free and freed is not None and head.fits(freed.without_reserve()):
            hold = head
    if rescue is not None and not in_turn:
        return Choice(rescue, hold, True)
    best: Waiting[K] | None = None
    best_rank: tuple[int, float, float, float, float] | None = None
    for head in heads:  # a loop and not min(): a thousand heads are looked at in a millisecond
        share = shares.get(head.organization, 0.0)
        rank = (-head.priority, share, head.used, head.turn_at, head.since)
        if best_rank is not None and rank >= best_rank:
            continue
        if (hold is None or head.light) and head.fits(room):
            best, best_rank = head, rank
    if best is None and rescue is not None:
        return Choice(rescue, hold, True)
    return Choice(best, hold)


def full_organizations(running: Mapping[K, int], limits: Mapping[K, int]) -> set[K]:
    """The organizations that run as many jobs as they may: only light work of theirs starts."""
    return {one for one, count in running.items() if count >= limits.get(one, count + 1)}


def expected_wait_s(free_in_s: Iterable[float], ahead: int, each_s: float) -> float | None:
    """When a task starts (s from now) that has ``ahead`` others before it, each of ``each_s``.

    ``free_in_s`` says when each slot that may take them is free. None without a slot.
    """
    slots = sorted(max(0.0, free) for free in free_in_s)
    if not slots:
        return None
    # Whole rounds are skipped, since a long line would take long to go through.
    rounds, ahead = divmod(ahead, len(slots)) if each_s > 0 else (0, 0)
    return slots[ahead] + rounds * each_s
