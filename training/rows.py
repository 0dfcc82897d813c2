"""Rows that somebody wants predictions for, checked against the model's columns."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from itertools import islice
from typing import Any

from training.checks import nearest

MOST_ROWS = 10_000  # in one request; a file takes any number
MOST_ERRORS = 20
_TRUE = {"true", "yes", "1", "t", "y"}
_FALSE = {"false", "no", "0", "f", "n"}


class BadRows(ValueError):
    """Rows that do not fit. ``errors`` holds messages by ``rows[i].column``."""

    def __init__(self, detail: str, errors: Mapping[str, Sequence[str]]) -> None:
        self.errors = {place: list(messages) for place, messages in errors.items()}
        super().__init__(detail)


# How the pictures begin that training/engines/images.py reads.
PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")
MOST_PICTURE_BYTES = 8 << 20


class _BadValue(Exception):
    pass


def check_rows(schema: Sequence[Mapping[str, Any]], rows: object) -> list[list[Any]]:
    """The rows as lists in the schema's order, or BadRows with what is wrong where.

    ``schema``: one {"name", "dtype"} per column. ``rows``: one object or a list of objects that
    name each column, in any order; null means missing, and so does empty text where no text is
    wanted (an empty field of a form). Numbers and true/false may come as text. Dates are ISO 8601
    and come out as such. Texts stay as they are, known category or not.
    """
    if isinstance(rows, Mapping):
        rows = [rows]
    if not isinstance(rows, list) or not rows:
        raise BadRows(
            "Give 'rows': one object or a list of objects, each with a value per column.",
            {"rows": ["At least one row is needed."]},
        )
    if len(rows) > MOST_ROWS:
        raise BadRows(
            f"{len(rows):,} rows came; one request takes {MOST_ROWS:,}. Send them as a file.",
            {"rows": [f"At most {MOST_ROWS:,} rows."]},
        )
    names = {str(column["name"]): str(column["dtype"]) for column in schema}
    errors: dict[str, list[str]] = {}
    checked = [
        _check_row(names, row, f"rows[{place}]", errors)
        for place, row in enumerate(rows)
        if len(errors) < MOST_ERRORS
    ]
    if errors:
        place, messages = next(iter(errors.items()))
        more = f" ({len(errors) - 1} more)" if len(errors) > 1 else ""
        raise BadRows(f"{place}: {messages[0]}{more}", errors)
    return checked


def _check_row(
    names: Mapping[str, str], row: object, place: str, errors: dict[str, list[str]]
) -> list[Any]:
    if not isinstance(row, Mapping):
        errors[place] = ["A row is an object that maps column names to values."]
        return []
    # Looking for the nearest name takes a while, and a row may have any number of names.
    for name in islice((name for name in row if name not in names), MOST_ERRORS):
        shown = str(name)[:100]
        errors[f"{place}.{shown}"] = [f"The model has no column '{shown}'.{nearest(shown, names)}"]
    values = []
    for name, dtype in names.items():
        if name not in row:
            errors[f"{place}.{name}"] = [
                f"Column '{name}' is missing. Send null when its value is not known."
            ]
            continue
        try:
            values.append(_value(row[name], dtype))
        except _BadValue as error:
            errors[f"{place}.{name}"] = [f"Column '{name}' {error}."]
    return values


def _value(value: object, dtype: str) -> Any:
    if dtype == "binary":
        return picture_text(value)
    if value is None:
        return None
    if dtype != "string" and isinstance(value, str) and not value.strip():
        return None
    if isinstance(value, list | Mapping):
        raise _BadValue("takes a single value, not a list or an object")
    if dtype in {"integer", "float"}:
        return _number(value, dtype)
    if dtype == "boolean":
        return _boolean(value)
    if dtype in {"date", "datetime"}:
        return _time(value, dtype)
    if isinstance(value, bool):
        raise _BadValue(f"takes a text, not {_shown(value)}")
    return value if isinstance(value, str) else str(value)


def picture_text(value: object) -> str:
    """A picture in a request as plain base64. Nothing is decoded here but its first bytes."""
    if not isinstance(value, str) or not value.strip():
        raise _BadValue("takes a picture: its bytes as base64 text")
    head, comma, tail = value.partition(",")
    text = tail if comma and head.startswith("data:") else value
    text = "".join(text.split())
    if len(text) > MOST_PICTURE_BYTES * 4 // 3 + 4:
        raise _BadValue(f"takes a picture of {MOST_PICTURE_BYTES >> 20} MiB at most")
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise _BadValue("takes a picture as base64 text, which this is not") from None
    if not data.startswith(PICTURES):
        raise _BadValue("holds no picture: JPEG, PNG, GIF, BMP, WebP and TIFF are read")
    return text


def _number(value: object, dtype: str) -> int | float:
    number: int | float
    if isinstance(value, bool):
        raise _BadValue(f"takes a number, not {_shown(value)}")
    try:
        if isinstance(value, int):
            number = value
        elif isinstance(value, str) and dtype == "integer" and value.strip().lstrip("+-").isdigit():
            number = int(value)
        else:
            number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise _BadValue(f"takes a number, not {_shown(value)}") from None
    if isinstance(number, float):
        if not math.isfinite(number):
            raise _BadValue("takes a finite number; send null when the value is not known")
        if dtype == "integer" and number.is_integer():
            number = int(number)
    if abs(number) > (2**63 - 1 if isinstance(number, int) else 1.7e308):
        raise _BadValue(f"takes a number of at most 64 bits, not {_shown(value)}")
    return number


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise _BadValue(f"takes true or false, not {_shown(value)}")


def _time(value: object, dtype: str) -> str:
    example = "2024-05-31" if dtype == "date" else "2024-05-31T14:30:00"
    if not isinstance(value, str):
        raise _BadValue(f"takes an ISO 8601 {dtype} such as {example}, not {_shown(value)}")
    try:
        if dtype == "date":
            return date.fromisoformat(value.strip()[:10]).isoformat()
        return datetime.fromisoformat(value.strip()).isoformat()
    except ValueError:
        raise _BadValue(
            f"takes an ISO 8601 {dtype} such as {example}, not {_shown(value)}"
        ) from None


def _shown(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"'{text[:60]}'"
