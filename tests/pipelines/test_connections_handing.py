"""Whom the secrets of a connection reach: the node that does the work, and nobody else."""

import pytest
from django.test import Client

from organizations.models import Organization
from pipelines.models import Connection
from tests.factories import MembershipFactory, OrganizationFactory, WorkerFactory, make_task
from tests.pipelines import make
from workers import actions
from workers.models import Event, Task

pytestmark = pytest.mark.django_db
SECRET = "hunter2-of-the-warehouse"
JSON = "application/json"


@pytest.fixture
def by():
    return MembershipFactory()


@pytest.fixture
def warehouse(by):
    settings = {"host": "warehouse.example.org", "port": 5432, "database": "d", "user": "u"}
    return make.connection(
        by, "warehouse", kind="postgres", settings=settings, secrets={"password": SECRET}
    )


def queue(connection: Connection, kind: str = "pipeline.sql") -> Task:
    payload = {"connection": {"id": str(connection.pk)}, "sql": "SELECT 1"}
    return make_task(connection.organization, kind=kind, payload=payload, engine="")


def claim(client: Client, organization: Organization | None = None):
    name = f"node-of-{organization}"
    WorkerFactory(
        name=name, token_hash=WorkerFactory._meta.model.hash_token(name), queues=["cpu"],
        organization=organization,
    )  # fmt: skip
    return client.post(
        "/api/workers/claim",
        {"room": {"slots": 1, "light_slots": 1, "cpu_millis": 2000, "ram_mib": 4096}},
        content_type=JSON,
        headers={"Authorization": f"Worker {name}"},
    )


@pytest.mark.parametrize("own", [False, True])
def test_the_node_that_does_the_work_is_told(client, warehouse, settings, own):
    settings.REACH = "warehouse.example.org:5432"
    task = queue(warehouse)
    answer = claim(client, warehouse.organization if own else None)
    assert answer.status_code == 200
    assert answer.json()["confidential"] == {
        "kind": "postgres",
        "settings": warehouse.settings,
        "secrets": {"password": SECRET},
        "reach": "warehouse.example.org:5432",
        "max_bytes": settings.MAX_UPLOAD_SIZE_MB * 2**20,
    }
    # And nothing that is stored or shown of the task holds it.
    task.refresh_from_db()
    assert task.state == "running"
    rows = [*Task.objects.values(), *Event.objects.values(), *Connection.objects.values()]
    assert SECRET not in str(rows)
    assert SECRET not in str(actions.claim_answer(task))


def test_no_other_node_gets_the_task_and_other_tasks_bring_nothing(client, warehouse):
    queue(warehouse)
    assert claim(client, OrganizationFactory(name="other")).status_code == 204
    assert claim(client).status_code == 200
    make_task(warehouse.organization, kind="dataset.ingest", engine="", payload={
        "connection": {"id": str(warehouse.pk)}
    })  # fmt: skip
    second = claim(client, warehouse.organization)
    assert second.status_code == 200
    assert "confidential" not in second.json()


def test_a_connection_of_somebody_else_is_not_told(client, warehouse):
    payload = {"connection": {"id": str(warehouse.pk)}, "sql": "SELECT 1"}
    make_task(OrganizationFactory(), kind="pipeline.sql", payload=payload, engine="")
    assert claim(client).json()["confidential"] == {"problem": "The connection was deleted."}


def test_what_cannot_be_told_is_said_so(client, warehouse, settings):
    home = warehouse.organization
    make_task(home, kind="pipeline.test", payload={"connection": {"id": "x"}}, engine="")
    told = claim(client).json()["confidential"]
    assert told == {"problem": "The task names no connection."}
    queue(warehouse)
    Connection.objects.update(secrets_sealed="sealed-under-another-key")
    assert "Enter them again" in claim(client, home).json()["confidential"]["problem"]
