"""The general job API: training by kind of model, inference, and the files it may name."""

import io
import os

import polars as pl
import pytest
from django.core.cache import cache
from django.db import connection
from django.test.utils import CaptureQueriesContext

from datasets.models import Dataset, DatasetVersion
from organizations import service
from organizations.models import Role
from organizations.quotas import QuotaReached
from tests.factories import WorkerFactory
from tests.training import make
from training import general, named, roots
from training.jobrequests import JobRequest
from workers.files import store_artifact
from workers.models import Task

pytestmark = pytest.mark.django_db
ROW = {"petal_cm": 2.0, "colour": "red", "weight_g": 51.5}
KIND = {"model_type": "random_forest", "dataset": "flowers", "target": "kind"}


@pytest.fixture
def by():
    return make.member()


@pytest.fixture
def api(client, by):
    client.force_login(by.user)

    def ask(method, address, body=None, **headers):
        kind = {} if method == "get" else {"content_type": "application/json"}
        answer = getattr(client, method)(f"/api/jobs{address}", body, headers=headers, **kind)
        return answer.status_code, answer.json()

    return ask


@pytest.fixture
def node(serving_node):
    serving_node.answer = {
        "predictions": ["kind 1"],
        "probabilities": [[0.1, 0.7, 0.2]],
        "classes": ["kind 0", "kind 1", "kind 2"],
        "ms": {"model": 1.0},
    }
    made = make.Node(
        WorkerFactory(
            concurrency=8,
            address=serving_node.address,
            queues=["priority", "sklearn.cpu", "pycaret.cpu", "cpu"],
            capabilities={
                "cpu": 64, "ram_mib": 800_000, "engines": ["sklearn", "pycaret"], "gpus": []
            },
        )
    )  # fmt: skip
    made.serving = serving_node
    yield made
    cache.clear()


@pytest.fixture
def model(by, node):
    found = make.scored_model(by)
    named.give_name(by, "tree", found)
    return found


@pytest.fixture
def control(monkeypatch):
    """Control, which answers at once."""
    monkeypatch.setattr(general, "hasten", general.answer)


# Training


def test_a_training_goes_to_the_engine_of_its_kind(by, api, node):
    make.version(by)
    wish = KIND | {"hyperparameters": {"n_estimators": 20}, "description": "A forest"}
    status, told = api("post", "/training", wish)
    assert (status, told["status"], told["engine"]) == (202, "queued", "sklearn"), told
    task = node.claim()
    assert (task.payload["model"], task.payload["hyperparameters"]) == (
        "random_forest",
        {"n_estimators": 20},
    )
    assert api("get", f"/{told['job_id']}/status")[1]["status"] == "running"
    found = node.candidate(task, "sklearn:random_forest")
    node.end(task)
    ended = api("get", f"/{told['job_id']}/status")[1]
    assert (ended["status"], ended["model_id"], ended["progress"]) == (
        "succeeded",
        str(found.pk),
        1.0,
    )
    assert api("get", "?kind=training")[1]["results"][0]["description"] == "A forest"


def test_a_text_classifier_learns_from_texts_alone(by, api):
    said = [f"the picture number {row} was {'good' if row % 3 else 'bad'}" for row in range(60)]
    kinds = [f"kind {row % 3}" for row in range(60)]
    table = pl.DataFrame({"said": said, "size": list(range(60)), "kind": kinds})
    make.version(by, table)
    wish = {"model_type": "bert", "hyperparameters": {"epochs": 3, "max_length": 32}}
    status, told = api("post", "/training", KIND | wish)
    assert (status, told["engine"]) == (202, "torch"), told
    payload = Task.objects.get().payload
    assert [(one["name"], one["role"]) for one in payload["columns"]] == [("said", "text")]
    assert payload["split"].get("folds") is None
    assert payload["hyperparameters"] == wish["hyperparameters"]
    for given, says in [({"epoch": 3}, "Did you mean 'epochs'"), ({"max_length": 4}, "from 8 to")]:
        status, told = api("post", "/training", KIND | wish | {"hyperparameters": given})
        assert (status, says in told["detail"]) == (400, True), told
    status, told = api("post", "/training", KIND | {"model_type": "bert", "target": "said"})
    assert status == 400


@pytest.mark.parametrize(
    ("wish", "field", "says"),
    [
        ({"model_type": "random_forrest"}, "model_type", "Did you mean 'random_forest'"),
        ({"framework_override": "pytorch-2.1"}, "framework_override", "Use one of: sklearn"),
        ({"framework_override": "sklearn-1.5"}, "framework_override", "sklearn-1.4"),
        ({"requires_gpu": True}, "requires_gpu", "CPUs alone"),
        ({"hyperparameters": {"n_estimator": 5}}, None, "Did you mean 'n_estimators'"),
        ({"hyperparameters": {"n_estimators": 0}}, None, "from 1 to 5000"),
        ({"target": ""}, "target", "Name the column"),
        ({"data_path": "flowers"}, "dataset", "one of them"),
        ({"dataset": ""}, "dataset", "one of them"),
    ],
)
def test_what_nobody_does_is_refused_with_what_there_is(by, api, wish, field, says):
    make.version(by)
    status, told = api("post", "/training", KIND | wish)
    assert (status, says in told["detail"]) == (400, True), told
    assert field is None or field in told["errors"]
    assert not Task.objects.exists()


def test_a_version_of_a_framework_waits_for_a_node_that_has_it(by, api):
    make.version(by)
    status, told = api("post", "/training", KIND | {"framework_override": "sklearn-1.4"})
    assert (status, told["engine"]) == (202, "sklearn-1.4")
    assert Task.objects.get().queue == "sklearn-1.4.cpu"


def test_a_column_called_target_is_meant_where_none_is_named(by, api):
    make.version(by, make.flowers().rename({"kind": "Label"}))
    assert api("post", "/training", KIND | {"target": ""})[0] == 202


# Files under storage roots


@pytest.fixture
def root(tmp_path, settings):
    folder = tmp_path / "allowed"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "flowers.csv").write_text(make.flowers().write_csv())
    settings.DATA_ROOTS = [str(tmp_path / "missing"), str(folder)]
    return folder


def test_a_file_under_a_root_is_read_before_it_is_trained_on(by, api, root, node):
    wish = {**KIND, "dataset": "", "data_path": "deep/flowers.csv"}
    status, told = api("post", "/training", wish)
    assert (status, told["status"], told["training_job"]) == (202, "queued", None)
    ready(by)
    general.go_on(JobRequest.objects.get().reading_id)
    told = api("get", f"/{told['job_id']}/status")[1]
    assert told["training_job"] is not None
    general.go_on(JobRequest.objects.get().reading_id)
    assert Task.objects.filter(kind="training.train").count() == 1, "once"
    # The second time the data set is there already.
    assert api("post", "/training", wish | {"data_path": "flowers.csv"})[1]["training_job"]


def ready(by):
    """What a node does with the file."""
    read = make.version(by)
    made = DatasetVersion.objects.exclude(pk=read.pk).get()
    fields = {"state": "ready", "columns": read.columns, "rows": read.rows, "data": read.data}
    DatasetVersion.objects.filter(pk=made.pk).update(**fields)
    Dataset.objects.filter(pk=made.dataset_id).update(latest=made, state="ready")
    Dataset.objects.filter(pk=read.dataset_id).update(name="another")


def test_a_file_that_cannot_be_read_fails_the_job_with_the_reason(by, api, root):
    api("post", "/training", {**KIND, "dataset": "", "data_path": "deep/flowers.csv"})
    DatasetVersion.objects.update(state="failed", error={"message": "It is no table."})
    general.sweep()
    told = api("get", "")[1]["results"][0]
    assert (told["status"], "It is no table." in told["error"]) == ("failed", True)


@pytest.mark.parametrize(
    "path",
    [
        "../secret.csv", "deep/../../secret.csv", "/etc/passwd", "link.csv", "folder/secret.csv",
        "deep", "", ".", "nothing.csv", "deep/flowers.csv\0", ".hidden.csv", "pipe", "//etc/passwd",
        "~/secret.csv", "allowed2/secret.csv",
    ],
)  # fmt: skip
def test_nothing_outside_a_root_is_opened(tmp_path, root, by, path):
    outside = tmp_path / "secret.csv"
    outside.write_text("a\n1\n")
    (tmp_path / "allowed2").mkdir()
    (tmp_path / "allowed2" / "secret.csv").write_text("a\n1\n")
    (root / ".hidden.csv").write_text("a\n1\n")
    (root / "link.csv").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    os.mkfifo(root / "pipe")
    assert roots.open_file(path, [str(root)], by.organization_id) is None


def test_what_lies_inside_is_opened_by_any_name_for_it(root, by):
    (root / "inside.csv").symlink_to(root / "deep" / "flowers.csv")
    for path in ("deep/flowers.csv", str(root / "deep" / "flowers.csv"), "inside.csv"):
        file = roots.open_file(path, [str(root)], by.organization_id)
        assert file is not None, path
        file.close()


def test_a_root_may_be_an_organizations_own(tmp_path, by):
    own = tmp_path / str(by.organization_id)
    own.mkdir()
    (own / "t.csv").write_text("a\n1\n")
    pattern = [f"{tmp_path}/{roots.ORGANIZATION}"]
    assert roots.open_file("t.csv", pattern, by.organization_id)
    stranger = make.member().organization_id
    assert roots.open_file("t.csv", pattern, stranger) is None
    assert roots.open_file(f"../{by.organization_id}/t.csv", pattern, stranger) is None


def test_without_roots_no_file_is_there(by, api, settings, root):
    settings.DATA_ROOTS = []
    wish = {**KIND, "dataset": "", "data_path": str(root / "deep" / "flowers.csv")}
    status, told = api("post", "/training", wish)
    assert (status, "storage root" in told["detail"]) == (404, True)


# Inference


def test_rows_are_answered_and_the_same_question_again_from_memory(by, api, model, node, control):
    wish = {"model_id": "tree", "input_data": ROW, "parameters": {"top_k": 2}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("django.db.transaction.on_commit", lambda act: act())
        first = api("post", "/inference", wish, Prefer="wait=5")
    assert first[0] == 200, first
    answer = first[1]["result"]["answers"][0]
    assert (answer["prediction"], answer["confidence"]) == ("kind 1", 0.7)
    assert [one["class"] for one in answer["top"]] == ["kind 1", "kind 2"]
    assert first[1]["cached"] is False
    again = api("post", "/inference", wish | {"model_id": str(model.pk)})
    assert (again[0], again[1]["cached"]) == (200, True)
    assert again[1]["result"] == first[1]["result"]
    other = api("post", "/inference", wish | {"parameters": {"top_k": 1}})
    assert (other[0], other[1]["status"]) == (202, "queued")
    assert len(node.serving.asked) == 1


def test_without_time_to_wait_it_is_202_and_control_answers(by, api, model, node):
    status, told = api("post", "/inference", {"model_id": "tree", "input_data": [ROW, ROW]})
    assert (status, told["status"], told["result"]) == (202, "queued", None)
    general.answer(JobRequest.objects.get().pk)
    told = api("get", f"/{told['job_id']}/status")[1]
    assert (told["status"], told["engine"]) == ("succeeded", "pycaret")
    general.answer(JobRequest.objects.get().pk)
    assert len(node.serving.asked) == 1, "once"


def test_nobody_to_ask_fails_it_with_a_sentence(by, api, model, node):
    api("post", "/inference", {"model_id": "tree", "input_data": ROW})
    make.age_node(node.worker)
    for other in Task.objects.all():
        if other.worker:
            make.age_node(other.worker)
    from workers.models import Worker

    Worker.objects.update(capabilities={"engines": []})
    general.answer(JobRequest.objects.get().pk)
    told = api("get", "")[1]["results"][0]
    assert (told["status"], "No node" in told["error"]) == ("failed", True)


def test_csv_text_is_rows(by, api, model, node):
    text = "petal_cm,colour,weight_g\n2.0,red,51.5\n,blue,50\n"
    for given in (text, {"csv": text}):
        assert api("post", "/inference", {"model_id": "tree", "input_data": given})[0] == 202
        asked = JobRequest.objects.order_by("-created_at").first()
        assert asked.request["rows"] == [[2.0, "red", 51.5], [None, "blue", 50.0]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"parameters": {"topk": 2}}, "Did you mean 'top_k'"),
        ({"parameters": {"top_k": 0}}, "from 1 to 200"),
        ({"parameters": {"temperature": 0}}, "from 0.01"),
        ({"parameters": {"confidence_threshold": 2}}, "from 0 to 1"),
        ({"parameters": {"probability": "yes"}}, "true or false"),
        ({"parameters": {"max_length": 10}}, "takes no 'max_length'"),
        ({"input_data": {"petal_cm": 1}}, "is missing"),
        ({"input_data": "a,b\n1\n"}, "as many values"),
        ({"input_data": 3}, "Send a row"),
        ({"input_data": {"text": "a flower"}}, "several columns"),
        ({"input_data": []}, "at least"),
        ({"input_data": {"dataset": "flowers"}, "parameters": {"top_k": 1}}, "leave the param"),
    ],
)
def test_what_the_model_does_not_take_is_told(by, api, model, change, says):
    wish = {"model_id": "tree", "input_data": ROW} | change
    status, told = api("post", "/inference", wish)
    assert (status, says.lower() in str(told).lower()) == (400, True), told
    assert not JobRequest.objects.exists()


def test_a_whole_data_set_becomes_a_new_one(by, api, model, node):
    kept = Dataset.objects.get().latest.data
    status, told = api("post", "/inference", {"model_id": "tree", "input_data": {
        "dataset": "flowers"
    }})  # fmt: skip
    assert (status, told["status"]) == (202, "queued"), told
    task = node.claim()
    files = {}
    for name in ("csv", "parquet"):
        made = store_artifact(by.organization, name, io.BytesIO(b"x"), task=task)
        files[name] = str(made.pk)
    node.end(task, result={"data": {"rows": 150}, "files": files})
    told = api("get", f"/{told['job_id']}/status")[1]
    assert (told["status"], told["output"]["name"]) == ("succeeded", "flowers-predicted.parquet")
    kept.refresh_from_db()
    assert kept.file.storage.exists(kept.file.name), "the data set's own rows stay"
    general.sweep()
    assert Dataset.objects.count() == 2


def test_a_list_of_jobs_asks_no_more_questions_the_longer_it_is(by, api, model, node):
    def ask():
        api("post", "/inference", {"model_id": "tree", "input_data": ROW})
        api("post", "/training", KIND)

    ask()
    api("get", "")
    with CaptureQueriesContext(connection) as few:
        api("get", "")
    for _ in range(3):
        ask()
    with CaptureQueriesContext(connection) as many:
        assert api("get", "")[1]["count"] == 8
    assert len(many) == len(few)


def test_quotas_hold_for_these_jobs_too(by, monkeypatch):
    make.version(by)
    by.organization.max_queued_jobs = 0
    by.organization.save()
    with pytest.raises(QuotaReached):
        general.train(by, **KIND)
    assert not JobRequest.objects.exists()


def test_a_token_for_one_model_asks_it_and_sees_its_own_answers(client, node):
    admin = make.member(Role.ADMIN)
    version = make.version(admin)
    mine, other = make.scored_model(admin, of=version), make.scored_model(admin, of=version)
    foreign = general.infer(admin, model_id=str(other.pk), input_data=ROW)
    secret = service.make(admin, name="one", actions="predict", model=mine.pk)[1]

    def ask(method, address, body=None):
        kind = {"content_type": "application/json"} if method == "post" else {}
        headers = {"Authorization": f"Bearer {secret}"}
        return getattr(client, method)(f"/api/jobs{address}", body, headers=headers, **kind)

    asked = ask("post", "/inference", {"model_id": str(mine.pk), "input_data": ROW})
    assert asked.status_code == 202, asked.content
    assert ask("get", f"/{asked.json()['job_id']}/status").status_code == 200
    wish = {"model_id": str(other.pk), "input_data": ROW}
    assert ask("post", "/inference", wish).status_code == 403
    assert ask("get", f"/{foreign.pk}/status").status_code == 404
    assert ask("get", "").status_code == 403
    assert ask("post", "/training", KIND).status_code == 403
