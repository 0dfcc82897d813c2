"""Curves as plots, and plots as SVG or PNG. Pure: stored figures in, text or bytes out.

As a program (``python -m training.plots``) it reads one plot as JSON and writes a PNG. Control runs
that in a child with limits: the library that draws is loaded nowhere else.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from xml.sax.saxutils import escape

COLOURS = ("#1d5fbf", "#b42318", "#15703d", "#93580a", "#6b3fa0", "#0d7f8c", "#555555", "#c2185b")
WIDTH, HEIGHT = 440, 360  # of an SVG
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 40, 44


@dataclass(frozen=True)
class Series:
    """``low`` and ``high`` draw a band around a line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Plot:
    """``limits``: x and y from and to; ``even``: a dashed line from the lower left to the upper
    right, which is guessing, or being exact."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    limits: tuple[float, float, float, float]
    even: bool = False


def plots(curves: Mapping[str, Any], target: str) -> dict[str, Plot]:
    """What can be drawn of a model's stored curves, by its name: roc and so on."""
    found = {}
    if lines := curves.get("roc"):
        found["roc"] = Plot(
            "ROC curve",
            "False alarms",
            "Found",
            [
                Series(
                    _named(line["class"], line.get("auc"), "AUC"),
                    line["false_positive_rate"],
                    line["true_positive_rate"],
                )
                for line in lines
            ],
            (0, 1, 0, 1),
            even=True,
        )
    if lines := curves.get("precision_recall"):
        found["precision_recall"] = Plot(
            "Precision and recall",
            "Recall",
            "Precision",
            [
                Series(
                    _named(line["class"], line.get("average_precision"), "AP"),
                    line["recall"],
                    line["precision"],
                )
                for line in lines
            ],
            (0, 1, 0, 1),
        )
    if sample := curves.get("sample"):
        low, high = _span([*sample["true"], *sample["predicted"]])
        found["sample"] = Plot(
            "Predicted and true",
            f"True {target}",
            "Predicted",
            [Series("rows", sample["true"], sample["predicted"], dots=True)],
            (low, high, low, high),
            even=True,
        )
    return found


def _named(label: Any, figure: float | None, what: str) -> str:
    text = str(label)
    text = text if len(text) <= 24 else f"{text[:23]}…"
    return text if figure is None else f"{text} ({what} {figure:.3f})"


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    room = (high - low) * 0.04 or 0.5
    return low - room, high + room


# SVG ---------------------------------------------------------------------------------------------


def svg(plot: Plot) -> str:
    """A picture that needs no style sheet, script or font of its own: presentation attributes."""
    x0, x1, y0, y1 = plot.limits
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        across = (min(max(x, x0), x1) - x0) / (x1 - x0)
        up = (min(max(y, y0), y1) - y0) / (y1 - y0)
        return round(LEFT + wide * across, 1), round(TOP + high * (1 - up), 1)

    def text(x: float, y: float, said: str, **more: Any) -> str:
        given = {"font-size": 12, "fill": "#333", "font-family": "sans-serif", **more}
        written = " ".join(f'{name}="{value}"' for name, value in given.items())
        return f'<text x="{x}" y="{y}" {written}>{escape(said)}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" role="img">',
        f"<title>{escape(plot.title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        text(LEFT, 22, plot.title, **{"font-size": 15, "font-weight": "bold"}),
        f'<rect x="{LEFT}" y="{TOP}" width="{wide}" height="{high}" fill="none" stroke="#bbb"/>',
        text(LEFT + wide / 2, HEIGHT - 8, plot.x, **{"text-anchor": "middle"}),
        text(14, TOP + high / 2, plot.y, **{
            "text-anchor": "middle", "transform": f"rotate(-90 14 {TOP + high / 2})"
        }),
    ]  # fmt: skip
    for step in range(5):
        share = step / 4
        x, y = x0 + (x1 - x0) * share, y0 + (y1 - y0) * share
        parts.append(text(at(x, y0)[0], TOP + high + 16, f"{x:.3g}", **{"text-anchor": "middle"}))
        parts.append(text(LEFT - 5, at(x0, y)[1] + 4, f"{y:.3g}", **{"text-anchor": "end"}))
    if plot.even:
        (ax, ay), (bx, by) = at(x0, y0), at(x1, y1)
        parts.append(
            f'<line x1="{ax}" y1="{ay}" x2="{bx}" y2="{by}" stroke="#999" stroke-dasharray="4 4"/>'
        )
    for place, one in enumerate(plot.series):
        colour = COLOURS[place % len(COLOURS)]
        points = [at(x, y) for x, y in zip(one.x, one.y, strict=True)]
        if one.dots:
            parts += [
                f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}" fill-opacity="0.5"/>'
                for x, y in points
            ]
            continue
        drawn = " ".join(f"{x},{y}" for x, y in points)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(
            text(LEFT + wide - 8, TOP + high - 10 - 16 * place, one.name, **{
                "text-anchor": "end", "fill": colour
            })
        )  # fmt: skip
    return "".join([*parts, "</svg>"])


# PNG ---------------------------------------------------------------------------------------------


def as_json(plot: Plot) -> str:
    return json.dumps(asdict(plot))


def png(told: Mapping[str, Any]) -> bytes:
    """The plot of ``as_json`` as a picture of 960 x 720 pixels. Loads matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for place, one in enumerate(told["series"]):
        colour = COLOURS[place % len(COLOURS)]
        if one["dots"]:
            axes.plot(one["x"], one["y"], "o", color=colour, alpha=0.4, markersize=3)
            continue
        mark = "o" if one["low"] else ""
        # A label that begins with an underscore would be left out of the legend.
        label = f" {one['name']}".replace("$", r"\$")
        axes.plot(one["x"], one["y"], color=colour, marker=mark, label=label)
        if one["low"]:
            axes.fill_between(one["x"], one["low"], one["high"], color=colour, alpha=0.15)
    x0, x1, y0, y1 = told["limits"]
    if told["even"]:
        axes.plot([x0, x1], [y0, y1], "--", color="#999999", linewidth=1)
    axes.set(xlim=(x0, x1), ylim=(y0, y1))
    axes.set_xlabel(told["x"].replace("$", r"\$"))
    axes.set_ylabel(told["y"].replace("$", r"\$"))
    axes.set_title(told["title"].replace("$", r"\$"))
    axes.grid(alpha=0.2)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


if __name__ == "__main__":
    sys.stdout.buffer.write(png(json.load(sys.stdin)))
