"""What can be asked of engines by a model's name, and whether a request for one holds. Pure.

The models and their hyperparameters are data of training/engines/named.py; which engines there are
is passed in.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from training.engines import named

# What is trained where nobody says which: strong ones, and simple ones to compare with.
USUAL = ("logistic_regression", "ridge", "random_forest", "gradient_boosting", "svm", "knn")
ALL = "all"
# What an engine fits on pictures where no model is named: what learns in the least time.
USUAL_ON_PICTURES = ("resnet", "mobilenet")


@dataclass(frozen=True, slots=True)
class Ask:
    """One model of an engine, fitted once with these hyperparameters."""

    engine: str
    model: str
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The key that the candidate will have."""
        return f"{self.engine}:{self.model}"

    def as_json(self) -> dict[str, Any]:
        return {
            "engine": self.engine,
            "model": self.model,
            "hyperparameters": dict(self.hyperparameters),
        }


class Refused(ValueError):
    """The request cannot be met. ``errors`` holds messages by field."""

    def __init__(self, errors: Mapping[str, Sequence[str]]) -> None:
        self.errors = {name: list(messages) for name, messages in errors.items()}
        super().__init__(" ".join(text for texts in self.errors.values() for text in texts))


def judge(asks: Sequence[Ask], task: str) -> list[Ask]:
    """The same with hyperparameters as the library wants them. Raises Refused with all problems."""
    errors: dict[str, list[str]] = {}
    for ask in asks:
        wrong = named.problems(ask.engine, ask.model, task, ask.hyperparameters)
        for name, text in wrong.items():
            place = "model" if name == "model" else f"hyperparameters.{name}"
            errors.setdefault(place, []).append(text)
    if errors:
        raise Refused(errors)
    return [
        Ask(
            ask.engine, ask.model, named.cleaned(ask.engine, ask.model, task, ask.hyperparameters)
        )
        for ask in asks
    ]  # fmt: skip


def on_pictures(engines: Sequence[str]) -> list[Ask]:
    """A race on pictures: each of these engines, which have to see, fits its usual model."""
    return [
        Ask(engine, next(one for one in USUAL_ON_PICTURES if one in named.models_of(engine)))
        for engine in engines
    ]


def class_of(engine: str, model: str, task: str) -> str:
    """``RandomForestClassifier`` for ``random_forest`` in a classification."""
    full = named.models_of(engine)[model].class_for(task)
    return (full or model).rpartition(".")[2]


def choose(
    engine: str,
    wanted: Sequence[str] | str,
    task: str,
    hyperparameters: Mapping[str, Mapping[str, Any]],
) -> list[Ask]:
    """The models that are meant: names, class names, "all", or nothing for the usual ones.

    ``hyperparameters`` are by model, called as in ``wanted``. Raises Refused.
    """
    known = named.models_of(engine)
    if not known:
        raise Refused({"engine": [f"'{engine}' has no models that can be asked for by name."]})
    if wanted == ALL or not wanted:
        fitting = {n: m for n, m in known.items() if m.does(task) and m.reads == "table"}
        names = [n for n in fitting if wanted == ALL or n in USUAL]
    else:
        asked = [wanted] if isinstance(wanted, str) else wanted
        names = list(dict.fromkeys(_model_called(engine, one, task) for one in asked))
    given: dict[str, dict[str, Any]] = {}
    for called, values in hyperparameters.items():
        name = _model_called(engine, called, task, "hyperparameters")
        if name not in names:
            raise Refused({"hyperparameters": [f"'{called}' is not among the models to train."]})
        given[name] = dict(values)
    return judge([Ask(engine, name, given.get(name, {})) for name in names], task)


def _model_called(engine: str, called: str, task: str, place: str = "models") -> str:
    known = named.models_of(engine)
    for name, model in known.items():
        classes = [one.rpartition(".")[2] for one in (model.classifier, model.regressor) if one]
        if called == name or called in classes:
            if not model.does(task) or (
                called in classes and called != class_of(engine, name, task)
            ):
                raise Refused({place: [f"'{called}' does no {task} tasks."]})
            return name
    every = [*known, *(class_of(engine, n, task) for n, m in known.items() if m.does(task))]
    near = named.did_you_mean(called[:100], every) or _near_class(called, every)
    fitting = ", ".join(name for name, model in known.items() if model.does(task))
    raise Refused({place: [f"There is no model '{called[:100]}'.{near} Use: {fitting}."]})


def _near_class(called: str, every: Sequence[str]) -> str:
    by_lower = {one.lower(): one for one in every}
    near = named.did_you_mean(called[:100], list(by_lower))
    for lower, name in by_lower.items():
        near = near.replace(f"'{lower}'", f"'{name}'")
    return near


FILE_ENDING = r"\.(csv|tsv|txt|json|jsonl|ndjson|parquet|xlsx)(\.(gz|zst))?"


def label_of(text: str) -> str:
    """What of a data set's name stands in the names of its models: "Palmer penguins.csv" gives
    ``Palmer_penguins``."""
    text = re.sub(f"{FILE_ENDING}$", "", text)
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9.-]+", "_", plain).strip("_.-")[:60] or "data"
