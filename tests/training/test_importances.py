"""Permutation importance: begun for the winner, on demand for others, scored here."""

import io

import numpy as np
import polars as pl
import pytest

from accounts.errors import Conflict
from organizations.models import Role
from organizations.quotas import QuotaReached
from tests.training import make
from training import importances, scoring
from training.learned import Importance
from training.models import EnsembleMember, TrainedModel, TrainingJob
from workers.files import store_artifact
from workers.models import Artifact, Task

pytestmark = pytest.mark.django_db
COLUMNS = ["petal_cm", "colour", "weight_g"]


@pytest.fixture
def by():
    return make.member()


@pytest.fixture
def model(by):
    return make.scored_model(by)


def said(job, rows, skill):
    """Probabilities that are right for a share of the rows."""
    truth = scoring.truth_of(job).target[rows]
    right = np.arange(len(rows)) < skill * len(rows)
    codes = np.where(right, truth, (truth + 1) % len(job.classes))
    return np.full((len(rows), len(job.classes)), 0.1) + 0.7 * np.eye(len(job.classes))[codes]


def report(job, skills, change=None, places=None, **told):
    """What a node sends: ``skills`` is how right it is with each column shuffled, each time."""
    node = make.Node()
    task = node.claim()
    assert task.kind == importances.IMPORTANCE
    truth = scoring.truth_of(job)
    rows = truth.sealed if places is None else places
    sets = [[name, repeat] for repeat in range(2) for name in skills]
    shares = [said(job, rows, 1.0)] + [said(job, rows, skills[name][i]) for name, i in sets]
    table = pl.DataFrame(
        {"row": np.tile(rows, len(shares)), "prediction": ["kind 0"] * (len(rows) * len(shares))}
        | {f"p{code}": np.concatenate(shares)[:, code] for code in range(len(job.classes))}
    )
    file = io.BytesIO()
    (table if change is None else change(table)).write_parquet(file)
    file.seek(0)
    stored = store_artifact(job.organization, "predictions", file, task=task)
    data = {"sets": sets, "rows": len(rows), "unseen": True} | told
    node.end(task, result={"data": data, "files": {"predictions": str(stored.pk)}})
    return task


def test_it_begins_by_itself_for_the_winner_and_is_scored_here(model):
    found = Importance.objects.get()
    task = Task.objects.get(kind=importances.IMPORTANCE)
    assert (found.model, found.state) == (model, "running")
    assert (task.engine, task.light, task.priority) == (model.engine, True, -1)
    assert task.payload["split"] == model.job.split
    report(model.job, {"petal_cm": [0.2, 0.4], "colour": [1.0, 1.0]})
    found.refresh_from_db()
    assert (found.state, found.error, found.unseen) == ("succeeded", "", True)
    assert found.rows == len(scoring.truth_of(model.job).sealed)
    by_column = {one["column"]: one["drops"] for one in found.columns}
    assert found.columns[0]["column"] == "petal_cm"
    assert by_column["petal_cm"][0] > by_column["petal_cm"][1] > 0, "log loss rises, more if wrong"
    assert by_column["colour"] == by_column["weight_g"] == [0.0, 0.0], "one was not even given"
    assert found.score == pytest.approx(-np.log(0.8))
    assert not Artifact.objects.filter(task=task).exists(), "the figures are kept, not the files"


def test_it_is_asked_for_once_and_again_only_after_a_failure(by, model):
    found = importances.ask(by, model)
    assert Task.objects.filter(kind=importances.IMPORTANCE).count() == 1
    report(model.job, {"petal_cm": [0.5, 0.5]}, change=lambda table: table.head(3))
    found.refresh_from_db()
    assert (found.state, "same rows" in found.error) == ("failed", True)
    again = importances.ask(by, model)
    assert (again.pk, again.state, again.error) == (found.pk, "running", "")
    report(model.job, {"petal_cm": [0.5, 0.5]})
    assert importances.ask(by, model).state == "succeeded"
    assert Task.objects.filter(kind=importances.IMPORTANCE).count() == 2


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"sets": None}, "did not say"),
        ({"sets": [["petal_cm", 0], ["petal_cm", 0]]}, "something else"),
        ({"rows": 1}, "something else"),
        ({"rows": 10**9}, "something else"),
        ({"rows": "many"}, "did not say"),
    ],
)
def test_what_does_not_fit_is_told_and_not_shown(model, told, why):
    report(model.job, {"petal_cm": [0.5, 0.5]}, **told)
    found = Importance.objects.get()
    assert found.state == "failed"
    assert why in found.error


def test_rows_without_a_target_or_of_nobody_are_refused(model):
    report(model.job, {"petal_cm": [0.5, 0.5]}, places=np.array([3, 4, 5]))  # 4 has no target
    assert "none of this job's" in Importance.objects.get().error


def test_an_ensembles_members_shuffle_alike_and_are_blended(by, model):
    node = make.Node()
    report(model.job, {"petal_cm": [0.5, 0.5]})
    job = make.job(by, model.job.dataset_version)
    race = node.claim()
    first, second = (node.candidate(race, f"pycaret:{name}") for name in ("one", "two"))
    blend = TrainedModel.objects.create(
        organization=by.organization, job=job, key="ensemble", name="Both", engine="ensemble",
        state="scored", score=0.1, order_score=0.1, task=race,
    )  # fmt: skip
    for member, weight in ((first, 0.75), (second, 0.25)):
        EnsembleMember.objects.create(ensemble=blend, model=member, weight=weight)
    found = importances.ask(by, blend)
    report(job, {"petal_cm": [0.0, 0.0], "colour": [1.0, 1.0]})
    found.refresh_from_db()
    assert found.state == "running", "the other member has not answered yet"
    report(job, {"petal_cm": [1.0, 1.0], "colour": [1.0, 1.0]})
    found.refresh_from_db()
    drops = {one["column"]: one["drops"] for one in found.columns}
    weights = {str(first.pk): 0.75, str(second.pk): 0.25}
    asked = Task.objects.filter(subject=found.pk).order_by("started_at")
    wrong = weights[asked[0].payload["member"]]
    right = wrong * 0.1 + (1 - wrong) * 0.8
    assert drops["petal_cm"] == pytest.approx([np.log(0.8) - np.log(right)] * 2)
    assert drops["colour"] == [0.0, 0.0]


def test_without_data_or_hours_there_is_none_and_the_training_succeeds(by):
    by.organization.max_cpu_hours = 0
    job = make.job(by)
    node = make.Node()
    task = node.claim()
    node.candidate(task)
    by.organization.save()
    node.end(task)
    job.refresh_from_db()
    assert (job.state, Importance.objects.count()) == ("succeeded", 0)
    with pytest.raises(QuotaReached):
        importances.ask(by, job.best_model)
    by.organization.max_cpu_hours = None
    by.organization.save()
    TrainingJob.objects.update(dataset_version=None)
    with pytest.raises(Conflict, match="data set is gone"):
        importances.ask(by, TrainedModel.objects.get(pk=job.best_model_id))


def test_the_page_shows_it_when_it_is_there(by, model, client):
    client.force_login(by.user)
    page = f"/models/{model.pk}"
    text = client.get(page).content.decode()
    assert f'hx-get="{page}/importance"' in text
    report(model.job, {"petal_cm": [0.2, 0.4], "colour": [1.0, 1.0]})
    for address in (page, f"{page}/importance"):
        text = client.get(address).content.decode()
        assert "&#x27;petal_cm&#x27; matters most" in text
        assert 'data-chart="drops" data-values="{&quot;rows' in text
        assert f'hx-get="{page}/importance"' not in text


def test_of_another_model_it_is_computed_when_somebody_asks(by, client):
    make.job(by)
    node = make.Node()
    task = node.claim()
    best, other = (node.candidate(task, f"pycaret:{n}", skill=s) for n, s in (("a", 1), ("b", 0.5)))
    node.end(task)
    assert Importance.objects.get().model == best
    viewer = make.member(Role.VIEWER, organization=by.organization)
    api = f"/api/results/model/{other.pk}/importance"
    client.force_login(viewer.user)
    answer = client.get(api)
    assert (answer.status_code, answer.json()["code"]) == (409, "not-made")
    assert client.post(api).status_code == 403
    assert "Compute it" not in client.get(f"/models/{other.pk}").content.decode()
    client.force_login(by.user)
    assert "Compute it" in client.get(f"/models/{other.pk}").content.decode()
    asked = client.post(f"/models/{other.pk}/importance/ask")
    assert asked["Location"] == f"/models/{other.pk}"
    assert client.post(api).json()["state"] == "running"
    report(best.job, {"petal_cm": [0.2, 0.4]})  # what is asked for goes before what nobody awaits
    told = client.get(api).json()
    assert (told["state"], told["metric"]) == ("succeeded", "log_loss")
    assert told["columns"][0]["column"] == "petal_cm"
    assert len(told["columns"][0]["drops"]) == 2
