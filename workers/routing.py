"""Which queue a task waits on, and which queues a node serves. Pure.

The rule that holds both together (a property test says so): every node that serves a queue can run
whatever lies there, room permitting; and a node serves every queue whose tasks it can run.
"""

import sys
from collections.abc import Iterable, Mapping
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


def in_words(queue: str) -> str:
    """What a queue asks of a node, to follow "a node with": "PyCaret and a GPU of 8 GiB"."""
    engine, device = split(queue)
    what = {"cpu": "", "priority": "", "gpu": "a GPU", "llm": "a language model"}.get(device)
    if what is None:
        what = f"a GPU of {device.removeprefix('gpu.vram')} GiB"
    return " and ".join(part for part in (f"the engine {engine}" if engine else "", what) if part)


def split(queue: str) -> tuple[str, str]:
    """A queue's engine ("" for none) and device class."""
    queue = queue.removeprefix("own.")  # work for an organization's own nodes: workers.models
    for device in ("cpu", "gpu", "llm", "priority", *(f"gpu.vram{t}" for t in VRAM_TIERS_GIB)):
        if queue == device:
            return "", queue
        if queue.endswith(f".{device}"):
            return queue.removesuffix(f".{device}"), device
    return "", queue


def nearest(queue: str, nodes: Mapping[str, Iterable[str]]) -> tuple[str, str] | None:
    """The queue that comes nearest to ``queue`` among those that ``nodes`` serve, and its node.

    First the same engine on the same kind of device with as much memory as there is, then the same
    engine on another device, then the same device without the engine; None when nothing is near.
    """
    engine, device = split(queue)

    def closeness(other: str) -> tuple[bool, bool, int]:
        its_engine, its_device = split(other)
        same_kind = its_device.partition(".")[0] == device.partition(".")[0]
        memory = its_device.rpartition("vram")[2]
        return (
            its_engine == engine,
            same_kind,
            int(memory) if same_kind and memory.isdigit() else 0,
        )

    near = [
        (closeness(other), node, other)
        for node, served in nodes.items()
        for other in served
        if other != queue and other != "priority"
    ]
    near = [one for one in near if (one[0][0] and engine) or one[0][1]]
    if not near:
        return None
    best = max(near, key=lambda one: (one[0], one[1]))
    return best[2], best[1]


def table() -> str:
    """docs/scheduling.md's table: which work waits where, and which node serves it."""
    rows = [
        ("queue", "what waits there", "which nodes serve it"),
        ("---", "---", "---"),
        ("`priority`", "urgent work that needs no engine", "all"),
        ("`cpu`", "work that needs neither engine nor GPU", "all"),
        ("`gpu`", "work for any GPU", "with a GPU"),
    ]
    before = 0
    for tier in VRAM_TIERS_GIB:
        queue = queue_for(Requirements(device="gpu", gpu_ram_mib=tier * 1024))
        sizes = range(1024, 2 * tier * 1024)
        least = next(m for m in sizes if queue in queues_for(Capabilities(gpu_ram_mib=(m,))))
        needs = f"more than {before} GiB, at most {tier} GiB" if before else f"at most {tier} GiB"
        who = f"with a GPU of {least:,} MiB or more"
        rows.append((f"`{queue}`", f"work for a GPU, {needs} of its memory", who))
        before = tier
    rows.append(("`llm`", "questions to a language model", "with Ollama"))
    engine = "`pycaret.cpu`, `torch.gpu.vram8`, …"
    rows.append((engine, "the same for one engine", "the same, with the engine"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    sys.stdout.write(f"{table()}\n")
