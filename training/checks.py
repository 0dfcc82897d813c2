"""What a training request must fulfil before anything is queued.

Pure and quick: column statistics are enough, no file is read. Every refusal names the field and
says what would work.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from training.engines.named import models_of
from training.evaluation import DEFAULT_METRIC, METRICS, metrics_for
from training.splits import BadSplit, label, plan_split

Column = Mapping[str, Any]  # one entry of DatasetVersion.columns

MIN_ROWS = 20
MIN_ROWS_PER_CLASS = 5  # then every class is in the test part, the validation part and each fit
MAX_CLASSES = 200  # statistics list every value of a column up to this many
FEW_WHOLE_NUMBERS = 10  # so many different whole numbers or fewer read as classes
MIN_BUDGET_S = 5.0

TASK_TYPES = ("auto", "classification", "regression", "binary", "multiclass")
TIMES = ("date", "datetime", "integer", "float")  # a year or a step is a time, too
# What a column may be taken for, by how its values are stored.
ROLES = {
    "integer": ("numeric", "categorical"),
    "float": ("numeric", "categorical"),
    "boolean": ("boolean", "categorical"),
    "string": ("categorical", "text"),
    "date": ("datetime", "categorical"),
    "datetime": ("datetime", "categorical"),
    "binary": ("image",),
}


@dataclass(frozen=True, slots=True)
class Wish:
    """A training request as it came in."""

    target: str
    task_type: str = "auto"
    engines: Sequence[str] = ()
    time_budget_s: float = 300.0
    metric: str = ""
    exclude: Sequence[str] = ()
    column_types: Mapping[str, str] = field(default_factory=dict)
    positive_class: object = None
    split: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What the job will do. ``reason`` says in words why ``task`` is what it is."""

    target: str
    task: str  # binary | multiclass | regression
    reason: str
    metric: str
    engines: list[str]
    budget_s: float
    classes: list[str] | None
    positive_class: str | None
    columns: list[dict[str, str]]  # features in order: name, role, dtype
    split: dict[str, Any]
    rows: int  # with a target
    notices: list[str]


def of_pictures(columns: Sequence[Column]) -> bool:
    """Whether there is nothing but pictures to learn from."""
    return bool(columns) and all(column["role"] == "image" for column in columns)


class Refused(ValueError):
    """The request cannot be met. ``errors`` holds messages by field."""

    def __init__(self, errors: Mapping[str, Sequence[str]]) -> None:
        self.errors = {name: list(messages) for name, messages in errors.items()}
        super().__init__(" ".join(text for texts in self.errors.values() for text in texts))


class _Problem(Exception):
    def __init__(self, field: str, message: str) -> None:
        self.field, self.message = field, message
        super().__init__(message)


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` with the closest known names, or nothing when none is close."""
    by_lower = {one.lower(): one for one in known}
    close = get_close_matches(str(name).lower(), list(by_lower), n=3, cutoff=0.6)
    if not close:
        return ""
    return " Did you mean " + " or ".join(f"'{by_lower[one]}'" for one in close) + "?"


def check(
    wish: Wish,
    columns: Sequence[Column],
    n_rows: int,
    *,
    engines: Mapping[str, Sequence[str]],
    max_budget_s: float,
) -> Plan:
    """Judge a request against the statistics of a data set version.

    ``engines`` maps each engine's name to the tasks it does. Raises Refused with every problem that
    can be told independently of the others.
    """
    problems: dict[str, list[str]] = {}
    by_name = {str(column["name"]): column for column in columns}

    def attempt(step: Any, *args: Any) -> Any:
        try:
            return step(*args)
        except _Problem as problem:
            problems.setdefault(problem.field, []).append(problem.message)
            return None

    attempt(_check_types, wish, by_name)
    attempt(_check_excluded, wish, by_name)
    budget_s = attempt(_budget, wish, max_budget_s)
    target = attempt(_target, wish, by_name)
    task_and_reason = attempt(_task, wish, target, n_rows) if target is not None else None
    if task_and_reason is None:  # what remains depends on the task
        attempt(_known_metric, wish)
        attempt(_known_engines, wish, engines)
        raise Refused(problems)

    task, reason = task_and_reason
    usable = n_rows - int(target.get("missing") or 0)
    counts = _class_counts(target) if task != "regression" else None
    classes = list(counts) if counts else None
    metric = attempt(_metric, wish, task, target)
    features, notices = _features(wish, columns)
    if of_pictures(features):
        engines = attempt(_that_see, wish, task, engines) or engines
        # They are ranked by a part of the rows, however few: a fit for each fold takes long.
        wish = replace(wish, split=wish.split or {"validation": 0.2})
    chosen = attempt(_engines, wish, task, engines)
    positive = attempt(_positive_class, wish, task, classes)
    split = attempt(_split, wish, usable, task, counts, by_name)
    if not features and "exclude" not in problems:
        message = "No column is left to learn from. Exclude fewer columns."
        problems.setdefault("exclude", []).append(message)
    if problems:
        raise Refused(problems)
    if usable < n_rows:
        notices.insert(
            0, f"{n_rows - usable:,} rows have no value in '{wish.target}' and take no part."
        )
    by = by_name.get(str(split.get("column"))) if split.get("kind") != "random" else None
    if by is not None and by.get("missing"):
        notices.append(
            f"{int(by['missing']):,} rows have no value in '{by['name']}', by which the rows are "
            "split, and take no part."
        )
    return Plan(
        target=wish.target,
        task=task,
        reason=reason,
        metric=metric,
        engines=chosen,
        budget_s=budget_s,
        classes=classes,
        positive_class=positive,
        columns=features,
        split=split,
        rows=usable,
        notices=notices,
    )


# Columns -----------------------------------------------------------------------------------------


def _check_types(wish: Wish, columns: Mapping[str, Column]) -> None:
    for name, role in wish.column_types.items():
        if name not in columns:
            raise _Problem("column_types", f"There is no column '{name}'.{nearest(name, columns)}")
        possible = ROLES.get(str(columns[name]["dtype"]), ("categorical",))
        if role not in possible:
            raise _Problem(
                "column_types",
                f"Column '{name}' holds {columns[name]['dtype']} values and can be taken for "
                f"{' or '.join(possible)}, not for '{role}'.",
            )


def _check_excluded(wish: Wish, columns: Mapping[str, Column]) -> None:
    for name in wish.exclude:
        if name not in columns:
            raise _Problem("exclude", f"There is no column '{name}'.{nearest(name, columns)}")
        if name == wish.target:
            raise _Problem("exclude", f"'{name}' is the target and cannot be excluded.")


def _target(wish: Wish, columns: Mapping[str, Column]) -> Column:
    if wish.target not in columns:
        raise _Problem(
            "target",
            f"The data set has no column '{wish.target}'.{nearest(wish.target, columns)}",
        )
    return columns[wish.target]


def _features(wish: Wish, columns: Sequence[Column]) -> tuple[list[dict[str, str]], list[str]]:
    """The columns to learn from, and a notice for each kind that was left out."""
    features: list[dict[str, str]] = []
    left_out: dict[str, list[str]] = {}
    split = wish.split or {}
    for column in columns:
        name, role = str(column["name"]), str(column["role"])
        if name == wish.target or name in wish.exclude:
            continue
        if name in wish.column_types:
            role = wish.column_types[name]
        elif role in {"constant", "identifier"}:
            left_out.setdefault(role, []).append(name)
            continue
        elif split.get("kind") == "group" and split.get("column") == name:
            left_out.setdefault("group", []).append(name)
            continue
        features.append({"name": name, "role": role, "dtype": str(column["dtype"])})
    notices = []
    if constant := left_out.get("constant"):
        notices.append(f"Left out, because they hold a single value or none: {_listed(constant)}.")
    if identifiers := left_out.get("identifier"):
        notices.append(
            f"Left out, because they look like identifiers: {_listed(identifiers)}. "
            "Name them in column_types to use them."
        )
    if grouped := left_out.get("group"):
        notices.append(
            f"Left out, because the rows are split by it and later rows have other values: "
            f"{_listed(grouped)}. Name it in column_types to use it."
        )
    return features, notices


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:10])
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"


# The task ----------------------------------------------------------------------------------------


def _class_counts(target: Column) -> dict[str, int]:
    """Rows per class label, numbers in their order and texts in theirs."""
    found = [(one["value"], int(one["count"])) for one in target.get("classes") or ()]
    found = [(value, count) for value, count in found if value is not None]
    if str(target["dtype"]) in {"integer", "float"}:
        found.sort(key=lambda pair: float(pair[0]))
    else:
        found.sort(key=lambda pair: label(pair[0]))
    return {label(value): count for value, count in found}


def _task(wish: Wish, target: Column, n_rows: int) -> tuple[str, str]:
    """The task and why. Raises _Problem when the target cannot be learnt, or not as wished."""
    name, dtype = wish.target, str(target["dtype"])
    distinct, missing = int(target.get("distinct") or 0), int(target.get("missing") or 0)
    usable = n_rows - missing
    if wish.task_type not in TASK_TYPES:
        raise _Problem(
            "task_type",
            f"'{wish.task_type}' is not a task type{nearest(wish.task_type, TASK_TYPES)}; "
            "use auto, classification or regression.",
        )
    if usable == 0:
        raise _Problem("target", f"Column '{name}' has no values. Choose another target.")
    if distinct <= 1:
        raise _Problem(
            "target",
            f"Column '{name}' is constant: every row has the same value, so there is nothing to "
            "learn. Choose another target.",
        )
    if dtype == "binary":
        raise _Problem(
            "target", f"Column '{name}' holds pictures, which cannot be a target. Choose another."
        )
    if dtype in {"date", "datetime"}:
        raise _Problem(
            "target", f"Column '{name}' holds dates, which cannot be a target. Choose another one."
        )
    if target.get("role") == "identifier" and name not in wish.column_types:
        remedy = (
            f" If it is a real quantity, set column_types to {{'{name}': 'numeric'}}."
            if dtype in {"integer", "float"}
            else ""
        )
        raise _Problem(
            "target",
            f"Column '{name}' looks like an identifier: nearly every row has its own value. "
            f"Choose another target.{remedy}",
        )
    if usable < MIN_ROWS:
        raise _Problem(
            "target",
            f"Only {usable} rows have a value in '{name}'; at least {MIN_ROWS} are needed.",
        )
    if wish.task_type == "auto":
        task, reason = _infer(target, wish)
    elif wish.task_type == "regression":
        task, reason = "regression", "Regression, as asked for."
    else:
        task = "binary" if distinct == 2 else "multiclass"
        reason = f"Classification with {distinct} classes, as asked for."
        if wish.task_type in {"binary", "multiclass"} and wish.task_type != task:
            raise _Problem(
                "task_type",
                f"'{name}' has {distinct} different values: that is {task}, not {wish.task_type}.",
            )
    if task == "regression":
        if dtype not in {"integer", "float"}:
            raise _Problem(
                "task_type",
                f"Regression predicts numbers, but '{name}' holds {dtype} values. "
                "Use classification.",
            )
        return task, reason
    _check_classes(wish, target, distinct)
    return task, reason


def _infer(target: Column, wish: Wish) -> tuple[str, str]:
    name, dtype, distinct = wish.target, str(target["dtype"]), int(target["distinct"])
    if dtype == "boolean":
        return "binary", f"Binary classification: '{name}' is true or false."
    if distinct == 2:
        return "binary", f"Binary classification: '{name}' has two different values."
    if dtype == "string":
        return (
            "multiclass",
            f"Multiclass classification: '{name}' holds {distinct} different texts.",
        )
    if wish.column_types.get(name) == "categorical":
        return "multiclass", f"Multiclass classification: '{name}' was said to be categorical."
    if wish.column_types.get(name) == "numeric":
        return "regression", f"Regression: '{name}' was said to be numeric."
    counts = target.get("classes") or ()
    whole = all(float(one["value"]).is_integer() for one in counts if one["value"] is not None)
    enough = all(int(one["count"]) >= MIN_ROWS_PER_CLASS for one in counts)
    if distinct <= FEW_WHOLE_NUMBERS and counts and whole and enough:
        reason = (
            f"Multiclass classification: '{name}' holds {distinct} different whole numbers. "
            "Set task_type to regression if they are quantities."
        )
        return "multiclass", reason
    return "regression", f"Regression: '{name}' holds numbers with {distinct:,} different values."


def _check_classes(wish: Wish, target: Column, distinct: int) -> None:
    if distinct > MAX_CLASSES or not target.get("classes"):
        also = " Use regression." if str(target["dtype"]) in {"integer", "float"} else ""
        raise _Problem(
            "target",
            f"'{wish.target}' has {distinct:,} different values; classification goes up to "
            f"{MAX_CLASSES} classes.{also}",
        )
    few = {
        name: count for name, count in _class_counts(target).items() if count < MIN_ROWS_PER_CLASS
    }
    if few:
        shown = ", ".join(f"'{name}' ({count})" for name, count in list(few.items())[:5])
        shown += f" and {len(few) - 5} more" if len(few) > 5 else ""
        raise _Problem(
            "target",
            f"Each class of '{wish.target}' needs at least {MIN_ROWS_PER_CLASS} rows; these have "
            f"fewer: {shown}. Add rows, merge these classes or remove their rows.",
        )


# What depends on the task ------------------------------------------------------------------------


def _budget(wish: Wish, max_budget_s: float) -> float:
    budget = float(wish.time_budget_s)
    if not math.isfinite(budget) or budget < MIN_BUDGET_S:
        raise _Problem(
            "time_budget", f"The time budget is in seconds, and at least {MIN_BUDGET_S:g}."
        )
    if budget > max_budget_s:
        raise _Problem(
            "time_budget",
            f"The time budget may be at most {max_budget_s:,.0f} seconds "
            f"({max_budget_s / 60:,.0f} minutes) here; {budget:,.0f} were asked for.",
        )
    return budget


def _known_metric(wish: Wish) -> None:
    if wish.metric and wish.metric not in METRICS:
        raise _Problem(
            "metric",
            f"There is no metric '{wish.metric}'.{nearest(wish.metric, METRICS)}"
            f" Known are: {', '.join(METRICS)}.",
        )


def _metric(wish: Wish, task: str, target: Column) -> str:
    _known_metric(wish)
    metric = wish.metric or DEFAULT_METRIC[task]
    fitting = [one.name for one in metrics_for(task)]
    if metric not in fitting:
        raise _Problem(
            "metric", f"'{metric}' does not fit {task}; use one of: {', '.join(fitting)}."
        )
    least = target.get("min")
    if metric == "rmsle" and isinstance(least, int | float) and least < 0:
        raise _Problem(
            "metric", f"rmsle needs a target of 0 and above, but '{wish.target}' goes to {least:g}."
        )
    return metric


def _known_engines(wish: Wish, engines: Mapping[str, Sequence[str]]) -> list[str]:
    for name in wish.engines:
        if name not in engines:
            raise _Problem(
                "engines",
                f"There is no engine '{name}'.{nearest(name, engines)}"
                f" Known are: {', '.join(engines)}.",
            )
    return list(dict.fromkeys(wish.engines))


def _engines(wish: Wish, task: str, engines: Mapping[str, Sequence[str]]) -> list[str]:
    chosen = _known_engines(wish, engines)
    for name in chosen:
        if task not in engines[name]:
            raise _Problem(
                "engines", f"Engine '{name}' does {', '.join(engines[name])}, but not {task}."
            )
    # A version of an engine (sklearn-1.4) races only when it is asked for by its name.
    usual = [name for name, tasks in engines.items() if task in tasks and "-" not in name]
    chosen = chosen or usual
    if not chosen:
        raise _Problem("engines", f"No engine here does {task}.")
    return chosen


def _that_see(
    wish: Wish, task: str, engines: Mapping[str, Sequence[str]]
) -> Mapping[str, Sequence[str]]:
    """The engines with a model that learns from pictures. Raises _Problem for another's name."""
    seeing = {
        name: tasks
        for name, tasks in engines.items()
        if any(model.reads == "image" and model.does(task) for model in models_of(name).values())
    }
    if not seeing:
        raise _Problem(
            "engines", f"No engine here learns a {task} from pictures. Choose a target of classes."
        )
    blind = [name for name in wish.engines if name in engines and name not in seeing]
    if blind:
        raise _Problem(
            "engines",
            f"Here are only pictures to learn from, and {_listed(blind)} learn"
            f"{'s' if len(blind) == 1 else ''} from tables alone. Use: "
            f"{', '.join(name for name in seeing if '-' not in name)}.",
        )
    return seeing


def _positive_class(wish: Wish, task: str, classes: Sequence[str] | None) -> str | None:
    if wish.positive_class in (None, ""):
        return classes[-1] if task == "binary" and classes else None
    if task != "binary" or not classes:
        raise _Problem(
            "positive_class", f"Only binary tasks have a positive class; this is {task}."
        )
    name = label(wish.positive_class)
    if name not in classes:
        raise _Problem(
            "positive_class",
            f"'{name}' is no class of '{wish.target}'; use '{classes[0]}' or '{classes[1]}'.",
        )
    return name


def _split(
    wish: Wish,
    usable: int,
    task: str,
    counts: Mapping[str, int] | None,
    columns: Mapping[str, Column],
) -> dict[str, Any]:
    asked = wish.split or {}
    kind, name = asked.get("kind", "random"), asked.get("column")
    groups = None
    if kind in {"time", "group"} and name:
        column = _split_column(wish, kind, name, columns, enough=3 - (asked.get("test") == 0))
        groups = int(column.get("distinct") or 0)
        usable -= int(column.get("missing") or 0)
        if usable < MIN_ROWS:
            raise _Problem(
                "split",
                f"Only {max(0, usable)} rows have a value in '{name}' and a target; at least "
                f"{MIN_ROWS} are needed. Split by another column.",
            )
    try:
        return plan_split(usable, task, counts, asked, groups=groups)
    except BadSplit as error:
        raise _Problem("split", str(error)) from None


def _split_column(
    wish: Wish, kind: str, name: object, columns: Mapping[str, Column], *, enough: int
) -> Column:
    """The column to split by, which must be able to tell early from late, or groups apart."""
    if not isinstance(name, str) or name not in columns:
        near = nearest(str(name), columns)
        raise _Problem("split", f"There is no column '{name}' to split by.{near}")
    if name == wish.target:
        raise _Problem("split", f"'{name}' is the target; the rows cannot be split by it.")
    column = columns[name]
    dtype, distinct = str(column["dtype"]), int(column.get("distinct") or 0)
    if not distinct:
        raise _Problem("split", f"Column '{name}' has no values to split by. Choose another one.")
    if kind == "time" and dtype not in TIMES:
        raise _Problem(
            "split",
            f"Column '{name}' holds {dtype} values, which are no time. Split by a column of dates "
            "or numbers, or by group.",
        )
    if distinct < enough:
        what = "moments" if kind == "time" else "groups"
        raise _Problem(
            "split",
            f"Column '{name}' has {distinct} different value{'s' if distinct > 1 else ''}; a split "
            f"by {kind} needs at least {enough} {what}, better many. Choose another column.",
        )
    return column
