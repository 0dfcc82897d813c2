"""What kind of file an upload is, and how its text is laid out. Reads little, decides, says why.

Imports no Django: it runs on nodes.
"""

import codecs
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SAMPLE = 1 << 20  # bytes of text that the layout is judged by
SAMPLE_RECORDS = 200
MAX_RECORD = 1 << 20  # bytes; a quote that stays open longer than this counts as never closed
DELIMITERS = "\t;|,"  # on a tie the rarer one wins: commas also stand in numbers and in prose


class BadFile(Exception):
    """The file can't become a data set, in one sentence that says what to do about it."""

    def __init__(self, sentence: str, *, code: str, **data: Any) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.code = code
        self.data = data


# --- The kind of file ----------------------------------------------------------------------------

_MAGIC = (
    (b"PAR1", "parquet"),
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x03\x04", "zip"),
)
_FOREIGN = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"%PDF", "a PDF document"),
    (b"\xd0\xcf\x11\xe0", "an old Excel (.xls) or Office file: save it as .xlsx or CSV"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90", "a program"),
    (b"\x89HDF", "an HDF5 file"),
    (b"Obj\x01", "an Avro file"),
    (b"ORC", "an ORC file"),
    (b"ARROW1", "a Feather (Arrow) file: save it as Parquet"),
    (b"FEA1", "a Feather file: save it as Parquet"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"BZh", "a bzip2 archive: use gzip or zstd"),
    (b"\xfd7zXZ", "an xz archive: use gzip or zstd"),
    (b"7z\xbc\xaf", "a 7-Zip archive: use gzip or zstd"),
    (b"Rar!", "a RAR archive: use gzip or zstd"),
    (b"RDX", "an R data file"),
)
ACCEPTED = "CSV, TSV, JSON Lines, Parquet or Excel (.xlsx)"


def kind_of(head: bytes, name: str) -> str:
    """``parquet``, ``gzip``, ``zstd``, ``zip``, ``jsonl`` or ``delimited``, by the first bytes.

    The name only helps where the bytes leave it open. Raises BadFile for what is none of them.
    """
    if not head:
        raise BadFile("The file is empty.", code="empty-file")
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    for magic, what in _FOREIGN:
        if head.startswith(magic) and (len(magic) > 3 or not _is_text(head)):
            raise _binary(name, f"it looks like {what}")
    if not _is_text(head):
        raise _binary(name, "it holds bytes that no text has")
    stripped = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if stripped.startswith(b"{") or (
        stripped.startswith(b"[") and name.endswith((".json", ".jsonl"))
    ):
        return "jsonl"
    if name.endswith((".jsonl", ".ndjson")):
        raise BadFile(
            "The file is named JSON Lines, but its first line is no JSON object.", code="bad-json"
        )
    return "delimited"


def _binary(name: str, why: str) -> BadFile:
    called = f"'{name}' " if name else "The file "
    return BadFile(f"{called}is not a table: {why}. Upload {ACCEPTED}.", code="binary-file")


def _is_text(head: bytes) -> bool:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or _utf16_without_mark(head):
        return True
    odd = sum(head.count(bytes([code])) for code in range(32) if code not in (9, 10, 11, 12, 13))
    return odd * 50 <= len(head)


# --- Encoding ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoding:
    """``skip`` bytes of mark, then text in ``codec``. ``damaged``: a few lines are not valid."""

    codec: str
    skip: int = 0
    damaged: bool = False


def _utf16_without_mark(head: bytes) -> str | None:
    sample = head[: 4096 & ~1]
    if len(sample) < 8 or b"\0" not in sample:
        return None
    half = len(sample) // 2
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    if odd > 0.6 * half and even < 0.05 * half:
        return "utf-16-le"
    if even > 0.6 * half and odd < 0.05 * half:
        return "utf-16-be"
    return None


def find_encoding(path: Path, *, whole: bool = True) -> Encoding:
    """The encoding of a text file. UTF-8 is checked over the whole file, not guessed.

    Without ``whole``, text that begins as UTF-8 is taken for it: for those who check every byte as
    they read on.
    """
    with path.open("rb") as file:
        head = file.read(1 << 16)
        for mark, codec in (
            (b"\xef\xbb\xbf", "utf-8"),
            (b"\xff\xfe\0\0", "utf-32-le"),
            (b"\0\0\xfe\xff", "utf-32-be"),
            (b"\xff\xfe", "utf-16-le"),
            (b"\xfe\xff", "utf-16-be"),
        ):
            if head.startswith(mark) and codec != "utf-8":
                return Encoding(codec, len(mark))
        skip = 3 if head.startswith(b"\xef\xbb\xbf") else 0
        if wide := _utf16_without_mark(head):
            return Encoding(wide)
        if is_utf8(path, SAMPLE if not whole else None):
            return Encoding("utf-8", skip)
        lines = valid = invalid = 0
        undefined = False
        file.seek(skip)
        for line in file:
            lines += 1
            if not line.isascii():
                try:
                    line.decode()
                    valid += 1
                except UnicodeDecodeError:
                    invalid += 1
                    undefined = undefined or re.search(b"[\x81\x8d\x8f\x90\x9d]", line) is not None
    if skip or (valid > invalid and invalid <= max(10, lines // 100)):
        return Encoding("utf-8", skip, damaged=True)
    return Encoding("latin-1" if undefined else "cp1252")


def is_utf8(path: Path, most: int | None = None) -> bool:
    """Whether the text is UTF-8, or its first ``most`` bytes are."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    left = path.stat().st_size if most is None else min(most, path.stat().st_size)
    final = left == path.stat().st_size
    with path.open("rb") as file:
        try:
            while left > 0 and (block := file.read(min(left, 1 << 18))):  # as a cache likes it
                left -= len(block)
                pending = decoder.getstate()[0]
                if pending or not block.isascii():
                    decoder.decode(block)
            decoder.decode(b"", final=final)
        except UnicodeDecodeError:
            return False
    return True


# --- Records -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dialect:
    """How a delimited text is laid out. ``escape``: a backslash takes a quote's meaning away."""

    delimiter: str = ","
    quote: str = '"'
    escape: bool = False


@dataclass(frozen=True)
class Record:
    """One record, or one line that is none: then ``reason`` says why and ``fields`` is empty."""

    line: int  # of its first character, from 1
    start: int  # offset in the block
    end: int  # offset behind its line end
    fields: list[bytes]
    reason: str = ""


class _Grammar:
    def __init__(self, dialect: Dialect) -> None:
        self.delimiter = dialect.delimiter.encode()
        self.quote = dialect.quote.encode()
        separator, q = re.escape(self.delimiter), re.escape(self.quote)
        self.plain = re.compile(b"[^%b\n]*" % separator)
        if dialect.quote:
            # Possessive: a doubled quote is never taken for a closing one after all.
            body = b"[^%b]*+(?:%b%b[^%b]*+)*+" % (q, q, q, q)
            if dialect.escape:
                body = rb"[^%b\\]*+(?:(?:\\.|%b%b)[^%b\\]*+)*+" % (q, q, q, q)
            # Spaces around the quotes are let pass, as many programs write them.
            self.quoted = re.compile(b" *%b(%b)%b *" % (q, body, q), re.DOTALL)
            self.opens = re.compile(b" *%b" % q)
        self.escape = dialect.escape

    def unquoted(self, body: bytes) -> bytes:
        body = body.replace(self.quote * 2, self.quote)
        return re.sub(rb"\\(.)", rb"\1", body, flags=re.DOTALL) if self.escape else body


def records(
    block: bytes, dialect: Dialect, *, first_line: int = 1, final: bool = True
) -> Iterator[Record]:
    """Cut ``block`` into records by RFC 4180, with care, and recover after each bad line.

    A line whose quotes are wrong comes as a record with a reason, and reading goes on with the next
    line. Where the block ends inside a record and more may follow (not ``final``), it stops before
    that record. A blank line is a record of one empty field.
    """
    grammar = _Grammar(dialect)
    quote, delimiter = grammar.quote, grammar.delimiter
    at, line = 0, first_line
    while at < len(block):
        newline = block.find(b"\n", at)
        if newline < 0:
            if not final:
                return
            newline = len(block)
        text = block[at:newline]
        behind = min(newline + 1, len(block))
        if not quote or quote not in text:
            text = text[:-1] if text.endswith(b"\r") else text
            yield Record(line, at, behind, text.split(delimiter))
            at, line = behind, line + 1
            continue
        fields, end, reason = _quoted_record(block, at, grammar)
        if reason == _OPEN and end < 0 and not final and len(block) - at < MAX_RECORD:
            return
        if not final and end >= len(block) and not block.endswith(b"\n"):
            return  # its last field may go on
        if reason:
            yield Record(line, at, behind, [], reason)
            at, line = behind, line + 1
        else:
            yield Record(line, at, end, fields)
            line += block.count(b"\n", at, end) or 1
            at = end


_OPEN = "a quote is opened and never closed"
_AFTER = "there is text behind a closing quote"


def _quoted_record(block: bytes, at: int, grammar: _Grammar) -> tuple[list[bytes], int, str]:
    """Fields, the offset behind the record, and a reason where it is none (offset -1: no end)."""
    fields: list[bytes] = []
    limit = min(len(block), at + MAX_RECORD)
    while True:
        if grammar.opens.match(block, at, limit):
            found = grammar.quoted.match(block, at, limit)
            if found is None:
                return fields, -1, _OPEN
            fields.append(grammar.unquoted(found[1]))
            at = found.end()
            if block[at : at + 2] == b"\r\n" or (at + 1 == len(block) and block[at:] == b"\r"):
                at += 1
            elif at < len(block) and block[at : at + 1] not in (grammar.delimiter, b"\n"):
                return fields, at, _AFTER if at < limit else _OPEN
        else:
            found = grammar.plain.match(block, at)
            assert found is not None
            at = found.end()
            text = found[0]
            if text.endswith(b"\r") and block[at : at + 1] != grammar.delimiter:
                text = text[:-1]
            fields.append(text)
        if at >= len(block):
            return fields, at, ""
        if block[at : at + 1] == b"\n":
            return fields, at + 1, ""
        at += 1  # the delimiter


# --- Layout --------------------------------------------------------------------------------------

_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)*|\.\d+)([eE][+-]?\d+)?%?")
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ].*)?")
_YEAR = re.compile(r"(19|20|21)\d\d")


@dataclass(frozen=True)
class Layout:
    """Where the table lies in the text. Columns are named here already, in order."""

    dialect: Dialect
    names: list[str]
    header: bool
    start: int  # offset of the first row of values
    line: int  # its line number
    notices: list[str]


def find_layout(
    sample: bytes,
    *,
    whole: bool,
    name: str = "",
    delimiter: str | None = None,
    header: bool | None = None,
    max_columns: int,
) -> Layout:
    """Delimiter, quote, header and column names, judged by the first records.

    ``sample`` is UTF-8 text without a mark; ``whole`` says that the file ends with it. What is
    given (``delimiter``, ``header``) is believed. Raises BadFile where no table can be seen.
    """
    dialect, found = _best(sample, whole, name, delimiter)
    good = [record for record in found if record.fields]
    if not good:
        if not found:
            raise BadFile("The file is empty: it holds no text.", code="empty-file")
        raise BadFile(
            f"Line {found[0].line} can't be read: {found[0].reason}.",
            code="bad-rows",
            lines=[{"line": record.line, "reason": record.reason} for record in found[:20]],
        )
    notices: list[str] = []
    width = _usual_width(good)
    if width > max_columns:
        raise too_many_columns(width, max_columns)
    top = 0
    # Titles above the table: lines without any delimiter.
    while top < min(20, len(good) - 1) and len(good[top].fields) == 1 < width:
        top += 1
    if top:
        shown = _shown(good[0].fields[0])
        notices.append(
            f"Line {good[0].line} ({shown}) stands above the table and was left out."
            if top == 1
            else f"{top} lines above the table were left out; the first is {shown}."
        )
    first = [_text(field).strip() for field in good[top].fields]
    body = [[_text(field).strip() for field in record.fields] for record in good[top + 1 :]]
    if header is None:
        header = _has_header(first, body)
        if not header:
            notices.append(
                "The first line looks like values, not like column names: the columns are named "
                "column_1, column_2 and so on."
            )
    if header:
        start, line = (
            good[top].end,
            good[top].line + sample.count(b"\n", good[top].start, good[top].end),
        )
        names = first
        if not any(cell for row in body for cell in row[len(names) :]):
            width = min(width, len(names))  # delimiters behind the last column
        if len(names) == width - 1 and body:
            names = ["row_name", *names]
            notices.append(
                "The header has one name less than the rows have fields: the first column is "
                "taken for row names."
            )
        elif len(names) != width:
            extra = names[width:]
            if len(names) > width and not any(extra):
                names = names[:width]
            elif body:
                raise BadFile(
                    f"The header on line {good[top].line} names {len(names)} columns, but most "
                    f"rows have {width} fields.",
                    code="header-width",
                )
    else:
        start, line = good[top].start, good[top].line
        names = [f"column_{number}" for number in range(1, width + 1)]
    names, told = clean_names(names, max_columns=max_columns)
    return Layout(dialect, names, header, start, line, notices + told)


def too_many_columns(count: int, limit: int) -> BadFile:
    return BadFile(
        f"The file has {count:,} columns; at most {limit:,} are taken. Leave out what the model "
        "does not need, or turn the table if its rows are columns.",
        code="too-many-columns",
        columns=count,
        limit=limit,
    )


def clean_names(names: Sequence[str], *, max_columns: int) -> tuple[list[str], list[str]]:
    """Column names without surrounding space; nameless columns named after their place.

    Returns names and notices. Raises BadFile when two columns have one name.
    """
    if len(names) > max_columns:
        raise too_many_columns(len(names), max_columns)
    notices = []
    cleaned = [" ".join(name.replace("\0", " ").split()) for name in names]
    long = [name for name in cleaned if len(name) > 200]
    if long:
        raise BadFile(
            f"A column name is {len(long[0])} characters long ({long[0][:60]}…); 200 are the most. "
            "Is the first line really a header?",
            code="column-name",
        )
    counts = Counter(name for name in cleaned if name)
    doubled = [name for name, count in counts.items() if count > 1]
    if doubled:
        listed = ", ".join(f"'{name}' ({counts[name]} times)" for name in doubled[:10])
        raise BadFile(
            f"Column names must differ, but these come more than once: {listed}. Rename them in "
            "the file.",
            code="duplicate-columns",
            columns=doubled[:100],
        )
    taken = set(cleaned)
    for index, name in enumerate(cleaned):
        if not name:
            new = f"column_{index + 1}"
            while new in taken:
                new += "_"
            taken.add(new)
            cleaned[index] = new
            notices.append(f"Column {index + 1} has no name and is called '{new}'.")
    return cleaned, notices[:10]


def _best(
    sample: bytes, whole: bool, name: str, delimiter: str | None
) -> tuple[Dialect, list[Record]]:
    candidates = [delimiter] if delimiter else list(DELIMITERS)
    if not delimiter and (name.endswith(".tsv") or ".tsv." in name):
        candidates = ["\t"]
    best: tuple[float, Dialect, list[Record]] | None = None
    for candidate in candidates:
        dialect = _quotes(sample, candidate, whole)
        found = _first_records(sample, dialect, whole)
        good = [record for record in found if record.fields]
        width = _usual_width(good)
        fitting = sum(len(record.fields) == width for record in good)
        score = fitting / len(found) if found and width > 1 else 0.0
        if best is None or score > best[0] + 1e-9:
            best = (score, dialect, found)
    assert best is not None
    if best[0] < 0.5 and not delimiter:  # no delimiter makes a table of it: one column
        dialect = _quotes(sample, ",", whole)
        if best[0] == 0:
            return dialect, _first_records(sample, dialect, whole)
    return best[1], best[2]


def _quotes(sample: bytes, delimiter: str, whole: bool) -> Dialect:
    dialect = Dialect(delimiter)
    if b'"' not in sample and b"'" in sample:
        d = re.escape(delimiter.encode())
        closed = re.findall(b"(?:^|%b)'[^'\n]*'(?=%b|\r?$)" % (d, d), sample, re.MULTILINE)
        if len(closed) * 2 >= sample.count(b"'") and len(closed) > 1:
            return replace(dialect, quote="'")
    if b'\\"' in sample:
        escaping = replace(dialect, escape=True)
        if _misfits(sample, escaping, whole) < _misfits(sample, dialect, whole):
            return escaping
    return dialect


def _misfits(sample: bytes, dialect: Dialect, whole: bool) -> int:
    found = _first_records(sample, dialect, whole)
    width = _usual_width([record for record in found if record.fields])
    return sum(len(record.fields) != width for record in found)


def _first_records(sample: bytes, dialect: Dialect, whole: bool) -> list[Record]:
    found = []
    for record in records(sample, dialect, final=whole):
        if len(record.fields) == 1 and not record.fields[0].strip():
            continue  # a blank line
        found.append(record)
        if len(found) >= SAMPLE_RECORDS:
            break
    return found


def _usual_width(good: Sequence[Record]) -> int:
    # On a tie, the wider: two lines of which one is a title.
    widths = Counter(len(record.fields) for record in good)
    return max(widths, key=lambda width: (widths[width], width), default=0)


def _has_header(first: Sequence[str], body: Sequence[Sequence[str]]) -> bool:
    """Whether the first record names the columns. Each column votes; a tie says yes."""
    if not body:
        return not any(_is_value(cell) for cell in first)
    votes = 0
    years = [cell for cell in first if _YEAR.fullmatch(cell)]
    if len(years) < 2 or len(set(years)) < len(years):
        years = []  # one column per year is a common table; one number that looks so is a value
    for index, cell in enumerate(first):
        below = [row[index] for row in body if index < len(row) and row[index]]
        if not below or not cell or cell in years:
            continue
        if sum(map(_is_value, below)) >= 0.8 * len(below):
            votes += -1 if _is_value(cell) else 1
        elif cell in below:
            votes -= 1
    return votes >= 0


def _is_value(cell: str) -> bool:
    return bool(_NUMBER.fullmatch(cell) or _DATE.fullmatch(cell)) or cell.lower() in {
        "true",
        "false",
        "nan",
        "null",
    }


def _text(field: bytes) -> str:
    return field.decode("utf-8", "replace")


def _shown(field: bytes) -> str:
    text = _text(field).strip()
    return f"'{text[:57]}…'" if len(text) > 60 else f"'{text}'"
