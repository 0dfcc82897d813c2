"""What this machine can do. Needs no GPU library where there is no GPU."""

import json
import os
import platform
import shutil
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from workers.node import handlers
from workers.node.gpus import devices
from workers.node.settings import ROOT, VERSION


def probe(
    venvs: Path, engines: tuple[str, ...] | None, folder: Path, *, use_gpu: bool = True
) -> dict[str, Any]:
    """This machine's capabilities, as a node registers them."""
    found = engines_in(venvs)
    models = ollama(os.environ.get("OLLAMA_HOST_URL") or "http://127.0.0.1:11434")
    return {
        "cpu": cores(),
        "ram_mib": ram_mib(),
        "disk_free_mib": disk_free_mib(folder),
        "gpus": gpus() if use_gpu else [],
        "engines": [name for name in found if engines is None or name in engines],
        "llm": bool(models),
        "models": models,
        "host": platform.node(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "version": VERSION,
    }


def cores() -> int:
    """Processor cores that this process may use: affinity and control group quota respected."""
    allowed = len(os.sched_getaffinity(0))
    quota = min((q for q in map(_quota, _groups("cpu")) if q), default=None)
    return max(1, min(allowed, int(quota + 0.5) if quota else allowed))


def ram_mib() -> int:
    """Memory (MiB) that this machine, or the control group it runs in, may use."""
    total = int(psutil.virtual_memory().total)
    limits = [
        limit
        for group in _groups("memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (limit := parse_limit(_read(group / name))) is not None
    ]
    return min([total, *limits]) // (1024 * 1024)


def parse_limit(text: str) -> int | None:
    """A control group's limit in bytes; None for "max", for nothing, and for "no limit" of v1."""
    value = int(text) if text.strip().isdigit() else None
    return value if value is not None and value < 1 << 60 else None


def parse_quota(quota: str, period: str) -> float | None:
    """Cores from a control group's quota and period (µs); None when there is no limit."""
    try:
        allowed, each = float(quota), float(period)
    except ValueError:
        return None
    return allowed / each if allowed > 0 and each > 0 else None


def disk_free_mib(folder: Path) -> int:
    """Free space (MiB) where this node keeps its files."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free // (1024 * 1024)


def gpus() -> list[dict[str, Any]]:
    """The GPUs of this machine, as a node registers them."""
    names = ("index", "uuid", "name", "memory_mib", "driver", "cuda")
    return [{name: getattr(device, name) for name in names} for device in devices()]


def gpu_usage() -> list[dict[str, Any]]:
    """How busy each GPU is now, as its driver says. A driver in trouble takes seconds for it."""
    return [
        {
            "index": device.index,
            "percent": device.percent,
            "memory_used_mib": device.memory_mib - device.free_mib,
        }
        for device in devices()
    ]


def ollama(url: str) -> list[str]:
    """The models of the Ollama at ``url``, [] where none answers."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/api/tags", timeout=2) as answer:  # noqa: S310
            return sorted(str(model["name"]) for model in json.load(answer)["models"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def engines_in(venvs: Path) -> list[str]:
    """Engines that have both a virtualenv and a module that declares them."""
    if not venvs.is_dir():
        return []
    return sorted(
        folder.name
        for folder in venvs.iterdir()
        if folder.name not in handlers.NOT_ENGINES
        and os.access(folder / "bin" / "python", os.X_OK)
        and (ROOT / (handlers.engine_module(folder.name).replace(".", "/") + ".py")).is_file()
    )


def usage(folder: Path) -> dict[str, Any]:
    """How busy the machine is now, its GPUs apart. ``cpu_percent`` is since the last call."""
    memory = psutil.virtual_memory()
    return {
        "cpu_percent": psutil.cpu_percent(None),
        "ram_used_mib": (memory.total - memory.available) // (1024 * 1024),
        "load": round(os.getloadavg()[0], 2),
        "disk_free_mib": disk_free_mib(folder),
        "clock": time.time(),
    }


def table(capabilities: Mapping[str, Any]) -> str:
    """Capabilities as lines for a person."""
    gib = f"{capabilities['ram_mib'] / 1024:.1f} GiB"
    rows = [
        ("host", f"{capabilities['host']} ({capabilities['system']})"),
        ("version", f"{capabilities['version']}, Python {capabilities['python']}"),
        ("cores", str(capabilities["cpu"])),
        ("memory", gib),
        ("disk free", f"{capabilities['disk_free_mib'] / 1024:.1f} GiB"),
        ("engines", ", ".join(capabilities["engines"]) or "none"),
    ]
    rows.append(("llm", ", ".join(capabilities["models"]) or "no Ollama answers"))
    rows += [
        (
            f"gpu {gpu['index']}",
            "{name}, {gib:.0f} GiB, driver {driver}, CUDA {cuda}".format(
                gib=gpu["memory_mib"] / 1024, **gpu
            ),
        )
        for gpu in capabilities["gpus"]
    ] or [("gpu", "none")]
    return "\n".join(f"{name:<10} {value}" for name, value in rows)


def _groups(controller: str) -> list[Path]:
    """Folders of the control groups that bound this process, its own and those above, v1 and v2."""
    found: list[Path] = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root = Path("/sys/fs/cgroup")
        elif controller in controllers.split(","):
            root = Path("/sys/fs/cgroup") / controllers
            root = root if root.exists() else Path("/sys/fs/cgroup") / controller
        else:
            continue
        folder = root / path.lstrip("/")
        # In a container the path may be the host's; then the root is what bounds us.
        found += [at for at in (folder, *folder.parents) if at.is_relative_to(root)]
    return found


def _quota(group: Path) -> float | None:
    quota, _, period = _read(group / "cpu.max").strip().partition(" ")
    if quota:
        return parse_quota(quota, period)
    return parse_quota(_read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us"))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
