"""Runs the ingest handler on bytes, as a child process on a node would."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from datasets import ingest


@dataclass
class Channel:
    """Remembers what the handler said."""

    stopping: bool = False
    progressed: list[tuple[float, str]] = field(default_factory=list)
    noticed: list[str] = field(default_factory=list)

    def progress(self, fraction: float, message: str = "", **data: Any) -> None:
        self.progressed.append((fraction, message))

    def notice(self, message: str, **data: Any) -> None:
        self.noticed.append(message)

    def log(self, line: str) -> None:
        pass


@dataclass
class Result:
    frame: pl.DataFrame
    data: dict[str, Any]
    rejects: pl.DataFrame | None
    channel: Channel

    def column(self, name: str) -> dict[str, Any]:
        return next(column for column in self.data["columns"] if column["name"] == name)

    @property
    def dtypes(self) -> dict[str, str]:
        return {column["name"]: column["dtype"] for column in self.data["columns"]}

    @property
    def roles(self) -> dict[str, str]:
        return {column["name"]: column["role"] for column in self.data["columns"]}

    @property
    def notices(self) -> str:
        return "\n".join(self.data["notices"])


def read(work: Path, content: bytes | str, filename: str = "table.csv", **payload: Any) -> Result:
    """Ingest ``content`` as the file ``filename``, in the folder ``work``."""
    work.mkdir(exist_ok=True)
    upload = work / "upload"
    upload.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_file(work, upload, filename, **payload)


def read_file(work: Path, upload: Path, filename: str, **payload: Any) -> Result:
    channel = Channel()
    answer = run_in(work, upload, {"filename": filename, **payload}, channel)
    files = answer["files"]
    rejects = None
    if "rejects" in files:
        kinds = [pl.Int64, pl.String, pl.String]
        rejects = pl.read_csv(work / files["rejects"], schema_overrides=kinds)
    return Result(pl.read_parquet(work / files["data"]), answer["data"], rejects, channel)


def run_in(work: Path, upload: Path, payload: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """The handler's answer, with ``work`` as the process's folder meanwhile."""
    task = {"inputs": {"upload": str(upload.resolve())}, "payload": payload}
    before = Path.cwd()
    os.chdir(work)
    try:
        return ingest.run(task, channel)
    finally:
        os.chdir(before)
