"""The commands that the documentation shows do what it says."""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("e2e"),
    pytest.mark.skipif(not shutil.which("curl"), reason="the tour is told in curl: install it"),
]
ROOT = Path(__file__).resolve().parents[2]


def test_the_tour_of_the_api_runs_as_it_stands(platform, tmp_path):
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/api.md").read_text(), re.DOTALL)
    (tmp_path / "data").symlink_to(ROOT / "data")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "URL": platform.url,
            "NAME": f"tour-{time.time_ns()}",
            "PASSWORD": "a long enough phrase",
        },
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("Gentoo\n"), done.stdout[-300:]
    assert (tmp_path / "predicted.csv").read_text().count("\n") == 345
    assert (tmp_path / "model.zip").stat().st_size > 10_000
