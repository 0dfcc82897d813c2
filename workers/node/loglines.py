"""How much of what a task prints becomes its log: bounded in rate and in size. Pure.

A task that prints in a loop must fill neither the database nor the screen; and how it ended is in
its last lines, whatever came before. Standard library only.
"""

from collections import deque
from dataclasses import dataclass, field

MAX_LINES = 5000  # of one attempt
LINES_A_SECOND = 200
BURST = 1000  # so many at once, while it was quiet before
LAST = 50  # these come in any case


@dataclass
class LogLines:
    """The log of one attempt. Times are seconds of one monotonic clock."""

    kept: int = 0
    skipped: int = 0  # since the last line that was kept
    _last: "deque[str]" = field(default_factory=lambda: deque(maxlen=LAST))
    _room: float = BURST
    _at: float | None = None

    def take(self, lines: list[str], now: float) -> list[str]:
        """Those of ``lines`` that are told now, after a word on those left out before."""
        if self._at is not None:
            self._room = min(BURST, self._room + (now - self._at) * LINES_A_SECOND)
        self._at = now
        room = max(0, min(int(self._room), MAX_LINES - self.kept, len(lines)))
        told = lines[:room]
        if told and self.skipped:
            told = [self._gap(), *told]
            self._last.clear()
            self.skipped = 0
        self._room -= room
        self.kept += room
        left = lines[room:]
        self.skipped += len(left)
        self._last.extend(left)
        return told

    def end(self) -> list[str]:
        """The last lines that were left out, once there is no more to come."""
        if not self.skipped:
            return []
        last = list(self._last)
        self.skipped -= len(last)
        told = [self._gap(), *last] if self.skipped else last
        self.skipped = 0
        self._last.clear()
        return told

    def _gap(self) -> str:
        few = self.skipped == 1
        why = "too many" if self.kept >= MAX_LINES else "too many at once"
        return f"... {self.skipped:,} line{'' if few else 's'} left out here: {why} to keep"
