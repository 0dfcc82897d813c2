"""What is no plain delimited text: compressed or foreign-encoded text, JSON Lines, Excel, Parquet.

Data files are attacks too, so every size is bounded before it is believed: text is decompressed in
pieces and counted, Parquet's footer and Excel's cell references are read before any value is.

Imports no Django: it runs on nodes.
"""

import codecs
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import polars as pl
import zstandard

from datasets.delimited import Block, Job, Reject
from datasets.sniff import SAMPLE, BadFile, Encoding, clean_names, too_many_columns

CHUNK = 1 << 20
MAX_ROWS = 200_000_000
MAX_CELLS = 12_000_000  # of a worksheet: a spreadsheet is held in memory as a whole
MAX_ARRAY = 64 << 20  # bytes of a JSON array, which is held in memory as a whole
Progress = Callable[[float], None]


def size_text(count: int) -> str:
    """``count`` bytes in words, such as 1.5 GiB."""
    size, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"


# --- Compression ---------------------------------------------------------------------------------


def unpack(path: Path, kind: str, target: Path, *, limit: int, progress: Progress) -> None:
    """Decompress ``path`` (gzip or zstd) into ``target``, ``limit`` bytes at most."""
    pieces = _gunzipped if kind == "gzip" else _unzstd
    size, total = max(1, path.stat().st_size), 0
    with path.open("rb") as source, target.open("wb") as sink:
        for piece in pieces(source):
            total += len(piece)
            if total > limit:
                raise BadFile(
                    f"The file decompresses to more than {size_text(limit)}, which is the limit.",
                    code="too-large-decoded",
                    limit_bytes=limit,
                )
            sink.write(piece)
            progress(min(1.0, source.tell() / size))


def _gunzipped(source: IO[bytes]) -> Iterator[bytes]:
    try:
        member = zlib.decompressobj(wbits=31)
        data = source.read(CHUNK)
        while data:
            piece = member.decompress(data, CHUNK)
            if piece:
                yield piece
            data = member.unconsumed_tail
            if member.eof:
                # Another member may follow, and padding of NULs.
                data = member.unused_data.lstrip(b"\0")
                while not data and (more := source.read(CHUNK)):
                    data = more.lstrip(b"\0")
                if data:
                    member = zlib.decompressobj(wbits=31)
            elif not data:
                data = source.read(CHUNK)
    except zlib.error as error:
        raise _broken("gzip", str(error)) from None
    if not member.eof:
        raise _truncated("gzip")


def _unzstd(source: IO[bytes]) -> Iterator[bytes]:
    try:
        decoder = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        frame = decoder.decompressobj()
        begun = False
        # A zstd block of 4 bytes may stand for 128 KiB: small pieces bound what one call returns.
        while data := source.read(2048):
            while data:
                begun = True
                yield frame.decompress(data)
                data = frame.unused_data if frame.eof else b""
                if frame.eof:
                    frame, begun = decoder.decompressobj(), bool(data)
    except zstandard.ZstdError as error:
        raise _broken("zstd", str(error)) from None
    if begun:
        raise _truncated("zstd")


def _broken(kind: str, why: str) -> BadFile:
    return BadFile(
        f"The {kind} file is damaged and can't be decompressed ({why}). Compress it again.",
        code="bad-compression",
    )


def _truncated(kind: str) -> BadFile:
    return BadFile(
        f"The {kind} file ends too early: part of it is missing. Upload it again.",
        code="truncated",
    )


# --- Text ----------------------------------------------------------------------------------------


def transcode(path: Path, encoding: Encoding, target: Path, *, limit: int) -> None:
    """Write the text of ``path`` to ``target`` as UTF-8 without a mark."""
    decoder = codecs.getincrementaldecoder(encoding.codec)()
    total = 0
    with path.open("rb") as source, target.open("wb") as sink:
        source.seek(encoding.skip)
        while True:
            data = source.read(CHUNK)
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise BadFile(
                    f"The file is not valid {encoding.codec.upper()}: {error.reason}. Save it as "
                    "UTF-8.",
                    code="bad-encoding",
                ) from None
            encoded = text.encode()
            total += len(encoded)
            if total > limit:
                raise BadFile(
                    f"The text is larger than {size_text(limit)}, which is the limit.",
                    code="too-large-decoded",
                    limit_bytes=limit,
                )
            sink.write(encoded)
            if not data:
                return


def old_line_ends(sample: bytes) -> bool:
    """Whether lines end with a lone carriage return, as they once did on the Macintosh."""
    return b"\r" in sample and b"\n" not in sample


def mend_line_ends(path: Path, target: Path) -> None:
    """Copy ``path`` with every carriage return made a line feed."""
    with path.open("rb") as source, target.open("wb") as sink:
        while data := source.read(CHUNK):
            sink.write(data.replace(b"\r", b"\n"))


# --- JSON Lines ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class JsonLines:
    """Objects, one a line; nested objects become columns named ``outer.inner``."""

    path: Path
    start: int
    max_columns: int

    def jobs(self) -> Iterator[Job]:
        size = max(1, self.path.stat().st_size)
        with self.path.open("rb") as file:
            file.seek(self.start)
            number = 1
            while lines := file.readlines(1 << 23):
                share = file.tell() / size
                yield _JsonJob(lines, number, share, self.max_columns)
                number += len(lines)


@dataclass(frozen=True)
class JsonArray:
    """One JSON array of objects."""

    path: Path
    start: int
    max_columns: int

    def jobs(self) -> Iterator[Job]:
        if self.path.stat().st_size > MAX_ARRAY:
            raise BadFile(
                f"A JSON array may have {size_text(MAX_ARRAY)} at most. Upload larger tables as "
                "JSON Lines: one object a line, without brackets around them.",
                code="json-array-too-large",
                limit_bytes=MAX_ARRAY,
            )
        try:
            items = json.loads(self.path.read_bytes()[self.start :])
        except (ValueError, RecursionError) as error:
            raise BadFile(f"The file is no valid JSON: {error}.", code="bad-json") from None
        if not items:
            raise BadFile("The JSON array is empty.", code="empty-file")
        for at in range(0, len(items), 50_000):
            lines = [json.dumps(item).encode() for item in items[at : at + 50_000]]
            share = min(1.0, (at + 50_000) / len(items))
            yield _JsonJob(lines, at + 1, share, self.max_columns)


class _Unfit(Exception):
    """The line is no row, for the reason given."""


@dataclass(frozen=True)
class _JsonJob:
    lines: Sequence[bytes]
    first: int
    share: float
    max_columns: int

    def __call__(self) -> Block:
        columns: dict[str, list[str | None]] = {}
        rejects: list[Reject] = []
        places: list[int] = []
        for offset, line in enumerate(self.lines):
            if not line.strip():
                continue
            row: dict[str, str | None] = {}
            try:
                found = json.loads(line, object_pairs_hook=_once)
                if not isinstance(found, dict):
                    raise _Unfit("it is no JSON object")
                _flatten(found, "", row, self.first + offset)
            except RecursionError:
                rejects.append(self._reject(offset, "it is nested too deeply"))
                continue
            except (ValueError, _Unfit) as error:
                rejects.append(self._reject(offset, _json_reason(error)))
                continue
            done = len(places)
            for name, value in row.items():
                values = columns.get(name)
                if values is None:
                    if len(columns) >= self.max_columns:
                        raise too_many_columns(len(columns) + 1, self.max_columns)
                    columns[name] = values = [None] * done
                values.append(value)
            if len(row) < len(columns):
                for values in columns.values():
                    if len(values) == done:
                        values.append(None)
            places.append(offset)
        if len(columns) > self.max_columns:
            raise too_many_columns(len(columns), self.max_columns)
        frame = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))

        def locate(rows: Sequence[int]) -> list[tuple[int, str]]:
            return [(self.first + places[row], _shown(self.lines[places[row]])) for row in rows]

        return Block(frame, rejects, locate, self.share)

    def _reject(self, offset: int, reason: str) -> Reject:
        return Reject(self.first + offset, reason, _shown(self.lines[offset]))


def _json_reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"it is no valid JSON ({error.msg} at character {error.colno})"
    if isinstance(error, UnicodeDecodeError):
        return "it is not valid UTF-8"
    return str(error)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Unfit(f"it has the key '{twice[:60]}' twice")
    return found


def _flatten(found: dict[str, Any], prefix: str, row: dict[str, str | None], line: int) -> None:
    for key, value in found.items():
        name = prefix + " ".join(key.split())
        text: str | None
        if isinstance(value, str):
            text = value
            if not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError:
                    raise _Unfit("it holds half of a surrogate pair") from None
        elif value is None:
            text = None
        elif isinstance(value, bool):
            text = "true" if value else "false"
        elif isinstance(value, dict):
            if prefix.count(".") >= 8:
                raise _Unfit("it is nested too deeply")
            _flatten(value, f"{name}.", row, line)
            continue
        elif isinstance(value, list):
            raise BadFile(
                f"Column '{name}' holds lists (line {line}). A table has one value a cell: spread "
                "them over columns or rows, or write them as text.",
                code="nested-column",
                columns=[name],
            )
        else:
            text = repr(value)
        if name in row:
            raise _Unfit(f"it has the key '{name[:60]}' twice")
        if len(name) > 200 or not name or "\0" in name:
            raise _Unfit("it has a key that can't name a column")
        row[name] = text


def _shown(raw: bytes) -> str:
    text = raw[:4096].decode("utf-8", "replace").rstrip("\r\n").replace("\0", "\N{SYMBOL FOR NULL}")
    return text + ("…" if len(raw) > 4096 else "")


# --- Excel ---------------------------------------------------------------------------------------

_CELL = re.compile(rb'<c [^>]*?r="([A-Z]{1,3})(\d{1,7})"')


@dataclass(frozen=True)
class Sheet:
    """A worksheet as text, with its first row that is not empty as header."""

    frame: pl.DataFrame
    line: int  # of the first row of values

    def jobs(self) -> Iterator[Job]:
        step, height = 100_000, self.frame.height
        for at in range(0, height, step):
            share = min(1.0, (at + step) / height)
            yield _SheetJob(self.frame.slice(at, step), self.line + at, share)


@dataclass(frozen=True)
class _SheetJob:
    frame: pl.DataFrame
    line: int
    share: float

    def __call__(self) -> Block:
        empty = self.frame.select(pl.all_horizontal(pl.all().is_null())).to_series()
        places = empty.not_().arg_true()
        frame = self.frame.filter(empty.not_())

        def locate(rows: Sequence[int]) -> list[tuple[int, str]]:
            return [
                (self.line + places[row], "\t".join(str(cell or "") for cell in frame.row(row)))
                for row in rows
            ]

        return Block(frame, [], locate, self.share)


def read_sheet(path: Path, *, limit: int, max_columns: int) -> tuple[Sheet, list[str]]:
    """The first worksheet that holds anything, and notices."""
    import fastexcel

    _check_workbook(path, limit)
    try:
        reader = fastexcel.read_excel(str(path))
        names = reader.sheet_names
        frame = None
        for name in names:
            sheet = reader.load_sheet(name, header_row=None, skip_rows=0, dtypes="string")
            frame = sheet.to_polars() if sheet.width and sheet.total_height else None
            if frame is not None and frame.height:
                break
    except (fastexcel.FastExcelError, ValueError) as error:
        raise BadFile(
            f"The Excel file can't be read ({str(error).splitlines()[0][:200]}). Save it again as "
            ".xlsx, or as CSV.",
            code="bad-excel",
        ) from None
    if frame is None or not frame.height:
        raise BadFile("The Excel file is empty: no sheet holds a value.", code="empty-file")
    notices = []
    if len(names) > 1:
        notices.append(f"The file has {len(names)} sheets; '{name}' is the one that was read.")
    frame = frame.rename({old: str(at) for at, old in enumerate(frame.columns)})
    cells = frame.with_columns(pl.all().str.strip_chars())
    cells = cells.with_columns(pl.when(pl.all() != "").then(pl.all()))
    filled = cells.select(pl.any_horizontal(pl.all().is_not_null())).to_series().arg_true()
    if not filled.len():
        raise BadFile("The Excel file is empty: no sheet holds a value.", code="empty-file")
    top = filled[0]
    # Titles above the table stand alone in their row.
    while top < min(filled[0] + 20, cells.height - 1) and cells.width > 1:
        if sum(cell is not None for cell in cells.row(top)) > 1:
            break
        top += 1
    else:
        top = filled[0]
    if top > filled[0]:
        notices.append(f"The lines above row {top + 1} stand above the table and were left out.")
    header = [cell or "" for cell in cells.row(top)]
    body = frame.slice(top + 1)
    used = [
        at
        for at, column in enumerate(header)
        if column or body.to_series(at).null_count() < body.height
    ]
    names, told = clean_names([header[at] for at in used], max_columns=max_columns)
    body = body.select(
        _days(body.to_series(at)).alias(name) for at, name in zip(used, names, strict=True)
    )
    return Sheet(body, top + 2), notices + told


def _days(cells: pl.Series) -> pl.Series:
    """Excel has no dates, only midnights."""
    there = cells.drop_nulls()
    if there.len() and there.str.contains(r"^\d{4}-\d\d-\d\d 00:00:00$").all():
        return cells.str.head(10)
    return cells


def _check_workbook(path: Path, limit: int) -> None:
    """Refuse what would take too much memory, before anything is held in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            total = sum(part.file_size for part in parts)
            if total > limit:
                raise BadFile(
                    f"The Excel file unpacks to {size_text(total)}; at most {size_text(limit)} "
                    "are taken. Save the sheet as CSV.",
                    code="too-large-decoded",
                    limit_bytes=limit,
                )
            names = [part.filename for part in parts]
            if "xl/workbook.xml" not in names:
                raise BadFile(
                    "The zip archive is no Excel workbook. Unpack it and upload the file inside.",
                    code="zip-archive",
                )
            for name in names:
                if name.startswith("xl/worksheets/") and name.endswith(".xml"):
                    with archive.open(name) as part:
                        _check_sheet(part)
    except zipfile.BadZipFile:
        raise BadFile(
            "The Excel file is damaged or incomplete. Save it again and upload it anew.",
            code="bad-excel",
        ) from None


def _check_sheet(part: IO[bytes]) -> None:
    rows = columns = 0
    letters = b""
    tail = b""
    while data := part.read(CHUNK):
        data = tail + data
        for cell in _CELL.finditer(data):
            rows = max(rows, int(cell[2]))
            if (len(cell[1]), cell[1]) > (len(letters), letters):
                letters = cell[1]
        tail = data[-200:]
    for letter in letters:
        columns = 26 * columns + letter - 64
    if rows * columns > MAX_CELLS:
        raise BadFile(
            f"A sheet reaches over {rows:,} rows and {columns:,} columns; at most {MAX_CELLS:,} "
            "cells are taken from Excel. Save it as CSV or Parquet.",
            code="too-large-decoded",
            cells=rows * columns,
            limit=MAX_CELLS,
        )


# --- Parquet -------------------------------------------------------------------------------------


def read_parquet(
    path: Path, *, limit: int, max_columns: int
) -> tuple[pl.LazyFrame, dict[str, str], int, list[str]]:
    """The table with FlowML's types, its dtypes by name, its number of rows, and notices.

    Structs become columns ``outer.inner``; lists and maps are refused. Nothing but the footer is
    read yet.
    """
    rows, decoded = _footer(path)
    if not rows:
        raise BadFile("The Parquet file has no rows.", code="no-rows")
    if rows > MAX_ROWS or decoded > limit:
        raise BadFile(
            f"The Parquet file decodes to {rows:,} rows and {size_text(decoded)}; at most "
            f"{MAX_ROWS:,} rows and {size_text(limit)} are taken.",
            code="too-large-decoded",
            rows=rows,
            bytes=decoded,
            limit_bytes=limit,
        )
    try:
        lazy = pl.scan_parquet(path)
        schema = lazy.collect_schema()
    except pl.exceptions.PolarsError as error:
        raise _bad_parquet(error) from None
    notices: list[str] = []
    exprs: list[tuple[str, pl.Expr, pl.DataType]] = []
    for name, dtype in schema.items():
        _spread(name, pl.col(name), dtype, exprs, notices)
    names, told = clean_names([name for name, _, _ in exprs], max_columns=max_columns)
    dtypes: dict[str, str] = {}
    chosen = []
    for name, (_, expr, dtype) in zip(names, exprs, strict=True):
        converted, dtypes[name] = _converted(name, expr, dtype, notices)
        chosen.append(converted.alias(name))
    return lazy.select(chosen), dtypes, rows, notices + told


def _spread(
    name: str,
    expr: pl.Expr,
    dtype: pl.DataType,
    found: list[tuple[str, pl.Expr, pl.DataType]],
    notices: list[str],
) -> None:
    if isinstance(dtype, pl.Struct):
        notices.append(f"Column '{name}' is nested: its fields became columns of their own.")
        for part in dtype.fields:
            inner = expr.struct.field(part.name)
            _spread(f"{name}.{part.name}", inner, part.dtype, found, notices)
    elif isinstance(dtype, (pl.List, pl.Array)):
        raise BadFile(
            f"Column '{name}' holds lists. A table has one value a cell: spread them over columns "
            "or rows, or leave the column out.",
            code="nested-column",
            columns=[name],
        )
    else:
        found.append((name, expr, dtype))


def _converted(
    name: str, expr: pl.Expr, dtype: pl.DataType, notices: list[str]
) -> tuple[pl.Expr, str]:
    if dtype == pl.Boolean:
        return expr, "boolean"
    if dtype.is_integer():
        if dtype in (pl.UInt64, pl.Int128):
            notices.append(f"Column '{name}': whole numbers beyond 64 bits count as missing.")
        return expr.cast(pl.Int64, strict=False), "integer"
    if dtype.is_float() or dtype.is_decimal():
        number = expr.cast(pl.Float64)
        return pl.when(number.is_finite()).then(number), "float"
    if dtype == pl.Date:
        return expr, "date"
    if dtype == pl.Datetime:
        zone = getattr(dtype, "time_zone", None)
        if zone and zone != "UTC":
            notices.append(f"Times in column '{name}' were converted to UTC.")
        if zone:
            expr = expr.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        return expr.cast(pl.Datetime("us")), "datetime"
    if dtype == pl.Duration:
        notices.append(f"Column '{name}' holds durations: they became seconds.")
        return expr.dt.total_microseconds() / 1e6, "float"
    if dtype in (pl.String, pl.Categorical, pl.Enum, pl.Time, pl.Null):
        return expr.cast(pl.String), "string"
    if dtype == pl.Binary:  # pictures, or else it is refused when they are looked at
        return expr, "binary"
    raise BadFile(
        f"Column '{name}' holds {dtype} values, which no model can use. Leave it out.",
        code="column-type",
        columns=[name],
    )


def _bad_parquet(error: Exception) -> BadFile:
    first = (str(error).splitlines() or [""])[0][:200]
    return BadFile(f"The Parquet file can't be read ({first}). Write it again.", code="bad-parquet")


# Bytes that a value takes once it is decoded, by physical type: boolean, int32, int64, int96,
# float, double, byte array, fixed-length byte array.
_WIDTHS = (1, 8, 8, 8, 8, 8, 16, 16)


def _footer(path: Path) -> tuple[int, int]:
    """Rows, and a guess at decoded bytes that no compression can deceive, from the footer alone.

    A page may say "this value, 2^40 times" in a few bytes, so values are counted, not pages.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if size < 12:
            raise BadFile("The Parquet file is incomplete.", code="truncated")
        file.seek(size - 8)
        length, magic = struct.unpack("<I4s", file.read(8))
        if magic == b"PARE":
            raise BadFile(
                "The Parquet file is encrypted. Write it without encryption.", code="bad-parquet"
            )
        if magic != b"PAR1" or length > size - 12:
            raise BadFile(
                "The Parquet file is incomplete: its end is missing. Upload it again.",
                code="truncated",
            )
        if length > 64 << 20:
            raise BadFile("The Parquet file's footer is too large.", code="bad-parquet")
        file.seek(size - 8 - length)
        footer = file.read(length)
    try:
        meta = _Thrift(footer).struct()
        rows = sum(group.get(3, 0) for group in meta.get(4, []))
        decoded = 0
        for group in meta.get(4, []):
            for chunk in group.get(1, []):
                about = chunk[3]
                width = _WIDTHS[about[1]]
                values = max(about[5], group.get(3, 0))
                decoded += max(values * width, about[6])
        if max(rows, meta.get(3, 0)) < 0 or decoded < 0:
            raise ValueError("negative sizes")
    except (IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _bad_parquet(error) from None
    return max(rows, meta.get(3, 0)), decoded


class _Thrift:
    """Reads Thrift's compact protocol into plain values: a struct becomes {field id: value}.

    https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 70:
                raise ValueError("a number is too long")

    def zigzag(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def struct(self, depth: int = 0) -> dict[int, Any]:
        if depth > 20:
            raise ValueError("nested too deeply")
        found: dict[int, Any] = {}
        field = 0
        while head := self.byte():
            field = field + (head >> 4) if head >> 4 else self.zigzag()
            kind = head & 15
            found[field] = kind == 1 if kind in (1, 2) else self.value(kind, depth)
        return found

    def value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2):
            return self.byte() == 1
        if kind == 3:
            return self.byte()
        if kind in (4, 5, 6):
            return self.zigzag()
        if kind == 7:
            self.at += 8
            return None
        if kind == 8:
            length = self.varint()
            self.at += length
            if self.at > len(self.data):
                raise ValueError("a text is too long")
            return None
        if kind in (9, 10):
            head = self.byte()
            count = head >> 4
            if count == 15:
                count = self.varint()
            if count > len(self.data):
                raise ValueError("a list is too long")
            return [self.value(head & 15, depth) for _ in range(count)]
        if kind == 11:
            count = self.varint()
            if count > len(self.data):
                raise ValueError("a map is too long")
            kinds = self.byte() if count else 0
            for _ in range(count):
                self.value(kinds >> 4, depth)
                self.value(kinds & 15, depth)
            return None
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError(f"unknown type {kind}")


def first_bytes(path: Path) -> bytes:
    """The head of a file, as much as the layout is judged by."""
    with path.open("rb") as file:
        return file.read(SAMPLE)
