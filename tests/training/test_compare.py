"""Models side by side: what the page shows, to whom, and how sure a difference is."""

import re
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import numpy as np
import pytest
from django.core.cache import cache
from django.test import Client

from organizations.models import Membership, Role
from tests.training import make
from training import comparing
from training.evaluation import InvalidCandidate, difference
from training.models import EnsembleMember, TrainedModel

pytestmark = pytest.mark.django_db
PAGE = "/models/compare"


def as_(member: Membership) -> Client:
    client = Client()
    client.force_login(member.user)
    return client


@pytest.fixture
def by() -> Membership:
    cache.clear()
    return make.member()


@pytest.fixture
def pair(by: Membership) -> tuple[TrainedModel, TrainedModel]:
    """A good and a bad model of one training, the bad one with other parameters."""
    make.job(by)
    node = make.Node()
    task = node.claim()
    good = node.candidate(task, "pycaret:good", skill=1.0)
    bad = node.candidate(task, "pycaret:bad", skill=0.4, fit_s=7.0)
    for model, params in ((good, {"depth": 3, "seed": 1}), (bad, {"depth": 9, "seed": 1})):
        TrainedModel.objects.filter(pk=model.pk).update(params=params)
        model.refresh_from_db()
    node.end(task)
    return good, bad


def address(*models: TrainedModel, more: str = "", page: str = PAGE) -> str:
    return f"{page}?" + "&".join(f"model={model.pk}" for model in models) + more


def words_of(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))


def test_figures_parameters_and_costs_stand_side_by_side(by: Any, pair: Any) -> None:
    good, bad = pair
    with patch("training.comparing.bells.send", return_value=True):
        page = as_(by).get(address(good, bad)).content.decode()
    heads = re.search(r"<thead>.*?</thead>", page, re.DOTALL)[0]  # type: ignore[index]
    assert heads.index("Good") < heads.index("Bad"), "in the order of the address"
    shown = words_of(page)
    assert f"best {good.score:.3f}" in shown
    assert f"{good.interval_low:.3f} – {good.interval_high:.3f}" in shown
    assert "least 1 s" in shown
    assert re.search(r'<th scope="row">depth</th><td><code>3</code></td><td><code>9</code>', page)
    assert '<th scope="row">seed</th>' not in page
    assert "1 more is the same" in shown
    assert page.count('data-chart="roc"') == 1
    assert '"name": "Good"' in page
    assert '"name": "Bad"' in page


def test_the_curves_of_one_class_are_chosen_in_the_address(by: Any, pair: Any) -> None:
    with patch("training.comparing.bells.send", return_value=True):
        page = as_(by).get(address(*pair, more="&class=kind+1")).content.decode()
    assert "<option selected>kind 1</option>" in page
    assert "Of “kind 1”" in page


def test_the_difference_is_computed_by_control_and_asked_for_once(by: Any, pair: Any) -> None:
    good, bad = pair
    client, part = as_(by), f"{PAGE}/differences"
    with patch("training.comparing.bells.send", return_value=True) as sent:
        page = client.get(address(good, bad)).content.decode()
        assert f'hx-get="{part}?' in page
        assert "Being computed" in client.get(address(good, bad, page=part)).content.decode()
    sent.assert_called_once_with(
        "training.tasks.compare", args=[str(good.pk), str(bad.pk)], queue="control"
    )
    comparing.compare(good.pk, bad.pk)
    told = client.get(address(good, bad, page=part)).content.decode()
    assert "hx-get" not in told
    assert "Clearly worse" in told
    (found,) = comparing.differences([good, bad])
    assert found is not None
    assert found["change"] == pytest.approx(bad.score - good.score)
    assert (found["rows"], found["part"]) == (good.scored_rows, "ranked")
    assert 0 < found["interval"][0] < found["change"] < found["interval"][1], (
        "log loss: more is worse"
    )


def test_models_of_other_rows_are_shown_with_a_warning(by: Any, pair: Any) -> None:
    good, _ = pair
    other = make.scored_model(by)
    assert other.job.seed != good.job.seed or other.job.dataset != good.job.dataset
    client = as_(by)
    page = client.get(address(good, other)).content.decode()
    assert "Not all of these were measured on the same rows" in page
    assert "They were not measured on the same rows" in page
    assert "Of 2 trainings" in page


def test_ids_of_others_and_nonsense_are_not_there(by: Any, pair: Any) -> None:
    good, bad = pair
    stranger = as_(make.member(Role.ADMIN))
    for page in (PAGE, f"{PAGE}/differences"):
        assert stranger.get(address(good, bad, page=page)).status_code == 404
        assert as_(by).get(address(good, page=page) + f"&model={uuid4()}").status_code == 404
        assert as_(by).get(f"{page}?model=nonsense").status_code == 404
    mine = make.scored_model(make.member())
    assert as_(by).get(address(good, mine)).status_code == 404


def test_one_model_is_no_comparison_and_says_how_to_choose(by: Any, pair: Any) -> None:
    for models in ((), pair[:1], (pair[0], pair[0])):
        answer = as_(by).get(address(*models))
        assert answer.status_code == 200
        assert "Choose two models or more" in answer.content.decode()


def test_more_models_take_no_more_queries(
    by: Any, pair: Any, django_assert_num_queries: Any
) -> None:
    good, bad = pair
    blend = TrainedModel.objects.create(
        organization=by.organization, job=good.job, key="ensemble", name="Both", engine="ensemble",
        state="scored", score=0.1, order_score=0.1, metrics=good.metrics,
    )  # fmt: skip
    for member in pair:
        EnsembleMember.objects.create(ensemble=blend, model=member, weight=0.5)
    client = as_(by)
    with patch("training.comparing.bells.send", return_value=True):
        for models in ((good, bad), (good, bad, blend)):
            # Session, user, membership, models, members.
            with django_assert_num_queries(5):
                assert client.get(address(*models)).status_code == 200
    page = client.get(address(good, blend)).content.decode()
    assert f"{sum(one.artifact.size for one in pair)} B" in page


def test_the_leaderboard_and_the_list_have_tick_boxes(by: Any, pair: Any) -> None:
    good = pair[0]
    board = as_(by).get(f"/training/{good.job_id}").content.decode()
    for model in pair:
        assert re.search(rf'type="checkbox" name="model" value="{model.pk}"', board)
    assert f'action="{PAGE}"' in board
    make.scored_model(by, name="again")
    models = as_(by).get("/models").content.decode()
    assert models.count("data-compare ") == 2


# --- The difference itself ------------------------------------------------------------------------


def test_a_paired_interval_is_narrower_than_the_models_own() -> None:
    random = np.random.default_rng(0)
    truth = random.normal(0, 10, 400)
    hard = random.normal(0, 3, 400)  # what makes a row hard does so for both
    first, second = truth + hard, truth + 0.9 * hard + random.normal(0, 0.1, 400)
    found = difference("regression", truth, (first, None), (second, None), metric="rmse")
    assert found.interval is not None
    low, high = found.interval
    assert low < found.change < high < 0, "the second errs less"
    assert high - low < 0.1
    assert found.better == 1.0
    same = difference("regression", truth, (first, None), (first, None), metric="rmse")
    assert (same.change, same.interval, same.better) == (0.0, (0.0, 0.0), 0.5)


def test_a_difference_of_what_has_no_score_is_refused() -> None:
    truth = np.array([0, 1] * 10)
    said = ["a", "b"] * 10
    with pytest.raises(InvalidCandidate, match="gives no probabilities"):
        difference(
            "binary", truth, (said, None), (said, None), metric="roc_auc", classes=["a", "b"]
        )
