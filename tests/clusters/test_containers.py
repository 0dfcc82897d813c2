"""Containers: which images may run, where, and who reaches what they answer."""

import base64
import json
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from clusters import images, nodes, serving
from clusters.models import Deployment, LogLine, Replica
from organizations import service
from organizations.models import AuditEntry, Role
from tests.clusters import make
from tests.clusters.make import Node, settle
from tests.clusters.test_api import Api
from tests.factories import bearer
from training import serving as models

IMAGE = "ghcr.io/acme/scorer:1.4"


@pytest.mark.parametrize(
    ("said", "whole"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("acme/scorer:2", "docker.io/acme/scorer:2"),
        ("ghcr.io/acme/deep/er:v1.0_x", "ghcr.io/acme/deep/er:v1.0_x"),
        ("localhost:5000/a@sha256:" + "a" * 64, "localhost:5000/a@sha256:" + "a" * 64),
        ("index.docker.io/nginx:1", "docker.io/library/nginx:1"),
    ],
)
def test_the_name_of_an_image_is_made_whole(said, whole):
    assert str(images.parse(said)) == whole
    assert images.parse(whole) == images.parse(said)


@pytest.mark.parametrize(
    "said",
    ["", "UPPER", "a b", "../x", "ghcr.io/", "x:", "x@sha256:1", "-v /:/x", "x;y", "http://x/y"],
)
def test_what_is_no_name_of_an_image_is_refused(said):
    with pytest.raises(ValueError, match=r"\w"):
        images.parse(said)


@given(st.text(alphabet="abz0/.:-_@A ", max_size=30))
def test_what_is_understood_is_said_again_the_same(said):
    try:
        found = images.parse(said)
    except ValueError:
        return
    assert images.parse(str(found)) == found


def test_a_registry_is_allowed_whole_or_by_the_beginning_of_its_path():
    image = images.parse(IMAGE)
    for allowed in ("ghcr.io", "ghcr.io/acme", "ghcr.io/acme/scorer", "ghcr.io/"):
        assert images.is_allowed(image, [allowed])
    for other in ("ghcr.io/ac", "ghcr.io.evil.org", "docker.io", "acme", "ghcr.io/acme/scorer2"):
        assert not images.is_allowed(image, [other])
    assert not images.is_allowed(image, [])


# --- With a database -----------------------------------------------------------------------------


@pytest.fixture
def by(db, settings):
    settings.CONTAINER_REGISTRIES = ["ghcr.io/acme"]
    return make.member()


@pytest.fixture
def api(by):
    return Api(by)


def machine(by, **more):
    has = {"cpu": 4, "ram_mib": 9000, "engines": ["pycaret"], "gpus": [], **more}
    return Node(make.node(by, capabilities=has))


def contained(api, node, **wish):
    made = make.Cluster.objects.filter(nodes__worker=node.worker).first()
    sent = {"name": "scorer", "docker_image": IMAGE, "port": 9000, "health_path": "/up", **wish}
    told = api("post", "deployments/", {"cluster_id": str(made.pk), **sent}, 201)
    settle(made, node)
    return Deployment.objects.get(pk=told["id"])


@pytest.fixture
def node(by):
    node = machine(by, containers="podman 4.3.1")
    make.cluster(by, node.worker)
    return node


def test_an_image_runs_where_there_is_docker_or_podman_alone(api, by):
    bare = machine(by)
    home = make.cluster(by, bare.worker)
    wish = {"name": "scorer", "docker_image": IMAGE}
    refused = api("post", "deployments/", wish, 400)
    assert refused["code"] == "impossible"
    assert "Docker or Podman" in refused["detail"]
    able = machine(by, containers="docker 27")
    make.actions.add_node(by, home, able.worker.pk, operator=False)
    one = contained(api, bare, name="scorer")
    settle(home, bare, able)
    assert make.where(one) == {0: able.worker.name}


def test_the_node_is_told_the_image_its_limits_and_its_variables(api, by, node):
    one = contained(api, node, env={"MODE": "fast"}, required_ram_gb=2)
    replica = Replica.objects.get(deployment=one)
    told = nodes.what_to_run(node.worker, replica.pk)
    assert (told["runtime"], told["image"], told["port"]) == ("container", IMAGE, 9000)
    assert (told["health_path"], told["env"]) == ("/up", {"MODE": "fast"})
    assert told["limits"]["ram_mib"] == 2048
    shown = api("get", f"deployments/{one.pk}")
    assert (shown["docker_image"], shown["model"], shown["env"]) == (IMAGE, None, ["MODE"])


def test_only_registries_that_the_operator_allows(api, by, node, settings):
    wish = {"name": "other", "docker_image": "docker.io/acme/scorer:1"}
    refused = api("post", "deployments/", wish, 400)
    assert refused["code"] == "registry-not-allowed"
    assert "ghcr.io/acme" in refused["detail"]
    assert api("post", "deployments/", {**wish, "docker_image": "no good"}, 400)["errors"]
    model = make.model(by)
    both = api("post", "deployments/", {**wish, "docker_image": IMAGE, "model": str(model.pk)}, 400)
    assert "not both" in both["detail"]
    one = contained(api, node)
    replica = Replica.objects.get(deployment=one)
    settings.CONTAINER_REGISTRIES = ["docker.io"]  # what was allowed once starts no more
    with pytest.raises(nodes.NotFound, match="not allow"):
        nodes.what_to_run(node.worker, replica.pk)


def test_a_new_image_is_a_revision_and_a_canary_of_it_is_an_image(api, by, node):
    one = contained(api, node)
    api("patch", f"deployments/{one.pk}", {"docker_image": "ghcr.io/acme/scorer:2"})
    settle(one.cluster, node)
    one.refresh_from_db()
    assert (one.revision.number, one.revision.image) == (2, "ghcr.io/acme/scorer:2")
    assert one.revision.port == 9000
    model = make.model(by)
    wrong = {"canary": {"model": str(model.pk)}}
    assert "beside an image" in api("patch", f"deployments/{one.pk}", wrong, 400)["detail"]
    tried = {"canary": {"docker_image": "ghcr.io/acme/scorer:3", "percent": 50}}
    told = api("patch", f"deployments/{one.pk}", tried)
    assert told["canary"]["docker_image"] == "ghcr.io/acme/scorer:3"
    shadow = {"canary": {"shadow": True}}
    assert "no shadows" in api("patch", f"deployments/{one.pk}", shadow, 400)["detail"]


# --- What containers are asked -------------------------------------------------------------------


class FakeNode:
    """In place of the way to nodes: answers as their containers would, and keeps the questions."""

    def __init__(self, monkeypatch):
        self.asked: list[dict[str, Any]] = []
        self.answers: list[Any] = []
        monkeypatch.setattr(models, "post", self.post)

    def post(self, node, body, tries, within_s):
        self.asked.append(json.loads(body))
        answer = self.answers.pop(0) if self.answers else self.says("hello")
        if isinstance(answer, Exception):
            raise answer
        return answer

    @staticmethod
    def says(text, status=200, *headers):
        body = base64.b64encode(text.encode()).decode()
        return 200, json.dumps({"status": status, "headers": headers, "body": body}).encode()


@pytest.fixture
def fake(monkeypatch):
    serving.forget_places()
    return FakeNode(monkeypatch)


def test_a_request_goes_through_and_takes_no_secret_along(api, by, node, fake):
    one = contained(api, node)
    fake.answers = [
        fake.says(
            "made", 201, ["Content-Type", "text/plain"], ["Set-Cookie", "sessionid=evil"],
            ["Content-Security-Policy", "script-src *"], ["ETag", '"7"'],
        )
    ]  # fmt: skip
    client = Client(headers={**bearer(by.user), "X-Mine": "kept", "Cookie": "a=b"})
    answer = client.post(
        f"/api/deployments/{one.pk}/http/items/a b?x=1&y=%2F", "text", content_type="text/plain"
    )
    assert (answer.status_code, answer.content) == (201, b"made")
    assert (answer["Content-Type"], answer["ETag"]) == ("text/plain", '"7"')
    assert not answer.cookies
    assert answer["Content-Security-Policy"].startswith("sandbox")
    asked = fake.asked[0]["http"]
    assert (asked["method"], asked["path"]) == ("POST", "/items/a%20b?x=1&y=%2F")
    assert base64.b64decode(asked["body"]) == b"text"
    sent = {name.lower(): value for name, value in asked["headers"]}
    assert sent["x-mine"] == "kept"
    told = str(fake.asked)
    assert "Bearer" not in told
    assert "a=b" not in told


def test_who_reaches_a_container(api, by, node, fake):
    one = contained(api, node)
    path = f"/api/deployments/{one.pk}/http"
    viewer = make.member(Role.VIEWER, organization=by.organization)
    stranger = make.member(Role.ADMIN)
    assert Client().get(path).status_code == 401
    browser = Client()
    browser.force_login(by.user)
    assert browser.get(path).status_code == 401  # its pages are shown to no browser as FlowML's
    assert Client(headers=bearer(viewer.user)).get(path).status_code == 403
    assert Client(headers=bearer(stranger.user)).get(path).status_code == 404
    assert not fake.asked
    assert Client(headers=bearer(by.user)).get(path).status_code == 200
    _, secret = service.make(by, name="its own", deployment=one.pk)
    _, elsewhere = service.make(by, name="another's", deployment=contained(api, node, name="b").pk)
    for token, status in ((secret, 200), (elsewhere, 403)):
        headers = {"Authorization": f"Bearer {token}"}
        assert Client(headers=headers).get(path).status_code == status


def test_only_what_is_safe_is_asked_twice(api, by, node, fake, monkeypatch):
    monkeypatch.setattr("clusters.forwarding.PATIENCE_S", 0.0)
    one = contained(api, node, replicas=2)
    path = f"deployments/{one.pk}/http/x"
    broken = 502, b'{"detail": "it broke off", "code": "broke-off"}'
    gone = 410, b'{"detail": "it is gone", "code": "replica-gone"}'
    client = Client(headers=bearer(by.user))
    fake.answers = [broken]
    assert client.get(f"/api/{path}").status_code == 200
    fake.answers = [gone]
    assert client.post(f"/api/{path}").status_code == 200  # it was never heard
    fake.answers = [broken]
    refused = client.post(f"/api/{path}")
    assert (refused.status_code, refused.json()["code"]) == (503, "broke-off")
    assert len(fake.asked) == 5
    fake.answers = [TimeoutError()]
    assert client.get(f"/api/{path}").status_code == 504


def test_a_model_is_not_asked_as_a_container_nor_the_other_way(api, by, node, fake):
    one = contained(api, node)
    told = api("post", f"deployments/{one.pk}/predict", {"rows": [{}]}, 409)
    assert (told["code"], "/http" in told["detail"]) == ("is-a-container", True)
    model = make.running(by, make.model(by), "model", node.worker)
    assert api("get", f"deployments/{model.pk}/http/x", None, 409)["code"] == "not-a-container"
    make.actions.stop(by, one)
    settle(one.cluster, node)
    serving.forget_places()
    assert api("get", f"deployments/{one.pk}/http/", None, 503)["code"] == "stopped"


# --- What they print -----------------------------------------------------------------------------


def test_what_a_replica_prints_is_kept_bounded_and_shown(api, by, node, client, monkeypatch):
    monkeypatch.setattr(nodes, "KEPT_LINES", 3)
    one = contained(api, node)
    replica = Replica.objects.get(deployment=one)
    now = timezone.now()
    said = [(now + timedelta(seconds=i), f"line <{i}>") for i in range(5)]
    nodes.take_log(node.worker, replica.pk, replica.generation, said)
    told = api("get", f"deployments/{one.pk}/logs")["results"]
    assert [line["text"] for line in told] == ["line <2>", "line <3>", "line <4>"]
    more = api("get", f"deployments/{one.pk}/logs?after={told[1]['id']}")["results"]
    assert [line["text"] for line in more] == ["line <4>"]
    client.force_login(by.user)
    shown = client.get(f"/deployments/{one.pk}/logs").content.decode()
    assert "line &lt;4&gt;" in shown
    spec = nodes.what_to_run(node.worker, replica.pk)
    assert spec["logged_until"] == said[-1][0].isoformat()
    # Its last words come after its end; those of others' replicas, and of long ago, never.
    Replica.objects.filter(pk=replica.pk).update(state="stopped", ended_at=now)
    nodes.take_log(node.worker, replica.pk, replica.generation, [(now, "bye")])
    foreign = make.node(make.member())
    ended = Replica.objects.filter(pk=replica.pk)
    for who, when in ((foreign, now), (node.worker, now - timedelta(minutes=5))):
        ended.update(ended_at=when)
        with pytest.raises(nodes.NotFound):
            nodes.take_log(who, replica.pk, replica.generation, [(now, "late")])
    assert LogLine.objects.filter(text="bye").exists()
    assert not LogLine.objects.filter(text="late").exists()


def test_a_container_is_deployed_on_the_page(by, node, client):
    client.force_login(by.user)
    form = client.get("/deployments/new?what=container").content.decode()
    assert "ghcr.io/acme" in form
    wish = {"name": "scorer", "port": "9000", "health_path": "/up", "replicas": "1",
            "required_ram_gb": "1", "required_cpu_cores": "0.5", "required_gpu_count": "0",
            "priority": "MEDIUM", "env": "A=1\nB=x=y\n"}  # fmt: skip
    wrong = client.post("/deployments/new?what=container", {**wish, "docker_image": "quay.io/x"})
    assert wrong.status_code == 400
    assert "may not run here" in wrong.content.decode()
    made = client.post("/deployments/new?what=container", {**wish, "docker_image": IMAGE})
    assert made.status_code == 302, made.content.decode()
    one = Deployment.objects.get()
    assert (one.revision.env, one.revision.port) == ({"A": "1", "B": "x=y"}, 9000)
    page = client.get(made["Location"]).content.decode()
    assert IMAGE in page
    assert f"/api/deployments/{one.pk}/http/up" in page
    assert AuditEntry.objects.filter(verb="deployment.made").exists()
