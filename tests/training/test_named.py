"""Models by name: trained, versioned, asked and compared without an id."""

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from organizations import service
from organizations.models import AuditEntry, Role
from tests.factories import WorkerFactory
from tests.training import make
from training import named
from training.models import TRAIN, TrainingJob
from training.names import NamedVersion
from workers.models import Task, Worker

pytestmark = pytest.mark.django_db
ROW = {"petal_cm": 2.0, "colour": "red", "weight_g": 51.5}
FOREST = "RandomForestClassifier_flowers"


@pytest.fixture
def by():
    return make.member()


@pytest.fixture
def api(client, by):
    """Ask as a developer; the answer's JSON with its status beside it."""
    client.force_login(by.user)

    def ask(method, address, body=None):
        kind = {} if method == "get" else {"content_type": "application/json"}
        answer = getattr(client, method)(f"/api/{address}", body, **kind)
        return answer.status_code, answer.json() if answer.content else None

    return ask


@pytest.fixture
def node(serving_node):
    """A node with scikit-learn that also answers predictions."""
    worker = WorkerFactory(
        concurrency=8,
        queues=["priority", "sklearn.cpu", "pycaret.cpu", "cpu"],
        address=serving_node.address,
        capabilities={"cpu": 64, "ram_mib": 800_000, "engines": ["sklearn", "pycaret"], "gpus": []},
    )
    serving_node.answer = {
        "predictions": ["kind 1"],
        "probabilities": [[0.1, 0.7, 0.2]],
        "classes": ["kind 0", "kind 1", "kind 2"],
        "ms": {"model": 1.0},
    }
    made = make.Node(worker)
    made.serving = serving_node
    return made


def train(api, **wish):
    usual = {"dataset": "flowers", "target": "kind", "models": ["random_forest", "knn"]}
    status, told = api("post", "train", usual | wish)
    assert status == 202, told
    return told


def work_off(node, *, but=()):
    """Do all that waits: each task gives the candidate that it was asked for."""
    while Task.objects.filter(state="queued", kind=TRAIN).exists():
        task = node.claim()
        if task.payload["model"] in but:
            node.end(task, "failed", error="It would not fit.", fault="work")
            continue
        node.candidate(task, f"{task.engine}:{task.payload['model']}")
        node.end(task)


# Training


def test_each_model_is_a_task_of_its_own_and_a_version_of_its_name(by, api, node):
    make.version(by)
    wish = {"hyperparameters": {"RandomForestClassifier": {"n_estimators": 20.0}}}
    told = train(api, **wish)
    names = {one["name"]: (one["version"], one["model"]) for one in told["models"]}
    assert names == {
        FOREST: (1, "random_forest"),
        "KNeighborsClassifier_flowers": (1, "knn"),
    }
    payloads = {task.payload["model"]: task for task in Task.objects.filter(subject=told["job"])}
    assert payloads["random_forest"].payload["hyperparameters"] == {"n_estimators": 20}
    assert payloads["knn"].payload["hyperparameters"] == {}
    assert {task.engine for task in payloads.values()} == {"sklearn"}
    status, row = api("get", f"models/{FOREST}")
    assert (status, row["answers"], row["history"][0]["state"]) == (200, None, "training")
    work_off(node)
    status, row = api("get", f"models/{FOREST}")
    assert row["answers"]["version"] == 1
    assert row["answers"]["score"] is not None
    assert row["answers"]["model"] == str(NamedVersion.objects.get(named__name=FOREST).model_id)
    assert TrainingJob.objects.get(pk=told["job"]).state == "succeeded"


def test_training_again_makes_a_new_version(by, api, node):
    make.version(by)
    train(api)
    work_off(node)
    assert {one["version"] for one in train(api)["models"]} == {2}
    assert api("get", f"models/{FOREST}")[1]["answers"]["version"] == 1, "2 isn't there yet"
    work_off(node)
    row = api("get", f"models/{FOREST}")[1]
    assert (row["answers"]["version"], row["versions"], row["newest"]) == (2, 2, 2)


def test_one_that_fails_is_told_and_the_others_stand(by, api, node):
    make.version(by)
    train(api)
    work_off(node, but={"knn"})
    failed = api("get", "models/KNeighborsClassifier_flowers")[1]
    assert failed["answers"] is None
    assert failed["history"][0]["state"] == "failed"
    assert failed["history"][0]["reason"]
    assert api("get", f"models/{FOREST}")[1]["history"][0]["state"] == "ready"
    status, told = api("post", "predict/KNeighborsClassifier_flowers", {"features": [ROW]})
    assert (status, told["code"]) == (409, "model-failed")


def test_the_same_key_again_gives_the_same_job_and_names(client, by):
    make.version(by)
    client.force_login(by.user)

    def once():
        return client.post(
            "/api/train",
            {"dataset": "flowers", "target": "kind", "models": ["knn"]},
            content_type="application/json",
            headers={"Idempotency-Key": "k"},
        ).json()

    assert once() == once()
    assert NamedVersion.objects.count() == 1


@pytest.mark.parametrize(
    ("wish", "status", "says"),
    [
        ({"models": ["random_forrest"]}, 400, "Did you mean 'random_forest'"),
        ({"models": ["RandomForestClasifier"]}, 400, "Did you mean 'RandomForestClassifier'"),
        ({"models": ["RandomForestRegressor"]}, 400, "does no multiclass"),
        ({"models": ["lasso"]}, 400, "does no multiclass"),
        ({"hyperparameters": {"knn": {"n_neighbours": 3}}}, 400, "Did you mean 'n_neighbors'"),
        ({"hyperparameters": {"knn": {"n_neighbors": 0}}}, 400, "from 1 to 1000"),
        ({"hyperparameters": {"svm": {}}}, 400, "not among the models"),
        ({"engine": "pycaret"}, 400, "asked for by name"),
        ({"dataset": "flower"}, 404, "Did you mean 'flowers'"),
        ({"dataset": "twice"}, 409, "Give the id of one"),
        ({"target": "kindd"}, 400, "Did you mean 'kind'"),
    ],
)
def test_what_does_not_fit_is_told_and_nothing_is_queued(by, api, wish, status, says):
    make.version(by)
    make.version(by, name="twice"), make.version(by, name="twice")
    usual = {"dataset": "flowers", "target": "kind", "models": ["random_forest", "knn"]}
    got, told = api("post", "train", usual | wish)
    assert (got, says in told["detail"]) == (status, True), told
    assert not TrainingJob.objects.exists()
    assert not NamedVersion.objects.exists()


def test_without_models_the_usual_ones_are_trained_and_all_means_all(by, api):
    make.version(by)
    usual = {one["model"] for one in train(api, models=[])["models"]}
    assert {"random_forest", "logistic_regression"} <= usual
    every = {one["model"] for one in train(api, models="all")["models"]}
    assert usual < every
    assert "lasso" not in every


def test_a_name_never_changes_what_it_predicts(by, api, node):
    make.version(by)
    train(api)
    told = {"dataset": "flowers", "target": "colour", "models": ["knn"]}
    status, refused = api("post", "train", told)
    assert (status, refused["code"]) == (409, "name-taken")
    status, labelled = api("post", "train", told | {"label": "Flower colours!"})
    assert labelled["models"][0]["name"] == "KNeighborsClassifier_Flower_colours"


def test_a_file_is_called_without_its_ending(by, api, node):
    version = make.version(by, name="Palmer penguins (2).csv.gz")
    told = train(api, dataset="Palmer penguins (2)", models=["knn"])
    assert told["models"][0]["name"] == "KNeighborsClassifier_Palmer_penguins_2"
    work_off(node)
    for called in ("Palmer penguins (2)", "Palmer penguins (2).csv.gz", str(version.dataset_id)):
        status, said = api("post", f"predict/all/{called}", {"features": [ROW]})
        assert (status, said["answered"]) == (200, 1)
        found = api("get", f"models?dataset={called}")[1]["count"]
        assert found == (0 if called == str(version.dataset_id) else 1)


# Names and aliases


def test_a_name_means_its_champion_or_else_the_newest(by, api, node):
    make.version(by)
    for _ in range(2):
        train(api, models=["knn"])
        work_off(node)
    name = "KNeighborsClassifier_flowers"
    home = by.organization
    assert named.find(home, name).number == 2
    status, row = api("put", f"models/{name}/aliases/champion", {"version": 1})
    assert (status, row["aliases"], row["answers"]["version"]) == (200, {"champion": 1}, 1)
    found = [named.find(home, f"{name}{at}").number for at in ("", "@champion", "@latest", "@2")]
    assert found == [1, 1, 2, 2]
    assert api("put", f"models/{name}/aliases/champion", {"version": 2})[1]["aliases"] == {
        "champion": 2
    }
    assert api("put", f"models/{name}/aliases/champion", {"version": 3})[0] == 404
    assert api("put", f"models/{name}/aliases/latest", {"version": 1})[0] == 400
    assert api("delete", f"models/{name}/aliases/champion")[0] == 204
    assert api("delete", f"models/{name}/aliases/champion")[0] == 404
    verbs = list(AuditEntry.objects.filter(verb__startswith="model-name").values_list("verb"))
    assert verbs.count(("model-name.alias-moved",)) == 2


def test_a_model_of_any_job_can_be_given_a_name(by, api):
    model = make.scored_model(by)
    wish = {"name": "flowers-best", "model": str(model.pk), "description": "From the race"}
    status, row = api("post", "models", wish)
    assert (status, row["answers"]["model"], row["description"]) == (
        201,
        str(model.pk),
        "From the race",
    )
    assert api("post", "models", wish)[1]["versions"] == 1, "it is there already"
    for name in ("all", "a b", "a@b", "", "-a", "a/b"):
        assert api("post", "models", wish | {"name": name})[0] == 400, name


def test_names_are_listed_with_what_answers_for_them(by, api, node):
    make.version(by)
    train(api)
    work_off(node)
    page = api("get", "models")[1]
    assert [one["name"] for one in page["results"]] == ["KNeighborsClassifier_flowers", FOREST]
    assert api("get", "models?dataset=flowers&search=forest")[1]["count"] == 1
    assert api("get", "models?dataset=cars")[1]["count"] == 0
    assert api("get", "models?page_size=1&page=2")[1]["results"][0]["name"] == FOREST


def test_long_lists_ask_no_more_questions(by, api, node):
    make.version(by)
    train(api)
    work_off(node)
    api("get", "models")

    def queries(address, body=None):
        with CaptureQueriesContext(connection) as seen:
            api("post" if body else "get", address, body)
        return len(seen)

    features = {"features": [ROW]}
    api("post", "predict/all", features)
    few = [queries("models"), queries("metrics/all")]
    train(api, models="all")
    work_off(node)
    assert [queries("models"), queries("metrics/all")] == few
    api("post", "predict/all", features)
    assert queries("predict/all", features) <= 15
    assert queries(f"predict/{FOREST}", features) <= 8


def test_the_page_of_a_model_shows_its_names_and_moves_the_champion(client, by):
    model = make.scored_model(by)
    version = named.give_name(by, "tree", model)
    client.force_login(by.user)
    page = f"/models/{model.pk}?tab=use"
    assert "Make it the champion" in client.get(page).content.decode()
    moved = client.post(f"/models/versions/{version.pk}/champion")
    assert (moved.status_code, moved["Location"]) == (302, page)
    assert named.find(by.organization, "tree@champion") == version
    shown = client.get(page).content.decode()
    assert "tree@1" in shown
    assert "Make it the champion" not in shown
    viewer = make.member(Role.VIEWER, organization=by.organization)
    client.force_login(viewer.user)
    assert client.post(f"/models/versions/{version.pk}/champion").status_code == 403


# Predictions and figures


def test_a_model_is_asked_by_its_name(by, api, node):
    make.version(by)
    train(api, models=["random_forest"])
    work_off(node)
    status, told = api("post", f"predict/{FOREST}", {"features": [ROW]})
    assert (status, told["predictions"], told["version"]) == (200, ["kind 1"], 1)
    assert told["probabilities"] == [{"kind 0": 0.1, "kind 1": 0.7, "kind 2": 0.2}]
    status, told = api("post", f"predict/{FOREST}", {"features": [{"petal_cm": 1.0}]})
    assert "features[0].colour" in told["errors"]
    status, told = api("post", "predict/RandomForestClassifier_flower", {"features": [ROW]})
    assert status == 404
    assert f"Did you mean '{FOREST}'?" in told["detail"]


def test_all_answer_side_by_side_and_one_that_fails_is_told_as_such(by, api, node):
    make.version(by)
    make.version(by, name="others")
    train(api)
    train(api, dataset="others", models=["svm"])
    work_off(node)
    best = make.scored_model(by)  # of PyCaret, which no node will have
    api("post", "models", {"name": "best", "model": str(best.pk)})
    Worker.objects.exclude(pk=node.worker.pk).delete()
    capabilities = node.worker.capabilities | {"engines": ["sklearn"]}
    Worker.objects.filter(pk=node.worker.pk).update(capabilities=capabilities)
    status, told = api("post", "predict/all", {"features": [ROW]})
    assert (status, told["answered"], told["failed"], told["left_out"]) == (200, 3, 1, 0)
    by_name = {one["model_name"]: one for one in told["models"]}
    assert by_name[FOREST]["predictions"] == ["kind 1"]
    assert by_name["best"]["error"]["code"] == "no-node"
    assert by_name["best"]["predictions"] is None
    told = api("post", "predict/all/others", {"features": [ROW]})[1]
    assert [one["model_name"] for one in told["models"]] == ["SVC_others"]
    told = api("post", "predict/all/others", {"features": [{"a": 1}]})[1]
    assert told["models"][0]["error"]["code"] == "bad-rows"
    assert api("post", "predict/all/nothing", {"features": [ROW]})[0] == 404


def test_figures_are_told_by_name(by, api, node):
    make.version(by)
    train(api)
    work_off(node)
    told = api("get", f"metrics/{FOREST}@1")[1]
    assert told["metric"] == "log_loss"
    assert 0 < told["metrics"]["accuracy"] <= 1
    assert told["score"] == told["metrics"]["log_loss"]
    every = api("get", "metrics/all")[1]
    assert [one["model_name"] for one in every["results"]] == [
        "KNeighborsClassifier_flowers",
        FOREST,
    ]


def test_a_token_that_predicts_predicts_by_name_and_one_for_a_model_that_one_alone(client, node):
    admin = make.member(Role.ADMIN)
    version = make.version(admin)
    mine, other = make.scored_model(admin, of=version), make.scored_model(admin, of=version)
    named.give_name(admin, "mine", mine)
    named.give_name(admin, "other", other)

    def ask(secret, address, method="post"):
        answer = getattr(client, method)(
            f"/api/{address}",
            {"features": [ROW]} if method == "post" else None,
            headers={"Authorization": f"Bearer {secret}"},
            **({"content_type": "application/json"} if method == "post" else {}),
        )
        return answer.status_code, answer.json()

    any_model = service.make(admin, name="ci", actions="predict")[1]
    one_model = service.make(admin, name="one", actions="predict", model=mine.pk)[1]
    for secret, names in ((any_model, ["mine", "other"]), (one_model, ["mine"])):
        assert ask(secret, "predict/mine")[0] == 200
        assert ask(secret, "predict/other")[0] == (200 if "other" in names else 403)
        told = ask(secret, "predict/all")[1]
        assert [one["model_name"] for one in told["models"]] == names
        assert ask(secret, "models", "get")[0] == 403
        assert ask(secret, "metrics/mine", "get")[0] == 403


def test_names_belong_to_one_organization(by, api, node):
    make.version(by)
    train(api, models=["random_forest"])
    other = make.member()
    make.version(other)
    job, (version,) = named.train(other, "flowers", target="kind", models=["random_forest"])
    assert (version.named.name, version.number) == (FOREST, 1)
    work_off(node)
    assert api("get", f"models/{FOREST}")[1]["answers"]["job"] != str(job.pk)
    assert api("get", "models")[1]["count"] == 1


def test_each_model_has_a_lane_of_its_own_on_the_jobs_page(api, by, client, node):
    make.version(by)
    train(api)
    task = node.claim()
    node.candidate(task, f"{task.engine}:{task.payload['model']}")
    node.end(task)
    page = client.get(f"/training/{TrainingJob.objects.get().pk}/live").content.decode()
    assert page.count('class="lane"') == 2
    assert page.count("1 model, best") == 1, "the other one's lane has none yet"
    for title in ("Random forest (scikit-learn)", "(scikit-learn)"):
        assert title in page
    assert page.count("<strong>scikit-learn</strong>") == 0
