"""A job from its start to its end: a node played by hand, control reacting at once."""

import polars as pl
import pytest
from django.db import IntegrityError, transaction

from accounts.errors import Conflict, Invalid, NotFound
from datasets.registry import uses_of
from organizations.models import Organization
from tests.factories import WorkerFactory
from tests.training import make
from training import actions, finish
from training.models import TrainedModel, TrainingJob
from workers.models import Event, IllegalMove, StaleWrite, Task
from workers.tasks import handle_event

pytestmark = pytest.mark.django_db


@pytest.fixture
def by():
    return make.member()


@pytest.fixture
def node():
    return make.Node()


def events(job):
    return list(Event.objects.filter(stream=job.topic).order_by("seq").values_list("type", "data"))


def types(job):
    return [kind for kind, _ in events(job)]


# Starting


def test_a_job_starts_as_a_task_per_engine_with_all_that_a_node_needs(by):
    version = make.version(by)
    wish = {"target": "kind", "time_budget": 60, "metric": "f1", "engines": ["pycaret"]}
    job = actions.start_job(by, version.dataset_id, **wish)
    assert (job.state, job.task, job.rows) == ("queued", "multiclass", 148)
    assert job.classes == ["kind 0", "kind 1", "kind 2"]
    task = job.tasks.get()
    assert (task.kind, task.engine, task.queue) == ("training.train", "pycaret", "pycaret.cpu")
    assert task.inputs == {"data": str(version.data_id)}
    assert task.payload == {
        "job": str(job.pk),
        "target": "kind",
        "task": "multiclass",
        "classes": ["kind 0", "kind 1", "kind 2"],
        "positive_class": None,
        "metric": "f1",
        "columns": [
            {"name": "petal_cm", "role": "numeric", "dtype": "float"},
            {"name": "colour", "role": "categorical", "dtype": "string"},
            {"name": "weight_g", "role": "numeric", "dtype": "float"},
        ],
        "split": {"kind": "random", "seed": 0, "test": 0.2, "validation": 0.0, "folds": 5},
        "budget_s": 60.0,
        "seed": 0,
        "threads": 1,
        "dataset": {
            "id": str(version.dataset_id),
            "version": 1,
            "sha256": version.sha256,
            "name": "flowers",
        },
    }
    assert task.time_limit_s > 60
    assert job.notices[0]["message"].startswith("2 rows have no value in 'kind'")


def test_nothing_is_queued_for_a_request_that_cannot_be_met(by):
    version = make.version(by)
    with pytest.raises(Invalid) as refused:
        actions.start_job(by, version.dataset_id, target="kinds", time_budget=1e9)
    assert sorted(refused.value.errors) == ["target", "time_budget"]
    assert "Did you mean 'kind'?" in refused.value.errors["target"][0]
    assert not TrainingJob.objects.exists()
    assert not Task.objects.exists()


def test_a_data_set_of_another_organization_is_not_there(by):
    version = make.version(by)
    with pytest.raises(NotFound):
        actions.start_job(make.member(), version.dataset_id, target="kind")
    with pytest.raises(NotFound):
        actions.start_job(by, version.dataset_id, version=7, target="kind")


def test_a_data_set_that_is_not_ready_is_a_conflict(by):
    version = make.version(by)
    version.dataset.versions.update(state="ingesting")
    with pytest.raises(Conflict, match="ingesting"):
        actions.start_job(by, version.dataset_id, target="kind")
    type(version.dataset).objects.update(latest=None)
    with pytest.raises(Conflict, match="no version that can be used yet"):
        actions.start_job(by, version.dataset_id, target="kind")


def test_an_idempotency_key_makes_one_job(by):
    version = make.version(by)
    wish = {"target": "kind", "idempotency_key": "a"}
    once = actions.start_job(by, version.dataset_id, **wish)
    assert actions.start_job(by, version.dataset_id, **wish) == once
    with pytest.raises(Conflict, match="another request"):
        actions.start_job(by, version.dataset_id, **wish, metric="f1")
    other = make.member()
    assert make.job(other, idempotency_key="a") != once
    assert TrainingJob.objects.of(by.organization).count() == 1


def test_a_job_that_runs_keeps_its_data_set(by, node):
    version = make.version(by)
    job = make.job(by, version)
    assert "is queued on it" in uses_of(version.dataset)[0]
    node.end(node.claim(), "failed", error="No memory.")
    assert TrainingJob.objects.get().state == "failed"
    assert uses_of(version.dataset) == []
    version.dataset.delete()
    job.refresh_from_db()
    assert job.dataset_version is None
    assert job.dataset["name"] == "flowers"


# Candidates


def test_a_candidate_becomes_a_row_of_the_leaderboard_and_is_told(by, node):
    job = make.job(by)
    task = node.claim()
    model = node.candidate(task, skill=0.8)
    job.refresh_from_db()
    assert (job.state, job.best_model) == ("running", model)
    assert model.state == "scored"
    assert model.score == model.metrics["log_loss"] == model.order_score
    assert model.interval[0] < model.score < model.interval[1]
    assert model.scored_rows == 119  # out of fold; 29 of 148 are sealed
    assert model.test is None, "sealed until the end"
    assert set(model.curves) == {"confusion", "roc", "precision_recall", "calibration"}
    assert types(job) == [
        "task.queued", "task.running", "started", "job.running", "candidate", "leaderboard",
    ]  # fmt: skip
    told = events(job)[-1][1]
    assert told["model"] == str(model.pk)
    assert told["best"] is True


def test_a_candidate_that_is_told_twice_is_there_once(by, node):
    job = make.job(by)
    task = node.claim()
    model = node.candidate(task)
    event = Event.objects.get(type="candidate")
    assert actions.score_candidate(event, task) == model
    Event.objects.filter(pk=event.pk).update(handled_at=None)
    handle_event(event.pk)
    assert job.models.count() == 1
    assert types(job).count("leaderboard") == 1


def test_the_leaderboard_is_in_order_and_the_best_stays_first(by, node):
    job = make.job(by, metric="accuracy")
    task = node.claim()
    node.candidate(task, "pycaret:poor", skill=0.5)
    best = node.candidate(task, "pycaret:good", skill=1.0, fit_s=2.0)
    node.candidate(task, "pycaret:later", skill=1.0, fit_s=3.0)
    node.candidate(task, "pycaret:broken", change=lambda table: table.head(5))
    board = TrainedModel.objects.leaderboard(job.pk)
    assert [(m.rank, m.key.split(":")[1], m.state) for m in board] == [
        (1, "good", "scored"), (2, "later", "scored"), (3, "poor", "scored"),
        (4, "broken", "invalid"),
    ]  # fmt: skip
    assert [actions.rank_of(m) for m in board] == [1, 2, 3, None]
    job.refresh_from_db()
    assert job.best_model == best


def test_of_models_of_one_score_the_surer_one_leads_however_long_it_took(by, node):
    def unsure(table):
        shares = [name for name in table.columns if name[0] == "p" and name[1:].isdigit()]
        return table.with_columns(pl.col(shares) * 0.7 + 0.3 / len(shares))

    job = make.job(by, metric="accuracy")
    task = node.claim()
    quick = node.candidate(task, "pycaret:quick", skill=1.0, fit_s=0.1, change=unsure)
    shares = ["p0", "p1", "p2"]
    node.candidate(task, "pycaret:mute", skill=1.0, fit_s=0.1, change=lambda t: t.drop(shares))
    sure = node.candidate(task, "pycaret:sure", skill=1.0, fit_s=9.0)
    assert sure.score == quick.score
    assert sure.metrics["log_loss"] < quick.metrics["log_loss"]
    board = TrainedModel.objects.leaderboard(job.pk)
    assert [(m.rank, m.key) for m in board] == [
        (1, "pycaret:sure"), (2, "pycaret:quick"), (3, "pycaret:mute"),
    ]  # fmt: skip
    assert [actions.rank_of(m) for m in board] == [1, 2, 3]
    job.refresh_from_db()
    assert job.best_model == sure


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.head(100), "missing for"),
        (lambda t: pl.concat([t, t.head(1)]), "predicted twice"),
        (lambda t: t.drop("prediction"), "no column 'prediction'"),
        (lambda t: t.with_columns(p0=pl.lit(None, pl.Float64)), "not finite"),
        (lambda t: t.with_columns(prediction=pl.lit("kind 9")), "no class of the target"),
        (lambda t: t.with_columns(row=pl.col("row").cast(pl.String)), "does not name a row"),
        (lambda t: t.drop("p1"), "no probabilities"),
        (lambda t: pl.concat([t] * 20), "the table has 150"),
    ],
)
def test_a_candidate_that_cannot_be_scored_says_why_and_harms_nothing(by, node, change, reason):
    job = make.job(by)
    task = node.claim()
    good = node.candidate(task)
    bad = node.candidate(task, "pycaret:bad", change=change)
    assert bad.state == "invalid"
    assert reason in bad.reason
    job.refresh_from_db()
    assert job.best_model == good


def test_a_candidate_without_its_files_is_invalid(by, node):
    make.job(by)
    task = node.claim()
    node.say(task, "candidate", key="pycaret:x", data={"name": "X"})
    model = TrainedModel.objects.get()
    assert (model.state, model.name) == ("invalid", "X")
    assert "did not arrive" in model.reason


def test_a_file_that_is_no_parquet_is_invalid(by, node):
    job = make.job(by)
    task = node.claim()
    file = make.store_artifact(job.organization, "x", make.io.BytesIO(b"no parquet"), task=task)
    files = {"artifact": str(file.pk), "predictions": str(file.pk)}
    node.say(task, "candidate", key="pycaret:x", files=files)
    assert "cannot be read" in TrainedModel.objects.get().reason


def test_a_candidate_cannot_name_the_files_of_another_task(by, node):
    make.job(make.member())
    theirs = node.candidate(node.claim())
    make.job(by)
    task = node.claim()
    files = {"artifact": str(theirs.artifact_id), "predictions": str(theirs.predictions_id)}
    node.say(task, "candidate", key="pycaret:stolen", files=files)
    assert TrainedModel.objects.get(key="pycaret:stolen").state == "invalid"


def test_a_fault_of_the_platform_is_tried_again_and_then_kept_as_such(by, node, monkeypatch):
    job = make.job(by)
    task = node.claim()
    good = node.candidate(task)

    def broken(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(actions.scoring, "read_predictions", broken)
    with pytest.raises(TrainedModel.DoesNotExist):
        node.candidate(task, "pycaret:x")
    event = Event.objects.get(key="pycaret:x")
    assert (event.tries, event.handled_at) == (1, None)
    handle_event(event.pk)
    handle_event(event.pk)
    kept = TrainedModel.objects.get(key="pycaret:x")
    assert (kept.state, kept.predictions is None) == ("invalid", False)
    assert "MemoryError" in kept.reason
    node.end(task)
    job.refresh_from_db()
    assert (job.state, job.best_model) == ("succeeded", good)
    assert "no test figures" in job.notices[-1]["message"]


def test_regression_and_binary_jobs_are_scored(by, node):
    version = make.version(by, make.flowers().with_columns(red=pl.col("colour") == "red"))
    for target, task_type, metric in (
        ("weight_g", "regression", "rmse"),
        ("red", "binary", "roc_auc"),
    ):
        job = make.job(by, version, target=target)
        assert (job.task, job.metric) == (task_type, metric)
        task = node.claim()
        model = node.candidate(task)
        assert model.state == "scored", model.reason
        assert model.scored_rows == 120
        node.end(task)
        model.refresh_from_db()
        assert model.test["rows"] == 30
    assert job.classes == ["false", "true"]
    assert job.positive_class == "true"


def test_notices_are_kept_once_each(by, node):
    job = make.job(by)
    task = node.claim()
    for _ in range(2):
        node.say(task, "notice", data={"message": "Column 'x' is left out."})
    job.refresh_from_db()
    assert [n for n in job.notices if n["engine"]] == [
        {"message": "Column 'x' is left out.", "engine": "pycaret"}
    ]


# Ends


def test_the_end_opens_the_seal_for_the_winner_alone(by, node):
    job = make.job(by)
    task = node.claim()
    loser = node.candidate(task, "pycaret:a", skill=0.5)
    winner = node.candidate(task, "pycaret:b", skill=0.95)
    node.end(task)
    job.refresh_from_db()
    assert (job.state, job.best_model, job.stopped_early) == ("succeeded", winner, False)
    assert job.started_at is not None
    assert job.finished_at >= job.started_at
    winner.refresh_from_db()
    loser.refresh_from_db()
    assert winner.test["rows"] == 29
    assert winner.test["metrics"]["accuracy"] > 0.8
    assert winner.test["interval"][0] <= winner.test["score"] <= winner.test["interval"][1]
    assert "confusion" in winner.test["curves"]
    assert loser.test is None
    assert types(job)[-1] == "job.succeeded"


def test_an_end_that_is_handled_twice_changes_nothing(by, node):
    job = make.job(by)
    task = node.claim()
    node.candidate(task)
    node.end(task)
    before = types(job)
    finish.finish_job(task)
    assert types(job) == before


def test_a_task_that_fails_after_a_model_ends_the_job_well_and_says_so(by, node):
    job = make.job(by)
    task = node.claim()
    node.candidate(task)
    node.end(task, "failed", error="The child was killed.", fault="work")
    job.refresh_from_db()
    assert (job.state, job.error) == ("succeeded", "")
    assert "The child was killed." in job.notices[-1]["message"]
    assert "counts" in job.notices[-1]["message"]


def test_a_task_that_fails_without_a_model_fails_the_job_with_its_sentence(by, node):
    job = make.job(by)
    node.end(node.claim(), "failed", error="Column 'x' holds 3 TB.", fault="work")
    job.refresh_from_db()
    assert (job.state, job.error) == ("failed", "Column 'x' holds 3 TB.")


def test_a_job_whose_models_are_all_invalid_fails_and_says_why(by, node):
    job = make.job(by)
    task = node.claim()
    node.candidate(task, change=lambda table: table.head(3))
    node.end(task)
    job.refresh_from_db()
    assert job.state == "failed"
    assert "No model could be scored. Predictions are missing" in job.error


def test_a_job_without_any_model_fails(by, node):
    job = make.job(by)
    node.end(node.claim())
    job.refresh_from_db()
    assert (job.state, job.error) == ("failed", "No model was finished within the time budget.")


def test_cancelling_what_waits_ends_it_at_once(by):
    job = make.job(by)
    actions.cancel_job(by, job)
    assert job.cancel_requested_at is not None
    make.Node().react(job.tasks.get())
    job.refresh_from_db()
    assert job.state == "cancelled"


def test_cancelling_what_runs_keeps_the_models(by, node):
    job = make.job(by)
    task = node.claim()
    model = node.candidate(task)
    actions.cancel_job(by, job)
    task.refresh_from_db()
    assert task.cancel_requested_at is not None
    node.end(task, "cancelled")
    job.refresh_from_db()
    assert (job.state, job.best_model) == ("cancelled", model)
    with pytest.raises(Conflict, match="ended already"):
        actions.cancel_job(by, job)
    with pytest.raises(Conflict, match="ended already"):
        actions.stop_job(by, job)


def test_stopping_ends_the_job_early_as_succeeded(by, node):
    job = make.job(by)
    task = node.claim()
    node.candidate(task)
    actions.stop_job(by, job)
    assert "job.stop_asked" in types(job)
    task.refresh_from_db()
    assert task.stop_requested_at is not None
    node.end(task)
    job.refresh_from_db()
    assert (job.state, job.stopped_early) == ("succeeded", True)


def test_stopping_before_the_first_model_cancels(by, node):
    waiting, running = make.job(by), make.job(by)
    actions.stop_job(by, waiting)
    node.react(waiting.tasks.get())
    task = node.claim()
    actions.stop_job(by, running)
    node.end(task)
    for job in (waiting, running):
        job.refresh_from_db()
        assert (job.state, job.stopped_early) == ("cancelled", False)
        assert "before the first model" in job.error


# The refit


def raced(by, node, *, n=400, skill=0.7, **wish):
    """A job with a validation part whose race has ended, and the task that comes after it."""
    split = {"validation": 0.25, "test": 0.25}
    job = make.job(by, make.version(by, make.flowers(n)), refit=True, split=split, **wish)
    task = node.claim()
    node.candidate(task, "pycaret:poor", skill=0.4)
    best = node.candidate(task, "pycaret:good", skill=skill)
    node.end(task)
    job.refresh_from_db()
    return job, best, job.tasks.filter(kind="training.refit").first()


def test_a_refit_comes_after_the_race_with_the_winner_and_all_rows_but_the_sealed(by, node):
    job, best, task = raced(by, node, time_budget=60)
    race = job.tasks.exclude(pk=task.pk).get()
    assert (job.state, job.best_model, task.queue) == ("running", best, race.queue)
    version = job.dataset_version
    assert task.inputs == {"data": str(version.data_id), "model": str(best.artifact_id)}
    assert task.payload == race.payload | {"split": job.split | {"refit": True}, "budget_s": 90}
    assert task.time_limit_s > 90
    assert actions.progress_of(job)["fraction"] == 0.9
    assert TrainingJob.objects.for_list().get().progress == 0.9
    best.refresh_from_db()
    assert best.test is None, "sealed until the end"
    finish.finish_job(race)
    assert job.tasks.count() == 2, "the end of the race was handled twice"


def test_a_refit_that_is_no_worse_becomes_the_best_and_stands_beside_its_origin(by, node):
    job, best, _ = raced(by, node)
    task = node.claim()
    assert task.kind == "training.refit"
    node.refit(task, skill=0.95)
    job.refresh_from_db()
    best.refresh_from_db()
    twin = job.best_model
    assert (job.state, job.stopped_early, twin.state) == ("succeeded", False, "refitted")
    assert (twin.origin, twin.key, twin.params) == (best, "pycaret:good:refit", best.params)
    assert (twin.score, twin.metrics, twin.ranked_score) == (None, {}, best.score)
    assert twin.test["score"] < best.test["score"], "log loss: lower is better"
    assert twin.test["rows"] == best.test["rows"] > 90
    board = [(m.rank, m.key) for m in TrainedModel.objects.leaderboard(job.pk)]
    assert board == [(1, "pycaret:good"), (1, "pycaret:good:refit"), (2, "pycaret:poor")]
    assert types(job)[-2:] == ["leaderboard", "job.succeeded"]
    before = types(job)
    finish.finish_job(task)
    assert (types(job), job.models.count()) == (before, 3)


@pytest.mark.parametrize("metric", ["log_loss", "accuracy"])
def test_a_refit_that_is_worse_is_shown_and_replaces_nothing(by, node, metric):
    job, best, _ = raced(by, node, skill=0.95, metric=metric)
    node.refit(node.claim(), skill=0.5)
    job.refresh_from_db()
    assert (job.state, job.best_model) == ("succeeded", best)
    assert job.models.get(origin=best).test is not None


def test_a_refit_without_sealed_rows_replaces_nothing(by, node):
    split = {"validation": 0.25, "test": 0}
    job = make.job(by, make.version(by, make.flowers(400)), refit=True, split=split)
    task = node.claim()
    best = node.candidate(task)
    node.end(task)
    node.refit(node.claim())
    job.refresh_from_db()
    assert (job.state, job.best_model) == ("succeeded", best)
    assert job.models.get(origin=best).test is None


def test_models_that_rank_out_of_fold_need_no_refit(by, node):
    job = make.job(by, refit=True)
    assert "folds" in job.split
    task = node.claim()
    node.candidate(task)
    node.end(task)
    job.refresh_from_db()
    assert (job.state, job.tasks.count()) == ("succeeded", 1)
    assert not any("again" in notice["message"] for notice in job.notices)


@pytest.mark.parametrize("result", ["no file", "no predictions", "nonsense"])
def test_a_refit_that_failed_or_came_broken_is_a_notice_and_never_the_jobs_failure(
    by, node, result
):
    job, best, _ = raced(by, node)
    task = node.claim()
    if result == "no file":
        node.end(task, "failed", error="The fit failed: no memory.", fault="work")
    elif result == "no predictions":
        node.refit(task, change=lambda table: table.drop("prediction"))
    else:
        node.end(task, result={"data": {"name": "x"}, "files": {"artifact": "stolen"}})
    job.refresh_from_db()
    assert (job.state, job.error, job.best_model) == ("succeeded", "", best)
    best.refresh_from_db()
    assert best.test is not None
    words = {"no file": "no memory", "no predictions": "no test figures", "nonsense": "not arrive"}
    assert words[result] in job.notices[-1]["message"]


def test_stopping_during_the_refit_keeps_the_winner(by, node):
    job, best, _ = raced(by, node)
    task = node.claim()
    actions.stop_job(by, job)
    task.refresh_from_db()
    assert task.stop_requested_at is not None
    node.end(task, "failed", error="It was stopped before it was fitted.", fault="work")
    job.refresh_from_db()
    assert (job.state, job.stopped_early, job.best_model) == ("succeeded", True, best)
    assert "stopped" in job.notices[-1]["message"]


def test_stopping_the_race_leaves_no_time_for_a_refit(by, node):
    job = make.job(by, make.version(by, make.flowers(400)), refit=True, split={"validation": 0.2})
    task = node.claim()
    best = node.candidate(task)
    actions.stop_job(by, job)
    node.end(task)
    job.refresh_from_db()
    assert (job.state, job.best_model, job.tasks.count()) == ("succeeded", best, 1)
    assert "was stopped" in job.notices[-1]["message"]


def test_cancelling_during_the_refit_keeps_the_models(by, node):
    job, best, waiting = raced(by, node)
    actions.cancel_job(by, job)
    node.react(waiting)
    job.refresh_from_db()
    assert (job.state, job.best_model, job.models.count()) == ("cancelled", best, 2)


def test_a_refit_whose_node_was_lost_is_done_again(by, node):
    job, _, _ = raced(by, node)
    lost = node.claim()
    make.Task.objects.filter(pk=lost.pk).update(lease_expires_at="2020-01-01T00:00Z")
    make.work.expire_leases(make.timezone.now(), web_answers=True)
    make.work.expire_leases(make.timezone.now(), web_answers=True)
    again = node.claim()
    assert (again.pk, again.attempt) == (lost.pk, 2)
    node.refit(again, skill=0.95)
    job.refresh_from_db()
    assert (job.state, job.models.filter(state="refitted").count()) == ("succeeded", 1)


# Two engines


def test_a_race_of_two_engines_ends_with_the_last(by, node, monkeypatch):
    info = actions.catalog.EngineInfo("other", "Other", ("multiclass",))
    both = {**actions.catalog.engines(), "other": info}
    monkeypatch.setattr(actions.catalog, "engines", lambda: both)
    make.Worker.objects.update(queues=["pycaret.cpu", "other.cpu"])
    job = make.job(by, engines=["pycaret", "other"])
    node.worker.refresh_from_db()
    first, second = node.claim(), node.claim()
    assert {first.engine, second.engine} == {"pycaret", "other"}
    node.candidate(first, "one:a", skill=0.6)
    node.end(first, "failed", error="It broke.")
    job.refresh_from_db()
    assert job.state == "running", "one engine is still at work"
    best = node.candidate(second, "two:b", skill=0.95)
    node.end(second)
    job.refresh_from_db()
    assert (job.state, job.best_model) == ("succeeded", best)
    assert any("It broke." in notice["message"] for notice in job.notices)


def test_the_models_of_a_task_whose_end_is_not_handled_yet_are_waited_for(by, node, monkeypatch):
    info = actions.catalog.EngineInfo("other", "Other", ("multiclass",))
    both = {**actions.catalog.engines(), "other": info}
    monkeypatch.setattr(actions.catalog, "engines", lambda: both)
    make.Worker.objects.update(queues=["pycaret.cpu", "other.cpu"])
    node.worker.refresh_from_db()
    job = make.job(by, engines=["pycaret", "other"])
    first, second = node.claim(), node.claim()
    make.work.end_task(first.pk, 1, outcome="succeeded", result={})
    node.end(second)
    job.refresh_from_db()
    assert job.state == "running"
    node.react(first)
    job.refresh_from_db()
    assert job.has_ended


# An engine that no node has


@pytest.fixture
def lonely(by, node, monkeypatch):
    """A job of two engines, of which no node has the second."""
    info = actions.catalog.EngineInfo("other", "Other", ("multiclass",))
    both = {**actions.catalog.engines(), "other": info}
    monkeypatch.setattr(actions.catalog, "engines", lambda: both)
    return make.job(by, engines=["pycaret", "other"])


def ago(seconds, *, of=None):
    """Let everything have happened so long ago, but what nodes said just now."""
    back = make.timezone.now() - make.timedelta(seconds=seconds)
    tasks = Task.objects.filter(pk=of.pk) if of else Task.objects.all()
    tasks.update(queued_at=back)
    tasks.exclude(finished_at=None).update(finished_at=back)


def test_an_engine_that_no_node_has_does_not_keep_the_job_from_ending(lonely, node):
    task = node.claim()
    best = node.candidate(task)
    ago(3600)
    assert finish.end_unserved() == 0, "another engine is at work"
    node.end(task)
    assert finish.end_unserved() == 0, "a node may still come"
    ago(70)
    assert finish.end_unserved() == 1
    waiting = lonely.tasks.get(engine="other")
    assert (waiting.state, waiting.code) == ("cancelled", "no-node")
    node.react(waiting)
    lonely.refresh_from_db()
    assert (lonely.state, lonely.best_model, lonely.stopped_early) == ("succeeded", best, False)
    assert lonely.notices[-1] == {
        "message": "other did not run: no node has it.", "engine": "other",
    }  # fmt: skip
    assert finish.end_unserved() == 0


def test_what_a_live_node_could_do_waits_however_long(lonely, node):
    node.end(node.claim())
    late = WorkerFactory(queues=["other.cpu"])
    ago(3600)
    assert finish.end_unserved() == 0
    make.Worker.objects.filter(pk=late.pk).update(draining=True)
    assert finish.end_unserved() == 1


def test_a_job_of_which_nothing_could_start_waits(lonely):
    make.Worker.objects.all().delete()
    ago(3600)
    assert finish.end_unserved() == 0


def test_when_no_node_at_all_is_heard_there_is_more_patience(lonely, node):
    node.end(node.claim())
    make.age_node(node.worker)
    ago(300)
    assert finish.end_unserved() == 0, "the silence may be the platform's own"
    ago(700)
    assert finish.end_unserved() == 1


def test_a_failure_beside_an_engine_that_nobody_has_is_told_as_the_failure(lonely, node):
    node.end(node.claim(), "failed", error="No memory.", fault="work")
    ago(70)
    finish.end_unserved()
    node.react(lonely.tasks.get(engine="other"))
    lonely.refresh_from_db()
    assert (lonely.state, lonely.error) == ("failed", "No memory.")
    assert lonely.notices[-1]["message"] == "other did not run: no node has it."


def test_a_refit_that_nobody_can_do_leaves_the_winner(by, node):
    job, best, refit = raced(by, node)
    make.Worker.objects.update(queues=["cpu"])
    ago(70)
    assert finish.end_unserved() == 1
    node.react(refit)
    job.refresh_from_db()
    assert (job.state, job.best_model) == ("succeeded", best)
    assert "no node has it" in job.notices[-1]["message"]


def test_stopping_tells_of_engines_that_never_had_their_turn(by, lonely, node):
    task = node.claim()
    node.candidate(task)
    actions.stop_job(by, lonely)
    node.end(task)
    node.react(lonely.tasks.get(engine="other"))
    lonely.refresh_from_db()
    assert (lonely.state, lonely.stopped_early) == ("succeeded", True)
    assert "other did not run: the training was stopped" in lonely.notices[-1]["message"]


def test_the_concurrency_limit_of_an_organization_lets_jobs_wait(by, node):
    Organization.objects.update(max_concurrent_jobs=1)
    jobs = [make.job(by), make.job(by)]
    node.claim()
    assert make.work.claim(node.worker, make.ROOM) is None
    states = [TrainingJob.objects.get(pk=job.pk).state for job in jobs]
    assert sorted(states) == ["queued", "running"]


# Rows that stay true


def test_states_move_along_the_arrows_only(by):
    job = make.job(by)
    stale = TrainingJob.objects.get(pk=job.pk)
    job.move_to(TrainingJob.State.RUNNING)
    with pytest.raises(StaleWrite):
        stale.move_to(TrainingJob.State.RUNNING)
    with pytest.raises(IllegalMove):
        job.move_to(TrainingJob.State.QUEUED)


@pytest.mark.parametrize(
    "fields", [{"state": "succeeded"}, {"finished_at": "2026-01-01T00:00:00Z"}]
)
def test_a_job_has_an_end_exactly_when_it_has_ended(by, fields):
    job = make.job(by)
    with pytest.raises(IntegrityError), transaction.atomic():
        TrainingJob.objects.filter(pk=job.pk).update(**fields)


def test_a_scored_model_has_a_score(by, node):
    make.job(by)
    model = node.candidate(node.claim())
    with pytest.raises(IntegrityError), transaction.atomic():
        TrainedModel.objects.filter(pk=model.pk).update(score=None)
    with pytest.raises(IntegrityError), transaction.atomic():
        TrainedModel.objects.create(
            organization=by.organization, job=model.job, key=model.key, name="x", engine="x",
            state="invalid",
        )  # fmt: skip


def test_the_catalog_says_what_the_engines_declare():
    pytest.importorskip("training.engines.pycaret")
    from training.engines.pycaret import ENGINE

    info = actions.catalog.engines()["pycaret"]
    assert (info.name, info.title) == (ENGINE.name, ENGINE.title)
    assert set(info.tasks) == set(ENGINE.task_types)
