"""GPU work through the whole platform. The driver is a fake: what NVML would say is in a file."""

import json
from pathlib import Path

import pytest

from tests.chaos.fleet import Fleet, until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.chaos,
    pytest.mark.timeout(240),
    pytest.mark.xdist_group("fleet"),
]


def free(path: Path, *free_mib: int) -> None:
    """Say how much is free on each of the two GPUs."""
    rows = [
        {"index": n, "uuid": uuid, "name": "A10", "memory_mib": 24576, "free_mib": mib}
        for n, (uuid, mib) in enumerate(zip(("GPU-zero", "GPU-one"), free_mib, strict=True))
    ]
    part = path.with_suffix(".part")
    part.write_text(json.dumps(rows))
    part.rename(path)


def test_a_gpu_task_gets_a_device_with_room_and_waits_until_there_is_one(
    fleet: Fleet, organization: str, tmp_path: Path
) -> None:
    gpus = tmp_path / "gpus.json"
    free(gpus, 1000, 20_000)
    fleet.only()
    fleet.node("gpu", TOY_GPUS=str(gpus))
    queues = fleet.desk.rows("SELECT queues FROM workers_worker WHERE name = 'gpu'")[0][0]
    assert "gpu.vram24" in queues

    def add() -> str:
        needs = {"device": "gpu", "gpu_ram_mib": 12_000}
        return str(fleet.desk("add", organization, "toy.devices", **needs))

    ended = fleet.ended(add())
    assert ended["state"] == "succeeded", ended
    assert ended["result"]["data"] == {"devices": "GPU-one"}
    free(gpus, 1000, 1000)  # another program takes it
    waiting = add()
    until(lambda: fleet.task(waiting)["state"] == "queued", "it waits")
    row = fleet.task(waiting)
    free(gpus, 20_000, 1000)
    ended = fleet.ended(waiting)
    assert ended["result"]["data"] == {"devices": "GPU-zero"}
    assert (ended["losses"], row["losses"]) == (0, 0), "waiting costs no attempt"
