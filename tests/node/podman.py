"""A real Podman for tests, even where control groups are hybrid and limits can't be raised.

Debian's podman and crun, and an image made of busybox-static alone. What this machine can't enforce
(memory, processor) is only asked for.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.node.fakeweb import until

NEEDED = ("podman", "crun", "unshare", "busybox")
IMAGE = "localhost/flowml/busybox:1"
# It serves /www on the port that it is given, and says so; a shell is its process number 1.
COMMAND = """
echo "listening on $PORT, mode ${MODE:-none}"
mkdir -p /www/cgi-bin; echo ok > /www/health; echo "mode ${MODE:-none}" > /www/index.html
trap 'echo stopping; exit 0' TERM
[ "$MODE" = crash ] && { echo "no such table"; exit 3; }
httpd -f -p "$PORT" -h /www & wait
"""
# The real crun raises limits, which not every machine lets it.
CRUN = """#!/bin/sh
bundle=; last=
for one in "$@"; do case "$last" in --bundle|-b) bundle=$one;; esac; last=$one; done
[ -n "$bundle" ] && python3 - "$bundle/config.json" <<'END'
import json, sys
said = json.load(open(sys.argv[1])); said["process"].pop("rlimits", None)
json.dump(said, open(sys.argv[1], "w"))
END
exec {crun} "$@"
"""


def why_not() -> str:
    """Why containers can't be run here, or ""."""
    if lacking := [name for name in NEEDED if shutil.which(name) is None]:
        return f"this machine has no {', '.join(lacking)}"
    if os.geteuid() != 0:
        return "only root may set Podman up like this"
    tried = subprocess.run(
        ["unshare", "-m", "sh", "-c", MOUNT + " && true"], capture_output=True, check=False
    )
    return "" if tried.returncode == 0 else f"no mount namespace here: {tried.stderr.decode()}"


MOUNT = "umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup"


class Podman:
    """A Podman of the test's own, and its API."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"unix://{folder}/api.sock"
        self.options = [
            "--root", f"{folder}/root", "--runroot", f"{folder}/run", "--storage-driver=vfs",
            "--cgroup-manager=cgroupfs", "--runtime", f"{folder}/bin/crun",
        ]  # fmt: skip
        conf = folder / "containers.conf"
        conf.write_text('[containers]\ncgroups="disabled"\nnetns="host"\ndefault_ulimits=[]\n')
        self.env = {**os.environ, "CONTAINERS_CONF": str(conf)}

    def start(self) -> None:
        (self.folder / "bin").mkdir()
        crun = self.folder / "bin" / "crun"
        crun.write_text(CRUN.replace("{crun}", str(shutil.which("crun"))))
        crun.chmod(0o755)
        service = ["podman", *self.options, "system", "service", "--time=0", self.url]
        script = f'{MOUNT}; exec "$@"'
        with (self.folder / "log").open("wb") as log:
            self.service = subprocess.Popen(
                ["unshare", "-m", "sh", "-c", script, "sh", *service],
                env=self.env, stdout=log, stderr=log,
            )  # fmt: skip
        until(lambda: (self.folder / "api.sock").exists(), "Podman answers", 30)
        tree = self.folder / "tree"
        (tree / "bin").mkdir(parents=True)
        (tree / "tmp").mkdir()
        shutil.copy(str(shutil.which("busybox")), tree / "bin" / "busybox")
        for name in ("sh", "httpd", "mkdir", "echo", "sleep", "wget"):
            (tree / "bin" / name).symlink_to("busybox")
        subprocess.run(["tar", "-C", tree, "-cf", self.folder / "image.tar", "."], check=True)
        change = "CMD " + json.dumps(["/bin/sh", "-c", COMMAND])
        self("import", "--change", change, str(self.folder / "image.tar"), IMAGE)

    def __call__(self, *words: str) -> str:
        done = subprocess.run(
            ["podman", "--url", self.url, *words], capture_output=True, check=True, text=True
        )
        return done.stdout

    def running(self) -> list[str]:
        """The replicas whose containers run."""
        return self("ps", "--format", '{{index .Labels "flowml.replica"}}').split()

    def stop(self) -> None:
        subprocess.run(
            ["podman", "--url", self.url, "rm", "-fa", "-t", "0"], capture_output=True, check=False
        )
        self.service.terminate()
        self.service.wait(20)


@contextmanager
def podman() -> Iterator[Podman]:
    """Started, with IMAGE in it; nothing is left of it."""
    with tempfile.TemporaryDirectory(prefix="fp", ignore_cleanup_errors=True) as folder:
        engine = Podman(Path(folder))
        engine.start()
        try:
            yield engine
        finally:
            engine.stop()
