"""Make the virtualenvs in ``.venvs/`` from the lock files in ``requirements/``.

    python3.11 tools/venvs.py web node pycaret
    python3.11 tools/venvs.py --engine flaml

``web``, ``dev``, ``node``, ``nodejs``, ``spark`` and ``tools`` come from
``requirements/<name>.txt``, any other name is an engine's: ``requirements/engine-<name>.txt`` (with
``--engine`` no other name is taken). A stamp inside each virtualenv holds the hash of what it was
made from, so that a second call does nothing; a virtualenv without one was
interrupted half-way and is made anew. Standard library only, since nothing is installed yet.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENVS = ROOT / ".venvs"
STAMP = ".flowml-stamp"
PYTHON = (3, 11)  # PyCaret 3.3 takes nothing later; one version for all keeps the locks simple
OURS = {"web", "dev", "node", "nodejs", "spark", "tools"}
ROOM_MIB = 300  # below this even the smallest virtualenv is not worth starting

# What pip was told about where packages come from, under uv's names for it.
PIP_TO_UV = {
    "find-links": "UV_FIND_LINKS",
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "cert": "SSL_CERT_FILE",
}


class Trouble(Exception):
    """Something a person must put right, in one sentence."""


def lock_file(name: str) -> Path:
    """The lock file that the virtualenv ``name`` is made from."""
    stem = name if name in OURS else f"engine-{name}"
    path = ROOT / "requirements" / f"{stem}.txt"
    if not path.is_file():
        raise Trouble(
            f"There is no {path.relative_to(ROOT)} to make the virtualenv {name} from. "
            f"Engines with a lock file are: {', '.join(engines())}."
        )
    return path


def engines() -> list[str]:
    """Every engine that has a lock file."""
    locks = (ROOT / "requirements").glob("engine-*.txt")
    return sorted(lock.stem.removeprefix("engine-") for lock in locks)


def fingerprint(lock: Path) -> str:
    """What a virtualenv depends on: its lock and, since its scripts hold it, its place."""
    return hashlib.sha256(lock.read_bytes() + b"\0" + str(VENVS).encode()).hexdigest()


def state_of(name: str) -> str:
    """``ready``, ``stale`` (whole, of an older lock), ``broken`` (half-made) or ``missing``."""
    venv = VENVS / name
    if not venv.exists():
        return "missing"
    stamp, python = venv / STAMP, venv / "bin" / "python"
    if not stamp.is_file() or not python.exists():  # exists() follows the link to a removed Python
        return "broken"
    made_from = stamp.read_text(encoding="ascii").strip()
    return "ready" if made_from == fingerprint(lock_file(name)) else "stale"


def check_machine() -> None:
    """Raise Trouble when no virtualenv can come of this."""
    if sys.version_info[:2] != PYTHON:
        raise Trouble(
            f"FlowML needs Python {PYTHON[0]}.{PYTHON[1]} and this is {sys.version.split()[0]}: "
            "install it, or say where it is with `make PYTHON=/path/to/python3.11`."
        )
    try:
        VENVS.mkdir(exist_ok=True)
    except OSError as error:
        raise Trouble(f"{VENVS} can't be made: {error.strerror}.") from error
    if not os.access(VENVS, os.W_OK):
        raise Trouble(
            f"{VENVS} belongs to another user: run as that user, or remove the folder with its "
            "owner's rights."
        )
    free = shutil.disk_usage(VENVS).free // 2**20
    if free < ROOM_MIB:
        raise Trouble(f"The disk that holds {VENVS} is full ({free} MiB left): make room first.")


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Hold the lock that keeps two makes from writing the same virtualenv."""
    with (VENVS / ".lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("venvs: waiting for another make to finish", flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def uv_environment() -> dict[str, str]:
    """The environment for uv: it reads none of pip's configuration, so that is handed over."""
    env = dict(os.environ)
    pip = [str(VENVS / "tools" / "bin" / "python"), "-m", "pip", "config", "list"]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    settings: dict[str, str] = {}
    for line in done.stdout.splitlines():  # "global.find-links='/some/where'", ":env:.cert=..."
        key, _, value = line.partition("=")
        settings[key.rsplit(".", 1)[-1]] = value.strip("'\"")  # environment variables come first
    for variable in ("find-links", "index-url", "extra-index-url", "cert"):
        settings[variable] = env.get(
            "PIP_" + variable.upper().replace("-", "_"), settings.get(variable, "")
        )
    for name, uv_name in PIP_TO_UV.items():
        value = settings[name].replace("\\n", " ")
        if name == "find-links":
            value = ",".join(value.split())
        elif name == "extra-index-url":
            value = " ".join(url for url in value.split() if is_reachable_folder(url))
        if value and uv_name not in env:
            env[uv_name] = value
    # As pip does. What is taken must have the lock's hash, so no index can slip anything in.
    env.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    env["UV_NO_PROGRESS"] = "1"
    env.pop("VIRTUAL_ENV", None)
    cache = Path(env.get("UV_CACHE_DIR") or Path(env.get("HOME") or "/nonexistent") / ".cache")
    if not _can_make(cache):  # a home that is missing or read-only
        env["UV_CACHE_DIR"] = str(VENVS / ".cache")
    return env


def torch_options(env: dict[str, str]) -> list[str]:
    """What makes uv find PyTorch's builds for CPUs (``2.13.0+cpu``), which the index lacks."""
    return [] if env.get("UV_FIND_LINKS") else ["--torch-backend", "cpu"]


def is_reachable_folder(url: str) -> bool:
    """Whether a ``file:`` index is there (uv stops at a missing one, pip does not)."""
    return not url.startswith("file://") or Path(url.removeprefix("file://")).is_dir()


def _can_make(path: Path) -> bool:
    while not path.exists():
        path = path.parent
    return os.access(path, os.W_OK | os.X_OK)


def run(command: list[str], name: str, env: dict[str, str] | None = None) -> None:
    """Run ``command``, its output in ``.venvs/<name>.log``. Raises Trouble in one sentence."""
    log = VENVS / f"{name}.log"
    with log.open("a", encoding="utf-8") as output:
        output.write("$ " + " ".join(command) + "\n")
        output.flush()
        try:
            code = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                check=False,
            ).returncode
        except FileNotFoundError as error:
            raise Trouble(f"{command[0]} is missing.") from error
    if code:
        text = log.read_text(encoding="utf-8", errors="replace")
        raise Trouble(reason(name, text[text.rfind("\n$ ") + 1 :], log))


def reason(name: str, output: str, log: Path) -> str:
    """The most likely cause of a failed installation, as one sentence."""
    low = output.lower()
    where = f"(the whole output is in {log.relative_to(ROOT)})"
    if "no space left" in low or "disk quota exceeded" in low:
        return f"The disk is full: {VENVS / name} could not be finished; make room and try again."
    if "ensurepip is not available" in low or "no module named ensurepip" in low:
        return (
            "This Python comes without venv: install it first (on Debian and Ubuntu the package "
            "python3.11-venv)."
        )
    if "hash mismatch" in low or "do not match the hashes" in low:
        return (
            f"A package for {name} is not the one that the lock file names, so nothing was "
            f"installed {where}."
        )
    network = ("dns error", "connect", "timed out", "network", "failed to fetch", "name resolution")
    if any(word in low for word in network):
        return (
            f"The packages for {name} could not be fetched: is there a connection to the package "
            f"index {where}?"
        )
    last = [line.strip() for line in output.splitlines() if line.strip()][-1:]
    return f"The virtualenv {name} could not be made: {' '.join(last)} {where}."


def make(name: str) -> bool:
    """Bring ``.venvs/<name>`` up to date. Returns whether anything had to be done."""
    state = state_of(name)
    if state == "ready":
        return False
    venv, lock = VENVS / name, lock_file(name)
    started = time.monotonic()
    doing = {"missing": "making", "stale": "updating", "broken": "making anew (it was half-made)"}
    print(f"venvs: {name}: {doing[state]}", flush=True)
    (VENVS / f"{name}.log").unlink(missing_ok=True)
    (venv / STAMP).unlink(missing_ok=True)  # from here on an interruption leaves it broken
    if name == "tools":
        _make_tools(venv, lock)
    else:
        uv = str(VENVS / "tools" / "bin" / "uv")
        env = uv_environment()
        python = str(venv / "bin" / "python")
        if state != "stale":
            run([uv, "venv", "--clear", "--python", sys.executable, str(venv)], name, env)
        more = torch_options(env) if "+cpu" in lock.read_text(encoding="utf-8") else []
        sync = [uv, "pip", "sync", "--require-hashes", *more, "--python", python, str(lock)]
        run(sync, name, env)
    temporary = venv / (STAMP + ".new")
    temporary.write_text(fingerprint(lock), encoding="ascii")
    temporary.replace(venv / STAMP)
    print(f"venvs: {name}: done in {time.monotonic() - started:.0f} s", flush=True)
    return True


def _make_tools(venv: Path, lock: Path) -> None:
    """uv itself, through pip."""
    run([sys.executable, "-m", "venv", "--clear", str(venv)], "tools")
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--require-hashes"]
    run([*pip, "--disable-pip-version-check", "-r", str(lock)], "tools")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--state", action="store_true", help="only print the states, as JSON")
    parser.add_argument("--engine", action="store_true", help="the names are engines; none: list")
    options = parser.parse_args(arguments)
    try:
        if options.engine:
            if unknown := [name for name in options.names if name not in engines()]:
                raise Trouble(
                    f"There is no engine {unknown[0]}. There are: {', '.join(engines())}."
                )
            if not options.names:
                for name in engines():
                    print(f"{name:<16} {state_of(name)}")
                return 0
        options.names = options.names or ["web", "node", "pycaret"]
        if options.state:
            print(json.dumps({name: state_of(name) for name in options.names}))
            return 0
        check_machine()
        if all(state_of(name) == "ready" for name in options.names):
            return 0
        with only_one():
            for name in ["tools", *options.names]:
                make(name)
    except Trouble as trouble:
        print(f"venvs: {trouble}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"venvs: {error.strerror}: {error.filename}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nvenvs: interrupted; the next make starts this virtualenv anew.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
