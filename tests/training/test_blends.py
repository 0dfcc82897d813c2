"""Ensembles over engines: made at the end of a race, ranked, asked, and refitted."""

import csv
import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import polars as pl
import pytest
from asgiref.sync import async_to_sync
from django.core.files.uploadedfile import SimpleUploadedFile

from accounts.errors import NotFound, Unavailable
from tests.training import make
from training import actions, blends, scoring, serving
from training.models import TrainedModel, TrainingJob
from workers.files import store_artifact
from workers.models import Artifact, Event, Task, Worker

pytestmark = pytest.mark.django_db
BOTH = ["pycaret", "other"]


@pytest.fixture
def by():
    return make.member()


@pytest.fixture
def node(monkeypatch):
    """An installation with two engines, and a node that has both."""
    info = actions.catalog.EngineInfo("other", "Other", ("binary", "multiclass", "regression"))
    both = {**actions.catalog.engines(), "other": info}
    monkeypatch.setattr(actions.catalog, "engines", lambda: both)
    found = make.Node()
    found.worker.capabilities["engines"] = BOTH
    found.worker.queues = ["priority", "pycaret.cpu", "other.cpu", "cpu"]
    found.worker.save()
    return found


def raced(by, node, *, skills=(0.8, 0.75), n=600, changes=(None, None), **wish):
    """A job of two engines whose tasks have ended, with a model or more of each."""
    wish = {"engines": BOTH, "ensemble": True, "split": {"validation": 0.4, "test": 0.3}} | wish
    job = make.job(by, make.version(by, make.flowers(n)), **wish)
    tasks = sorted((node.claim(), node.claim()), key=lambda task: BOTH.index(task.engine))
    for task, skill, change in zip(tasks, skills, changes, strict=True):
        node.candidate(task, f"{task.engine}:tree", skill=skill, change=change)
    for task in tasks:
        node.end(task)
    job.refresh_from_db()
    return job


def the_ensemble(job):
    return job.models.get(engine="ensemble", state="scored")


@pytest.mark.parametrize("target", ["kind", "weight_g"])
def test_models_of_two_engines_are_blended_into_a_candidate_that_ranks(by, node, target):
    job = raced(by, node, target=target)
    model = the_ensemble(job)
    assert (job.state, job.best_model) == ("succeeded", model)
    assert model.name == "Ensemble of 2 models"
    singles = job.models.exclude(engine="ensemble")
    assert model.score < min(one.score for one in singles), "log loss or RMSE"
    assert model.scored_rows == singles[0].scored_rows
    assert {part.model.engine for part in model.parts()} == set(BOTH)
    assert sum(part.weight for part in model.parts()) == pytest.approx(1)
    assert model.test["rows"] == len(scoring.truth_of(job).sealed)
    assert set(model.test["curves"]) == set(model.curves) != set()
    board = [(m.rank, m.engine) for m in TrainedModel.objects.leaderboard(job.pk)]
    assert board[0] == (1, "ensemble")
    assert len(board) == 3
    told = Event.objects.filter(stream=job.topic, type="leaderboard").last().data
    assert (told["model"], told["best"]) == (str(model.pk), True)


def test_its_ranking_score_does_not_come_from_weights_that_saw_the_row(by, node):
    job = raced(by, node)
    model = the_ensemble(job)
    truth = scoring.truth_of(job)
    kept = scoring.read_predictions(model.predictions, job, most_rows=600)
    said = {}
    for part in model.parts():
        one = scoring.read_predictions(part.model.predictions, job, most_rows=600)
        said[part.model_id] = one.probabilities[np.argsort(one.rows)], np.sort(one.rows)
    final = sum(part.weight * said[part.model_id][0] for part in model.parts())
    rows = next(iter(said.values()))[1]
    sealed = np.isin(rows, truth.sealed)
    mine = kept.probabilities[np.argsort(kept.rows)]
    assert np.allclose(mine[sealed], final[sealed]), "what is asked later is what was sealed"
    assert not np.allclose(mine[~sealed], final[~sealed])


def test_a_blend_that_beats_every_model_is_the_best_though_its_stricter_score_is_not(
    by, node, monkeypatch
):
    def strict(stack, loss_on, folds):
        return np.tile(np.eye(len(stack))[-1], (blends.ensemble.FOLDS, 1))  # the worst alone

    monkeypatch.setattr(blends.ensemble, "select_by_fold", strict)
    job = raced(by, node)
    model = the_ensemble(job)
    assert job.best_model == model
    assert actions.rank_of(model) > 1
    assert any("though others have a better score" in n["message"] for n in job.notices)
    assert model.test is not None, "its honest figure"
    last = Event.objects.filter(stream=job.topic, type="leaderboard").last().data
    assert (last["model"], last["best"]) == (str(model.pk), True)


def test_a_blend_that_is_no_better_is_not_made_and_the_job_says_so(by, node):
    job = raced(by, node, skills=(1.0, 0.3))
    assert not job.models.filter(engine="ensemble").exists()
    assert job.best_model.engine == "pycaret"
    assert any("no blend was better than Tree alone" in n["message"] for n in job.notices)


def test_models_without_probabilities_take_no_part(by, node):
    def mute(table):
        return table.select("row", "prediction")

    job = raced(by, node, changes=(None, mute), metric="accuracy")
    assert (job.state, job.models.count()) == ("succeeded", 2)
    assert any("only one engine's models" in n["message"] for n in job.notices)


@pytest.mark.parametrize("wish", [{"ensemble": False}, {"engines": ["pycaret"]}])
def test_there_is_none_where_none_is_wanted_or_one_engine_raced(by, node, wish):
    if wish.get("engines"):
        job = make.job(by, ensemble=True)
        task = node.claim()
        for key in ("pycaret:a", "pycaret:b"):
            node.candidate(task, key, skill=0.8)
        node.end(task)
        job.refresh_from_db()
    else:
        job = raced(by, node, **wish)
    assert not job.models.filter(engine="ensemble").exists()
    assert not any("ensemble" in n["message"] for n in job.notices)


def test_a_fault_while_blending_is_a_notice_and_never_the_jobs_failure(by, node, monkeypatch):
    def broken(*args):
        raise MemoryError

    monkeypatch.setattr(blends.ensemble, "select", broken)
    job = raced(by, node)
    assert (job.state, job.best_model.engine) == ("succeeded", "pycaret")
    assert any("could not make one (MemoryError)" in n["message"] for n in job.notices)


def test_weights_are_chosen_within_bounds_of_memory(by, node, monkeypatch):
    monkeypatch.setattr(blends, "MOST_ROWS", 50)
    monkeypatch.setattr(blends, "MOST_CELLS", 300)  # two models of 50 rows and 3 classes
    sizes = []
    select = blends.ensemble.select

    def noting(stack, loss):
        sizes.append(stack.shape)
        return select(stack, loss)

    monkeypatch.setattr(blends.ensemble, "select", noting)
    job = raced(by, node)
    assert sizes[0] == (2, 50, 3)
    assert the_ensemble(job).scored_rows > 50, "it is scored on all rows"


def test_every_engine_has_a_model_in_the_choice_however_it_ranks(by, node):
    job = raced(by, node)
    first, *_ = job.models.filter(engine="pycaret")
    other, *_ = job.models.filter(engine="other")
    library = [first] * 30 + [other]
    assert other in blends._spread(library, 4)


# Asking


@pytest.fixture
def asked(by, node, serving_node):
    job = raced(by, node)
    Worker.objects.update(address=serving_node.address)
    return the_ensemble(job), serving_node


ROW = {"petal_cm": 1.0, "colour": "red", "weight_g": 50.0}


def test_each_member_is_asked_by_its_own_engine_and_the_answers_are_blended(asked):
    model, server = asked
    classes = model.job.classes
    server.answer = {
        "predictions": [classes[0]], "probabilities": [[0.2, 0.5, 0.3]], "classes": classes,
        "ms": {"node": 2.0},
    }  # fmt: skip
    answer = actions.predict(model, [ROW])
    assert answer.predictions == [classes[1]], "the likeliest, whatever a member would say"
    assert np.allclose(answer.probabilities, [[0.2, 0.5, 0.3]])
    assert answer.ms == {"node": 2.0}
    wanted = {(part.model.engine, str(part.model.artifact_id)) for part in model.parts()}
    assert {(a["model"]["engine"], a["model"]["artifact"]) for a in server.asked} == wanted
    assert all(a["rows"] == [[1.0, "red", 50.0]] for a in server.asked)


def test_a_missing_engine_is_named(asked):
    model, _ = asked
    Worker.objects.update(capabilities={"engines": ["pycaret"]})
    serving._nodes.clear()
    with pytest.raises(Unavailable, match="No node with engine other is online"):
        actions.predict(model, [ROW])


def test_asking_again_costs_no_query(asked, django_assert_num_queries):
    model, server = asked
    classes = model.job.classes
    server.answer = {"predictions": ["x"], "probabilities": [[1, 0, 0]], "classes": classes}
    found = serving.servable(model.organization, model.pk)
    actions.predict(found, [ROW])
    with django_assert_num_queries(0):
        actions.predict(serving.servable(model.organization, model.pk), [ROW])


# Files


def answered(node, task, shares):
    """End a task of a file with the answers of one member, as its node would send them."""
    job = TrainedModel.objects.get(pk=task.payload["model"]).job
    names = [f"probability_{name}" for name in job.classes]
    codes = np.argmax(shares, axis=1)
    table = pl.DataFrame(
        {"note": ["=1+1", "-3", None], "prediction": [job.classes[code] for code in codes]}
        | {name: shares[:, code] for code, name in enumerate(names)}
    )
    files = {}
    for name in ("csv", "parquet"):
        file = io.BytesIO()
        table.write_csv(file) if name == "csv" else table.write_parquet(file)
        file.seek(0)
        files[name] = str(store_artifact(job.organization, name, file, task=task).pk)
    data = {"rows": 3, "columns": ["prediction", *names]}
    return node.end(task, result={"data": data, "files": files})


@pytest.fixture
def batch(by, node):
    model = the_ensemble(raced(by, node))
    upload = SimpleUploadedFile("rows.csv", b"note\n=1+1\n-3\n\n")
    return actions.predict_file(by, model, upload)


def test_a_file_is_a_task_per_member_and_the_answers_are_blended(batch, node, monkeypatch):
    monkeypatch.setattr(blends, "ROWS_AT_ONCE", 2)
    tasks = [node.claim(), node.claim()]
    assert {task.engine for task in tasks} == set(BOTH)
    weights = {str(part.model_id): part.weight for part in batch.model.parts()}
    shares = [np.array([[1, 0, 0], [0, 1, 0], [0.2, 0.2, 0.6]]), np.eye(3)[[1, 1, 2]]]
    answered(node, tasks[0], shares[0])
    batch.refresh_from_db()
    assert batch.state == "running", "the other member is not done"
    answered(node, tasks[1], shares[1])
    batch.refresh_from_db()
    assert (batch.state, batch.rows, batch.upload) == ("succeeded", 3, None)
    expected = sum(
        weights[task.payload["model"]] * one for task, one in zip(tasks, shares, strict=True)
    )
    got = pl.read_parquet(batch.parquet.file.path)
    assert got.columns == ["note", "prediction", *(f"probability_kind {i}" for i in range(3))]
    assert np.allclose(got[:, 2:].to_numpy(), expected)
    classes = batch.model.job.classes
    assert got["prediction"].to_list() == [classes[code] for code in expected.argmax(axis=1)]
    assert got["note"].to_list() == ["=1+1", "-3", None]
    text = batch.csv.file.read().decode()
    assert "'=1+1" in text, "no spreadsheet runs it"
    assert "\n-3," in text, "a number stays one"
    kept = Artifact.objects.filter(task__in=[task.pk for task in tasks])
    assert set(kept) == {batch.csv, batch.parquet}, "what members answered is not kept"


def test_one_member_that_fails_ends_the_file_and_the_others_work(batch, node):
    task, other = node.claim(), batch.tasks.last()
    node.end(task, "failed", error="Column 'x' is missing.", fault="work")
    batch.refresh_from_db()
    assert (batch.state, batch.error) == ("failed", "Column 'x' is missing.")
    for one in batch.tasks:
        node.react(one)
    other.refresh_from_db()
    assert other.state == "cancelled"
    batch.refresh_from_db()
    assert batch.state == "failed"


# Taking it along

PREDICT = """
import csv, sys
with open(sys.argv[1], newline="") as rows, open(sys.argv[3], "w", newline="") as out:
    writer = csv.writer(out)
    writer.writerow(["prediction", *(f"probability_kind {i}" for i in range(3))])
    for _ in list(rows)[1:]:
        writer.writerow(["x", *SHARES])
"""


def test_a_download_holds_every_member_and_blends_their_answers(by, node, tmp_path):
    model = the_ensemble(raced(by, node))
    shares = {"pycaret": [0.5, 0.5, 0.0], "other": [0.0, 0.75, 0.25]}
    for part in model.parts():
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            script = PREDICT.replace("SHARES", repr(shares[part.model.engine]))
            archive.writestr("predict.py", script)
        with part.model.artifact.file.storage.open(part.model.artifact.file.name, "wb") as stored:
            stored.write(file.getvalue())
    pieces = async_to_sync(collect)(actions.download(model))
    zipfile.ZipFile(io.BytesIO(pieces)).extractall(tmp_path)
    told = json.loads((tmp_path / "ensemble.json").read_text())
    weights = {one["engine"]: one["weight"] for one in told["members"]}
    assert weights == {part.model.engine: part.weight for part in model.parts()}
    rows = tmp_path / "rows.csv"
    rows.write_text("note\na\nb\n")
    run = [sys.executable, tmp_path / "blend.py", rows]
    early = subprocess.run(run, capture_output=True, text=True, check=False)
    assert "--install" in early.stderr, "there are no virtualenvs yet"
    for one in told["members"]:
        venv = tmp_path / one["file"].removesuffix(".zip") / "venv" / "bin"
        venv.mkdir(parents=True)
        (venv / "python").symlink_to(sys.executable)
    subprocess.run(run, check=True, capture_output=True)
    head, *lines = csv.reader((tmp_path / "rows.predictions.csv").open())
    assert head[0] == "prediction"
    assert [line[0] for line in lines] == ["kind 1", "kind 1"]
    expected = sum(weights[engine] * np.array(one) for engine, one in shares.items())
    assert np.allclose([float(cell) for cell in lines[0][1:]], expected)


async def collect(response):
    return b"".join([piece async for piece in response.streaming_content])


def test_a_download_without_a_members_files_is_refused(by, node):
    model = the_ensemble(raced(by, node))
    model.parts()[0].model.artifact = None
    with pytest.raises(NotFound, match="files of this model are gone"):
        actions.download(model)


# Refit


def refitted(by, node, **wish):
    job = raced(by, node, refit=True, **wish)
    return job, [node.claim(), node.claim()]


def test_the_members_of_a_winner_are_fitted_again_and_blended_as_before(by, node):
    job, tasks = refitted(by, node)
    model = the_ensemble(job)
    assert (job.state, job.best_model, model.test) == ("running", model, None)
    assert {task.inputs["model"] for task in tasks} == {
        str(part.model.artifact_id) for part in model.parts()
    }
    assert [task.kind for task in tasks] == ["training.refit"] * 2
    node.refit(tasks[0], skill=0.97)
    job.refresh_from_db()
    assert job.state == "running"
    node.refit(tasks[1], skill=0.97)
    job.refresh_from_db()
    twin = job.best_model
    assert (job.state, twin.state, twin.origin) == ("succeeded", "refitted", model)
    assert twin.test["score"] < twin.origin.test["score"]
    weights = [{p.model.engine: p.weight for p in one.parts()} for one in (twin, model)]
    assert weights[0] == weights[1]
    assert all(part.model.state == "refitted" for part in twin.parts())
    assert job.models.filter(state="refitted").count() == 3


def test_a_member_that_cannot_be_fitted_again_leaves_the_ensemble_as_it_was(by, node):
    job, tasks = refitted(by, node)
    node.refit(tasks[0], skill=0.97)
    node.end(tasks[1], "failed", error="No memory.", fault="work")
    job.refresh_from_db()
    assert (job.state, job.best_model) == ("succeeded", the_ensemble(job))
    assert "No memory." in job.notices[-1]["message"]


def test_an_organizations_end_takes_its_ensembles(by, node):
    from training import reactions

    job = raced(by, node)
    reactions._purge(by.organization)
    assert not TrainedModel.objects.filter(job=job.pk).exists()
    assert not TrainingJob.objects.exists()
    assert Task.objects.exists()


def test_a_weight_is_a_share(by, node):
    from django.db import IntegrityError, transaction

    part = the_ensemble(raced(by, node)).parts()[0]
    with pytest.raises(IntegrityError), transaction.atomic():
        type(part).objects.filter(pk=part.pk).update(weight=0)
