"""The warm parent: imports an engine once, then forks a child per task within milliseconds.

Run as ``python -m workers.node.warm FD ENGINE`` in the engine's virtualenv; ENGINE "" imports
nothing, which makes each fork as good as a fresh interpreter. It only ever imports: native thread
pools that were started before a fork hang in the child. So it starts with one thread per pool,
and children raise that.

FD is a SOCK_SEQPACKET socket to the supervisor, one JSON object per packet. In come
{"fork": n, "entry", "cwd", "env", "ram_mib", "nice", "network", "threads"} with two file
descriptors (channel, output); out go {"ready": ...} or {"broken": why} once, then {"forked": n,
"pid", "start"} and {"exited": pid, "status", "cpu_s", "ram_mib"} for each child. When the
supervisor's end closes, all children are killed.
"""

import array
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

# The entries of children, too: what is imported here costs them nothing.
from workers.node import child, handlers, model_server, procs

ENTRIES = {
    "workers.node.child:main": child.main,
    "workers.node.model_server:main": model_server.main,
}

MAX_PACKET = 128 * 1024


def main() -> None:
    """Import, then serve fork requests until the supervisor hangs up."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    engine = sys.argv[2]
    parent = os.getppid()
    procs.become_reaper()
    procs.die_with_parent(parent, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    began = time.monotonic()
    try:
        tuner = _import_engine(engine) if engine else None
    except BaseException as error:
        traceback.print_exc()
        _say(control, {"broken": f"{type(error).__name__}: {error}"[:1000]})
        sys.exit(1)
    gc.collect()
    gc.freeze()  # collections in a child need not touch, and so copy, what it shares
    ready = {
        "ready": engine,
        "import_s": round(time.monotonic() - began, 3),
        "threads": _other_threads(),
        "ram_mib": round(procs.memory_mib([os.getpid()]), 1),
    }
    _say(control, ready)
    # The kernel's notice about our own parent comes as SIGKILL and would leave what the children
    # started; from here on the closed socket tells us, and we clear up before we go.
    procs.die_with_parent(parent, 0)
    _serve(control, tuner)


def _import_engine(engine: str) -> Any:
    """Import the engine's module, what it declares for import, and the harness around it."""
    module = importlib.import_module(handlers.engine_module(engine))
    declared = getattr(module, "ENGINE", module)
    if getattr(declared, "start_method", "fork") != "fork":
        return None  # its children start bare and import for themselves
    for name in getattr(declared, "imports", ()):
        importlib.import_module(name)
    try:
        importlib.import_module("training.engines.harness")
    except ModuleNotFoundError as error:
        if error.name not in (
            "training.engines.harness",
            "training.engines",
            "training",
        ):
            raise
    try:
        # Finding the loaded pools costs 100 ms in a child, so find them here.
        return importlib.import_module("threadpoolctl").ThreadpoolController()
    except ImportError:
        return None


def _other_threads() -> list[str]:
    """Names of the threads beside this one."""
    me = str(threading.get_native_id())
    names = []
    for task in os.listdir("/proc/self/task"):
        if task != me:
            with open(f"/proc/self/task/{task}/comm") as file:
                names.append(file.read().strip())
    return sorted(names)


def _serve(control: socket.socket, tuner: Any) -> None:
    wake_read, wake_write = os.pipe()
    for fd in (wake_read, wake_write):
        os.set_blocking(fd, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    children: set[int] = set()
    while True:
        readable, _, _ = select.select([control.fileno(), wake_read], [], [])
        if wake_read in readable:
            os.read(wake_read, 512)
            _reap(control, children)
        if control.fileno() in readable:
            message, ancillary, _, _ = control.recvmsg(MAX_PACKET, socket.CMSG_SPACE(16))
            if not message:
                break
            fds = _fds(ancillary)
            request = json.loads(message)
            pid = os.fork()
            if pid == 0:
                _become_child(request, fds, [control, wake_read, wake_write], tuner)
            for fd in fds:
                os.close(fd)
            children.add(pid)
            row = procs.process(pid)
            start = row.start if row else 0
            _say(control, {"forked": request["fork"], "pid": pid, "start": start})
    for pid in children:
        procs.kill_tree(pid)
    procs.end_strays(procs.strays([os.getpid()], []))


def _reap(control: socket.socket, children: set[int]) -> None:
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if pid in children:  # else an orphan that was left to us
            children.remove(pid)
            exited = {
                "exited": pid,
                "status": status,
                "cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
                "ram_mib": round(usage.ru_maxrss / 1024, 1),
            }
            _say(control, exited)


def _become_child(request: dict[str, Any], fds: list[int], ours: list[Any], tuner: Any) -> NoReturn:
    """Turn the fork into a task's own process and run its entry. Never returns."""
    status = 70
    try:
        parent = os.getppid()
        signal.set_wakeup_fd(-1)
        for signum in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_DFL)
        os.setsid()
        procs.die_with_parent(parent, signal.SIGKILL)
        procs.become_reaper()
        for item in ours:
            os.close(item) if isinstance(item, int) else item.close()
        channel, output = fds
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        os.close(null)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        os.set_inheritable(channel, False)
        sock = socket.socket(fileno=channel)
        os.environ.clear()
        os.environ.update(request["env"])
        os.umask(0o077)
        os.chdir(request["cwd"])
        _set_limits(request, tuner)
        status = ENTRIES[request["entry"]](sock)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            # Not sys.exit: exit handlers here belong to the parent that imported them.
            os._exit(status)


def _set_limits(request: dict[str, Any], tuner: Any) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if request.get("nice"):
        os.nice(int(request["nice"]))
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")  # if the machine runs out, the kernel takes a task, not the node
    except OSError:
        pass
    if not request.get("network", True):
        why = procs.leave_network()
        if why:
            print(f"This machine does not allow work without network ({why}); going on with it.")
    if tuner is not None and request.get("threads"):
        tuner.limit(limits=int(request["threads"]))
    if "numpy" in sys.modules:  # or all forks would draw the same numbers
        sys.modules["numpy"].random.seed()
    if request.get("ram_mib"):
        procs.limit_memory(int(request["ram_mib"]))


def _fds(ancillary: list[Any]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def _say(control: socket.socket, message: dict[str, Any]) -> None:
    try:
        control.send(json.dumps(message).encode())
    except OSError:
        pass  # the supervisor is gone; the next read tells us so


if __name__ == "__main__":
    main()
