"""Raw tables: read from files, columns as numpy arrays.

Needs numpy, and pyarrow only to read files. A copy of this file travels in every artifact, so it
imports nothing of FlowML.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Table = Mapping[str, Any]  # column name -> values (numpy array, list, or pyarrow column)


class InputError(ValueError):
    """A table that cannot be used, told in a sentence. ``columns`` maps a column to what is wrong.

    ``code`` is "missing_columns", "unknown_columns", "wrong_type" or "bad_file".
    """

    def __init__(self, sentence: str, code: str, columns: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.code = code
        self.columns = dict(columns or {})


def as_array(values: Any) -> Array:
    """A one-dimensional numpy array of a list, array or pyarrow column; objects stay objects."""
    if isinstance(values, np.ndarray):
        return values
    if isinstance(values, list | tuple):
        out = np.empty(len(values), dtype=object)
        out[:] = values
        return out
    return from_arrow(values)


def dtype_of(values: Array) -> str:
    """The data set's word for a type: integer, float, boolean, string, date or datetime."""
    if values.dtype.kind in "iu":
        return "integer"
    if values.dtype.kind == "f":
        return "float"
    if values.dtype.kind == "b":
        return "boolean"
    if values.dtype.kind == "M":
        return "datetime"
    for value in values:
        if isinstance(value, bool):
            return "boolean"
        if isinstance(value, dt.datetime):
            return "datetime"
        if isinstance(value, dt.date):
            return "date"
        if value is not None:
            break
    return "string"


def read_file(path: str | Path, columns: Sequence[str] | None = None) -> dict[str, Any]:
    """The columns of a Parquet file or of delimited text (gzip too), as pyarrow columns by name.

    Delimited text is read as text, whatever it looks like: each column's kind says later what it
    means. ``columns`` picks some (Parquet only reads those). Raises InputError for other files.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(4)
    if not head:
        raise InputError("The file is empty.", "bad_file")
    table = _read_parquet(path, columns) if head == b"PAR1" else _read_text(path)
    names = list(table.column_names)
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InputError(f"Column '{doubled[0]}' appears more than once.", "bad_file")
    wanted = names if columns is None else [name for name in names if name in set(columns)]
    return {name: table.column(name) for name in wanted}


def _read_parquet(path: Path, columns: Sequence[str] | None) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        known = set(file.schema_arrow.names)
        wanted = None if columns is None else [name for name in columns if name in known]
        # One thread: native threads started here would not survive a later fork.
        return file.read(columns=wanted, use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"This Parquet file cannot be read: {error}", "bad_file") from error


def _read_text(path: Path) -> Any:
    import csv
    import gzip

    import pyarrow as pa
    import pyarrow.csv as pc

    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if packed else path.open("rb") as file:
        try:
            start = file.read(64 * 1024)
        except (OSError, EOFError) as error:
            raise InputError("This gzip file is damaged.", "bad_file") from error
    encoding = "utf8"
    try:
        start[: start.rfind(b"\n") + 1].decode("utf-8-sig")
    except UnicodeDecodeError:
        encoding = "latin-1"
    if b"\x00" in start:
        raise InputError("This is neither Parquet nor delimited text.", "bad_file")
    text = start.decode("utf-8-sig" if encoding == "utf8" else encoding, errors="replace")
    first = next(csv.reader(text.splitlines()[:1]), [])
    delimiter = ","
    if len(first) <= 1:
        line = text.splitlines()[0] if text else ""
        delimiter = max(",;\t|", key=line.count)
    header = next(csv.reader(text.splitlines()[:1], delimiter=delimiter), [])
    options = pc.ConvertOptions(
        column_types={name: pa.string() for name in header}, strings_can_be_null=False
    )
    try:
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            return pc.read_csv(
                file,
                read_options=pc.ReadOptions(use_threads=False, encoding=encoding),
                parse_options=pc.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert_options=options,
            )
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        raise InputError(f"This file cannot be read as a table: {error}", "bad_file") from error


def from_arrow(column: Any) -> Array:
    """Numbers and times as numpy arrays; the rest as objects, each distinct text kept once."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_dictionary(kind):
        return from_arrow(column.cast(kind.value_type))
    if pa.types.is_decimal(kind):
        return from_arrow(column.cast(pa.float64()))
    if pa.types.is_timestamp(kind):
        return np.asarray(column.cast(pa.timestamp("us", kind.tz)).to_numpy())
    if pa.types.is_date(kind):
        return np.asarray(column.cast(pa.timestamp("us")).to_numpy())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        coded = pc.dictionary_encode(column)
        chunks = coded.chunks if isinstance(coded, pa.ChunkedArray) else [coded]
        parts = []
        for chunk in chunks:
            words = np.array([*chunk.dictionary.to_pylist(), None], dtype=object)
            codes = np.asarray(chunk.indices.fill_null(len(words) - 1).to_numpy())
            parts.append(words[codes])
        return np.concatenate(parts) if parts else np.empty(0, dtype=object)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return np.asarray(column.to_numpy())
    return as_array(column.to_pylist())
