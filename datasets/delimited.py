"""Delimited text, read strictly and at speed.

Polars parses the bytes, but takes short rows, long rows and stray quotes as they come. So a block
goes to Polars only if every quote in it opens or closes a field and every record has as many fields
as there are columns; numpy sees to that. Any other block is cut by ``sniff.records``, in plain
Python, which knows each line's number and what is wrong with it.

Imports no Django: it runs on nodes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl

from datasets.sniff import BadFile, Dialect, Record, records

BLOCK = 8 << 20  # bytes
FIRST_BLOCK = 1 << 20  # enough to guess each column's type by, and nothing waits for long


@dataclass(frozen=True)
class Reject:
    """A line that is no row of the table."""

    line: int
    reason: str
    raw: str


@dataclass
class Block:
    """Some rows as text: every column a string, null only where the source had nothing at all.

    ``locate`` gives line number and raw text of rows, by their place in ``frame``.
    """

    frame: pl.DataFrame
    rejects: list[Reject] = field(default_factory=list)
    locate: Callable[[Sequence[int]], list[tuple[int, str]]] = lambda rows: [(0, "") for _ in rows]
    share: float = 0.0  # of the source, read when this block is done


Job = Callable[[], Block]


class NotUtf8(Exception):
    """The text, which began as UTF-8, goes on as something else."""


@dataclass(frozen=True)
class DelimitedText:
    """A UTF-8 file of ``width`` columns, from offset ``start`` on, which is line ``line``.

    ``hasty``: nobody has looked yet whether all of it is UTF-8; jobs raise NotUtf8 where it isn't.
    """

    path: Path
    dialect: Dialect
    names: Sequence[str]
    start: int
    line: int
    hasty: bool = False

    def jobs(self) -> Iterator[Job]:
        """The blocks in order. A job reads nothing but its own bytes and may run on any thread."""
        with self.path.open("rb") as file:
            end = _end(file, self.path.stat().st_size)
            at, line, room = self.start, self.line, FIRST_BLOCK
            while at < end:
                file.seek(at)
                block = file.read(min(room, end - at))
                final = at + len(block) >= end
                shape = examine(block, self.dialect, final=final)
                if shape is not None:
                    used, lines, room = shape.cut, shape.lines, BLOCK
                    share = (at + used) / end
                    piece = block if used == len(block) else block[:used]
                    yield _Piece(self, piece, line, share, shape.fits(len(self.names)))
                else:
                    # Where quotes are wrong, only a careful reading knows where a record ends.
                    read, used = self.read_slowly(block, line, final=final)
                    self.check(block[:used])
                    lines = block.count(b"\n", 0, used)
                    read.share = (at + used) / end
                    room = BLOCK if used else max(BLOCK, 2 * room)
                    if room > 2 * BLOCK:
                        raise BadFile(
                            f"Line {line} is longer than {room >> 21} MiB: this is no table of "
                            "rows and columns.",
                            code="line-too-long",
                            line=line,
                        )
                    yield _Done(read)
                at, line = at + used, line + lines

    def check(self, piece: bytes) -> None:
        """Raise NotUtf8 if the piece, of whole lines, isn't UTF-8 and nobody knew."""
        if self.hasty and not _is_utf8(piece):
            raise NotUtf8

    def read_fast(self, piece: bytes, line: int) -> Block | None:
        """The rows of records that have been examined, by Polars; None where it can't be."""
        if (
            b"\0" in piece
            or piece.startswith(b"\xef\xbb\xbf")
            or not (self.hasty or _is_utf8(piece))
        ):
            return None
        if self.dialect.escape and b"\\" in piece:
            return None
        if b"\r" in piece and piece.count(b"\r") != piece.count(b"\r\n"):
            return None  # Polars drops some that end no line
        try:
            frame = pl.read_csv(
                piece,
                has_header=False,
                schema=dict.fromkeys(self.names, pl.String),
                separator=self.dialect.delimiter,
                quote_char=self.dialect.quote or None,
                empty_string_is_null=False,
            )
        except pl.exceptions.PolarsError:
            return None
        return Block(frame, locate=lambda rows: self._locate(piece, line, rows))

    def read_slowly(self, block: bytes, line: int, *, final: bool) -> tuple[Block, int]:
        """The rows of any bytes, with what does not fit set aside, and how many bytes were used."""
        width = len(self.names)
        rows: list[list[str]] = []
        places: list[tuple[int, int, int]] = []
        rejects: list[Reject] = []
        used = 0
        for record in records(block, self.dialect, first_line=line, final=final):
            used = record.end
            fields, reason = _judged(record, block, width)
            if reason:
                rejects.append(Reject(record.line, reason, _raw(block, record)))
            elif fields:
                rows.append(fields)
                places.append((record.line, record.start, record.end))
        if final:
            used = len(block)
        frame = pl.DataFrame(rows, schema=dict.fromkeys(self.names, pl.String), orient="row")

        def locate(wanted: Sequence[int]) -> list[tuple[int, str]]:
            found = [places[row] for row in wanted]
            return [(at, _shown(block[start:end])) for at, start, end in found]

        return Block(frame, rejects, locate), used

    def _locate(self, piece: bytes, line: int, rows: Sequence[int]) -> list[tuple[int, str]]:
        wanted, found = set(rows), {}
        for row, record in enumerate(records(piece, self.dialect, first_line=line)):
            if row in wanted:
                found[row] = (record.line, _raw(piece, record))
                if len(found) == len(wanted):
                    break
        return [found.get(row, (0, "")) for row in rows]


@dataclass(frozen=True)
class _Piece:
    text: DelimitedText
    piece: bytes
    line: int
    share: float
    rows: int | None  # None: some record has too few fields or too many

    def __call__(self) -> Block:
        self.text.check(self.piece)
        block = None
        if self.rows is not None:
            block = self.text.read_fast(self.piece, self.line)
        if block is None or block.frame.height != self.rows:
            block, _ = self.text.read_slowly(self.piece, self.line, final=True)
        block.share = self.share
        return block


@dataclass(frozen=True)
class _Done:
    block: Block

    def __call__(self) -> Block:
        return self.block


def _judged(record: Record, block: bytes, width: int) -> tuple[list[str], str]:
    """The record's fields as text, or why it is no row. Neither for a blank line."""
    if record.reason:
        return [], record.reason
    fields = record.fields
    if len(fields) == 1 < width and not fields[0].strip():
        return [], ""
    if b"\0" in block[record.start : record.end]:
        return [], "it holds a NUL byte"
    if len(fields) > width and not any(extra.strip() for extra in fields[width:]):
        fields = fields[:width]  # delimiters behind the last column
    if len(fields) != width:
        plural = "field" if len(fields) == 1 else "fields"
        return [], f"it has {len(fields)} {plural} where {width} are expected"
    try:
        return [one.decode() for one in fields], ""
    except UnicodeDecodeError:
        return [], "it is not valid UTF-8"


def _raw(block: bytes, record: Record) -> str:
    return _shown(block[record.start : record.end])


def _shown(raw: bytes) -> str:
    text = raw[:4096].decode("utf-8", "replace").rstrip("\r\n").replace("\0", "\N{SYMBOL FOR NULL}")
    return text + ("…" if len(raw) > 4096 else "")


def _is_utf8(piece: bytes) -> bool:
    if piece.isascii():
        return True
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _end(file: IO[bytes], size: int) -> int:
    """Where the text ends: line ends behind the last row are no rows."""
    end = size
    while end:
        start = max(0, end - (1 << 16))
        file.seek(start)
        tail = file.read(end - start)
        kept = tail.rstrip(b"\r\n")
        if kept:
            return start + len(kept)
        end = start
    return 0


@dataclass(frozen=True)
class Shape:
    """Where the records of a block end, seen from its bytes alone.

    ``cut``: the offset behind the last record that surely ends in the block, with ``lines`` line
    ends before it. ``delimiters``: how many stand outside quotes in each record, modulo 256, and
    ``total`` of them in all.
    """

    cut: int
    lines: int
    delimiters: np.ndarray
    total: int

    def fits(self, width: int) -> int | None:
        """The number of records if each of them has ``width`` fields, else None."""
        count = self.delimiters.size
        # Each right modulo 256 and the sum right: then each is right, since none is below.
        if width > 256 or not (self.delimiters == width - 1).all():
            return None
        return count if self.total == count * (width - 1) else None


def examine(block: bytes, dialect: Dialect, *, final: bool) -> Shape | None:
    """The shape of a block that starts with a record; None where quotes are not in order.

    Counted from the start, quotes open and close by turns. In order means: one that opens follows a
    delimiter, a line end, or a closing quote (then the two stand for one quote); one that closes is
    followed by a delimiter, a line end, the end, or an opening quote.
    """
    code = np.frombuffer(block, np.uint8)
    # One mask for all: fresh memory for each costs more than what is done with it.
    mask = np.empty(code.size, bool)
    newlines = ends = np.flatnonzero(np.equal(code, 10, out=mask))
    quotes = _NONE
    if dialect.quote and dialect.quote.encode() in block:
        quotes = np.flatnonzero(np.equal(code, ord(dialect.quote), out=mask))
        ends = ends[np.searchsorted(quotes, ends) % 2 == 0]
    if final:
        if not ends.size or ends[-1] < len(block) - 1:
            ends = np.append(ends, len(block))
        cut = len(block)
    else:
        cut = int(ends[-1]) + 1 if ends.size else 0
    quotes = quotes[: np.searchsorted(quotes, cut)]
    if not cut or not _in_order(code[:cut], quotes, ord(dialect.delimiter)):
        return None
    starts = np.concatenate(([0], ends[:-1] + 1))
    delimiters = np.equal(code, ord(dialect.delimiter), out=mask)[:cut].view(np.uint8)
    each = np.add.reduceat(delimiters, starts, dtype=np.uint8)
    total = int(np.count_nonzero(delimiters))
    if quotes.size:
        short = int((quotes[1::2] - quotes[0::2]).max()) < 256
        inside = np.add.reduceat(delimiters, quotes, dtype=np.uint8 if short else np.uint32)[0::2]
        if inside.any():
            of = np.searchsorted(starts, quotes[0::2], side="right") - 1
            each -= np.bincount(of, weights=inside, minlength=starts.size).astype(np.uint8)
            total -= int(inside.sum(dtype=np.int64))
    return Shape(cut, int(np.searchsorted(newlines, cut)), each, total)


_NONE = np.empty(0, np.intp)


def _in_order(code: np.ndarray, quotes: np.ndarray, delimiter: int) -> bool:
    if not quotes.size:
        return True
    if quotes.size % 2:
        return False
    quote = code[quotes[0]]
    opening, closing = quotes[0::2], quotes[1::2]
    before = code[opening - 1]
    if opening[0] == 0:
        before[0] = 10
    if not ((before == delimiter) | (before == 10) | (before == quote)).all():
        return False
    behind = code[np.minimum(closing + 1, code.size - 1)]
    if closing[-1] == code.size - 1:
        behind[-1] = 10
    good = (behind == delimiter) | (behind == 10) | (behind == quote)
    if good.all():
        return True
    returns = closing[~good] + 1
    after = code[np.minimum(returns + 1, code.size - 1)]
    return bool(((code[returns] == 13) & ((after == 10) | (returns == code.size - 1))).all())
