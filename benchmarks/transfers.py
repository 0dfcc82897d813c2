"""How long it takes to send a file to a machine: beside scp and rsync, and after a kill.

A real sshd on loopback takes a file of random bytes by FlowML's transfer (chunks side by side, each
hashed again at the far side, and the whole), by scp and by rsync over ssh, by turns.
Each FlowML transfer runs in a process of its own; imports are not counted. Then one is killed
(SIGKILL) when 90 % have arrived, and another goes on: how much does it send again?

    python -m benchmarks.transfers [--mib 1024] [--rounds 3]

Limits: 1.5 times scp's seconds with verification, 12 % sent again after the kill.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.pipelines import sshd

ROOT = Path(__file__).resolve().parents[1]
LIMIT_RATIO, LIMIT_AGAIN = 1.5, 0.12
SEND = """
import asyncio, json, sys, time
from pathlib import Path
from pipelines import reach, transfers
from pipelines.connectors.ssh import Machine
told = json.load(sys.stdin)
machine = Machine(told["settings"], told["secrets"], reach.parse(told["reach"]))
def tell(transfer):
    print(json.dumps({"share": transfer.fraction}), flush=True)
transfers.TELL_S = 0.05
begun = time.perf_counter()
sent = asyncio.run(transfers.send(
    Path(told["file"]), machine.file(told["name"]), told["name"], transfers.Rules(), tell
))
took = time.perf_counter() - begun
print(json.dumps({"wall_s": took, "moved": sent.moved, "size": sent.size}))
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, sshd.running() as server:
        file = Path(place) / "file"
        with file.open("wb") as out:
            for _ in range(asked.mib):
                out.write(os.urandom(1 << 20))
        ways = {"flowml": flowml, "scp": scp, "rsync": rsync}
        if not shutil.which("rsync"):
            del ways["rsync"]
        times: dict[str, list[float]] = {name: [] for name in ways}
        for n in range(asked.rounds):
            for name, way in ways.items():
                target = f"{name}-{n}"
                times[name].append(way(server, file, target))
                (server.files / target).unlink()
        medians = {name: statistics.median(found) for name, found in times.items()}
        for name, median in medians.items():
            shown = ", ".join(f"{one:.2f}" for one in times[name])
            print(f"{name:8} {median:6.2f} s  {asked.mib / median:5.0f} MiB/s  ({shown})")
        ratio = medians["flowml"] / medians["scp"]
        print(f"flowml is {ratio:.2f} times scp (limit {LIMIT_RATIO})")
        share, again = killed(server, file)
        print(f"killed at {share:.0%}: {again:.1%} sent by the next (limit {LIMIT_AGAIN:.0%})")


def begin(server: sshd.Sshd, file: Path, name: str) -> "subprocess.Popen[bytes]":
    told = {
        "settings": server.settings(), "secrets": server.secrets, "reach": server.reach,
        "file": str(file), "name": name,
    }  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-c", SEND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert child.stdin is not None
    child.stdin.write(json.dumps(told).encode())
    child.stdin.close()
    return child


def ended(child: "subprocess.Popen[bytes]") -> dict[str, Any]:
    assert child.stdout is not None
    lines = child.stdout.read().splitlines()
    assert child.wait() == 0
    return dict(json.loads(lines[-1]))


def flowml(server: sshd.Sshd, file: Path, name: str) -> float:
    return float(ended(begin(server, file, name))["wall_s"])


def options(server: sshd.Sshd) -> list[str]:
    return [
        "-i", f"{server.folder}/user", "-o", "StrictHostKeyChecking=no", "-o",
        "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes",
    ]  # fmt: skip


def timed(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - begun


def scp(server: sshd.Sshd, file: Path, name: str) -> float:
    target = f"{server.user}@127.0.0.1:{server.files}/{name}"
    return timed(["scp", "-q", "-P", str(server.port), *options(server), str(file), target])


def rsync(server: sshd.Sshd, file: Path, name: str) -> float:
    way = " ".join(["ssh", "-p", str(server.port), *options(server)])
    target = f"{server.user}@127.0.0.1:{server.files}/{name}"
    return timed(["rsync", "-q", "-W", "-e", way, str(file), target])


def killed(server: sshd.Sshd, file: Path) -> tuple[float, float]:
    """Kill a transfer at 90 %. Returns how far it was, and what share the next one sent."""
    child, share = begin(server, file, "killed"), 0.0
    assert child.stdout is not None
    for line in child.stdout:
        share = json.loads(line).get("share", 1.0)
        if share >= 0.9:
            break
    child.send_signal(signal.SIGKILL)
    child.wait()
    end = ended(begin(server, file, "killed"))
    assert (server.files / "killed").read_bytes() == file.read_bytes()
    return share, end["moved"] / end["size"]


if __name__ == "__main__":
    main()
