"""Read an uploaded file into an immutable Parquet table with statistics: the handler of
``dataset.ingest``.

Runs on a node, in a child process with limits on memory and time and without a network. No row
is lost in silence: what does not fit is counted and kept in a file of rejects, and past a small
share the whole ingest fails.

Imports no Django.
"""

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import polars as pl

from datasets import associations, formats, infer, pictures, sniff
from datasets.delimited import Block, DelimitedText, Job, NotUtf8, Reject
from datasets.profile import profile
from datasets.sniff import BadFile
from workers.node.channel import WorkError

MAX_COLUMNS = 2_000
MAX_REJECTS = 100_000  # kept; with more, the ingest fails however large the table
ROW_GROUP = 65_536  # rows; a preview decodes one group at most
PICTURES_GROUP = 256  # rows of pictures, likewise
PICTURES_KEPT = 64 << 20  # bytes of pictures in memory, before they are put on disk
MAX_DECODED = 16 << 30  # bytes, where the task says nothing
MAX_STATISTICS = 8 << 20  # characters of all columns' statistics together
KEPT = 256 << 20  # bytes of a table that stay in memory; what is beyond waits on disk
THREADS = min(4, os.cpu_count() or 2)
J = TypeVar("J")
T = TypeVar("T")


def run(task: Mapping[str, Any], channel: Any) -> dict[str, Any]:
    """Ingest ``inputs["upload"]``.

    The payload may hold ``filename``, ``max_decoded_bytes``, ``max_columns``, ``options``
    ({"delimiter", "header", "encoding", "columns": {name: dtype}}) and ``previous_columns`` (those
    of the version before). Files: ``data`` (Parquet) and, if there are any, ``rejects`` (CSV: line,
    reason, raw). Raises WorkError when the file can't become a data set.
    """
    payload = task.get("payload") or {}
    try:
        return Ingest(Path(task["inputs"]["upload"]), payload, Path.cwd(), channel).run()
    except BadFile as error:
        raise WorkError(error.sentence, code=error.code, **error.data) from None


class Source(Protocol):
    def jobs(self) -> Iterator[Job]: ...


@dataclass
class Table:
    """What was read: typed blocks, the first of them in memory, the others as Arrow files."""

    columns: list[infer.Column] = field(default_factory=list)
    parts: list[pl.LazyFrame] = field(default_factory=list)
    rows: int = 0
    rejects: list[Reject] = field(default_factory=list)

    def scan(self) -> pl.LazyFrame:
        return pl.concat([infer.final_frame(part, self.columns) for part in self.parts])


class Ingest:
    def __init__(self, upload: Path, payload: Mapping[str, Any], work: Path, channel: Any) -> None:
        self.upload = upload
        self.work = work
        self.channel = channel
        self.name = str(payload.get("filename") or upload.name).lower()
        self.limit = int(payload.get("max_decoded_bytes") or MAX_DECODED)
        self.max_columns = int(payload.get("max_columns") or MAX_COLUMNS)
        self.options = payload.get("options") or {}
        self.previous = {
            str(column["name"]): str(column["dtype"])
            for column in payload.get("previous_columns") or ()
        }
        self.notices: list[str] = []
        self.source: dict[str, Any] = {}
        self._told = 0.0

    def run(self) -> dict[str, Any]:
        self.tell(0.0, "Looking at the file")
        path = self.upload
        kind = sniff.kind_of(formats.first_bytes(path), self.name)
        if kind in ("gzip", "zstd"):
            self.source["compression"] = kind
            target = self.work / "unpacked"
            formats.unpack(
                path, kind, target, limit=self.limit,
                progress=lambda share: self.tell(0.1 * share, "Decompressing"),
            )  # fmt: skip
            path = target
            for ending in (".gz", ".gzip", ".zst", ".zstd"):
                self.name = self.name.removesuffix(ending)
            kind = sniff.kind_of(formats.first_bytes(path), self.name)
            if kind not in ("delimited", "jsonl"):
                raise BadFile(
                    f"The compressed file holds {kind}. Only text is taken compressed: upload the "
                    "file inside as it is.",
                    code="compressed-binary",
                )
        rejects: list[Reject] = []
        known: dict[str, dict[str, Any]] = {}
        if kind == "zip" and (self.name.endswith(".xlsx") or pictures.is_workbook(path)):
            kind = "xlsx"
        if kind == "parquet":
            data, dtypes, rows = self.parquet(path)
            if shows := [name for name, dtype in dtypes.items() if dtype == "binary"]:
                data, rows, rejects, known = self.table_with_pictures(data, shows, rows)
        elif kind == "zip":
            data, rows, rejects, known = self.pictures(path)
            dtypes = {pictures.COLUMN: "binary", pictures.LABEL: "string"}
        else:
            told = list(self.notices)
            try:
                table = self.text_table(path, kind, hasty=kind == "delimited")
            except NotUtf8:
                self.notices = told
                table = self.text_table(path, kind)
            data, rows, rejects = table.scan(), table.rows, table.rejects
            dtypes = {column.name: infer.dtype_of(column.kind) for column in table.columns}
            for column in table.columns:
                self.notices += column.notices()
        return self.store(data, dtypes, rows, rejects, known)

    def tell(self, fraction: float, message: str, **data: Any) -> None:
        """Report progress, a few times a second at most."""
        now = time.monotonic()
        if now - self._told > 0.25 or fraction in (0.0, 1.0):
            self._told = now
            self.channel.progress(fraction, message, **data)

    # --- Reading ---------------------------------------------------------------------------------

    def parquet(self, path: Path) -> tuple[pl.LazyFrame, dict[str, str], int]:
        self.source["format"] = "parquet"
        data, dtypes, rows, told = formats.read_parquet(
            path, limit=self.limit, max_columns=self.max_columns
        )
        self.notices += told
        return data, dtypes, rows

    def pictures(
        self, path: Path
    ) -> tuple[pl.LazyFrame, int, list[Reject], dict[str, dict[str, Any]]]:
        """The table of an archive of class folders; what is known of its column of pictures."""
        self.source["format"] = "pictures"
        archive = pictures.Archive(path, limit=self.limit)
        self.notices += archive.notices
        rejects = archive.rejects
        about = pictures.Described()
        parts: list[pl.LazyFrame] = []
        rows = taken = waiting = 0
        some: list[pictures.Some] = []

        def put_aside() -> None:
            frame = pl.DataFrame(
                {
                    pictures.COLUMN: [one.data for each in some for one in each.pictures],
                    pictures.LABEL: [label for each in some for label in each.labels],
                },
                schema={pictures.COLUMN: pl.Binary, pictures.LABEL: pl.String},
            )
            part = self.work / f"part-{len(parts)}"
            frame.write_ipc(part)
            parts.append(pl.scan_ipc(part))
            some.clear()

        for done in _in_order(lambda job, number: job(), archive.jobs(), THREADS):
            taken += done.bytes_read
            if taken > self.limit:
                raise BadFile(
                    f"The archive unpacks to more than {formats.size_text(self.limit)}, which is "
                    "the limit.",
                    code="too-large-decoded",
                    limit_bytes=self.limit,
                )
            rejects += done.rejects
            for one in done.pictures:
                about.add(one)
                waiting += len(one.data)
            rows += len(done.pictures)
            some.append(done)
            if waiting > PICTURES_KEPT:
                put_aside()
                waiting = 0
            if len(rejects) > allowed_rejects(len(archive.found) + len(archive.rejects)):
                raise _too_many_misfits(rejects, len(archive.found))
            self.tell(0.1 + 0.5 * done.share, f"Reading: {rows:,} pictures", rows=rows)
        put_aside()
        rejects.sort(key=lambda reject: reject.line)
        if not rows:
            raise BadFile("None of the pictures can be read.", code="no-rows")
        if about.again:
            self.notices.append(f"{about.again:,} pictures are copies of others.")
        if about.made_small:
            self.notices.append(
                f"{about.made_small:,} pictures were larger than {pictures.SIDE} pixels and were "
                "made smaller: no model here looks at more."
            )
        return pl.concat(parts), rows, rejects, {pictures.COLUMN: about.column()}

    def table_with_pictures(
        self, data: pl.LazyFrame, shows: Sequence[str], rows: int
    ) -> tuple[pl.LazyFrame, int, list[Reject], dict[str, dict[str, Any]]]:
        """A Parquet file whose columns ``shows`` hold bytes: pictures, or they are refused."""
        about = {name: pictures.Described() for name in shows}
        rejects: list[Reject] = []
        parts: list[pl.LazyFrame] = []
        step = max(1, rows // pictures.SAMPLES)

        def look(frame: pl.DataFrame, start: int) -> tuple[pl.DataFrame, list[Reject]]:
            kept, misfits = [], []
            found: dict[str, list[bytes | None]] = {name: [] for name in shows}
            for place, values in enumerate(frame.select(shows).iter_rows()):
                line, done = start + place + 1, []
                try:
                    for value in values:
                        sample = (start + place) % step == step // 2
                        done.append(value and pictures.normalised(value, sample=sample))
                except pictures.Unfit as why:
                    misfits.append(Reject(line, str(why), f"row {line}"))
                    continue
                kept.append(place)
                for name, one in zip(shows, done, strict=True):
                    found[name].append(one.data if one else None)
                    about[name].add(one)
            columns = [pl.Series(name, found[name], dtype=pl.Binary) for name in shows]
            return frame[kept].with_columns(columns), misfits

        for start in range(0, rows, PICTURES_GROUP):
            frame, misfits = look(data.slice(start, PICTURES_GROUP).collect(), start)
            part = self.work / f"part-{start}"
            frame.write_ipc(part)
            parts.append(pl.scan_ipc(part))
            rejects += misfits
            if len(rejects) > allowed_rejects(rows):
                raise _too_many_misfits(rejects, rows)
            self.tell(0.1 + 0.5 * start / rows, f"Reading: {start:,} rows", rows=start)
        known = {name: one.column(name) for name, one in about.items()}
        return pl.concat(parts), rows - len(rejects), rejects, known

    def text_table(self, path: Path, kind: str, *, hasty: bool = False) -> Table:
        """Read text or a sheet. ``hasty``: find out while reading whether all of it is UTF-8.

        Raises NotUtf8 then, if it isn't.
        """
        source: Source
        names: Sequence[str] = ()
        if kind == "xlsx":
            self.source["format"] = "excel"
            source, told = formats.read_sheet(path, limit=self.limit, max_columns=self.max_columns)
            names = source.frame.columns
            self.notices += told
        else:
            hasty = hasty and not self.options.get("encoding")
            path, start = self.plain_text(path, hasty=hasty)
            sample = formats.first_bytes(path)[start:]
            if kind == "jsonl":
                self.source["format"] = "jsonl"
                array = sample.lstrip().startswith(b"[")
                reader = formats.JsonArray if array else formats.JsonLines
                source = reader(path, start, self.max_columns)
            else:
                source, names = self.delimited(path, start, sample, hasty=hasty)
        asked = self.asked_types(names)
        table = self.read(source, [infer.Column(name, asked.get(name)) for name in names], asked)
        if any(not column.settled for column in table.columns) or self.hold_to_previous(table):
            # A late block showed another type than the early ones: read once more, knowing it.
            for column in table.columns:
                if not column.asked:
                    column.fix()
            table = self.read(source, table.columns, asked)
        self.judge(table)
        if kind == "jsonl":
            names = [column.name for column in table.columns]
            sniff.clean_names(names, max_columns=self.max_columns)
        return table

    def plain_text(self, path: Path, *, hasty: bool) -> tuple[Path, int]:
        """The text as UTF-8 with line feeds, and the offset behind its mark."""
        encoding = sniff.find_encoding(path, whole=not hasty)
        if wanted := self.options.get("encoding"):
            encoding = sniff.Encoding(str(wanted), encoding.skip)
        self.source["encoding"] = encoding.codec
        if encoding.damaged:
            self.notices.append("The text is UTF-8, but some lines hold bytes that are not.")
        if encoding.codec.replace("_", "-") != "utf-8":
            target = self.work / "text"
            formats.transcode(path, encoding, target, limit=self.limit)
            path, encoding = target, sniff.Encoding("utf-8")
            self.notices.append(f"The text was read as {self.source['encoding']}.")
        if formats.old_line_ends(formats.first_bytes(path)):
            target = self.work / "lines"
            formats.mend_line_ends(path, target)
            path = target
        return path, encoding.skip

    def delimited(
        self, path: Path, start: int, sample: bytes, *, hasty: bool
    ) -> tuple[DelimitedText, Sequence[str]]:
        header = self.options.get("header")
        layout = sniff.find_layout(
            sample,
            whole=start + len(sample) >= path.stat().st_size,
            name=self.name,
            delimiter=self.options.get("delimiter"),
            header=header if isinstance(header, bool) else None,
            max_columns=self.max_columns,
        )
        tab = layout.dialect.delimiter == "\t"
        self.source |= {
            "format": "tsv" if tab else "csv",
            "delimiter": layout.dialect.delimiter,
            "quote": layout.dialect.quote,
            "header": layout.header,
        }
        self.notices += layout.notices
        start += layout.start
        text = DelimitedText(path, layout.dialect, layout.names, start, layout.line, hasty)
        return text, layout.names

    def asked_types(self, names: Sequence[str]) -> dict[str, str]:
        asked = {
            str(name): str(dtype) for name, dtype in (self.options.get("columns") or {}).items()
        }
        for name, dtype in asked.items():
            if names and name not in names:
                raise BadFile(
                    f"There is no column '{name}' in the file to take for {dtype}.",
                    code="unknown-column",
                    columns=[name],
                )
        return asked

    def hold_to_previous(self, table: Table) -> bool:
        """Ask for the version before's type where a column turned to text; whether any did."""
        turned = False
        for column in table.columns:
            before = self.previous.get(column.name)
            if before in (None, "string") or column.asked or column.doubt:
                continue
            if column.kind == "string" and column.count:
                numbers = before in ("integer", "float")
                near = column.near_kind
                wanted = before if not numbers or near == "integer" else "float"
                fresh = infer.Column(column.name, wanted)
                table.columns[table.columns.index(column)] = fresh
                turned = True
        return turned

    def read(self, source: Source, columns: list[infer.Column], asked: Mapping[str, str]) -> Table:
        """Read every block, type it, and put it aside."""
        table = Table(columns)
        by_name = {column.name: column for column in columns}

        def wishes() -> dict[str, infer.Wish]:
            return {
                column.name: infer.Wish(
                    tuple(column.alive),
                    asked=column.asked is not None,
                    near_kind="" if column.fixed else column.near_kind,
                    fixed=column.fixed,
                )
                for column in table.columns
            }

        lock, room = Lock(), [KEPT]

        def typed(
            job: Job, known: dict[str, infer.Wish], part: Path
        ) -> tuple[dict[str, infer.Seen], Block, pl.LazyFrame]:
            block = job()
            for name in block.frame.columns:
                if name not in known:  # JSON: a key that was not there before
                    known[name] = infer.Wish(
                        tuple(infer.Column(name, asked.get(name)).alive), asked=name in asked
                    )
            seen, done = infer.read_block(block, known)
            size = done.frame.estimated_size()
            with lock:
                kept = size <= room[0]
                room[0] -= size if kept else 0
            if not kept:
                done.frame.write_ipc(part)
            return seen, done, done.frame.lazy() if kept else pl.scan_ipc(part)

        results = _in_order(
            lambda job, number: typed(job, wishes(), self.work / f"part-{number}"),
            source.jobs(),
            THREADS,
        )
        for seen, block, part in results:
            for name, one in seen.items():
                if name not in by_name:
                    by_name[name] = infer.Column(name, asked.get(name))
                    table.columns.append(by_name[name])
                by_name[name].add(one)
            if len(table.columns) > self.max_columns:
                raise sniff.too_many_columns(len(table.columns), self.max_columns)
            table.rows += block.frame.height
            table.rejects += block.rejects
            table.parts.append(part)
            if len(table.rejects) > MAX_REJECTS:
                raise _too_many_rejects(table)
            self.tell(
                0.1 + 0.5 * min(1.0, block.share), f"Reading: {table.rows:,} rows", rows=table.rows
            )
        table.rejects.sort(key=lambda reject: reject.line)
        for column in table.columns:
            column.decide()
        return table

    def judge(self, table: Table) -> None:
        """Refuse a table of which too little is left."""
        count, rows = len(table.rejects), table.rows
        if count > allowed_rejects(rows + count):
            raise _too_many_rejects(table)
        if not rows:
            raise BadFile(
                "The file has a header but no rows."
                if table.columns
                else "The file holds no rows.",
                code="no-rows",
            )

    # --- Storing ---------------------------------------------------------------------------------

    def store(
        self,
        data: pl.LazyFrame,
        dtypes: Mapping[str, str],
        rows: int,
        rejects: list[Reject],
        known: Mapping[str, dict[str, Any]] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """Write the table and describe its columns, but those that are ``known`` already."""
        self.tell(0.6, f"Storing and describing {rows:,} rows", rows=rows)
        target = self.work / "data.parquet"
        group = PICTURES_GROUP if known else ROW_GROUP
        with ThreadPoolExecutor(1) as writer:
            written = writer.submit(_write, data, target, group)
            try:
                described = profile(
                    lambda names: data.select(names).collect(),
                    [one for one in dtypes.items() if one[0] not in known],
                    rows,
                    done=lambda count: self.tell(
                        0.6 + 0.39 * count / len(dtypes),
                        f"Described {count} of {len(dtypes)} columns",
                    ),
                    threads=THREADS,
                )
                sha256 = written.result()
            except pl.exceptions.PolarsError as error:  # a Parquet upload is read only now
                raise BadFile(
                    f"The file's values can't be read ({str(error).splitlines()[0][:200]}).",
                    code="bad-values",
                ) from None
        by_name = {column["name"]: column for column in described} | dict(known)
        described = [by_name[name] for name in dtypes]
        rows = int(pl.scan_parquet(target).select(pl.len()).collect().item())
        self.tell(0.99, "Looking what the columns have to do with each other")
        stored = pl.scan_parquet(target)
        related = associations.measure(
            lambda name: stored.select(name).collect().to_series(), described, rows
        )
        files = {"data": target.name}
        if rejects:
            kept = pl.DataFrame(
                [(one.line, one.reason, one.raw) for one in rejects],
                schema={"line": pl.Int64, "reason": pl.String, "raw": pl.String},
                orient="row",
            )
            # A line that a spreadsheet would run as a formula gets a quote in front.
            raw = pl.col("raw")
            risky = raw.str.contains(r"^[=+@\t\r-]")
            kept = kept.with_columns(pl.when(risky).then("'" + raw).otherwise(raw).alias("raw"))
            kept.write_csv(self.work / "rejects.csv")
            files["rejects"] = "rejects.csv"
            first = rejects[0]
            if known:
                told = f"pictures can't be read and were set aside, the first '{first.raw}'"
                if len(rejects) == 1:
                    told = f"picture can't be read and was set aside, '{first.raw}'"
            else:
                plural = "row does" if len(rejects) == 1 else "rows do"
                told = (
                    f"{plural} not fit the table and were set aside, the first on line {first.line}"
                )
            self.notices.insert(0, f"{len(rejects):,} {told}: {first.reason}.")
        for notice in self.notices[:20]:
            self.channel.notice(notice)
        return {
            "data": {
                "rows": rows,
                "columns": _bounded(described),
                "associations": related,
                "rejected": len(rejects),
                "sha256": sha256,
                "size_bytes": target.stat().st_size,
                "source": self.source,
                "notices": self.notices[:200],
            },
            "files": files,
        }


def _write(data: pl.LazyFrame, target: Path, group: int) -> str:
    """Store the table as Parquet; the file's SHA-256."""
    # The weakest compression: half the time, and files a fifth larger.
    data.sink_parquet(target, row_group_size=group, compression="zstd", compression_level=1)
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bounded(columns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The columns' statistics, less the longest lists where a very wide table has too many."""
    for most in (50, 20, 5, 0):
        if len(json.dumps(columns)) <= MAX_STATISTICS:
            break
        for column in columns:
            if len(column.get("classes") or ()) > most:
                del column["classes"]
            column["top"] = column["top"][: max(5, most)]
    return columns


def allowed_rejects(rows: int) -> int:
    """How many of so many rows may be set aside: one in a hundred, of few rows a little more."""
    return max(rows // 100, min(10, rows // 5))


def _too_many_misfits(rejects: Sequence[Reject], pictures_read: int) -> BadFile:
    shown = "; ".join(f"'{one.raw[-80:]}': {one.reason}" for one in rejects[:3])
    return BadFile(
        f"More than {len(rejects) - 1:,} of {pictures_read:,} pictures can't be read: {shown}"
        f"{'; …' if len(rejects) > 3 else ''}. Mend or remove them and upload it again.",
        code="bad-rows",
        rejected=len(rejects),
        lines=[
            {"line": one.line, "reason": one.reason, "raw": one.raw[:200]} for one in rejects[:20]
        ],
    )


def _too_many_rejects(table: Table) -> BadFile:
    rejects = sorted(table.rejects, key=lambda reject: reject.line)
    total = table.rows + len(rejects)
    shown = "; ".join(f"line {one.line}: {one.reason}" for one in rejects[:3])
    share = f"{100 * len(rejects) / total:.1f} %"
    return BadFile(
        f"{len(rejects):,} of {total:,} rows ({share}) do not fit the table: {shown}"
        f"{'; …' if len(rejects) > 3 else ''}. Correct them and upload the file again.",
        code="bad-rows",
        rejected=len(rejects),
        lines=[
            {"line": one.line, "reason": one.reason, "raw": one.raw[:200]} for one in rejects[:20]
        ],
    )


def _in_order(work: Callable[[J, int], T], jobs: Iterable[J], threads: int) -> Iterator[T]:
    """Do the jobs on a few threads, a few ahead, and give their results in order.

    The first is done before any other begins, since the others learn from it.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[T]] = deque()
        for number, job in enumerate(jobs):
            if number == 1:  # meanwhile the second was made ready
                yield waiting.popleft().result()
            waiting.append(pool.submit(work, job, number))
            while len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
