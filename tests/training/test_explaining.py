"""Why a model says what it says: asked of a node beside rows that the model learnt from."""

import json

import polars as pl
import pytest
from django.core.cache import cache

from accounts.errors import Conflict, Invalid, Unavailable
from organizations import service
from organizations.models import Role
from tests.training import make, real
from training import background, explaining, scoring, serving
from training.models import TrainingJob
from workers.models import Worker

pytestmark = pytest.mark.django_db
ROW = {"petal_cm": 2.0, "colour": "red", "weight_g": "51.5"}
CLASSES = ["kind 0", "kind 1", "kind 2"]


@pytest.fixture(autouse=True)
def control(monkeypatch):
    """Control, which chooses rows as soon as it is told to."""
    told = []
    monkeypatch.setattr(
        background, "ask_control", lambda job: told.append(job) or background.choose(job) or True
    )
    yield told
    cache.clear()


@pytest.fixture
def by():
    return make.member()


@pytest.fixture
def model(by):
    return make.scored_model(by)


@pytest.fixture
def node(serving_node):
    Worker.objects.update(address=serving_node.address)
    serving_node.answer = {
        "predictions": ["kind 1"],
        "probabilities": [[0.1, 0.7, 0.2]],
        "classes": CLASSES,
        "ms": {"model": 1.0, "node": 2.0},
    }
    return serving_node


@pytest.fixture
def post(client, by, model):
    client.force_login(by.user)

    def ask(body):
        address = f"/api/results/model/{model.pk}/explain"
        return client.post(address, body, content_type="application/json")

    return ask


# Rows to compare with


def test_a_row_is_asked_beside_rows_that_trained_and_no_others(model, node, control):
    explaining.explain(model, ROW)
    (asked,) = node.asked
    assert asked["rows"] == [[2.0, "red", 51.5]]
    table = make.flowers().select("petal_cm", "colour", "weight_g")
    truth = scoring.truth_of(model.job)
    trained = {table.row(row) for row in truth.training.tolist()}
    others = [tuple(row) for row in asked["background"]]
    assert len(others) == len(set(others)) == background.ROWS
    assert set(others) <= trained
    assert not {table.row(row) for row in truth.sealed.tolist()} & set(others)
    explaining.explain(model, ROW)
    assert node.asked[1]["background"] == asked["background"]
    assert control == [model.job_id], "control chooses them once"


def test_dates_gaps_and_whole_numbers_go_as_a_client_would_send_them(by):
    n = 60
    table = pl.DataFrame(
        {
            "day": real.days(range(n)),
            "size": [None if i % 7 == 0 else i / 2 for i in range(n)],
            "count": [i % 20 for i in range(n)],
            "warm": [i % 3 == 0 for i in range(n)],
            "kind": ["a" if i % 2 else "b" for i in range(n)],
        }
    )
    version = real.version(by, table)
    job = make.job(by, version)
    names = [column["name"] for column in job.columns]
    assert set(names) == {"day", "size", "count", "warm"}
    everything = [
        {
            "day": real.days([i])[0].isoformat(),
            "size": None if i % 7 == 0 else i / 2,
            "count": i % 20,
            "warm": i % 3 == 0,
        }
        for i in range(n)
    ]
    for row in background.of(job):
        assert dict(zip(names, row, strict=True)) in everything


def test_long_texts_mean_fewer_rows_and_at_least_one(model, monkeypatch):
    monkeypatch.setattr(background, "MOST_CHARACTERS", 100)
    few = background.of(model.job)
    assert 1 <= len(few) < background.ROWS
    assert len(json.dumps(few)) < 200
    cache.clear()
    monkeypatch.setattr(background, "MOST_CHARACTERS", 1)
    assert len(background.of(model.job)) == 1


def test_without_the_data_there_is_nothing_to_compare_with(model, node):
    version = model.job.dataset_version
    version.data.file.delete(save=False)
    with pytest.raises(Unavailable, match="can't be read"):
        explaining.explain(model, ROW)
    TrainingJob.objects.update(dataset_version=None)
    with pytest.raises(Conflict, match="data set is gone"):
        explaining.explain(type(model).objects.get(pk=model.pk), ROW)
    assert node.asked == []


def test_while_control_is_busy_or_away_it_says_so(model, node, monkeypatch):
    monkeypatch.setattr(background, "WAIT_S", 0.1)
    monkeypatch.setattr(background, "ask_control", lambda _: True)
    with pytest.raises(Unavailable, match="still being read"):
        explaining.explain(model, ROW)
    cache.clear()
    monkeypatch.setattr(background, "ask_control", lambda _: False)
    with pytest.raises(Unavailable, match="broker is away"):
        explaining.explain(model, ROW)


# Answers


def test_the_base_and_all_columns_add_up_to_what_was_answered(model, node):
    found = explaining.explain(model, ROW)
    assert (found.prediction, found.of_class, found.output) == ("kind 1", "kind 1", 0.7)
    assert found.base + sum(one.contribution for one in found.contributions) == pytest.approx(0.7)
    assert {one.column: one.value for one in found.contributions} == {
        "petal_cm": 2.0, "colour": "red", "weight_g": 51.5
    }  # fmt: skip
    other = explaining.explain(model, ROW, "kind 0")
    assert (other.prediction, other.of_class, other.output) == ("kind 1", "kind 0", 0.1)


def test_members_of_an_ensemble_explain_themselves_and_are_weighed():
    k = {"output": [0.0, 1.0], "base": [0.5, 0.5], "exact": True, "background": 9}
    first = k | {"values": [[-0.5, 0.5], [0.0, 0.0]], "errors": [[0.0] * 2] * 2, "evaluations": 4}
    second = k | {
        "values": [[0.0, 0.0], [-0.5, 0.5]], "errors": [[0.2] * 2] * 2, "evaluations": 5,
        "exact": False, "background": 7,
    }  # fmt: skip
    answers = [
        serving.Answer(["b"], [[0.0, 1.0]], ["a", "b"], {}, name, ((told, 1.0),))
        for name, told in (("x", first), ("y", second))
    ]
    answer = serving.together(answers, [0.75, 0.25])
    found = explaining._blended(answer, 2, ["a", "b"])
    assert found.values.tolist() == [[-0.375, 0.375], [-0.125, 0.125]]
    assert (found.base + found.values.sum(axis=0)).tolist() == found.output.tolist() == [0.0, 1.0]
    assert found.errors == pytest.approx(0.05)
    assert (found.exact, found.background, found.evaluations) == (False, 7, 9)


@pytest.mark.parametrize(
    "told",
    [
        None, {}, [], "no",
        {"base": [1]}, {"base": [None] * 3}, {"output": [0.1, 0.7]}, {"values": [[0.1] * 3] * 2},
        {"values": "wide"}, {"errors": [[1.0]]}, {"background": None},
    ],
)  # fmt: skip
def test_what_is_no_explanation_of_this_model_is_not_shown(model, node, told):
    whole = {
        "base": [0.3] * 3, "output": [0.1, 0.7, 0.2], "values": [[0.1] * 3] * 3, "errors": None,
        "exact": True, "background": 3, "evaluations": 5,
    }  # fmt: skip
    node.explains = False
    node.answer = node.answer | {"explanation": whole}
    explaining.explain(model, ROW)
    changed = whole | told if isinstance(told, dict) and told else told
    node.answer = node.answer | {"explanation": changed}
    with pytest.raises(Unavailable, match="fit this model"):
        explaining.explain(model, ROW)


def test_an_older_node_is_named_as_such(model, node):
    node.explains = False
    with pytest.raises(Unavailable, match="older"):
        explaining.explain(model, ROW)


def test_an_unknown_class_or_value_never_reaches_the_node(model, node):
    with pytest.raises(Invalid, match="Did you mean 'kind 1'") as refused:
        explaining.explain(model, ROW, "kind1")
    assert list(refused.value.errors) == ["class"]
    with pytest.raises(Invalid) as refused:
        explaining.explain(model, ROW | {"petal_cm": "long"})
    assert list(refused.value.errors) == ["row.petal_cm"]
    assert node.asked == []


def test_programs_get_it_whole(post, model, node):
    answer = post({"row": ROW})
    assert answer.status_code == 200, answer.content
    told = answer.json()
    assert (told["class"], told["prediction"], told["exact"]) == ("kind 1", "kind 1", True)
    assert told["probabilities"] == {"kind 0": 0.1, "kind 1": 0.7, "kind 2": 0.2}
    total = told["base"] + sum(one["contribution"] for one in told["contributions"])
    assert total == pytest.approx(told["output"])
    assert told["model"]["id"] == str(model.pk)
    assert post({"row": ROW, "class": "kind 2"}).json()["output"] == 0.2
    refused = post({"row": ROW, "class": "none"})
    assert (refused.status_code, list(refused.json()["errors"])) == (400, ["class"])
    assert post({"rows": [ROW]}).status_code == 400


def test_a_number_is_explained_in_its_own_unit(by, serving_node, client):
    table = make.flowers(60).with_columns(price=pl.col("petal_cm") * 10)
    model = make.scored_model(by, of=make.version(by, table), target="price")
    Worker.objects.update(address=serving_node.address)
    serving_node.answer = {"predictions": [36.5], "probabilities": None, "classes": None}
    found = explaining.explain(
        model, {"petal_cm": 3, "colour": "red", "weight_g": 50, "kind": "kind 1"}
    )
    assert (found.of_class, found.output, found.probabilities) == (None, 36.5, None)
    with pytest.raises(Invalid, match="numbers"):
        explaining.explain(model, {}, "high")
    page = explaining.on_page(found)
    assert json.loads(page["picture_json"])["end"]["value"] == 36.5
    assert page["classes"] == []
    assert "36.5" in page["text"]


# The page


@pytest.fixture
def form(client, by, model):
    client.force_login(by.user)

    def send(htmx=True, **more):
        values = {"column-0": "2", "column-1": "red", "column-2": "51.5"} | more
        headers = {"HX-Request": "true"} if htmx else {}
        return client.post(f"/models/{model.pk}/explain", values, headers=headers)

    return send


def test_the_page_shows_a_picture_and_a_table_of_it(form, node):
    text = form().content.decode()
    assert "<html" not in text
    assert 'data-chart="waterfall"' in text
    assert "<script" not in text, "htmx drops scripts, and with them what they hold"
    assert "The probability of kind 1 is 70.0%" in text
    assert "petal_cm" in text
    whole = form(htmx=False)
    assert whole.status_code == 200
    assert "<html" in whole.content.decode()
    assert "The probability of kind 1 is 70.0%" in whole.content.decode()
    assert 'value="51.5"' in whole.content.decode(), "the form keeps its input"
    assert "The probability of kind 2 is 20.0%" in form(**{"class": "kind 2"}).content.decode()


def test_the_picture_ends_where_the_answer_is_however_many_columns_there_are():
    many = [explaining.Contribution(f"c{i}", i, (-1) ** i / (i + 1), None) for i in range(30)]
    total = sum(one.contribution for one in many)
    found = explaining.Explained(5.0, None, None, 2.0, 2.0 + total, many, False, 5, 100, {})
    picture = explaining.picture(found)
    assert picture["start"]["value"] == picture["steps"][0]["from"] == 2.0
    assert len(picture["steps"]) == explaining.SHOWN + 1
    assert picture["steps"][-1] == {
        "name": "20 other columns",
        "from": picture["steps"][-2]["to"],
        "to": picture["end"]["value"],
    }
    assert len(explaining.on_page(found)["rows"]) == 30


def test_the_page_says_what_is_wrong(form, node, by, client):
    assert "takes a number" in form(**{"column-0": "long"}).content.decode()
    whole = form(htmx=False, **{"column-0": "long"})
    assert (whole.status_code, whole.content.decode().count("invalid-feedback") >= 1) == (422, True)
    make.age_node(Worker.objects.get())
    serving._nodes.clear()
    assert "No node with engine" in form().content.decode()
    viewer = make.member(Role.VIEWER, organization=by.organization)
    client.force_login(viewer.user)
    assert form().status_code == 403


def test_a_token_for_one_model_may_ask_why(model, node, by, client):
    _, token = service.make(
        make.member(Role.ADMIN, organization=by.organization),
        name="robot",
        model=model.pk,
    )
    address = f"/api/results/model/{model.pk}/explain"
    how = {"content_type": "application/json", "headers": {"Authorization": f"Bearer {token}"}}
    assert client.post(address, {"row": ROW}, **how).status_code == 200
    other = make.scored_model(by, name="other", of=make.version(by, name="more"))
    refused = client.post(f"/api/results/model/{other.pk}/explain", {"row": ROW}, **how)
    assert refused.status_code == 403
