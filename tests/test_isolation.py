"""Nobody reaches what is another organization's: by a body, a query, a topic, a token or a file.

test_access.py walks every address; here are the ways in that an address does not show.
"""

import contextlib
import io
import re
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from django.apps import apps
from django.core.files.storage import default_storage
from django.db import connection
from django.test import Client
from django.urls import Resolver404, resolve
from drf_spectacular.generators import SchemaGenerator

from flowml_site.asgi import application
from organizations import rls
from organizations.models import Membership, Role
from tests import test_access
from tests.clusters import make as deploying
from tests.factories import make_task
from tests.pipelines import make as piping
from tests.test_access import ROWS, Row, World, undone, world  # noqa: F401 - a fixture
from tests.training import make
from training.models import TrainedModel
from workers.files import store_artifact
from workers.keys import task_token
from workers.models import Artifact, Event, Stream, Task

JSON = "application/json"

# What people's requests may look at before, or without, acting for one organization: who belongs
# where. The health page counts nodes; operators read figures of all.
WHO_BELONGS_WHERE = {
    "organizations_organization",
    "organizations_membership",
    "organizations_invite",
    "organizations_auditentry",
}
FOR_ALL = re.compile(r"/(health|metrics)")

# Ids that bodies may name, and what a stranger gets who names one of another organization.
NAMED = {
    ("POST /api/models", "model"): ("model", 404),
    ("POST /api/training/start", "dataset"): ("dataset", 404),
    ("POST /api/training/check", "dataset"): ("dataset", 404),
    ("POST /api/training/estimate", "dataset"): ("dataset", 404),
    ("POST /api/organizations/{organization}/transfer", "user"): ("member", 404),
    ("POST /api/organizations/{organization}/tokens", "model"): ("model", 400),
    ("POST /api/organizations/{organization}/tokens", "deployment"): ("deployment", 400),
    ("POST /api/clusters", "node_ids"): ("node", 404),
    ("POST /api/clusters/{cluster}/nodes", "node_id"): ("node", 404),
    ("POST /api/workflow/tasks", "experiment_id"): ("job", 404),
    ("POST /api/deployments", "model"): ("model", 404),
    ("POST /api/deployments", "cluster_id"): ("cluster", 404),
    ("POST /api/deployments", "depends_on"): ("deployment", 404),
    ("PATCH /api/deployments/{deployment}", "model"): ("model", 404),
    ("PATCH /api/deployments/{deployment}", "depends_on"): ("deployment", 404),
}
LISTS = {"node_ids", "depends_on"}
# Topics by their first word, and the name of one in the world.
TOPICS = {
    "dataset": "dataset",
    "job": "job",
    "prediction": "batch",
    "check": "check",
    "deployment": "deployment",
    "pipeline-run": "run",
}


# --- The role of the database --------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("who", ["admin", "stranger"])
def test_people_touch_tenants_tables_only_as_tenants(
    who: str,
    world: World,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that row-level security stands behind every page and call, also one that comes later."""
    tables = {rule.table for rule in rls.plan().values()} - WHO_BELONGS_WHERE
    names = re.compile("|".join(f'"{table}"' for table in sorted(tables)))
    on_purpose, bare, protected = 0, set(), 0
    of_platform = rls.platform

    @contextlib.contextmanager
    def platform() -> Iterator[None]:
        nonlocal on_purpose
        on_purpose += 1
        try:
            with of_platform():
                yield
        finally:
            on_purpose -= 1

    def watch(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        nonlocal protected
        if not on_purpose and (found := names.search(str(sql))):
            if rls._acts() is None:
                bare.add(f"{row} touches {found[0]}")
            else:
                protected += 1
        return execute(sql, params, many, context)

    monkeypatch.setattr(rls, "platform", platform)
    for row in ROWS:
        if FOR_ALL.match(row.address):
            continue
        with connection.execute_wrapper(watch):
            world.send(row, who)
    assert not bare, (
        "not as a tenant (use org_role, OrgAPIView or OrgViewSet, or rls.platform() with a "
        "reason):\n" + "\n".join(sorted(bare))
    )
    assert protected > 100


# --- Ids in bodies and queries --------------------------------------------------------------------


def operations() -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Method, path, operation and components of all that the API describes."""
    schema = SchemaGenerator().get_schema(request=None, public=True)
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation, schema["components"]["schemas"]


def fields(operation: dict[str, Any], shapes: dict[str, Any]) -> dict[str, Any]:
    """The fields of an operation's bodies, in any of its media types."""
    found: dict[str, Any] = {}
    for media in operation.get("requestBody", {}).get("content", {}).values():
        shape = media["schema"]
        if "$ref" in shape:
            shape = shapes[shape["$ref"].rsplit("/", 1)[1]]
        found |= shape.get("properties", {})
    return found


def names_an_id(field: dict[str, Any]) -> bool:
    return field.get("format") == "uuid" or field.get("items", {}).get("format") == "uuid"


def _same(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


def test_every_id_in_a_body_is_in_the_list() -> None:
    told = {
        (_same(f"{method} {path}"), name)
        for method, path, operation, shapes in operations()
        for name, field in fields(operation, shapes).items()
        if names_an_id(field)
    }
    assert told == {(_same(address), name) for address, name in NAMED}


def test_every_id_in_a_query_is_walked_by_the_table() -> None:
    walked = {_same(row.address.split("=")[0]) for row in ROWS if "?" in row.address}
    for _, path, operation, _ in operations():
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "query" and names_an_id(parameter["schema"]):
                wanted = _same(f"{path}?{parameter['name']}")
                assert wanted in walked, f"no row of the table names another tenant's: {wanted}"


@pytest.mark.django_db
@pytest.mark.parametrize(("address", "name"), NAMED)
def test_an_id_in_a_body_opens_nothing_of_another_organization(
    world: World,  # noqa: F811
    address: str,
    name: str,
) -> None:
    """The stranger asks at an address of their own, for which they may, and names a foreign id."""
    stranger = world.people["stranger"]
    assert stranger is not None
    own = make.version(stranger)
    friend = make.member(organization=stranger.organization)
    mine = {**world.ids, "organization": stranger.organization_id, "dataset": own.dataset_id}
    known, expected = NAMED[address, name]
    foreign = {"member": world.ids.get("member")}.get(known) or world.ids[known]
    model = TrainedModel.objects.create(
        organization=stranger.organization,
        job=make.job(stranger, of=own),
        key="k",
        name="Tree",
        engine="ensemble",
        state="scored",
        score=0.5,
        order_score=0.5,
    )
    good: Any = {"dataset": own.dataset_id, "user": friend.user_id, "model": model.pk}.get(name)
    if name == "deployment":
        deploying.cluster(stranger, deploying.node(stranger))
        good = deploying.deploy(stranger, deploying.model(stranger), "mine").pk
    method, path = address.split()
    rest: dict[str, Any] = {}
    if name == "experiment_id":
        piping.connection(stranger)
        good, rest = make.job(stranger, of=own).pk, piping.SIX
    if "/clusters" in path or "/deployments" in path:
        node, spare = deploying.node(stranger), deploying.node(stranger)
        mine["cluster"] = deploying.cluster(stranger, node).pk
        served = deploying.model(stranger)
        mine["deployment"] = deploying.deploy(stranger, served, "first").pk
        second = deploying.deploy(stranger, served, "second")
        good = {
            "node_ids": spare.pk, "node_id": spare.pk, "model": served.pk,
            "cluster_id": mine["cluster"], "depends_on": second.pk,
        }[name]  # fmt: skip
        if path == "/api/deployments":
            rest = {"model": str(served.pk), "cluster_id": str(mine["cluster"])}
        mine = {key: mine[key] for key in ("cluster", "deployment")}
    client = world.client("stranger")
    for value, status in ((foreign, {expected}), (good, {200, 201, 202})):
        said = [str(value)] if name in LISTS else str(value)
        body = {"target": "kind", "name": "mine", **rest, name: said}
        call = getattr(client, method.lower())
        answer = undone(
            lambda call=call, body=body: call(path.format(**mine), body, content_type=JSON)
        )
        assert answer.status_code in status, answer.content
        assert test_access.MARK not in test_access.body_of(answer)


# --- Live topics ---------------------------------------------------------------------------------


def test_every_kind_of_topic_is_in_the_list() -> None:
    kinds = set()
    for model in apps.get_models():
        if isinstance(getattr(model, "topic", None), property):
            kinds.add(model().topic.split(":")[0])
    assert kinds == set(TOPICS)


@pytest.mark.django_db(transaction=True)
@pytest.mark.timeout(60)
async def test_topics_are_for_members_alone(world: World) -> None:  # noqa: F811
    page = [(b"host", b"localhost"), (b"origin", b"http://localhost")]
    sockets = {}
    for who in ("anonymous", "stranger", "viewer"):
        client = await sync_to_async(world.client)(who)
        headers = list(page)
        if "sessionid" in client.cookies:
            headers.append((b"cookie", f"sessionid={client.cookies['sessionid'].value}".encode()))
        sockets[who] = WebsocketCommunicator(application, "/ws", headers=headers)
        assert (await sockets[who].connect())[0]
    assert await sockets["anonymous"].receive_json_from(5) == {"error": "unauthenticated"}
    for kind, name in TOPICS.items():
        topic = f"{kind}:{world.ids[name]}"
        await sync_to_async(Stream.objects.get_or_create)(
            topic=topic, defaults={"organization_id": world.ids["organization"]}
        )
        await sync_to_async(_emit)(topic)
        for who, ws in sockets.items():
            if who == "anonymous":
                continue
            await ws.send_json_to({"subscribe": topic, "after": 0})
            said = await ws.receive_json_from(5)
            if who == "stranger":
                assert said == {"error": "not-found", "topic": topic}
            else:
                assert said["topic"] == topic
                await ws.send_json_to({"unsubscribe": topic})
                while not await ws.receive_nothing(0.05):
                    await ws.receive_json_from()
    for who in ("stranger", "viewer"):
        await sockets[who].disconnect()


def _emit(topic: str) -> Event:
    from workers.models import emit

    return emit(topic, "log", {"line": "x"})


# --- Tokens of tasks -----------------------------------------------------------------------------


@pytest.fixture
def two_tasks(db: None) -> dict[str, Any]:
    """Running tasks of two organizations, each with a file to read."""
    found: dict[str, Any] = {}
    for name in ("a", "b"):
        member = make.member(Role.ADMIN)
        make_task(member.organization)
        data = store_artifact(member.organization, "data", io.BytesIO(f"rows of {name}".encode()))
        task = make.Node().claim()
        Task.objects.filter(pk=task.pk).update(inputs={"data": str(data.pk)})
        token = {"Authorization": f"Task {task_token(task.pk, task.attempt)}"}
        found[name] = (task, data, Client(headers=token))
    return found


def test_the_token_of_a_task_reads_its_own_inputs_alone(two_tasks: dict[str, Any]) -> None:
    _, own, client = two_tasks["a"]
    task_b, foreign, _ = two_tasks["b"]
    own_answer = client.get(f"/api/workers/artifacts/{own.pk}")
    assert own_answer.status_code == 200
    assert client.get(f"/api/workers/artifacts/{foreign.pk}").status_code == 403
    event = {"attempt": 1, "events": [{"type": "log", "data": {}}]}
    end = {"attempt": 1, "outcome": "failed", "error": "x"}
    place = f"/api/workers/tasks/{task_b.pk}"
    assert client.post(f"{place}/events", event, content_type=JSON).status_code == 403
    assert client.post(f"{place}/end", end, content_type=JSON).status_code == 403
    put = client.put(f"{place}/artifacts/model.zip", b"x", content_type="application/octet-stream")
    assert put.status_code == 403
    task_b.refresh_from_db()
    assert task_b.state == Task.State.RUNNING
    assert not Artifact.objects.filter(task=task_b).exists()


def test_naming_another_tenants_file_as_ones_own_result_gives_nothing(db: None) -> None:
    admin = make.member(Role.ADMIN)
    secret = store_artifact(make.member().organization, "model", io.BytesIO(b"secret"))
    job = make.job(admin)
    node = make.Node()
    task = node.claim()
    files = {"artifact": str(secret.pk), "predictions": str(secret.pk)}
    node.say(task, "candidate", key="pycaret:stolen", data={"name": "stolen"}, files=files)
    stolen = TrainedModel.objects.get(job=job, key="pycaret:stolen")
    assert (stolen.artifact, stolen.predictions, stolen.is_usable) == (None, None, False)


# --- Files ---------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_no_address_serves_a_stored_file_without_a_check(world: World) -> None:  # noqa: F811
    stored = Artifact.objects.filter(organization=world.ids["organization"])
    assert stored.exists()
    client = world.client("admin")
    for artifact in stored:
        assert client.get(default_storage.url(artifact.file.name)).status_code == 404
        for start in ("", "/media", "/storage", "/files", "/static", "/static/..", "/var/storage"):
            path = f"{start}/{artifact.file.name}"
            assert client.get(path).status_code in {404, 400}, path
            with pytest.raises(Resolver404):
                resolve(path)


def test_downloads_are_walked_by_the_table() -> None:
    """Every address that answers with a file asks who it is for."""

    def sends_files(row: Row) -> bool:
        return bool(re.search(r"/(download|rejects|result)(\?|$)", row.address))

    downloads = [row for row in ROWS if sends_files(row)]
    assert len(downloads) >= 6
    for row in downloads:
        assert row.expected["anonymous"] in {"sign", "401"}, row
        assert row.expected["stranger"] == "404", row


def test_a_membership_that_ended_opens_nothing_more(db: None) -> None:
    leaver = make.member(Role.ADMIN)
    version = make.version(leaver)
    client = Client()
    client.force_login(leaver.user)
    address = f"/api/datasets/{version.dataset_id}"
    assert client.get(address).status_code == 200
    Membership.objects.filter(pk=leaver.pk).delete()
    assert client.get(address).status_code == 403
    assert client.get(f"/data/{version.dataset_id}").status_code == 403
