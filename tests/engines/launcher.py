"""Stands in for the node's warm parent: imports an engine once, then forks a child per request.

Run in the engine's virtualenv as ``python -m tests.engines.launcher ENGINE``. A line of JSON on
stdin, {"handler", "cwd", "task"}, forks a child in ``cwd`` that runs the handler with a fake
channel; a line {"exited", "status"} comes back. The channel writes each message, stamped with the
seconds since the fork, as a line of ``messages.jsonl``; a file called ``stop`` presses stop.
"""

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path

from workers.node import handlers
from workers.node.channel import WorkError, plain


class FileChannel:
    """The Channel interface over a file."""

    def __init__(self, forked_at: float) -> None:
        self._forked_at = forked_at
        self._path = Path("messages.jsonl")

    def say(self, type: str, **fields: object) -> None:
        at = time.monotonic() - self._forked_at
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"type": type, "at": at, **fields}, default=plain) + "\n")

    def progress(self, fraction: float, message: str = "", **data: object) -> None:
        self.say("progress", fraction=fraction, message=message, data=data)

    def notice(self, message: str, **data: object) -> None:
        self.say("notice", message=message, data=data)

    def log(self, line: str) -> None:
        self.say("log", line=line)

    def candidate(self, key: str, data: dict, files: dict) -> None:
        missing = [path for path in files.values() if not Path(path).is_file()]
        self.say("candidate", key=key, data=data, files=files, missing=missing)

    def checkpoint(self, name: str, path: str) -> None:
        kept = f"kept-{len(list(Path().glob('kept-*')))}"
        os.link(path, kept)
        self.say("checkpoint", key=name, files={"checkpoint": kept})

    @property
    def stopping(self) -> bool:
        return os.path.exists("stop")


def serve() -> None:
    module = importlib.import_module(handlers.engine_module(sys.argv[1]))
    for name in ("training.engines.harness", *module.ENGINE.imports):
        importlib.import_module(name)
    print(json.dumps({"ready": len(os.listdir("/proc/self/task"))}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        forked_at = time.monotonic()
        pid = os.fork()
        if pid == 0:
            child(request, forked_at)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"exited": pid, "status": os.waitstatus_to_exitcode(status)}), flush=True)


def child(request: dict, forked_at: float) -> None:
    status = 1
    try:
        os.chdir(request["cwd"])
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        channel = FileChannel(forked_at)
        module, _, name = request["handler"].partition(":")
        try:
            answer = getattr(importlib.import_module(module), name)(request["task"], channel)
            channel.say("result", **answer)
            status = 0
        except WorkError as error:
            channel.say("error", sentence=error.sentence, code=error.code, data=error.data)
        except BaseException:
            channel.say("crash", text=traceback.format_exc())
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
