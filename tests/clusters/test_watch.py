"""What a deployment is asked is counted, kept, shown and compared with training; and no more."""

import html
import json
import re
import time
from datetime import timedelta
from uuid import uuid4

import pytest
from django.db.models import F
from django.test import Client
from hypothesis import given
from hypothesis import strategies as st

from clusters import actions, queue, serving, watch
from clusters.models import DriftReport, Sample, ServedMinute
from tests.clusters import make
from tests.clusters.make import Node, deploy, settle
from tests.factories import bearer
from tests.training.make import FakeServing
from training import serving as models
from training.models import TrainingJob
from workers.models import Event

ROW = {"petal_cm": 1.0, "colour": "red", "weight_g": 50.0}


@given(st.lists(st.floats(0.01, 120_000), min_size=1), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_percentile_is_at_most_a_fifth_too_high_and_never_too_low(latencies, share):
    counts = {}
    for ms in latencies:
        counts[watch.bucket(ms)] = counts.get(watch.bucket(ms), 0) + 1
    ordered = sorted(latencies)
    place = max(0, -int(-share * len(ordered) // 1) - 1)
    exact = ordered[min(len(ordered) - 1, place)]
    told = watch.percentile(counts, share)
    assert told is not None
    assert exact <= told * 1.000001
    assert told <= max(1.0, exact * 1.19)


def test_nothing_has_no_percentile():
    assert watch.percentile({}, 0.5) is None


@pytest.fixture
def by(db):
    return make.member()


@pytest.fixture
def served(by, tmp_path):
    fake = FakeServing(tmp_path)
    node = Node(make.node(by, address=fake.address))
    home = make.cluster(by, node.worker)
    one = deploy(by, make.model(by), "flowers")
    settle(home, node)
    yield one, fake
    fake.stop()
    serving._places.clear()
    models._models.clear()
    models._pool = models._Pool()
    watch._taken.clear()


def ask(by, one, *rows, status=200):
    client = Client(headers=bearer(by.user))
    answer = client.post(
        f"/api/deployments/{one.pk}/predict",
        {"rows": list(rows or [ROW])},
        content_type="application/json",
    )
    assert answer.status_code == status, answer.content
    return answer.json()


def get(by, path):
    answer = Client(headers=bearer(by.user)).get(path)
    assert answer.status_code == 200, answer.content
    return answer.json()


def test_requests_are_counted_by_how_they_ended_and_shown(by, served):
    one, fake = served
    ask(by, one)
    ask(by, one)
    ask(by, one, {"petal_cm": "long"}, status=400)
    fake.status, fake.answer = 502, {"detail": "It broke."}
    try:
        serving.PATIENCE_S, before = 0.1, serving.PATIENCE_S
        ask(by, one, status=503)
    finally:
        serving.PATIENCE_S = before
    watch.flush()
    watch.flush()  # twice is as once
    told = get(by, f"/api/deployments/{one.pk}/metrics")
    assert (told["step_s"], len(told["steps"])) == (60, 60)
    sums = {key: sum(step[key] for step in told["steps"]) for key in ("requests", "rows")}
    assert sums == {"requests": 4, "rows": 2}
    by_revision = {row["revision"]: row for row in told["revisions"]}
    assert (by_revision[1]["requests"], by_revision[1]["errors"]) == (2, 0)
    assert by_revision[1]["p50_ms"] > 0
    assert (by_revision[0]["refused"], by_revision[0]["errors"]) == (1, 1)
    assert len(get(by, f"/api/deployments/{one.pk}/metrics?hours=24")["steps"]) == 96
    wrong = Client(headers=bearer(by.user)).get(f"/api/deployments/{one.pk}/metrics?hours=7")
    assert wrong.status_code == 400
    client = Client()
    client.force_login(by.user)
    page = client.get(f"/deployments/{one.pk}/watch").content.decode()
    assert 'data-chart="steps"' in page
    assert "none answered" in page
    assert "<script" not in page, "htmx takes scripts out of what it swaps in, data too"
    [data] = re.findall(r'<span id="requests-data" hidden>(.*?)</span>', page)
    everyone = json.loads(html.unescape(data))["series"][0]
    assert (everyone["name"], sum(everyone["values"])) == ("All", 4)
    # An hour that is over is not looked at again, and a week later it is gone.
    ServedMinute.objects.update(minute=F("minute") - timedelta(hours=2))
    queue.valkey().delete(watch.MINUTES)
    page = client.get(f"/deployments/{one.pk}/watch").content.decode()
    assert "Nobody asked it" in page
    assert (
        'data-chart="steps"' in client.get(f"/deployments/{one.pk}/watch?hours=24").content.decode()
    )
    ServedMinute.objects.update(minute=F("minute") - timedelta(days=7))
    watch.flush()
    assert not ServedMinute.objects.exists()


def test_what_is_counted_while_valkey_is_away_is_lost_and_nothing_else(by, served, monkeypatch):
    import redis

    one, _ = served

    def away():
        raise redis.ConnectionError("away")

    monkeypatch.setattr(watch, "valkey", away)
    assert ask(by, one)["predictions"]


def test_samples_are_kept_up_to_a_bound_and_none_where_they_are_turned_off(by, served, monkeypatch):
    one, fake = served
    fake.answer = {"predictions": ["kind 1"] * 50}
    answer = ask(by, one, *[{**ROW, "petal_cm": float(number)} for number in range(50)])
    watch.flush()
    kept = list(Sample.objects.filter(deployment=one).order_by("row"))
    assert len(kept) == watch.ROWS_OF_ONE
    assert {str(each.prediction) for each in kept} == {answer["id"]}
    assert all(each.values == {**ROW, "petal_cm": float(each.row)} for each in kept)
    assert {each.predicted for each in kept} == {"kind 1"}
    monkeypatch.setattr(watch, "MOST_SAMPLES", 30)
    ask(by, one, *[ROW] * 50)
    watch.flush()
    assert Sample.objects.filter(deployment=one).count() == 30
    monkeypatch.setattr(watch, "REQUESTS_A_MINUTE", 0)
    ask(by, one, *[ROW] * 50)
    watch.flush()
    assert Sample.objects.filter(deployment=one).count() == 30
    monkeypatch.setattr(watch, "REQUESTS_A_MINUTE", 1000)
    ask(by, one, *[ROW] * 50)  # not copied yet when it is turned off
    client = Client()
    client.force_login(by.user)
    client.post(f"/deployments/{one.pk}/forget")
    assert not Sample.objects.exists()
    serving._places.clear()
    ask(by, one, *[ROW] * 50)
    watch.flush()
    assert not Sample.objects.exists()


def profiled(one):
    """Its model's data set has a profile: petals around 1, mostly red."""
    column = {"missing": 0, "distinct": 9}
    edges = [step / 10 for step in range(21)]
    listed = [{"value": "red", "count": 900}, {"value": "blue", "count": 100}]
    job = TrainingJob.objects.get(models__revisions__deployment=one)
    version = job.dataset_version
    version.rows = 1000
    version.columns = [
        {**column, "name": "petal_cm", "dtype": "float", "role": "numeric", "top": [],
         "histogram": {"edges": edges, "counts": [50] * 20}},
        {**column, "name": "colour", "dtype": "string", "role": "categorical", "top": listed},
        {**column, "name": "kind", "dtype": "string", "role": "categorical",
         "top": [{"value": "kind 1", "count": 500}, {"value": "kind 0", "count": 500}]},
    ]  # fmt: skip
    version.save()


def sampled(one, count, **values):
    Sample.objects.bulk_create(
        Sample(
            deployment=one, prediction=uuid4(), row=0, revision=1, at=make._now(),
            values={
                "petal_cm": number % 20 / 10,
                "colour": "red" if number % 10 else "blue",
                **values,
            },
            predicted=f"kind {number % 2}",
        )
        for number in range(count)
    )  # fmt: skip


def events(one, kind):
    return list(Event.objects.filter(stream=one.topic, type=kind).values_list("data", flat=True))


def test_other_values_than_in_training_are_told_once_and_shown(by, served):
    one, _ = served
    profiled(one)
    sampled(one, 90)
    assert watch.look_for_drift(one.pk) is None  # too few to say
    sampled(one, 110)
    report = watch.look_for_drift(one.pk)
    assert (report.rows, report.drifted) == (200, [])
    Sample.objects.all().delete()
    sampled(one, 200, colour="mauve")
    assert watch.look_for_drift(one.pk) is None  # it looked a moment ago
    for _ in range(2):
        report = watch.look_for_drift(one.pk, at_once=True)
    assert report.drifted == ["colour"]
    [told] = events(one, "deployment.drift")
    assert (told["columns"], told["threshold"]) == (["colour"], 0.2)
    shown = get(by, f"/api/deployments/{one.pk}/drift")
    assert (shown["samples"], shown["kept"], shown["latest"]["drifted"]) == (True, 200, ["colour"])
    worst = shown["latest"]["columns"][0]
    assert worst["column"] == "colour"
    assert ["other values", 0.0, 1.0] in worst["bins"]
    client = Client()
    client.force_login(by.user)
    page = client.get(f"/deployments/{one.pk}/watch").content.decode()
    assert "1 column drifted" in page
    assert (
        "other values than it was trained on: colour"
        in client.get(f"/deployments/{one.pk}").content.decode()
    )
    # A higher threshold is past nothing, which is told as well.
    actions.change(by, one, drift_threshold=99.0)
    assert watch.look_for_drift(one.pk, at_once=True).drifted == []
    assert len(events(one, "deployment.no-drift")) == 1


def test_drift_of_predictions_and_of_a_deleted_data_set(by, served):
    one, _ = served
    profiled(one)
    sampled(one, 200)
    Sample.objects.update(predicted="kind 1")
    assert watch.look_for_drift(one.pk).drifted == ["kind"]
    DriftReport.objects.all().delete()
    TrainingJob.objects.update(dataset_version=None)
    assert watch.look_for_drift(one.pk) is None


def test_what_is_kept_of_a_deployment_goes_with_it(by, served):
    one, _ = served
    ask(by, one)
    watch.note(uuid4(), 1, 200, 5.0, 1)  # of one that is gone by now
    queue.valkey().zadd(watch.MINUTES, {f"{one.pk}:{int(time.time() // 60) - 9}": 1})
    watch.flush()
    assert ServedMinute.objects.filter(deployment=one).exists()
    type(one).objects.filter(pk=one.pk).delete()
    watch.flush()
    assert not ServedMinute.objects.exists()
    assert not Sample.objects.exists()
