"""Work in a forked process that can be stopped at any moment: fits that nobody can interrupt.

Estimators have no stop button, and a native thread pool that was once used does not survive a fork.
So a job's child never computes itself: each fit happens in a grandchild, which sends back what it
found and is killed at its deadline, or when somebody presses stop. It dies with the job's child.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from workers.node import procs

POLL_S = 0.1
_LENGTH = struct.Struct("<Q")


class Failed(Exception):
    """The work raised; the text is its error in one line."""


class Overrun(Exception):
    """The work was still going at its deadline and was killed."""


class Stopped(Exception):
    """The work was killed because ``pulse`` said so."""


def stream(
    work: Callable[[], Iterator[Any]],
    *,
    deadline: float,
    pulse: Callable[[], bool],
    log: str = "fits.log",
) -> Iterator[Any]:
    """Run the generator ``work()`` in a fork and yield what it yields, as it comes.

    ``deadline`` is on ``time.monotonic``'s clock. ``pulse`` is asked every POLL_S; when it says
    True the fork is killed and Stopped raised. What the fork prints goes to the file ``log``.
    Values pass by pickle. Raises Failed, Overrun or Stopped; what had come before still counts.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _work_and_exit(work, writer, reader, log, parent)
    os.close(writer)
    try:
        yield from _messages(reader, deadline, pulse)
    finally:
        os.close(reader)
        _end(pid)


def _messages(reader: int, deadline: float, pulse: Callable[[], bool]) -> Iterator[Any]:
    heard = bytearray()
    while True:
        while len(heard) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(heard)
            if len(heard) < _LENGTH.size + length:
                break
            packed = bytes(heard[_LENGTH.size : _LENGTH.size + length])
            kind, value = pickle.loads(packed)  # noqa: S301 - from our own fork
            del heard[: _LENGTH.size + length]
            if kind == "end":
                return
            if kind == "error":
                raise Failed(value)
            yield value
        if pulse():
            raise Stopped
        left = deadline - time.monotonic()
        if left <= 0:
            raise Overrun
        ready, _, _ = select.select([reader], [], [], min(POLL_S, left))
        if ready:
            part = os.read(reader, 1 << 20)
            if not part:
                raise Failed("its process died, most likely because it needed too much memory")
            heard += part


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass


def _work_and_exit(
    work: Callable[[], Iterator[Any]], writer: int, reader: int, log: str, parent: int
) -> None:
    status = 1
    try:
        procs.die_with_parent(parent, signal.SIGKILL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(reader)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        try:
            for value in work():
                _send(writer, ("value", value))
            _send(writer, ("end", None))
            status = 0
        except MemoryError:
            _send(writer, ("error", "it ran out of memory"))
        except Exception as error:
            text = " ".join(str(error).split())[:300]
            _send(writer, ("error", f"{type(error).__name__}: {text}" if text else repr(error)))
    finally:
        os._exit(status)  # exit handlers belong to the process this one was forked from


def _send(writer: int, message: tuple[str, Any]) -> None:
    data = pickle.dumps(message, protocol=5)
    view = memoryview(_LENGTH.pack(len(data)) + data)
    while view:
        view = view[os.write(writer, view) :]
