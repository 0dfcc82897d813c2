"""Making the virtualenvs of engines that a node is told to serve and does not have yet.

By tools/venvs.py, from the lock files beside this code: nothing is installed that a lock does not
name with its hash. Imports no Django.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path

from workers.node import handlers
from workers.node.settings import ROOT, Settings

log = logging.getLogger("flowml.node")


def missing(settings: Settings) -> list[str]:
    """The engines that are asked for by name, have a lock file here, and no virtualenv."""
    return [
        name
        for name in settings.engines or ()
        if handlers.ENGINE_NAME.fullmatch(name)
        and (ROOT / "requirements" / f"engine-{name}.txt").is_file()
        and not settings.python(name).exists()
    ]


def install_missing(settings: Settings) -> None:
    """Make what is missing, before the node serves: minutes. What fails is logged, and left out.

    Not where FLOWML_INSTALL is 0, nor where virtualenvs are kept elsewhere than beside the code:
    there somebody else makes them.
    """
    wanted = missing(settings)
    if not wanted:
        return
    names = ", ".join(wanted)
    ours = (ROOT / ".venvs").resolve() == Path(settings.venvs).resolve()
    if (os.environ.get("FLOWML_INSTALL") or "1").strip().lower() in {"0", "false", "no", "off"}:
        log.warning("not installed here, and FLOWML_INSTALL is off: %s", names)
        return
    if not ours:
        log.warning("not installed in %s: %s", settings.venvs, names)
        return
    for name in wanted:
        log.info("installing the engine %s from its lock file", name)
        done = subprocess.run(
            [sys.executable, str(ROOT / "tools" / "venvs.py"), "--engine", name],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            said = (done.stderr or "").strip().splitlines()[-1:]
            log.error("the engine %s could not be installed: %s", name, " ".join(said))
