"""The engines that FlowML has, as their files declare them.

The web side never imports an engine, so the declarations are read from the source: class attributes
that are plain literals. To add an engine is to add its file. A further lock file adds a version of
it: ``requirements/engine-sklearn-1.4.txt`` is what makes the engine ``sklearn-1.4``.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from training.engines import named
from workers.node.handlers import FILES

FOLDER = Path(__file__).parent / "engines"
LOCKS = Path(__file__).parents[1] / "requirements"
TASKS = ("binary", "multiclass", "regression")


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a person needs to know to choose an engine.

    ``version_of`` names the engine that this one is another version of: it does nothing unless it
    is asked for by name. "" for the engines themselves.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    version_of: str = ""


@cache
def engines() -> dict[str, EngineInfo]:
    """Every engine by name: each class there that declares ``name`` and ``title``.

    Their versions come after them.
    """
    found: dict[str, EngineInfo] = {}
    for path in sorted(FOLDER.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and (info := _declared(node)) is not None:
                found[info.name] = info
    for lock in sorted(LOCKS.glob("engine-*-*.txt"), key=lambda lock: lock.stem):
        name = lock.stem.removeprefix("engine-")
        file, _, version = name.partition("-")
        if (info := found.get(FILES.get(file, file))) is not None:
            title = f"{info.title} {version}"
            found[name] = replace(info, name=name, title=title, version_of=info.name)
    return found


def table() -> str:
    """docs/engines.md's table of engines."""
    rows = [("engine", "what it is", "version", "tasks"), ("---", "---", "---", "---")]
    rows += [
        (f"`{info.name}`", info.title, _locked(info.name), ", ".join(info.tasks))
        for info in engines().values()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _locked(engine: str) -> str:
    """The locked version of what the engine's source file asks for first."""
    source = (LOCKS / f"engine-{engine}.in").read_text(encoding="utf-8")
    first = next(line for line in source.splitlines() if line and line[0] not in "#-")
    name = re.split(r"[\[<>=!~; ]", first)[0].lower().replace(".", "[.-]")
    lock = (LOCKS / f"engine-{engine}.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{name}(?:\[\S*\])?==(\S+)", lock, re.MULTILINE)
    return found[1] if found else ""


def models_table() -> str:
    """docs/engines.md's table of models by name."""
    rows = [("model", "engines", "tasks", "hyperparameters"), ("---", "---", "---", "---")]
    by_name: dict[str, list[str]] = {}
    for engine, models in named.MODELS.items():
        for name in models:
            by_name.setdefault(name, []).append(engine)
    for name, of in by_name.items():
        model = named.MODELS[of[0]][name]
        tasks = [
            word
            for word, kind in (("classification", "binary"), ("regression", "regression"))
            if model.does(kind)
        ]
        takes = dict.fromkeys(one.name.partition(":")[0] for one in model.parameters)
        rows.append((f"`{name}`", ", ".join(of), ", ".join(tasks), ", ".join(takes)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


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
