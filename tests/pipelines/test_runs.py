"""Runs as control drives them, with a node that is done by hand."""

import io
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl
import pytest
from django.core import mail
from django.utils import timezone

from accounts.errors import Conflict, Invalid
from datasets.models import Dataset, DatasetVersion
from organizations.models import Membership
from pipelines import actions, driving, tasks
from pipelines.models import Pipeline, Run, Step
from tests.clusters import make as deploying
from tests.datasets.nodes import ingest_next
from tests.pipelines import make as piping
from tests.training import make
from training import named
from training.models import TrainedModel, TrainingJob
from training.names import NamedAlias
from workers.files import store_artifact
from workers.models import Event, Task
from workers.tasks import handle_end

pytestmark = pytest.mark.django_db

TRAIN = {
    "key": "train",
    "stage": "train",
    "params": {"data": "flowers", "target": "kind", "engines": ["pycaret"], "refit": False},
}
PROMOTE = {"key": "promote", "stage": "promote", "params": {"model": "$train", "name": "kinds"}}
SCORE = {
    "key": "score",
    "stage": "score",
    "params": {"model": "$promote", "data": "flowers", "dataset": "scored"},
}


@pytest.fixture
def by() -> Membership:
    return make.member()


@pytest.fixture
def node() -> make.Node:
    return make.Node()


def begun(by: Membership, *stages: dict[str, Any], **more: Any) -> Run:
    home = actions.make(by, name="nightly", definition={"stages": list(stages), **more})
    return look(actions.start_run(by, home))


def look(run: Run) -> Run:
    """What control does when it is asked to, or its sweep does."""
    tasks.sweep()
    run.refresh_from_db()
    return run


def states(run: Run) -> dict[str, str]:
    return {step.key: step.state for step in run.steps.order_by("position")}


def step(run: Run, key: str) -> Step:
    return run.steps.get(key=key)


def trained(node: make.Node, run: Run, skill: float = 0.9) -> TrainedModel:
    """A node does the job that the run has started."""
    task = node.claim()
    assert task.kind == "training.train"
    model = node.candidate(task, skill=skill)
    node.end(task)
    look(run)
    return model


def predicted(node: make.Node, run: Run) -> None:
    """A node predicts the file that the run asks for."""
    task = node.claim()
    assert task.kind == "training.predict_file"
    table = make.flowers().with_columns(prediction=pl.lit("kind 1"))
    files = {}
    for name in ("csv", "parquet"):
        file = io.BytesIO()
        table.write_csv(file) if name == "csv" else table.write_parquet(file)
        file.seek(0)
        files[name] = str(store_artifact(task.organization, name, file, task=task).pk)
    node.end(task, result={"data": {"rows": 150}, "files": files})
    look(run)


def test_train_promote_and_score_one_after_the_other(
    by: Membership, node: make.Node, tmp_path: Path
) -> None:
    version = make.version(by)
    run = begun(by, SCORE, PROMOTE, TRAIN)
    assert states(run) == {"score": "pending", "promote": "pending", "train": "running"}
    model = trained(node, run)
    assert states(run) == {"score": "running", "promote": "succeeded", "train": "succeeded"}
    assert step(run, "train").output["model"] == str(model.pk)
    assert step(run, "promote").output["promoted"] is True
    assert named.find(by.organization, "kinds@champion").model == model
    predicted(node, run)
    assert Dataset.objects.get(name="scored").state == "ingesting"
    assert run.state == "running"
    ingest_next(tmp_path)
    look(run)
    assert run.state == "succeeded"
    given = step(run, "score").output
    assert given["rows"] == 150
    scored = Dataset.objects.get(name="scored").latest
    assert scored is not None
    assert str(scored.pk) == given["version"]
    assert "prediction" in scored.column_names
    assert Dataset.objects.get(pk=version.dataset_id).latest == version
    types = list(Event.objects.filter(stream=run.topic).values_list("type", flat=True))
    assert types[0] == "run.running"
    assert types[-1] == "run.succeeded"
    assert types.count("step.running") == 3


def test_what_is_done_and_unchanged_is_not_done_again(
    by: Membership, node: make.Node, tmp_path: Path
) -> None:
    make.version(by)
    run = begun(by, TRAIN, PROMOTE, SCORE)
    trained(node, run)
    predicted(node, run)
    ingest_next(tmp_path)
    look(run)
    again = look(actions.start_run(by, run.pipeline))
    assert again.state == "succeeded"
    assert states(again) == {"train": "skipped", "promote": "succeeded", "score": "skipped"}
    assert step(again, "score").output == step(run, "score").output
    assert "Run 1 did the same" in step(again, "train").skipped_because
    assert TrainingJob.objects.count() == 1
    # Other data are something else.
    dataset = Dataset.objects.get(name="flowers")
    other = make.version(by, make.flowers(seed=8), name="else")
    other.dataset, other.number = dataset, 2
    other.save()
    Dataset.objects.filter(pk=dataset.pk).update(latest=other)
    third = look(actions.start_run(by, run.pipeline))
    assert states(third)["train"] == "running"


def test_a_champion_stays_until_a_better_model_comes(by: Membership, node: make.Node) -> None:
    make.version(by)
    fresh = TRAIN | {"fresh": True}
    first = begun(by, fresh, PROMOTE)
    champion = trained(node, first, skill=0.9)
    worse = look(actions.start_run(by, first.pipeline))
    trained(node, worse, skill=0.5)
    said = step(worse, "promote").output
    assert said["promoted"] is False
    assert "the champion" in said["why"]
    assert said["model"] == str(champion.pk), "what comes after works with the champion"
    assert NamedAlias.objects.get().version.model == champion
    better = look(actions.start_run(by, first.pipeline))
    model = trained(node, better, skill=1.0)
    assert step(better, "promote").output["promoted"] is True
    assert NamedAlias.objects.get().version.model == model


def test_a_failure_is_tried_again_and_then_stops_what_waits_for_it(
    by: Membership, node: make.Node
) -> None:
    make.version(by)
    run = begun(by, TRAIN | {"retries": 1, "backoff_s": 60}, PROMOTE)
    node.end(node.claim(), "failed", error="Too little memory.", fault="work")
    look(run)
    again = step(run, "train")
    assert (again.state, again.retry_count) == ("pending", 1)
    assert again.error == "Too little memory."
    look(run)
    assert step(run, "train").state == "pending", "its time has not come"
    Step.objects.filter(pk=again.pk).update(not_before=timezone.now() - timedelta(seconds=1))
    look(run)
    assert step(run, "train").attempt == 2
    node.end(node.claim(), "failed", error="Too little memory.", fault="work")
    look(run)
    assert states(run) == {"train": "failed", "promote": "not_run"}
    assert run.state == "failed"
    assert run.why == "train: Too little memory."


def test_a_stage_that_can_not_start_says_why(by: Membership) -> None:
    run = begun(by, TRAIN)
    assert run.state == "failed"
    assert "There is no data set 'flowers'" in step(run, "train").error


def test_going_on_from_a_step_leaves_what_is_done(by: Membership, node: make.Node) -> None:
    make.version(by)
    run = begun(by, TRAIN, PROMOTE | {"params": {"model": "$train", "name": "bad name"}})
    trained(node, run)
    assert states(run) == {"train": "succeeded", "promote": "failed"}
    with pytest.raises(Invalid, match="no step 'fly'"):
        actions.retry_run(by, run, "fly")
    look(actions.retry_run(by, run))
    assert states(run) == {"train": "succeeded", "promote": "failed"}
    assert step(run, "promote").attempt == 2
    look(actions.retry_run(by, run, "train"))
    assert states(run) == {"train": "running", "promote": "pending"}
    with pytest.raises(Conflict):
        actions.retry_run(by, run)
    assert TrainingJob.objects.count() == 2


def test_cancelling_ends_the_work_and_the_run(by: Membership, node: make.Node) -> None:
    make.version(by)
    run = begun(by, TRAIN, PROMOTE)
    task = node.claim()
    actions.cancel_run(by, run)
    look(run)
    task.refresh_from_db()
    assert task.cancel_requested_at is not None
    assert states(run) == {"train": "running", "promote": "not_run"}
    node.end(task, "cancelled")
    look(run)
    assert (run.state, states(run)["train"]) == ("cancelled", "cancelled")
    with pytest.raises(Conflict):
        actions.cancel_run(by, run)


def test_control_may_come_twice_or_late(by: Membership, node: make.Node) -> None:
    make.version(by)
    run = begun(by, TRAIN, PROMOTE)
    for _ in range(3):
        driving.advance(run.pk)
    assert TrainingJob.objects.count() == 1
    task = node.claim()
    node.candidate(task)
    node.end(task)
    handle_end(str(task.pk))
    for _ in range(3):
        driving.advance(run.pk)
    run.refresh_from_db()
    assert run.state == "succeeded"
    assert step(run, "promote").attempt == 1


def test_the_end_of_a_job_asks_for_its_run(
    by: Membership, node: make.Node, django_capture_on_commit_callbacks: Any, monkeypatch: Any
) -> None:
    asked: list[Any] = []
    make.version(by)
    run = begun(by, TRAIN)
    monkeypatch.setattr(
        "pipelines.driving.bells.send", lambda name, **how: asked.append((name, how.get("args")))
    )
    task = node.claim()
    node.candidate(task)
    with django_capture_on_commit_callbacks(execute=True):
        node.end(task)
    assert ("pipelines.tasks.advance", [str(run.pk)]) in asked


def test_data_that_are_not_as_expected_stop_the_run_with_every_reason(by: Membership) -> None:
    make.version(by)
    check = {"key": "check", "stage": "check", "params": {"data": "flowers", "min_rows": 100}}
    run = begun(by, check, TRAIN | {"params": TRAIN["params"] | {"data": "$check"}})
    assert states(run) == {"check": "succeeded", "train": "running"}
    strict = {"data": "flowers", "min_rows": 1000, "columns": ["kind", "age"], "max_missing": 0.01}
    actions.change(by, run.pipeline, definition={"stages": [check | {"params": strict}]})
    actions.cancel_run(by, run)
    look(run)
    make.Node().react(Task.objects.get(kind="training.train"))
    look(run)
    error = step(look(actions.start_run(by, run.pipeline)), "check").error
    assert "There are 150 rows, and 1,000 at least are expected." in error
    assert "These columns are not there: age." in error
    assert "Of kind, 1.3% are missing" in error


def test_rows_that_lack_what_the_model_was_trained_with_are_not_scored(by: Membership) -> None:
    model = make.scored_model(by)
    make.version(by, make.flowers().drop("petal_cm", "colour"), name="narrow")
    params = {"model": str(model.pk), "data": "narrow", "dataset": "scored"}
    run = begun(by, {"key": "score", "stage": "score", "params": params})
    assert run.state == "failed"
    assert "trained with: petal_cm, colour." in run.why


def test_a_deployment_gets_the_model_that_won(by: Membership) -> None:
    first, second = (make.scored_model(by, name=name) for name in ("first", "second"))
    deploying.cluster(by, deploying.node(by))
    named.give_name(by, "kinds", second)
    there = deploying.deploy(by, first, "kinds")
    params = {"model": "kinds@1", "deployment": "kinds"}
    run = begun(by, {"key": "go", "stage": "deploy", "params": params})
    assert run.state == "succeeded"
    assert step(run, "go").output["deployed"] is True
    there.refresh_from_db()
    assert there.revision.model == second
    again = look(actions.start_run(by, run.pipeline))
    assert step(again, "go").output["deployed"] is False
    assert there.revisions.count() == 2
    gone = {"stages": [{"key": "go", "stage": "deploy", "params": params | {"deployment": "x"}}]}
    actions.change(by, run.pipeline, definition=gone)
    failed = look(actions.start_run(by, run.pipeline))
    assert "no deployment 'x'" in failed.why


def test_columns_that_went_since_the_training_are_named(by: Membership, node: make.Node) -> None:
    make.version(by)
    model = trained(node, begun(by, TRAIN))
    make.version(by, make.flowers().drop("petal_cm", "colour"), name="today")
    piping.connection(by, "house")
    write = {"connection": "house", "data": "$score", "table": "scores"}
    params = {"model": str(model.pk), "data": "today", "dataset": "scored"}
    stages = [
        {"key": "score", "stage": "score", "params": params},
        {"key": "write", "stage": "write_back", "params": write},
    ]
    home = actions.make(by, name="daily", definition={"stages": stages})
    run = look(look(actions.start_run(by, home)))
    assert states(run) == {"score": "failed", "write": "not_run"}
    assert "lacks columns that the model was trained with: petal_cm, colour." in run.why


def test_rows_are_added_to_a_data_set_once_and_to_what_it_is_then(
    by: Membership, node: make.Node, tmp_path: Path
) -> None:
    """An append that was prepared while others added theirs takes theirs in, too."""
    make.version(by, name="flowers")
    kept = make.version(by, name="kept")
    piping.connection(by, "house")
    params = {"connection": "house", "data": "flowers", "table": "kept", "mode": "append"}
    run = begun(by, {"key": "write", "stage": "write_back", "params": params})

    def written() -> Task:
        task = node.claim()
        assert task.kind == "pipeline.write-back"
        assert set(task.payload["tables"]) == {"before"}
        file = io.BytesIO()
        pl.concat([make.flowers(), make.flowers()]).write_parquet(file)
        file.seek(0)
        sent = store_artifact(task.organization, "data", file, task=task)
        node.end(task, result={"data": {"rows": 150}, "files": {"data": str(sent.pk)}})
        return task

    other = DatasetVersion.objects.get(pk=kept.pk)
    other.pk, other.number, other._state.adding = uuid4(), 2, True
    other.save()
    Dataset.objects.filter(pk=kept.dataset_id).update(latest=other)
    task = written()
    look(run)
    assert states(run) == {"write": "running"}, "it is written anew, to what is there now"
    again = written()
    assert again.pk != task.pk
    assert again.payload["began"] > task.payload["began"]
    look(run)
    ingest_next(tmp_path)
    look(run)
    assert run.state == "succeeded"
    kept.dataset.refresh_from_db()
    assert kept.dataset.latest.rows == 300
    actions.retry_run(by, run, "write")
    look(run)
    assert run.state == "succeeded", "what was added is not added again"
    assert kept.dataset.versions.count() == 3


# --- Several runs --------------------------------------------------------------------------------


def test_a_second_run_waits_is_left_out_or_takes_over(by: Membership, node: make.Node) -> None:
    make.version(by)
    first = begun(by, TRAIN)
    home = first.pipeline
    waits = look(actions.start_run(by, home, overlap="queue"))
    assert (waits.state, waits.why) == ("queued", "It waits until run 1 has ended.")
    left_out = look(actions.start_run(by, home, overlap="skip"))
    assert (left_out.state, left_out.why) == ("skipped", "Run 1 was still going.")
    assert states(waits) == {"train": "pending"}
    takes_over = look(actions.start_run(by, home, overlap="cancel"))
    waits.refresh_from_db()
    assert waits.state == "cancelled"
    assert takes_over.state == "queued"
    task = Task.objects.get(kind="training.train")
    assert task.state == "cancelled"
    make.Node().react(task)
    look(first)
    look(takes_over)
    assert (first.state, takes_over.state) == ("cancelled", "running")
    with pytest.raises(Conflict, match="cancel it first"):
        actions.delete(by, home)


def test_a_change_makes_a_version_and_runs_keep_theirs(by: Membership) -> None:
    run = begun(by, TRAIN)
    home = run.pipeline
    actions.change(by, home, definition={"stages": [TRAIN]})
    home.refresh_from_db()
    assert home.versions.count() == 1, "the same again is no other version"
    actions.change(by, home, definition={"stages": [TRAIN | {"retries": 1}]}, name="weekly")
    home.refresh_from_db()
    assert home.version is not None
    assert (home.version.number, home.name) == (2, "weekly")
    run.refresh_from_db()
    assert run.version.number == 1
    make_again = {"name": "weekly", "definition": {"stages": [TRAIN]}}
    with pytest.raises(Conflict, match="already"):
        actions.make(by, **make_again)


# --- Messages ------------------------------------------------------------------------------------


def test_a_message_goes_to_members_and_to_nobody_else(by: Membership) -> None:
    tell = {"key": "tell", "stage": "notify", "params": {"to": [by.user.email], "message": "Hi!"}}
    with pytest.raises(Invalid) as refusal:
        actions.make(
            by,
            name="spam",
            definition={"stages": [tell | {"params": {"to": ["x@example.com"]}}]},
        )
    assert list(refusal.value.errors) == ["stages[0].params.to"]
    run = begun(by, tell)
    assert states(run) == {"tell": "running"}
    tasks.tell(str(step(run, "tell").pk))
    tasks.tell(str(step(run, "tell").pk))
    look(run)
    assert run.state == "succeeded"
    (message,) = mail.outbox
    assert message.to == [by.user.email]
    assert "Hi!" in message.body
    assert str(run.pk) in message.body


def test_a_message_that_can_not_be_sent_fails_its_step(by: Membership, monkeypatch: Any) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no mail server")

    monkeypatch.setattr("accounts.mail.send_text", refuse)
    run = begun(by, {"key": "tell", "stage": "notify", "params": {"to": [by.user.email]}})
    tasks.tell(str(step(run, "tell").pk))
    look(run)
    assert run.state == "failed"
    assert "The message was not sent" in step(run, "tell").error


def test_the_end_of_a_run_is_told_once_to_who_wants_to_know(by: Membership) -> None:
    notify = {"to": [by.user.email], "on": ["failed"]}
    run = begun(by, TRAIN, notify=notify)
    look(run)
    assert run.state == "failed"
    (message,) = mail.outbox
    assert "nightly #1 has failed" in message.subject
    assert "no data set 'flowers'" in message.body


def test_an_organization_that_goes_takes_its_pipelines_along(by: Membership) -> None:
    make.version(by)
    run = begun(by, TRAIN)
    from pipelines import reactions

    reactions._stop(by.organization)
    look(run)
    assert run.cancel_requested_at is not None
    piping.connection(by)
    reactions._purge(by.organization)
    assert not Pipeline.objects.of(by.organization).exists()
