"""Two engines whose libraries do not go together race, and are blended, asked and taken along."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path

import pytest

from tests.e2e.conftest import Person

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420), pytest.mark.xdist_group("e2e")]
CARS = Path(__file__).resolve().parent.parent.parent / "data" / "cars.csv"
BOTH = ["pycaret", "sklearn"]


def test_two_engines_race_and_what_they_found_is_blended_and_fitted_again(person: Person) -> None:
    data = person.dataset("cars")["id"]
    for seed in range(3):  # now and then one model is so good that no blend is better
        split = {"validation": 0.35, "test": 0.25, "seed": seed}
        wish = {"engines": BOTH, "time_budget": 24, "split": split, "refit": True}
        ended = person.ended(person.train(data, "miles_per_gallon", **wish), within=200)
        assert (ended["state"], ended["budgets"]) == ("succeeded", dict.fromkeys(BOTH, 12.0))
        assert (ended["preset"], ended["budget_mode"]) == ("balanced", "total")
        rows = person.leaderboard(ended["id"])
        if not any("There is no ensemble" in one["message"] for one in ended["notices"]):
            break
    assert {row["engine"] for row in rows} == {*BOTH, "ensemble"}, ended["notices"]
    blend = next(row for row in rows if row["engine"] == "ensemble" and not row["refit_of"])
    narrowed = person.ok("GET", f"/api/results/job/{ended['id']}/leaderboard?engine=ensemble")
    assert narrowed["results"][0]["rank"] == blend["rank"]
    # It is the winner, so each member was fitted again, by its own engine.
    model = person.ok("GET", f"/api/results/model/{blend['id']}")
    twins = [row for row in rows if row["refit_of"]]
    assert len(twins) == len(model["members"]) + 1, ended["notices"]
    engines = {member["engine"] for member in model["members"]}
    assert {row["engine"] for row in twins} == engines | {"ensemble"}
    twin = next(row for row in twins if row["engine"] == "ensemble")
    assert ended["best_model"]["id"] in {blend["id"], twin["id"]}
    assert model["test_score"] is not None
    assert sum(member["weight"] for member in model["members"]) == pytest.approx(1)
    with CARS.open(newline="", encoding="utf-8") as file:
        first = next(csv.DictReader(file))
    known = {column["name"]: first[column["name"]] or None for column in model["schema"]}
    path = f"/api/results/model/{blend['id']}/predict"
    answer = person.ok("POST", path, json={"rows": [known]})["predictions"][0]
    alone = {
        member["id"]: person.ok(
            "POST", f"/api/results/model/{member['id']}/predict", json={"rows": [known]}
        )["predictions"][0]
        for member in model["members"]
    }
    mean = sum(member["weight"] * alone[member["id"]] for member in model["members"])
    assert answer == pytest.approx(mean)

    with CARS.open("rb") as file:
        batch = person.ok("POST", path, files={"file": ("cars.csv", file)})
    ends = {"succeeded", "failed"}
    watched = f"/api/results/predictions/{batch['id']}"
    done = person.until(watched, lambda b: b["state"] in ends, within=60)
    assert done["state"] == "succeeded", done["error"]
    text = person.get(f"{watched}/download?as=csv").text
    lines = list(csv.DictReader(io.StringIO(text)))
    assert len(lines) == done["rows"] > 300
    assert float(lines[0]["prediction"]) == pytest.approx(answer)

    zipped = person.get(f"/api/results/model/{blend['id']}/download")
    with zipfile.ZipFile(io.BytesIO(zipped.content)) as bundle:
        told = json.loads(bundle.read("ensemble.json"))
        for member in told["members"]:
            with zipfile.ZipFile(io.BytesIO(bundle.read(member["file"]))) as archive:
                assert "predict.py" in archive.namelist()
