"""Which engine a kind of model is trained by: the routing of the general job API. Pure.

``python -m training.jobtypes`` prints the table of docs/api.md.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from training.engines import named

# A family is one engine's file; its versions and builds are further lock files of it.
FAMILIES = {"sklearn": "scikit-learn", "torch": "PyTorch", "tensorflow": "TensorFlow"}
# Overrides that are called otherwise than the engine. Versions keep the name that is their lock's.
ALIASES = {"pytorch": "torch", "pytorch-gpu": "torch-gpu", "scikit-learn": "sklearn"}
STEMS = {"pytorch": "torch"}  # of versions' names: the family


@dataclass(frozen=True, slots=True)
class JobType:
    """``family`` trains it unless an override names another of ``also``."""

    name: str
    title: str
    data: str  # table, text or image
    family: str
    also: tuple[str, ...] = ()

    @property
    def families(self) -> tuple[str, ...]:
        return (self.family, *self.also)


TYPES: dict[str, JobType] = {
    one.name: one
    for one in (
        JobType("bert", "Text classifier (BERT)", "text", "torch"),
        JobType("transformer", "Text classifier (transformer)", "text", "torch"),
        JobType("resnet", "Image classifier (ResNet)", "image", "torch"),
        JobType("vgg", "Image classifier (VGG)", "image", "torch"),
        JobType("inception", "Image classifier (Inception)", "image", "tensorflow"),
        JobType("mobilenet", "Image classifier (MobileNet)", "image", "tensorflow"),
        JobType("tabular_network", "Network on a table", "table", "torch", ("tensorflow",)),
        *(JobType(model.name, model.title, "table", "sklearn") for model in named.SKLEARN),
    )
}


@dataclass(frozen=True, slots=True)
class Route:
    """``engine`` fits ``model`` on ``device``, "cpu" or "gpu"."""

    engine: str
    model: str
    device: str


class NoRoute(ValueError):
    """No engine does this. ``field`` of the request is to blame."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(message)


def route(
    model_type: str,
    override: str,
    requires_gpu: bool,
    *,
    locks: Collection[str],
    models: Mapping[str, Mapping[str, object]] = named.MODELS,
) -> Route:
    """Where a request goes. ``locks``: engines that this installation has a lock file of;
    ``models``: what each family's adapter can fit. Raises NoRoute."""
    if model_type not in TYPES:
        near = named.did_you_mean(model_type[:100], list(TYPES))
        there = ", ".join(available(locks, models))
        raise NoRoute("model_type", f"There is no model type '{model_type[:100]}'.{near} {there}")
    job_type = TYPES[model_type]
    engine = _engine(job_type, override, requires_gpu, locks)
    if model_type not in models.get(family_of(engine), {}) or engine not in locks:
        there = ", ".join(available(locks, models))
        raise NoRoute(
            "model_type",
            f"'{model_type}' needs the engine {engine}, which this installation does not have for "
            f"it yet. It has: {there}.",
        )
    on_gpu = requires_gpu or engine.endswith("-gpu")
    return Route(engine, model_type, "gpu" if on_gpu else "cpu")


def _engine(job_type: JobType, override: str, requires_gpu: bool, locks: Collection[str]) -> str:
    known = overrides(job_type, locks)
    if override and override not in known:
        near = named.did_you_mean(override[:100], known)
        raise NoRoute(
            "framework_override",
            f"'{override[:100]}' trains no {job_type.name}.{near} Use one of: {', '.join(known)}.",
        )
    engine = ALIASES.get(override, override) or job_type.family
    if not requires_gpu or engine.endswith("-gpu"):
        return engine
    if f"{engine}-gpu" in locks:
        return f"{engine}-gpu"
    if family_of(engine) == "sklearn":
        raise NoRoute("requires_gpu", f"{FAMILIES['sklearn']} computes on CPUs alone.")
    there = ", ".join(sorted(one for one in known if one.endswith("-gpu"))) or "none"
    raise NoRoute(
        "requires_gpu",
        f"This installation has no build of {engine} for GPUs. {job_type.name} has: {there}.",
    )


def family_of(engine: str) -> str:
    stem = engine.partition("-")[0]
    return STEMS.get(stem, stem)


def overrides(job_type: JobType, locks: Collection[str]) -> list[str]:
    """What may be named as ``framework_override`` for this type, by what is locked here."""
    engines = sorted(one for one in locks if family_of(one) in job_type.families)
    return [*engines, *(alias for alias, engine in ALIASES.items() if engine in engines)]


def available(
    locks: Collection[str], models: Mapping[str, Mapping[str, object]] = named.MODELS
) -> list[str]:
    """The model types that can be trained in this installation."""
    return [
        one.name
        for one in TYPES.values()
        if any(family in locks and one.name in models.get(family, {}) for family in one.families)
    ]


def target_of(columns: Sequence[str]) -> str | None:
    """The column that is meant where a request names none; None when it isn't plain."""
    usual = [name for name in columns if name.lower() in {"target", "label", "class", "y"}]
    return usual[0] if len(usual) == 1 else None


def choice(model_type: str, columns: Sequence[Mapping[str, Any]], target: str) -> dict[str, Any]:
    """What a training by this type takes of the data: ``exclude``, ``column_types``, ``split``.

    A type that learns from texts or pictures takes the columns of that role alone; where none has
    the role text, all of plain text. It is ranked by a part of the rows, however few there are:
    a fit for each fold takes long. Raises NoRoute where there is nothing for it to learn from.
    """
    wanted = TYPES[model_type].data
    if wanted == "table":
        return {}
    others = [column for column in columns if column["name"] != target]
    chosen = [str(column["name"]) for column in others if column["role"] == wanted]
    if not chosen and wanted == "text":
        usual = {"categorical", "identifier"}
        chosen = [
            str(column["name"])
            for column in others
            if column["dtype"] == "string" and column["role"] in usual
        ]
    if not chosen:
        what = {"text": "texts", "image": "pictures"}[wanted]
        raise NoRoute("dataset", f"'{model_type}' learns from {what}, and the data set has none.")
    return {
        "exclude": [str(column["name"]) for column in others if column["name"] not in chosen],
        "column_types": dict.fromkeys(chosen, wanted),
        "split": {"validation": 0.2},
    }


def table() -> str:
    """docs/api.md's table."""
    families: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for one in TYPES.values():
        families.setdefault((one.data, one.family, one.also), []).append(f"`{one.name}`")
    rows = [
        ("model type", "learns from", "engine", "with `requires_gpu`", "`framework_override`"),
        ("---", "---", "---", "---", "---"),
    ]
    for (data, family, also), names in families.items():
        gpu = "an error" if family == "sklearn" else f"`{family}-gpu`"
        own = [alias for alias, engine in ALIASES.items() if engine == family]
        may = [family, *own, *also]
        versions = {"sklearn": "sklearn-1.4", "torch": "pytorch-2.1"}.get(family)
        if versions:
            may.append(f"{versions}, …")
        shown = ", ".join(f"`{one}`" for one in may)
        rows.append((", ".join(names), data, f"`{family}`", gpu, shown))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    sys.stdout.write(f"{table()}\n")
