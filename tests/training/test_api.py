"""The API of training: who may do what, what it costs, and what it says."""

import re
import subprocess
import sys
from datetime import timedelta
from uuid import uuid4

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.urls import reverse
from django.utils import timezone

from organizations.models import Role
from tests.factories import WorkerFactory, bearer
from tests.training import make
from training import actions, background, serving
from training.api.urls import urlpatterns
from training.models import BatchPrediction, TrainedModel, TrainingJob
from workers.models import Task, Worker

pytestmark = pytest.mark.django_db
JSON = "application/json"
ROW = {"petal_cm": 2.0, "colour": "red", "weight_g": 51.5}


def token(membership):
    return bearer(membership.user)


@pytest.fixture
def by():
    return make.member()


@pytest.fixture
def ask(client, by):
    """ask(method, path, body=None, **headers) -> response, as the developer ``by``."""

    signed_in = token(by)

    def send(method, path, body=None, **headers):
        return getattr(client, method)(path, body, content_type=JSON, headers=signed_in | headers)

    return send


# Who may do what

# route -> (method, lowest role, status for those who may)
ROUTES = {
    "training-jobs": ("get", Role.VIEWER, 200),
    "training-start": ("post", Role.DEVELOPER, 202),
    "training-checks": ("post", Role.DEVELOPER, 202),
    "training-estimate": ("post", Role.DEVELOPER, 200),
    "training-check": ("get", Role.VIEWER, 200),
    "training-job": ("get", Role.VIEWER, 200),
    "training-progress": ("get", Role.VIEWER, 200),
    "training-cancel": ("post", Role.DEVELOPER, 202),
    "training-stop": ("post", Role.DEVELOPER, 202),
    "training-front": ("post", Role.DEVELOPER, 202),
    "training-leaderboard": ("get", Role.VIEWER, 200),
    "training-model": ("get", Role.VIEWER, 200),
    "training-predict": ("post", Role.DEVELOPER, 200),
    "training-explain": ("post", Role.DEVELOPER, 200),
    "training-importance": ("get", Role.VIEWER, 200),
    "training-download": ("get", Role.VIEWER, 200),
    "training-batches": ("get", Role.VIEWER, 200),
    "training-batch": ("get", Role.VIEWER, 200),
    "training-batch-download": ("get", Role.VIEWER, 409),
    "stats-overview": ("get", Role.VIEWER, 200),
    "stats-jobs": ("get", Role.VIEWER, 200),
    "stats-models": ("get", Role.VIEWER, 200),
}
OF_NOBODY = {"training-jobs", "training-batches", "stats-overview", "stats-jobs", "stats-models"}


def test_the_table_of_routes_is_whole():
    # Those by model name and by kind of job have tests of their own; tests/test_access.py has all.
    here = {url.name for url in urlpatterns if not url.name.startswith(("named-", "jobs"))}
    assert here == set(ROUTES)


@pytest.fixture
def world(by, serving_node):
    model = make.scored_model(by)
    background.choose(model.job_id)
    Worker.objects.update(address=serving_node.address)
    batch = actions.predict_file(by, model, SimpleUploadedFile("rows.csv", b"a\n1\n"))
    job = make.job(by, model.job.dataset_version)
    check = actions.check_data(by, model.job.dataset_version.dataset_id, target="kind")
    return {"model": model, "batch": batch, "job": job, "check": check}


def call(client, route, membership, world):
    method, _, _ = ROUTES[route]
    kwargs, body = {}, {}
    if route == "training-leaderboard":
        kwargs = {"job_id": world["job"].pk}
    elif route.removeprefix("training-") in {"job", "progress", "cancel", "stop", "front"}:
        kwargs = {"pk": world["job"].pk}
    elif route == "training-importance":
        kwargs = {"pk": world["model"].pk}
    elif route in {"training-model", "training-predict", "training-download"}:
        kwargs, body = {"pk": world["model"].pk}, {"rows": [ROW]}
    elif route == "training-explain":
        kwargs, body = {"pk": world["model"].pk}, {"row": ROW}
    elif route in {"training-batch", "training-batch-download"}:
        kwargs = {"pk": world["batch"].pk}
    elif route == "training-check":
        kwargs = {"pk": world["check"].pk}
    elif route in {"training-start", "training-checks", "training-estimate"}:
        body = {"dataset": str(world["job"].dataset_version.dataset_id), "target": "kind"}
    headers = token(membership) if membership else {}
    return getattr(client, method)(
        reverse(route, kwargs=kwargs), body or None, content_type=JSON, headers=headers
    )


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("role", [Role.VIEWER, Role.DEVELOPER, Role.ADMIN])
def test_roles(client, by, world, route, role):
    member = make.member(role, organization=by.organization)
    _, lowest, status = ROUTES[route]
    answer = call(client, route, member, world)
    assert answer.status_code == (status if role >= lowest else 403), answer.content


@pytest.mark.parametrize("route", ROUTES)
def test_strangers_see_nothing(client, world, route):
    assert call(client, route, None, world).status_code == 401
    stranger = make.member(Role.ADMIN)
    answer = call(client, route, stranger, world)
    if route not in OF_NOBODY:
        assert answer.status_code == 404, answer.content
        assert answer["Content-Type"] == "application/problem+json"
    elif route in {"training-jobs", "training-batches"}:
        assert answer.json()["count"] == 0
    elif route == "stats-overview":
        assert (answer.json()["jobs"]["total"], answer.json()["models"]) == (0, 0)
    elif route == "stats-jobs":
        assert answer.json()["by_state"]["total"] == 0
    else:
        assert answer.json() == {"total": 0, "by_engine": [], "by_family": []}


# Starting


def test_start_answers_202_with_the_job_in_few_queries(ask, by, django_assert_max_num_queries):
    version = make.version(by)
    body = {"dataset": str(version.dataset_id), "target": "kind", "time_budget": 60}
    body["engines"] = ["pycaret"]
    with django_assert_max_num_queries(21):  # two of them once a minute: what ended before
        answer = ask("post", "/api/training/start", body)
    assert answer.status_code == 202
    job = answer.json()
    assert answer["Location"] == f"/api/training/{job['id']}"
    assert (job["state"], job["task"], job["metric"]) == ("queued", "multiclass", "log_loss")
    assert "kind" in job["task_reason"]
    assert Task.objects.get().payload["budget_s"] == 60


def test_a_refused_start_names_fields_and_ways_out(ask, by):
    version = make.version(by)
    answer = ask(
        "post",
        "/api/training/start",
        {"dataset": str(version.dataset_id), "target": "knid", "metric": "acuracy"},
    )
    assert answer.status_code == 400
    assert answer["Content-Type"] == "application/problem+json"
    assert "Did you mean 'kind'?" in answer.json()["errors"]["target"][0]
    assert "Did you mean 'accuracy'?" in answer.json()["errors"]["metric"][0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset", "x"), ("target", None), ("time_budget", "long"), ("priority", "urgent"),
        ("exclude", "all"), ("column_types", []), ("split", 3), ("version", 0), ("refit", "maybe"),
        ("time_budget", 1e12), ("split", {"test": "a"}), ("engines", ["h2o"]),
        ("positive_class", "kind 1"), ("engines", "most"), ("preset", "slow"),
        ("budget_mode", "each"),
    ],
)  # fmt: skip
def test_a_bad_field_is_named(ask, by, field, value):
    body = {"dataset": str(make.version(by).dataset_id), "target": "kind"}
    assert ask("post", "/api/training/start", body).status_code == 202
    answer = ask("post", "/api/training/start", body | {field: value})
    assert answer.status_code == 400, answer.content
    assert field in answer.json()["errors"]
    assert TrainingJob.objects.count() == 1


def test_a_retry_with_the_same_key_starts_nothing_new(ask, by):
    body = {"dataset": str(make.version(by).dataset_id), "target": "kind", "engines": ["pycaret"]}
    once = ask("post", "/api/training/start", body, **{"Idempotency-Key": "k1"})
    again = ask("post", "/api/training/start", body, **{"Idempotency-Key": "k1"})
    assert once.json()["id"] == again.json()["id"]
    other = body | {"metric": "f1"}
    clash = ask("post", "/api/training/start", other, **{"Idempotency-Key": "k1"})
    assert (clash.status_code, clash.json()["code"]) == (409, "idempotency-key-reused")
    assert Task.objects.count() == 1
    long = ask("post", "/api/training/start", body, **{"Idempotency-Key": "k" * 300})
    assert long.status_code == 400


def test_a_refit_stands_on_the_leaderboard_without_a_score_of_its_own(ask, by):
    version = make.version(by, make.flowers(400))
    wish = {"target": "kind", "refit": True, "split": {"validation": 0.25}, "engines": ["pycaret"]}
    body = {"dataset": str(version.dataset_id), **wish}
    job = ask("post", "/api/training/start", body).json()
    node = make.Node()
    task = node.claim()
    node.candidate(task, skill=0.6)
    node.end(task)
    twin = node.refit(node.claim(), skill=0.95)
    first, second = ask("get", f"/api/results/job/{job['id']}/leaderboard").json()["results"]
    assert (first["rank"], first["refit_of"]) == (1, None)
    assert (second["rank"], second["refit_of"], second["state"]) == (None, first["id"], "refitted")
    assert second["score"] is None
    best = ask("get", f"/api/training/{job['id']}").json()["best_model"]
    assert (best["id"], best["score"]) == (str(twin.pk), first["score"])
    told = ask("get", f"/api/results/model/{twin.pk}").json()
    assert (told["is_best"], told["test_rows"]) == (True, twin.test["rows"])
    download = ask("get", f"/api/results/model/{twin.pk}/download")
    assert download.status_code == 200


# Watching


@pytest.mark.parametrize("jobs", [1, 6])
def test_the_list_costs_the_same_whatever_its_length(ask, by, jobs, django_assert_max_num_queries):
    version = make.version(by)
    for _ in range(jobs):
        make.job(by, version)
    with django_assert_max_num_queries(4):
        answer = ask("get", "/api/training")
    assert answer.json()["count"] == jobs
    assert answer.json()["results"][0]["dataset"]["name"] == "flowers"


def test_the_list_can_be_filtered_searched_and_ordered(ask, by):
    model = make.scored_model(by)
    make.job(by, name="Second try")

    def ids(query):
        answer = ask("get", f"/api/training?{query}").json()
        return [job["name"] for job in answer["results"]]

    assert ids("") == ["Second try", "flowers: kind"]
    assert ids("state=succeeded") == ["flowers: kind"]
    assert ids("state=queued&state=running") == ["Second try"]
    assert ids(f"dataset={model.job.dataset_version.dataset_id}") == ["flowers: kind"]
    assert ids("search=second") == ["Second try"]
    assert ids("ordering=created_at") == ["flowers: kind", "Second try"]
    assert ids("task=regression") == []
    assert ask("get", "/api/training?state=sleeping").status_code == 400


def test_a_job_says_what_it_is_and_which_model_is_best(ask, by, django_assert_max_num_queries):
    model = make.scored_model(by)
    with django_assert_max_num_queries(3):
        job = ask("get", f"/api/training/{model.job_id}").json()
    assert (job["state"], job["progress"], job["model_count"]) == ("succeeded", 1.0, 1)
    assert job["best_model"]["id"] == str(model.pk)
    assert job["greater_is_better"] is False
    assert [column["name"] for column in job["columns"]] == ["petal_cm", "colour", "weight_g"]


def test_progress_tells_of_each_engine_and_where_to_listen(ask, by, django_assert_max_num_queries):
    job = make.job(by)
    node = make.Node()
    task = node.claim()
    node.say(task, "progress", data={"fraction": 0.25, "message": "LightGBM, fold 2"})
    model = node.candidate(task)
    with django_assert_max_num_queries(6):
        told = ask("get", f"/api/training/{job.pk}/progress").json()
    assert (told["state"], told["fraction"], told["message"]) == (
        "running", 0.25, "LightGBM, fold 2",
    )  # fmt: skip
    assert told["best_model"]["id"] == str(model.pk)
    assert told["tasks"][0]["engine"] == "pycaret"
    assert told["topic"] == f"job:{job.pk}"
    assert told["seq"] >= 6
    assert told["waiting_for"] == ""


def test_progress_says_what_a_waiting_job_waits_for(ask, by):
    job = make.job(by)
    Task.objects.update(queued_at="2026-01-01T00:00:00Z")
    told = ask("get", f"/api/training/{job.pk}/progress").json()
    assert (told["state"], told["fraction"]) == ("queued", 0)
    assert "node" in told["waiting_for"]


def test_a_waiting_job_says_for_what_and_can_go_first(ask, by):
    first, second = make.job(by), make.job(by)
    ago = timezone.now() - timedelta(minutes=1)
    for job in (first, second):
        Task.objects.filter(subject=job.pk).update(queued_at=ago, line_at=ago)
        TrainingJob.objects.filter(pk=job.pk).update(created_at=ago)
        ago += timedelta(seconds=1)
    WorkerFactory(name="n1")
    told = ask("get", f"/api/training/{second.pk}").json()["waiting"]
    assert (told["reason"], told["position"]) == ("behind", 2)
    assert "behind 1 job of your organization" in told["text"]
    assert told["expected_start_at"] is None
    moved = ask("post", f"/api/training/{second.pk}/front")
    assert (moved.status_code, moved.json()["waiting"]["position"]) == (202, 1)
    node = make.Node()
    assert node.claim().subject == second.pk
    assert ask("get", f"/api/training/{second.pk}").json()["waiting"] is None
    refused = ask("post", f"/api/training/{second.pk}/front")
    assert (refused.status_code, refused.json()["code"]) == (409, "nothing-waits")


def test_cancel_and_stop_are_refused_after_the_end(ask, by):
    running = make.job(by)
    assert ask("post", f"/api/training/{running.pk}/cancel").status_code == 202
    ended = make.scored_model(by).job_id
    for wish in ("cancel", "stop"):
        answer = ask("post", f"/api/training/{ended}/{wish}")
        assert (answer.status_code, answer.json()["code"]) == (409, "has-ended")


# Results


def board(count):
    def many(by):
        job = make.job(by)
        node = make.Node()
        task = node.claim()
        for n in range(count):
            node.candidate(task, f"pycaret:m{n}", skill=0.5 + n * 0.1)
        node.candidate(task, "pycaret:bad", change=lambda table: table.head(1))
        return job

    return many


@pytest.mark.parametrize("count", [1, 4])
def test_the_leaderboard_is_ranked_and_cheap(ask, by, count, django_assert_max_num_queries):
    job = board(count)(by)
    with django_assert_max_num_queries(5):
        answer = ask("get", f"/api/results/job/{job.pk}/leaderboard").json()
    rows = answer["results"]
    assert [row["rank"] for row in rows] == [*range(1, count + 1), None]
    assert rows[0]["name"] == f"M{count - 1}"
    assert rows[0]["interval"][0] <= rows[0]["score"] <= rows[0]["interval"][1]
    assert rows[-1]["state"] == "invalid"
    assert "missing" in rows[-1]["reason"]
    assert "curves" not in rows[0]


def test_the_leaderboard_can_be_narrowed_to_one_engine(ask, by):
    job, node = make.job(by), make.Node()
    task = node.claim()
    node.candidate(task, "pycaret:a", skill=0.9)
    node.candidate(task, "pycaret:b", skill=0.5)
    job.models.filter(key="pycaret:b").update(engine="other")
    path = f"/api/results/job/{job.pk}/leaderboard?engine="
    rows = ask("get", f"{path}other").json()
    assert (rows["count"], [(r["rank"], r["engine"]) for r in rows["results"]]) == (
        1, [(2, "other")],
    )  # fmt: skip
    assert ask("get", f"{path}none").json()["count"] == 0
    assert ask("get", path).json()["count"] == 2


def test_an_ensemble_names_its_members(ask, by):
    job, node = make.job(by), make.Node()
    task = node.claim()
    parts = [node.candidate(task, f"pycaret:{name}") for name in "ab"]
    model = job.models.create(
        organization=by.organization, key="ensemble", name="Ensemble of 2 models",
        engine="ensemble", state="scored", score=0.1, order_score=0.1,
    )  # fmt: skip
    for part, weight in zip(parts, (0.25, 0.75), strict=True):
        model.members.create(model=part, weight=weight)
    told = ask("get", f"/api/results/model/{model.pk}").json()
    assert [(m["id"], m["engine"], m["weight"]) for m in told["members"]] == [
        (str(parts[1].pk), "pycaret", 0.75), (str(parts[0].pk), "pycaret", 0.25),
    ]  # fmt: skip
    assert ask("get", f"/api/results/model/{parts[0].pk}").json()["members"] is None


def test_the_leaderboard_has_pages(ask, by):
    job = board(4)(by)
    answer = ask("get", f"/api/results/job/{job.pk}/leaderboard?page_size=2&page=2").json()
    assert [row["rank"] for row in answer["results"]] == [3, 4]
    assert answer["count"] == 5


def test_a_model_has_its_figures_and_those_of_the_sealed_rows(
    ask, by, django_assert_max_num_queries
):
    model = make.scored_model(by)
    with django_assert_max_num_queries(4):
        told = ask("get", f"/api/results/model/{model.pk}").json()
    assert (told["rank"], told["is_best"]) == (1, True)
    assert told["metrics"]["accuracy"] > 0.8
    assert told["test_metrics"]["accuracy"] > 0.7
    assert (told["test_rows"], told["scored_rows"]) == (29, 119)
    assert [column["name"] for column in told["schema"]] == ["petal_cm", "colour", "weight_g"]
    assert {"confusion", "roc"} <= set(told["curves"]) & set(told["test_curves"])
    assert told["job"]["dataset"]["name"] == "flowers"


def test_predict_answers_rows(ask, by, world, serving_node, django_assert_max_num_queries):
    serving_node.answer = {
        "predictions": ["kind 1", "kind 0"],
        "probabilities": [[0.1, 0.7, 0.2], [0.9, 0.1, 0.0]],
        "classes": ["kind 0", "kind 1", "kind 2"],
        "ms": {"model": 1.5, "node": 2.0},
    }
    path = f"/api/results/model/{world['model'].pk}/predict"
    with django_assert_max_num_queries(4):
        answer = ask("post", path, {"rows": [ROW, ROW]})
    with django_assert_max_num_queries(2):  # the caller's right to ask is looked at every time
        answer = ask("post", path, {"rows": [ROW, ROW]})
    assert answer.status_code == 200
    assert answer.json()["predictions"] == ["kind 1", "kind 0"]
    assert answer.json()["probabilities"][1] == {"kind 0": 0.9, "kind 1": 0.1, "kind 2": 0.0}
    bad = ask("post", path, {"rows": [{**ROW, "colr": "red"}]})
    assert bad.status_code == 400
    assert "Did you mean 'colour'?" in bad.json()["errors"]["rows[0].colr"][0]
    for nothing in ({}, [], {"rows": []}, "x", None):
        assert ask("post", path, nothing).status_code == 400
    Worker.objects.all().delete()
    serving._nodes.clear()
    gone = ask("post", path, {"rows": [ROW]})
    assert (gone.status_code, gone.json()["code"]) == (503, "no-node")


def test_a_file_is_answered_with_what_to_watch(client, by, world):
    answer = client.post(
        f"/api/results/model/{world['model'].pk}/predict",
        {"file": SimpleUploadedFile("new.csv", b"petal_cm\n1\n")},
        headers=token(by),
    )
    assert answer.status_code == 202
    batch = BatchPrediction.objects.get(filename="new.csv")
    assert answer["Location"] == f"/api/results/predictions/{batch.pk}"
    assert answer.json()["state"] == "queued"
    assert answer.json()["topic"] == f"prediction:{batch.pk}"


def test_the_list_of_files_costs_the_same_whatever_its_length(
    ask, by, world, django_assert_max_num_queries
):
    for n in range(4):
        actions.predict_file(by, world["model"], SimpleUploadedFile(f"{n}.csv", b"a\n1\n"))
    with django_assert_max_num_queries(4):
        answer = ask("get", "/api/results/predictions?state=queued")
    assert answer.json()["count"] == 5
    assert answer.json()["results"][0]["model"]["name"] == "Tree"


def test_ids_that_are_none_are_404(ask):
    for path in (
        "training/{}", "training/{}/progress", "results/model/{}", "results/job/{}/leaderboard",
        "results/predictions/{}",
    ):  # fmt: skip
        assert ask("get", f"/api/{path.format(uuid4())}").status_code == 404


# Figures of the organization


def test_statistics_count_what_is_there(ask, by, django_assert_max_num_queries):
    make.scored_model(by)
    make.scored_model(make.member())
    waiting = make.job(by)
    node = make.Node()
    node.end(node.claim(), "failed", error="x")
    with django_assert_max_num_queries(7):
        overview = ask("get", "/api/stats/overview").json()
    assert overview["jobs"] == {
        "total": 2, "queued": 0, "running": 0, "succeeded": 1, "failed": 1, "cancelled": 0,
    }  # fmt: skip
    assert (overview["models"], overview["success_rate"]) == (1, 0.5)
    assert overview["last_7_days"] == {"datasets": 2, "jobs": 2, "models": 1}
    with django_assert_max_num_queries(5):
        jobs = ask("get", "/api/stats/jobs").json()
    assert jobs["by_task"] == {"multiclass": 2}
    assert len(jobs["per_day"]) == 30
    assert jobs["per_day"][-1]["created"] == 2
    assert jobs["median_duration_s"] >= 0
    with django_assert_max_num_queries(4):
        models = ask("get", "/api/stats/models").json()
    assert models["total"] == 1
    assert models["by_engine"] == [
        {"name": "pycaret", "models": 1, "invalid": 0, "wins": 1, "median_fit_s": 1.0}
    ]
    assert waiting.pk


# The face itself


def test_the_schema_describes_every_route(client):
    answer = client.get("/api/schema?format=json")
    paths = answer.json()["paths"]
    for url in urlpatterns:
        path = "/api/" + re.sub(r"<\w+:", "{", str(url.pattern)).replace(">", "}")
        assert path in {p.replace("{id}", "{pk}") for p in paths}, path
    start = paths["/api/training/start"]["post"]
    assert any(p["name"] == "Idempotency-Key" for p in start["parameters"])


def test_web_imports_no_scikit_learn_and_no_engine():
    code = (
        "import django, sys; django.setup(); import flowml_site.urls; "
        "bad = {'sklearn', 'pandas', 'pycaret', 'lightgbm', 'scipy'} & set(sys.modules); "
        "sys.exit(f'imported: {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_operators_see_jobs_models_and_files(admin_client, by, world):
    for name in ("trainingjob", "trainedmodel", "batchprediction"):
        for path in (reverse(f"admin:training_{name}_changelist"),):
            assert admin_client.get(path).status_code == 200
    model = TrainedModel.objects.get()
    for target in (model, model.job, world["batch"]):
        path = reverse(f"admin:training_{target._meta.model_name}_change", args=[target.pk])
        assert admin_client.get(path).status_code == 200


def test_operators_can_cancel_a_job(admin_client, by):
    job = make.job(by)
    answer = admin_client.post(
        reverse("admin:training_trainingjob_changelist"),
        {"action": "cancel", "_selected_action": [str(job.pk)], "confirmed": "yes"},
        follow=True,
    )
    assert b"will be cancelled" in answer.content
    job.refresh_from_db()
    assert job.cancel_requested_at is not None
