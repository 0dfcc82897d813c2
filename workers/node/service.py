"""``--service``: a systemd unit for this node, the machine's when run as root, else the user's."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from workers.node.settings import ROOT, Settings

# What the node was told by its environment, for the unit to tell it again. Not more: no secrets of
# the shell that runs this.
KEPT = ("FLOWML_VENVS", "FLOWML_VAR", "FLOWML_POLL", "USE_GPU", "WORKER_TYPE", "MODEL_FRAMEWORK")

UNIT = """[Unit]
Description=FlowML node {name}
Wants=network-online.target
After=network-online.target

[Service]
EnvironmentFile={env}
WorkingDirectory={folder}
ExecStart={command}
Restart=always
RestartSec=5
# Exit status 3: the server does not let it in. Asking for ever would not change that.
RestartPreventExitStatus=2 3
KillMode=mixed
TimeoutStopSec=20

[Install]
WantedBy={target}
"""


def install(settings: Settings, arguments: Sequence[str]) -> int:
    """Write the unit and start it. Returns the exit status: 2 where it could not be started."""
    of_machine = os.geteuid() == 0
    home = Path.home() / ".config" / "systemd" / "user"
    units = Path("/etc/systemd/system") if of_machine else home
    unit = f"flowml-node-{settings.name}.service"
    settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    env = settings.folder / "service.env"
    told = {name: os.environ[name] for name in KEPT if name in os.environ}
    told |= {
        "FLOWML_URL": settings.url,
        "FLOWML_JOIN_TOKEN": settings.join_token,
        "FLOWML_NODE_NAME": settings.name,
        "FLOWML_NODE_DIR": str(settings.folder),
        "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT)),
    }
    handle = os.open(env, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write("".join(f"{name}={_in_quotes(value)}\n" for name, value in told.items()))
    command = [sys.executable, "-m", "workers.cli", *_without_token(arguments)]
    text = UNIT.format(
        name=settings.name,
        env=env,
        folder=settings.folder,
        command=" ".join(_quoted(part) for part in command),
        target="multi-user.target" if of_machine else "default.target",
    )
    units.mkdir(parents=True, exist_ok=True)
    (units / unit).write_text(text, encoding="utf-8")
    print(f"flowml node: wrote {units / unit}")
    control = ["systemctl"] if of_machine else ["systemctl", "--user"]
    try:
        for words in (["daemon-reload"], ["enable", "--now", unit]):
            subprocess.run([*control, *words], check=True)
    except (OSError, subprocess.CalledProcessError):
        again = " ".join([*control, "enable", "--now", unit])
        print(f"flowml node: systemd does not answer here. Later: {again}", file=sys.stderr)
        return 2
    if not of_machine:
        print("flowml node: to have it run while you are not signed in: loginctl enable-linger")
    return 0


def _without_token(arguments: Sequence[str]) -> list[str]:
    """The token stands in the environment's file, and not on a command line for all to see."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and argument != "--token" and not argument.startswith("--token="):
            kept.append(argument)
        skip = argument == "--token"
    return kept


def _quoted(text: str) -> str:
    """One word of a unit's command, in which % and $ mean something."""
    return _in_quotes(text.replace("%", "%%").replace("$", "$$"))


def _in_quotes(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
