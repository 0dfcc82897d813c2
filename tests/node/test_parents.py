"""Warm parents and their children, without a supervisor around them."""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from workers.node import procs
from workers.node.parents import EngineBroken, Parents
from workers.node.settings import Settings, read

pytestmark = pytest.mark.xdist_group("node-parents")
CHILD = "workers.node.child:main"


@pytest.fixture
def ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("FLOWML_TEST_HANDLERS", "tests.node.toy")
    venvs = tmp_path / "venvs"
    venvs.mkdir()
    for name in ("toy", "sick"):
        (venvs / name).symlink_to(sys.prefix)
    env = {"FLOWML_URL": "http://x", "FLOWML_NODE_NAME": "n", "FLOWML_VENVS": str(venvs)}
    return read({**env, "FLOWML_VAR": str(tmp_path)}, 2)


def play(settings: Settings, scene: Callable[[Parents], Awaitable[None]]) -> None:
    async def whole() -> None:
        parents = Parents(settings)
        try:
            await scene(parents)
        finally:
            await parents.stop()
        assert procs.marked(settings.mark) == []

    asyncio.run(whole())


def folder_for(settings: Settings, kind: str) -> Path:
    folder = settings.folder / "work"
    folder.mkdir(parents=True, exist_ok=True)
    task = {"kind": kind, "engine": "toy", "payload": {"keys": [], "then": "hang"}, "inputs": {}}
    (folder / "task.json").write_text(json.dumps({**task, "done": []}))
    return folder


def test_a_fork_takes_milliseconds(ours: Settings) -> None:
    async def scene(parents: Parents) -> None:
        folder = folder_for(ours, "toy.train")
        await parents.warm("toy")
        taken = []
        for _ in range(10):
            began = time.perf_counter()
            child = await parents.fork("toy", CHILD, folder, env={}, threads=1)
            taken.append((time.perf_counter() - began) * 1000)
            await child.kill()
            assert (await child.exited).signal == 9
        assert sorted(taken)[5] < 50, taken  # 3 on an idle machine

    play(ours, scene)


def test_a_fork_that_nobody_waits_for_any_more_is_ended(ours: Settings) -> None:
    async def scene(parents: Parents) -> None:
        folder = folder_for(ours, "toy.train")
        parent = await parents.warm("toy")
        asking = asyncio.create_task(parents.fork("toy", CHILD, folder, env={}, threads=1))
        await asyncio.sleep(0)  # it has asked
        assert parent.is_forking
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        other = await parents.fork("toy", CHILD, folder, env={}, threads=1)
        assert [child.pid for child in psutil.Process(parent.pid).children()] == [other.pid]

    play(ours, scene)


def test_several_who_need_an_engine_share_one_start(ours: Settings) -> None:
    async def scene(parents: Parents) -> None:
        found = await asyncio.gather(*(parents.warm("toy") for _ in range(5)))
        assert len({parent.pid for parent in found}) == 1

    play(ours, scene)


def test_a_parent_that_died_or_grew_is_replaced(
    ours: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(parents: Parents) -> None:
        first = await parents.warm("toy")
        psutil.Process(first.pid).kill()
        await asyncio.wait_for(first.gone.wait(), 5)
        second = await parents.warm("toy")
        assert second.pid != first.pid

        folder = folder_for(ours, "toy.train")
        child = await parents.fork("toy", CHILD, folder, env={}, threads=1)
        with monkeypatch.context() as patch:
            patch.setattr("workers.node.parents.GROWTH_MIB", -1e6)
            await parents.tend()
        third = await parents.warm("toy")
        assert third.pid != second.pid
        assert not child.exited.done()  # its child goes on, and the old parent until then
        await child.kill()
        await child.exited
        await parents.tend()
        assert second.gone.is_set()

    play(ours, scene)


def test_engines_start_when_needed_and_those_that_nobody_uses_give_their_memory_back(
    ours: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ours.venvs / "other").symlink_to(sys.prefix)
    monkeypatch.setattr("workers.node.parents.IDLE_S", 0.0)

    async def scene(parents: Parents) -> None:
        assert parents.pids() == set()
        folder = folder_for(ours, "toy.train")
        used = await parents.warm("toy")
        child = await parents.fork("toy", CHILD, folder, env={}, threads=1)
        newer = await parents.warm("")
        await parents.tend()
        assert not used.gone.is_set()
        await child.kill()
        await child.exited
        last = await parents.warm("other")
        await parents.tend()
        assert used.gone.is_set()
        assert not newer.gone.is_set(), "the node's own parent stays"
        assert not last.gone.is_set(), "so does the engine that was used last"
        assert (await parents.warm("toy")).pid != used.pid

    play(ours, scene)


@pytest.mark.parametrize(
    ("engine", "why"), [("sick", "libsick.so.1 is not there"), ("nothere", "cannot be started")]
)
def test_a_broken_engine_says_why(ours: Settings, engine: str, why: str) -> None:
    async def scene(parents: Parents) -> None:
        with pytest.raises(EngineBroken, match=why):
            await parents.warm(engine)

    play(ours, scene)
