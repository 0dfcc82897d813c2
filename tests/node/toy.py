"""A toy engine and toy work, run in real children by a real supervisor (FLOWML_TEST_HANDLERS)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from workers.node.channel import Channel, WorkError
from workers.node.gpus import Device
from workers.node.handlers import Way

TOY = "tests.node.toy"


def echo(task: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Give back the payload, inputs read, what the process looks like."""
    channel.progress(0.5, "half way")
    print("hello from the child")
    texts = {name: Path(path).read_text() for name, path in task["inputs"].items()}
    Path("answer.txt").write_text("42")
    data = {
        "payload": task["payload"],
        "inputs": texts,
        "done": task["done"],
        "env": dict(os.environ),
        "cwd": os.getcwd(),
        "pid": os.getpid(),
        "sid": os.getsid(0),
        "python": sys.prefix,
    }
    return {"data": data, "files": {"answer": "answer.txt"}}


def candidates(task: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Hand over payload["keys"], then do payload["then"]."""
    payload = task["payload"]
    for key in payload["keys"]:
        if key in task["done"]:
            channel.log(f"{key} is done")
            continue
        Path("model.bin").unlink(missing_ok=True)
        Path("model.bin").write_text(f"model {key}")
        channel.candidate(key, {"name": key}, {"artifact": "model.bin"})
        time.sleep(payload.get("each_s", 0.0))
        if key == payload.get("die_after"):
            os.kill(os.getpid(), signal.SIGKILL)
    match payload.get("then"):
        case "hang":
            time.sleep(600)
        case "until_stop":
            while not channel.stopping:
                time.sleep(0.02)
    return {"data": {"done_before": task["done"]}}


def epochs(task: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """payload["epochs"] of them, each kept; goes on from what an earlier attempt has kept."""
    before = task["checkpoints"].get("fit")
    first = int(Path(before).read_text()) + 1 if before else 1
    for epoch in range(first, task["payload"]["epochs"] + 1):
        Path("kept.new").write_text(str(epoch))
        Path("kept.new").rename("kept")
        channel.checkpoint("fit", "kept")
        channel.notice(f"epoch {epoch}")
        if epoch == task["payload"].get("die_after") and not before:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(task["payload"]["each_s"])
    return {"data": {"first": first}}


def stubborn(task: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Ignore SIGTERM, start grandchildren in sessions of their own, one of them an orphan."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code = (
        "import os, signal, time; os.setsid(); signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "pid = os.fork();"
        "open(f'pid-{os.getpid()}', 'w').close();"
        "pid and os._exit(0) if os.environ.get('ORPHAN') else None;"
        "time.sleep(600)"
    )
    kept = subprocess.Popen([sys.executable, "-c", code])
    lost = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "ORPHAN": "1"})
    lost.wait()
    while len(list(Path().glob("pid-*"))) < 4:
        time.sleep(0.01)
    pids = sorted(int(path.name[4:]) for path in Path().glob("pid-*"))
    channel.notice("pids", pids=[os.getpid(), kept.pid, *pids])
    time.sleep(600)
    return {}


def hungry(task: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Take more memory than allowed: at once, in pieces, or in grandchildren."""
    how, hoard = task["payload"]["how"], []
    if how == "processes":
        code = "b = bytearray(120 << 20); import time; time.sleep(600)"
        hoard = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
        time.sleep(600)
    if how == "forks":  # what they share is nobody's own, and yet it is there
        hoard = [bytearray(b"x" * (100 << 20))]
        for _ in range(3):
            if os.fork() == 0:
                hoard.append(bytearray(b"x" * (80 << 20)))
                time.sleep(600)
        time.sleep(600)
    if how == "abort":
        print("terminate called after throwing an instance of 'std::bad_alloc'", flush=True)
        os.abort()
    while True:
        hoard.append(bytearray(32 << 20))


def chatty(task: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Print more than anybody wants to read, then say the last word."""
    for number in range(task["payload"]["lines"]):
        print(f"line {number}")
    print("the last word")
    return {}


class OutOfMemoryError(RuntimeError):
    """What PyTorch raises, by name."""


def gpu(task: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Train with batches of payload["batch"] on a GPU that holds payload["holds"] rows."""
    payload, size = task["payload"], task["payload"].get("batch", 1)
    if task["smaller_batch"]:
        size //= 2
    if size > payload.get("holds", size):
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    while payload.get("wait") and not channel.stopping:
        time.sleep(0.02)
    return {"data": {"batch": size, "devices": os.environ["CUDA_VISIBLE_DEVICES"]}}


def fail(task: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Fail in the way that the payload names."""
    match task["payload"]["how"]:
        case "work":
            raise WorkError("The column colour is not there.", code="no_column", column="colour")
        case "bug":
            raise KeyError("oops")
        case "exit":
            sys.exit(3)
        case "silent":
            os._exit(0)
        case "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "file":
            return {"data": {}, "files": {"x": "../../etc/passwd"}}
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
    return {}


def network(task: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Tell which network interfaces there are, and who one is."""
    names = [line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()]
    return {"data": {"interfaces": names[2:], "uid": os.getuid()}}


def careless(task: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Tell its secret in every way that there is."""
    told = task["confidential"]
    password = told["secrets"]["password"]
    print(f"connecting with {password}")
    channel.log(f"password={password}")
    inherited = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
    channel.notice(f"It is {password}.", nested=[{"deep": password}], host=told["host"])
    while task["payload"].get("wait") and not channel.stopping:
        time.sleep(0.02)
    if task["payload"].get("fail"):
        raise WorkError(f"{password} was refused.", code="refused", sent=password)
    return {"data": {"length": len(password), "said": password, "inherited": inherited}}


class Predictor:
    def __init__(self, folder: str) -> None:
        self.spec = json.loads((Path(folder) / "model.json").read_text())

    def predict(self, columns: list[str], rows: list[list[Any]]) -> dict[str, Any]:
        if "x" not in columns:
            raise WorkError("The column x is missing.", code="columns", columns={"x": "is missing"})
        at = columns.index("x")
        if rows[0][at] == "sleep":
            time.sleep(2)
            return {"predictions": [0]}
        if rows[0][at] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if rows[0][at] == "die once" and not Path("died").exists():
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if rows[0][at] == "die once":
            return {"predictions": [os.getpid()]}
        factor = self.spec["factor"]
        return {"predictions": [row[at] * factor for row in rows], "pid": os.getpid()}

    def explain(self, columns, row, background):
        """A product has one cause: what is above the background's mean is the column's."""
        factor = self.spec["factor"]
        base = sum(one[0] for one in background) / len(background) * factor
        told = {"base": [base], "values": [[row[0] * factor - base]]}
        return self.predict(columns, [row]) | {"explanation": told}


def load_predictor(folder: str) -> Predictor:
    return Predictor(folder)


HANDLERS = {
    "toy.echo": Way(f"{TOY}:echo", "engine", light=True),
    "toy.bare": Way(f"{TOY}:echo", "node", light=True),
    "toy.train": Way(f"{TOY}:candidates", "engine", keeps=True),
    "toy.epochs": Way(f"{TOY}:epochs", "engine"),
    "toy.stubborn": Way(f"{TOY}:stubborn", "engine"),
    "toy.hungry": Way(f"{TOY}:hungry", "engine"),
    "toy.gpu": Way(f"{TOY}:gpu", "engine"),
    "toy.chatty": Way(f"{TOY}:chatty", "engine", light=True),
    "toy.fail": Way(f"{TOY}:fail", "engine", light=True),
    "toy.network": Way(f"{TOY}:network", "node", light=True, network=False),
    "toy.careless": Way(f"{TOY}:careless", "node", light=True),
    "toy.missing": Way("tests.node.nowhere:run", "engine"),
}
ENGINES = {
    "toy": "tests.node.toy_engine",
    "other": "tests.node.toy_engine",
    "sick": "tests.node.toy_sick",
}


def fake_gpus() -> list[Device]:
    """The GPUs of a machine without any, as the file TOY_GPUS lists them; the test changes it."""
    path = os.environ.get("TOY_GPUS")
    return [Device(**row) for row in json.loads(Path(path).read_text())] if path else []


NVML = {"read": fake_gpus}
TARGETS = {"predictor": f"{TOY}:load_predictor"}
