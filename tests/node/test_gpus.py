"""Who gets which GPU. The driver is a fake here; the choice, the ledger and the node are real."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.node.conftest import Node
from tests.node.fakeweb import until
from workers.node.gpus import FORGIVEN, Device, Gpus, Need, NoRoom, choose
from workers.node.outcome import is_gpu_memory

GIB = 1024


def card(index: int = 0, free_gib: float = 24, size_gib: int = 24) -> Device:
    return Device(index, f"GPU-{index}", "A10", size_gib * GIB, int(free_gib * GIB))


@st.composite
def machines(draw: Any) -> tuple[list[Device], set[str]]:
    devices = []
    for index in range(draw(st.integers(0, 6))):
        size = draw(st.sampled_from([6, 8, 12, 24, 80]))
        devices.append(card(index, draw(st.floats(0, size)), size))
    taken = {d.uuid for d in devices if draw(st.booleans())}
    return devices, taken


needs = st.builds(Need, st.integers(1, 3), st.integers(0, 30 * GIB))


@given(machines(), needs)
def test_a_choice_is_free_large_enough_and_the_tightest(
    machine: tuple[list[Device], set[str]], need: Need
) -> None:
    devices, taken = machine
    try:
        found = choose(devices, taken, need)
    except NoRoom as refusal:
        why = str(refusal)
        fitting = [
            d
            for d in devices
            if d.uuid not in taken and d.free_mib >= (need.ram_mib * FORGIVEN or d.memory_mib * 0.8)
        ]
        assert len(fitting) < need.count, "it is refused only where it does not fit"
        assert all(f"GPU {d.index} " in why for d in devices), "and each device is named"
        return
    assert len({d.uuid for d in found}) == need.count
    assert not taken & {d.uuid for d in found}
    assert all(d.free_mib >= need.ram_mib * FORGIVEN for d in found)
    others = [d for d in devices if d not in found and d.uuid not in taken]
    assert all(
        other.free_mib >= max(d.free_mib for d in found)
        or other.free_mib < (need.ram_mib * FORGIVEN or other.memory_mib * 0.8)
        for other in others
    )


@given(machines(), needs, st.randoms())
def test_the_order_of_the_devices_does_not_matter(
    machine: tuple[list[Device], set[str]], need: Need, random: Any
) -> None:
    devices, taken = machine

    def outcome(given_: list[Device]) -> Any:
        try:
            return choose(given_, taken, need)
        except NoRoom as why:
            return str(why)

    assert outcome(devices) == outcome(random.sample(devices, len(devices)))


@given(machines(), st.lists(needs, max_size=8))
def test_no_device_is_given_twice(machine: tuple[list[Device], set[str]], wanted: Any) -> None:
    devices, _ = machine
    gpus = Gpus(lambda: devices)

    async def all_of_them() -> list[str]:
        given_: list[str] = []
        for number, need in enumerate(wanted):
            try:
                given_ += await gpus.take(str(number), need)
            except NoRoom:
                assert await gpus.room() == []  # closed for a while: no spinning
        return given_

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.node.gpus.PATIENCE_S", -1)
        given_ = asyncio.run(all_of_them())
    assert len(given_) == len(set(given_))
    for number in range(len(wanted)):
        gpus.give_back(str(number))
    assert gpus.held == {}


def test_a_driver_that_takes_its_time_does_not_stop_the_node() -> None:
    asked, answers = threading.Event(), threading.Event()

    def slow() -> list[Device]:
        asked.set()
        answers.wait(30)
        return [card(0), card(1, free_gib=2)]

    async def node() -> list[int]:
        room = asyncio.create_task(Gpus(slow).room())
        assert await asyncio.to_thread(asked.wait, 30)
        assert not room.done()  # the loop goes on meanwhile
        answers.set()
        return await room

    assert asyncio.run(node()) == [24 * GIB, 2 * GIB]


def test_a_refusal_says_why_for_each_device() -> None:
    with pytest.raises(NoRoom) as why:
        choose([card(0, free_gib=1.2), card(1)], {"GPU-1"}, Need(1, 6 * GIB))
    assert str(why.value) == (
        "It needs a GPU with 6.0 GiB free: GPU 0 (A10) has 1.2 of 24.0 GiB free; "
        "GPU 1 (A10) is in use by another task."
    )


def test_what_frameworks_raise_is_known() -> None:
    torch = type("OutOfMemoryError", (RuntimeError,), {})
    assert is_gpu_memory(torch("CUDA out of memory. Tried to allocate 20 MiB"))
    assert is_gpu_memory(RuntimeError("cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY"))
    assert not is_gpu_memory(MemoryError("Unable to allocate 3 GiB"))


# --- On a real node ------------------------------------------------------------------------------


@pytest.fixture
def gpus(node: Node) -> Path:
    """The file that says which GPUs the node's machine has, and what is free on them."""
    path = node.folder / "gpus.json"
    node.env["TOY_GPUS"] = str(path)
    write(path, card(0), card(1))
    return path


def write(path: Path, *devices: Device) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps([device.__dict__ for device in devices]))
    part.rename(path)


@pytest.mark.xdist_group("node-gpus")
def test_tasks_get_devices_of_their_own_and_others_see_none(node: Node, gpus: Path) -> None:
    web = node.web
    node.start("--concurrency", "3")
    plain = web.wait_end(web.add("toy.echo"))
    assert plain["result"]["data"]["env"]["CUDA_VISIBLE_DEVICES"] == ""
    need = {"gpus": 1, "gpu_ram_mib": 6 * GIB}
    both = [web.add("toy.gpu", {"wait": True}, **need) for _ in range(2)]
    for task in both:
        web.wait_event(task, "started")
    third = web.wait_end(web.add("toy.gpu", {}, **need))
    assert third["outcome"] == "returned"
    assert "in use by another task" in third["error"]
    web.wishes |= dict.fromkeys(both, "stop")
    seen = [web.wait_end(task)["result"]["data"]["devices"] for task in both]
    assert sorted(seen) == ["GPU-0", "GPU-1"]
    again = web.wait_end(web.add("toy.gpu", {}, **need))
    assert again["outcome"] == "succeeded"


@pytest.mark.xdist_group("node-gpus")
def test_memory_that_others_hold_is_seen_just_before_the_start(node: Node, gpus: Path) -> None:
    web = node.web
    write(gpus, card(0, free_gib=2))
    node.start()
    task = web.add("toy.gpu", {}, gpus=1, gpu_ram_mib=6 * GIB)
    end = web.wait_end(task)
    assert (end["outcome"], end["code"]) == ("returned", "gpu_busy")
    assert "has 2.0 of 24.0 GiB free" in end["error"]
    assert not web.of(task, "started"), "it did not die of it: it never began"
    until(lambda: web.rooms[-1]["gpus"] == [], "no GPU is offered for a while")
    write(gpus, card(0))
    until(lambda: web.rooms[-1]["gpus"] == [24 * GIB], "it is offered again")
    assert web.wait_end(web.add("toy.gpu", {}, gpus=1, gpu_ram_mib=6 * GIB))["outcome"] == (
        "succeeded"
    )


@pytest.mark.xdist_group("node-gpus")
def test_out_of_gpu_memory_is_tried_once_more_with_a_smaller_batch(node: Node, gpus: Path) -> None:
    web = node.web
    node.start()
    end = web.wait_end(web.add("toy.gpu", {"batch": 64, "holds": 32}, gpus=1))
    assert (end["outcome"], end["result"]["data"]["batch"]) == ("succeeded", 32)
    task = web.add("toy.gpu", {"batch": 64, "holds": 8}, gpus=1)
    end = web.wait_end(task)
    assert (end["outcome"], end["code"], end["fault"]) == ("failed", "gpu_memory", "work")
    assert "more memory than its GPU has" in end["error"]
    told = [notice["data"]["message"] for notice in web.of(task, "notice")]
    assert told == ["The GPU ran out of memory; it is tried once more with a smaller batch."]
