"""One task, done in a process of its own whose working directory is its private folder.

Forked by a warm parent (see warm.py). Standard library only, apart from what the handler imports.
"""

import errno
import json
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from workers.node import handlers
from workers.node.channel import Channel, WorkError
from workers.node.outcome import DISK_FULL, GPU_MEMORY, is_gpu_memory, memory_words

CONFIDENTIAL = "FLOWML_CONFIDENTIAL"


def main(sock: socket.socket) -> int:
    """Do the task that ``task.json`` in the working directory tells. Returns the exit status."""
    channel = Channel(sock)
    task = json.loads(Path("task.json").read_text())
    # Not in the file: what is secret is on no disk, and nothing that is started here inherits it.
    task["confidential"] = json.loads(os.environ.pop(CONFIDENTIAL, "{}"))
    try:
        work = _handler(task["kind"])
        answer = work(task, channel) or {}
        channel.result(answer.get("data") or {}, answer.get("files") or {})
        return 0
    except WorkError as error:
        channel.error(error.sentence, code=error.code, fault="work", data=error.data)
    except PlatformError as error:
        traceback.print_exc()
        channel.error(str(error), code="platform", fault="platform", data={})
    except BaseException as error:  # SystemExit too: a handler must not end unheard
        traceback.print_exc()
        _tell(task, channel, error)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 1


def _tell(task: dict[str, Any], channel: Channel, error: BaseException) -> None:
    """Say in a sentence what an exception means for who asked for the work."""
    code, fault, data = "crash", "work", dict[str, Any]()
    if is_gpu_memory(error):
        sentence, code = GPU_MEMORY, "gpu_memory"
        data = {"smaller_batch": _can_do_with_less(task)}
    elif isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        sentence, code = memory_sentence(task), "memory"
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        sentence, code, fault = DISK_FULL, "disk_full", "platform"
    else:
        sentence = crash_sentence(task, error)
    channel.error(sentence, code=code, fault=fault, data=data)


def _can_do_with_less(task: dict[str, Any]) -> bool:
    """Whether the task's engine heeds ``smaller_batch`` in its task, as its declaration says."""
    if not task.get("engine"):
        return False
    module = sys.modules.get(handlers.engine_module(task["engine"]))
    return bool(getattr(getattr(module, "ENGINE", module), "smaller_batch", False))


class PlatformError(Exception):
    """This node is not fit for the task, which is not the work's fault."""


def _handler(kind: str) -> handlers.Handler:
    way = handlers.way_for(kind)
    if way is None:
        raise PlatformError(f'This node does not know work of the kind "{kind}".')
    try:
        return handlers.load(way.target)  # type: ignore[no-any-return]
    except MemoryError:
        raise
    except Exception as error:
        name = type(error).__name__
        raise PlatformError(f'This node cannot load "{kind}": {name}: {error}') from error


def memory_sentence(task: dict[str, Any]) -> str:
    """What to tell someone whose task ran out of memory."""
    return memory_words(int((task.get("limits") or {}).get("ram_mib") or 0))


def crash_sentence(task: dict[str, Any], error: BaseException) -> str:
    """What to tell someone whose task raised something that nobody had foreseen."""
    who = "The engine" if task.get("engine") else "The work"
    text = " ".join(str(error).split())[:300]
    return f"{who} stopped with an error: {type(error).__name__}" + (f": {text}" if text else "")
