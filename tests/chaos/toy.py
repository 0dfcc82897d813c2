"""Work for a fleet under test, done in real children of real nodes (FLOWML_TEST_HANDLERS)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.node.channel import Channel
from workers.node.handlers import Way

if TYPE_CHECKING:
    from workers.node.gpus import Device

TOY = "tests.chaos.toy"


def work(task: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Take payload["s"] seconds over payload["models"] models, and give back payload["answer"]."""
    payload = task["payload"]
    models = payload.get("models", 1)
    for number in range(models):
        key = f"m{number}"
        time.sleep(payload.get("s", 0.1) / models)
        if key not in task["done"]:
            Path("model.bin").unlink(missing_ok=True)
            Path("model.bin").write_text(f"{task['task']} {key}")
            channel.candidate(key, {"key": key}, {"artifact": "model.bin"})
        channel.progress((number + 1) / models)
    Path("answer.txt").write_text(str(payload.get("answer")))
    return {"data": {"answer": payload.get("answer")}, "files": {"answer": "answer.txt"}}


def nothing(task: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Do nothing, for benchmarks."""
    return {}


def stubborn(task: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Ignore SIGTERM, and so does a grandchild in a session of its own."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code = (
        "import os, signal, time; os.setsid(); signal.signal(15, signal.SIG_IGN); time.sleep(600)"
    )
    below = subprocess.Popen([sys.executable, "-c", code])
    channel.notice("pids", pids=[os.getpid(), below.pid])
    time.sleep(600)
    return {}


def fill(task: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Write payload["mib"] MiB into the work folder."""
    with open("large.bin", "wb") as file:
        file.writelines(os.urandom(1 << 20) for _ in range(task["payload"]["mib"]))
    return {}


def devices(task: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Tell which GPUs this process sees."""
    return {"data": {"devices": os.environ["CUDA_VISIBLE_DEVICES"]}}


def fake_gpus() -> "list[Device]":
    """The GPUs of a machine without any, as the file TOY_GPUS lists them; the test changes it."""
    from workers.node.gpus import Device  # asyncio with it, which no child needs

    path = os.environ.get("TOY_GPUS")
    return [Device(**row) for row in json.loads(Path(path).read_text())] if path else []


NVML = {"read": fake_gpus}
HANDLERS = {
    "toy.work": Way(f"{TOY}:work", "node"),
    "toy.nothing": Way(f"{TOY}:nothing", "node"),
    "toy.stubborn": Way(f"{TOY}:stubborn", "node"),
    "toy.devices": Way(f"{TOY}:devices", "node"),
    "toy.fill": Way(f"{TOY}:fill", "node"),
}
