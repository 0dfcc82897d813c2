"""Processes that are killed and a web side that goes away, with real processes throughout."""

import os
import signal
import time

import psutil
import pytest

from tests.node.conftest import Node
from tests.node.fakeweb import until
from tests.node.test_tasks import alive
from workers.node import procs
from workers.node.settings import read

pytestmark = pytest.mark.xdist_group("node-faults")


def test_results_wait_for_the_web_side_and_running_children_do_not_mind(node: Node) -> None:
    web = node.web
    node.start()
    task = web.add("toy.train", {"keys": ["a", "b", "c"], "each_s": 0.4})
    pid = web.wait_event(task, "candidate")["data"] and web.of(task, "started")[0]["data"]["pid"]
    web.down()
    until(lambda: not alive([pid]), "the child finishes by itself while the web side is away")
    time.sleep(0.5)
    assert web.ends[task] == []
    web.up()
    assert web.wait_end(task)["outcome"] == "succeeded"
    assert [event["key"] for event in web.of(task, "candidate")] == ["a", "b", "c"]


def test_what_a_killed_supervisor_had_is_delivered_by_the_next(node: Node) -> None:
    """Killed while the web side is away: finished work and finished models are still delivered."""
    web = node.web
    node.start("--concurrency", "2")
    whole = web.add("toy.train", {"keys": ["a"], "each_s": 0.5})
    cut = web.add("toy.train", {"keys": ["b", "c"], "each_s": 0.5, "then": "hang"})
    pids = [web.wait_event(task, "started")["data"]["pid"] for task in (whole, cut)]
    web.down()
    spool = node.folder / "node" / "spool"
    until(lambda: len(list(spool.glob("*/end.json"))) == 1, "the first has its outcome")
    model_c = '"key": "c"'
    until(
        lambda: any(model_c in path.read_text() for path in spool.glob("*/outbox.jsonl")),
        "the second model of the other is there",
    )
    node.kill()
    until(lambda: not alive(pids), "no child outlives its supervisor", 5)
    node.start(wait=False)
    time.sleep(0.5)
    web.up()
    assert web.wait_end(whole)["outcome"] == "succeeded"
    end = web.wait_end(cut)
    assert (end["outcome"], end["fault"], end["code"]) == ("failed", "platform", "node_restarted")
    assert [event["key"] for event in web.of(cut, "candidate")] == ["b", "c"]
    until(lambda: not list(spool.iterdir()), "nothing is left to say")


def test_what_is_not_ours_any_more_is_not_delivered(node: Node) -> None:
    web = node.web
    node.start()
    task = web.add("toy.train", {"keys": ["a"], "each_s": 0.5})
    web.wait_event(task, "started")
    web.down()
    spool = node.folder / "node" / "spool"
    until(lambda: len(list(spool.glob("*/end.json"))) == 1, "it has its outcome")
    web.take_away(task)
    web.up()
    until(lambda: not list(spool.iterdir()), "the late result is dropped")
    assert web.ends[task] == []
    assert web.wait_end(web.add("toy.echo"))["outcome"] == "succeeded"


def test_a_killed_supervisor_leaves_nothing_that_its_successor_does_not_clear(node: Node) -> None:
    web = node.web
    node.start()
    task = web.add("toy.stubborn")
    pids = web.wait_event(task, "notice")["data"]["pids"]
    env = {"FLOWML_URL": web.url, "FLOWML_NODE_DIR": str(node.folder / "node")}
    mark = read(env, 2).mark
    # The warm parent is frozen, so that it cannot clear up when its supervisor dies.
    warm = [p for p in psutil.process_iter(["cmdline"]) if _is_warm(p, node)]
    for process in warm:
        process.suspend()
    node.kill()
    assert procs.marked(mark)
    node.start()
    assert alive(pids) == []
    assert "killed" in node.log
    assert web.wait_end(task)["code"] == "node_restarted"


def test_a_killed_warm_parent_costs_no_task(node: Node) -> None:
    web = node.web
    node.start()
    task = web.add("toy.train", {"keys": ["a", "b"], "each_s": 0.3, "then": "until_stop"})
    web.wait_event(task, "candidate", 2)
    for process in psutil.process_iter(["cmdline"]):
        if _is_warm(process, node, "toy"):
            process.kill()
    until(lambda: web.of(task, "notice"), "a notice that it goes on")
    web.wishes[task] = "stop"
    end = web.wait_end(task)
    assert end["outcome"] == "succeeded", end
    assert [event["key"] for event in web.of(task, "candidate")] == ["a", "b"]
    assert web.wait_end(web.add("toy.echo"))["outcome"] == "succeeded"


def test_sigterm_hands_back_what_runs(node: Node) -> None:
    web = node.web
    node.start()
    task = web.add("toy.stubborn")
    pids = web.wait_event(task, "notice")["data"]["pids"]
    began = time.monotonic()
    assert node.stop() == 0
    assert time.monotonic() - began < 5
    assert web.ends[task][-1]["outcome"] == "returned"
    assert alive(pids) == []
    assert not node.socket.exists()


def test_sigterm_is_quick_while_the_web_side_is_away(node: Node) -> None:
    web = node.web
    node.start()
    task = web.add("toy.train", {"keys": ["a"], "then": "hang"})
    web.wait_event(task, "candidate")
    web.down()
    began = time.monotonic()
    assert node.stop() == 0
    assert time.monotonic() - began < 6
    web.up()
    node.start()
    assert web.wait_end(task)["outcome"] == "returned"


def test_a_frozen_supervisor_writes_nothing_late(node: Node) -> None:
    web = node.web
    node.start()
    task = web.add("toy.train", {"keys": ["a"], "each_s": 0.3})
    web.wait_event(task, "started")
    assert node.process is not None
    node.process.send_signal(signal.SIGSTOP)
    web.take_away(task)
    time.sleep(0.6)
    node.process.send_signal(signal.SIGCONT)
    until(lambda: not list((node.folder / "node" / "spool").iterdir()), "it drops the attempt")
    assert web.ends[task] == []


def test_a_claim_that_cannot_be_noted_down_is_handed_back(node: Node) -> None:
    web = node.web
    node.start()
    spool = node.folder / "node" / "spool"
    spool.rmdir()
    spool.touch()  # as good as a disk on which nothing can be written
    end = web.wait_end(web.add("toy.echo"))
    assert end["outcome"] == "returned"
    assert "cannot write to its disk" in end["error"]
    spool.unlink()
    spool.mkdir()
    assert web.wait_end(web.add("toy.echo"))["outcome"] == "succeeded"


def test_an_engine_that_cannot_run_is_not_offered(node: Node) -> None:
    """It takes its node out of the engine's queues, not out of the fleet."""
    web = node.web
    node.start("--engines", "toy,sick")
    offered = [["sick", "toy"], ["toy"]]
    until(
        lambda: [r["capabilities"]["engines"] for r in web.registrations] == offered,
        f"it registers again without the engine: {web.registrations}",
    )
    assert "libsick.so.1 is not there" in node.log
    assert web.wait_end(web.add("toy.echo"))["outcome"] == "succeeded"


def test_two_nodes_do_not_share_a_folder(node: Node) -> None:
    node.start()
    first = node.process
    assert first is not None
    try:
        node.start(wait=False)
        assert node.process is not None
        assert node.process.wait(10) == 3
        assert f"Another node (process {first.pid}) uses the folder" in node.log
    finally:
        node.process = first


def test_a_wrong_join_token_is_told(node: Node) -> None:
    node.start("--token", "wrong", wait=False)
    until(lambda: "does not let this node in: 401: wrong join token" in node.log, "it says so")
    assert node.stop() == 0


def test_a_missing_address_is_told(node: Node) -> None:
    node.env["FLOWML_URL"] = ""
    node.start(wait=False)
    assert node.process is not None
    assert node.process.wait(10) == 2
    assert "Tell the server's address" in node.log


def _is_warm(process: psutil.Process, node: Node, engine: str | None = None) -> bool:
    line = process.info["cmdline"] or []
    if "workers.node.warm" not in line or process.pid == os.getpid():
        return False
    try:
        mine = str(node.folder) in " ".join(process.environ().values()) or (
            node.process is not None and process.ppid() == node.process.pid
        )
    except psutil.Error:
        return False
    return mine and (engine is None or line[-1] == engine)
