"""What the web side knows of engines without importing one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines.conftest import ENGINES, HEAVY, REPO
from training import catalog
from training.checks import Wish, _engines
from workers.node import handlers, probe

LOCKS = {p.stem.removeprefix("engine-") for p in (REPO / "requirements").glob("engine-*.txt")}


def test_engines_and_their_lock_files_belong_together() -> None:
    assert catalog.engines().keys() == LOCKS
    for name, info in catalog.engines().items():
        module = handlers.engine_module(name)
        assert (REPO / (module.replace(".", "/") + ".py")).is_file()
        assert handlers.ENGINE_NAME.fullmatch(name)
        assert bool(info.version_of) == ("-" in name)


def test_every_engine_keeps_the_contract_in_the_tests() -> None:
    assert {name for name, info in catalog.engines().items() if not info.version_of} == {
        *ENGINES,
        *HEAVY,
    }
    makefile = (REPO / "Makefile").read_text()
    (heavy,) = re.findall(r"^HEAVY := (.*)$", makefile, re.MULTILINE)
    assert heavy.split() == HEAVY


def test_versions_race_only_when_they_are_named() -> None:
    known = {info.name: info.tasks for info in catalog.engines().values()}
    assert "sklearn-1.4" in known
    assert "sklearn-1.4" not in _engines(Wish("y"), "binary", known)
    assert _engines(Wish("y", engines=["sklearn-1.4"]), "binary", known) == ["sklearn-1.4"]


@pytest.mark.parametrize("name", ["sklearn", "sklearn-1.4"])
def test_a_node_finds_the_virtualenvs_of_engines_and_their_versions(
    tmp_path: Path, name: str
) -> None:
    for folder in (name, "web", "tools"):
        python = tmp_path / folder / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.touch(mode=0o755)
    assert probe.engines_in(tmp_path) == [name]


@pytest.mark.parametrize(
    ("name", "table"), [("engines", catalog.table), ("models", catalog.models_table)]
)
def test_the_page_shows_what_the_code_has(name: str, table: Callable[[], str]) -> None:
    page = (REPO / "docs" / "engines.md").read_text()
    (shown,) = re.findall(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", page, re.DOTALL)
    assert shown.strip() == table()
