"""The protocol of nodes over HTTP: who may say what."""

import hashlib
import io
from uuid import uuid4

import pytest
from asgiref.sync import async_to_sync
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.test import override_settings

from tests.factories import MembershipFactory, make_task
from workers import actions, files, keys, tasks
from workers.files import store_artifact
from workers.models import Artifact, Task, Worker

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("joinable")]
JSON = "application/json"


@pytest.fixture
def joinable():
    with override_settings(JOIN_TOKEN="let me in"):
        yield


def join(client, **change):
    body = {
        "join_token": "let me in",
        "name": "atlas",
        "capabilities": {"cpu": 2, "ram_mib": 4096, "engines": ["pycaret"]},
        "address": None,
    }
    return client.post("/api/workers/register", body | change, content_type=JSON)


@pytest.fixture
def node(client):
    return {"Authorization": f"Worker {join(client).json()['token']}"}


def claim(client, node):
    room = {"slots": 1, "light_slots": 1, "cpu_millis": 2000, "ram_mib": 4096}
    return client.post("/api/workers/claim", {"room": room}, content_type=JSON, headers=node)


@pytest.fixture
def held(client, node):
    make_task()
    return claim(client, node).json()


def speak(client, held, path, body, method="post"):
    return getattr(client, method)(
        f"/api/workers/tasks/{held['task']}/{path}",
        body,
        content_type=JSON,
        headers={"Authorization": f"Task {held['token']}"},
    )


def read(answer) -> bytes:
    async def collect():
        return b"".join([piece async for piece in answer.streaming_content])

    return async_to_sync(collect)()


def put(client, held, data: bytes, sha256: str | None = None, name: str = "model.zip"):
    return client.put(
        f"/api/workers/tasks/{held['task']}/artifacts/{name}",
        data,
        content_type="application/octet-stream",
        headers={
            "Authorization": f"Task {held['token']}",
            "X-SHA256": sha256 or hashlib.sha256(data).hexdigest(),
        },
    )


def test_a_node_joins_and_learns_its_queues(client):
    answer = join(client).json()
    assert answer["queues"] == ["priority", "pycaret.cpu", "cpu"]
    assert Worker.objects.get().name == "atlas"
    assert answer["token"] not in str(Worker.objects.values().get())


def test_a_wrong_join_token_opens_nothing(client):
    assert join(client, join_token="wrong").status_code == 401
    with override_settings(JOIN_TOKEN=""):
        assert join(client, join_token="").status_code in {400, 401}
    assert not Worker.objects.exists()


def test_joining_again_voids_the_older_token(client, node):
    join(client)
    assert Worker.objects.count() == 1
    assert claim(client, node).status_code == 401


def test_nothing_to_do_is_204(client, node):
    assert claim(client, node).status_code == 204


def test_people_cannot_speak_as_nodes(client):
    client.force_login(MembershipFactory().user)
    for path in ("heartbeat", "claim"):
        answer = client.post(f"/api/workers/{path}", {}, content_type=JSON)
        assert answer.status_code == 401


def test_a_whole_task_over_http(client, node, held):
    stored = put(client, held, b"a model").json()
    event = {"type": "candidate", "key": "m", "data": {}, "files": {"artifact": stored["artifact"]}}
    assert speak(client, held, "events", {"attempt": 1, "events": [event]}).json() == {
        "state": "ok"
    }
    end = {"attempt": 1, "outcome": "succeeded", "result": {"data": {"n": 1}, "files": {}}}
    assert speak(client, held, "end", end).json() == {"state": "succeeded"}
    assert Task.objects.get().result == {"data": {"n": 1}, "files": {}}


def test_the_signature_covers_the_bytes_the_artifact_and_the_organization(client, held):
    stored = put(client, held, b"a model").json()
    artifact = Artifact.objects.get(pk=stored["artifact"])
    message = (
        b"flowml-artifact\0"
        + artifact.pk.bytes
        + hashlib.sha256(b"a model").digest()
        + artifact.organization_id.bytes
    )
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(keys.public_key()))
    public.verify(bytes.fromhex(stored["signature"]), message)  # raises when it does not fit


def test_a_file_that_arrives_damaged_is_refused_and_leaves_nothing(client, held):
    answer = put(client, held, b"a model", sha256="0" * 64)
    assert answer.status_code == 400
    assert not Artifact.objects.exists()


def test_the_same_file_sent_twice_is_stored_once(client, held):
    first, second = put(client, held, b"a model").json(), put(client, held, b"a model").json()
    assert first == second


def test_a_task_token_opens_its_own_task_and_inputs_only(client, node, held):
    other = make_task()
    foreign = store_artifact(other.organization, "x", io.BytesIO(b"secret"))
    wrong = held | {"task": str(other.pk)}
    assert speak(client, wrong, "events", {"attempt": 1, "events": []}).status_code == 403
    token = {"Authorization": f"Task {held['token']}"}
    assert client.get(f"/api/workers/artifacts/{foreign.pk}", headers=token).status_code == 403
    answer = client.get(f"/api/workers/artifacts/{foreign.pk}", headers=node)
    assert read(answer) == b"secret"
    assert answer["X-SHA256"] == hashlib.sha256(b"secret").hexdigest()
    assert client.get(f"/api/workers/artifacts/{uuid4()}", headers=node).status_code == 404


def test_a_task_reads_its_inputs(client, node):
    task = make_task()
    artifact = store_artifact(task.organization, "data", io.BytesIO(b"rows"))
    Task.objects.update(inputs={"data": str(artifact.pk)})
    held = claim(client, node).json()
    assert held["inputs"]["data"] == {
        "artifact": str(artifact.pk),
        "sha256": artifact.sha256,
        "size": 4,
    }
    token = {"Authorization": f"Task {held['token']}"}
    answer = client.get(f"/api/workers/artifacts/{artifact.pk}", headers=token)
    assert read(answer) == b"rows"


def test_a_late_writer_gets_409(client, node, held):
    actions.end_task(Task.objects.get().pk, 1, outcome="returned", result={})
    late = {"attempt": 1, "events": [{"type": "log", "data": {"line": "late"}}]}
    answer = speak(client, held, "events", late)
    assert (answer.status_code, answer.json()["code"]) == (409, "attempt-gone")
    assert put(client, held, b"late").status_code == 409


def test_a_forged_task_token_is_refused(client, node, held):
    forged = held | {"token": held["token"][:-3] + "abc"}
    assert speak(client, forged, "events", {"attempt": 1, "events": []}).status_code == 401


# How far a fit has come


def kept(client, held, data: bytes, fit: str = "torch:bert#0"):
    return put(client, held, data, name=f"checkpoint:{fit.replace('#', '%23')}")


@pytest.fixture
def lost(client, node, held, django_capture_on_commit_callbacks):
    """A task whose first attempt kept two checkpoints of a fit, and was lost then; claimed anew."""

    def again():
        with django_capture_on_commit_callbacks(execute=True):
            for data in (b"epoch 1", b"epoch 2"):
                assert kept(client, held, data).status_code == 201
        actions._lose(Task.objects.get(), reason="silence")
        return claim(client, node).json()

    return again


def test_a_later_attempt_is_given_the_newest_checkpoint_and_may_read_it(client, held, lost):
    assert held["checkpoints"] == {}
    now = lost()
    (artifact,) = Artifact.objects.all()  # the older one is gone
    assert now["attempt"] == 2
    assert now["checkpoints"] == {
        "torch:bert#0": {"artifact": str(artifact.pk), "sha256": artifact.sha256, "size": 7}
    }
    path = f"/api/workers/artifacts/{artifact.pk}"
    answer = client.get(path, headers={"Authorization": f"Task {now['token']}"})
    assert read(answer) == b"epoch 2"
    assert kept(client, held, b"epoch 3").status_code in {401, 403, 409}  # a late writer
    old = client.get(path, headers={"Authorization": f"Task {held['token']}"})
    assert old.status_code in {401, 403, 404, 409}


def test_checkpoints_are_forgotten_when_their_task_has_ended(client, held, lost):
    now = lost()
    end = {"attempt": 2, "outcome": "succeeded", "result": {"data": {}, "files": {}}}
    assert speak(client, now, "end", end).status_code == 200
    tasks.handle_end(now["task"])
    assert not Artifact.objects.exists()


def test_a_checkpoint_is_read_only_where_its_like_wrote_it(client, held, lost):
    Artifact.objects.update(own_node=True)
    now = lost()
    Artifact.objects.update(own_node=True)
    actions._lose(Task.objects.get(), reason="silence")
    task = Task.objects.get()
    task.worker = Worker.objects.get()
    task.attempt = 3
    assert now["checkpoints"]
    assert actions.claim_answer(task)["checkpoints"] == {}


def test_checkpoints_keep_to_caps_and_quotas(client, held, monkeypatch):
    monkeypatch.setattr(files, "MOST_CHECKPOINT_BYTES", 10)
    assert kept(client, held, b"more than ten bytes").status_code == 413
    monkeypatch.setattr(files, "MOST_CHECKPOINTS", 2)
    for fit in ("a", "b", "c"):
        assert kept(client, held, fit.encode(), fit).status_code == 201
    names = set(Artifact.objects.values_list("name", flat=True))
    assert names == {"checkpoint:b", "checkpoint:c"}
    Task.objects.get().organization.__class__.objects.update(max_storage_bytes=2)
    assert kept(client, held, b"more", "d").status_code == 413
    assert Artifact.objects.count() == 2
