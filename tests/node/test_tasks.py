"""Tasks done by a real node: what the web side hears of them."""

import os
import time
from pathlib import Path

import pytest

from tests.node.conftest import Node
from tests.node.fakeweb import until
from workers.node import procs

pytestmark = pytest.mark.xdist_group("node-tasks")


def alive(pids: list[int]) -> list[int]:
    rows = {pid: procs.process(pid) for pid in pids}
    return [pid for pid, row in rows.items() if row is not None and not row.is_dead]


@pytest.mark.parametrize("kind", ["toy.echo", "toy.bare"])
def test_a_task_is_done_in_a_clean_process_of_its_own(shared_node: Node, kind: str) -> None:
    web = shared_node.web
    task = web.add(kind, {"n": 1}, inputs={"data": b"some rows"})
    end = web.wait_end(task)
    assert end["outcome"] == "succeeded", end
    data = end["result"]["data"]
    assert data["payload"] == {"n": 1}
    assert data["inputs"] == {"data": "some rows"}
    assert data["sid"] == data["pid"] == web.of(task, "started")[0]["data"]["pid"]
    whole = " ".join(f"{name}={value}" for name, value in data["env"].items())
    for secret in ("TOKEN", "SECRET", "PASSWORD", "://", "hush"):
        assert secret not in whole, "it may know no secret and no address"
    assert data["env"]["HOME"] == data["cwd"]
    assert web.artifacts[end["result"]["files"]["answer"]][0] == b"42"
    assert "hello from the child" in web.log(task)
    assert web.of(task, "progress")[-1]["data"]["fraction"] == 0.5
    until(lambda: not Path(data["cwd"]).exists(), "its work folder is removed")
    assert end["usage"]["wall_s"] > 0


def test_a_task_starts_within_milliseconds(shared_node: Node) -> None:
    web = shared_node.web
    taken = []
    for _ in range(5):
        task = web.add("toy.echo")
        web.wait_end(task)
        started = web.of(task, "started")[0]["heard_at"]
        taken.append(started - web.tasks[task]["claimed_at"])
    assert sorted(taken)[2] < 0.1, taken


def test_candidates_arrive_while_the_work_goes_on(shared_node: Node) -> None:
    web = shared_node.web
    task = web.add("toy.train", {"keys": ["a", "b"], "then": "until_stop"})
    web.wait_event(task, "candidate", 2)
    assert not web.ends[task]
    web.wishes[task] = "stop"
    end = web.wait_end(task)
    assert (end["outcome"], end["result"]["data"]["stopped"]) == ("succeeded", "asked")
    found = {e["key"]: web.artifacts[e["files"]["artifact"]][0] for e in web.of(task, "candidate")}
    assert found == {"a": b"model a", "b": b"model b"}


def test_who_does_not_stop_is_stopped_and_what_was_finished_counts(shared_node: Node) -> None:
    web = shared_node.web
    task = web.add("toy.train", {"keys": ["a"], "then": "hang"})
    web.wait_event(task, "candidate")
    web.wishes[task] = "stop"
    end = web.wait_end(task)
    assert (end["outcome"], end["result"]["data"]["stopped"]) == ("succeeded", "asked")


def test_a_later_attempt_is_told_what_is_done(shared_node: Node) -> None:
    web = shared_node.web
    task = web.add("toy.train", {"keys": ["a", "b"]}, done=["a"])
    end = web.wait_end(task)
    assert end["result"]["data"]["done_before"] == ["a"]
    assert [event["key"] for event in web.of(task, "candidate")] == ["b"]


def test_nothing_is_lost_when_the_child_dies_right_after_speaking(shared_node: Node) -> None:
    """Killed from outside, it goes on in a second child that knows what the first had finished."""
    web = shared_node.web
    task = web.add("toy.train", {"keys": ["a", "b", "c"], "die_after": "b"})
    end = web.wait_end(task)
    assert end["outcome"] == "succeeded", end
    assert end["result"]["data"]["done_before"] == ["a", "b"]
    assert [event["key"] for event in web.of(task, "candidate")] == ["a", "b", "c"]
    assert any("killed from outside" in e["data"]["message"] for e in web.of(task, "notice"))


def test_cancel_empties_the_whole_process_tree(shared_node: Node) -> None:
    web = shared_node.web
    task = web.add("toy.stubborn")
    pids = web.wait_event(task, "notice")["data"]["pids"]
    assert len(set(pids)) >= 5
    assert len(alive(pids)) >= 4  # one of them left an orphan behind and ended
    web.wishes[task] = "cancel"
    began = time.monotonic()
    end = web.wait_end(task)
    assert end["outcome"] == "cancelled"
    assert alive(pids) == []
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("how", ["pieces", "processes", "forks", "abort"])
def test_running_out_of_memory_is_told_in_a_sentence(shared_node: Node, how: str) -> None:
    web = shared_node.web
    limits = {"time_s": 60, "ram_mib": 256}
    task = web.add("toy.hungry", {"how": how}, limits=limits)
    end = web.wait_end(task)
    assert (end["outcome"], end["code"], end["fault"]) == ("failed", "memory", "work"), end
    assert "more than 0.2 GiB" in end["error"]


def test_who_prints_without_end_is_cut_but_for_its_last_words(shared_node: Node) -> None:
    web = shared_node.web
    task = web.add("toy.chatty", {"lines": 20_000})
    assert web.wait_end(task)["outcome"] == "succeeded"
    lines = web.log(task).splitlines()
    assert lines[:2] == ["line 0", "line 1"]
    assert lines[-1] == "the last word"
    assert any("lines left out here: too many" in line for line in lines)
    assert len(lines) < 15_000


def test_the_time_limit_is_held_from_outside(shared_node: Node) -> None:
    web = shared_node.web
    limits = {"time_s": 0.6, "ram_mib": 1024}
    empty = web.add("toy.train", {"keys": [], "then": "hang"}, limits=limits)
    end = web.wait_end(empty)
    assert (end["outcome"], end["code"], end["fault"]) == ("failed", "time_limit", "work")
    assert "0.6 s" in end["error"]
    some = web.add("toy.train", {"keys": ["a"], "then": "hang"}, limits=limits)
    end = web.wait_end(some)
    assert end["outcome"] == "succeeded"
    assert end["result"]["data"]["stopped"] == "time limit"


@pytest.mark.parametrize(
    ("how", "code", "fault", "words"),
    [
        ("work", "no_column", "work", "The column colour is not there."),
        ("bug", "crash", "work", "The engine stopped with an error: KeyError: 'oops'"),
        ("exit", "crash", "work", "SystemExit"),
        ("silent", "crash", "work", "ended without a result"),
        ("segv", "crash", "work", "segmentation fault"),
        ("killed", "killed", "work", "killed by the operating system"),
        ("file", "crash", "work", "not in the work folder"),
    ],
)
def test_failures_are_told_in_words(
    shared_node: Node, how: str, code: str, fault: str, words: str
) -> None:
    web = shared_node.web
    task = web.add("toy.fail", {"how": how})
    end = web.wait_end(task)
    assert (end["outcome"], end["code"], end["fault"]) == ("failed", code, fault), end
    assert words in end["error"]
    if how == "work":
        assert end["result"]["data"]["column"] == "colour"
    if how == "bug":
        assert "Traceback" in web.log(task)


def test_what_this_node_cannot_do_is_the_platforms_fault(shared_node: Node) -> None:
    web = shared_node.web
    unknown = web.wait_end(web.add("toy.unheard"))
    missing = web.wait_end(web.add("toy.missing"))
    elsewhere = web.wait_end(web.add("toy.train", {"keys": []}, engine="nothere"))
    sick = web.wait_end(web.add("toy.train", {"keys": []}, engine="sick"))
    assert [end["fault"] for end in (unknown, missing, elsewhere, sick)] == ["platform"] * 4
    assert "libsick.so.1 is not there" in sick["error"]


def test_an_attempt_that_is_lost_is_dropped(shared_node: Node) -> None:
    web = shared_node.web
    task = web.add("toy.train", {"keys": [str(n) for n in range(200)], "each_s": 0.05})
    pid = web.wait_event(task, "started")["data"]["pid"]
    web.take_away(task)
    until(lambda: not alive([pid]), "its child is killed")
    stored = len(web.of(task, "candidate"))
    until(lambda: not any(r["task"] == task for r in web.heartbeats[-1]["running"]), "forgotten")
    assert len(web.of(task, "candidate")) == stored
    assert not web.ends[task]
    spool = shared_node.folder / "node" / "spool"
    until(lambda: not list(spool.iterdir()), "its spool is emptied")


def test_a_refused_candidate_becomes_a_notice(shared_node: Node) -> None:
    web = shared_node.web
    web.refuse_candidates = True
    try:
        task = web.add("toy.train", {"keys": ["a"]})
        end = web.wait_end(task)
    finally:
        web.refuse_candidates = False
    assert end["outcome"] == "succeeded"
    assert "no room for models" in web.of(task, "notice")[0]["data"]["message"]


def test_light_work_goes_past_heavy_work(shared_node: Node) -> None:
    web = shared_node.web
    heavy = web.add("toy.train", {"keys": ["a"], "then": "until_stop"})
    web.wait_event(heavy, "candidate")
    later = web.add("toy.train", {"keys": []})
    assert web.wait_end(web.add("toy.echo"))["outcome"] == "succeeded"
    assert web.tasks[later]["state"] == "queued"
    web.wishes[heavy] = "stop"
    assert web.wait_end(later)["outcome"] == "succeeded"


def test_ingest_has_no_network(shared_node: Node) -> None:
    web = shared_node.web
    task = web.add("toy.network")
    data = web.wait_end(task)["result"]["data"]
    assert data["uid"] == os.getuid()
    if "does not allow work without network" not in web.log(task):
        assert data["interfaces"] in ([], ["lo"])


def test_a_node_that_is_not_known_any_more_registers_again(shared_node: Node) -> None:
    web = shared_node.web
    before = len(web.registrations)
    web.tokens = set()
    assert web.wait_end(web.add("toy.echo"))["outcome"] == "succeeded"
    assert len(web.registrations) == before + 1


def test_what_is_told_in_confidence_is_on_no_disk_and_in_nothing_that_is_said(
    shared_node: Node,
) -> None:
    web, secret = shared_node.web, "correct-horse-battery"
    confidential = {"secrets": {"password": secret}, "host": "warehouse"}
    task = web.add("toy.careless", {"wait": True}, confidential=confidential)
    notice = web.wait_event(task, "notice")
    assert notice["data"] == {
        "message": "It is [secret].", "nested": [{"deep": "[secret]"}], "host": "warehouse",
    }  # fmt: skip
    files = [path for path in shared_node.folder.rglob("*") if path.is_file()]
    assert any(path.name == "claim.json" for path in files)
    assert any(path.name == "task.json" for path in files)
    for path in files:
        if "venvs" not in path.relative_to(shared_node.folder).parts:
            assert secret.encode() not in path.read_bytes(), path
    web.wishes[task] = "stop"
    end = web.wait_end(task)
    assert end["result"]["data"]["length"] == len(secret)  # it did have it
    assert secret not in str(end)
    assert secret not in str(web.events[task])
    assert "connecting with [secret]" in web.log(task)
    refused = web.add("toy.careless", {"fail": True}, confidential=confidential)
    end = web.wait_end(refused)
    assert end["error"] == "[secret] was refused."
    assert secret not in str(end)
    assert secret not in shared_node.log
