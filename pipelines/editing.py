"""A definition while somebody edits it by forms: it may be unfinished or wrong. Pure.

What is being edited is the definition itself, carried by the form: nothing is kept of it until it
is saved. Stages are told by their place in the list, since two may have one key.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pipelines import graph

PLACE = re.compile(r"stages\[(\d+)\](?:\.(.*))?")
_TITLES = {
    "sql": "SQL",
    "min_rows": "Rows at least",
    "max_missing": "Share that may be missing",
    "dataset": "Data set",
    "time_limit_s": "Time limit",
    "min_gain": "Gain at least",
}


class Sent(Protocol):
    """What a form sent: django.http.QueryDict, or what is like one."""

    def get(self, name: str, default: str, /) -> Any: ...

    def getlist(self, name: str, /) -> list[Any]: ...


def title(param: str) -> str:
    return _TITLES.get(param) or param.replace("_", " ").capitalize()


def drawable(definition: Any) -> dict[str, Any]:
    """A copy whose stages can be drawn and edited one by one, however wrong they are.

    Raises graph.Refused for what has no such shape.
    """
    try:
        graph.check(definition)
    except graph.Refused as refused:
        errors = refused.errors
    if not isinstance(definition, dict) or not isinstance(definition.get("stages", []), list):
        raise graph.Refused(errors)
    made = copy.deepcopy(definition)
    made.setdefault("stages", [])
    for stage in made["stages"]:
        if not isinstance(stage, dict):
            raise graph.Refused(errors)
        for name, usual in (("key", ""), ("stage", ""), ("params", {}), ("after", [])):
            if not isinstance(stage.setdefault(name, copy.copy(usual)), type(usual)):
                raise graph.Refused(errors)
        if not all(isinstance(one, str) for one in stage["after"]):
            raise graph.Refused(errors)
    if not isinstance(made.get("notify") or {}, dict):
        raise graph.Refused(errors)
    return made


def by_stage(
    errors: Mapping[str, Sequence[str]],
) -> tuple[dict[int, dict[str, list[str]]], list[str]]:
    """Errors of a definition: by stage and field ("params.sql", "key", ...), and those of none."""
    found: dict[int, dict[str, list[str]]] = {}
    others: list[str] = []
    for place, sentences in errors.items():
        if match := PLACE.fullmatch(place):
            fields = found.setdefault(int(match[1]), {})
            fields.setdefault(match[2] or "", []).extend(sentences)
        elif not place.startswith("notify"):
            others.extend(sentences)
    return found, others


# --- What can be done ----------------------------------------------------------------------------


def add(definition: dict[str, Any], stage: str, near: int | None) -> int:
    """Put a stage at the end, that takes what ``near`` or else the last one gives. Returns its
    place. Raises KeyError where there is no such stage."""
    known, stages = graph.STAGES[stage], definition["stages"]
    keys = {one["key"] for one in stages}
    key, n = stage, 2
    while key in keys:
        key, n = f"{stage}-{n}", n + 1
    made: dict[str, Any] = {"key": key, "stage": stage, "params": {}, "after": []}
    givers = [stages[near]] if near is not None and near < len(stages) else []
    for name, param in known.params.items():
        if param.kind in {"data", "model"} and param.required:
            for one in (*givers, *reversed(stages)):
                if one["stage"] in graph.STAGES and graph.STAGES[one["stage"]].gives == param.kind:
                    made["params"][name] = f"${one['key']}"
                    break
    if givers and not graph.before(made):
        made["after"] = [givers[0]["key"]]
    stages.append(made)
    return len(stages) - 1


def remove(definition: dict[str, Any], n: int) -> None:
    """Take a stage away. What others took from it stands there still, to be mended."""
    stages = definition["stages"]
    key = stages.pop(n)["key"]
    if key not in {one["key"] for one in stages}:
        for one in stages:
            one["after"] = [other for other in one["after"] if other != key]


def fill(definition: dict[str, Any], n: int, sent: Sent) -> None:
    """Give a stage what was typed into its form. Another key is followed by those that name it."""
    stage = definition["stages"][n]
    old, new = stage["key"], str(sent.get("key", "")).strip()
    stage["after"] = [str(one) for one in sent.getlist("after")]
    stage["fresh"] = sent.get("fresh", "") == "yes"
    for name in ("retries", "backoff_s"):
        stage[name] = _number(str(sent.get(name, "")).strip() or str(_USUAL[name]))
    known = graph.STAGES.get(stage["stage"])
    for name, param in known.params.items() if known else ():
        value = _value(param, str(sent.get(f"p-{name}", "")))
        if value in ("", [], None):
            stage["params"].pop(name, None)
        else:
            stage["params"][name] = value
    if new != old:
        stage["key"] = new
        if old not in {one["key"] for one in definition["stages"]}:
            _follow(definition["stages"], old, new)


_USUAL: Mapping[str, Any] = {"after": [], "retries": 0, "backoff_s": 30, "fresh": False}


def bare(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is as usual, to be read and edited."""
    stages = [
        {key: value for key, value in stage.items() if key not in _USUAL or value != _USUAL[key]}
        for stage in definition.get("stages", [])
    ]
    return {**definition, "stages": stages}


def fill_notify(definition: dict[str, Any], sent: Sent) -> None:
    """Who is told of the ends of runs."""
    to = _names(str(sent.get("notify-to", "")), commas=True)
    hooks = [str(one) for one in sent.getlist("notify-hooks")]
    on = [str(one) for one in sent.getlist("notify-on")]
    if not to and not hooks:
        definition.pop("notify", None)
        return
    definition["notify"] = {"to": to, "on": on, **({"hooks": hooks} if hooks else {})}


def _follow(stages: Sequence[dict[str, Any]], old: str, new: str) -> None:
    for one in stages:
        for name in graph.references(one):
            if one["params"][name] == f"${old}":
                one["params"][name] = f"${new}"
        one["after"] = [new if other == old else other for other in one["after"]]


def _value(param: graph.Param, text: str) -> Any:
    text = text.replace("\r\n", "\n")
    if param.kind == "lines":
        return text if text.strip() else ""
    text = text.strip()
    if param.kind == "number":
        return _number(text)
    if param.kind == "flag":
        return {"yes": True, "no": False}.get(text)
    if param.kind in {"names", "emails"}:
        return _names(text, commas=param.kind == "emails")
    if param.kind == "engines":
        names = _names(text, commas=True)
        return names[0] if names == ["all"] else names
    return text


def _number(text: str) -> Any:
    """The number, or the text itself where it is none: it is refused with a sentence then."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _names(text: str, *, commas: bool) -> list[str]:
    parts = re.split(r"[\n,]" if commas else r"\n", text)
    return [part.strip() for part in parts if part.strip()]


# --- How it is shown -----------------------------------------------------------------------------


def shown(param: graph.Param, value: Any) -> str:
    """A parameter's value as it stands in the form."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return (", " if param.kind == "engines" else "\n").join(map(str, value))
    return "" if value is None else str(value)


def acyclic(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Stages with their places as keys and only such waits as can be drawn: to stages that are
    there, and never in a circle."""
    places = {one["key"]: n for n, one in reversed(list(enumerate(stages))) if one["key"]}
    made: list[dict[str, Any]] = [
        {
            "key": str(n),
            "stage": one["stage"],
            "params": {},
            "after": [
                str(places[key]) for key in graph.before(one) if key in places and places[key] != n
            ],
        }
        for n, one in enumerate(stages)
    ]
    while path := graph.cycle(made):
        made[int(path[1])]["after"].remove(path[0])
    return made


def later(stages: Sequence[Mapping[str, Any]], n: int) -> set[int]:
    """The places of a stage and of all that wait for it."""
    return {int(key) for key in graph.from_step(acyclic(stages), str(n))}
