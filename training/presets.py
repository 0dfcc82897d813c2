"""What a training does unless it is told otherwise: presets, who races, how long each may take.

Pure: plain values in and out. docs/concepts.md shows the table; a test holds both together.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from training.checks import MIN_BUDGET_S

ALL = "all"
DEFAULT = "balanced"
# By what they reached on small and middling tables in the same time; others come after these.
STRONGEST = ("autogluon", "sklearn", "flaml", "pycaret")
BUDGET_MODES = {
    "total": "in all, in equal parts",
    "per_engine": "for each engine",
}


@dataclass(frozen=True, slots=True)
class Preset:
    """What is chosen where a request is silent. ``most_engines`` None: all that there are."""

    name: str
    title: str
    text: str
    most_engines: int | None
    time_budget_s: float
    ensemble: bool
    refit: bool
    budget_mode: str = "total"

    @property
    def engines_in_words(self) -> str:
        if self.most_engines is None:
            return "all"
        return f"the {self.most_engines} strongest that the nodes have"


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("quick", "Quick", "a first impression", 2, 60.0, True, False),
        Preset("balanced", "Balanced", "good for most tables", 3, 300.0, True, False),
        Preset("best", "Best", "large tables, last digits", None, 1800.0, True, True),
    )
}


class TooShort(ValueError):
    """The budget in all leaves an engine that was named less than it can use."""


def racers(
    fitting: Sequence[str],
    preset: Preset,
    *,
    every: bool,
    known: Collection[str],
    served: Collection[str],
) -> list[str]:
    """The engines that race where none is named, those first that are likely to start and to win.

    ``fitting``: engines whose task types fit. ``every``: all of them, whatever the preset says.
    ``served``: what live nodes have; ``known``: what any node ever had, so that an engine that
    this installation lacks altogether is not waited for. Where no node is known yet, every fitting
    engine may still come.
    """
    there = [name for name in fitting if name in known] or list(fitting)
    order = sorted(there, key=lambda name: (name not in served, *_strength(name)))
    if every or preset.most_engines is None:
        return order
    able = [name for name in order if name in served] or order
    return able[: preset.most_engines]


def _strength(name: str) -> tuple[int, str]:
    return (STRONGEST.index(name) if name in STRONGEST else len(STRONGEST), name)


def shares(engines: Sequence[str], budget_s: float, mode: str, *, named: bool) -> dict[str, float]:
    """Seconds that each engine gets, in the order of ``engines``.

    In all, the budget is divided in equal parts. Where a part would be shorter than an engine can
    use, the last ones stay out, unless they were ``named`` by whoever asked: then TooShort is
    raised.
    """
    if mode == "per_engine":
        return dict.fromkeys(engines, budget_s)
    most = max(1, math.floor(budget_s / MIN_BUDGET_S))
    if named and most < len(engines):
        raise TooShort(
            f"{budget_s:g} seconds in all leave {budget_s / len(engines):.3g} for each of "
            f"{len(engines)} engines; each needs at least {MIN_BUDGET_S:g}. Give more time, or "
            "name fewer engines."
        )
    racing = engines[:most]
    return {name: round(budget_s / len(racing), 3) for name in racing}


def table() -> str:
    """docs/concepts.md's table of presets."""
    rows: list[tuple[str, ...]] = [
        ("preset", "engines", "time", "ensemble", "refit"),
        ("---", "---", "---", "---", "---"),
    ]
    for one in PRESETS.values():
        time = f"{one.time_budget_s / 60:g} min {BUDGET_MODES[one.budget_mode].split(',')[0]}"
        flags = ["yes" if flag else "no" for flag in (one.ensemble, one.refit)]
        name = f"`{one.name}`" + (" (default)" if one.name == DEFAULT else "")
        rows.append((name, one.engines_in_words, time, *flags))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
