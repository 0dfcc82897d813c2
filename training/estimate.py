"""How long a task of a race takes and how much memory it needs, judged by earlier ones. Pure.

A line through the logarithms: log(actual / usual) over log(cells), where the usual is what holds
without any history (the time budget; a rule of thumb for memory). Each engine's line is drawn
towards that of all engines, and that one towards the usual, by as much as a few runs weigh: so one
odd run says little, and many say all. How far off such estimates were is told by making each one
again from what was known before its run had ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PULL = 3.0  # runs: so much weighs what holds for all engines, against an engine's own
ENOUGH = 5  # runs of an engine, before its memory is asked by history
REACH = 4.0  # times the largest table seen: beyond, history says nothing of memory
MARGIN = 1.25  # of memory above what is expected
LEAST_RAM_MIB = 1024
USUAL_CELLS = 5.0  # log10: where the line's height is its mean
MOST_CHECKED = 100  # of the newest runs are estimated again to tell the error
WIDE = 3.0  # times: how far off an estimate may be where nothing tells better
OVER = 1.1  # of its budget an engine may take, and START_S to start and to read
START_S = 10.0

Line = npt.NDArray[np.float64]  # height and slope


@dataclass(frozen=True, slots=True)
class Run:
    """A task of a race that ended. None for what it does not tell."""

    engine: str
    node: str
    cells: float  # rows times columns
    budget_s: float
    seconds: float | None
    ram_mib: float | None


@dataclass(frozen=True, slots=True)
class Guess:
    """``low`` to ``high`` holds about nine of ten; ``runs`` of this engine are behind it."""

    value: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True, slots=True)
class Error:
    """How far off earlier estimates were, as a ratio from 1 upwards; over ``runs`` of them."""

    median: float
    p90: float
    runs: int


def usual_ram_mib(cells: float) -> int:
    """Without history: what any engine takes, and ten copies of the table as float64."""
    return 2048 + int(cells) * 8 * 10 // 2**20


class Past:
    """What ended before, oldest first."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = [run for run in runs if run.cells > 0 and run.budget_s > 0]
        self._timed = [run for run in self.runs if run.seconds and run.seconds > 0]
        self._sized = [run for run in self.runs if run.ram_mib and run.ram_mib > 0]

    def seconds(
        self, engine: str, cells: float, budget_s: float, nodes: Sequence[str] = ()
    ) -> Guess:
        """Of one engine's task with such a budget, on one of ``nodes``; its budget bounds it."""
        ratio = _Ratios(self._timed, lambda run: (run.seconds or 0.0) / run.budget_s)
        most = most_s(budget_s)
        guess = ratio.guess(engine, cells, nodes)
        if not ratio.runs:
            return Guess(budget_s, min(5.0, budget_s), most, 0)
        value = min(most, budget_s * guess)
        wide = _wide(self.seconds_error)
        return Guess(value, value / wide, min(most, value * wide), ratio.of(engine))

    def ram(self, engine: str, cells: float) -> Guess:
        """MiB at its peak. ``runs`` is 0 for the rule of thumb."""
        usual = usual_ram_mib(cells)
        if not self._sized:
            return Guess(usual, usual / WIDE, usual, 0)
        ratio = _Ratios(self._sized, lambda run: (run.ram_mib or 0.0) / usual_ram_mib(run.cells))
        value = usual * ratio.guess(engine, cells)
        wide = _wide(self.ram_error)
        return Guess(value, value / wide, value * wide, ratio.of(engine))

    def ask_mib(self, engine: str, cells: float) -> int:
        """The memory to ask for: never less than a smaller table of this engine has taken."""
        mine = [run for run in self._sized if run.engine == engine]
        usual = usual_ram_mib(cells)
        smaller = max((run.ram_mib or 0.0 for run in mine if run.cells <= cells), default=0.0)
        asked = float(usual)
        if len(mine) >= ENOUGH and cells <= REACH * max(run.cells for run in mine):
            asked = max(LEAST_RAM_MIB, self.ram(engine, cells).high)
        return 64 * math.ceil(max(asked, smaller * MARGIN) / 64)

    @property
    def seconds_error(self) -> Error | None:
        """None before there are any to tell from."""
        return _error(
            self._timed,
            lambda run: (run.seconds or 0.0) / run.budget_s,
            most=lambda run: most_s(run.budget_s) / run.budget_s,
        )

    @property
    def ram_error(self) -> Error | None:
        return _error(self._sized, lambda run: (run.ram_mib or 0.0) / usual_ram_mib(run.cells))


def most_s(budget_s: float) -> float:
    """What a task with this budget takes at the most: the node ends what takes longer."""
    return budget_s * OVER + START_S


class _Ratios:
    """Lines fitted to the logarithms of ``ratio`` of the runs."""

    def __init__(self, runs: Sequence[Run], ratio: Callable[[Run], float]) -> None:
        self.runs = list(runs)
        self._x = np.array([[1.0, math.log10(run.cells) - USUAL_CELLS] for run in self.runs])
        self._y = np.array([math.log(max(ratio(run), 1e-6)) for run in self.runs])
        self._all = _line(self._x, self._y, np.zeros(2)) if self.runs else np.zeros(2)

    def of(self, engine: str) -> int:
        return sum(run.engine == engine for run in self.runs)

    def guess(self, engine: str, cells: float, nodes: Sequence[str] = ()) -> float:
        """The ratio to expect; 1 without any runs."""
        if not self.runs:
            return 1.0
        mine = np.array([run.engine == engine for run in self.runs])
        line = _line(self._x[mine], self._y[mine], self._all)
        x = np.array([1.0, math.log10(max(1.0, cells)) - USUAL_CELLS])
        said = float(x @ line)
        if nodes:
            left = self._y[mine] - self._x[mine] @ line
            where = np.array([run.node for run in self.runs], dtype=object)[mine]
            said += float(np.mean([_drawn(left[where == node]) for node in nodes]))
        # Beyond what was seen a line leads anywhere: it ends a factor of 10 past what was.
        return math.exp(float(np.clip(said, self._y.min() - 2.3, self._y.max() + 2.3)))


def _line(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], towards: Line) -> Line:
    """Least squares, drawn towards another line by the weight of PULL runs."""
    weight = PULL * np.eye(2)
    return np.asarray(np.linalg.solve(x.T @ x + weight, x.T @ y + weight @ towards))


def _drawn(left: npt.NDArray[np.float64]) -> float:
    """A node's own part: the mean of what its runs leave over, few of them drawn to none."""
    return float(left.sum() / (len(left) + PULL))


def _wide(off: Error | None) -> float:
    """How far off an estimate may be: as nine of ten were, drawn to WIDE while there are few."""
    if off is None:
        return WIDE
    said = off.runs * math.log(off.p90) + PULL * math.log(WIDE)
    return math.exp(said / (off.runs + PULL))


def _error(
    runs: Sequence[Run],
    ratio: Callable[[Run], float],
    *,
    most: Callable[[Run], float] = lambda run: math.inf,
) -> Error | None:
    """Estimate the newest runs again, each from those before it."""
    off = []
    for place in range(max(1, len(runs) - MOST_CHECKED), len(runs)):
        run = runs[place]
        before = _Ratios(runs[:place], ratio)
        said, was = min(most(run), before.guess(run.engine, run.cells)), max(ratio(run), 1e-6)
        off.append(max(said / was, was / said))
    if not off:
        return None
    return Error(float(np.median(off)), float(np.quantile(off, 0.9)), len(off))
