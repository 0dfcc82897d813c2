"""Which waiting task a node gets next. Pure: from a snapshot to a decision.

Priority goes first; among equals the organization that uses least of what is scarce to it (its
dominant share: Ghodsi et al., Dominant Resource Fairness, NSDI 2011); then age.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

K = TypeVar("K")


@dataclass(frozen=True)
class Room:
    """What a node has left: whole slots, CPU in thousandths of a core, memory in MiB."""

    slots: int
    light_slots: int
    cpu_millis: int
    ram_mib: int


@dataclass(frozen=True)
class Waiting(Generic[K]):
    """The head of one organization's line on one queue."""

    task: K
    organization: K
    priority: int
    queued_at: datetime
    light: bool
    cpu_millis: int
    ram_mib: int

    def fits(self, room: Room) -> bool:
        # Light work has slots of its own, so that a long race never blocks a preview.
        if (room.light_slots if self.light else room.slots) <= 0:
            return False
        return self.light or (self.cpu_millis <= room.cpu_millis and self.ram_mib <= room.ram_mib)


def dominant_share(used: Mapping[str, int], total: Mapping[str, int]) -> float:
    """The largest fraction of any one resource that is in use; 0 where nothing is there at all."""
    return max((used.get(name, 0) / size for name, size in total.items() if size > 0), default=0.0)


def choose(
    waiting: Iterable[Waiting[K]], shares: Mapping[K, float], room: Room
) -> Waiting[K] | None:
    """The task to start on a node with this room, or None when none of them fits."""
    fitting = [head for head in waiting if head.fits(room)]
    return min(
        fitting,
        key=lambda head: (-head.priority, shares.get(head.organization, 0.0), head.queued_at),
        default=None,
    )
