"""Trainings on pictures and questions about one: what the job API takes, and what nodes get."""

import base64
import html
import io
import json
import re
from functools import partial

import numpy as np
import polars as pl
import pytest
from django.core.cache import cache
from django.core.files.uploadedfile import SimpleUploadedFile
from PIL import Image

from tests.factories import WorkerFactory
from tests.training import make
from training import general, rows
from training.jobrequests import JobRequest
from workers.models import Task

pytestmark = pytest.mark.django_db


def picture(shade: int) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(target, "PNG")
    return target.getvalue()


FILES = [picture(row) for row in range(60)]
PETS = pl.DataFrame(
    {"image": FILES, "label": ["cat" if row % 2 else "dog" for row in range(60)]},
    schema={"image": pl.Binary, "label": pl.String},
)


@pytest.fixture
def by():
    return make.member()


@pytest.fixture
def api(client, by):
    client.force_login(by.user)

    def ask(address, body, form=False):
        kind = {} if form else {"content_type": "application/json"}
        answer = client.post(f"/api/jobs{address}", body, **kind)
        return answer.status_code, answer.json()

    return ask


@pytest.fixture
def node(serving_node):
    serving_node.answer = {
        "predictions": ["cat"],
        "probabilities": [[0.75, 0.25]],
        "classes": ["cat", "dog"],
        "ms": {"model": 1.0},
    }
    made = make.Node(
        WorkerFactory(
            concurrency=8,
            address=serving_node.address,
            queues=["priority", "tensorflow.cpu", "cpu"],
            capabilities={"cpu": 64, "ram_mib": 800_000, "engines": ["tensorflow"], "gpus": []},
        )
    )
    made.serving = serving_node
    yield made
    cache.clear()


@pytest.fixture
def asks_control(monkeypatch):
    """What is hastened is answered at once."""
    monkeypatch.setattr(general, "hasten", lambda pk: general.answer(pk))


def trained(api, node, **more):
    status, told = api("/training", {"model_type": "mobilenet", "dataset": "pets", **more})
    assert (status, told["engine"]) == (202, "tensorflow"), told
    return told


@pytest.fixture
def model(by, api, node):
    make.version(by, PETS, name="pets")
    told = trained(api, node)
    task = node.claim()
    node.candidate(task, "tensorflow:mobilenet", params={"started_from": "random weights"})
    node.end(task)
    asked = JobRequest.objects.get(pk=told["job_id"])
    return str(asked.training.best_model_id)


def test_a_picture_model_goes_to_its_engine_with_the_pictures_alone(by, api, node):
    make.version(by, PETS.with_columns(size=np.arange(60)), name="pets")
    given = {"epochs": 3, "size": 64, "width": 0.25}
    trained(api, node, hyperparameters=given)
    task = Task.objects.get()
    assert task.payload["model"] == "mobilenet"
    assert task.payload["hyperparameters"] == given
    assert [(one["name"], one["role"]) for one in task.payload["columns"]] == [("image", "image")]
    assert task.payload["target"] == "label"
    for wrong, says in [({"witdh": 1}, "Did you mean 'width'"), ({"size": 8}, "from 32 to 512")]:
        wish = {"model_type": "mobilenet", "dataset": "pets", "hyperparameters": wrong}
        status, told = api("/training", wish)
        assert (status, says in told["detail"]) == (400, True), told


def test_a_race_on_pictures_is_run_by_the_engines_that_see(client, by, api, node):
    version = make.version(by, PETS, name="pets")
    wish = {"dataset": str(version.dataset_id), "target": "label", "preset": "quick"}
    start = partial(client.post, "/api/training/start", content_type="application/json")
    for engines, says in [
        (["sklearn", "torch"], "'sklearn' learns"),
        (["flaml", "pycaret"], "'flaml', 'pycaret' learn "),
    ]:
        refused = start(wish | {"engines": engines})
        (told,) = refused.json()["errors"]["engines"]
        assert refused.status_code == 400
        assert says in told
        assert told.endswith("Use: tensorflow, torch.")
    assert not Task.objects.exists()
    assert start(wish | {"engines": "all"}).status_code == 202
    assert start(wish | {"engines": ["torch", "tensorflow"]}).status_code == 202
    asked = sorted((task.engine, task.payload["model"]) for task in Task.objects.all())
    usual = [("tensorflow", "mobilenet"), ("torch", "resnet")]
    assert asked == sorted([usual[0], *usual]), "the node has no torch"
    splits = [task.payload["split"] for task in Task.objects.all()]
    assert not any(split.get("folds") for split in splits), "a fit for each would take long"
    page = client.get(f"/training/new?dataset={version.dataset_id}").content.decode()
    offered = re.findall(r'name="engines" value="(.*?)"', page)
    assert offered == ["all", "tensorflow", "torch"]


def test_a_number_can_not_be_learnt_from_pictures(client, by, api, node):
    version = make.version(by, PETS.with_columns(label=np.arange(60) / 7), name="pets")
    wish = {"dataset": str(version.dataset_id), "target": "label"}
    refused = client.post("/api/training/start", wish, content_type="application/json")
    assert "Choose a target of classes" in refused.json()["errors"]["engines"][0]


def test_a_picture_is_asked_about_in_every_way_that_it_may_come(
    api, node, model, asks_control, settings, tmp_path, django_capture_on_commit_callbacks
):
    (tmp_path / "one.png").write_bytes(FILES[7])
    settings.DATA_ROOTS = [str(tmp_path)]
    text = base64.b64encode(FILES[7]).decode()
    ways = [
        text,
        f"data:image/png;base64,{text}",
        {"image": text},
        {"dataset": "pets", "row": 7},
        {"image_path": "one.png"},
    ]
    for way in ways:
        cache.clear()
        with django_capture_on_commit_callbacks(execute=True):
            _, told = api("/inference", {"model_id": model, "input_data": way})
        asked = JobRequest.objects.get(pk=told["job_id"])
        assert asked.result, (way, asked.state, asked.error)
        assert asked.result["answers"] == [{"prediction": "cat", "confidence": 0.75}], told
        assert node.serving.asked[-1]["columns"] == ["image"]
        assert node.serving.asked[-1]["rows"] == [[text]]
        assert len(json.dumps(asked.request)) < 200  # the picture is not kept


def test_an_uploaded_picture_with_parameters(
    api, node, model, asks_control, django_capture_on_commit_callbacks
):
    form = {
        "model_id": model,
        "image": SimpleUploadedFile("pet.png", FILES[9]),
        "parameters": json.dumps({"top_k": 1, "confidence_threshold": 0.9}),
    }
    with django_capture_on_commit_callbacks(execute=True):
        _, told = api("/inference", form, form=True)
    asked = JobRequest.objects.get(pk=told["job_id"])
    assert node.serving.asked[-1]["rows"] == [[base64.b64encode(FILES[9]).decode()]]
    (answer,) = asked.result["answers"]
    assert answer["prediction"] is None  # not sure enough
    assert answer["top"] == [{"class": "cat", "probability": 0.75}]


@pytest.mark.parametrize(
    ("given", "status", "says"),
    [
        ("no base64 of anything!", 400, "base64"),
        (base64.b64encode(b"GET / HTTP/1.1").decode(), 400, "holds no picture"),
        ({"image": None}, 400, "takes a picture"),
        ({"dataset": "pets", "row": 60}, 404, "no row 60"),
        ({"dataset": "pets", "row": -1}, 400, "number of a row"),
        ({"dataset": "dogs", "row": 1}, 404, "dogs"),
        ({"image_path": "/etc/passwd"}, 404, "storage root"),
    ],
)
def test_what_is_no_picture_is_told(api, model, given, status, says):
    code, told = api("/inference", {"model_id": model, "input_data": given})
    assert (code, says in told["detail"]) == (status, True), told


def test_a_picture_that_is_too_large_is_refused(api, model, monkeypatch):
    monkeypatch.setattr(rows, "MOST_PICTURE_BYTES", 60)
    code, told = api("/inference", {"model_id": model, "input_data": {"dataset": "pets", "row": 1}})
    assert (code, "at most" in told["detail"]) == (400, True), told


def test_without_input_the_form_is_told_what_it_lacks(api, model):
    code, told = api("/inference", {"model_id": model}, form=True)
    assert (code, list(told["errors"])) == (400, ["input_data"])
    code, told = api("/inference", {"model_id": model, "parameters": "{"}, form=True)
    assert (code, list(told["errors"])) == (400, ["parameters"])


@pytest.mark.parametrize("tab", ["", "?tab=details"])
def test_the_pages_of_a_picture_model_say_what_it_started_from(client, api, model, tab):
    page = client.get(f"/models/{model}{tab}")
    assert page.status_code == 200
    assert "random weights" in page.content.decode()


def test_the_form_of_a_picture_model_takes_a_file_and_shows_what_it_is(client, api, node, model):
    page = client.get(f"/models/{model}?tab=try").content.decode()
    assert re.search(r'<input[^>]*type="file" name="column-0" accept="image/', page)
    assert 'enctype="multipart/form-data"' in page
    assert "Choose a picture" in page
    assert "Why?" not in page, "a picture has no columns to share its answer"
    address = f"/models/{model}/predict"
    form = {"column-0": SimpleUploadedFile("pet.png", FILES[5])}
    page = client.post(address, form).content.decode()
    assert node.serving.asked[-1]["rows"] == [[base64.b64encode(FILES[5]).decode()]]
    assert re.search(r'<p class="big-answer">cat</p>', page)
    assert "75%" in page


def test_what_the_form_of_a_picture_model_can_not_read_is_told_at_its_field(
    client, api, node, model, monkeypatch
):
    address = f"/models/{model}/predict"
    wrong = {
        "takes a picture": {},
        "holds no picture": {"column-0": SimpleUploadedFile("pet.png", b"GET / HTTP/1.1")},
        "MiB at most": {"column-0": SimpleUploadedFile("pet.png", FILES[5] * 2)},
    }
    for says, form in wrong.items():
        most = 60 if says == "MiB at most" else 8 << 20
        monkeypatch.setattr(general, "MOST_PICTURE_BYTES", most)
        answer = client.post(address, form)
        told = re.search(r'id="field-0-errors">(.*?)</span>', answer.content.decode(), re.DOTALL)
        assert answer.status_code == 422
        assert says in told[1]
    assert not node.serving.asked


def test_a_picture_model_is_not_asked_about_its_columns(client, api, node, model):
    assert "Importance of columns" not in client.get(f"/models/{model}").content.decode()
    assert not Task.objects.filter(kind="training.importance").exists(), "nor is the winner"
    for what in ("importance", "explain"):
        row = {"row": {"image": base64.b64encode(FILES[5]).decode()}}
        asked = client.post(f"/api/results/model/{model}/{what}", row, "application/json")
        assert (asked.status_code, asked.json()["code"]) == (409, "no-columns")


def test_the_code_that_a_picture_model_offers_reads_a_file(client, api, model):
    page = html.unescape(client.get(f"/models/{model}?tab=use").content.decode())
    assert f"-F model_id={model} -F image=@picture.jpg" in page
    (code,) = re.findall(r"import base64\n.*?^print\(.*?\)(?=<)", page, re.MULTILINE | re.DOTALL)
    assert 'Path("picture.jpg").read_bytes()' in code
    compile(code, "snippet", "exec")
