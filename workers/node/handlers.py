"""What this node can do: a fixed table from a task's kind to the function that does it.

Standard library only. Nothing that came over the network ever names a function.
"""

import importlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Handler = Callable[[dict[str, Any], Any], dict[str, Any] | None]


@dataclass(frozen=True)
class Way:
    """How tasks of one kind are done.

    ``target`` is "module:function". ``venv`` is "node", or "engine" for the virtualenv that the
    task's engine names. ``light`` work is short and has slots of its own. Candidates of a kind
    that ``keeps`` them count even when the work is cut short.
    """

    target: str
    venv: Literal["node", "engine"]
    light: bool = False
    network: bool = True
    keeps: bool = False


TABLE: dict[str, Way] = {
    "dataset.ingest": Way("datasets.ingest:run", "node", light=True, network=False),
    "training.train": Way("training.engines.harness:train", "engine", keeps=True),
    "training.refit": Way("training.engines.refit:refit", "engine"),
    "training.learning_curve": Way("training.engines.curve:learning_curve", "engine"),
    "training.importance": Way(
        "training.engines.importance:importance", "engine", light=True, network=False
    ),
    "training.dependence": Way(
        "training.engines.dependence:dependence", "engine", light=True, network=False
    ),
    "training.check": Way("training.gate:run", "node", light=True, network=False),
    "training.predict_file": Way("training.engines.harness:predict_file", "engine", light=True),
    "pipeline.sql": Way("pipelines.stages.sql:run", "node"),
    "pipeline.write-back": Way("pipelines.stages.write_back:run", "node"),
    "pipeline.upload": Way("pipelines.stages.upload:run", "node", light=True),
    "pipeline.download": Way("pipelines.stages.download:run", "node", light=True),
    "pipeline.remote": Way("pipelines.stages.remote:run", "node"),
    "pipeline.remote-end": Way("pipelines.stages.remote:end", "node", light=True),
    "pipeline.hook": Way("pipelines.stages.hook:run", "node", light=True),
    "pipeline.test": Way("pipelines.stages.check:run", "node", light=True),
}
PREDICTOR = "training.engines.harness:load_predictor"
NOT_ENGINES = frozenset({"base", "harness", "__init__"})
# Large, and seldom the first choice: imported when a task first asks, not when the node starts.
LATE = frozenset({"flaml", "fuxictr", "tensorflow", "torch"})
# A version may follow (sklearn-1.4), whose dots come before digits: no name is that of a queue.
ENGINE_NAME = re.compile(r"^[a-z][a-z0-9_]*(-[a-z0-9]+(\.[0-9][a-z0-9]*)*)*\Z")
# Engines whose versions are called otherwise than their file.
FILES = {"pytorch": "torch"}


def way_for(kind: str) -> Way | None:
    """How to do a task of this kind, or None when this node cannot."""
    return added("HANDLERS").get(kind) or TABLE.get(kind)


def engine_module(engine: str) -> str:
    """The module that declares an engine (see training/engines/base.py).

    Versions share one: ``sklearn-1.4`` is declared where ``sklearn`` is.
    """
    file = engine.partition("-")[0]
    return str(added("ENGINES").get(engine) or f"training.engines.{FILES.get(file, file)}")


def predictor_target() -> str:
    """The "module:function" that turns an unpacked artifact folder into a predictor."""
    return str(added("TARGETS").get("predictor") or PREDICTOR)


def load(target: str) -> Any:
    """Import what a "module:function" of this table names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def added(name: str) -> Mapping[str, Any]:
    """What a test's own module adds. The variable is unset outside the node's tests."""
    module = os.environ.get("FLOWML_TEST_HANDLERS")
    return getattr(importlib.import_module(module), name, {}) if module else {}
