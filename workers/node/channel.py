"""The child's side of the line to its supervisor: JSON lines over a Unix socket.

Standard library only: it runs inside every engine's virtualenv. There is no thread behind it,
so it is safe beside fork and native thread pools.
"""

import json
import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
KEPT = ".handed-over"


class WorkError(Exception):
    """A failure of the work itself, told in one sentence that a person can act on.

    ``code`` is a stable word for programs; ``data`` (plain JSON) names columns, limits, lines.
    """

    def __init__(self, sentence: str, *, code: str = "work", **data: Any) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.code = code
        self.data = data


class Channel:
    """What a handler says while it works. Every call returns once the supervisor's side has it.

    A message that was written is not lost when this process dies right after. File paths are
    relative to the work folder, which must be the working directory. A file that was handed over
    may be replaced or removed afterwards, but not changed in place.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._lock = threading.Lock()
        self._heard = b""
        self._stopping = False
        self._kept = 0

    def progress(self, fraction: float, message: str = "", **data: Any) -> None:
        """Say how far the work is (0..1). Only the newest of several in a row may reach the web."""
        done = min(1.0, max(0.0, float(fraction)))
        self._send("progress", data={"fraction": done, "message": message, **data})

    def notice(self, message: str, **data: Any) -> None:
        """Say something that the person who asked for the work should read."""
        self._send("notice", data={"message": message, **data})

    def log(self, line: str) -> None:
        """Add a line to the task's log, beside what is printed."""
        self._send("log", data={"lines": line.splitlines() or [""]})

    def candidate(self, key: str, data: Mapping[str, Any], files: Mapping[str, str]) -> None:
        """Hand over one finished model. The same ``key`` twice is stored once."""
        self._send("candidate", key=key, data=dict(data), files=self._keep(files))

    def checkpoint(self, name: str, path: str) -> None:
        """Hand over how far a fit has come. Only the newest of a name is of use to anybody."""
        self._send("checkpoint", key=name, files=self._keep({"checkpoint": path}))

    def result(self, data: Mapping[str, Any], files: Mapping[str, str]) -> None:
        """End the work well. Called by ``child``, which sends what the handler returned."""
        self._send("result", data=dict(data), files=dict(files))

    def error(self, sentence: str, *, code: str, fault: str, data: Mapping[str, Any]) -> None:
        """End the work as failed. Called by ``child`` with what the handler raised."""
        self._send("error", error=sentence, code=code, fault=fault, data=dict(data))

    @property
    def stopping(self) -> bool:
        """True once the best so far should be kept and the work ended. Cheap: ask it often."""
        if not self._stopping:
            self._listen()
        return self._stopping

    def _keep(self, files: Mapping[str, str]) -> dict[str, str]:
        """Second names for files, so that the work may use the first ones again at once."""
        kept = {}
        for name, path in files.items():
            if Path(path).is_absolute() or ".." in Path(path).parts:
                raise ValueError(f"{path} is not a path within the work folder")
            self._kept += 1
            kept[name] = f"{KEPT}/{os.getpid()}-{self._kept}"
            Path(KEPT).mkdir(exist_ok=True)
            os.link(path, kept[name])
        return kept

    def _listen(self) -> None:
        while True:
            try:
                heard = self._sock.recv(4096, socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                heard = b""
            if not heard:  # the supervisor hung up
                self._stopping = True
                break
            self._heard += heard
        *lines, self._heard = self._heard.split(b"\n")
        if any(json.loads(line).get("type") == "stop" for line in lines if line):
            self._stopping = True

    def _send(self, type: str, **fields: Any) -> None:
        line = json.dumps({"type": type, **fields}, default=plain).encode() + b"\n"
        if len(line) > MAX_MESSAGE_BYTES:
            raise ValueError(f"a {type} message of {len(line)} bytes is too long: put it in a file")
        with self._lock:
            self._sock.sendall(line)


def plain(value: Any) -> Any:
    """Turn what JSON lacks (NumPy scalars and arrays, dates, paths) into what it has."""
    for method in ("tolist", "isoformat", "__fspath__"):
        if hasattr(value, method):
            return getattr(value, method)()
    if isinstance(value, (set, frozenset, tuple)):
        return sorted(value, key=repr)
    return str(value)
