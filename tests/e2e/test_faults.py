"""Machines and processes die in the middle of a job: it ends well, no model is lost or doubled."""

import contextlib
import os
import signal
import time

import psutil
import pytest

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.chaos,
    pytest.mark.timeout(240),
    pytest.mark.xdist_group("e2e"),
]


def job_child(platform) -> psutil.Process:
    """The process that trains: the newest child of a warm parent (model servers are older).

    A fork keeps its parent's command line, so only the node's own children are warm parents.
    """
    parents = [
        process
        for process in psutil.Process(platform.process("node").pid).children()
        if "workers.node.warm" in " ".join(process.cmdline())
    ]
    forked = [child for parent in parents for child in parent.children()]
    return max(forked, key=psutil.Process.create_time)


def kill_the_child(platform):
    job_child(platform).kill()


def kill_the_node(platform):
    os.kill(platform.process("node").pid, signal.SIGKILL)


def wipe_valkey(platform):
    platform.redis().flushall()


def kill_valkey(platform):
    os.kill(platform.process("valkey").pid, signal.SIGKILL)


def restart_postgres(platform):
    os.kill(platform.process("postgres").pid, signal.SIGINT)  # fast shutdown; `up` starts it again


def kill_web(platform):
    for name in ("web-1", "web-2"):
        os.kill(platform.process(name).pid, signal.SIGKILL)


def kill_control(platform):
    for name in ("control", "beat"):
        os.kill(platform.process(name).pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "hurt",
    [
        kill_the_child,
        kill_the_node,
        wipe_valkey,
        kill_valkey,
        restart_postgres,
        kill_web,
        kill_control,
    ],
)
def test_a_job_survives(platform, person, hurt):
    job = person.train(person.dataset("iris")["id"], "species", time_budget=20)
    board = f"/api/results/job/{job}/leaderboard"
    person.until(board, lambda rows: rows["count"] >= 1, within=40)
    before = {row["key"] for row in person.leaderboard(job)}
    hurt(platform)
    ended = person.ended(job, within=120)
    assert ended["state"] == "succeeded", ended
    keys = [row["key"] for row in person.leaderboard(job)]
    assert before <= set(keys), "a model was lost"
    assert len(keys) == len(set(keys)), "a model is there twice"
    best = person.leaderboard(job)[0]
    flower = dict.fromkeys(("sepal_length", "sepal_width", "petal_length", "petal_width"), 1.5)
    answer = person.ok("POST", f"/api/results/model/{best['id']}/predict", json={"rows": [flower]})
    assert len(answer["predictions"]) == 1


def test_a_child_that_is_killed_again_and_again_ends_its_job_with_a_sentence(platform, person):
    job = person.train(person.dataset("iris")["id"], "species", time_budget=60)
    board = f"/api/results/job/{job}/leaderboard"
    person.until(board, lambda rows: rows["count"] >= 1, within=40)
    killed, deadline = 0.0, time.monotonic() + 40
    # Once may be bad luck, and another child goes on; a machine that kills each child does not.
    while person.ok("GET", f"/api/training/{job}")["state"] == "running":
        assert time.monotonic() < deadline, "the job goes on without end"
        with contextlib.suppress(ValueError, psutil.NoSuchProcess):
            child = job_child(platform)
            if child.create_time() > killed:
                killed = child.create_time()
                child.kill()
        time.sleep(0.3)
    ended = person.ended(job, within=30)
    assert ended["state"] == "succeeded", "models were stored, so there is a best one"
    assert any("killed" in notice["message"] for notice in ended["notices"]), ended["notices"]
    assert person.leaderboard(job)


def test_a_job_that_is_queued_while_no_node_lives_says_so_and_runs_later(platform, person):
    data = person.dataset("iris")["id"]
    node = platform.process("node")
    os.kill(node.pid, signal.SIGSTOP)
    try:
        time.sleep(1)
        job = person.train(data, "species", time_budget=10)
        waiting = person.ok("GET", f"/api/training/{job}")
        assert waiting["state"] == "queued"
    finally:
        os.kill(node.pid, signal.SIGCONT)
    assert person.ended(job, within=90)["state"] == "succeeded"
