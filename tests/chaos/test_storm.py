"""A short storm. `make chaos` is the long one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.desk import ROOT
from tests.chaos.storm import plan

pytestmark = [pytest.mark.e2e, pytest.mark.chaos, pytest.mark.xdist_group("fleet")]
SEED = 15


def test_a_storm_can_be_replayed():
    assert plan(7, lasting_s=60) == plan(7, lasting_s=60) != plan(8, lasting_s=60)
    first = {strike.what for strike in plan(SEED, lasting_s=25)}
    assert {"node", "child", "web-1", "postgres"} <= first, (
        "the seed of the short storm strikes what matters"
    )


@pytest.mark.timeout(420)
def test_every_task_of_a_storm_is_done_exactly_once(tmp_path: Path):
    command = [sys.executable, "-m", "tests.chaos", "--seed", str(SEED), "--tasks", "60"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert (tmp_path / "chaos.json").exists(), done.stdout + done.stderr
    report = json.loads((tmp_path / "chaos.json").read_text())
    assert report["exactly_once"] == 60, done.stdout
    assert (report["doubled"], report["missing"], report["left_behind"]) == (0, 0, 0), done.stdout
    assert sum(report["struck"].values()) >= 2, done.stdout
    # The limits themselves (15 s, 20 s) are for `make chaos`, on a machine that is not busy.
    assert max(report["noticed_s"]) < 60, done.stdout
