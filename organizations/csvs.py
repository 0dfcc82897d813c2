"""CSV for people who open it in a spreadsheet.

A cell that begins with =, +, -, @, a tab or a carriage return would run there as a formula (OWASP,
"CSV Injection"); a quote in front makes it text. Numbers stay numbers.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

_RISKY = ("=", "+", "-", "@", "\t", "\r")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def defused(value: Any) -> Any:
    """A cell's value such that no spreadsheet runs it."""
    if isinstance(value, str) and value.startswith(_RISKY) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def written(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """A CSV file, in memory."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow([defused(name) for name in head])
    writer.writerows([defused(value) for value in row] for row in rows)
    return out.getvalue().encode()
