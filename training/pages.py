"""What the training pages say and draw, made from stored figures. Pure: plain values in and out."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.utils.translation import gettext as _

from datasets.cards import number, shown
from training import thresholds
from training.evaluation import METRICS, Metric, metrics_for
from training.rows import MOST_PICTURE_BYTES

MOST_OPTIONS = 100  # a choice with more values is a text field that suggests them
MOST_SUGGESTIONS = 20
TABLE_ROWS = 25

SPLITS = (
    ("random", "At random"),
    ("time", "By time"),
    ("group", "By group"),
)
TASK_TYPES = (
    ("auto", "As inferred from the target"),
    ("classification", "Classification: one of several classes"),
    ("regression", "Regression: a number"),
)


UNMEASURED = "The best model, fitted again on all rows: no sealed ones are left to measure it on."


BLENDED = (
    "An ensemble: the weighted mean of several models. Each row that ranks was blended with "
    "weights that were chosen without it, which is stricter than single models have it."
)


def refit_words(origin: str, rows: int | None) -> str:
    """What the figures of a refit are: ``rows`` is how many sealed rows there were, if any."""
    text = f"The recipe of “{origin}”, fitted again on the validation rows as well"
    if not rows:
        return f"{text}. There is nothing left to measure it on."
    return f"{text}; both are measured on {rows:,} sealed rows that neither has seen."


def task_words(task: str, classes: Sequence[str] | None) -> str:
    if task == "regression":
        return _("Regression")
    if task == "binary":
        return _("Binary classification")
    return _("Classification into %d classes") % len(classes or ())


def of_hundred(share: float) -> str:
    """A share as "94 of 100"; near the ends in thousandths, so that 100 of 100 means all."""
    if share in (0.0, 1.0):
        return _("%d of 100") % (share * 100)
    if share >= 0.995 or share < 0.005:
        return _("%d of 1,000") % min(999, max(1, math.floor(share * 1000 + 0.5)))
    return _("%d of 100") % round(share * 100)


@dataclass(frozen=True, slots=True)
class Figures:
    """Scored figures of one model on one part of the rows."""

    metrics: Mapping[str, float | None]
    rows: int
    sealed: bool  # on the sealed test part, which took no part in ranking
    curves: Mapping[str, Any] = field(default_factory=dict)

    @property
    def measured(self) -> str:
        rows = f"{self.rows:,}"
        if self.sealed:
            return _("Measured on %s rows that were kept sealed until the end.") % rows
        return _("Measured on %s rows that it had not seen, by which models were ranked.") % rows


def headline(task: str, target: str, figures: Figures) -> str:
    """What a model predicts and how well, in plain words, with what guessing would reach."""
    metrics = figures.metrics
    usual = most_common(figures.curves.get("confusion") or {})
    if task == "regression":
        text = _regression_headline(target, metrics)
    elif (accuracy := metrics.get("accuracy")) is None:
        text = _("Predicts %(target)s.") % {"target": target}
    elif usual is None:
        text = _("Predicts %(target)s and is right for %(share)s unseen rows.") % {
            "target": target,
            "share": of_hundred(accuracy),
        }
    else:
        text = _(
            "Predicts %(target)s and is right for %(share)s unseen rows; always saying “%(label)s” "
            "would be right for %(usual)s."
        ) % {
            "target": target,
            "share": of_hundred(accuracy),
            "label": usual[0],
            "usual": of_hundred(usual[1]),
        }
    return f"{text} {figures.measured}"


def _regression_headline(target: str, metrics: Mapping[str, float | None]) -> str:
    middle, mean, r2 = metrics.get("median_ae"), metrics.get("mae"), metrics.get("r2")
    if middle is None or mean is None:
        return _("Predicts %(target)s.") % {"target": target}
    text = _(
        "Predicts %(target)s and is off by %(middle)s or less for half of the unseen rows, by "
        "%(mean)s on average."
    ) % {"target": target, "middle": number(middle), "mean": number(mean)}
    if r2 is None:
        return text
    if r2 <= 0:
        return f"{text} " + _("That is no better than always saying the mean.")
    told = {"percent": round(r2 * 100), "target": target}
    return f"{text} " + _("It explains %(percent)d%% of how %(target)s varies.") % told


def most_common(confusion: Mapping[str, Any]) -> tuple[str, float] | None:
    """The most frequent true class and its share, from a confusion matrix's counts."""
    counts, labels = confusion.get("counts") or [], confusion.get("labels") or []
    sums = [sum(row) for row in counts]
    if not sum(sums) or len(labels) != len(sums):
        return None
    best = max(range(len(sums)), key=sums.__getitem__)
    return str(labels[best]), sums[best] / sum(sums)


# --- Performance ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MetricRow:
    title: str
    primary: bool
    value: float | None
    low: float | None
    high: float | None
    test: float | None
    test_low: float | None
    test_high: float | None
    better: str


def metric_rows(
    task: str,
    primary: str,
    ranked: Mapping[str, float | None],
    interval: Sequence[float] | None,
    test: Mapping[str, Any] | None,
) -> list[MetricRow]:
    """Every metric of the task, the one that ranks first. ``test``: {"metrics", "interval"}."""

    def row(metric: Metric) -> MetricRow:
        own = metric.name == primary
        low, high = interval if own and interval else (None, None)
        sealed = (test or {}).get("interval") if own else None
        test_low, test_high = sealed or (None, None)
        return MetricRow(
            title=metric.title,
            primary=own,
            value=ranked.get(metric.name),
            low=low,
            high=high,
            test=((test or {}).get("metrics") or {}).get(metric.name),
            test_low=test_low,
            test_high=test_high,
            better=_("higher") if metric.greater_is_better else _("lower"),
        )

    return [row(m) for m in sorted(metrics_for(task), key=lambda m: m.name != primary)]


def confusion_table(confusion: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Labels, and per true class its cells with how deep they are coloured (share of the row)."""
    if not confusion or not confusion.get("labels"):
        return None
    rows = []
    for i, (label, counts) in enumerate(zip(confusion["labels"], confusion["counts"], strict=True)):
        total = sum(counts) or 1
        cells = [
            {"count": n, "right": i == j, "depth": math.ceil(5 * n / total) if n else 0}
            for j, n in enumerate(counts)
        ]
        rows.append({"label": label, "cells": cells})
    return {"labels": confusion["labels"], "rows": rows}


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture (``kind``, ``data``: see static/js/charts.js) and a table that says the same."""

    id: str
    kind: str
    title: str
    text: str
    data: dict[str, Any]
    heads: list[str]
    rows: list[list[Any]]

    @property
    def json_id(self) -> str:
        return f"{self.id}-data"

    @property
    def json(self) -> str:
        """For a fragment, which loses its scripts on the way into the page."""
        return json.dumps(self.data)

    @property
    def table(self) -> dict[str, Any]:
        return {"heads": self.heads, "rows": self.rows}


def charts(curves: Mapping[str, Any], target: str) -> list[Chart]:
    found = []
    if roc := curves.get("roc"):
        found.append(_roc(roc))
    if lines := curves.get("precision_recall"):
        found.append(_precision_recall(lines))
    if calibration := curves.get("calibration"):
        found.append(_calibration(calibration))
    if told := thresholds.gains(curves):
        found += [_gains(told), _lift(told)]
    if sample := curves.get("sample"):
        found.append(_sample(sample, target))
    if residuals := curves.get("residuals"):
        found.append(_residuals(residuals, target))
    return found


def overlaid(models: Sequence[tuple[str, Sequence[Chart]]], more: str = "") -> list[Chart]:
    """The charts that several models have, by name, each drawn over the others'.

    ``more`` ends the text of those that are of one class alone.
    """
    found = []
    for kind in ("roc", "precision-recall", "calibration", "sample", "residuals"):
        each = [(name, chart) for name, charts in models for chart in charts if chart.id == kind]
        if not each:
            continue
        first = each[0][1]
        series: list[dict[str, Any]] = [
            {"name": name, "points": _points(chart)} for name, chart in each
        ]
        data = {"series": series, "x": first.data["x"], "y": first.data["y"]}
        text = first.text
        if kind == "residuals":
            total = {one["name"]: sum(y for _, y in one["points"]) or 1 for one in series}
            for one in series:
                one["points"] = [[x, y / total[one["name"]]] for x, y in one["points"]]
            data["y"] = _("Share of rows")
        found.append(
            Chart(
                id=kind,
                kind="xy" if kind == "residuals" else first.kind,
                title=first.title,
                text=text + (more if kind in {"roc", "precision-recall"} else ""),
                data=data,
                heads=[_("model"), *first.heads[-2:]] if kind != "calibration"
                else ["model", *first.heads],
                rows=_some([one["name"], *point] for one in series for point in one["points"]),
            )
        )  # fmt: skip
    return found


def _points(chart: Chart) -> list[list[float]]:
    """What a chart of one model and class draws, as points."""
    if chart.kind == "bars":
        edges, counts = chart.data["edges"], chart.data["counts"]
        return [[(a + b) / 2, n] for a, b, n in zip(edges, edges[1:], counts, strict=False)]
    if "points" in chart.data:
        return [list(point) for point in chart.data["points"]]
    return [list(point) for one in chart.data["series"][:1] for point in one["points"]]


def _some(rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """At most TABLE_ROWS rows, evenly chosen, the ends included."""
    every = [list(row) for row in rows]
    if len(every) <= TABLE_ROWS:
        return every
    step = (len(every) - 1) / (TABLE_ROWS - 1)
    return [every[round(i * step)] for i in range(TABLE_ROWS)]


def _roc(lines: Sequence[Mapping[str, Any]]) -> Chart:
    series: list[dict[str, Any]] = [
        {
            "name": str(line["class"]),
            "points": list(
                zip(line["false_positive_rate"], line["true_positive_rate"], strict=True)
            ),
            "figure": line.get("auc"),
        }
        for line in lines
    ]
    return Chart(
        id="roc",
        kind="roc",
        title=_("ROC curve"),
        text=_(
            "How many of a class are found (up) at the price of how many false alarms (right). "
            "The dashed line is guessing."
        ),
        data={"series": series, "x": _("False alarms"), "y": _("Found")},
        heads=[_("class"), _("false alarms"), _("found")],
        rows=_some([s["name"], x, y] for s in series for x, y in s["points"]),
    )


def _precision_recall(lines: Sequence[Mapping[str, Any]]) -> Chart:
    series: list[dict[str, Any]] = [
        {
            "name": str(line["class"]),
            "points": list(zip(line["recall"], line["precision"], strict=True)),
            "figure": line.get("average_precision"),
        }
        for line in lines
    ]
    return Chart(
        id="precision-recall",
        kind="curve",
        title=_("Precision and recall"),
        text=_(
            "Of those that the model names, how many are right (up), for how many of all that "
            "it finds (right)."
        ),
        data={"series": series, "x": _("Recall"), "y": _("Precision")},
        heads=[_("class"), _("recall"), _("precision")],
        rows=_some([s["name"], x, y] for s in series for x, y in s["points"]),
    )


def _calibration(calibration: Mapping[str, Any]) -> Chart:
    bins = [b for b in calibration["bins"] if b.get("count")]
    of = calibration.get("class")
    return Chart(
        id="calibration",
        kind="calibration",
        title=_("Are the probabilities true?"),
        text=_(
            "Where the model says that 8 of 10 are “%(of)s”, 8 of 10 should be: points on the "
            "dashed line are."
        )
        % {"of": of}
        if of
        else _(
            "Where the model is sure to 8 of 10, it should be right that often: points on the "
            "dashed line are."
        ),
        data={
            "points": [[b["predicted"], b["observed"], b["count"]] for b in bins],
            "x": _("Said"),
            "y": _("Came true"),
        },
        heads=[_("said"), _("came true"), _("rows")],
        rows=[[b["predicted"], b["observed"], b["count"]] for b in bins],
    )


def _gains(told: Sequence[Mapping[str, Any]]) -> Chart:
    series = [
        {"name": one["name"], "points": list(zip(one["looked"], one["found"], strict=True))}
        for one in told
    ]
    return Chart(
        id="gains",
        kind="roc",
        title=_("Gains"),
        text=_(
            "Look at the rows that the model finds likeliest first: how many of a class are found "
            "(up) in which share of all rows (right). The dashed line is looking at random."
        ),
        data={"series": series, "x": _("Share of rows"), "y": _("Found")},
        heads=[_("class"), _("share of rows"), _("found")],
        rows=_some([s["name"], x, y] for s in series for x, y in s["points"]),
    )


def _lift(told: Sequence[Mapping[str, Any]]) -> Chart:
    series = [
        {
            "name": one["name"],
            "points": [
                [x, y] for x, y in zip(one["looked"], one["lift"], strict=True) if y is not None
            ],
        }
        for one in told
    ]
    return Chart(
        id="lift",
        kind="xy",
        title=_("Lift"),
        text=_(
            "How many times as often a class is met among the rows that the model finds "
            "likeliest as among all. One is looking at random."
        ),
        data={
            "series": series,
            "x": _("Share of rows"),
            "y": _("Lift"),
            "xRange": {"min": 0, "max": 1},
            "yRange": {"min": 0},
        },
        heads=[_("class"), _("share of rows"), _("lift")],
        rows=_some([s["name"], x, y] for s in series for x, y in s["points"]),
    )


def threshold_chart(told: Mapping[str, Any], at: float) -> Chart:
    """Precision, recall and F1 over the thresholds, with a line where the chosen one is."""
    rows = thresholds.every(told)
    series = [
        {
            "name": title,
            "points": [[row["threshold"], row[key]] for row in rows if row[key] is not None],
        }
        for key, title in (("precision", "Precision"), ("recall", "Recall"), ("f1", "F1"))
    ]
    return Chart(
        id="threshold-chart",
        kind="xy",
        title=_("Precision, recall and F1 by threshold"),
        text=_("The dashed line is the threshold chosen above."),
        data={
            "series": series,
            "x": _("Threshold"),
            "y": _("Figure"),
            "xRange": {"min": 0, "max": 1},
            "yRange": {"min": 0, "max": 1},
            "mark": at,
            "still": True,
        },
        heads=[_("threshold"), _("named"), _("precision"), _("recall"), "F1", _("lift")],
        rows=_some(
            [r["threshold"], r["tp"] + r["fp"], r["precision"], r["recall"], r["f1"], r["lift"]]
            for r in rows
        ),
    )


def _sample(sample: Mapping[str, Any], target: str) -> Chart:
    points = list(zip(sample["true"], sample["predicted"], strict=True))
    return Chart(
        id="sample",
        kind="scatter",
        title=_("Predicted and true"),
        text=_("One point per row, up to 500 of them. On the dashed line the prediction is exact."),
        data={"points": points, "x": _("True %s") % target, "y": _("Predicted")},
        heads=[_("true"), _("predicted")],
        rows=_some(sorted(points)),
    )


def _residuals(residuals: Mapping[str, Any], target: str) -> Chart:
    edges, counts = residuals["edges"], residuals["counts"]
    return Chart(
        id="residuals",
        kind="bars",
        title=_("How far off"),
        text=_(
            "True value minus prediction: left of zero the model said too much, right of it too "
            "little. The outermost errors are in the end bars."
        ),
        data={
            "edges": edges,
            "counts": counts,
            "x": _("True minus predicted %s") % target,
            "y": _("Rows"),
        },
        heads=[_("from"), _("to"), _("rows")],
        rows=[[a, b, n] for a, b, n in zip(edges, edges[1:], counts, strict=False)],
    )


# --- A form from the schema ----------------------------------------------------------------------


@dataclass(slots=True)
class SchemaField:
    """One column as a control. ``key`` is the control's name: column names may be anything."""

    id: str
    key: str
    name: str
    input: str  # number | choice | text | date | datetime | picture
    value: str
    options: list[str]
    hint: str
    errors: list[str] = field(default_factory=list)
    low: str = ""  # of a number, in the data: a slider goes from here
    high: str = ""
    step: str = ""


def schema_fields(
    schema: Sequence[Mapping[str, Any]],
    columns: Sequence[Mapping[str, Any]],
    given: Mapping[str, str] | None = None,
    errors: Mapping[str, Sequence[str]] | None = None,
) -> list[SchemaField]:
    """Controls for the columns of ``schema`` (name, dtype, role), typical values filled in.

    ``columns``: what is known of the data (DatasetVersion.columns; empty once it was deleted).
    ``given``: what was entered, by control name; ``errors``: messages by column.
    """
    known = {str(column["name"]): column for column in columns}
    fields = []
    for i, column in enumerate(schema):
        name, dtype = str(column["name"]), str(column.get("dtype", "string"))
        facts = known.get(name, {})
        key = f"column-{i}"
        kind, value, options, hint = _control(dtype, str(column.get("role", "")), facts)
        if given is not None:
            value = given.get(key, "")
            if kind == "choice" and value and value not in options:
                options = [*options, value]
        fields.append(
            SchemaField(
                id=f"field-{i}",
                key=key,
                name=name,
                input=kind,
                value=value,
                options=options,
                hint=hint,
                errors=list((errors or {}).get(name, ())),
                **(_range(dtype, facts) if kind == "number" else {}),
            )
        )
    return fields


def _range(dtype: str, facts: Mapping[str, Any]) -> dict[str, str]:
    """From where to where a slider goes, and by which steps; empty for numbers all alike."""
    low, high = facts.get("min"), facts.get("max")
    if low is None or high is None or not float(low) < float(high):
        return {}
    step = 1.0 if dtype == "integer" else 10.0 ** math.floor(math.log10((high - low) / 50))
    return {"low": f"{low:.10g}", "high": f"{high:.10g}", "step": f"{step:.10g}"}


MOST_TRIED = 25  # values of a column in the sensitivity chart


def tried(
    column: Mapping[str, Any], facts: Mapping[str, Any], now: str
) -> tuple[str, list[str]] | None:
    """Values to try of a column and whether they are a "number" or a "word"; None for free text.

    ``facts``: what is known of the data; ``now``: what the form has, which is among them.
    """
    dtype = str(column.get("dtype", "string"))
    kind, _, options, _ = _control(dtype, str(column.get("role", "")), facts)
    if kind == "number":
        low, high = facts.get("min"), facts.get("max")
        if low is None or high is None or not float(low) < float(high):
            return None
        values = {low + (high - low) * i / (MOST_TRIED - 2) for i in range(MOST_TRIED - 1)}
        try:
            values.add(float(now))
        except ValueError:
            pass
        if dtype == "integer":
            values = {float(round(value)) for value in values}
        return "number", [f"{value:.10g}" for value in sorted(values) if math.isfinite(value)]
    words = list(options[: MOST_TRIED - 1])
    if now and now not in words:
        words.append(now)
    return ("word", words) if len(words) > 1 else None


def sensitivity(
    column: str,
    kind: str,
    values: Sequence[str],
    now: str,
    said: Sequence[float],
    what: str,
) -> Chart:
    """How the answer changes with one column of the row in the form, the others as they are."""
    xs: list[float] = (
        [float(value) for value in values]
        if kind == "number"
        else [float(place) for place in range(len(values))]
    )
    data: dict[str, Any] = {
        "series": [{"name": "", "points": [list(one) for one in zip(xs, said, strict=True)]}],
        "x": column,
        "y": what,
        "still": True,
    }
    if kind == "word":
        data["categories"] = list(values)
    if now in values:
        data["mark"] = xs[list(values).index(now)]
    return Chart(
        id="sensitivity-chart",
        kind="xy",
        title=f"With another {column}",
        text=f"{what} for other values of {column}, all else as in the form; the dashed line is "
        "where it is now.",
        data=data,
        heads=[column, what],
        rows=[list(one) for one in zip(values, said, strict=True)],
    )


def _control(dtype: str, role: str, facts: Mapping[str, Any]) -> tuple[str, str, list[str], str]:
    """Kind of control, typical value, options and hint."""
    if dtype == "binary":
        most = MOST_PICTURE_BYTES >> 20
        return "picture", "", [], f"JPEG, PNG, GIF, BMP, WebP or TIFF, up to {most} MiB."
    values = facts.get("classes") or facts.get("top") or []
    options = [shown(one["value"]) for one in values if one.get("value") not in (None, "")]
    common = options[0] if options else ""
    if facts.get("top"):
        first = next((o["value"] for o in facts["top"] if o.get("value") not in (None, "")), None)
        common = shown(first) if first is not None else common
    if dtype == "boolean":
        return "choice", common, ["true", "false"], ""
    if dtype in {"integer", "float"}:
        if role == "categorical" and options and len(options) <= MOST_OPTIONS:
            return "choice", common, options, ""
        middle = (facts.get("quantiles") or {}).get("0.5", facts.get("mean"))
        low, high = facts.get("min"), facts.get("max")
        spread = (
            "" if low is None or high is None else f"{number(low)} to {number(high)} in the data"
        )
        return "number", plain(middle, dtype), [], spread
    if dtype == "date":
        return "date", str(facts.get("max") or "")[:10], [], ""
    if dtype == "datetime":
        return "datetime", str(facts.get("max") or "")[:19], [], ""
    if role == "text":
        return "text", common, [], ""
    every = bool(facts.get("classes")) and len(options) <= MOST_OPTIONS
    if every:
        return "choice", common, sorted(options), ""
    return (
        "text",
        common,
        options[:MOST_SUGGESTIONS],
        "one of many; new ones are understood too",
    )


def plain(value: Any, dtype: str) -> str:
    """A number as a person would type it."""
    if value is None:
        return ""
    if dtype == "integer" or (float(value).is_integer() and abs(value) < 1e15):
        return str(round(value))
    return f"{value:.6g}"


def row_of(schema: Sequence[Mapping[str, Any]], posted: Mapping[str, str]) -> dict[str, Any]:
    """The row that a form from :func:`schema_fields` sent; an empty control means missing."""
    return {
        str(column["name"]): posted.get(f"column-{i}", "") or None
        for i, column in enumerate(schema)
    }


def answer(
    prediction: Any,
    probabilities: Sequence[float] | None,
    classes: Sequence[str] | None,
) -> dict[str, Any]:
    """One prediction for the page: likeliest classes first, at most ten."""
    if probabilities is None or classes is None:
        text = number(prediction) if isinstance(prediction, int | float) else shown(prediction)
        return {"prediction": text, "probabilities": []}
    order = sorted(range(len(classes)), key=lambda i: -probabilities[i])[:10]
    return {
        "prediction": shown(prediction),
        "probabilities": [
            {
                "label": str(classes[i]),
                "share": probabilities[i],
                "said": str(classes[i]) == shown(prediction),
            }
            for i in order
        ],
    }


# --- The race ------------------------------------------------------------------------------------


def best_line(
    scored: Sequence[tuple[datetime, float]],
    started: datetime,
    now: datetime,
    metric: str,
) -> dict[str, Any] | None:
    """The best score so far over time as points of a step line in a box of 300 by 60, in words, and
    as ``rows`` of seconds and score.

    ``scored``: when each model was scored and how well. None below two models.
    """
    if len(scored) < 2:
        return None
    greater = METRICS[metric].greater_is_better
    steps: list[tuple[float, float]] = []
    best: float | None = None
    for at, score in sorted(scored):
        if best is None or (score > best if greater else score < best):
            best = score
            steps.append(((at - started).total_seconds(), score))
    length = max((now - started).total_seconds(), steps[-1][0], 1.0)
    low, high = min(s for _, s in steps), max(s for _, s in steps)
    spread = (high - low) or 1.0

    def place(seconds: float, score: float) -> tuple[float, float]:
        share = (score - low) / spread if high > low else 0.5
        height = share if greater else 1 - share
        return 300 * max(0.0, seconds) / length, 56 - 52 * height

    points: list[tuple[float, float]] = []
    for seconds, score in steps:
        x, y = place(seconds, score)
        if points:
            points.append((x, points[-1][1]))
        points.append((x, y))
    points.append((300.0, points[-1][1]))
    return {
        "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in points),
        "words": f"Best {METRICS[metric].title} so far: from {steps[0][1]:.3f} to "
        f"{steps[-1][1]:.3f} with {len(scored)} models",
        "rows": steps,
    }


# --- Code ----------------------------------------------------------------------------------------


def _python(value: Any) -> str:
    """A value as Python writes it, texts in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def snippets(
    base_url: str, model: str, row: Mapping[str, Any], pictures: Collection[str] = ()
) -> list[dict[str, str]]:
    """Code that signs in and asks the model, with its real address.

    Columns named in ``pictures`` are read from a file.
    """
    base = base_url.rstrip("/")
    body = json.dumps({"rows": [dict(row)]}, ensure_ascii=False)
    quoted = body.replace("'", "'\\''")
    asking = (
        f"curl -s {base}/api/results/model/{model}/predict \\\n"
        '  -H "Authorization: Bearer $TOKEN" -H "Content-Type: application/json" \\\n'
        f"  -d '{quoted}'"
    )
    if pictures:
        asking = (
            f"curl -s {base}/api/jobs/inference \\\n"
            '  -H "Authorization: Bearer $TOKEN" -H "Prefer: wait=5" \\\n'
            f"  -F model_id={model} -F image=@picture.jpg"
        )
    curl = (
        f"TOKEN=$(curl -s {base}/api/auth/login -d username=YOU -d password=SECRET \\\n"
        "  | python3 -c 'import json, sys; print(json.load(sys.stdin)[\"access\"])')\n\n"
        f"{asking}"
    )
    first, then = ("import base64\n", "from pathlib import Path\n") if pictures else ("", "")
    picture = 'base64.b64encode(Path("picture.jpg").read_bytes()).decode()'
    indented = "\n".join(
        f"        {_python(k)}: {picture if k in pictures else _python(v)}," for k, v in row.items()
    )
    python = (
        f"{first}import json\n{then}"
        "from urllib.request import Request, urlopen\n\n"
        f'FLOWML = "{base}"\n\n\n'
        "def post(path, body, token=None):\n"
        '    headers = {"Content-Type": "application/json"}\n'
        "    if token:\n"
        '        headers["Authorization"] = f"Bearer {token}"\n'
        "    request = Request(FLOWML + path, json.dumps(body).encode(), headers)\n"
        "    with urlopen(request) as answer:\n"
        "        return json.load(answer)\n\n\n"
        'token = post("/api/auth/login", {"username": "YOU", "password": "SECRET"})["access"]\n'
        "rows = [\n"
        "    {\n"
        f"{indented}\n"
        "    },\n"
        "]\n"
        f'print(post("/api/results/model/{model}/predict", {{"rows": rows}}, token))'
    )
    return [
        {"id": "curl", "title": "curl", "text": curl},
        {"id": "python", "title": "Python, nothing to install", "text": python},
    ]
