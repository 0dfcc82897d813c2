"""What is sent back later is kept with the prediction that it belongs to, and counted by day."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.test import Client
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, mean_absolute_error, root_mean_squared_error

from clusters import actions, outcomes, watch
from clusters.models import Outcome, Sample
from organizations import service
from tests.clusters import make
from tests.clusters.make import deploy
from tests.clusters.test_api import Api
from training.models import TrainingJob


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1))
def test_errors_are_those_of_scikit_learn(pairs):
    told = outcomes.figures("regression", pairs)
    said, true = [one for one, _ in pairs], [one for _, one in pairs]
    assert told["mae"] == pytest.approx(mean_absolute_error(true, said), abs=1e-6)
    assert told["rmse"] == pytest.approx(root_mean_squared_error(true, said), abs=1e-6)
    assert (told["count"], told["accuracy"]) == (len(pairs), None)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1))
def test_accuracy_is_that_of_scikit_learn(pairs):
    told = outcomes.figures("multiclass", pairs)
    assert told["accuracy"] == accuracy_score([b for _, b in pairs], [a for a, _ in pairs])


@pytest.fixture
def by(db):
    return make.member()


@pytest.fixture
def api(by):
    return Api(by)


@pytest.fixture
def one(by):
    make.cluster(by, make.node(by))
    return deploy(by, make.model(by), "flowers")


def sampled(one, *predicted, days_ago=0):
    """The id of an answer of so many rows."""
    answer = uuid4()
    at = timezone.now() - timedelta(days=days_ago)
    Sample.objects.bulk_create(
        Sample(deployment=one, prediction=answer, row=row, revision=1, at=at, values={},
               predicted=said)
        for row, said in enumerate(predicted)
    )  # fmt: skip
    return str(answer)


def test_outcomes_give_accuracy_by_the_day_of_the_prediction(api, by, one):
    today, then = sampled(one, "a", "b", "a"), sampled(one, "a", days_ago=3)
    path = f"deployments/{one.pk}/feedback"
    sent = [
        {"id": today, "truth": "a"},
        {"id": today, "row": 1, "truth": "a"},
        {"id": then, "truth": "a"},
        {"id": str(uuid4()), "truth": "a"},
        {"id": today, "row": 7, "truth": "a"},
    ]
    told = api("post", path, {"outcomes": sent})
    assert (told["taken"], told["unknown"], len(told["unknown_ids"])) == (3, 2, 2)
    found = api("get", path)
    assert [(day["count"], day["accuracy"]) for day in found["days"]] == [(1, 1.0), (2, 0.5)]
    assert found["total"]["accuracy"] == pytest.approx(2 / 3)
    # Known better by now.
    api("post", path, {"outcomes": [{"id": today, "row": 1, "truth": "b"}]})
    assert api("get", path)["total"]["accuracy"] == 1.0
    # Samples go, outcomes stay.
    actions.change(by, one, samples=False)
    assert not Sample.objects.exists()
    assert api("get", path)["total"]["count"] == 3
    client = Client()
    client.force_login(by.user)
    assert "Last 30 days" in client.get(f"/deployments/{one.pk}/watch").content.decode()
    Outcome.objects.update(at=timezone.now() - timedelta(days=91))
    watch.flush()
    assert not Outcome.objects.exists()


def test_of_numbers_the_truth_is_a_number(api, one):
    TrainingJob.objects.update(task="regression")
    answer = sampled(one, 2.0, 5.0)
    path = f"deployments/{one.pk}/feedback"
    sent = [{"id": answer, "truth": 3}, {"id": answer, "row": 1, "truth": "many"}]
    told = api("post", path, {"outcomes": sent}, 400)
    assert list(told["errors"]) == ["outcomes[1].truth"]
    assert not Outcome.objects.exists()
    sent[1]["truth"] = "8"
    api("post", path, {"outcomes": sent})
    total = api("get", path)["total"]
    assert (total["mae"], total["rmse"]) == (2.0, pytest.approx(5**0.5))


@pytest.mark.parametrize(
    "wrong",
    [{}, {"outcomes": []}, {"outcomes": [{"truth": 1}]}, {"outcomes": [{"id": "x", "truth": 1}]},
     {"outcomes": [{"id": str(uuid4())}]}, {"outcomes": [{"id": str(uuid4()), "truth": None}]},
     {"outcomes": [{"id": str(uuid4()), "truth": [1]}]},
     {"outcomes": [{"id": str(uuid4()), "row": -1, "truth": 1}]}],
)  # fmt: skip
def test_what_says_nothing_is_refused(api, one, wrong):
    assert api("post", f"deployments/{one.pk}/feedback", wrong, 400)["code"] == "invalid"


def test_predictions_of_others_are_not_known_and_a_token_for_one_tells_of_that_alone(api, by, one):
    stranger = make.member()
    make.cluster(stranger, make.node(stranger))
    foreign = deploy(stranger, make.model(stranger), "theirs")
    other = deploy(by, make.model(by), "other")
    path = f"deployments/{one.pk}/feedback"
    for owner in (foreign, other):
        sent = {"outcomes": [{"id": sampled(owner, "a"), "truth": "a"}]}
        assert api("post", path, sent)["taken"] == 0
    api("post", f"deployments/{foreign.pk}/feedback", sent, 404)
    secret = service.make(by, name="app", deployment=one.pk)[1]
    client = Client(headers={"Authorization": f"Bearer {secret}"})
    mine = {"outcomes": [{"id": sampled(one, "a"), "truth": "a"}]}
    kind = {"content_type": "application/json"}
    assert client.post(f"/api/{path}", mine, **kind).json()["taken"] == 1
    refused = client.post(f"/api/deployments/{other.pk}/feedback", mine, **kind)
    assert refused.status_code == 403
