"""The node's command: ``python -m workers.cli``. Without arguments: probe, choose queues, run."""

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from workers.node import installing, probe, service
from workers.node.settings import ROOT, VERSION, Settings, read
from workers.node.supervisor import RESTART, CannotJoin, Supervisor


class Lines(logging.Formatter):
    """One JSON object per line, as the other processes write them."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status: 2 for bad settings, 3 when it may not join."""
    args = _parser().parse_args(argv)
    if args.probe_only:
        venvs = Path(os.environ.get("FLOWML_VENVS") or ROOT / ".venvs")
        engines = tuple(args.engines.split(",")) if args.engines else None
        folder = Path(os.environ.get("FLOWML_NODE_DIR") or ROOT)
        use_gpu = (os.environ.get("USE_GPU") or "1").lower() not in {"0", "false", "no", "off"}
        found = probe.probe(venvs, engines, folder, use_gpu=use_gpu)
        print(json.dumps(found, indent=2) if args.json else probe.table(found))
        return 0
    _log(os.environ.get("LOG_FORMAT") or ("text" if sys.stderr.isatty() else "json"))
    try:
        settings = read(
            os.environ,
            probe.cores(),
            url=args.register,
            token=args.token,
            name=args.name,
            queues=args.queues,
            engines=args.engines,
            concurrency=args.concurrency,
        )
    except ValueError as error:
        print(f"flowml node: {error}", file=sys.stderr)
        return 2
    if args.service:
        return service.install(settings, [o for o in argv or sys.argv[1:] if o != "--service"])
    installing.install_missing(settings)
    try:
        status = asyncio.run(_run(settings))
    except CannotJoin as error:
        print(f"flowml node: {error}", file=sys.stderr)
        return 3
    if status == RESTART:  # in its place: whoever started this process keeps the same pid
        again = [sys.executable, "-m", "workers.cli", *(argv or sys.argv[1:])]
        os.execv(sys.executable, again)  # noqa: S606
    return status


async def _run(settings: Settings) -> int:
    supervisor = Supervisor(settings)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, supervisor.stop)
    return await supervisor.run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workers.cli", description=__doc__)
    add = parser.add_argument
    add("--register", metavar="URL", help="the server to work for (FLOWML_URL)")
    add("--token", help="the join token (FLOWML_JOIN_TOKEN)")
    add("--name", help="this node's name, unique on the server (FLOWML_NODE_NAME)")
    add("--queues", help="only these classes of work, e.g. cpu,gpu")
    add("--engines", help="only these engines, e.g. pycaret,autogluon; missing ones are installed")
    add("--concurrency", type=int, help="heavy tasks at a time; default: half the cores")
    add(
        "--probe-only",
        action="store_true",
        help="print what this machine can do, and end",
    )
    add("--json", action="store_true", help="with --probe-only: as JSON")
    add("--service", action="store_true", help="have systemd run this node, now and at each start")
    add("--version", action="version", version=VERSION)
    return parser


def _log(format: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        Lines()
        if format == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    )
    logging.basicConfig(level=os.environ.get("LOG_LEVEL", "INFO").upper(), handlers=[handler])
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
