"""Which queue a task waits on, and which queues a node serves. Pure.

The rule that holds both together (a property test says so): every node that serves a queue can run
whatever lies there, room permitting; and a node serves every queue whose tasks it can run.
"""

from collections.abc import Iterable
from dataclasses import dataclass

VRAM_TIERS_GIB = (6, 8, 12, 24)


@dataclass(frozen=True)
class Requirements:
    """What a task needs of a node. An empty ``engine`` means none."""

    engine: str = ""
    device: str = "cpu"  # cpu | gpu | llm
    gpu_ram_mib: int = 0
    urgent: bool = False


@dataclass(frozen=True)
class Capabilities:
    """What a node has. ``gpu_ram_mib`` has one entry per GPU."""

    engines: frozenset[str] = frozenset()
    gpu_ram_mib: tuple[int, ...] = ()
    llm: bool = False


class NoSuchQueue(ValueError):
    """The requirements fit no queue."""


def queue_for(need: Requirements) -> str:
    """The one queue on which a task with these requirements waits.

    Raises NoSuchQueue for an unknown device, and for more GPU memory than the largest tier.
    """
    prefix = f"{need.engine}." if need.engine else ""
    if need.device == "cpu":
        return "priority" if need.urgent and not need.engine else f"{prefix}cpu"
    if need.device == "llm":
        return f"{prefix}llm"
    if need.device != "gpu":
        raise NoSuchQueue(f"There is no device {need.device!r}: use cpu, gpu or llm.")
    if need.gpu_ram_mib <= 0:
        return f"{prefix}gpu"
    for tier in VRAM_TIERS_GIB:
        if need.gpu_ram_mib <= tier * 1024:
            return f"{prefix}gpu.vram{tier}"
    raise NoSuchQueue(
        f"No queue promises {need.gpu_ram_mib} MiB on one GPU: the most is "
        f"{VRAM_TIERS_GIB[-1]} GiB."
    )


def queues_for(has: Capabilities) -> list[str]:
    """Every queue that a node with these capabilities serves, most particular first."""
    devices = []
    if has.gpu_ram_mib:
        largest = max(has.gpu_ram_mib)
        # A card sold as 8 GB reports a little less than 8 GiB: 5% are forgiven.
        devices += [
            f"gpu.vram{tier}" for tier in reversed(VRAM_TIERS_GIB) if largest >= tier * 1024 * 0.95
        ]
        devices.append("gpu")
    if has.llm:
        devices.append("llm")
    devices.append("cpu")
    engines = [f"{engine}.{device}" for engine in sorted(has.engines) for device in devices]
    return ["priority", *engines, *devices]


def narrowed(queues: Iterable[str], classes: Iterable[str]) -> list[str]:
    """Those of ``queues`` whose device class is among ``classes`` (empty: all of them)."""
    wanted = set(classes)
    if not wanted:
        return list(queues)
    return [
        queue
        for queue in queues
        if queue in wanted or any(queue.endswith(f".{device}") for device in wanted)
    ]
