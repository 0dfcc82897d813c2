"""Partial dependence: begun when somebody asks, looked at, blended, and shown."""

import copy

import pytest

from accounts.errors import Conflict
from organizations.models import Role
from tests.training import make
from training import dependences
from training.learned import Dependence
from training.models import EnsembleMember, TrainedModel, TrainingJob
from workers.models import Task

pytestmark = pytest.mark.django_db
TOLD = {
    "columns": [
        {
            "column": "petal_cm",
            "kind": "number",
            "values": [1.0, 2.5],
            "means": [[0.2, 0.8], [0.6, 0.4]],
            "lines": [[[0.1, 0.9], [0.5, 0.5]]],
        },
        {
            "column": "colour",
            "kind": "word",
            "values": ["red", "blue"],
            "means": [[0.3, 0.7], [0.3, 0.7]],
            "lines": [[[0.3, 0.7], [0.3, 0.7]]],
        },
    ],
    "classes": [0, 2],
    "rows": 15,
    "unseen": True,
}


@pytest.fixture
def by():
    return make.member()


@pytest.fixture
def model(by):
    return make.scored_model(by)


def report(told):
    node = make.Node()
    task = node.claim()
    assert task.kind == dependences.DEPENDENCE
    node.end(task, result={"data": told, "files": {}})
    return task


def changed(**with_):
    """TOLD with other values in its first column."""
    told = copy.deepcopy(TOLD)
    told["columns"][0] |= with_
    return told


def test_it_is_light_work_that_is_asked_for_once_and_again_after_a_failure(by, model):
    found = dependences.ask(by, model)
    assert dependences.ask(by, model).pk == found.pk
    task = Task.objects.get(kind=dependences.DEPENDENCE)
    assert (task.engine, task.light) == (model.engine, True)
    assert task.payload["split"] == model.job.split
    report({})
    found.refresh_from_db()
    assert (found.state, "something else" in found.error) == ("failed", True)
    assert dependences.ask(by, model).state == "running"
    report(TOLD)
    found.refresh_from_db()
    assert (found.state, found.error, found.rows) == ("succeeded", "", 15)
    assert found.classes == ["kind 0", "kind 2"]
    assert [one["column"] for one in found.columns] == ["petal_cm", "colour"]
    assert found.columns[0]["means"] == TOLD["columns"][0]["means"]


@pytest.mark.parametrize(
    "told",
    [
        changed(column="nothing"),
        changed(values=[1.0]),
        changed(values=[1.0, "tall"]),
        changed(means=[[0.2], [0.6]]),
        changed(means=[[0.2, None], [0.6, 0.4]]),
        changed(lines=[[[0.1, 0.9]]]),
        changed(lines=[[[0.1, 0.9], [0.5, 0.5]]] * 51),
        changed(kind="script"),
        TOLD | {"classes": None},
        TOLD | {"classes": [0, 7]},
        TOLD | {"columns": []},
        TOLD | {"columns": "many"},
    ],
)
def test_what_does_not_fit_is_not_kept(by, model, told):
    dependences.ask(by, model)
    report(told)
    found = Dependence.objects.get()
    assert found.state == "failed"
    assert found.columns == []


def test_what_an_ensembles_members_say_is_blended(by, model):
    node = make.Node()
    job = make.job(by, model.job.dataset_version)
    race = Task.objects.get(subject=job.pk)
    Task.objects.exclude(pk=race.pk).filter(state="queued").delete()
    race = node.claim()
    first, second = (node.candidate(race, f"pycaret:{name}") for name in ("one", "two"))
    blend = TrainedModel.objects.create(
        organization=by.organization, job=job, key="ensemble", name="Both", engine="ensemble",
        state="scored", score=0.1, order_score=0.1, task=race,
    )  # fmt: skip
    for member, weight in ((first, 0.75), (second, 0.25)):
        EnsembleMember.objects.create(ensemble=blend, model=member, weight=weight)
    found = dependences.ask(by, blend)
    told = {str(first.pk): TOLD, str(second.pk): changed(means=[[1.0, 0.0], [1.0, 0.0]])}
    told[str(second.pk)]["columns"].pop()  # it had no time for the other column
    for _ in range(2):
        found.refresh_from_db()
        assert found.state == "running"
        task = node.claim()
        node.end(task, result={"data": told[task.payload["member"]], "files": {}})
    found.refresh_from_db()
    (column,) = found.columns
    assert column["means"][0] == pytest.approx([0.75 * 0.2 + 0.25, 0.75 * 0.8])
    assert column["lines"] == TOLD["columns"][0]["lines"]


def test_without_the_data_set_it_is_refused(by, model):
    TrainingJob.objects.update(dataset_version=None)
    with pytest.raises(Conflict, match="data set is gone"):
        dependences.ask(by, TrainedModel.objects.get(pk=model.pk))


def test_the_page_asks_for_it_and_shows_the_column_and_class_in_its_address(by, model, client):
    page = f"/models/{model.pk}"
    client.force_login(make.member(Role.VIEWER, organization=by.organization).user)
    assert client.post(f"{page}/dependence/ask").status_code == 403
    client.force_login(by.user)
    asked = client.post(f"{page}/dependence/ask", headers={"HX-Request": "true"})
    assert f'hx-get="{page}/dependence" hx-trigger="every 3s"' in asked.content.decode()
    report(TOLD)
    for address in (page, f"{page}/dependence"):
        text = client.get(address).content.decode()
        assert 'id="dependence-chart" data-chart="xy"' in text
        assert "probability of kind 0 goes from 0.2 to 0.6 with petal_cm" in text
        text = client.get(address, {"column": "colour", "of": "kind 2"}).content.decode()
        assert "probability of kind 2 goes from 0.7 to 0.7 with colour" in text
        assert "&quot;categories&quot;: [&quot;red&quot;, &quot;blue&quot;]" in text
        assert "with petal_cm" in client.get(address, {"column": "no", "of": "no"}).content.decode()
