"""Curves of named models, drawn: PNG by control, SVG on one page."""

import xml.etree.ElementTree as ET
from io import BytesIO

import pytest
from django.core.cache import cache

from tests.training import make
from training import named, pictures, plots, tasks
from training.models import TrainedModel
from workers import bells

pytestmark = pytest.mark.django_db
PNG = b"\x89PNG\r\n\x1a\n"


ASK = pictures.ask_control


@pytest.fixture
def by():
    return make.member()


@pytest.fixture
def asked(monkeypatch):
    """What control was asked to draw; it does nothing by itself."""
    found = []
    monkeypatch.setattr(pictures, "ask_control", lambda *args: found.append(args) or True)
    yield found
    cache.clear()


@pytest.fixture
def model(by):
    made = make.scored_model(by)
    named.give_name(by, "tree", made)
    return made


@pytest.fixture
def get(client, by):
    client.force_login(by.user)
    return lambda address, **headers: client.get(f"/api/visualization/{address}", headers=headers)


def test_a_picture_is_drawn_by_control_once_and_then_kept(get, model, asked):
    first = get("tree/roc")
    assert (first.status_code, first["Retry-After"]) == (202, "1")
    assert get("tree@latest/roc").status_code == 202
    assert asked == [(model.pk, "roc")], "asked for twice, drawn once"
    tasks.draw(str(asked[0][0]), asked[0][1])
    done = get("tree/roc", Accept="image/png")
    assert (done.status_code, done["Content-Type"]) == (200, "image/png")
    assert done.content.startswith(PNG)
    from PIL import Image

    picture = Image.open(BytesIO(done.content))
    assert picture.size == (960, 720)
    assert len(picture.convert("RGB").getcolors(10**6)) > 20, "something is on it"


def test_who_waits_gets_it_with_the_first_answer(get, model, asked, monkeypatch):
    monkeypatch.setattr(pictures, "ask_control", lambda *it: pictures.draw(*it) or True)
    assert get("tree/roc", Prefer="wait=5").status_code == 200


def test_a_broker_that_is_away_is_told_and_asked_again_by_the_next(get, model, asked, monkeypatch):
    with monkeypatch.context() as away:
        away.setattr(bells, "send", lambda *args, **how: False)
        away.setattr(pictures, "ask_control", ASK)
        answer = get("tree/roc")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert get("tree/roc").status_code == 202
    assert asked == [(model.pk, "roc")]


def test_one_that_cannot_be_drawn_is_told_and_tried_again_later(get, model, asked, monkeypatch):
    monkeypatch.setattr(pictures, "DRAW_MIB", 20)  # not enough to start Python
    get("tree/roc")
    tasks.draw(str(asked[0][0]), asked[0][1])
    answer = get("tree/roc")
    assert (answer.status_code, answer.json()["code"]) == (503, "not-drawn")


def test_a_model_without_the_curve_says_so(get, by, model, asked):
    TrainedModel.objects.filter(pk=model.pk).update(curves={"confusion": {}})
    answer = get("tree/roc")
    assert (answer.status_code, answer.json()["code"]) == (409, "no-curve")
    assert get("nothing/roc").status_code == 404
    assert not asked


def test_one_page_shows_all_and_needs_no_other_file(get, by, model):
    names = ["tree", "other <b>"]
    with pytest.raises(Exception, match="letters"):
        named.give_name(by, names[1], model)
    named.give_name(by, "twin", model)
    answer = get("all")
    page = answer.content.decode()
    assert answer["Content-Type"].startswith("text/html")
    assert page.count("<svg") == 4  # two models, ROC and precision-recall each
    assert "src=" not in page
    assert "href=" not in page
    assert "style" not in page


def test_a_page_without_models_says_how_to_get_some(get):
    assert "POST /api/train" in get("all").content.decode()


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a & b", "日本", "x" * 300])
def test_text_of_the_data_stays_text_in_a_picture(name):
    line = {"class": name, "auc": 0.9, "false_positive_rate": [0, 1], "true_positive_rate": [0, 1]}
    made = plots.plots({"roc": [line]}, "kind")["roc"]
    root = ET.fromstring(plots.svg(made))
    assert {one.tag.rpartition("}")[2] for one in root.iter()} <= {
        "svg", "title", "rect", "text", "line", "polyline", "circle",
    }  # fmt: skip
    assert any((one.text or "").startswith(name[:23]) for one in root.iter())


def test_numbers_are_drawn_as_points():
    curves = {"sample": {"true": [1.0, 2.0, 2.0], "predicted": [1.5, 2.0, 1e9]}}
    made = plots.plots(curves, "price")
    assert list(made) == ["sample"]
    assert plots.svg(made["sample"]).count("<circle") == 3
