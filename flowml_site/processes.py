"""Child processes that never outlive their parent, and the leftovers of one that was killed.

Linux only (``/proc``, parent-death signals). No Django: settings and ``manage.py`` come here before
it is set up.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 1, 8, 47, 2
_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP = 28, 4
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522
# Found before any fork: between fork and exec a child should only make system calls.
_libc = ctypes.CDLL(None, use_errno=True)


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


@dataclass(frozen=True)
class Identity:
    """A user to run a child as."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Process:
    """A process told from a later one with the same number by its start time (clock ticks)."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this number now; None when there is none (or only a zombie)."""
        started = start_time(pid)
        return None if started is None else cls(pid, started)

    @property
    def is_alive(self) -> bool:
        return start_time(self.pid) == self.started


def start_time(pid: int) -> int | None:
    """When ``pid`` started, in clock ticks since boot; None when it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the command before it may hold spaces and brackets
    return None if fields[0] in "ZX" else int(fields[19])


def spawn(
    args: Sequence[str | os.PathLike[str]],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    death_signal: int = signal.SIGTERM,
    pass_fds: Iterable[int] = (),
    identity: Identity | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``args`` in a session of its own, its output appended to ``log``.

    When this process dies, however it dies, the child gets ``death_signal`` from the kernel. That
    signal belongs to the *thread* that spawns, so call this from one that lives on.
    """
    parent = os.getpid()

    def in_child() -> None:
        if identity is not None:
            _become(identity)
        _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)  # a change of user clears it
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            args,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=None if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
            preexec_fn=in_child,  # noqa: PLW1509 (it makes system calls only)
        )


def _become(identity: Identity) -> None:
    """Turn from root to ``identity`` and keep one right: to pass through private folders.

    Without it a program in root's own home, or data in a folder of mode 0700, would be out of
    reach, and making those folders passable for everybody is worse.
    """
    _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    # Without this access(2), by which initdb looks for its neighbours, would ignore the right.
    _libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    os.setgroups([])
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    mask = 1 << _CAP_DAC_OVERRIDE
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapData * 2)(_CapData(mask, mask, mask), _CapData(0, 0, 0))
    # Where a container has taken the right away these fail, and the program says what it lacks.
    _libc.capset(ctypes.byref(header), data)
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)


def send(process: Process, number: int) -> None:
    """Signal ``process`` if it is still that one."""
    if process.is_alive:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process.pid, number)


def wait_ended(processes: Iterable[Process], seconds: float) -> list[Process]:
    """Wait until all have ended or ``seconds`` are over. Returns those still alive."""
    deadline = time.monotonic() + seconds
    left = [process for process in processes if process.is_alive]
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left = [process for process in left if process.is_alive]
    return left


def end(processes: Iterable[Process], number: int = signal.SIGTERM, grace: float = 5.0) -> None:
    """Ask each to end with ``number``; after ``grace`` seconds kill what is left of its group."""
    processes = list(processes)
    for process in processes:
        send(process, number)
    for process in wait_ended(processes, grace):
        kill_group(process)
    wait_ended(processes, 5)


def kill_group(process: Process) -> None:
    """SIGKILL for ``process`` and, where it leads one, its process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if process.is_alive and os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
    send(process, signal.SIGKILL)


def tagged(name: str, value: str) -> list[Process]:
    """Every other process of this user whose environment at its start had ``name=value``."""
    needle = f"{name}={value}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:  # ended, or another user's
            continue
        if needle in environment.split(b"\0"):
            process = Process.of(int(entry.name))
            if process is not None:
                found.append(process)
    return found


def command_of(pid: int) -> str:
    """The command line of ``pid``, shortened to what fits in a sentence; '' when unknown."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    line = b" ".join(words).decode(errors="replace").strip()
    return line if len(line) <= 60 else line[:57] + "..."


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nothing listens on now (somebody may take it before the caller does)."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def listener(port: int) -> tuple[int, str] | None:
    """(pid, command) of who listens on TCP ``port``; None when nobody does or it can't be seen."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    if not inodes:
        return None
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            for handle in (entry / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(handle) in inodes:
                        return int(entry.name), command_of(int(entry.name))
    return None
