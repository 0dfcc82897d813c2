"""A real sshd on loopback, with keys that were made for the test: somebody's machine."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flowml_site import processes

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


class Sshd:
    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.files = folder / "files"
        self.port = port
        self.user = pwd.getpwuid(os.getuid()).pw_name
        self.key = (folder / "user").read_text()
        self.process: subprocess.Popen[bytes] | None = None
        self.fingerprint = _fingerprint(folder / "host.pub")
        self.log = folder / "log"

    def settings(self, **change: Any) -> dict[str, Any]:
        return {
            "host": "localhost", "port": self.port, "user": self.user,
            "host_key": self.fingerprint, "folder": str(self.files), **change,
        }  # fmt: skip

    @property
    def secrets(self) -> dict[str, str]:
        return {"private_key": self.key}

    @property
    def reach(self) -> str:
        return f"localhost:{self.port}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [SSHD, "-D", "-e", "-f", str(self.folder / "config")]
            self.process = subprocess.Popen(command, stderr=log, stdout=log, start_new_session=True)
        for _ in range(300):
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self.port), 1),
            ):
                return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def stop(self) -> None:
        """As when the machine goes down: connections that are open are lost, too."""
        if self.process is None:
            return
        for one in _below(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        self.process.kill()
        self.process.wait(10)
        self.process = None


def _below(pid: int) -> list[int]:
    """What sshd has forked for connections; not the programs that people started there."""
    import psutil

    found = []
    with contextlib.suppress(psutil.Error):
        for one in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if one.name().startswith("sshd"):
                    found.append(one.pid)
    return found


def _fingerprint(path: Path) -> str:
    said = subprocess.run(
        ["ssh-keygen", "-lf", str(path)], capture_output=True, text=True, check=True
    )
    return said.stdout.split()[1]


def make_key(path: Path, kind: str = "ed25519", passphrase: str = "") -> None:
    command = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-f", str(path), "-C", "test"]
    subprocess.run(command, check=True)


@contextmanager
def running(*more: str) -> Iterator[Sshd]:
    """``more``: lines for sshd_config."""
    if not os.access(SSHD, os.X_OK):
        if os.environ.get("CI"):
            pytest.fail("sshd is not installed: .ci/run installs openssh-server")
        pytest.skip("sshd is not installed (apt install openssh-server)")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="flowml-sshd-") as place:
        folder = Path(place)
        make_key(folder / "host")
        make_key(folder / "user")
        (folder / "user.pub").rename(folder / "authorized")
        (folder / "files").mkdir()
        port = processes.free_port()
        (folder / "config").write_text(
            "\n".join(
                [
                    f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {folder}/host",
                    f"AuthorizedKeysFile {folder}/authorized", "PasswordAuthentication no",
                    "KbdInteractiveAuthentication no", "UsePAM no", "StrictModes no",
                    "PermitRootLogin prohibit-password", f"PidFile {folder}/pid",
                    "Subsystem sftp internal-sftp", "MaxStartups 100", *more, "",
                ]
            )
        )  # fmt: skip
        server = Sshd(folder, port)
        server.start()
        try:
            yield server
        finally:
            server.stop()
