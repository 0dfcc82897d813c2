"""The main job with real processes: a table in, a leaderboard, a prediction and a model out."""

import io
import json
import time
import zipfile

import pytest
from websockets.sync.client import connect

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240), pytest.mark.xdist_group("e2e")]

PENGUIN = {
    "island": "Biscoe",
    "bill_length_mm": 47.5,
    "bill_depth_mm": 14.2,
    "flipper_length_mm": 220,
    "body_mass_g": 5000,
    "sex": "female",
    "year": 2008,
}


def test_a_table_becomes_a_leaderboard_that_is_watched_live(platform, person):
    data = person.dataset()
    assert data["state"] == "ready", data
    job = person.train(data["id"], "species")
    ticket = person.ok("POST", "/api/live-ticket")["ticket"]
    heard = []
    with connect(f"{platform.url.replace('http', 'ws', 1)}/ws?ticket={ticket}") as ws:
        ws.send(json.dumps({"subscribe": f"job:{job}", "after": 0}))
        while not any(event["type"] == "job.succeeded" for event in heard):
            heard.append(json.loads(ws.recv(timeout=90)))
    assert [event["seq"] for event in heard] == list(range(1, len(heard) + 1))
    fractions = [e["data"]["fraction"] for e in heard if e["type"] == "progress"]
    assert fractions == sorted(fractions)
    assert sum(event["type"] == "leaderboard" for event in heard) >= 3

    rows = person.leaderboard(job)
    assert len(rows) >= 3
    best = rows[0]
    assert best["rank"] == 1
    model = person.ok("GET", f"/api/results/model/{best['id']}")
    assert model["test_metrics"]["accuracy"] > 0.9, "penguins are easy to tell apart"

    answer = person.ok(
        "POST", f"/api/results/model/{best['id']}/predict", json={"rows": [PENGUIN, PENGUIN]}
    )
    assert answer["predictions"] == ["Gentoo", "Gentoo"]
    for row in answer["probabilities"]:
        assert sum(row.values()) == pytest.approx(1)

    bundle = person.get(f"/api/results/model/{best['id']}/download")
    names = zipfile.ZipFile(io.BytesIO(bundle.content)).namelist()
    for needed in ("predict.py", "train.py", "requirements.txt", "README.md", "schema.json"):
        assert needed in names


def test_the_winner_is_refitted_on_all_rows_but_the_sealed_and_answers(person):
    data = person.dataset()["id"]
    split = {"validation": 0.25, "test": 0.2}
    job = person.train(data, "species", time_budget=5, refit=True, split=split)
    ended = person.ended(job, within=60)
    assert ended["state"] == "succeeded"
    twins = [row for row in person.leaderboard(job) if row["refit_of"]]
    assert len(twins) == 1, ended["notices"]
    twin, origin = (
        person.ok("GET", f"/api/results/model/{twins[0][which]}") for which in ("id", "refit_of")
    )
    assert twin["train_rows"] > origin["train_rows"]
    assert twin["test_rows"] == origin["test_rows"] > 60
    not_worse = twin["test_score"] <= origin["test_score"]  # log loss
    assert twin["is_best"] is not_worse
    shares = [
        person.ok("POST", f"/api/results/model/{one['id']}/predict", json={"rows": [PENGUIN]})
        for one in (twin, origin)
    ]
    assert shares[0]["predictions"] == ["Gentoo"]
    assert shares[0]["probabilities"] != shares[1]["probabilities"]


def test_the_first_models_show_long_before_the_end_and_stopping_keeps_them(person):
    job = person.train(person.dataset("iris")["id"], "species", time_budget=120)
    person.until(f"/api/results/job/{job}/leaderboard", lambda rows: rows["count"] >= 2, within=40)
    asked = time.monotonic()
    person.ok("POST", f"/api/training/{job}/stop")
    ended = person.ended(job, within=30)
    assert time.monotonic() - asked < 20
    assert (ended["state"], ended["stopped_early"]) == ("succeeded", True)
    assert len(person.leaderboard(job)) >= 2


def test_cancel_kills_at_once_and_stored_models_stay(person):
    job = person.train(person.dataset("iris")["id"], "species", time_budget=120)
    person.until(f"/api/results/job/{job}/leaderboard", lambda rows: rows["count"] >= 1, within=40)
    asked = time.monotonic()
    person.ok("POST", f"/api/training/{job}/cancel")
    assert person.ended(job, within=15)["state"] == "cancelled"
    assert time.monotonic() - asked < 10
    assert person.leaderboard(job)
