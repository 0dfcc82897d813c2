"""The one line that joins a machine: what it fetches, and that this suffices."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from workers import bootstrap, joining
from workers.models import JoinToken

pytestmark = pytest.mark.django_db


@pytest.fixture
def token():
    return joining.make_join_token(None, by=None)[1]


def fetch(client, path, authorization):
    headers = {"Authorization": authorization} if authorization else {}
    return client.get(f"/api/workers/{path}", headers=headers)


@pytest.mark.parametrize("path", ["join.sh", "bundle"])
def test_both_need_a_join_token_and_use_none_up(client, token, path):
    assert fetch(client, path, f"Join {token}").status_code == 200
    for wrong in ("", "Join guessed", "Join ", f"Bearer {token}", f"Worker {token}"):
        assert fetch(client, path, wrong).status_code == 401, wrong
    assert JoinToken.objects.get().uses == 0
    JoinToken.objects.update(uses=1)
    assert fetch(client, path, f"Join {token}").status_code == 401


def test_the_script_is_a_shell_script_that_nobody_keeps(client, token, settings):
    settings.PACKAGE_INDEX = "https://packages.example.org/it's"
    answer = fetch(client, "join.sh", f"Join {token}")
    assert answer["Cache-Control"] == "no-store"
    text = answer.content.decode()
    assert token in text
    assert bootstrap.bundle()[1] in text
    assert """PIP_INDEX_URL='https://packages.example.org/it'"'"'s'""" in text
    settings.PACKAGE_INDEX = "/mnt/wheels"
    assert "PIP_FIND_LINKS=/mnt/wheels PIP_NO_INDEX=1" in bootstrap.script("https://a", "t")
    for shell in (["sh", "-n"],):
        subprocess.run(shell, input=text.encode(), check=True)


def test_the_archive_is_a_whole_node_without_a_line_of_the_web_side(client, token, tmp_path):
    answer = fetch(client, "bundle", f"Join {token}")
    assert hashlib.sha256(answer.content).hexdigest() == answer["X-SHA256"]
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        names = archive.getnames()
        archive.extractall(tmp_path, filter="data")
    assert "tools/venvs.py" in names
    assert "requirements/engine-pycaret.txt" in names
    assert not [n for n in names if n.startswith(("accounts", "organizations", "flowml_site"))]
    assert not {"workers/models.py", "training/models.py", "datasets/models.py"} & set(names)
    # Every module that the node's children load is in it.
    from workers.node import handlers

    targets = [way.target for way in handlers.TABLE.values()] + [handlers.PREDICTOR]
    modules = {"workers.cli", *(target.partition(":")[0] for target in targets)}
    for module in sorted(modules):
        assert (tmp_path / (module.replace(".", "/") + ".py")).is_file(), module
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    probe = [sys.executable, "-m", "workers.cli", "--probe-only"]
    done = subprocess.run(probe, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert "cores" in done.stdout


@pytest.mark.parametrize(
    ("options", "engines"),
    [([], ["pycaret"]), (["--engines", "flaml,sklearn"], ["flaml", "sklearn"])],
)
def test_a_machine_gets_the_engines_that_were_chosen_and_no_others(tmp_path, options, engines):
    script = bootstrap.script("http://web", "a token")
    (app,) = [f"app-{bootstrap.bundle()[1][:12]}"]
    locks = tmp_path / app / "requirements"
    locks.mkdir(parents=True)
    for name in ("pycaret", "flaml", "sklearn", "autogluon"):
        (locks / f"engine-{name}.txt").touch()
    (tmp_path / app / ".whole").touch()  # its code is there already
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nexit 1\n')
    python.chmod(0o755)
    env = {"PATH": os.environ["PATH"], "FLOWML_HOME": str(tmp_path), "PYTHON": str(python)}
    done = subprocess.run(
        ["sh", "-s", "--", *options],
        input=script, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (tmp_path / "asked").read_text().split() == ["tools/venvs.py", "node", *engines]
    assert ("Others by --engines" in done.stdout) == (not options)


def test_the_service_unit_says_no_secret_aloud(tmp_path):
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("FLOWML_")},
        "HOME": str(tmp_path),
        "FLOWML_NODE_DIR": str(tmp_path / "node dir"),
        "FLOWML_VAR": str(tmp_path),
        "PYTHONPATH": str(Path(bootstrap.__file__).resolve().parents[1]),
        "PATH": str(tmp_path),  # no systemctl here
    }
    code = (
        "import os, sys, pathlib; os.geteuid = lambda: 1000\n"
        "from workers import cli\n"
        "sys.exit(cli.main(['--service', '--register', 'https://web', '--token', 'hush',"
        " '--name', 'n1', '--queues', 'cpu']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr  # written, but nobody to start it
    assert "systemctl --user enable --now flowml-node-n1.service" in done.stderr
    unit = (tmp_path / ".config/systemd/user/flowml-node-n1.service").read_text()
    assert "hush" not in unit
    assert '"--queues" "cpu"' in unit
    kept = tmp_path / "node dir" / "service.env"
    assert 'FLOWML_JOIN_TOKEN="hush"' in kept.read_text()
    assert oct(kept.stat().st_mode & 0o777) == "0o600"
