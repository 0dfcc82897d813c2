"""What an experiment says: one model with its hyperparameters, as YAML that people write. Pure.

    model: DeepFM
    target: clicked
    features:
      categorical: [user, item]
      numeric: [price]
    embedding_dim: 16
    hidden_units: [128, 64]

``check`` reads it into plain data, or tells every mistake with its line and the nearest known name.
Nothing but plain values is taken: no anchors, no tags. ``wish`` says what a training of it asks
for, of data with certain columns.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from training import catalog, checks
from training.checks import nearest
from training.engines import named
from training.evaluation import METRICS, metrics_for

MOST_TEXT = 20_000
MOST_NAMES = 2_000
MOST_DEPTH = 5
ENGINE = "fuxictr"  # where none is named
MOST_SEED = 2**31 - 1
SETTINGS = ("engine", "model", "target", "metric", "time_budget", "seed", "refit", "features",
            "exclude")  # fmt: skip
ROLES = tuple(dict.fromkeys(role for roles in checks.ROLES.values() for role in roles))
TEMPLATE = """\
# One model, with what it learns from and its hyperparameters.
model: DeepFM            # DeepFM, DCN or DLRM
target: clicked          # of two classes
metric: roc_auc
time_budget: 600         # seconds, at most
seed: 1

# The columns to learn from, by what they are. Leave this out to learn from all.
features:
  categorical: [user, item]
  numeric: [price]

embedding_dim: 16
hidden_units: [128, 64]
learning_rate: 0.005
batch_size: 1024
epochs: 20
patience: 4              # epochs without gain on rows kept back, then it ends
dropout: 0.1
embedding_regularizer: 1e-6
"""
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_WHOLE = re.compile(r"[-+]?\d{1,18}")
_WORDS = {"true": True, "yes": True, "false": False, "no": False, "null": None, "~": None}


@dataclass(frozen=True)
class Mistake:
    """``line``: counted from 1; 0 where it is the text as a whole."""

    line: int
    sentence: str

    def __str__(self) -> str:
        return f"Line {self.line}: {self.sentence}" if self.line else self.sentence


class Refused(Exception):
    """The text can't be: ``mistakes``, by their lines."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = sorted(mistakes, key=lambda one: one.line)
        super().__init__(" ".join(map(str, self.mistakes)))


@dataclass
class _Reading:
    config: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)  # of each setting
    mistakes: list[Mistake] = field(default_factory=list)

    def say(self, line: int, sentence: str) -> None:
        self.mistakes.append(Mistake(line, sentence))


def check(text: str) -> dict[str, Any]:
    """{"engine", "model", "target", "hyperparameters" and what else of SETTINGS it says}.

    Raises Refused with all that is wrong.
    """
    found = _Reading()
    values = _settings(text, found)
    engine, model = _engine_and_model(values, found)
    hyperparameters: dict[str, Any] = {}
    for name, node in values.items():
        if name in SETTINGS:
            _setting(name, node, found)
        elif model is not None:
            hyperparameters[name] = _value(node, found)
    if "target" not in values:
        found.say(0, "Say which column to predict: 'target: clicked'.")
    if "features" in values and "exclude" in values:
        found.say(found.lines["exclude"], "With 'features', all other columns are left out anyway.")
    if model is not None:
        found.config |= {"engine": engine, "model": model.name}
        found.config["hyperparameters"] = _hyperparameters(engine, model, hyperparameters, found)
        _metric(model, found)
    if found.mistakes:
        raise Refused(found.mistakes)
    return found.config


def digest(config: Mapping[str, Any]) -> str:
    """A SHA-256 of what it says, however it was written."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def wish(config: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """What a training asks for, of data with these columns. Raises Refused: some are not there."""
    target, features = config["target"], config.get("features") or {}
    roles = {name: role for role, names in features.items() for name in names}
    wanted = [target, *roles, *config.get("exclude", ())]
    if gone := [name for name in wanted if name not in columns]:
        raise Refused(
            [Mistake(0, f"The data have no column '{one}'.{nearest(one, columns)}") for one in gone]
        )
    exclude = list(config.get("exclude", ()))
    if roles:
        exclude = [name for name in columns if name not in roles and name != target]
    asked = {"target": target, "exclude": exclude, "column_types": roles}
    if "seed" in config:
        asked["split"] = {"seed": config["seed"]}
    same = {name: config[name] for name in ("metric", "time_budget", "refit") if name in config}
    return asked | same


# --- The text ------------------------------------------------------------------------------------


def _settings(text: str, found: _Reading) -> dict[str, yaml.Node]:
    """Its settings by name, each with its node. Raises Refused where it is no YAML."""
    if len(text) > MOST_TEXT:
        raise Refused([Mistake(0, f"Give at most {MOST_TEXT:,} characters.")])
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_DEPTH:  # for which it would take many seconds
                raise Refused([Mistake(0, "This is nested too deeply.")])
            if getattr(event, "anchor", None):  # they could stand for a text without end
                line = event.start_mark.line + 1 if event.start_mark else 0
                raise Refused([Mistake(line, "Write it out: no anchors (&) and aliases (*).")])
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = f"This is no YAML: {error.problem or error.context}."
        raise Refused([Mistake(mark.line + 1 if mark else 0, what)]) from None
    except (yaml.YAMLError, ValueError):
        raise Refused([Mistake(0, "This is no YAML: it has characters that can't be.")]) from None
    if not isinstance(root, yaml.MappingNode) or not root.value:
        example = "Give settings, each on a line: 'model: DeepFM'."
        raise Refused([Mistake(root.start_mark.line + 1 if root else 0, example)])
    return _by_name(root, found, found.lines)


def _by_name(
    node: yaml.MappingNode, found: _Reading, lines: dict[str, int]
) -> dict[str, yaml.Node]:
    values: dict[str, yaml.Node] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            found.say(line, "Give a name before the colon.")
        elif key.value in values:
            found.say(line, f"'{key.value[:60]}' is there twice: first in line {lines[key.value]}.")
        else:
            values[key.value], lines[key.value] = value, line
    return values


def _value(node: yaml.Node, found: _Reading) -> Any:
    """A plain value: a number (1e-3, too), a word, or a list of such."""
    if isinstance(node, yaml.SequenceNode):
        return [_value(one, found) for one in node.value[:MOST_NAMES]]
    if not isinstance(node, yaml.ScalarNode):
        found.say(node.start_mark.line + 1, "Give a value or a list here.")
        return None
    text = str(node.value)
    if node.style is not None:  # in quotes
        return text
    if _WHOLE.fullmatch(text):
        return int(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    return _WORDS.get(text.lower(), text) if text else None


# --- What it says --------------------------------------------------------------------------------


def _engine_and_model(
    values: Mapping[str, yaml.Node], found: _Reading
) -> tuple[str, named.Model | None]:
    engine = ENGINE
    known = {name: one for name in catalog.engines() if (one := named.models_of(name))}
    if "engine" in values:
        engine = str(_value(values["engine"], found))
        if engine not in known:
            why = f"There is no engine '{engine[:60]}' with models by name."
            found.say(found.lines["engine"], f"{why}{nearest(engine, known)}")
            return "", None
    models = known[engine]
    usual = ", ".join(one.title if engine == ENGINE else one.name for one in models.values())
    if "model" not in values:
        found.say(0, f"Say which model: 'model: …'. {engine} has: {usual}.")
        return engine, None
    said = str(_value(values["model"], found))
    model = models.get(said.lower())
    if model is None:
        why = f"{engine} has no model '{said[:60]}'.{nearest(said, models)} It has: {usual}."
        found.say(found.lines["model"], why)
    return engine, model


def _setting(name: str, node: yaml.Node, found: _Reading) -> None:
    line = found.lines[name]
    if name in {"engine", "model"}:
        return
    if name == "features":
        _features(node, found)
        return
    if name == "exclude":
        found.config[name] = _names(node, found)
        return
    if name == "target":
        said = node.value if isinstance(node, yaml.ScalarNode) else ""
        if said:
            found.config[name] = said
        else:
            found.say(line, "Give the name of a column.")
        return
    value = _value(node, found)
    good = {
        "metric": isinstance(value, str) and value in METRICS,
        "time_budget": _is_number(value) and value >= checks.MIN_BUDGET_S,
        "seed": isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_SEED,
        "refit": isinstance(value, bool),
    }[name]
    if good:
        found.config[name] = value
    elif name == "metric":
        near = nearest(str(value), METRICS)
        found.say(line, f"There is no metric '{str(value)[:60]}'.{near}")
    else:
        wanted = {
            "time_budget": f"Give seconds, {checks.MIN_BUDGET_S:g} at least.",
            "seed": f"Give a whole number from 0 to {MOST_SEED}.",
            "refit": "Give true or false.",
        }
        found.say(line, wanted[name])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value < 1e9


def _features(node: yaml.Node, found: _Reading) -> None:
    """Names of columns by their role."""
    if not isinstance(node, yaml.MappingNode):
        shape = f"Give lists of columns by what they are: {', '.join(ROLES)}."
        found.say(node.start_mark.line + 1, shape)
        return
    lines: dict[str, int] = {}
    roles: dict[str, list[str]] = {}
    seen: dict[str, str] = {}
    for role, names in _by_name(node, found, lines).items():
        if role not in ROLES:
            near = nearest(role, ROLES) or f" Use: {', '.join(ROLES)}."
            found.say(lines[role], f"A column can't be '{role[:60]}'.{near}")
            continue
        roles[role] = _names(names, found)
        for name in roles[role]:
            if name in seen:
                found.say(lines[role], f"'{name[:60]}' is {seen[name]} already.")
            seen[name] = role
    if not seen:
        found.say(found.lines["features"], "Name one column at least, or leave this out.")
    found.config["features"] = roles


def _names(node: yaml.Node, found: _Reading) -> list[str]:
    """Names of columns as they are written: one that is called 1 or yes is a name, too."""
    parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if len(parts) > MOST_NAMES or not all(isinstance(one, yaml.ScalarNode) for one in parts):
        found.say(node.start_mark.line + 1, f"Give a list of {MOST_NAMES:,} names at most.")
        return []
    return list(dict.fromkeys(str(one.value) for one in parts if one.value))


def _hyperparameters(
    engine: str, model: named.Model, given: Mapping[str, Any], found: _Reading
) -> dict[str, Any]:
    """As the library wants them. Which kind of task it will be is not known for all engines."""
    tasks = [task for task in ("binary", "regression") if model.does(task)]
    wrong = {task: named.problems(engine, model.name, task, given) for task in tasks}
    task = min(tasks, key=lambda one: len(wrong[one]))
    takes = model.parameters_for(task)
    for name, problem in wrong[task].items():
        sentence = f"{name}: {problem}"
        if name not in takes:
            near = nearest(name, [*SETTINGS, *takes]) or f" There are: {', '.join(SETTINGS)}, "
            near += "" if near.endswith("?") else f"{', '.join(takes)}."
            sentence = f"There is no setting '{name[:60]}' of {model.title}.{near}"
        found.say(found.lines[name], sentence)
    return {} if wrong[task] else named.cleaned(engine, model.name, task, given)


def _metric(model: named.Model, found: _Reading) -> None:
    metric = found.config.get("metric")
    tasks = catalog.engines()[found.config["engine"]].tasks
    fitting = {one.name for task in tasks if model.does(task) for one in metrics_for(task)}
    if metric and metric not in fitting:
        others = ", ".join(sorted(fitting))
        why = f"{model.title} is not ranked by '{metric}'. Use one of: {others}."
        found.say(found.lines["metric"], why)
