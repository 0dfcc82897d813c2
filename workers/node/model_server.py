"""Keeps models of one organization loaded and answers predictions.

Requests that came while it was at work and ask the same model are predicted as one: a call of a
model takes about as long for 30 rows as for one. Nobody is made to wait for others to come, so a
single request is answered as quickly as ever.

Forked by an engine's warm parent. Speaks JSON lines over its channel: {"id", "model", "folder",
"columns", "rows"} in (with "background", rows to compare with, one row is explained as well),
{"id", "answer": ..., "ms"} or {"id", "error", "status"} out. One process serves one organization,
so that no tenant's code or data meets another's.
"""

import json
import math
import os
import socket
import sys
import time
import traceback
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from workers.node import handlers, procs
from workers.node.channel import WorkError, plain

RECEIVED = 1024 * 1024
MOST_ROWS = 256  # of requests that are predicted as one
BY_ROW = ("predictions", "probabilities")


class Shelf:
    """Loaded predictors, those used last at the end; old ones go when memory runs short."""

    def __init__(self, ram_mib: float, most: int) -> None:
        self._ram_mib = ram_mib
        self._most = most
        self._load = handlers.load(handlers.predictor_target())
        self._models: OrderedDict[str, Any] = OrderedDict()

    def get(self, name: str, folder: str) -> Any:
        """The predictor of this name, loaded from its unpacked folder unless it is at hand."""
        model = self._models.get(name)
        if model is None:
            model = self._load(folder)
            self._models[name] = model
            while len(self._models) > self._most:
                self._models.popitem(last=False)
        self._models.move_to_end(name)
        return model

    def holds(self, name: str) -> bool:
        """Whether this model is loaded."""
        return name in self._models

    def is_over(self) -> bool:
        """Whether this process takes more memory than it may, and a fresh one would take less.

        Dropping models would not do: the allocator seldom gives their pages back.
        """
        return len(self._models) > 1 and procs.memory_mib([os.getpid()]) > self._ram_mib


def main(sock: socket.socket) -> int:
    """Answer until the supervisor hangs up, or until a fresh process would do better."""
    shelf = Shelf(
        float(os.environ.get("FLOWML_MODEL_SERVER_MIB", "2048")),
        int(os.environ.get("FLOWML_MODEL_SERVER_MODELS", "32")),
    )
    sock.setblocking(True)
    buffer = bytearray()
    while requests := _waiting(sock, buffer):
        for batch in batches(requests):
            is_new = not shelf.holds(batch[0]["model"])
            answers = _answer_all(shelf, batch)
            if is_new and shelf.is_over():
                answers[-1]["last"] = True
            sock.sendall(b"".join(map(_encode, answers)))
            if answers[-1].get("last"):
                return 0
    return 0


def _waiting(sock: socket.socket, buffer: bytearray) -> list[dict[str, Any]]:
    """All requests that have come, at least one; [] once nobody will ask any more."""
    while (end := buffer.rfind(b"\n")) < 0:
        data = sock.recv(RECEIVED)
        if not data:
            return []
        buffer += data
    try:
        while data := sock.recv(RECEIVED, socket.MSG_DONTWAIT):
            buffer += data
    except BlockingIOError:
        pass
    end = buffer.rfind(b"\n")
    lines = bytes(buffer[:end]).split(b"\n")
    del buffer[: end + 1]
    return [json.loads(line) for line in lines]


def batches(requests: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Requests in their order, together where they follow each other and ask for the same."""
    found: list[list[dict[str, Any]]] = []
    key, rows = None, 0
    for request in requests:
        its = _key(request)
        count = len(request["rows"]) if its is not None else 0
        if its is not None and its == key and rows + count <= MOST_ROWS:
            found[-1].append(request)
            rows += count
        else:
            found.append([request])
            key, rows = its, count
    return found


def _key(request: dict[str, Any]) -> tuple[Any, ...] | None:
    """What must be the same for two requests to be predicted as one; None: it is one by itself."""
    columns, rows = request.get("columns"), request.get("rows")
    if not isinstance(columns, list) or not isinstance(rows, list) or not rows:
        return None
    if request.get("background") is not None:
        return None
    return request["model"], request["folder"], json.dumps(columns)


def _answer_all(shelf: Shelf, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(batch) > 1:
        rows = [row for one in batch for row in one["rows"]]
        together = _answer(shelf, {**batch[0], "rows": rows})
        if len((together.get("answer") or {}).get("predictions", ())) == len(rows):
            return _apart(together, batch)
    # Whose rows are at fault must not be the others' trouble.
    return [{"id": one["id"], **_answer(shelf, one)} for one in batch]


def _apart(together: dict[str, Any], batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each request's own part of the answer."""
    said, answers, start = together["answer"], [], 0
    for one in batch:
        mine = slice(start, start + len(one["rows"]))
        start = mine.stop
        part = {
            name: said[name][mine] for name in BY_ROW if said.get(name) is not None
        }  # fmt: skip
        answers.append({"id": one["id"], "answer": {**said, **part}, "ms": together["ms"]})
    return answers


def _answer(shelf: Shelf, request: dict[str, Any]) -> dict[str, Any]:
    try:
        model = shelf.get(request["model"], request["folder"])
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        return {"status": 500, "error": f"The model cannot be loaded: {_words(error)}"}
    if request.get("columns") is None:
        return {"answer": {}, "ms": 0.0}
    began = time.perf_counter()
    try:
        if request.get("background") is None:
            answer = model.predict(request["columns"], request["rows"])
        else:
            (row,) = request["rows"]
            answer = model.explain(request["columns"], row, request["background"])
    except WorkError as error:
        return {
            "status": 422,
            "error": error.sentence,
            "code": error.code,
            "data": error.data,
        }
    except MemoryError:
        return {"status": 503, "error": "The model ran out of memory for these rows."}
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        return {"status": 500, "error": f"The model could not predict: {_words(error)}"}
    return {"answer": answer, "ms": round((time.perf_counter() - began) * 1000, 3)}


def _encode(answer: dict[str, Any]) -> bytes:
    """One line of strict JSON: NaN and the infinities, which it lacks, become null."""
    try:
        text = json.dumps(answer, default=plain, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(json.loads(json.dumps(answer, default=plain))))
    return text.encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
