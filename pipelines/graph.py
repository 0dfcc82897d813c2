"""What a pipeline is, and what its run does next. Pure: values in, values out.

A definition is JSON: {"stages": [stage, ...], "notify": {"to": [address, ...], "on": [state, ...]}}
with stages {"key", "stage", "params", "after": [key, ...], "retries", "backoff_s", "fresh"}. A
parameter that takes data or a model may be "$key": what the stage of that key gave, which is then
waited for as if it stood in ``after``. Together they are a graph without circles.

A step is one stage of one run. ``plan`` looks at the steps of a run as they are and says what is
to be done now: whoever carries it out asks again, until nothing is left to do.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines import kinds

MOST_STAGES = 50
MOST_RETRIES = 10
MOST_BACKOFF_S = 24 * 3600
MOST_TEXT = 20_000
KEY = re.compile(r"[a-z][a-z0-9_-]{0,39}")
EMAIL = re.compile(r"[^@\s,;<>]{1,64}@[^@\s,;<>]{1,190}")
ENDS = ("succeeded", "failed", "cancelled")
_FIELDS = frozenset({"key", "stage", "params", "after", "retries", "backoff_s", "fresh"})
_SENT = frozenset({"stages", "notify"})


@dataclass(frozen=True)
class Param:
    """One parameter. ``kind``: text, lines, number, flag, choice, names, engines, emails, data,
    model, connection, experiment.

    ``choices``: of a choice, and of a connection the kinds that fit the stage. ``lines`` is a text
    that may be longer than one line.
    """

    kind: str = "text"
    required: bool = False
    choices: tuple[str, ...] = ()
    least: float = 0
    most: float = 1e9
    help: str = ""


@dataclass(frozen=True)
class Stage:
    """A type of stage. ``gives``: what "$key" of it can stand for.

    What ``is_same`` gives the same for the same input, so that it need not be done twice.
    """

    title: str
    params: Mapping[str, Param]
    gives: str = ""
    is_same: bool = False
    on_node: bool = False


_WAREHOUSE = Param(
    "connection", required=True, choices=kinds.WAREHOUSES, help="The name of a warehouse."
)
_PLACE = Param(
    "connection", required=True, choices=kinds.PLACES, help="The name of a place with files."
)
_MACHINE = Param("connection", required=True, choices=kinds.MACHINES, help="The name of a machine.")
_DATA = Param("data", required=True, help='"$key", or a data set by its name or id.')
_MODEL = Param("model", required=True, help='"$key", or a model by its id or name@alias.')

STAGES: Mapping[str, Stage] = {
    "sql": Stage(
        "SQL to data set",
        {
            "connection": _WAREHOUSE,
            "sql": Param("lines", required=True, help="One SELECT."),
            "dataset": Param(required=True, help="The data set that gets a new version."),
        },
        gives="data",
        on_node=True,
    ),
    "check": Stage(
        "Check data",
        {
            "data": _DATA,
            "min_rows": Param("number", least=1),
            "columns": Param("names", help="That have to be there."),
            "max_missing": Param("number", most=1, help="The share of any of these columns."),
        },
        gives="data",
    ),
    "train": Stage(
        "Train",
        {
            "data": _DATA,
            "target": Param(help="The column to predict. Needed, unless there is an experiment."),
            "experiment": Param(
                "experiment", help="By its name or id. It says all that stands below."
            ),
            "preset": Param(),
            "engines": Param("engines"),
            "time_budget": Param("number", least=1, help="Seconds."),
            "budget_mode": Param(),
            "task_type": Param(),
            "metric": Param(),
            "exclude": Param("names"),
            "refit": Param("flag"),
            "ensemble": Param("flag"),
        },
        gives="model",
        is_same=True,
    ),
    "promote": Stage(
        "Promote if better",
        {
            "model": _MODEL,
            "name": Param(required=True, help="The name that the model becomes a version of."),
            "alias": Param(help="The alias to move; champion."),
            "min_gain": Param("number", help="By how much the metric has to be better."),
        },
        gives="model",
    ),
    "deploy": Stage(
        "Deploy",
        {
            "model": _MODEL,
            "deployment": Param(required=True, help="The name of one that is there."),
        },
        gives="model",
    ),
    "score": Stage(
        "Batch score",
        {
            "model": _MODEL,
            "data": _DATA,
            "dataset": Param(required=True, help="The data set that gets a new version."),
        },
        gives="data",
        is_same=True,
    ),
    "write_back": Stage(
        "Write back to a table",
        {
            "connection": _WAREHOUSE,
            "data": _DATA,
            "table": Param(required=True),
            "mode": Param("choice", choices=("replace", "append"), help="replace"),
        },
        on_node=True,
    ),
    "upload": Stage(
        "Send data to a place with files",
        {
            "connection": _PLACE,
            "data": _DATA,
            "path": Param(required=True, help="Within the connection's folder; .parquet or .csv."),
        },
        gives="data",
        on_node=True,
    ),
    "remote": Stage(
        "Run a program on a machine",
        {
            "connection": _MACHINE,
            "command": Param("lines", required=True, help="For the machine's shell."),
            "folder": Param(help="Where it runs, within the connection's folder."),
            "time_limit_s": Param(
                "number",
                least=1,
                most=7 * 24 * 3600,
                help="Seconds; 3600 is usual.",
            ),
        },
        on_node=True,
    ),
    "download": Stage(
        "Fetch a file as data",
        {
            "connection": _PLACE,
            "path": Param(required=True, help="Within the connection's folder."),
            "dataset": Param(required=True, help="The data set that gets a new version."),
        },
        gives="data",
        on_node=True,
    ),
    "notify": Stage(
        "Notify by e-mail",
        {"to": Param("emails", required=True), "message": Param("lines")},
    ),
}


class Refused(Exception):
    """The definition can't be. ``errors``: sentences by field, such as stages[1].params.target."""

    def __init__(self, errors: Mapping[str, list[str]]) -> None:
        self.errors = dict(errors)
        super().__init__(" ".join(text for texts in errors.values() for text in texts))


# --- Checking ------------------------------------------------------------------------------------


def check(definition: Any, connections: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The definition with all that it left out, as it is stored. Raises Refused.

    ``connections``: the kind of each that there is, by its name; None: they are not looked at.
    """
    errors: dict[str, list[str]] = {}
    if not isinstance(definition, dict):
        raise Refused({"definition": ['Give an object: {"stages": [...]}.']})
    for name in sorted(definition.keys() - _SENT, key=str):
        errors[str(name)[:60]] = ["There is no such field: use stages and notify."]
    given = definition.get("stages")
    if not isinstance(given, list) or not given:
        raise Refused(errors | {"stages": ["Give a list with at least one stage."]})
    if len(given) > MOST_STAGES:
        raise Refused({"stages": [f"A pipeline has at most {MOST_STAGES} stages."]})
    stages = [_stage(one, f"stages[{n}]", errors) for n, one in enumerate(given)]
    keys = [one["key"] for one in stages]
    for n, stage in enumerate(stages):
        if stage["key"] and keys.index(stage["key"]) < n:
            _add(errors, f"stages[{n}].key", f"Another stage is called '{stage['key']}'.")
    _check_links(stages, errors)
    if connections is not None:
        _check_connections(stages, connections, errors)
    notify = _notify(definition.get("notify"), errors)
    if errors:
        raise Refused(errors)
    if path := cycle(stages):
        raise Refused({"stages": [f"The stages wait for each other: {' → '.join(path)}."]})
    return {"stages": stages, **({"notify": notify} if notify else {})}


def _add(errors: dict[str, list[str]], place: str, sentence: str) -> None:
    errors.setdefault(place, []).append(sentence)


def _stage(given: Any, place: str, errors: dict[str, list[str]]) -> dict[str, Any]:
    if not isinstance(given, dict):
        _add(errors, place, 'Give an object: {"key", "stage", "params"}.')
        return {"key": "", "stage": "", "params": {}, "after": []}
    for name in sorted(given.keys() - _FIELDS, key=str):
        _add(errors, f"{place}.{str(name)[:60]}", "There is no such field of a stage.")
    key, stage = given.get("key"), given.get("stage")
    if not isinstance(key, str) or not KEY.fullmatch(key):
        _add(
            errors, f"{place}.key",
            "Give a key: a small letter, then small letters, digits, '_' and '-', 40 at most.",
        )  # fmt: skip
        key = ""
    after = given.get("after", [])
    if not isinstance(after, list) or not all(isinstance(one, str) for one in after):
        _add(errors, f"{place}.after", "Give a list of keys.")
        after = []
    made: dict[str, Any] = {"key": key, "stage": stage, "after": list(dict.fromkeys(after))}
    for name, most in (("retries", MOST_RETRIES), ("backoff_s", MOST_BACKOFF_S)):
        number = given.get(name, 0 if name == "retries" else 30)
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= most:
            _add(errors, f"{place}.{name}", f"Give a whole number from 0 to {most}.")
        made[name] = number
    fresh = given.get("fresh", False)
    if not isinstance(fresh, bool):
        _add(errors, f"{place}.fresh", "Give true or false.")
    made["fresh"] = fresh
    made["params"] = _params(stage, given.get("params", {}), place, errors)
    return made


def _params(stage: Any, given: Any, place: str, errors: dict[str, list[str]]) -> dict[str, Any]:
    known = STAGES.get(stage) if isinstance(stage, str) else None
    if known is None:
        what = f"There is no stage '{stage[:40]}'." if isinstance(stage, str) else "Say which."
        _add(errors, f"{place}.stage", f"{what} Use one of: {', '.join(STAGES)}.")
        return {}
    if not isinstance(given, dict):
        _add(errors, f"{place}.params", "Give an object.")
        return {}
    for name in sorted(given.keys() - known.params.keys(), key=str):
        _add(
            errors, f"{place}.params.{str(name)[:60]}",
            f"'{stage}' has no such parameter. It has: {', '.join(known.params)}.",
        )  # fmt: skip
    made = {}
    for name, param in known.params.items():
        value = given.get(name)
        if value is None or value in ("", []):
            if param.required:
                _add(
                    errors, f"{place}.params.{name}", f"'{stage}' needs this. {param.help}".strip()
                )
            continue
        if problem := _problem(param, value):
            _add(errors, f"{place}.params.{name}", problem)
        else:
            made[name] = value
    if stage == "train":
        _check_train(made, place, errors)
    return made


def _check_train(params: Mapping[str, Any], place: str, errors: dict[str, list[str]]) -> None:
    """An experiment says everything but on what data; without one, a target is needed."""
    if "experiment" in params:
        for name in params.keys() - {"experiment", "data"}:
            _add(errors, f"{place}.params.{name}", "The experiment says this: leave it out.")
    elif "target" not in params and f"{place}.params.target" not in errors:
        _add(errors, f"{place}.params.target", "'train' needs this.")


def _problem(param: Param, value: Any) -> str:
    """What is wrong with a value; "" for nothing."""
    is_text = isinstance(value, str) and len(value) <= MOST_TEXT and "\0" not in value
    if param.kind == "number":
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        good = is_number and param.least <= value <= param.most
        return "" if good else f"Give a number from {param.least:g} to {param.most:g}."
    if param.kind == "flag":
        return "" if isinstance(value, bool) else "Give true or false."
    if param.kind == "choice":
        good = is_text and value in param.choices
        return "" if good else f"Use one of: {', '.join(param.choices)}."
    if param.kind in {"names", "engines"}:
        if is_text and param.kind == "engines":
            return ""  # "all", or one
        good = isinstance(value, list) and all(isinstance(one, str) for one in value)
        return "" if good and len(value) <= 1000 else "Give a list of names."
    if param.kind == "emails":
        good = isinstance(value, list) and len(value) <= 20
        good = good and all(isinstance(one, str) and EMAIL.fullmatch(one) for one in value)
        return "" if good else "Give a list of e-mail addresses, 20 at most."
    return "" if is_text else f"Give a text of at most {MOST_TEXT:,} characters."


def _notify(given: Any, errors: dict[str, list[str]]) -> dict[str, Any]:
    if given is None or given == {}:
        return {}
    if not isinstance(given, dict) or given.keys() - {"to", "hooks", "on"}:
        shape = 'Give an object: {"to": [address, ...], "hooks": [name, ...], "on": ["failed"]}.'
        _add(errors, "notify", shape)
        return {}
    to, hooks = given.get("to", []), given.get("hooks", [])
    if problem := _problem(Param("emails"), to):
        _add(errors, "notify.to", problem)
    if problem := _problem(Param("names"), hooks):
        _add(errors, "notify.hooks", problem)
    if not to and not hooks:
        _add(errors, "notify.to", "Say who is told: addresses, web hooks, or both.")
    on = given.get("on", ["failed"])
    if not isinstance(on, list) or not on or any(one not in ENDS for one in on):
        _add(errors, "notify.on", f"Give a list of some of: {', '.join(ENDS)}.")
    return {"to": to, "on": on, **({"hooks": hooks} if hooks else {})}


def _check_links(stages: Sequence[Mapping[str, Any]], errors: dict[str, list[str]]) -> None:
    by_key = {one["key"]: one for one in stages if one["key"]}
    for n, stage in enumerate(stages):
        for other in stage["after"]:
            if other not in by_key:
                _add(errors, f"stages[{n}].after", f"There is no stage '{other[:40]}'.")
        for name, key in references(stage).items():
            place, wanted = f"stages[{n}].params.{name}", STAGES[stage["stage"]].params[name].kind
            giver = by_key.get(key)
            if giver is None:
                _add(errors, place, f"There is no stage '{key[:40]}'.")
            elif giver["stage"] in STAGES and STAGES[giver["stage"]].gives != wanted:
                what = "data" if wanted == "data" else "a model"
                _add(errors, place, f"The stage '{key}' ({giver['stage']}) does not give {what}.")


def _check_connections(
    stages: Sequence[Mapping[str, Any]],
    connections: Mapping[str, str],
    errors: dict[str, list[str]],
) -> None:
    for n, stage in enumerate(stages):
        known = STAGES.get(stage["stage"]) if isinstance(stage["stage"], str) else None
        for param, name in stage["params"].items():
            if known is None or known.params[param].kind != "connection":
                continue
            place, fit = f"stages[{n}].params.{param}", known.params[param].choices
            if name not in connections:
                _add(errors, place, f"There is no connection '{name[:60]}'.")
            elif connections[name] not in fit:
                _add(errors, place, kinds.unfit(name, connections, fit))


# --- The graph -----------------------------------------------------------------------------------


def references(stage: Mapping[str, Any]) -> dict[str, str]:
    """The parameters that take what another stage gives: its key by the parameter's name."""
    known = STAGES.get(stage["stage"]) if isinstance(stage["stage"], str) else None
    return {
        name: value[1:]
        for name, value in stage["params"].items()
        if known
        and name in known.params
        and known.params[name].kind in {"data", "model"}
        and isinstance(value, str)
        and value.startswith("$")
    }


def before(stage: Mapping[str, Any]) -> list[str]:
    """The keys that a stage waits for, said or referred to."""
    return list(dict.fromkeys([*stage["after"], *references(stage).values()]))


def cycle(stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """A way that leads back to where it began, as keys (the first again at the end); or []."""
    waits = {one["key"]: before(one) for one in stages}
    seen: set[str] = set()
    for start in waits:
        way: list[str] = []
        left: list[Iterator[str]] = [iter([start])]
        while left:
            key = next(left[-1], None)
            if key is None:
                left.pop()
                if way:
                    seen.add(way.pop())
            elif key in way:
                # Who waits is on the left of whom it waits for: told the way that work would go.
                return [*way[way.index(key) :], key][::-1]
            elif key not in seen:
                way.append(key)
                left.append(iter(waits.get(key, [])))
    return []


def layers(stages: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The keys in columns: each stage right of all that it waits for. For drawing."""
    depth: dict[str, int] = {}
    left = {one["key"]: before(one) for one in stages}
    while left:
        ready = [key for key, waits in left.items() if all(one in depth for one in waits)]
        if not ready:
            raise ValueError("The stages wait for each other.")
        for key in ready:
            depth[key] = max((depth[one] + 1 for one in left[key]), default=0)
        for key in ready:
            del left[key]
    columns: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for one in stages:
        columns[depth[one["key"]]].append(one["key"])
    return columns


def from_step(stages: Sequence[Mapping[str, Any]], key: str) -> set[str]:
    """A stage and all that wait for it, however far away."""
    found = {key}
    more = True
    while more:
        later = {one["key"] for one in stages if found.intersection(before(one))} - found
        found |= later
        more = bool(later)
    return found


def digest(stage: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """SHA-256 of what the stage does with what: its type, its parameters, and what came in.

    ``inputs``: a digest of the content by the name of the parameter that it came in by.
    """
    own = {name: value for name, value in stage["params"].items() if name not in inputs}
    told = [stage["stage"], own, dict(inputs)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


# --- What a run does next ------------------------------------------------------------------------

_DONE = frozenset({"succeeded", "skipped"})
_DEAD = frozenset({"failed", "not_run", "cancelled"})


@dataclass(frozen=True)
class StepNow:
    """A step as it is. Times are seconds on any one clock."""

    state: str = "pending"
    retry_count: int = 0
    not_before: float = 0
    finished_at: float = 0
    same_as: str = ""  # the earlier step that did the same with the same, if there is one


@dataclass(frozen=True)
class Plan:
    """What to do now, by key; when to look again; and how the run has ended, if it has."""

    start: list[str] = field(default_factory=list)
    skip: list[str] = field(default_factory=list)
    again: dict[str, float] = field(default_factory=dict)  # failed, to be tried again at that time
    give_up: list[str] = field(default_factory=list)  # never runs: what it waits for will not come
    cancel: list[str] = field(default_factory=list)
    look_at: float | None = None
    end: str = ""


def delay_s(stage: Mapping[str, Any], retry_count: int) -> float:
    """How long to wait after a failure: twice as long each time, a day at most."""
    return float(min(stage["backoff_s"] * 2**retry_count, MOST_BACKOFF_S))


def plan(
    stages: Sequence[Mapping[str, Any]],
    steps: Mapping[str, StepNow],
    now: float,
    *,
    cancelled: bool = False,
) -> Plan:
    """What a run does next. ``cancelled``: somebody wants its end."""
    made = Plan()
    looks: list[float] = []
    dead = {key for key, step in steps.items() if step.state in _DEAD}
    for stage in stages:
        key, step = stage["key"], steps[stage["key"]]
        waits = [steps[one] for one in before(stage)]
        if cancelled:
            if step.state == "running":
                made.cancel.append(key)
            elif step.state == "pending":
                made.give_up.append(key)
        elif step.state == "failed" and step.retry_count < stage["retries"]:
            made.again[key] = step.finished_at + delay_s(stage, step.retry_count)
            dead.discard(key)
        elif step.state == "pending" and all(one.state in _DONE for one in waits):
            if step.not_before > now:
                looks.append(step.not_before)
            elif step.same_as and STAGES[stage["stage"]].is_same and not stage["fresh"]:
                made.skip.append(key)
            else:
                made.start.append(key)
    if not cancelled:
        made.give_up.extend(
            one["key"]
            for one in stages
            if steps[one["key"]].state == "pending" and dead.intersection(before(one))
        )
    busy = made.start or made.skip or made.again or made.give_up or made.cancel
    moving = any(step.state in {"pending", "running"} for step in steps.values())
    end = ""
    if not busy and not moving:
        states = {step.state for step in steps.values()}
        end = "succeeded" if states <= _DONE else "cancelled" if cancelled else "failed"
        if not cancelled and "failed" not in states and "cancelled" in states:
            end = "cancelled"
    return Plan(
        made.start, made.skip, made.again, made.give_up, made.cancel,
        min(looks, default=None), end,
    )  # fmt: skip
