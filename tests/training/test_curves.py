"""Learning curves by name: begun once, scored by the platform, drawn like other curves."""

import io

import pytest
from django.core.cache import cache

from organizations.models import Role
from organizations.quotas import QuotaReached
from tests.training import make
from training import curves, named, pictures
from training.learned import LearningCurve
from workers.files import store_artifact
from workers.models import Artifact, Task

pytestmark = pytest.mark.django_db


@pytest.fixture
def by():
    return make.member()


@pytest.fixture
def model(by):
    made = make.scored_model(by)
    named.give_name(by, "tree", made)
    return made


@pytest.fixture
def get(client, by, monkeypatch):
    monkeypatch.setattr(pictures, "ask_control", lambda *it: pictures.draw(*it) or True)
    client.force_login(by.user)
    yield lambda: client.get("/api/visualization/tree/learning_curve", headers={"Prefer": "wait=1"})
    cache.clear()


def report(job, skills, change=None):
    """What a node sends: a point for each skill."""
    node = make.Node()
    task = node.claim()
    points, files = [], {}
    for place, skill in enumerate(skills):
        file = io.BytesIO()
        table = make.predictions(job, skill)
        (table if change is None else change(table)).write_parquet(file)
        file.seek(0)
        name = f"size-{place}"
        files[name] = str(store_artifact(job.organization, name, file, task=task).pk)
        points.append({"name": name, "rows": 10 * (place + 1)})
    node.end(task, result={"data": {"points": points}, "files": files})
    return task


def test_a_curve_is_made_once_scored_here_and_drawn(get, by, model):
    for _ in range(2):
        answer = get()
        assert (answer.status_code, answer["Retry-After"]) == (202, "5")
    task = Task.objects.get(kind=curves.LEARNING_CURVE)
    assert task.engine == model.engine
    report(model.job, [0.5, 0.7, 0.9])
    curve = LearningCurve.objects.get()
    assert [point["rows"] for point in curve.points] == [10, 20, 30]
    scores = [point["score"] for point in curve.points]
    assert scores == sorted(scores, reverse=True), "log loss falls with more rows"
    assert not Artifact.objects.filter(task=task).exists(), "the figures are kept, not the files"
    answer = get()
    assert (answer.status_code, answer["Content-Type"]) == (200, "image/png"), answer.content
    assert Task.objects.filter(kind=curves.LEARNING_CURVE).count() == 1


def test_one_that_failed_says_why(get, by, model):
    get()
    report(model.job, [0.5], change=lambda table: table.head(3))
    answer = get()
    assert (answer.status_code, answer.json()["code"]) == (503, "no-curve")
    assert "row" in answer.json()["detail"]


def test_a_viewer_sees_it_but_begins_none(get, by, model, client):
    viewer = make.member(Role.VIEWER, organization=by.organization)
    client.force_login(viewer.user)
    answer = get()
    assert (answer.status_code, answer.json()["code"]) == (409, "not-made")
    assert not LearningCurve.objects.exists()
    curves.curve_of(by, model)
    assert get().status_code == 202


def test_it_needs_hours_that_are_left(by, model, monkeypatch):
    by.organization.max_cpu_hours = 0
    by.organization.save()
    with pytest.raises(QuotaReached):
        curves.curve_of(by, model)
    assert not LearningCurve.objects.exists()


def test_the_models_page_asks_for_it_and_shows_it(client, by, model):
    client.force_login(by.user)
    page = f"/models/{model.pk}"
    assert "Would more rows help?" in client.get(page).content.decode()
    asked = client.post(f"{page}/learning-curve/ask", headers={"HX-Request": "true"})
    assert f'hx-get="{page}/learning-curve"' in asked.content.decode()
    report(model.job, [0.5], change=lambda table: table.head(3))
    assert "It could not be made" in client.get(page).content.decode()
    assert client.post(f"{page}/learning-curve/ask")["Location"] == page, "it is tried again"
    report(model.job, [0.5, 0.7, 0.95])
    for address in (page, f"{page}/learning-curve"):
        text = client.get(address).content.decode()
        assert 'id="learning-chart" data-chart="xy"' in text
        assert f'hx-get="{page}/learning-curve"' not in text
        assert "still gets better at the end" in text
