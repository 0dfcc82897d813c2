"""Predictions through a real node: model servers, trust, and what a dead one costs."""

import http.client
import io
import json
import os
import signal
import socket
import statistics
import time
import zipfile
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.node.conftest import Node
from tests.node.fakeweb import ORGANIZATION, FakeWeb, until

pytestmark = pytest.mark.xdist_group("node-serving")


class Client:
    """A keep-alive HTTP connection to the node's socket."""

    def __init__(self, node: Node) -> None:
        self.connection = http.client.HTTPConnection("node")
        self.connection.sock = socket.socket(socket.AF_UNIX)
        self.connection.sock.connect(str(node.socket))

    def post(self, body: Any) -> tuple[int, dict[str, Any]]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.connection.request("POST", "/predict", content)
        answer = self.connection.getresponse()
        return answer.status, json.loads(answer.read())

    def predict(self, model: dict[str, str], x: Any, column: str = "x") -> tuple[int, Any]:
        return self.post({"model": model, "columns": [column], "rows": [[x]]})


@pytest.fixture
def client(shared_node: Node) -> Iterator[Client]:
    client = Client(shared_node)
    yield client
    client.connection.close()


def archive(**files: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, text in files.items():
            bundle.writestr(name.replace("__", "/").replace("_json", ".json"), text)
    return buffer.getvalue()


def model_of(web: FakeWeb, factor: int, organization: str = ORGANIZATION) -> dict[str, str]:
    stored = web.store(archive(model_json=json.dumps({"factor": factor})), organization)
    return {
        "artifact": stored["artifact"],
        "sha256": stored["sha256"],
        "signature": web.artifacts[stored["artifact"]][1],
        "engine": "toy",
        "organization": organization,
    }


def test_models_are_fetched_once_and_kept_loaded(shared_node: Node, client: Client) -> None:
    web = shared_node.web
    double = model_of(web, 2)
    status, answer = client.predict(double, 21)
    assert (status, answer["predictions"]) == (200, [42]), answer
    assert answer["classes"] is None
    assert answer["ms"]["model"] <= answer["ms"]["node"]
    web.artifacts.clear()
    assert client.predict(double, 1)[1]["predictions"] == [2]


def test_a_row_is_explained_beside_others(shared_node: Node, client: Client) -> None:
    ask = {"model": model_of(shared_node.web, 2), "columns": ["x"], "background": [[1], [3]]}
    status, answer = client.post({**ask, "rows": [[21]]})
    assert (status, answer["predictions"]) == (200, [42]), answer
    assert answer["explanation"] == {"base": [4.0], "values": [[38.0]]}
    for rows in ([[21], [22]], [], None):
        assert client.post({**ask, "rows": rows}) == (
            400, {"detail": "One row is explained at a time."}
        )  # fmt: skip


def test_each_organization_has_its_own_process(shared_node: Node, client: Client) -> None:
    web = shared_node.web
    ours, theirs = model_of(web, 2), model_of(web, 3, str(uuid4()))
    pids = {client.predict(model, 1)[1]["pid"] for model in (ours, theirs)}
    assert len(pids) == 2


def test_a_model_that_is_not_signed_for_the_organization_is_refused(
    shared_node: Node, client: Client
) -> None:
    model = model_of(shared_node.web, 2)
    other = model_of(shared_node.web, 3)
    assert client.predict(model, 1)[0] == 200
    for forged in (
        {**model, "organization": str(uuid4())},
        {**model, "signature": "00" * 64},
        {**model, "signature": "nonsense"},
        {**model, "artifact": other["artifact"]},
        {**model, "sha256": other["sha256"]},
    ):
        status, answer = client.predict(forged, 1)
        assert (status, answer["code"]) == (403, "not-trusted"), answer
        assert "is not loaded" in answer["detail"]


def test_bytes_that_do_not_fit_the_hash_are_refused(shared_node: Node, client: Client) -> None:
    web = shared_node.web
    model = model_of(web, 11)
    web.artifacts[model["artifact"]] = (archive(model_json='{"factor": 666}'), "")
    status, answer = client.predict(model, 1)
    assert status == 404
    assert "do not fit its hash" in answer["detail"]


def test_an_archive_that_leads_outside_is_refused(shared_node: Node, client: Client) -> None:
    web = shared_node.web
    stored = web.store(archive(**{"..__evil": "x"}))
    signature = web.artifacts[stored["artifact"]][1]
    model = {**model_of(web, 2), **stored, "signature": signature}
    status, answer = client.predict(model, 1)
    assert (status, answer["code"]) == (403, "not-trusted")
    assert "../evil" in answer["detail"]


def test_problems_are_told(shared_node: Node, client: Client) -> None:
    model = model_of(shared_node.web, 2)
    status, answer = client.predict(model, 1, column="y")
    assert status == 422
    assert answer == {"detail": "The column x is missing.", "code": "columns"} | {
        "columns": {"x": "is missing"}
    }
    status, answer = client.predict(model, {})
    assert (status, "could not predict: TypeError" in answer["detail"]) == (500, True)
    assert client.predict(model, float("nan"))[1]["predictions"] == [None]
    assert client.post(b"not json")[0] == 400
    assert client.post({"columns": [], "rows": []})[0] == 400
    assert client.predict({**model, "engine": "../../bin"}, 1)[0] == 400
    status, answer = client.predict({**model, "engine": "nothere"}, 1)
    assert (status, "not installed here" in answer["detail"]) == (503, True)
    status, answer = client.predict({**model, "engine": "sick"}, 1)
    assert (status, "libsick.so.1" in answer["detail"]) == (503, True)


def test_a_dead_model_server_is_replaced(shared_node: Node, client: Client) -> None:
    model = model_of(shared_node.web, 2)
    pid = client.predict(model, 1)[1]["pid"]
    os.kill(pid, signal.SIGKILL)
    status, answer = client.predict(model, 4)
    assert (status, answer["predictions"]) == (200, [8])
    assert answer["pid"] != pid
    assert client.predict(model, "die once")[0] == 200
    status, answer = client.predict(model, "die")
    assert (status, "whenever it is asked" in answer["detail"]) == (502, True)
    assert client.predict(model, 4)[0] == 200


def test_the_way_through_the_node_costs_little(shared_node: Node, client: Client) -> None:
    model = model_of(shared_node.web, 2)
    client.predict(model, 1)
    taken = []
    for _ in range(300):
        began = time.perf_counter()
        _, answer = client.predict(model, 1)
        taken.append((time.perf_counter() - began) * 1000 - answer["ms"]["model"])
    median = statistics.median(taken)
    print(f"overhead of the node: {median:.2f} ms, p95 {sorted(taken)[285]:.2f} ms")
    assert median < 3  # 0.6 on an idle machine


def test_health(shared_node: Node) -> None:
    connection = Client(shared_node).connection
    connection.request("GET", "/health")
    answer = connection.getresponse()
    assert answer.status == 200
    assert json.loads(answer.read())["status"] == "ok"
    assert oct(shared_node.socket.stat().st_mode & 0o777) == "0o600"


def test_only_what_is_used_is_kept(shared_node: Node, client: Client) -> None:
    """A restarted node trusts nothing that it finds unpacked."""
    web = shared_node.web
    model = model_of(web, 7)
    assert client.predict(model, 1)[1]["predictions"] == [7]
    assert shared_node.stop() == 0
    (unpacked,) = (shared_node.folder / "node" / "models").glob(f"{model['artifact']}*")
    (unpacked / "model.json").write_text('{"factor": 666}')
    kept = shared_node.folder / "node" / "cache" / model["sha256"]
    kept.chmod(0o600)
    kept.write_bytes(archive(model_json='{"factor": 666}'))
    shared_node.start()
    again = Client(shared_node)
    until(lambda: again.predict(model, 1)[0] == 200, "it answers")
    assert again.predict(model, 1)[1]["predictions"] == [7]
