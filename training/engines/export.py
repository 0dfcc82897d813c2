"""The artifact: a zip that holds a model and all it takes to use it without FlowML.

Inside: ``model/`` (the engine's own files), ``schema.json``, ``flowml_model/`` (the few source
files that prepare rows and load the model: copies of this folder's), ``predict.py``, ``train.py``
(fits the same model again from the data set), ``requirements.txt`` with exact versions,
``README.md``.
"""

from __future__ import annotations

import functools
import json
import platform
import zipfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from .base import Candidate, Engine, Problem
from .frame import Schema

FORMAT = 1
HERE = Path(__file__).parent
ALWAYS = ("base", "frame", "tables", "text")
_WHEN = (2000, 1, 1, 0, 0, 0)  # equal content gives an equal zip


def schema_json(
    engine: Engine,
    candidate: Candidate,
    problem: Problem,
    schema: Schema,
    payload: Mapping[str, Any],
) -> dict[str, Any]:
    """What ``schema.json`` says: enough to ask, to check an answer, and to fit again."""
    return {
        "format": FORMAT,
        "engine": engine.name,
        "model": {
            "key": candidate.key,
            "name": candidate.name,
            "family": candidate.family,
            "recipe": dict(candidate.recipe),
            "train_rows": candidate.train_rows,
        },
        "task": problem.task,
        "target": problem.target,
        "classes": None if problem.classes is None else list(problem.classes),
        "positive_class": problem.positive_class,
        "metric": problem.metric,
        "seed": problem.seed,
        **schema.as_json(),
        "dataset": dict(payload.get("dataset") or {}),
        "split": dict(payload["split"]),
        "python": platform.python_version(),
    }


def write(
    path: Path,
    folder: Path,
    told: Mapping[str, Any],
    engine: Engine,
    splits: Path,
    packages: Sequence[str],
) -> None:
    """Write the zip. ``folder`` holds the model's files, ``told`` is what schema_json made.

    ``splits`` is the file of the split's code, which train.py needs; ``packages`` are the
    distributions that loading the model takes.
    """
    modules = [*ALWAYS, *(name for name in engine.modules if name not in ALWAYS)]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for file in sorted(item for item in folder.rglob("*") if item.is_file()):
            _add(archive, f"model/{file.relative_to(folder).as_posix()}", file.read_bytes())
        _add(archive, "schema.json", json.dumps(told, indent=1, ensure_ascii=False) + "\n")
        module = type(engine).__module__.rpartition(".")[2]
        _add(archive, "flowml_model/__init__.py", f"from .{module} import ENGINE as ENGINE\n")
        for name in modules:
            _add(archive, f"flowml_model/{name}.py", _source(HERE / f"{name}.py"))
        _add(archive, "flowml_model/splits.py", _source(splits))
        for name in ("predict.py", "train.py"):
            _add(archive, name, _source(HERE / "alone" / name))
        _add(archive, "requirements.txt", requirements(tuple(packages)))
        _add(archive, "README.md", readme(told))


def _add(archive: zipfile.ZipFile, name: str, content: str | bytes) -> None:
    info = zipfile.ZipInfo(name, _WHEN)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    archive.writestr(info, content)


@functools.cache
def _source(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@functools.cache
def requirements(packages: tuple[str, ...]) -> str:
    """``packages`` and all they need, in the versions installed here: requirements.txt."""
    from packaging.requirements import Requirement

    found: dict[str, str] = {}
    todo = list(packages)
    while todo:
        name = todo.pop()
        key = name.lower().replace("_", "-")
        if key in found:
            continue
        distribution = metadata.distribution(name)
        found[key] = distribution.version
        for text in distribution.requires or ():
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                todo.append(need.name)
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()))


def readme(told: Mapping[str, Any]) -> str:
    """A page for whoever finds the zip."""
    model, data = told["model"], told["dataset"]
    columns = "\n".join(f"| {c['name']} | {c['kind']} | {c['dtype']} |" for c in told["columns"])
    left = "\n".join(f"- `{name}`: {why}" for name, why in told["left_out"].items())
    unused = f"\nColumns of the data set that the model does not use:\n\n{left}\n" if left else ""
    answer = (
        f"one of {len(told['classes'])} classes of `{told['target']}`, with a probability for each"
        if told["classes"]
        else f"a number for `{told['target']}`"
    )
    python = ".".join(told["python"].split(".")[:2])
    return f"""# {model["name"]} for {told["target"]}

A model made by FlowML (engine: {told["engine"]}, task: {told["task"]}, ranked by {told["metric"]}),
fitted on {model["train_rows"]:,} rows of the data set {data.get("name") or "it was given"}.
It runs without FlowML. For each row it gives {answer}.

## Use it

    python{python} -m venv venv
    venv/bin/pip install -r requirements.txt
    venv/bin/python predict.py rows.csv            # writes rows.predictions.csv
    venv/bin/python predict.py rows.csv --json     # prints JSON

`rows.csv` (or a Parquet file) needs these columns, in any order; others are ignored:

| column | kind | type |
| --- | --- | --- |
{columns}

Empty fields are allowed, and so are categories that were not seen in training.
{unused}

## Make it again

    venv/bin/python train.py dataset.parquet       # writes model-again/

`dataset.parquet` is the data set version as downloaded from FlowML; its SHA-256
(`{data.get("sha256", "")}`) is checked first. The same rows train, with the same seed.

The files in `model/` are loaded with joblib, which can run code: load only what you trust.
"""
