"""Experiments: what their text may say, who changes them, and what trains by them."""

import itertools
from typing import Any

import polars as pl
import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from organizations.models import AuditEntry, Membership, Role
from pipelines import experimenting, experiments, tasks
from pipelines.models import Experiment, Pipeline, Step
from tests.pipelines import make as piping
from tests.pipelines.test_api import Api
from tests.training import make
from training.models import TrainingJob
from workers.models import Task

DB = pytest.mark.django_db


# --- The text ------------------------------------------------------------------------------------


def test_the_text_to_begin_with_is_a_good_one() -> None:
    config = experiments.check(experiments.TEMPLATE)
    assert (config["engine"], config["model"], config["target"]) == ("fuxictr", "deepfm", "clicked")
    assert config["features"] == {"categorical": ["user", "item"], "numeric": ["price"]}
    assert config["hyperparameters"]["embedding_regularizer"] == 1e-6
    assert config["hyperparameters"]["hidden_units"] == [128, 64]
    # As FuXiCTR's own files have them.
    assert experiments.check("model: DLRM\ntarget: y\nlearning_rate: 1.e-3")["hyperparameters"] == {
        "learning_rate": 0.001
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ["'model: DeepFM'"]),
        ("- model", ["Line 1: Give settings"]),
        ("model: DeepFM\ntarget: [", ["Line 2: This is no YAML"]),
        ("model: DeepFM\n\0", ["This is no YAML"]),
        ("[" * 3000 + "]" * 3000, ["nested too deeply"]),
        ("a: &x [1]\nb: *x", ["Line 1: Write it out: no anchors"]),
        ("target: y", ["Say which model", "DeepFM, DCN, DLRM"]),
        ("model: DeepFM", ["Say which column to predict"]),
        ("model: DeepFN\ntarget: y", ["Line 1: fuxictr has no model 'DeepFN'", "'deepfm'?"]),
        ("engine: sklern\nmodel: x\ntarget: y", ["Line 1: There is no engine", "'sklearn'"]),
        ("model: !!python/name:os.system\ntarget: y", ["Line 1: fuxictr has no model"]),
        (
            "model: DCN\ntarget: y\nlearning_rte: 0.1\nmetrc: auc",
            ["Line 3: There is no setting 'learning_rte' of DCN. Did you mean 'learning_rate'?",
             "Line 4: There is no setting 'metrc' of DCN. Did you mean 'metric'?"],
        ),
        ("model: DCN\ntarget: y\nepochs: 0", ["Line 3: epochs: ", "from 1 to 1000, not 0"]),
        ("model: DCN\ntarget: y\nepochs: many", ["Line 3: epochs: It is a whole number"]),
        ("model: DCN\ntarget: y\nbottom_units: [8]", ["Line 3: There is no setting"]),
        ("model: DCN\ntarget: y\ntarget: z", ["Line 3: 'target' is there twice: first in line 2"]),
        ("model: DCN\ntarget: y\nmetric: aucc", ["Line 3: There is no metric 'aucc'"]),
        ("model: DCN\ntarget: y\nmetric: rmse", ["Line 3: DCN is not ranked by 'rmse'"]),
        ("model: DCN\ntarget: y\nseed: -1\ntime_budget: 1", ["Line 3: Give", "Line 4: Give"]),
        ("model: DCN\ntarget: y\nfeatures: [a]", ["Line 3: Give lists of columns"]),
        ("model: DCN\ntarget: y\nfeatures: {numerc: [a]}", ["Did you mean 'numeric'?"]),
        ("model: DCN\ntarget: y\nfeatures:\n  numeric: [a]\n  categorical: [a]",
         ["Line 5: 'a' is numeric already"]),
        ("model: DCN\ntarget: y\nfeatures: {}", ["Name one column at least"]),
        ("model: DCN\ntarget: y\nfeatures: {numeric: a}\nexclude: [b]", ["Line 4: With"]),
        ("model: DCN\ntarget: y\ndropout: {a: 1}", ["Line 3: Give a value or a list"]),
        ("x" * 20_001, ["at most 20,000"]),
    ],
    ids=itertools.count(),
)  # fmt: skip
def test_every_mistake_is_told_with_its_line_and_the_nearest_name(
    text: str, told: list[str]
) -> None:
    with pytest.raises(experiments.Refused) as refusal:
        experiments.check(text)
    said = str(refusal.value)
    for sentence in told:
        assert sentence in said, said


def test_any_engine_with_models_by_name_can_be_meant() -> None:
    text = "engine: sklearn\nmodel: ridge\ntarget: price\nalpha: 2\nmetric: rmse\nexclude: [id, 1]"
    config = experiments.check(text)
    assert config["hyperparameters"] == {"alpha": 2}
    # A column's name is what was written, also where YAML would see a number.
    assert config["exclude"] == ["id", "1"]


def test_features_leave_out_what_they_do_not_name() -> None:
    config = experiments.check(piping.CONFIG + "seed: 7\ntime_budget: 60\n")
    wish = experiments.wish(config, ["clicked", "user", "item", "day"])
    assert wish == {
        "target": "clicked",
        "exclude": ["day"],
        "column_types": {"user": "categorical", "item": "categorical"},
        "split": {"seed": 7},
        "time_budget": 60,
    }
    with pytest.raises(experiments.Refused, match=r"no column 'item'\. Did you mean 'items'"):
        experiments.wish(config, ["clicked", "user", "items"])


# --- By the API ----------------------------------------------------------------------------------


@pytest.fixture
def by() -> Membership:
    return make.member()


@pytest.fixture
def api(by: Membership) -> Api:
    return Api(by)


@DB
def test_each_change_is_a_version_and_is_told(api: Api, by: Membership) -> None:
    made = api("post", "experiments", {"name": "clicks", "config": piping.CONFIG}, 201)
    assert (made["version"], made["settings"]["model"]) == (1, "deepfm")
    path = f"experiments/{made['id']}"
    text = piping.CONFIG.replace("DeepFM", "DLRM")
    changed = api("patch", path, {"config": text, "name": "clicks 2"})
    assert (changed["version"], changed["name"], changed["config"]) == (2, "clicks 2", text)
    assert api("patch", path, {"config": text})["version"] == 2, "the same is no new version"
    rows = api("get", f"{path}/versions")["results"]
    assert [(row["number"], row["settings"]["model"]) for row in rows] == [
        (2, "dlrm"), (1, "deepfm"),
    ]  # fmt: skip
    assert rows[1]["config"] == piping.CONFIG
    errors = api("patch", path, {"config": "model: DeepFN\ntarget: y\nepohs: 3"}, 400)["errors"]
    assert [one[:6] for one in errors["config"]] == ["Line 1"]
    assert api("get", path)["version"] == 2
    api("post", "experiments", {"name": "clicks 2", "config": piping.CONFIG}, 409)
    api("delete", path, status=204)
    told = AuditEntry.objects.filter(verb__startswith="experiment.").values_list("verb", flat=True)
    assert sorted(told) == ["experiment.changed", "experiment.deleted", "experiment.made"]


@DB
def test_a_list_asks_once_however_long_it_is(api: Api, by: Membership) -> None:
    piping.experiment(by)
    api("get", "experiments")
    with CaptureQueriesContext(connection) as few:
        api("get", "experiments")
    for _ in range(3):
        piping.experiment(by)
    with CaptureQueriesContext(connection) as many:
        assert api("get", "experiments")["count"] == 4
    assert len(many) == len(few)


# --- Training by one -----------------------------------------------------------------------------


def clicks(rows: int = 400) -> pl.DataFrame:
    users = [f"u{n % 20}" for n in range(rows)]
    return pl.DataFrame(
        {
            "user": users,
            "item": [f"i{n % 7}" for n in range(rows)],
            "day": [n % 30 for n in range(rows)],
            "clicked": [(n % 20 + n % 7) % 2 == 0 for n in range(rows)],
        }
    )


def trains(by: Membership, experiment: Experiment) -> Step:
    """A run whose only stage trains by it; begun."""
    params = {"data": "clicks", "experiment": experiment.name}
    stages = [{"key": "train", "stage": "train", "params": params}]
    run = piping.run(by, stages)
    run.move_to(run.State.RUNNING)
    tasks.sweep()
    return run.steps.get()


@DB
def test_a_stage_trains_what_its_experiment_says_and_a_run_keeps_what_it_was(
    by: Membership,
) -> None:
    make.version(by, clicks(), name="clicks")
    experiment = piping.experiment(by, config=piping.CONFIG + "metric: log_loss\nseed: 3\n")
    step = trains(by, experiment)
    job = TrainingJob.objects.get(pk=step.output["job"])
    assert (job.target, job.metric, job.seed, job.engines) == (
        "clicked",
        "log_loss",
        3,
        ["fuxictr"],
    )
    assert {one["name"]: one["role"] for one in job.columns} == {
        "user": "categorical", "item": "categorical",
    }  # fmt: skip
    (task,) = Task.objects.filter(subject=job.pk)
    assert (task.engine, task.payload["model"]) == ("fuxictr", "deepfm")
    assert task.payload["hyperparameters"] == {"embedding_dim": 8}
    assert step.output["by"] == f"{experiment.name}, version 1"
    # The same text is the same work; another one is other work.
    again = trains(by, experiment)
    assert again.inputs_digest == step.inputs_digest
    changed = piping.CONFIG.replace("embedding_dim: 8", "embedding_dim: 4")
    experimenting.change(by, experiment, config=changed)
    assert trains(by, experiment).inputs_digest != step.inputs_digest


@DB
def test_data_without_the_columns_of_an_experiment_fail_by_name(by: Membership) -> None:
    make.version(by, clicks().rename({"item": "items"}), name="clicks")
    step = trains(by, piping.experiment(by))
    assert step.state == Step.State.FAILED
    assert "no column 'item'. Did you mean 'items'?" in step.error


@DB
def test_a_pipeline_names_an_experiment_that_is_there_and_nothing_beside_it(
    api: Api, by: Membership
) -> None:
    experiment = piping.experiment(by, "clicks")

    def sent(**params: Any) -> dict[str, Any]:
        stage = {"key": "t", "stage": "train", "params": {"data": "clicks", **params}}
        return {"name": "by clicks", "definition": {"stages": [stage]}}

    for params, place in (
        ({"experiment": "click"}, "experiment"),
        ({"experiment": "clicks", "target": "y"}, "target"),
        ({}, "target"),
    ):
        errors = api("post", "pipelines", sent(**params), 400)["errors"]
        assert list(errors) == [f"stages[0].params.{place}"]
    api("post", "pipelines", sent(experiment="clicks"), 201)
    api("delete", f"experiments/{experiment.pk}", status=409)
    errors = api("patch", f"experiments/{experiment.pk}", {"name": "other"}, 409)["errors"]
    assert "by clicks" in errors["name"][0]
    Pipeline.objects.get().delete()
    api("delete", f"experiments/{experiment.pk}", status=204)


@DB
def test_the_six_stages_take_the_id_of_an_experiment(api: Api, by: Membership) -> None:
    piping.connection(by, "house")
    experiment = piping.experiment(by)
    body = {"name": "daily", "experiment_id": str(experiment.pk), **piping.SIX}
    told = api("post", "workflow/tasks", body, 202)
    assert [step["name"] for step in told["steps"]][2] == "train"
    stages = {one["key"]: one for one in Pipeline.objects.get().version.definition["stages"]}
    assert stages["train"]["params"] == {"data": "$data_fetch", "experiment": str(experiment.pk)}
    stranger = make.member()
    piping.connection(stranger, "house")
    assert "experiment_id" in Api(stranger)("post", "workflow/tasks", body, 404)["errors"]


# --- On pages ------------------------------------------------------------------------------------


@DB
def test_an_experiment_is_written_mended_and_looked_back_at_on_its_page(by: Membership) -> None:
    client = Client()
    client.force_login(by.user)
    assert "No experiments yet" in client.get("/experiments").content.decode()
    form = client.get("/experiments/new").content.decode()
    assert "model: DeepFM" in form
    assert "embedding_dim" in form
    wrong = client.post(
        "/experiments/new", {"name": "clicks", "config": "model: DeepFN\ntarget: y"}
    )
    assert wrong.status_code == 400
    page = wrong.content.decode()
    assert "Line 1: fuxictr has no model" in page
    assert "target: y</textarea>" in page, "what was typed is still there"
    made = client.post("/experiments/new", {"name": "clicks", "config": piping.CONFIG})
    assert made.status_code == 302
    text = piping.CONFIG.replace("DeepFM", "DCN")
    sent = {"name": "clicks", "config": text.replace("\n", "\r\n")}
    assert client.post(f"{made.url}/change", sent).status_code == 302
    page = client.get(made.url).content.decode()
    assert "model: DCN" in page
    assert "version 2" in page
    assert "model: DeepFM" in client.get(made.url, {"version": 1}).content.decode()
    assert client.get(made.url, {"version": 9}).status_code == 404
    assert "clicks" in client.get("/experiments").content.decode()
    assert Experiment.objects.get().version.text == text
    viewer = make.member(Role.VIEWER, organization=by.organization)
    client.force_login(viewer.user)
    assert "readonly" in client.get(made.url).content.decode()
