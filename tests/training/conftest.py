from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training import make
from training import history, scoring, serving


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What a process keeps between jobs and requests is not the next test's."""
    yield
    scoring._kept.clear()
    history._kept.clear()
    serving._pool = serving._Pool()
    serving._models.clear()
    serving._nodes.clear()


@pytest.fixture
def serving_node(tmp_path: Path) -> Iterator[make.FakeServing]:
    server = make.FakeServing(tmp_path)
    yield server
    server.stop()
