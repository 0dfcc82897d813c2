"""Reading delimited text: what is written comes back, however the blocks fall."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from hypothesis import example, given, settings
from hypothesis import strategies as st

from datasets import delimited, sniff
from datasets.delimited import DelimitedText, Reject, examine
from datasets.sniff import Dialect, records

CELL = st.text(
    st.sampled_from('ab1,;"\n\r \\é\N{GRINNING FACE}') | st.characters(exclude_categories=["Cs"]),
    max_size=6,
).filter(lambda cell: "\0" not in cell)
WIDTH = st.integers(2, 4)
SOUP = st.text(st.sampled_from('ab,"\n\r é'), max_size=120)


@contextmanager
def blocks_of(first: int, size: int, *, longest: int = 1 << 20) -> Iterator[None]:
    with (
        patch.object(delimited, "FIRST_BLOCK", first),
        patch.object(delimited, "BLOCK", size),
        patch.object(sniff, "MAX_RECORD", longest),
    ):
        yield


def read(path: Path, width: int, dialect: Dialect) -> tuple[list[tuple[str, ...]], list[Reject]]:
    names = [f"c{i}" for i in range(width)]
    rows, rejects = [], []
    for job in DelimitedText(path, dialect, names, 0, 1).jobs():
        block = job()
        rows += block.frame.rows()
        rejects += block.rejects
        assert len(block.locate(range(block.frame.height))) == block.frame.height
    return rows, rejects


def tables() -> st.SearchStrategy[list[list[str]]]:
    return WIDTH.flatmap(
        lambda width: st.lists(st.lists(CELL, min_size=width, max_size=width), min_size=1)
    )


@given(table=tables(), first=st.integers(1, 40), every=st.booleans())
@example(table=[["", ""]], first=1, every=False)
@example(table=[['"', '""'], ["a\n", "\n"]], first=3, every=False)
@settings(deadline=None)
def test_what_python_writes_comes_back(tmp_path_factory, table, first, every):
    returns = any("\r" in cell for row in table for cell in row)
    text = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if every or returns else csv.QUOTE_MINIMAL
    # A space before a quote is let pass, so one that belongs to the value must be quoted.
    spaced = any(cell.startswith(" ") for row in table for cell in row)
    quoting = csv.QUOTE_ALL if spaced else quoting
    csv.writer(text, quoting=quoting, lineterminator="\n").writerows(table)
    path = tmp_path_factory.mktemp("d") / "t.csv"
    path.write_bytes(text.getvalue().encode())
    with blocks_of(first, 10_000):
        rows, rejects = read(path, len(table[0]), Dialect())
    assert rejects == []
    assert rows == [tuple(row) for row in table]


@given(soup=SOUP, first=st.integers(1, 60), width=st.integers(1, 3))
@example(soup='a,"b\nc,d\n"e",f\n', first=4, width=2)
@example(soup='a,b\n"\n\na,b', first=3, width=2)
@example(soup='a,5" x\nc,6" y\n', first=5, width=2)
@example(soup='"a"\r\n"b"\r', first=5, width=1)
@example(soup=",\r,", first=1, width=3)
@example(soup='"""\n"', first=4, width=1)
@settings(deadline=None, max_examples=1000)
def test_blocks_and_polars_change_nothing(tmp_path_factory, soup, first, width):
    """Any bytes are read as by the careful reader over the whole file at once."""
    path = tmp_path_factory.mktemp("d") / "t.csv"
    path.write_bytes(soup.encode())
    with blocks_of(first, 64, longest=30):
        rows, rejects = read(path, width, Dialect())
        names = [f"c{i}" for i in range(width)]
        text = DelimitedText(path, Dialect(), names, 0, 1)
        whole = soup.encode().rstrip(b"\r\n")
        careful, _ = text.read_slowly(whole, 1, final=True)
    assert rows == careful.frame.rows()
    assert rejects == careful.rejects


@settings(deadline=None)
@given(soup=SOUP)
def test_every_line_is_in_a_record_or_rejected(soup):
    """Records cover the text without a gap, and lines are numbered as an editor does."""
    block = soup.encode()
    at, line = 0, 1
    for record in records(block, Dialect()):
        assert record.start == at
        assert record.line == line
        assert record.fields or record.reason
        line += block.count(b"\n", at, record.end)
        at = record.end
    assert at == len(block)


@settings(deadline=None)
@given(soup=SOUP)
def test_blocks_in_order_are_what_the_careful_reader_sees(soup):
    block = soup.encode()
    shape = examine(block, Dialect(), final=True)
    if shape is None or not block:
        return
    found = list(records(block, Dialect()))
    assert not any(record.reason for record in found)
    assert shape.delimiters.tolist() == [len(record.fields) - 1 for record in found]
    assert shape.cut == len(block)
