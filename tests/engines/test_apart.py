"""Work in a fork: streamed, stoppable, and gone when it should be."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from training.engines import apart


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def soon() -> float:
    return time.monotonic() + 20


def never() -> bool:
    return False


def test_values_come_as_they_are_made_large_ones_too(folder: Path) -> None:
    def work() -> Iterator[Any]:
        os.write(1, b"noise from a library")
        yield "first"
        yield b"x" * 3_000_000
        (folder / "finished").touch()

    stream = apart.stream(work, deadline=soon(), pulse=never)
    assert next(stream) == "first"
    assert len(next(stream)) == 3_000_000
    assert list(stream) == []
    assert (folder / "finished").exists()
    assert "noise" in (folder / "fits.log").read_text()


def test_an_overrun_is_killed_and_what_came_before_counts() -> None:
    def work() -> Iterator[Any]:
        yield os.getpid()
        time.sleep(60)

    stream = apart.stream(work, deadline=time.monotonic() + 0.5, pulse=never)
    pid = next(stream)
    with pytest.raises(apart.Overrun):
        next(stream)
    assert not Path(f"/proc/{pid}").exists()


def test_stop_is_obeyed_within_a_moment() -> None:
    began = time.monotonic()
    with pytest.raises(apart.Stopped):
        list(
            apart.stream(
                lambda: iter([time.sleep(60)]),
                deadline=soon(),
                pulse=lambda: time.monotonic() > began + 0.2,
            )
        )
    assert time.monotonic() - began < 10  # the work itself would take 60


def test_errors_and_deaths_are_told_apart_from_each_other() -> None:
    def fails() -> Iterator[Any]:
        yield 1
        raise ValueError("C must be\npositive")

    def dies() -> Iterator[Any]:
        yield 1
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(apart.Failed, match="ValueError: C must be positive"):
        list(apart.stream(fails, deadline=soon(), pulse=never))
    with pytest.raises(apart.Failed, match="died"):
        list(apart.stream(dies, deadline=soon(), pulse=never))


def test_a_stream_that_nobody_reads_on_leaves_no_process() -> None:
    def work() -> Iterator[Any]:
        yield os.getpid()
        time.sleep(60)

    stream = apart.stream(work, deadline=soon(), pulse=never)
    pid = next(stream)
    stream.close()
    assert not Path(f"/proc/{pid}").exists()
