"""Virtualenvs from lock files: done once, mended when half-made, clear when it can't be."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import npm  # noqa: E402
import venvs  # noqa: E402


class Project(NamedTuple):
    root: Path
    ran: list[list[str]]  # the commands that would have run


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one tiny lock file and a uv that only takes notes."""
    (tmp_path / "requirements").mkdir()
    for name in ("tools", "web", "engine-toy"):
        (tmp_path / "requirements" / f"{name}.txt").write_text("# nothing\n")
    monkeypatch.setattr(venvs, "ROOT", tmp_path)
    monkeypatch.setattr(venvs, "VENVS", tmp_path / ".venvs")
    (tmp_path / ".venvs").mkdir()
    ran = []

    def run(command, name, env=None):
        ran.append(command)
        if "venv" in command:
            python = venvs.VENVS / name / "bin" / "python"
            python.parent.mkdir(parents=True, exist_ok=True)
            python.unlink(missing_ok=True)
            python.symlink_to(sys.executable)

    monkeypatch.setattr(venvs, "run", run)
    monkeypatch.setattr(venvs, "uv_environment", dict)
    return Project(tmp_path, ran)


def test_a_virtualenv_is_made_once(project):
    assert venvs.state_of("web") == "missing"
    assert venvs.make("web")
    assert venvs.state_of("web") == "ready"
    before = len(project.ran)
    assert not venvs.make("web")
    assert len(project.ran) == before


def test_a_new_lock_updates_in_place(project):
    venvs.make("web")
    (project.root / "requirements" / "web.txt").write_text("# more\n")
    assert venvs.state_of("web") == "stale"
    project.ran.clear()
    venvs.make("web")
    assert [command[1] for command in project.ran] == ["pip"]


def test_one_that_was_interrupted_is_made_anew(project, monkeypatch):
    venvs.make("web")
    (project.root / "requirements" / "web.txt").write_text("# more\n")

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(venvs, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            venvs.make("web")
    assert venvs.state_of("web") == "broken"
    project.ran.clear()
    venvs.make("web")
    assert "--clear" in project.ran[0]
    assert venvs.state_of("web") == "ready"


def test_one_whose_python_was_removed_is_made_anew(project):
    venvs.make("web")
    python = venvs.VENVS / "web" / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3.11")
    assert venvs.state_of("web") == "broken"


def test_an_engine_has_a_lock_file_of_its_own(project):
    assert venvs.lock_file("toy").name == "engine-toy.txt"
    with pytest.raises(venvs.Trouble, match=r"no requirements/engine-other\.txt"):
        venvs.lock_file("other")


def test_another_python_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(venvs, "PYTHON", (3, 10))
    with pytest.raises(venvs.Trouble, match=r"needs Python 3\.10 and this is 3\.11"):
        venvs.check_machine()


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("error: Failed to fetch `x`: dns error", "connection to the package index"),
        ("Hash mismatch for `x`", "not the one that the lock file names"),
        ("ensurepip is not available", "python3.11-venv"),
        ("something else\nerror: odd\n", "could not be made: error: odd"),
    ],
)
def test_a_failure_is_told_in_one_sentence(project, output, says):
    sentence = venvs.reason("web", output, venvs.VENVS / "web.log")
    assert says in sentence
    assert "\n" not in sentence


def test_two_makes_do_not_write_at_once(project):
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); import venvs\n"
        "from pathlib import Path\n"
        "venvs.VENVS = Path(sys.argv[2])\n"
        "with venvs.only_one(): print('in', flush=True); time.sleep(0.7); print('out', flush=True)"
    )
    command = [sys.executable, "-c", code, str(TOOLS), str(venvs.VENVS)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=20)[0] for process in both]
    assert sorted("waiting" in output for output in outputs) == [False, True]


def test_pips_settings_reach_uv(tmp_path, monkeypatch):
    monkeypatch.setattr(venvs, "VENVS", tmp_path)
    (tmp_path / "tools" / "bin").mkdir(parents=True)
    (tmp_path / "tools" / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", "/some/wheels /more/wheels")
    monkeypatch.setenv("PIP_INDEX_URL", "https://packages.example.org/simple")
    env = venvs.uv_environment()
    assert env["UV_FIND_LINKS"] == "/some/wheels,/more/wheels"
    assert env["UV_DEFAULT_INDEX"] == "https://packages.example.org/simple"


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ("npm error code ENOSPC", "disk is full"),
        ("npm error code ENOTFOUND", "connection to the npm registry"),
        ("npm error `npm ci` can only install with a lock file", "only install with a lock file"),
    ],
)
def test_a_failure_of_npm_is_told_in_one_sentence(output, says):
    assert says in npm.sentence(output)
