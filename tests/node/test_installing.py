"""A node that is told to serve an engine that it lacks makes its virtualenv first."""

import logging
from pathlib import Path

import pytest

from workers.node import installing
from workers.node.settings import Settings, read

FAKE = """
import pathlib, sys
flag, name = sys.argv[1:]
assert flag == "--engine"
if name == "sick":
    sys.exit("venvs: A package for sick is not the one that the lock file names.")
python = pathlib.Path(".venvs") / name / "bin" / "python"
python.parent.mkdir(parents=True)
python.touch(mode=0o755)
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the code with locks for three engines, of which one is installed."""
    for name in ("there", "sklearn-1.4", "sick"):
        lock = tmp_path / "requirements" / f"engine-{name}.txt"
        lock.parent.mkdir(exist_ok=True)
        lock.touch()
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "venvs.py").write_text(FAKE)
    (tmp_path / ".venvs" / "there" / "bin").mkdir(parents=True)
    (tmp_path / ".venvs" / "there" / "bin" / "python").touch(mode=0o755)
    monkeypatch.setattr(installing, "ROOT", tmp_path)
    return tmp_path


def settings(root: Path, engines: str, **env: str) -> Settings:
    env = {"FLOWML_VENVS": str(root / ".venvs"), "FLOWML_VAR": str(root), **env}
    return read(env, 2, url="http://127.0.0.1:1", engines=engines or None)


def test_what_is_named_and_missing_is_installed_and_the_rest_left_alone(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = settings(root, "there,sklearn-1.4,sick,unknown,../evil")
    assert installing.missing(told) == ["sklearn-1.4", "sick"]
    with caplog.at_level(logging.INFO):
        installing.install_missing(told)
    assert told.python("sklearn-1.4").exists()
    assert installing.missing(told) == ["sick"]
    assert "not the one that the lock file names" in caplog.text
    installing.install_missing(settings(root, ""))  # nothing is named: nothing to do


@pytest.mark.parametrize("where", ["off", "elsewhere"])
def test_nothing_is_installed_where_the_operator_does_not_allow_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    told = settings(root, "sklearn-1.4")
    if where == "off":
        monkeypatch.setenv("FLOWML_INSTALL", "0")
    else:
        told = settings(root, "sklearn-1.4", FLOWML_VENVS=str(tmp_path / "others"))
    installing.install_missing(told)
    assert installing.missing(told) == ["sklearn-1.4"]
