"""Programs on a machine by SSH that outlive the connection which started them. No Django.

Each has a folder ``.flowml/<id>`` there: ``command`` (what runs), ``log`` (what it printed),
``pid``, ``exit`` (its status, once it has ended), ``told`` (how much of the log was read) and
``taken`` (which task has heard of its end). Whoever comes back looks there: a program is found
again, not started twice.
"""

import contextlib
import posixpath
import shlex
from dataclasses import dataclass
from typing import Any, Literal

import asyncssh

from pipelines.connectors.ssh import Machine, execute, words
from workers.node.channel import WorkError

FOLDER = ".flowml"
MOST_AT_ONCE = 256 * 1024
# In the program's folder; $1 is where it runs, $2 its id, by which ps finds it.
RUNNER = """here=$(pwd)
echo $$ > pid.new && mv pid.new pid
cd "$1" && sh "$here/command" > "$here/log" 2>&1 < /dev/null
echo $? > "$here/exit.new" && mv "$here/exit.new" "$here/exit"
"""
START = """mkdir -p {work} {home} && cd {home} && mkdir started 2>/dev/null || exit 3
if command -v setsid >/dev/null; then s=setsid; else s=nohup; fi
$s sh runner {work} {id} >/dev/null 2>&1 </dev/null &
for i in 1 2 3 4 5 6 7 8 9 10; do [ -e pid ] && exit 0; sleep 0.2; done; exit 4
"""
# Whether it lives is looked at first: what ends in between has left its status.
LOOK = """cd {home} 2>/dev/null && [ -e started ] || {{ echo none; exit; }}
p=$(cat pid 2>/dev/null); t=$(cat taken 2>/dev/null)
if [ -n "$p" ] && ps -o args= -p "$p" 2>/dev/null | grep -q {id}; then echo "runs $p"
elif [ -e exit ]; then echo "ended $(cat exit) $t"
else echo "gone 0 $t"; fi
"""
END = """cd {home} 2>/dev/null || exit 0
p=$(cat pid 2>/dev/null); [ -n "$p" ] || exit 0
ps -o args= -p "$p" 2>/dev/null | grep -q {id} || exit 0
kill -TERM -"$p" 2>/dev/null || kill -TERM "$p"
for i in 1 2 3 4 5 6 7 8 9 10; do kill -0 -"$p" 2>/dev/null || exit 0; sleep 0.3; done
kill -KILL -"$p" 2>/dev/null || kill -KILL "$p" 2>/dev/null; exit 0
"""


@dataclass(frozen=True)
class Seen:
    """A program as it stands. ``taken``: the task that has heard of its end, if one has."""

    state: Literal["none", "runs", "ended", "gone"]
    status: int = 0
    taken: str = ""


class Program:
    """One program on one machine, by a connection that is open. ``id``: letters and digits."""

    def __init__(
        self,
        machine: Machine,
        connection: asyncssh.SSHClientConnection,
        sftp: asyncssh.SFTPClient,
        root: str,
        id: str,
    ) -> None:
        self._machine = machine
        self._connection = connection
        self._sftp = sftp
        self._root = root
        self._home = posixpath.join(root, FOLDER, id)
        self._id = id

    @classmethod
    async def at(
        cls, machine: Machine, connection: asyncssh.SSHClientConnection, id: str
    ) -> "Program":
        async with words(machine.where):
            sftp = await connection.start_sftp_client()
            await sftp.makedirs(machine.folder, exist_ok=True)
            root = await sftp.realpath(machine.folder)
        return cls(machine, connection, sftp, str(root), id)

    def _script(self, text: str, work: str = "") -> str:
        names = {"home": self._home, "id": self._id, "work": posixpath.join(self._root, work)}
        return text.format(**{name: shlex.quote(value) for name, value in names.items()})

    async def look(self) -> Seen:
        done = await execute(self._connection, self._script(LOOK))
        said = [*done.output.split(), "", ""]
        if said[0] not in {"none", "runs", "ended", "gone"}:
            raise WorkError(
                f"Programs can't run on {self._machine.where}: "
                f"{_short(done.errors or done.output)}",
                code="no-programs",
            )
        status = int(said[1]) if said[0] == "ended" and said[1].lstrip("-").isdigit() else 0
        return Seen(said[0], status, said[2])  # type: ignore[arg-type]

    async def start(self, command: str, work: str) -> None:
        """Start it in the folder ``work``; what an earlier one has left is forgotten."""
        home = shlex.quote(self._home)
        await execute(self._connection, f"rm -rf {home} && mkdir -p {home}")
        for name, text in (("command", command + "\n"), ("runner", RUNNER)):
            async with self._sftp.open(posixpath.join(self._home, name), "w") as file:
                await file.write(text)
        done = await execute(self._connection, self._script(START, work))
        if done.status != 0:
            raise WorkError(
                f"The program could not be started on {self._machine.where}: "
                f"{_short(done.errors) or f'status {done.status}'}",
                code="no-programs",
            )

    async def news(self, *, final: bool = False) -> bytes:
        """What it has printed since somebody read last: whole lines, but for a ``final`` one."""
        told = int((await self._text("told")).strip() or 0)
        try:
            async with self._sftp.open(posixpath.join(self._home, "log"), "rb") as file:
                data: Any = await file.read(MOST_AT_ONCE, told)
        except asyncssh.SFTPNoSuchFile:
            return b""
        if final or len(data) == MOST_AT_ONCE:
            return bytes(data)
        return bytes(data[: data.rfind(b"\n") + 1])

    async def heard(self, data: bytes) -> None:
        """Remember there that ``data`` was passed on."""
        told = int((await self._text("told")).strip() or 0)
        await self._write("told", str(told + len(data)))

    async def last(self, most: int = 2000) -> str:
        """The end of what it printed."""
        async with words(self._machine.where):
            path = shlex.quote(posixpath.join(self._home, "log"))
            return (await execute(self._connection, f"tail -c {most} {path}")).output.strip()

    async def take(self, task: str) -> None:
        """Remember there that ``task`` has heard of its end."""
        await self._write("taken", task)

    async def end(self) -> None:
        """End it, with all that it has started."""
        await execute(self._connection, self._script(END))

    async def _text(self, name: str) -> str:
        with contextlib.suppress(asyncssh.SFTPNoSuchFile):
            async with self._sftp.open(posixpath.join(self._home, name)) as file:
                return str(await file.read())
        return ""

    async def _write(self, name: str, text: str) -> None:
        async with self._sftp.open(posixpath.join(self._home, name), "w") as file:
            await file.write(text)


def _short(text: str) -> str:
    return " ".join(text.split())[:300]
