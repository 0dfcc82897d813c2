"""Processes of this machine: who descends from whom, and how a whole tree is ended.

Linux, standard library only, since the warm parents run it inside engine virtualenvs. What the
kernel offers and this leans on is in proc(5), prctl(2), setrlimit(2) and unshare(2).
"""

import ctypes
import math
import os
import resource
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


class Process(NamedTuple):
    """One row of the process table. ``start`` (clock ticks since boot) tells a reused pid apart."""

    pid: int
    parent: int
    session: int
    state: str
    start: int

    @property
    def is_dead(self) -> bool:
        return self.state in "ZX"


def parse_stat(text: str) -> Process:
    """Read one ``/proc/<pid>/stat`` line. The command in it may hold spaces and brackets."""
    pid, _, rest = text.partition(" (")
    fields = rest.rpartition(")")[2].split()
    return Process(int(pid), int(fields[1]), int(fields[3]), fields[0], int(fields[19]))


def process(pid: int) -> Process | None:
    """The table's row for one pid, or None when there is no such process."""
    try:
        return parse_stat(Path(f"/proc/{pid}/stat").read_text(errors="replace"))
    except (OSError, ValueError, IndexError):
        return None


def processes() -> dict[int, Process]:
    """The whole process table, read row by row: a moving target, not a snapshot."""
    rows = (process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {row.pid: row for row in rows if row}


def tree(table: Mapping[int, Process], root: int) -> set[int]:
    """Pids of everything below ``root`` or in the session that it leads, without ``root`` itself.

    The session finds what lost its parent; a pid is not reused while a session bears its number.
    """
    below: dict[int, list[int]] = {}
    for row in table.values():
        below.setdefault(row.parent, []).append(row.pid)
    found = {row.pid for row in table.values() if row.session == root}
    todo = [root, *found]
    while todo:
        new = [pid for pid in below.get(todo.pop(), ()) if pid not in found]
        found.update(new)
        todo.extend(new)
    return found - {root}


def kill_tree(root: int, start: int | None = None, *, timeout_s: float = 4.0) -> bool:
    """End ``root`` and all its descendants for certain. Returns False if some outlived the timeout.

    The root is frozen first and killed last: it is the reaper of its descendants, so what loses
    its parent on the way stays findable below it, and it cannot make new ones. ``start`` guards
    against a reused pid. Blocks, so call it in a thread where that matters.
    """
    me, deadline = os.getpid(), time.monotonic() + timeout_s
    row = process(root)
    ours = row is not None and (start is None or row.start == start)
    while True:
        row = process(root) if ours else None
        stands = row is not None and not row.is_dead and (start is None or row.start == start)
        if stands:
            _signal(root, signal.SIGSTOP)
        table = processes()
        rest = [
            pid
            for pid in tree(table, root)
            if pid != me and not table[pid].is_dead and (ours or table[pid].session == root)
        ]
        for pid in rest:
            _signal(pid, signal.SIGKILL)
        if not rest:
            if not stands:
                return True
            _signal(root, signal.SIGKILL)
        if time.monotonic() > deadline:
            if stands:
                _signal(root, signal.SIGKILL)
            return False
        time.sleep(0.004)


def strays(parents: Iterable[int], known: Iterable[int]) -> list[Process]:
    """Processes whose parent is one of ``parents``, without those that are ``known``.

    A reaper asks: what it did not start itself was left to it by a task that is dead.
    """
    mothers, spared = set(parents), set(known)
    return [row for row in processes().values() if row.parent in mothers and row.pid not in spared]


def end_strays(rows: Iterable[Process]) -> None:
    """End strays for certain, and reap those that were left to this very process."""
    for row in rows:
        if not row.is_dead:
            kill_tree(row.pid, row.start)
        if row.parent == os.getpid():
            try:
                os.waitpid(row.pid, os.WNOHANG)
            except ChildProcessError:
                pass


def marked(mark: str) -> list[Process]:
    """Processes of ours that were started with ``mark`` ("NAME=value") in their environment.

    The kernel keeps the environment that a program was started with, forks inherit it, and nobody
    can forget to record it: so this finds what a killed supervisor left, whoever its parent is.
    """
    found, needle = [], b"\0" + mark.encode() + b"\0"
    for pid, row in processes().items():
        try:
            environ = b"\0" + Path(f"/proc/{pid}/environ").read_bytes() + b"\0"
        except OSError:
            continue
        if needle in environ and pid != os.getpid() and not row.is_dead:
            found.append(row)
    return found


def kill_marked(mark: str, *, timeout_s: float = 5.0) -> int:
    """End every process that carries ``mark``, and what it started. Returns how many did."""
    found, deadline = marked(mark), time.monotonic() + timeout_s
    count = len(found)
    while found and time.monotonic() < deadline:
        for row in found:
            kill_tree(row.pid, row.start)
        found = marked(mark)
    return count


def memory_mib(pids: Iterable[int], *, shared_mib: float = math.inf) -> float:
    """Memory (MiB) that these processes hold together: what ending them all would give back.

    What only one of them maps is theirs for certain. What they share among themselves (a worker
    pool that was forked after the table was read) shows in the proportional figures of proc(5),
    which also hold a part of what they share with their warm parent: at most ``shared_mib``.
    """
    private = proportional = 0
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        for line in rollup.splitlines():
            if line.startswith("Private_"):
                private += int(line.split()[1])
            elif line.startswith(("Pss_Anon:", "Pss_Shmem:")):  # Linux 5.9 and later
                proportional += int(line.split()[1])
    return max(private / 1024, proportional / 1024 - shared_mib)


def die_with_parent(parent: int, signum: int = signal.SIGKILL) -> None:
    """Have the kernel send this process ``signum`` when its parent dies, also if it just has."""
    _libc.prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def become_reaper() -> None:
    """Make orphans among this process's descendants its own children (prctl(2))."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def limit_memory(ram_mib: int) -> None:
    """Make allocations fail once this process has taken ``ram_mib`` MiB more than it holds now.

    RLIMIT_DATA counts private writable memory (Linux 4.7 and later). RLIMIT_AS would count address
    space that is only reserved, of which numeric libraries take gigabytes without using it.
    """
    status = Path("/proc/self/status").read_text()
    held_kib = next(
        (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData:")),
        0,
    )
    limit = held_kib * 1024 + ram_mib * 1024 * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def leave_network() -> str | None:
    """Take this process into an empty network namespace. Returns why not, or None when it is done.

    Root may do so directly, others through a user namespace where the machine allows those. Must
    run while the process has one thread.
    """
    if _libc.unshare(CLONE_NEWNET) == 0:
        return None
    uid, gid = os.getuid(), os.getgid()
    if _libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        return os.strerror(ctypes.get_errno())
    # Keep our own ids inside, or getuid() would say nobody.
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        try:
            Path(f"/proc/self/{name}").write_text(text)
        except OSError:
            pass
    return None


def _signal(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except (ProcessLookupError, PermissionError):
        pass
