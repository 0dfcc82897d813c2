"""Predictions: rows are asked of a node over its socket, files become tasks."""

import csv
import io

import pytest
from asgiref.sync import async_to_sync
from django.core.files.uploadedfile import SimpleUploadedFile

from accounts.errors import Conflict, Invalid, NotFound, Unavailable
from organizations.quotas import QuotaReached
from tests.factories import WorkerFactory
from tests.training import make
from training import actions, serving
from training.models import BatchPrediction, TrainedModel
from workers.files import store_artifact
from workers.models import Artifact, Worker

pytestmark = pytest.mark.django_db
ROW = {"petal_cm": 2.0, "colour": "red", "weight_g": "51.5"}


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
        "classes": ["kind 0", "kind 1", "kind 2"],
        "ms": {"model": 1.0, "node": 2.0},
    }
    return serving_node


def read(response) -> bytes:
    async def collect():
        return b"".join([piece async for piece in response.streaming_content])

    return async_to_sync(collect)()


# Rows


def test_an_organization_waits_for_only_so_many_answers_at_once(model, node, monkeypatch):
    other = make.scored_model(make.member())
    real, deep, told = serving.ask_node, [], []

    def slow(*question):
        """While each question waits for its answer, the next one is asked."""
        if len(deep) < serving.MOST_AT_ONCE:
            deep.append(1)
            try:
                actions.predict(model, ROW)
            except serving.Busy as refusal:
                told.append(refusal)
                told.append(actions.predict(other, ROW).predictions)
        return real(*question)

    monkeypatch.setattr(serving, "ask_node", slow)
    assert actions.predict(model, ROW).predictions == ["kind 1"]
    refusal, others = told
    assert len(deep) == serving.MOST_AT_ONCE
    assert (refusal.status, refusal.extra) == (429, {"retry_after_s": 1})
    assert others == ["kind 1"], "another organization's are answered meanwhile"
    assert actions.predict(model, ROW).predictions == ["kind 1"], "they wait no more"


def test_too_many_at_once_are_told_when_to_come_again(by, model, node, client, monkeypatch):
    client.force_login(by.user)
    monkeypatch.setattr(serving, "MOST_AT_ONCE", 0)
    address = f"/api/results/model/{model.pk}/predict"
    answer = client.post(address, {"rows": [ROW]}, content_type="application/json")
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1"), answer.content
    assert answer.json()["code"] == "too-many-predictions"


def test_a_row_is_asked_of_the_node_in_the_models_order(model, node):
    answer = actions.predict(model, dict(reversed(ROW.items())))
    assert answer.predictions == ["kind 1"]
    assert answer.by_class == [{"kind 0": 0.1, "kind 1": 0.7, "kind 2": 0.2}]
    assert node.asked == [
        {
            "path": "/predict",
            "model": {
                "artifact": str(model.artifact_id),
                "sha256": model.artifact.sha256,
                "signature": model.artifact.signature,
                "engine": "pycaret",
                "organization": str(model.organization_id),
            },
            "columns": ["petal_cm", "colour", "weight_g"],
            "rows": [[2.0, "red", 51.5]],
        }
    ]


def test_a_refit_answers_with_its_own_files(by, serving_node):
    version = make.version(by, make.flowers(400))
    make.job(by, version, refit=True, split={"validation": 0.25})
    node = make.Node(WorkerFactory(address=serving_node.address))
    task = node.claim()
    origin = node.candidate(task)
    node.end(task)
    twin = node.refit(node.claim())
    actions.predict(twin, ROW)
    asked = serving_node.asked[-1]["model"]
    assert asked["artifact"] == str(twin.artifact_id) != str(origin.artifact_id)
    assert asked["sha256"] == twin.artifact.sha256 != origin.artifact.sha256


def test_a_connection_is_kept(model, node):
    for _ in range(3):
        actions.predict(model, ROW)
    assert (len(node.asked), node.connections) == (3, 1)


def test_a_kept_connection_that_the_node_closed_is_replaced(model, node):
    actions.predict(model, ROW)
    node.close_after_answer = True
    actions.predict(model, ROW)
    actions.predict(model, ROW)
    assert len(node.asked) == 3
    assert node.connections >= 2


def test_rows_that_do_not_fit_never_reach_the_node(model, node):
    with pytest.raises(Invalid) as refused:
        actions.predict(model, [ROW, ROW | {"petal_cm": "long", "petals": 3}])
    assert list(refused.value.errors) == ["rows[1].petals", "rows[1].petal_cm"]
    assert node.asked == []


def test_what_the_model_refuses_names_the_column(model, node):
    node.status = 422
    node.answer = {
        "detail": "Column 'colour' is wrong.", "code": "wrong_type", "columns": {"colour": "Wrong."}
    }  # fmt: skip
    with pytest.raises(Invalid) as refused:
        actions.predict(model, ROW)
    assert (refused.value.code, refused.value.errors) == ("wrong-type", {"colour": ["Wrong."]})


def test_without_a_live_node_of_the_engine_it_says_so(model, node):
    make.age_node(Worker.objects.get())
    with pytest.raises(Unavailable, match="No node with engine pycaret is online"):
        actions.predict(model, ROW)
    Worker.objects.update(last_seen_at="2999-01-01T00:00:00Z", capabilities={"engines": ["x"]})
    with pytest.raises(Unavailable, match="No node with engine pycaret is online"):
        actions.predict(model, ROW)


def test_another_node_answers_when_one_cannot(model, node, tmp_path):
    for name in "abc":
        WorkerFactory(address=f"unix:{tmp_path}/gone-{name}.sock")
    assert actions.predict(model, ROW).predictions == ["kind 1"]


def test_when_none_can_it_says_what_each_said(model, node):
    node.status, node.answer = 503, {"detail": "The engine cannot run here."}
    with pytest.raises(Unavailable, match="The engine cannot run here") as refused:
        actions.predict(model, ROW)
    assert refused.value.status == 503
    node.status, node.answer = 422, {"detail": "Bad signature.", "code": "not-trusted"}
    with pytest.raises(Unavailable, match="Bad signature"):
        actions.predict(model, ROW)


def test_a_node_that_does_not_answer_is_given_up(model, node, monkeypatch):
    monkeypatch.setattr(serving, "ANSWER_S", 0.05)
    node.shutdown()
    with pytest.raises(Unavailable, match="no answer within"):
        actions.predict(model, ROW)


def test_a_model_stays_with_one_node_while_it_lives(model, node):
    for _ in range(4):
        WorkerFactory(address="unix:/nowhere")
    first = serving.nodes_for("pycaret", model)[0]
    assert all(serving.nodes_for("pycaret", model)[0] == first for _ in range(3))
    make.age_node(first)
    serving._nodes.clear()  # as a second does
    assert first not in serving.nodes_for("pycaret", model)


def test_an_invalid_model_cannot_predict(by):
    make.job(by)
    node = make.Node()
    model = node.candidate(node.claim(), change=lambda table: table.head(2))
    with pytest.raises(Conflict, match="missing"):
        actions.predict(model, ROW)
    assert actions.download(model)["Content-Type"] == "application/zip"


# Files


def upload(name="rows.csv", content=b"petal_cm,colour,weight_g\n1,red,2\n"):
    return SimpleUploadedFile(name, content)


def test_a_file_becomes_a_light_task_and_two_results(by, model):
    batch = actions.predict_file(by, model, upload())
    task = batch.task
    assert (task.kind, task.engine, task.light) == ("training.predict_file", "pycaret", True)
    assert task.inputs == {"model": str(model.artifact_id), "data": str(batch.upload_id)}
    node = make.Node()
    claimed = node.claim()
    assert claimed == task
    batch.refresh_from_db()
    assert batch.state == "running"
    files = {
        name: str(
            store_artifact(by.organization, f"p.{name}", io.BytesIO(b"a,b\n1,2\n"), task=task).pk
        )
        for name in ("csv", "parquet")
    }
    node.end(claimed, result={"data": {"rows": 1}, "files": files})
    batch.refresh_from_db()
    assert (batch.state, batch.rows, batch.upload) == ("succeeded", 1, None)
    response = actions.download_result(batch)
    assert 'filename="rows-predicted.csv"' in response["Content-Disposition"]
    assert list(csv.reader(io.StringIO(read(response).decode()))) == [["a", "b"], ["1", "2"]]
    assert (
        "rows-predicted.parquet" in actions.download_result(batch, "parquet")["Content-Disposition"]
    )
    with pytest.raises(Invalid, match="no format"):
        actions.download_result(batch, "xlsx")


def test_a_file_that_fails_says_why_and_the_upload_goes(by, model):
    batch = actions.predict_file(by, model, upload())
    stored = batch.upload_id
    with pytest.raises(Conflict, match="queued"):
        actions.download_result(batch)
    node = make.Node()
    node.end(node.claim(), "failed", error="Column 'colour' is missing.", fault="work")
    batch.refresh_from_db()
    assert (batch.state, batch.error) == ("failed", "Column 'colour' is missing.")
    assert not Artifact.objects.filter(pk=stored).exists()


def test_a_node_that_sends_no_result_fails_the_prediction(by, model):
    batch = actions.predict_file(by, model, upload())
    node = make.Node()
    node.end(node.claim())
    batch.refresh_from_db()
    assert (batch.state, batch.error) == ("failed", "The node sent no result.")


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("rows.xlsx", b"x", Invalid),
        ("rows.csv", b"", Invalid),
        ("rows.csv", b"x" * 99, QuotaReached),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_and_not_kept(
    by, model, settings, name, content, error
):
    settings.MAX_UPLOAD_SIZE_MB = 50 / 2**20
    before = Artifact.objects.count()
    with pytest.raises(error):
        actions.predict_file(by, model, upload(name, content))
    assert Artifact.objects.count() == before
    assert not BatchPrediction.objects.exists()


def test_a_file_past_the_limit_is_stopped_and_told_so_on_the_page_and_in_the_api(
    client, by, model, settings
):
    settings.MAX_UPLOAD_SIZE_MB = 50 / 2**20
    client.force_login(by.user)
    answer = client.post(
        f"/api/results/model/{model.pk}/predict", {"file": upload("r.csv", b"x" * 99)}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
    page = client.post(f"/models/{model.pk}/predict-file", {"file": upload("r.csv", b"x" * 99)})
    assert (page.status_code, "larger than this installation takes" in page.content.decode()) == (
        422,
        True,
    )
    assert not BatchPrediction.objects.exists()


# Downloads


def test_a_model_is_downloaded_under_a_good_name(model):
    response = actions.download(model)
    assert f'filename="flowers-tree-{str(model.pk)[:8]}.zip"' in response["Content-Disposition"]
    assert read(response) == b"pycaret:tree"


def test_a_model_whose_files_are_gone_says_so(model):
    TrainedModel.objects.filter(pk=model.pk).update(state="invalid", artifact=None)
    with pytest.raises(NotFound, match="gone"):
        actions.download(TrainedModel.objects.get(pk=model.pk))
