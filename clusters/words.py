"""Reasons for waiting, and what is lacking, in words. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from clusters.scheduling import Resources

PRIORITIES = ("LOW", "MEDIUM", "HIGH", "CRITICAL")


def gb(ram_mib: float) -> str:
    """Gibibytes, as people write them: "1.5 GB"."""
    return f"{ram_mib / 1024:.2f}".rstrip("0").rstrip(".") + " GB"


def amounts(some: Sequence[int]) -> str:
    """ "2 GB of memory, 0.5 CPU cores and 1 GPU", of what there is any."""
    ram, cpu, gpus = Resources(*some)
    parts = []
    if ram:
        parts.append(f"{gb(ram)} of memory")
    if cpu:
        parts.append(f"{cpu / 1000:g} CPU core{'' if cpu == 1000 else 's'}")
    if gpus:
        parts.append(f"{gpus} GPU{'' if gpus == 1 else 's'}")
    return _and(parts) or "nothing"


def _and(parts: Sequence[str]) -> str:
    *most, last = parts or [""]
    return f"{', '.join(most)} and {last}" if most else last


def reason(wait: Mapping[str, Any]) -> str:
    """Why it waits, as a sentence."""
    names, lacks = list(wait.get("names") or ()), wait.get("lacks") or (0, 0, 0)
    match wait.get("code"):
        case "dependencies":
            return f"It waits for {_and(names)} to run first."
        case "backoff":
            return "It crashed, and is tried again after a pause."
        case "closed":
            return "No node of the cluster takes anything new: none is online, or all are drained."
        case "labels":
            engines = [name for name in names if name not in {"own-node", "containers"}]
            what = f"has {_and(engines)}" if engines else ""
            if "containers" in names:
                what = "runs containers (it needs Docker or Podman)"
            own = "is your organization's own" if "own-node" in names else ""
            return f"No node of the cluster that is online {_and([x for x in (what, own) if x])}."
        case "limit":
            return f"The cluster's limit is reached: {amounts(lacks)} are lacking."
        case "room":
            return (
                f"No node has room for it. The nearest is {wait.get('node') or 'none'}, which "
                f"lacks {amounts(lacks)}."
            )
        case "reserved":
            for_ = f" for {_and(names)}, which waited longer" if names else ""
            return f"There is room, but it is kept{for_}."
    return "A place is being looked for."


def change(wait: Mapping[str, Any], priority: int) -> str:
    """The least change that would let it run, or nothing."""
    lacks, wanted = wait.get("lacks") or (0, 0, 0), wait.get("priority")
    ways = []
    if any(lacks) and wait.get("code") in {"room", "limit"}:
        ways.append(f"ask for {amounts(lacks)} less, or free as much")
    if wanted is not None and wanted > priority and wanted < len(PRIORITIES):
        ways.append(f"raise its priority to {PRIORITIES[wanted]}: less urgent ones would make room")
    if wait.get("code") == "closed":
        ways.append("start a node of the cluster, or resume one")
    if wait.get("code") == "labels":
        ways.append("add a node that has it to the cluster")
    text = "; or ".join(ways)
    return f"{text[:1].upper()}{text[1:]}." if text else ""
