"""Which GPUs a task gets, and whether they have room for it. ``choose`` is pure.

A task gets whole devices: no two tasks compute on one, and CPU tasks see none. What was promised is
not what is free, since other programs of the machine use GPUs too; so the driver is asked (NVML)
just before a start, and a task that fits no device now goes back to its queue with the reason.
Standard library only where there is no GPU.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from workers.node import handlers

log = logging.getLogger("flowml.node.gpus")

PATIENCE_S = 5.0  # memory of a process that has just ended comes back within this
ASK_AGAIN_S = 0.25
BACKOFF_S = (2.0, 60.0)  # after a refusal no GPU is offered for so long: at first, and at most
# A card sold as 8 GB reports a little less than 8 GiB (see workers/routing.py).
FORGIVEN = 0.95
# A task that does not say how much it needs gets a device of which so much is free.
NEARLY_ALL = 0.8


@dataclass(frozen=True)
class Device:
    """A GPU as its driver describes it now. ``uuid`` is what CUDA_VISIBLE_DEVICES takes.

    ``percent`` is how busy it is; None: it does not say.
    """

    index: int
    uuid: str
    name: str
    memory_mib: int
    free_mib: int
    percent: int | None = None
    driver: str = ""
    cuda: str = ""


@dataclass(frozen=True)
class Need:
    """How many devices a task needs, and memory (MiB) on each; 0: it does not say."""

    count: int
    ram_mib: int = 0


class NoRoom(Exception):
    """No GPU for it now. The text says why, device by device."""


def choose(devices: Iterable[Device], taken: Collection[str], need: Need) -> list[Device]:
    """The devices for a task: the tightest that fit, so that large ones stay free for large needs.

    ``taken`` holds the uuids that other tasks have. Raises NoRoom.
    """
    known = list(devices)
    fitting = [d for d in known if d.uuid not in taken and _fits(d, need)]
    if len(fitting) < need.count:
        raise NoRoom(_why(known, taken, need))
    return sorted(fitting, key=lambda d: (d.free_mib, d.index))[: need.count]


def _fits(device: Device, need: Need) -> bool:
    wanted = need.ram_mib * FORGIVEN if need.ram_mib else device.memory_mib * NEARLY_ALL
    return device.free_mib >= wanted


def _why(devices: list[Device], taken: Collection[str], need: Need) -> str:
    what = f"{need.count} GPUs" if need.count > 1 else "a GPU"
    if need.ram_mib:
        what += f" with {need.ram_mib / 1024:.1f} GiB free" + (" each" if need.count > 1 else "")
    if not devices:
        return f"It needs {what}, and this node has none that answers."
    told = [
        f"GPU {d.index} ({d.name}) "
        + (
            "is in use by another task"
            if d.uuid in taken
            else f"has {d.free_mib / 1024:.1f} of {d.memory_mib / 1024:.1f} GiB free"
        )
        for d in sorted(devices, key=lambda d: d.index)
    ]
    return f"It needs {what}: " + "; ".join(told) + "."


class Gpus:
    """The ledger of one node: which attempt has which devices. ``read`` asks the driver."""

    def __init__(self, read: "Callable[[], list[Device]] | None" = None) -> None:
        self.held: dict[str, list[str]] = {}
        self._read = read or devices
        self._refusals = 0
        self._closed_until = float("-inf")

    async def take(self, holder: str, need: Need) -> list[str]:
        """Give ``holder`` the devices it needs; returns their uuids. Raises NoRoom.

        Waits a moment, since the memory of a task that has just ended may not be back yet.
        """
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                # Asked in a thread: a driver in trouble may take seconds to answer.
                found = choose(await asyncio.to_thread(self._read), self._taken(), need)
            except NoRoom:
                if time.monotonic() >= until:
                    self._refused()
                    raise
                await asyncio.sleep(ASK_AGAIN_S)
                continue
            self._refusals, self._closed_until = 0, float("-inf")
            self.held[holder] = [device.uuid for device in found]
            return self.held[holder]

    def give_back(self, holder: str) -> None:
        """``holder`` has ended, and its processes with it."""
        if self.held.pop(holder, None) is not None:
            self._refusals, self._closed_until = 0, float("-inf")

    async def room(self) -> list[int]:
        """Free memory (MiB) of each device that a task could have now, largest first.

        Empty for a while after a refusal, so that a task that was handed back does not come again
        at once.
        """
        if time.monotonic() < self._closed_until:
            return []
        found = await asyncio.to_thread(self._read)
        taken = self._taken()
        return sorted((d.free_mib for d in found if d.uuid not in taken), reverse=True)

    def _taken(self) -> set[str]:
        return {uuid for uuids in self.held.values() for uuid in uuids}

    def _refused(self) -> None:
        first, most = BACKOFF_S
        self._closed_until = time.monotonic() + min(most, first * 2.0 ** min(self._refusals, 10))
        self._refusals += 1


def need_of(claim: dict[str, Any]) -> Need | None:
    """What a claimed task needs of this node's GPUs, None for a task without GPU."""
    count = int(claim.get("gpus") or 0)
    return Need(count, int(claim.get("gpu_ram_mib") or 0)) if count > 0 else None


def visible(uuids: Iterable[str]) -> dict[str, str]:
    """The environment that shows a process these devices and no others."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(uuids), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def devices() -> list[Device]:
    """The GPUs of this machine, [] where there is none that answers."""
    read: Callable[[], list[Device]] = handlers.added("NVML").get("read") or _nvml
    return read()


_silent: set[int] = set()  # GPUs that did not answer the last time


def _nvml() -> list[Device]:
    try:
        import pynvml  # no GPU library is needed where there is no GPU
    except ImportError:
        return []
    found = []
    try:
        pynvml.nvmlInit()
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        cuda = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
        count = int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return []  # no driver here
    for index in range(count):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            uuid, name = pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle)
        except pynvml.NVMLError as error:  # one that has fallen off
            if index not in _silent:
                log.warning("GPU %d does not answer: %s", index, error)
            _silent.add(index)
            continue
        _silent.discard(index)
        try:
            percent = int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        except pynvml.NVMLError:  # a part of a device does not know
            percent = None
        found.append(
            Device(
                index=index,
                uuid=_text(uuid),
                name=_text(name),
                memory_mib=int(memory.total) // 2**20,
                free_mib=int(memory.free) // 2**20,
                percent=percent,
                driver=driver,
                cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",
            )
        )
    return found


def _text(value: "str | bytes") -> str:
    return value.decode() if isinstance(value, bytes) else value
