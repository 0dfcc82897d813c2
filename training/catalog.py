"""The engines that FlowML has, as their files declare them.

The web side never imports an engine, so the declarations are read from the source: class attributes
that are plain literals. To add an engine is to add its file.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "engines"
TASKS = ("binary", "multiclass", "regression")


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a person needs to know to choose an engine."""

    name: str
    title: str
    tasks: tuple[str, ...]


@cache
def engines() -> dict[str, EngineInfo]:
    """Every engine by name: each class there that declares ``name`` and ``title``."""
    found = {}
    for path in sorted(FOLDER.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and (info := _declared(node)) is not None:
                found[info.name] = info
    return found


def _declared(node: ast.ClassDef) -> EngineInfo | None:
    values: dict[str, object] = {}
    for line in node.body:
        target = line.targets[0] if isinstance(line, ast.Assign) else None
        if isinstance(line, ast.AnnAssign):
            target = line.target
        if isinstance(line, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name):
            values[target.id] = _literal(line.value)
    name, title = values.get("name"), values.get("title")
    if not isinstance(name, str) or not isinstance(title, str):
        return None
    tasks = values.get("task_types")
    does = tuple(task for task in TASKS if task in tasks) if isinstance(tasks, set) else TASKS
    return EngineInfo(name, title, does)


def _literal(value: ast.expr | None) -> object:
    """The literal, None for what had to be run; ``frozenset({...})`` counts as its set."""
    if isinstance(value, ast.Call) and len(value.args) == 1:
        value = value.args[0]
    try:
        return ast.literal_eval(value) if value is not None else None
    except ValueError:
        return None
