"""A real node process on a fake web side, with a toy engine in a virtualenv of its own."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.node.fakeweb import FakeWeb, until
from workers.node.settings import ROOT


class Node:
    """One ``python -m workers.cli``, started and stopped at will on the same folder."""

    def __init__(self, web: FakeWeb, folder: Path) -> None:
        self.web = web
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self.env: dict[str, str] = {}
        venvs = folder / "venvs"
        venvs.mkdir()
        for name in ("toy", "sick"):
            (venvs / name).symlink_to(sys.prefix)

    @property
    def socket(self) -> Path:
        return self.folder / "run" / "node-test.sock"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def start(self, *args: str, wait: bool = True) -> "Node":
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "FLOWML_URL": self.web.url,
            "FLOWML_JOIN_TOKEN": "join",
            "FLOWML_NODE_DIR": str(self.folder / "node"),
            "FLOWML_VAR": str(self.folder),
            "FLOWML_NODE_NAME": "test",
            "FLOWML_VENVS": str(self.folder / "venvs"),
            "FLOWML_TEST_HANDLERS": "tests.node.toy",
            "FLOWML_STOP_GRACE_S": "1",
            "LOG_FORMAT": "text",
            "A_SECRET": "hush",
            **self.env,
        }
        before = len(self.web.heartbeats)
        with (self.folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "workers.cli", "--engines", "toy", *args]
            self.process = subprocess.Popen(command, env=env, stderr=log, stdout=log, cwd=ROOT)
        if wait:
            until(lambda: len(self.web.heartbeats) > before, f"a heartbeat; {self.log}")
        return self

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(5)

    def stop(self, timeout_s: float = 10) -> int:
        """SIGTERM and wait. Returns the exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


@pytest.fixture(scope="module")
def shared_node() -> Iterator[Node]:
    """One node for all tests of a module that leave it well."""
    with tempfile.TemporaryDirectory(prefix="fn") as folder, FakeWeb() as web:
        node = Node(web, Path(folder)).start()
        yield node
        assert node.stop() == 0, node.log


@pytest.fixture
def node() -> Iterator[Node]:
    """A node of the test's own, not yet started."""
    with tempfile.TemporaryDirectory(prefix="fn") as folder, FakeWeb() as web:
        node = Node(web, Path(folder))
        try:
            yield node
        finally:
            if node.process is not None:
                node.stop()
