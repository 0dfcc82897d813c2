"""One task, done in a process of its own whose working directory is its private folder.

Forked by a warm parent (see warm.py). Standard library only, apart from what the handler imports.
"""

import errno
import json
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from workers.node import handlers
from workers.node.channel import Channel, WorkError
from workers.node.outcome import memory_words


def main(sock: socket.socket) -> int:
    """Do the task that ``task.json`` in the working directory tells. Returns the exit status."""
    channel = Channel(sock)
    task = json.loads(Path("task.json").read_text())
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
    except MemoryError:
        traceback.print_exc()
        channel.error(memory_sentence(task), code="memory", fault="work", data={})
    except OSError as error:
        traceback.print_exc()
        if error.errno == errno.ENOSPC:
            sentence = "The node's disk is full. Free some space there and try again."
            channel.error(sentence, code="disk_full", fault="platform", data={})
        elif error.errno == errno.ENOMEM:
            channel.error(memory_sentence(task), code="memory", fault="work", data={})
        else:
            channel.error(crash_sentence(task, error), code="crash", fault="work", data={})
    except BaseException as error:  # SystemExit too: a handler must not end unheard
        traceback.print_exc()
        channel.error(crash_sentence(task, error), code="crash", fault="work", data={})
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 1


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
