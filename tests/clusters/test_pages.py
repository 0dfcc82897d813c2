"""The pages of clusters and deployments say what is, why it waits, and what to do."""

import re
import uuid

import pytest

from clusters import cycle
from clusters.models import Cluster, Deployment
from organizations.models import Role
from tests.clusters import make
from tests.clusters.make import Node, deploy, settle
from tests.clusters.test_following import add_version
from training import named
from training.models import TrainedModel

pytestmark = pytest.mark.django_db


@pytest.fixture
def by(client):
    member = make.member()
    client.force_login(member.user)
    return member


@pytest.fixture
def model(by):
    return make.model(by)


def page(client, path, status=200):
    answer = client.get(path)
    assert answer.status_code == status
    return answer.content.decode()


def test_from_nothing_to_a_model_that_runs(client, by):
    assert "No clusters yet" in page(client, "/clusters")
    assert "Nothing is deployed yet" in page(client, "/deployments")
    assert "No models yet" in page(client, "/deployments/new")
    model = make.model(by)
    assert "No cluster yet" in page(client, "/deployments/new")
    node = Node(make.node(by, ram_gb=8))
    form = page(client, "/clusters/new")
    assert node.worker.name in form
    assert "8 GB of memory" in form
    wrong = client.post("/clusters/new", {"name": "no good"})
    assert wrong.status_code == 400
    assert "Use letters" in wrong.content.decode()
    client.post("/clusters/new", {"name": "lab", "nodes": [node.worker.pk]})
    home = Cluster.objects.get()
    assert f"/deployments/new?model={model.pk}" in page(client, f"/models/{model.pk}")
    form = page(client, f"/deployments/new?model={model.pk}")
    assert 'value="kind"' in form  # what it predicts is a good name
    wish = {"name": "kind", "model": model.pk, "cluster_id": home.pk, "preemptible": "on"}
    large = client.post("/deployments/new", {**wish, "required_ram_gb": "80"})
    assert large.status_code == 400
    assert "could ever run" in large.content.decode() or "More than" in large.content.decode()
    answer = client.post("/deployments/new", {**wish, "required_ram_gb": "2", "replicas": "2"})
    one = Deployment.objects.get()
    assert answer.headers["Location"] == f"/deployments/{one.pk}"
    settle(home, node)
    shown = page(client, f"/deployments/{one.pk}")
    assert "2 of 2 replicas answer" in shown
    assert f"/api/deployments/{one.pk}/predict" in shown
    assert "petal_cm" in shown
    gauges = page(client, f"/clusters/{home.pk}")
    assert "4 GB of 8 GB" in gauges
    assert "2 of 2" in page(client, "/deployments")


def test_whoever_waits_and_whoever_made_room_is_told(client, by, model):
    node = Node(make.node(by, ram_gb=2))
    home = make.cluster(by, node.worker)
    low = deploy(by, model, "low", ram_gb=2, priority=0)
    settle(home, node)
    deploy(by, model, "high", ram_gb=2, priority=3)
    settle(home, node)
    shown = page(client, f"/deployments/{low.pk}")
    assert "It made room for high" in shown
    assert "which lacks 2 GB of memory" in shown
    assert "Number 1 of 1" in shown
    live = page(client, f"/deployments/{low.pk}/live")
    assert "<html" not in live
    assert "It makes room for high, which is CRITICAL." in live
    assert "No node has room for it" in page(client, "/deployments")


def test_scale_stop_start_roll_back_and_delete(client, by, model):
    node = Node(make.node(by))
    home = make.cluster(by, node.worker)
    one = make.running(by, model, "one", node.worker)
    path = f"/deployments/{one.pk}"

    def post(what, **data):
        answer = client.post(f"{path}/{what}", data, follow=True)
        one_now = Deployment.objects.filter(pk=one.pk).first()
        return answer.content.decode(), one_now

    assert post("change", replicas="3", priority="HIGH")[1].replicas == 3
    assert "Choose 1 to 100" in post("change", replicas="0")[0]
    assert post("rollback", revision="1")[1].revision.number == 1
    assert "There is no such revision" in post("rollback", revision="77")[0]
    text, stopped = post("stop")
    assert "one stops." in text
    assert not stopped.is_started
    assert post("start")[1].is_started
    other = deploy(by, model, "other", depends_on=[one.pk])
    assert "other does not start while it is stopped" in page(client, path)
    assert "start without one" in post("delete")[0]
    client.post(f"/deployments/{other.pk}/delete")
    post("delete")
    cycle.run(home.pk)
    assert page(client, path, 404)


def test_a_container_is_rolled_out_to_another_image_from_its_page(client, by, settings):
    settings.CONTAINER_REGISTRIES = ["ghcr.io/acme"]
    has = {"cpu": 4, "ram_mib": 9000, "engines": [], "gpus": [], "containers": "podman 4.3.1"}
    node = Node(make.node(by, capabilities=has))
    home = make.cluster(by, node.worker)
    wish = {"name": "scorer", "docker_image": "ghcr.io/acme/scorer:1", "port": "9000",
            "health_path": "/up", "env": "TOKEN=secret-1\nMODE=slow",
            "cluster_id": home.pk}  # fmt: skip
    client.post("/deployments/new", wish)
    one = Deployment.objects.get()
    settle(home, node)
    path = f"/deployments/{one.pk}"
    assert f'href="{path}/revise"' in page(client, path)
    assert "Drift" not in page(client, f"{path}/watch")  # nobody trained it
    form = page(client, f"{path}/revise")
    assert 'value="ghcr.io/acme/scorer:1"' in form
    assert "MODE, TOKEN" in form
    assert "secret-1" not in form

    def revise(status=302, **data):
        sent = {"docker_image": "ghcr.io/acme/scorer:1", "port": "9000", "health_path": "/up"}
        answer = client.post(f"{path}/revise", {**sent, **data})
        assert answer.status_code == status, answer.content.decode()
        one.refresh_from_db()
        return answer.content.decode()

    refused = revise(400, docker_image="evil.io/x:1", port="9001")
    assert "The operator allows: ghcr.io/acme" in refused
    assert 'value="9001"' in refused  # what was typed is still there
    assert "less than or equal" in revise(400, port="70000")
    revise(docker_image="ghcr.io/acme/scorer:2", port="9001", health_path="/ok")
    now = one.revision
    assert (now.number, now.image) == (2, "ghcr.io/acme/scorer:2")
    assert (now.port, now.health_path) == (9001, "/ok")
    assert now.env == {"TOKEN": "secret-1", "MODE": "slow"}  # as they were
    cycle.run(home.pk)
    assert make.where(one)  # the old one answers till the new one does
    settle(home, node)
    live = one.placed.filter(state="running").values_list("revision__number", flat=True)
    assert list(live) == [2]
    revise(env="MODE=fast")
    assert one.revision.env == {"MODE": "fast"}
    revise(no_env="on")
    assert one.revision.env == {}
    revise()
    assert one.revision.number == 5  # the same again: its tag may mean another one


def test_another_model_is_rolled_out_and_following_ended_from_pages(client, by, model):
    node = Node(make.node(by))
    make.cluster(by, node.worker)
    second = add_version(by, "kind")
    named.move_alias(by, "kind", "champion", 1)
    one = make.running(by, model, "one", node.worker)
    path = f"/deployments/{one.pk}"

    def revise(status=302, **data):
        answer = client.post(f"{path}/revise", data)
        assert answer.status_code == status
        one.refresh_from_db()
        return answer.content.decode()

    assert "runs already" in revise(400, model=model.pk)
    assert "no version or alias" in revise(400, model=model.pk, follows="kind@absent")
    revise(model=model.pk, follows="kind@champion")
    assert (one.follows, one.revision.model) == ("kind@champion", second)
    assert "Stay with this model" in page(client, path)
    client.post(f"{path}/unfollow")
    one.refresh_from_db()
    assert (one.follows, one.revision.model) == ("", second)
    assert "Stay with this model" not in page(client, path)
    revise(model=second.pk, follows="kind@champion")
    assert one.follows == "kind@champion"
    revise(model=model.pk, follows="kind@champion")  # another model ends it
    assert (one.follows, one.revision.model) == ("", model)


def test_viewers_look_and_change_nothing(client, by, model):
    node = Node(make.node(by))
    home = make.cluster(by, node.worker)
    one = make.running(by, model, "one", node.worker)
    viewer = make.member(Role.VIEWER, organization=by.organization)
    client.force_login(viewer.user)
    shown = page(client, f"/deployments/{one.pk}") + page(client, f"/clusters/{home.pk}")
    assert 'action="/deployments' not in shown
    assert 'action="/clusters' not in shown


def test_pages_ask_as_many_questions_for_many_as_for_few(
    client, by, model, django_assert_max_num_queries
):
    node = make.node(by)
    home = make.cluster(by, node)
    for number in range(12):
        deploy(by, model, f"d{number}")
    cycle.run(home.pk)
    one = Deployment.objects.first()
    for path, most in (
        ("/deployments", 8), ("/clusters", 8), (f"/clusters/{home.pk}", 12),
        (f"/deployments/{one.pk}", 16), (f"/deployments/{one.pk}/live", 12),
    ):  # fmt: skip
        client.get(path)
        with django_assert_max_num_queries(most):
            assert client.get(path).status_code == 200


def test_what_may_be_tried_beside_a_model_are_others_of_its_training_first(client, by, model):
    make.cluster(by, make.node(by))
    one = deploy(by, model, "kind")
    assert "There is no other model yet" in page(client, f"/deployments/{one.pk}")
    newer = make.model(by)
    second = TrainedModel.objects.get(pk=model.pk)
    second.pk, second.key, second.name = uuid.uuid4(), "second", "The runner-up"
    second.order_score += 1
    second.save(force_insert=True)
    shown = page(client, f"/deployments/{one.pk}")
    assert "There is no other model yet" not in shown
    choice = shown.split('id="canary-model"')[1].split("</select>")[0]
    offered = re.findall(r'<option value="([^"]+)"', choice)
    assert offered == [str(second.pk), str(newer.pk)]
    assert str(model.pk) not in offered
