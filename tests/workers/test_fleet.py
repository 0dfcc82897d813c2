"""The fleet as people see and change it, over the API, the page, the live socket, the command."""

import re
from io import StringIO

import pytest
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from flowml_site.asgi import application
from organizations import rls
from organizations.models import AuditEntry, Role
from tests.factories import MembershipFactory, OrganizationFactory, WorkerFactory, make_task
from tests.training.make import Node
from workers.models import JoinToken, Worker

pytestmark = [pytest.mark.django_db, pytest.mark.timeout(60)]
JSON = "application/json"


@pytest.fixture
def admin():
    return MembershipFactory(role=Role.ADMIN)


def client_of(member):
    client = Client()
    client.force_login(member.user)
    return client


def operator():
    member = MembershipFactory(role=Role.VIEWER)
    member.user.is_staff = member.user.is_superuser = True
    member.user.save()
    return member


def test_members_see_their_own_nodes_and_the_platforms(admin):
    WorkerFactory(name="ours", organization=admin.organization)
    WorkerFactory(name="shared")
    WorkerFactory(name="theirs", organization=OrganizationFactory())
    seen = client_of(admin).get("/api/workers").json()
    assert {node["name"] for node in seen["results"]} == {"ours", "shared"}
    assert {node["state"] for node in seen["results"]} == {"online"}
    everything = client_of(operator()).get("/api/workers").json()
    assert everything["count"] == 3
    page = client_of(admin).get("/workers").content.decode()
    assert "ours" in page
    assert "theirs" not in page


def test_what_others_run_on_a_shared_node_is_not_told(admin):
    worker = WorkerFactory(name="shared", concurrency=2)
    make_task(admin.organization)
    make_task()
    Node(worker).claim(), Node(worker).claim()
    assert client_of(admin).get(f"/api/workers/{worker.pk}").json()["running"] == 1
    assert client_of(operator()).get(f"/api/workers/{worker.pk}").json()["running"] == 2
    stats = client_of(admin).get("/api/workers/stats").json()
    assert (stats["running"], stats["cpu"], stats["nodes"]["online"]) == (1, 4, 1)


def test_an_admin_changes_the_organizations_nodes_and_an_operator_all(admin):
    ours = WorkerFactory(organization=admin.organization)
    shared = WorkerFactory()
    client = client_of(admin)
    changed = client.patch(
        f"/api/workers/{ours.pk}", {"concurrency": 3, "queues": ["cpu"]}, content_type=JSON
    )
    assert changed.status_code == 200, changed.content
    assert (changed.json()["concurrency"], changed.json()["wanted"]["queues"]) == (3, ["cpu"])
    assert client.post(f"/api/workers/{ours.pk}/drain").json()["state"] == "draining"
    refused = client.post(f"/api/workers/{shared.pk}/drain")
    assert (refused.status_code, refused.json()["code"]) == (403, "not-your-node")
    runs = operator()
    runs.role = Role.ADMIN
    runs.save()
    assert client_of(runs).post(f"/api/workers/{shared.pk}/drain").status_code == 202
    assert client_of(runs).delete(f"/api/workers/{ours.pk}").status_code == 204
    told = set(AuditEntry.objects.values_list("verb", "organization"))
    assert ("node.changed", admin.organization_id) in told
    assert ("node.removed", admin.organization_id) in told
    assert ("node.drained", None) in told


def test_join_tokens_are_shown_once_and_for_the_platform_only_to_its_operator(admin):
    client = client_of(admin)
    made = client.post("/api/workers/join-tokens", {"uses": 2}, content_type=JSON)
    assert made.status_code == 201, made.content
    token = made.json()["token"]
    assert token in made.json()["command"]
    listed = client.get("/api/workers/join-tokens").json()
    assert [one["max_uses"] for one in listed] == [2]
    assert token not in str(listed)
    for_all = {"platform": True}
    answer = client.post("/api/workers/join-tokens", for_all, content_type=JSON)
    assert answer.status_code == 403
    runs = operator()
    runs.role = Role.ADMIN
    runs.save()
    answer = client_of(runs).post("/api/workers/join-tokens", for_all, content_type=JSON)
    assert (answer.status_code, answer.json()["organization"]) == (201, None)
    gone = client.delete(f"/api/workers/join-tokens/{listed[0]['id']}")
    assert gone.status_code == 204
    assert not JoinToken.objects.filter(organization=admin.organization).exists()


def test_the_page_gives_an_admin_the_line_that_joins_a_machine(admin):
    page = client_of(admin).post("/workers/join").content.decode()
    (token,) = re.findall(r"Authorization: Join ([\w-]+)", page)
    found = JoinToken.objects.get(token_hash=Worker.hash_token(token))
    assert found.organization == admin.organization
    # Whoever is no operator can't ask for one for everybody.
    client_of(admin).post("/workers/join", {"for": "platform"})
    assert not JoinToken.objects.filter(organization=None).exists()


def test_the_page_tells_what_waits_for_whom_and_how_busy_machines_are(admin):
    WorkerFactory(
        name="big",
        organization=admin.organization,
        queues=["gpu", "cpu"],
        capabilities={"cpu": 8, "ram_mib": 32768, "gpus": [{"name": "A10", "memory_mib": 24576}]},
        usage={
            "cpu_percent": 50.0,
            "ram_used_mib": 4096,
            "gpus": [{"index": 0, "percent": 37, "memory_used_mib": 12288}],
        },
    )
    page = client_of(admin).get("/workers").content.decode()
    assert "What waits" not in page
    assert "37 % busy, 12.0 of 24 GiB" in page
    assert "4.0 used" in page
    make_task(admin.organization, engine="torch", device="gpu", gpu_ram_mib=9000)
    make_task(OrganizationFactory(), engine="", device="gpu")
    page = client_of(admin).get("/workers").content.decode()
    assert "Engine torch and a GPU with 12 GiB" in page
    assert "None is online." in page
    assert "<code>gpu</code>" not in page, "another organization's"


def test_what_others_wait_for_is_not_counted_without_the_second_line_either(admin, monkeypatch):
    """The filters alone, as on a database that has no row-level security."""
    monkeypatch.setattr(rls, "is_ready", lambda: False)
    WorkerFactory()
    make_task(OrganizationFactory(), engine="pycaret")
    client = client_of(admin)
    assert client.get("/api/workers/stats").json()["waiting"] == 0
    assert {row["depth"] for row in client.get("/api/workers/queues").json()} == {0}
    make_task(admin.organization, engine="pycaret")
    assert client.get("/api/workers/stats").json()["waiting"] == 1
    assert client_of(operator()).get("/api/workers/stats").json()["waiting"] == 2


def test_queues_tell_what_waits_and_who_serves_them(admin):
    WorkerFactory(name="shared")
    make_task(admin.organization, engine="pycaret")
    make_task(admin.organization, engine="torch", device="gpu", gpu_ram_mib=9000)
    make_task(engine="pycaret")
    rows = {row["queue"]: row for row in client_of(admin).get("/api/workers/queues").json()}
    assert (rows["pycaret.cpu"]["depth"], rows["pycaret.cpu"]["nodes"]) == (1, ["shared"])
    assert rows["torch.gpu.vram12"]["nodes"] == []
    assert rows["torch.gpu.vram12"]["requirement"] == "engine torch and a GPU with 12 GiB"
    assert rows["cpu"] == {
        "queue": "cpu",
        "requirement": "any node",
        "depth": 0,
        "oldest_wait_s": None,
        "nodes": ["shared"],
    }


def test_lists_ask_as_often_for_many_nodes_as_for_one(admin):
    def asked(path):
        with CaptureQueriesContext(connection) as seen:
            assert client.get(path).status_code == 200
        return len(seen)

    client = client_of(admin)
    WorkerFactory(address="unix:/nowhere")
    paths = ["/api/workers", "/api/workers/stats", "/api/workers/queues", "/workers"]
    few = [asked(path) for path in paths]
    for _ in range(10):
        WorkerFactory(organization=admin.organization)
    assert [asked(path) for path in paths] == few


def test_the_command_prints_the_line_that_joins_a_machine(admin):
    def run(*args):
        out = StringIO()
        call_command("join-token", *args, stdout=out)
        return out.getvalue()

    said = run("--organization", admin.organization.name, "--uses", "3")
    assert "3 machines" in said
    assert "curl" in said
    assert JoinToken.objects.get().organization == admin.organization
    token = run("--only-token").strip()
    assert JoinToken.objects.get(token_hash=Worker.hash_token(token)).organization is None
    with pytest.raises(CommandError, match="no organization has"):
        run("--organization", "nobody")
    with pytest.raises(CommandError, match="a week"):
        run("--minutes", "0")


@pytest.mark.django_db(transaction=True)
async def test_the_live_fleet_tells_what_changes_and_no_more_than_one_may_see(monkeypatch):
    monkeypatch.setattr("workers.consumers.FLEET_S", 0.1)

    @sync_to_async
    def prepare():
        member = MembershipFactory()
        WorkerFactory(name="theirs", organization=OrganizationFactory())
        client = client_of(member)
        return WorkerFactory(name="shared"), client.cookies["sessionid"].value

    node, session = await prepare()
    headers = [
        (b"host", b"localhost"),
        (b"origin", b"http://localhost"),
        (b"cookie", f"sessionid={session}".encode()),
    ]
    ws = WebsocketCommunicator(application, "/ws", headers=headers)
    assert (await ws.connect(timeout=5))[0]
    await ws.send_json_to({"subscribe": "workers"})
    first = await ws.receive_json_from(timeout=10)
    assert [one["name"] for one in first["data"]["nodes"]] == ["shared"]
    await sync_to_async(Worker.objects.filter(pk=node.pk).update)(usage={"cpu_percent": 71.0})
    second = await ws.receive_json_from(timeout=10)
    assert second["data"]["nodes"][0]["cpu_percent"] == 71.0
    assert second["seq"] > first["seq"]
    await ws.send_json_to({"unsubscribe": "workers"})
    await sync_to_async(Worker.objects.filter(pk=node.pk).update)(usage={"cpu_percent": 5.0})
    assert await ws.receive_nothing(timeout=0.5)
    await ws.disconnect()
