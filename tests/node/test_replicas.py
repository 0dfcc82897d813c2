"""What a deployment wants on a node comes to run there, is watched, and ends when it should."""

import os
import signal
import threading
import time
from typing import Any

import pytest

from tests.node.conftest import Node
from tests.node.fakeweb import FakeWeb, until
from tests.node.test_serving import Client, archive, model_of

pytestmark = pytest.mark.xdist_group("node-replicas")


def ask(client: Client, replica: str, model: dict[str, str], x: Any) -> tuple[int, Any]:
    return client.post({"model": model, "replica": replica, "columns": ["x"], "rows": [[x]]})


def running(web: FakeWeb, *replicas: str) -> None:
    for one in replicas:
        until(lambda one=one: web.state_of(one) == "running", f"{one} runs", 30)


def stop(web: FakeWeb, replica: str, grace_s: float = 5.0) -> None:
    web.replicas[replica] |= {"wish": "stop", "grace_s": grace_s}


def gone(web: FakeWeb, replica: str) -> None:
    until(lambda: web.state_of(replica) == "gone", "it is gone")
    del web.replicas[replica]
    until(lambda: web.state_of(replica) == "", "it is forgotten")


def test_a_replica_runs_answers_by_itself_and_ends_when_told(shared_node: Node) -> None:
    web, client = shared_node.web, Client(shared_node)
    double, triple = model_of(web, 2), model_of(web, 3)
    first, second = web.deploy(double), web.deploy(triple)
    running(web, first, second)
    assert ask(client, first, double, 21)[1]["predictions"] == [42]
    assert ask(client, second, triple, 5)[1]["predictions"] == [15]
    assert ask(client, first, triple, 5)[0] == 410  # each has its own model and no other
    stop(web, first)
    gone(web, first)
    assert ask(client, first, double, 1)[0] == 410
    assert ask(client, second, triple, 1)[0] == 200
    stop(web, second)
    gone(web, second)


def test_one_that_was_killed_is_reported_with_the_reason_and_not_begun_again(
    shared_node: Node,
) -> None:
    web, client = shared_node.web, Client(shared_node)
    double = model_of(web, 2)
    replica = web.deploy(double)
    running(web, replica)
    os.kill(ask(client, replica, double, 1)[1]["pid"], signal.SIGKILL)
    until(lambda: web.state_of(replica) == "failed", "it failed")
    assert "signal 9" in web.why_of(replica)
    time.sleep(1)
    assert web.state_of(replica) == "failed"
    del web.replicas[replica]
    until(lambda: web.state_of(replica) == "", "it is forgotten")


def test_what_can_not_be_loaded_says_why(shared_node: Node) -> None:
    web = shared_node.web
    stored = web.store(archive(model_json="this is no model"))
    bad = {**model_of(web, 2), "artifact": stored["artifact"], "sha256": stored["sha256"]}
    bad["signature"] = web.artifacts[stored["artifact"]][1]
    forged = {**model_of(web, 2), "signature": "00" * 64}
    missing = {**model_of(web, 2), "engine": "absent"}
    for model, word in ((bad, "cannot be loaded"), (forged, "sign"), (missing, "not installed")):
        replica = web.deploy(model)
        until(lambda r=replica: web.state_of(r) == "failed", f"{word}; {shared_node.log}", 30)
        assert word in web.why_of(replica), web.why_of(replica)
        del web.replicas[replica]


def test_whoever_was_asked_before_the_stop_gets_an_answer(shared_node: Node) -> None:
    web = shared_node.web
    slow = model_of(web, 2)
    replica = web.deploy(slow)
    running(web, replica)
    answers: list[tuple[int, Any]] = []
    client = Client(shared_node)
    asking = threading.Thread(target=lambda: answers.append(ask(client, replica, slow, "sleep")))
    asking.start()
    time.sleep(0.2)
    stop(web, replica)
    asking.join(10)
    assert answers, shared_node.log
    assert answers[0][0] == 200
    gone(web, replica)


def test_a_node_that_was_killed_takes_its_replicas_along_and_begins_them_anew(node: Node) -> None:
    web = node.web
    double = model_of(web, 2)
    replica = web.deploy(double)
    node.start()
    running(web, replica)
    pid = ask(Client(node), replica, double, 1)[1]["pid"]
    node.kill()
    until(lambda: not os.path.exists(f"/proc/{pid}"), "its process is gone")
    node.start()
    running(web, replica)
    assert ask(Client(node), replica, double, 4)[1]["predictions"] == [8]
