"""How machines join, for the platform or for one organization, and what that means for them."""

import hashlib
import io
from datetime import timedelta

import pytest
from django.test import override_settings
from django.utils import timezone

from organizations.models import Role
from tests.factories import MembershipFactory, OrganizationFactory, make_task
from workers import joining, keys
from workers.files import store_artifact
from workers.models import Artifact, JoinToken, Task, Worker
from workers.node.cache import NotTrusted, verify
from workers.node.settings import PROTOCOL

pytestmark = pytest.mark.django_db
JSON = "application/json"
ROOM = {"slots": 1, "light_slots": 1, "cpu_millis": 2000, "ram_mib": 4096}


def register(client, token="", *, own="", **change):
    body = {
        "join_token": token,
        "name": "atlas",
        "capabilities": {"cpu": 4, "ram_mib": 8192, "engines": ["pycaret"]},
        "address": "unix:/run/secret.sock",
        "concurrency": 2,
    }
    headers = {"Authorization": f"Worker {own}"} if own else {}
    return client.post("/api/workers/register", body | change, content_type=JSON, headers=headers)


def token_for(organization=None, **more):
    return joining.make_join_token(organization, by=None, **more)[1]


def joined(client, organization=None, **change):
    answer = register(client, token_for(organization), **change)
    assert answer.status_code == 201, answer.content
    return answer.json()


def call(client, path, body, token, method="post"):
    return getattr(client, method)(
        f"/api/workers/{path}", body, content_type=JSON, headers={"Authorization": token}
    )


def claim(client, node):
    return call(client, "claim", {"room": ROOM}, f"Worker {node['token']}")


def beat(client, node):
    body = {"running": [], "usage": {}}
    return call(client, "heartbeat", body, f"Worker {node['token']}").json()


@pytest.mark.parametrize(
    ("protocol", "words"),
    [(0, "too old for this server"), (PROTOCOL + 1, "Update the server first")],
)
def test_a_node_that_the_server_cannot_talk_to_is_told_what_to_update(client, protocol, words):
    token = token_for()
    answer = register(client, token, protocol=protocol, version="0.0.9")
    assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (426, "update-first")
    assert "This node runs FlowML 0.0.9" in answer.json()["detail"]
    assert words in answer.json()["detail"]
    assert register(client, token, protocol=PROTOCOL, version="0.0.9").status_code == 201


def test_a_join_token_lets_in_as_many_machines_as_it_says_and_no_longer_than_it_says(client):
    token = token_for(uses=2)
    assert register(client, token, name="a").status_code == 201
    assert register(client, token, name="b").status_code == 201
    third = register(client, token, name="c")
    assert (third.status_code, "used up" in third.json()["detail"]) == (401, True)
    late = token_for()
    JoinToken.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert "run out" in register(client, late, name="c").json()["detail"]
    assert register(client, "guessed", name="c").status_code == 401
    assert register(client, "", name="c").status_code == 401
    assert token not in str(list(JoinToken.objects.values()))
    assert set(Worker.objects.values_list("name", flat=True)) == {"a", "b"}


def test_a_join_token_ends_with_the_rights_of_who_made_it(client):
    member = MembershipFactory(role=Role.ADMIN)
    first, second, third = [
        joining.make_join_token(member.organization, by=member.user)[1] for _ in range(3)
    ]
    assert register(client, first, name="a").status_code == 201
    member.role = Role.DEVELOPER
    member.save()
    assert not joining.may_join(second)
    assert register(client, second, name="b").status_code == 401
    member.role = Role.ADMIN
    member.save()
    assert joining.may_join(second)
    member.organization.delete_after = timezone.now() + timedelta(days=7)
    member.organization.save()
    assert register(client, third, name="c").status_code == 401


def test_a_refused_join_uses_nothing_up(client):
    joined(client)
    token = token_for()
    answer = register(client, token)  # the name is taken by a node that is online
    assert (answer.status_code, answer.json()["code"]) == (409, "name-taken")
    assert register(client, token, name="other").status_code == 201


def test_a_node_joins_again_by_its_own_token_and_the_older_one_is_void(client):
    first = joined(client)
    second = register(client, own=first["token"], version="2").json()
    assert second["worker_id"] == first["worker_id"]
    assert claim(client, first).status_code == 401
    assert claim(client, second).status_code == 204
    assert register(client, own=first["token"]).status_code == 401


def test_a_node_of_an_organization_works_for_it_alone(client):
    ours, theirs = OrganizationFactory(), OrganizationFactory()
    with override_settings(SCHEDULER_BACKEND="celery"):
        node = joined(client, ours)
    assert node["organization"] == str(ours.pk)
    assert node["broker_url"] is None, "it gets no password of the broker"
    assert Worker.objects.get().address == "", "web opens no socket on its word"
    foreign = make_task(theirs)
    assert claim(client, node).status_code == 204
    assert beat(client, node)["waiting"] is False
    mine = make_task(ours)
    assert beat(client, node)["waiting"] is True
    assert claim(client, node).json()["task"] == str(mine.pk)
    assert Task.objects.get(pk=foreign.pk).state == "queued"


def test_a_node_of_an_organization_reads_only_its_files(client):
    ours, theirs = OrganizationFactory(), OrganizationFactory()
    node = joined(client, ours)
    for organization, status in ((ours, 200), (theirs, 404)):
        stored = store_artifact(organization, "x", io.BytesIO(b"x"))
        path = f"/api/workers/artifacts/{stored.pk}"
        answer = client.get(path, headers={"Authorization": f"Worker {node['token']}"})
        assert answer.status_code == status


def test_names_are_each_organizations_own(client):
    ours, theirs = OrganizationFactory(), OrganizationFactory()
    nodes = [joined(client, organization) for organization in (None, ours, theirs)]
    assert len({node["worker_id"] for node in nodes}) == 3
    assert all(claim(client, node).status_code == 204 for node in nodes)


def test_what_an_organizations_own_node_wrote_is_loaded_by_such_nodes_alone(client):
    ours = OrganizationFactory()
    own, platform = joined(client, ours), joined(client)
    make_task(ours, engine="pycaret")
    held = claim(client, own).json()
    data = b"a model"
    stored = client.put(
        f"/api/workers/tasks/{held['task']}/artifacts/model.zip",
        data,
        content_type="application/octet-stream",
        headers={"Authorization": f"Task {held['token']}"},
    ).json()
    told = {
        "artifact": stored["artifact"],
        "sha256": hashlib.sha256(data).hexdigest(),
        "organization": str(ours.pk),
        "signature": stored["signature"],
    }
    verify(keys.public_key(), **told, own=str(ours.pk))
    for other in ("", str(OrganizationFactory().pk)):
        with pytest.raises(NotTrusted):
            verify(keys.public_key(), **told, own=other)
    path = f"/api/workers/artifacts/{stored['artifact']}"
    for node, status in ((own, 200), (platform, 404)):
        answer = client.get(path, headers={"Authorization": f"Worker {node['token']}"})
        assert answer.status_code == status
    # Work on it waits for such a node, and no platform node is given it.
    end = {"attempt": 1, "outcome": "succeeded"}
    call(client, f"tasks/{held['task']}/end", end, f"Task {held['token']}")
    inputs = {"model": Artifact.objects.get(pk=stored["artifact"])}
    task = make_task(ours, engine="pycaret", inputs=inputs)
    assert claim(client, platform).status_code == 204
    assert claim(client, own).json()["task"] == str(task.pk)


def test_what_is_set_here_reaches_the_node_and_outlives_its_restart(client):
    node = joined(client)
    worker = Worker.objects.get()
    joining.change(worker, by=None, concurrency=3, queues=["pycaret.cpu"])
    said = beat(client, node)
    assert (said["concurrency"], said["queues"]) == (3, ["pycaret.cpu"])
    node = register(client, own=node["token"]).json()
    assert (node["concurrency"], node["queues"]) == (3, ["pycaret.cpu"])
    joining.change(Worker.objects.get(), by=None, concurrency=0, queues=[])
    said = beat(client, node)
    assert (said["concurrency"], said["queues"]) == (2, ["priority", "pycaret.cpu", "cpu"])
    with pytest.raises(joining.Invalid, match="none of these"):
        joining.change(Worker.objects.get(), by=None, queues=["gpu"])


def test_a_drained_node_gets_nothing_until_it_is_resumed(client):
    node = joined(client)
    make_task()
    joining.drain(Worker.objects.get(), by=None)
    assert claim(client, node).status_code == 204
    assert beat(client, node)["waiting"] is False
    joining.resume(Worker.objects.get(), by=None)
    assert claim(client, node).status_code == 200


def test_a_restart_is_asked_for_until_the_node_comes_back(client):
    node = joined(client)
    joining.restart(Worker.objects.get(), by=None)
    assert beat(client, node)["restart"] is True
    node = register(client, own=node["token"]).json()
    assert beat(client, node)["restart"] is False
    Worker.objects.update(last_seen_at=timezone.now() - timedelta(hours=1))
    with pytest.raises(joining.Conflict):
        joining.restart(Worker.objects.get(), by=None)


def test_a_removed_nodes_work_is_queued_again_at_once_and_its_token_void(client):
    node = joined(client)
    task = make_task()
    held = claim(client, node).json()
    joining.remove(Worker.objects.get(), by=None)
    task.refresh_from_db()
    assert (task.state, task.attempt, task.losses) == ("queued", 2, 0)
    assert claim(client, node).status_code == 401
    late = {"attempt": 1, "outcome": "succeeded"}
    end = call(client, f"tasks/{held['task']}/end", late, f"Task {held['token']}")
    assert end.status_code == 409


def test_limits_of_join_tokens_are_told():
    for wrong in ({"minutes": 0}, {"minutes": 10**6}, {"uses": 0}, {"uses": 1000}):
        with pytest.raises(joining.Invalid):
            token_for(**wrong)
