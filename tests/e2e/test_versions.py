"""Two versions of one library at the same time on one node: each trains, and each answers."""

from __future__ import annotations

import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.conftest import Person
from tests.e2e.test_main_job import PENGUIN

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240), pytest.mark.xdist_group("e2e")]
VERSIONS = ("sklearn-1.4", "sklearn-1.9")


def test_two_versions_of_scikit_learn_train_and_serve_beside_each_other(person: Person) -> None:
    dataset = person.dataset("penguins")
    job = person.train(dataset["id"], "species", engines=list(VERSIONS), time_budget=16)
    ended = person.ended(job)
    assert ended["state"] == "succeeded", (
        ended.get("error"),
        ended.get("notices"),
        ended.get("tasks"),
    )
    rows = person.leaderboard(job)
    best = {name: next(row for row in rows if row["engine"] == name) for name in VERSIONS}

    def ask(name: str) -> Any:
        path = f"/api/results/model/{best[name]['id']}/predict"
        return person.ok("POST", path, json={"rows": [PENGUIN] * 3})

    with ThreadPoolExecutor() as pool:
        answers = dict(zip(VERSIONS, pool.map(ask, VERSIONS), strict=True))
    for name, answer in answers.items():
        assert answer["predictions"] == ["Gentoo"] * 3, name
    for name in VERSIONS:  # and each model says which one it needs
        zipped = person.get(f"/api/results/model/{best[name]['id']}/download")
        assert zipped.status_code == 200
        assert pinned(zipped.content)["scikit-learn"].startswith(name.removeprefix("sklearn-"))


def pinned(archive: bytes) -> dict[str, str]:
    """The versions that an artifact's requirements.txt names."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        lines = opened.read("requirements.txt").decode().splitlines()
    return dict(line.split("==") for line in lines)
