"""A model server predicts what has come meanwhile as one, and nobody notices but by the time."""

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from workers.node import handlers, model_server
from workers.node.channel import WorkError
from workers.node.model_server import MOST_ROWS, batches


class Predictor:
    """Doubles numbers. Keeps how many rows each call had; waits until it may go on."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.busy, self.may_go_on = threading.Event(), threading.Event()

    def predict(self, columns: list[str], rows: list[list[Any]]) -> dict[str, Any]:
        self.calls.append(len(rows))
        self.busy.set()
        assert self.may_go_on.wait(20)
        if any(row[0] == "bad" for row in rows):
            raise WorkError("A row is bad.", code="bad_rows")
        found: list[Any] = [row[0] * 2 for row in rows]
        return {"predictions": found, "probabilities": [[one] for one in found], "classes": ["a"]}

    def explain(self, columns: Any, row: Any, background: Any) -> dict[str, Any]:
        return {"predictions": [row[0]], "explanation": len(background)}


class Server:
    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.ours, theirs = socket.socketpair()
        self.ours.settimeout(20)
        self.answers = self.ours.makefile("rb")
        self.thread = threading.Thread(target=model_server.main, args=[theirs], daemon=True)
        self.thread.start()

    def ask(self, id: int, *values: Any, **more: Any) -> dict[str, Any]:
        asked = {"id": id, "model": "m", "folder": "f", "columns": ["x"]}
        return {**asked, "rows": [[value] for value in values], **more}

    def send(self, *requests: dict[str, Any]) -> None:
        self.ours.sendall(b"".join(json.dumps(one).encode() + b"\n" for one in requests))

    def hear(self, count: int) -> dict[int, dict[str, Any]]:
        found = [json.loads(self.answers.readline()) for _ in range(count)]
        return {one["id"]: one for one in found}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    predictor = Predictor()
    monkeypatch.setattr(handlers, "load", lambda _: lambda folder: predictor)
    made = Server(predictor)
    yield made
    predictor.may_go_on.set()
    made.ours.shutdown(socket.SHUT_WR)
    made.thread.join(20)
    assert not made.thread.is_alive()


def begin(server: Server) -> None:
    """Have it at work on one row, so that what is sent now waits."""
    server.send(server.ask(0, 1))
    assert server.predictor.busy.wait(20)


def test_what_waits_for_the_same_model_is_predicted_as_one(server: Server) -> None:
    begin(server)
    server.send(*(server.ask(n, n, n + 0.5) for n in range(1, 9)))
    server.predictor.may_go_on.set()
    heard = server.hear(9)
    assert heard[0]["answer"]["predictions"] == [2]
    for n in range(1, 9):
        answer = heard[n]["answer"]
        assert answer["predictions"] == [2 * n, 2 * n + 1]
        assert answer["probabilities"] == [[2 * n], [2 * n + 1]]
        assert answer["classes"] == ["a"]
    assert server.predictor.calls == [1, 16]


def test_one_with_bad_rows_spoils_no_other(server: Server) -> None:
    begin(server)
    server.send(server.ask(1, 5), server.ask(2, "bad"), server.ask(3, 6))
    server.predictor.may_go_on.set()
    heard = server.hear(4)
    assert (heard[1]["answer"]["predictions"], heard[3]["answer"]["predictions"]) == ([10], [12])
    assert (heard[2]["status"], heard[2]["code"]) == (422, "bad_rows")


def test_what_is_not_the_same_is_answered_by_itself(server: Server) -> None:
    begin(server)
    server.send(
        server.ask(1, 5),
        server.ask(2, 6, background=[[0], [1]]),
        server.ask(3, 7, columns=["y"]),
        {"id": 4, "model": "m", "folder": "f", "columns": None},
        server.ask(5, 8, rows=7),
        server.ask(6, 9),
    )
    server.predictor.may_go_on.set()
    heard = server.hear(7)
    assert heard[2]["answer"] == {"predictions": [6], "explanation": 2}
    assert heard[4]["answer"] == {}
    assert heard[5]["status"] == 500
    assert [heard[n]["answer"]["predictions"] for n in (1, 3, 6)] == [[10], [14], [18]]


def test_a_batch_has_so_many_rows_at_most() -> None:
    def ask(rows: int) -> dict[str, Any]:
        return {"model": "m", "folder": "f", "columns": ["x"], "rows": [[1]] * rows}

    sizes = [MOST_ROWS - 1, 1, 1, MOST_ROWS * 3, 2]
    found = [[len(one["rows"]) for one in batch] for batch in batches([ask(n) for n in sizes])]
    assert found == [[MOST_ROWS - 1, 1], [1], [MOST_ROWS * 3], [2]]
    assert batches([]) == []
