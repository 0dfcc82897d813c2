"""What a node is told by its environment and flags."""

import hashlib
import os
import re
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSION = "0.1.0"
# What nodes and server say to each other. Raised when a change of it needs both to be updated;
# the server tells which it still understands (workers/joining.py).
PROTOCOL = 1
MAX_SOCKET_PATH = 100  # the kernel's limit is 107 bytes


@dataclass(frozen=True)
class Settings:
    """One node's settings. ``queues`` and ``engines`` None mean: whatever fits this machine."""

    url: str
    join_token: str
    name: str
    folder: Path
    run: Path
    venvs: Path
    concurrency: int
    light_slots: int
    queues: tuple[str, ...] | None = None
    engines: tuple[str, ...] | None = None
    cache_mib: int = 8192
    # With less free, nothing more is taken on: it could not be kept until it is delivered.
    min_disk_mib: int = 256
    # How long someone who is told to stop may take to end well before being killed.
    grace_s: float = 10.0
    model_server_mib: int = 2048
    poll: bool = False  # ask web for work and listen to no broker
    use_gpu: bool = True
    # Where Docker or Podman answers (a URL); empty: at the usual places; off: nowhere.
    containers: str = ""
    # The network that containers get; empty: one of each organization's own.
    container_network: str = ""

    @property
    def socket_path(self) -> Path:
        """Where predictions are answered. Short enough for the kernel, unlike some folders."""
        path = self.run / f"node-{self.name}.sock"
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
            return path
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"flowml-{os.getuid()}-{digest}" / "node.sock"

    @property
    def mark(self) -> str:
        """What every process of this node carries in its environment, to be found by."""
        digest = hashlib.sha256(os.fsencode(self.folder.resolve())).hexdigest()[:24]
        return f"FLOWML_MARK={digest}"

    def python(self, venv: str) -> Path:
        """The interpreter of one virtualenv; the node's own is whatever runs this."""
        return Path(sys.executable) if venv == "node" else self.venvs / venv / "bin" / "python"

    def child_environment(self, venv: str = "node") -> dict[str, str]:
        """A clean environment for work: no token, no address, nothing of this process's own."""
        name, _, value = self.mark.partition("=")
        kept = {
            key: os.environ[key]
            for key in (
                "LANG",
                "LC_ALL",
                "TZ",
                "FLOWML_TEST_HANDLERS",
                "FLOWML_WEIGHTS",
                "LD_LIBRARY_PATH",
            )
            if key in os.environ
        }
        return {
            "PATH": f"{self.python(venv).parent}:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            **kept,
            **thread_variables(1),
            name: value,
        }


def thread_variables(threads: int) -> dict[str, str]:
    """The variables that native thread pools read when they are loaded."""
    names = (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "POLARS_MAX_THREADS",
        "RAYON_NUM_THREADS",
        "LOKY_MAX_CPU_COUNT",  # what joblib takes for the number of cores
    )
    return dict.fromkeys(names, str(threads))


def read(env: Mapping[str, str], cores: int, **flags: object) -> Settings:
    """Settings from the environment, overridden by those flags that are not None.

    Raises ValueError with a sentence when something needed is missing or malformed.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    url = str(given.get("url") or env.get("FLOWML_URL") or "").rstrip("/")
    if not re.match(r"https?://[^/]+", url):
        raise ValueError("Tell the server's address: --register URL, or FLOWML_URL.")
    token = str(given.get("token") or env.get("FLOWML_JOIN_TOKEN") or "")
    name = str(given.get("name") or env.get("FLOWML_NODE_NAME") or socket.gethostname())
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ValueError(
            f'The name "{name}" will not do: up to 64 letters, digits, dots, dashes, underscores.'
        )
    var = Path(env.get("FLOWML_VAR") or ROOT / "var")
    concurrency = _count(given.get("concurrency") or env.get("FLOWML_CONCURRENCY"))
    use_gpu = _yes_or_no(env.get("USE_GPU"), "USE_GPU", usually=True)
    queues = _names(given.get("queues") or env.get("FLOWML_QUEUES") or env.get("WORKER_TYPE"))
    if not use_gpu and queues and all(name.partition(".")[0] == "gpu" for name in queues):
        raise ValueError("USE_GPU is off, and only work for a GPU is asked for: change either.")
    return Settings(
        url=url,
        join_token=token,
        name=name,
        folder=Path(env.get("FLOWML_NODE_DIR") or var / "node").absolute(),
        run=(var / "run").absolute(),
        venvs=Path(env.get("FLOWML_VENVS") or ROOT / ".venvs").absolute(),
        concurrency=concurrency or max(1, cores // 2),
        light_slots=2,
        queues=queues,
        engines=_names(
            given.get("engines") or env.get("FLOWML_ENGINES") or env.get("MODEL_FRAMEWORK")
        ),
        cache_mib=int(env.get("FLOWML_NODE_CACHE_MIB") or 8192),
        min_disk_mib=int(env.get("FLOWML_NODE_MIN_DISK_MIB") or 256),
        grace_s=float(env.get("FLOWML_STOP_GRACE_S") or 10),
        model_server_mib=int(env.get("FLOWML_MODEL_SERVER_MIB") or 2048),
        poll=_yes_or_no(env.get("FLOWML_POLL"), "FLOWML_POLL", usually=False),
        use_gpu=use_gpu,
        containers=(env.get("FLOWML_CONTAINERS") or "").strip(),
        container_network=(env.get("FLOWML_CONTAINER_NETWORK") or "").strip(),
    )


def _count(said: object) -> int:
    text = str(said or 0)
    if not text.isdecimal() or int(text) > 1000:
        raise ValueError(f"The concurrency is a whole number up to 1000, not {text!r}.")
    return int(text)


def _yes_or_no(text: str | None, name: str, *, usually: bool) -> bool:
    said = (text or "").strip().lower()
    if said in {"1", "true", "yes", "on"}:
        return True
    if said in {"0", "false", "no", "off"}:
        return False
    if said:
        raise ValueError(f"{name} is either 1 or 0, not {text!r}.")
    return usually


def _names(text: object) -> tuple[str, ...] | None:
    names = tuple(part.strip().lower() for part in str(text or "").split(",") if part.strip())
    return names or None
