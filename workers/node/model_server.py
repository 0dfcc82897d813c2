"""Keeps models of one organization loaded and answers predictions, one request at a time.

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
from typing import Any

from workers.node import handlers, procs
from workers.node.channel import WorkError, plain


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
    with sock.makefile("rb") as requests:
        for line in requests:
            request = json.loads(line)
            is_new = not shelf.holds(request["model"])
            answer = {"id": request["id"], **_answer(shelf, request)}
            if is_new and shelf.is_over():
                answer["last"] = True
            sock.sendall(_encode(answer))
            if answer.get("last"):
                return 0
    return 0


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
