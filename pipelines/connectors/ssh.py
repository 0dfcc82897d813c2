"""A machine by SSH: its files by SFTP, and programs that run there. No Django.

Only the address that was judged is connected to, and only a machine that shows the host key that
somebody has entered. Nothing of the node's own user is used: no configuration, agent or keys.
"""

import asyncio
import contextlib
import posixpath
import shlex
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncssh

from pipelines import reach
from pipelines.transfers import BLOCK, PART, Away, Chunk, Damaged, below
from workers.node.channel import WorkError

CONNECT_S = 10
ALIVE_S = 5  # asked that often whether it is still there, and three times in vain
WRITE_BYTES = 128 * 1024  # OpenSSH hangs up on longer writes
# With what a host key is asked for; certificates of hosts are not followed.
FAMILIES: tuple[tuple[str, ...], ...] = (
    ("ssh-ed25519",),
    ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
    ("rsa-sha2-512", "rsa-sha2-256"),
)
# With the processor's own instructions, and a checksum that comes with the cipher.
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com",
           "aes128-ctr", "aes256-ctr")  # fmt: skip
# Answers one line for each "path, block, blocks" that it reads: the digest of those blocks. A
# Python does it without a new process each time; OpenSSL uses the processor's own instructions,
# four times as fast as coreutils.
_PYTHON = f"""
import hashlib, sys
print("ready", flush=True)
asked, room = sys.stdin.buffer, memoryview(bytearray(1 << 20))
while path := asked.readline():
    skip, count = asked.readline(), asked.readline().strip()
    told, left = hashlib.sha256(), 1 << 62 if count == b"all" else int(count) * {BLOCK}
    try:
        with open(path[:-1], "rb", 0) as file:
            file.seek(int(skip) * {BLOCK})
            while left and (n := file.readinto(room[: min(left, 1 << 20)])):
                told.update(room[:n])
                left -= n
        print(told.hexdigest(), flush=True)
    except OSError:
        print("-", flush=True)
"""
DIGESTS = (
    # The system's own: another that the shell finds first may be a script that takes its time.
    f"export LC_ALL=C; p=/usr/bin/python3; [ -x $p ] && $p -I -S -c {shlex.quote(_PYTHON)} "
    "2>/dev/null && exit; if openssl dgst -sha256 -r </dev/null >/dev/null 2>&1; then "
    'h="openssl dgst -sha256 -r"; elif command -v sha256sum >/dev/null; then h="sha256sum"; '
    'elif command -v shasum >/dev/null; then h="shasum -a 256"; else exit 9; fi; echo ready; '
    'while read -r path; do read -r skip; read -r count; if [ "$count" = all ]; then $h < "$path"; '
    f'else dd if="$path" bs={BLOCK} skip="$skip" count="$count" 2>/dev/null | $h; fi; done'
)


@dataclass(frozen=True)
class Done:
    """How a program on the machine has ended."""

    status: int
    output: str
    errors: str


class Unreached(Away):
    """Nobody answers at the address."""


class _Client(asyncssh.SSHClient):
    """Believes a machine only if its key is the known one."""

    def __init__(self, known: str) -> None:
        self._known = known
        self.seen = ""
        self.is_right = False

    def validate_host_public_key(
        self, host: str, addr: str, port: int, key: asyncssh.SSHKey
    ) -> bool:
        self.seen = f"{key.get_algorithm()} {key.get_fingerprint()}"
        self.is_right = key.get_fingerprint() == self._known
        return self.is_right


def fingerprint(entered: str) -> tuple[str, str]:
    """What was entered as a host key: its fingerprint ("SHA256:...") and algorithm, if known.

    Takes a fingerprint, a public key, or a line of known_hosts or ssh-keyscan. ("", "") for
    nothing. Raises WorkError for what is none of these.
    """
    words = entered.split()
    for n, word in enumerate(words):
        if word.startswith("SHA256:"):
            return word.rstrip("="), ""
        if word.startswith(("ssh-", "ecdsa-")) and n + 1 < len(words):
            try:
                key = asyncssh.import_public_key(f"{word} {words[n + 1]}")
            except asyncssh.KeyImportError:
                break
            return key.get_fingerprint(), word
    if not words:
        return "", ""
    raise WorkError(
        "The known host key is neither a fingerprint (SHA256:…) nor a public key "
        "(ssh-ed25519 AAAA…).",
        code="host-key",
    )


class Machine:
    """``settings``: host, port, user, host_key, folder. ``secrets``: private_key, passphrase.

    Methods raise WorkError for what somebody has to change, Away for what may pass by itself.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        secrets: Mapping[str, str],
        rules: Sequence[reach.Rule],
        *,
        resolve: reach.Resolver | None = None,
    ) -> None:
        self._settings = settings
        self._secrets = secrets
        self._rules = rules
        self._resolve = resolve

    @property
    def where(self) -> str:
        return f"{self._settings['host']}:{self._settings.get('port') or 22}"

    @property
    def folder(self) -> str:
        return str(self._settings.get("folder") or ".")

    def path(self, name: str) -> str:
        """A file's path there. Raises WorkError for a name that leads out of the folder."""
        return below(self.folder, name)

    async def connect(self) -> asyncssh.SSHClientConnection:
        """A new connection to the machine, whose key was compared."""
        known, algorithm = fingerprint(str(self._settings.get("host_key") or ""))
        key = self._key()
        families = FAMILIES
        if algorithm:
            families = tuple(
                one
                for one in FAMILIES
                if algorithm in one or ("rsa" in algorithm and "rsa" in one[0])
            )
        seen = ""
        for family in families if known else (sum(FAMILIES, ()),):
            client = _Client(known)
            try:
                return await self._connect(client, key, family)
            except asyncssh.HostKeyNotVerifiable:
                seen = seen or client.seen
            except Unreached:
                raise
            except (asyncssh.KeyExchangeFailed, Away):
                # It has no key of that family: some say so, others hang up.
                if not seen and (family is families[-1] or not known):
                    raise
        if not seen:
            raise WorkError(
                f"{self.where} shows no host key of a kind that can be compared.", code="host-key"
            )
        if not known:
            raise WorkError(
                f"{self.where} shows the host key {seen}. Nobody has said yet that this is the "
                'right machine: compare it with the output of "ssh-keygen -lf '
                '/etc/ssh/ssh_host_ed25519_key.pub" there, and enter it as the known host key.',
                code="host-key",
                fingerprint=seen,
            )
        raise WorkError(
            f"{self.where} shows the host key {seen}, which is not the known one ({known}). Either "
            "it was set up anew, or something else answers in its place: nothing was sent. Ask "
            "who looks after it before you enter another key.",
            code="host-key",
            fingerprint=seen,
        )

    def _key(self) -> asyncssh.SSHKey:
        text = str(self._secrets.get("private_key") or "")
        if not text.strip():
            raise WorkError("Enter the private key that the machine lets in.", code="connection")
        try:
            return asyncssh.import_private_key(
                text.strip() + "\n", self._secrets.get("passphrase") or None
            )
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            raise WorkError(
                f"The private key can't be read: {_plain(error)}. Enter it whole, from BEGIN to "
                "END, with its passphrase if it has one.",
                code="connection",
            ) from None

    async def _connect(
        self, client: _Client, key: asyncssh.SSHKey, algorithms: Sequence[str]
    ) -> asyncssh.SSHClientConnection:
        host, port = str(self._settings["host"]), int(self._settings.get("port") or 22)
        try:
            target = await asyncio.to_thread(reach.reach, self._rules, host, port, self._resolve)
        except reach.Refused as refused:
            raise WorkError(str(refused), code="not-allowed") from None
        link = await self._socket(target)
        try:
            connection = await asyncssh.connect(
                sock=link,
                config=None,
                client_factory=lambda: client,
                known_hosts=lambda *_: ([], [], []),  # so that the client above is asked
                server_host_key_algs=list(algorithms),
                encryption_algs=list(CIPHERS),
                compression_algs=None,
                username=str(self._settings.get("user") or ""),
                client_keys=[key],
                agent_path=None,
                preferred_auth="publickey",
                gss_host=None,
                x509_trusted_certs=None,
                login_timeout=CONNECT_S,
                keepalive_interval=ALIVE_S,
                keepalive_count_max=3,
            )
            return _without_fillers(connection)
        except asyncssh.PermissionDenied:
            link.close()
            raise WorkError(
                f"{self.where} does not let {self._settings.get('user')} in with this key. Add its "
                "public part to ~/.ssh/authorized_keys there, or enter another user or key.",
                code="connection",
            ) from None
        except (asyncssh.HostKeyNotVerifiable, asyncssh.KeyExchangeFailed):
            link.close()
            raise
        except (OSError, asyncssh.Error) as error:
            link.close()
            raise Away(f"{self.where} hung up ({_plain(error)}).") from None

    async def _socket(self, target: reach.Target) -> socket.socket:
        """A connection to the first of the judged addresses that answers."""
        problem: OSError | None = None
        for address in target.addresses:
            try:
                return await asyncio.to_thread(
                    socket.create_connection, (address, target.port), CONNECT_S
                )
            except OSError as error:
                problem = error
        said = "it took too long" if isinstance(problem, TimeoutError) else _plain(problem)
        raise Unreached(f"{self.where} can't be reached: {said}. Check host and port.")

    async def check(self) -> str:
        """Sign in, and write a file where files go. Returns a sentence on what was found."""
        connection = await self.connect()
        async with connection:
            version = str(connection.get_extra_info("server_version") or "SSH")
            async with words(self.where), connection.start_sftp_client() as sftp:
                await sftp.makedirs(self.folder, exist_ok=True)
                probe = posixpath.join(self.folder, ".flowml-test")
                async with sftp.open(probe, "wb") as file:
                    await file.write(b"FlowML was here.\n")
                await sftp.remove(probe)
                folder = await sftp.realpath(self.folder)
            runs = await self._runs(connection)
        programs = "Programs can run there" if runs else "Programs can't run there, files can go"
        version = version.removeprefix("SSH-2.0-")
        return f"{version} at {self.where} takes files in {folder}. {programs}."

    async def _runs(self, connection: asyncssh.SSHClientConnection) -> bool:
        with contextlib.suppress(OSError, asyncssh.Error):
            answer = await asyncio.wait_for(connection.run("echo flowml-$((40+2))"), CONNECT_S)
            return "flowml-42" in str(answer.stdout)
        return False

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[asyncssh.SSHClientConnection]:
        """A connection, closed at the end. What goes wrong within is told in words."""
        connection = await self.connect()
        try:
            async with words(self.where):
                yield connection
        finally:
            connection.close()
            with contextlib.suppress(Exception):
                await asyncio.wait_for(connection.wait_closed(), 2)

    async def run(self, command: str, *, within_s: float = 30) -> Done:
        """A short program in the machine's shell."""
        async with self.session() as connection:
            return await execute(connection, command, within_s=within_s)

    def file(self, name: str, *, reading: bool = False) -> "RemoteFile":
        return RemoteFile(self, self.path(name), reading=reading)


async def execute(
    connection: asyncssh.SSHClientConnection, command: str, *, within_s: float = 30
) -> Done:
    """A short program in the machine's shell. Raises Away when it takes longer."""
    try:
        answer = await asyncio.wait_for(connection.run(command, errors="replace"), within_s)
    except TimeoutError:
        raise Away(f"The machine did not answer within {within_s:g} s.") from None
    status = answer.exit_status if answer.exit_status is not None else -1
    return Done(status, str(answer.stdout or ""), str(answer.stderr or ""))


def _without_fillers(connection: asyncssh.SSHClientConnection) -> asyncssh.SSHClientConnection:
    """Send no empty packet before each real one.

    asyncssh does so for ciphers whose next block can be guessed (RFC 4251, 9.3.1: CBC). None of
    CIPHERS is one, and a third of the time of a transfer went into it.
    """
    send = connection.send_packet

    def send_packet(pkttype: int, *args: bytes, **more: Any) -> None:
        if pkttype != asyncssh.constants.MSG_IGNORE:
            send(pkttype, *args, **more)

    connection.send_packet = send_packet  # type: ignore[method-assign]
    return connection


class RemoteFile:
    """A transfers.Far: a file by SFTP, put together under another name and renamed at the end."""

    most_lanes = 16
    compares = True

    def __init__(self, machine: Machine, path: str, *, reading: bool) -> None:
        self._machine = machine
        self._path = path
        self._part = path + PART
        self._reading = reading
        self._free: list[_Link] = []  # connections that nobody uses just now

    async def take(self) -> "_Link":
        """A connection: one that is free, or a new one."""
        if self._free:
            return self._free.pop()
        connection = await self._machine.connect()
        try:
            async with words(self._machine.where):
                return _Link(self._machine.where, connection, await connection.start_sftp_client())
        except BaseException:
            connection.close()
            raise

    async def give(self, link: "_Link") -> None:
        """Let others use a connection, if it is one still."""
        if link.is_lost:
            await link.hang_up()
        else:
            self._free.append(link)

    async def leave(self) -> None:
        while self._free:
            await self._free.pop().hang_up()

    @contextlib.asynccontextmanager
    async def _talk(self) -> "AsyncIterator[_Link]":
        link = await self.take()
        try:
            async with link.talk():
                yield link
        finally:
            await self.give(link)

    async def lane(self) -> "_Lane":
        link = await self.take()
        try:
            async with link.talk():
                path = await link.sftp.realpath(self._path if self._reading else self._part)
                mode = "rb" if self._reading else "r+b"
                file = await link.sftp.open(path, mode, block_size=WRITE_BYTES)
                link.prepare()
        except BaseException:
            await self.give(link)
            raise
        return _Lane(self, link, path, file)

    async def size(self) -> int | None:
        async with self._talk() as link:
            try:
                return (await link.sftp.stat(self._path)).size
            except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
                return None

    async def digest(self, *, partial: bool) -> str:
        async with self._talk() as link:
            path = await link.sftp.realpath(self._part if partial else self._path)
            digests = await link.digests()
            return await digests.ask(path, None) if digests else ""

    async def begin(self, size: int, sha256: str) -> int:
        async with self._talk() as link:
            sftp = link.sftp
            if folder := posixpath.dirname(self._part):
                await sftp.makedirs(folder, exist_ok=True)
            left = 0
            with contextlib.suppress(asyncssh.SFTPNoSuchFile):
                left = (await sftp.stat(self._part)).size or 0
            if left > size:
                await sftp.truncate(self._part, size)
            elif not left:
                async with sftp.open(self._part, "wb"):
                    pass
            return min(left, size)

    async def finish(self) -> None:
        async with self._talk() as link:
            try:
                await link.sftp.posix_rename(self._part, self._path)
            except asyncssh.SFTPNoSuchFile:
                await link.sftp.stat(self._path)  # it is done already, and the answer was lost


class _Link:
    """A connection with SFTP on it, and a program at its other end that hashes files."""

    def __init__(
        self, where: str, connection: asyncssh.SSHClientConnection, sftp: asyncssh.SFTPClient
    ) -> None:
        self._where = where
        self._connection = connection
        self._digests: asyncio.Task[_Digests | None] | None = None
        self.sftp = sftp
        self.is_lost = False

    @contextlib.asynccontextmanager
    async def talk(self) -> AsyncIterator[None]:
        """What goes wrong within is told in words; a connection that was lost is not used again,
        nor one on which somebody stopped listening."""
        try:
            async with words(self._where):
                yield
        except (WorkError, Damaged):
            raise
        except BaseException:
            self.is_lost = True
            raise

    def prepare(self) -> "asyncio.Task[_Digests | None]":
        """Start the program that hashes, while something else goes on."""
        if self._digests is None:
            self._digests = asyncio.create_task(_Digests.start(self._connection))
        return self._digests

    async def digests(self) -> "_Digests | None":
        """None where no programs run, or none that can hash."""
        return await asyncio.shield(self.prepare())

    async def hang_up(self) -> None:
        self._connection.close()
        if self._digests is not None:
            self._digests.cancel()
            await asyncio.gather(self._digests, return_exceptions=True)
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self._connection.wait_closed(), 2)


class _Lane:
    """A connection with the file open."""

    def __init__(
        self, far: RemoteFile, link: _Link, path: str, file: asyncssh.SFTPClientFile
    ) -> None:
        self._far = far
        self._link = link
        self._path = path
        self._file = file

    async def has(self, chunk: Chunk, data: bytes) -> bool:
        async with self._link.talk():
            digests = await self._link.digests()
            if digests is None:  # no programs there: what it has travels once more
                return await self._file.read(chunk.size, chunk.offset) == data
            return await digests.ask(self._path, chunk) == chunk.sha256

    async def write(self, chunk: Chunk, data: bytes) -> None:
        async with self._link.talk():
            try:
                await self._file.write(data, chunk.offset)
            except asyncssh.SFTPFailure:  # OpenSSH says no more than that
                room = await self._link.sftp.statvfs(posixpath.dirname(self._path))
                if room.bavail * (room.frsize or room.bsize) < chunk.size:
                    raise asyncssh.SFTPNoSpaceOnFilesystem("") from None
                raise

    async def read(self, chunk: Chunk) -> bytes:
        async with self._link.talk():
            return await self._file.read(chunk.size, chunk.offset)

    async def close(self) -> None:
        if not self._link.is_lost:
            try:
                async with self._link.talk():
                    await self._file.close()
            except (Away, Damaged, WorkError):
                self._link.is_lost = True
        await self._far.give(self._link)


class _Digests:
    """A program on the machine that says what a file there holds."""

    def __init__(self, process: "asyncssh.SSHClientProcess[str]") -> None:
        self._process = process

    @classmethod
    async def start(cls, connection: asyncssh.SSHClientConnection) -> "_Digests | None":
        """None where no programs run, or none that can hash."""
        try:
            process = await connection.create_process(f"exec sh -c {shlex.quote(DIGESTS)}")
            line = await asyncio.wait_for(process.stdout.readline(), CONNECT_S)
        except (asyncssh.ChannelOpenError, asyncssh.ProcessError, TimeoutError):
            return None
        return cls(process) if line.strip() == "ready" else None

    async def ask(self, path: str, chunk: Chunk | None) -> str:
        """SHA-256 of a chunk of a file, or of all of it."""
        if "\n" in path:
            return ""
        wanted = (0, "all") if chunk is None else (chunk.offset // BLOCK, -(-chunk.size // BLOCK))
        self._process.stdin.write(f"{path}\n{wanted[0]}\n{wanted[1]}\n")
        line = await self._process.stdout.readline()
        if not line:
            raise Away("the program that compares files there has ended.")
        return line.split()[0].lstrip("\\") if line.split() else ""


@contextlib.asynccontextmanager
async def words(where: str) -> AsyncIterator[None]:
    """What goes wrong with a machine within, as Away, Damaged, or WorkError with a sentence."""
    try:
        yield
    except (asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded):
        raise WorkError(
            f"The disk of {where} is full. Make room there and run it again: what has arrived "
            "stays.",
            code="disk-full",
        ) from None
    except (asyncssh.SFTPPermissionDenied, asyncssh.SFTPWriteProtect) as error:
        raise WorkError(
            f"{where} does not allow it ({_plain(error)}). Look at the folder, and at who may "
            "write there.",
            code="permission",
        ) from None
    except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection, asyncssh.DisconnectError,
            asyncssh.ChannelOpenError, OSError) as error:  # fmt: skip
        raise Away(f"the connection to {where} was lost ({_plain(error)}).") from None
    except asyncssh.SFTPNoSuchFile as error:
        raise WorkError(
            f"{where} has no such file or folder: {_plain(error)}", code="no-file"
        ) from None
    except asyncssh.SFTPError as error:
        raise Damaged(f"{where} said: {_plain(error)}") from None


def _plain(error: BaseException | None) -> str:
    text = " ".join(str(getattr(error, "reason", "") or error).split())[:200]
    return text.rstrip(".") or type(error).__name__
