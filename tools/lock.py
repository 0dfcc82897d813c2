"""Compile ``requirements/*.in`` to lock files with hashes: ``make lock`` (``ARGS=--upgrade``).

Names among the arguments mean these alone: ``make lock ARGS="engine-sklearn --upgrade"``.

Versions that are locked stay unless a source file or ``--upgrade`` says otherwise. The files name
packages, versions and hashes only, never where they were fetched from.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import venvs

REQUIREMENTS = venvs.ROOT / "requirements"


def compile_one(source: Path, extra: list[str]) -> bool:
    """Compile one source file. Returns whether its lock changed; raises venvs.Trouble."""
    lock = source.with_suffix(".txt")
    before = lock.read_text(encoding="utf-8") if lock.exists() else ""
    uv = [str(venvs.VENVS / "tools" / "bin" / "uv"), "pip", "compile", "--quiet"]
    shape = ["--generate-hashes", "--no-header", "--no-emit-index-url", "--no-emit-find-links"]
    python = ["--python-version", "3.11"]
    env = venvs.uv_environment()
    if "+cpu" in source.read_text(encoding="utf-8"):
        # Builds of PyTorch for CPUs alone are not on the index: they come from a folder of wheels,
        # or where there is none from PyTorch's own index, with the same hashes.
        shape += venvs.torch_options(env)
    else:
        # A folder of wheels on this machine would stand in for the index, its few hashes with it.
        env.pop("UV_FIND_LINKS", None)
    env.pop("UV_INDEX", None)
    done = subprocess.run(
        [*uv, *shape, *python, *extra, source.name, "--output-file", lock.name],
        cwd=REQUIREMENTS,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise venvs.Trouble(f"{source.name}: {done.stderr.strip().splitlines()[-1]}")
    after = lock.read_text(encoding="utf-8")
    if re.search(r"^\s*--(?!hash)|://", after, re.MULTILINE):
        lock.write_text(before, encoding="utf-8")
        raise venvs.Trouble(f"{lock.name} would name a place that packages come from.")
    return after != before


def main(arguments: list[str]) -> int:
    options = [argument for argument in arguments if argument.startswith("-")]
    names = [argument for argument in arguments if not argument.startswith("-")]
    try:
        venvs.check_machine()
        with venvs.only_one():
            venvs.make("tools")
            sources = [REQUIREMENTS / f"{name}.in" for name in names]
            for source in sources or sorted(REQUIREMENTS.glob("*.in")):
                if not source.is_file():
                    raise venvs.Trouble(f"There is no {source.relative_to(venvs.ROOT)}.")
                changed = compile_one(source, options)
                print(f"lock: {source.stem}: {'changed' if changed else 'as it was'}", flush=True)
    except venvs.Trouble as trouble:
        print(f"lock: {trouble}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
