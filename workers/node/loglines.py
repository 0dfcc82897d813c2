"""How much of what a task prints becomes its log: bounded in rate and in size. Pure.

A task that prints in a loop must fill neither the database nor the screen; and how it ended is in
its last lines, whatever came before. Standard library only.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_LINES = 5000  # of one attempt
LINES_A_SECOND = 200
BURST = 1000  # so many at once, while it was quiet before
LAST = 50  # these come in any case
MASKED, SHORTEST = "[secret]", 4  # shorter ones would take ordinary words away


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


class Mask:
    """Takes the secrets of a task out of what it says: whole, and their long lines alone."""

    def __init__(self, secrets: Mapping[str, Any]) -> None:
        texts = {value for value in secrets.values() if isinstance(value, str)}
        texts |= {line for text in texts for line in text.splitlines() if len(line) >= 16}
        # The longest first: one may hold another.
        self._texts = sorted((text for text in texts if len(text) >= SHORTEST), key=len)[::-1]

    def text(self, said: str) -> str:
        for secret in self._texts:
            said = said.replace(secret, MASKED)
        return said

    def plain(self, said: Any) -> Any:
        """The same of JSON: every text in it but the names of fields."""
        if not self._texts:
            return said
        if isinstance(said, str):
            return self.text(said)
        if isinstance(said, list):
            return [self.plain(one) for one in said]
        if isinstance(said, dict):
            return {name: self.plain(one) for name, one in said.items()}
        return said
