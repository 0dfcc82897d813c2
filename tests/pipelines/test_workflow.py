"""The six stages in one request."""

import io
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from organizations.models import Membership
from pipelines import tasks
from pipelines.models import Pipeline
from tests.datasets.nodes import ingest_next
from tests.pipelines import make as piping
from tests.pipelines.test_api import Api
from tests.training import make
from workers.files import store_artifact
from workers.models import Task

pytestmark = pytest.mark.django_db


@pytest.fixture
def by() -> Membership:
    return make.member()


@pytest.fixture
def api(by: Membership) -> Api:
    return Api(by)


@pytest.fixture
def body(by: Membership) -> dict[str, Any]:
    piping.connection(by, "house")
    return {
        "name": "daily",
        "experiment_id": str(make.scored_model(by).job_id),
        "sample_sql": "SELECT * FROM flowers",
        "infer_sql": "SELECT * FROM flowers LIMIT 20",
        "hive_table": "predictions",
    }


def status_of(told: Any) -> dict[str, str]:
    return {step["name"]: step["status"] for step in told["steps"]}


def queried(node: make.Node, table: pl.DataFrame) -> Task:
    """A node does the query that waits longest."""
    task = node.claim()
    assert task.kind == "pipeline.sql"
    file = io.BytesIO()
    table.write_parquet(file)
    file.seek(0)
    data = store_artifact(task.organization, "data", file, task=task)
    result = {"data": {"rows": len(table)}, "files": {"data": str(data.pk)}}
    return node.end(task, result=result)


def test_a_task_goes_through_its_steps(api: Api, body: dict[str, Any], tmp_path: Path) -> None:
    told = api("post", "workflow/tasks", body, 202)
    assert (told["status"], told["current_step"]) == ("running", 0)
    assert set(status_of(told).values()) == {"pending"}
    path = f"workflow/tasks/{told['task_id']}"
    tasks.sweep()
    assert status_of(api("get", path))["data_fetch"] == "running"
    node = make.Node()
    for _ in range(2):
        task = queried(node, make.flowers())
        assert task.payload["tables"] == {"flowers": "table0"}
        assert "secrets" not in str(task.payload)
    tasks.sweep()
    told = api("get", path)
    assert (told["current_step"], status_of(told)["data_upload"]) == (1, "running")
    for _ in range(2):
        ingest_next(tmp_path)
    tasks.sweep()
    told = api("get", path)
    assert (told["current_step"], status_of(told)["train"]) == (2, "running")
    task = node.claim()
    assert task.payload["target"] == "kind"
    node.end(task, "failed", error="Too little memory.", fault="work")
    tasks.sweep()
    told = api("get", path)
    assert (told["status"], told["current_step"]) == ("failed", 2)
    assert told["steps"][2]["error"] == "Too little memory."
    assert status_of(told)["infer"] == "pending"


def test_the_same_name_again_is_the_same_pipeline(api: Api, body: dict[str, Any], by: Any) -> None:
    first = api("post", "workflow/tasks", body, 202)
    second = api("post", "workflow/tasks", body | {"hive_table": "other"}, 202)
    assert (second["number"], second["status"]) == (2, "pending")
    assert second["pipeline_id"] == first["pipeline_id"]
    assert Pipeline.objects.get().versions.count() == 2
    piping.pipeline(by, piping.TRAINS, "taken")
    errors = api("post", "workflow/tasks", body | {"name": "taken"}, 409)["errors"]
    assert list(errors) == ["name"]
    with CaptureQueriesContext(connection) as few:
        assert api("get", "workflow/tasks")["count"] == 2
    for _ in range(3):
        api("post", "workflow/tasks", body, 202)
    with CaptureQueriesContext(connection) as many:
        api("get", "workflow/tasks")
    assert len(many) == len(few)


def test_what_can_not_be_is_refused(api: Api, body: dict[str, Any], by: Membership) -> None:
    errors = api("post", "workflow/tasks", body | {"hdfs_path": "/tmp/x"}, 400)["errors"]
    assert list(errors) == ["hdfs_path"]
    stranger = Api(make.member())
    assert "experiment_id" in stranger("post", "workflow/tasks", body, 404)["errors"]
    piping.connection(by, "second")
    errors = api("post", "workflow/tasks", body, 400)["errors"]
    assert list(errors) == ["connection"]
    api("post", "workflow/tasks", body | {"connection": "second"}, 202)


SCRIPTS = {"train_command": "sh train.sh", "infer_command": "sh infer.sh"}


def test_programs_of_a_machine_train_and_score(api: Api, body: dict[str, Any], by: Any) -> None:
    piping.connection(by, "gpu", kind="ssh", settings={"host": "gpu.example.org", "port": 22})
    del body["experiment_id"]
    told = api("post", "workflow/tasks", body | SCRIPTS | {"machine": "gpu"}, 202)
    assert list(status_of(told)) == [
        "data_fetch", "data_upload", "train", "infer", "result_download", "hive_upload",
    ]  # fmt: skip
    stages = {one["key"]: one for one in Pipeline.objects.get().version.definition["stages"]}
    assert stages["data_upload"]["params"]["path"] == "workflow/daily/sample.csv"
    assert stages["train"]["params"]["command"] == "sh train.sh"
    # What an earlier run has left there is not taken for the result of this one.
    assert stages["infer"]["params"]["command"] == "rm -f -- result.csv\nsh infer.sh"
    assert stages["hive_upload"]["params"]["data"] == "$result_download"
    tasks.sweep()
    assert status_of(api("get", f"workflow/tasks/{told['task_id']}"))["data_fetch"] == "running"


def test_files_of_a_training_within_flowml_can_be_kept_at_a_place(
    api: Api, body: dict[str, Any], by: Any
) -> None:
    piping.connection(by, "share", kind="local", settings={"folder": "/srv/share"})
    api("post", "workflow/tasks", body | {"machine": "share", "hdfs_path": "/runs/7"}, 202)
    stages = {one["key"]: one for one in Pipeline.objects.get().version.definition["stages"]}
    assert stages["train"]["params"]["data"] == "$data_upload"
    assert stages["result_download"]["params"] == {
        "connection": "share", "data": "$infer", "path": "runs/7/result.csv",
    }  # fmt: skip
    assert stages["hive_upload"]["params"]["data"] == "$result_download"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"hdfs_path": "x"}, "hdfs_path"),
        ({"machine": "gpu", "hdfs_path": "../x"}, "hdfs_path"),
        ({"machine": "gpu", "train_command": "x"}, "infer_command"),
        ({"machine": "house"} | SCRIPTS, "machine"),
        (SCRIPTS, "machine"),
        ({"machine": "gpu", "result_file": "../x"} | SCRIPTS, "result_file"),
        ({"machine": "gpu", "experiment_id": None}, "experiment_id"),
    ],
)
def test_what_does_not_go_together_is_refused_by_field(
    api: Api, body: dict[str, Any], by: Any, change: dict[str, Any], field: str
) -> None:
    piping.connection(by, "gpu", kind="ssh", settings={"host": "gpu.example.org", "port": 22})
    sent = {key: value for key, value in (body | change).items() if value is not None}
    assert list(api("post", "workflow/tasks", sent, 400)["errors"]) == [field]
