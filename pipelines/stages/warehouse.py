"""The warehouse that a task names, with what its node was told in confidence. No Django."""

import importlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import reach
from workers.node import procs
from workers.node.channel import WorkError
from workers.node.child import PlatformError

if TYPE_CHECKING:
    from pipelines.connectors.base import Warehouse

SERVERS = {"postgres": "Postgres", "hive": "Hive"}  # class by module, which has the kind's name
MARGIN_S = 30  # of a task's time, for what comes after the query
MOST_SPILL_MIB = 16 * 1024


@contextmanager
def opened(task: Mapping[str, Any]) -> Iterator["Warehouse"]:
    """The warehouse of ``task``, closed again at the end. Raises WorkError where there is none.

    ``payload["tables"]`` maps names in SQL to names of inputs. Must be called before anything has
    started a thread: the embedded warehouse leaves the network first.
    """
    warehouse: Warehouse
    told = task.get("confidential") or {}
    if problem := told.get("problem"):
        raise WorkError(str(problem), code="connection")
    kind = str(told.get("kind") or "")
    limits = task.get("limits") or {}
    time_s = max(1.0, float(limits.get("time_s") or 600) - MARGIN_S)
    if kind == "duckdb":
        warehouse = _duckdb(task, int(limits.get("ram_mib") or 2048), time_s)
    elif kind in SERVERS:
        settings, secrets = told.get("settings") or {}, told.get("secrets") or {}
        rules = reach.parse(str(told.get("reach") or ""))
        made = getattr(_connector(kind), SERVERS[kind])
        warehouse = made(settings, secrets, rules, time_s=time_s)
    else:
        raise WorkError(
            f'A connection of the kind "{kind}" is no warehouse that FlowML can use yet.',
            code="connection",
        )
    try:
        yield warehouse
    finally:
        warehouse.close()


def _duckdb(task: Mapping[str, Any], ram_mib: int, time_s: float) -> "Warehouse":
    if why := procs.leave_network():
        print(f"This machine does not allow work without network ({why}); going on with it.")  # noqa: T201
    inputs = task.get("inputs") or {}
    names = (task.get("payload") or {}).get("tables") or {}
    tables = {str(name): Path(inputs[given]) for name, given in names.items()}
    work = Path.cwd() / "duckdb"
    free_mib = shutil.disk_usage(Path.cwd()).free // 2**20
    warehouse: Warehouse = _connector("duckdb").DuckDB(
        tables,
        work,
        # The rest is for what comes in and goes out: the process as a whole is limited, too.
        ram_mib=max(128, ram_mib * 6 // 10),
        time_s=time_s,
        disk_mib=max(64, min(MOST_SPILL_MIB, free_mib // 2)),
    )
    return warehouse


def _connector(name: str) -> Any:
    """A connector's module, imported here alone: no other task needs what it needs.

    Raises PlatformError where this node's virtualenv is older than its code.
    """
    try:
        return importlib.import_module(f"pipelines.connectors.{name}")
    except ImportError as error:
        raise PlatformError(
            f"This node's virtualenv lacks what warehouses need ({error}): bring it up to date "
            "with tools/venvs.py node, and start the node again."
        ) from error
