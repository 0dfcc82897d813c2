"""Heartbeats of many nodes, renewed together."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from asgiref.sync import sync_to_async
from channels.testing import ApplicationCommunicator
from django.conf import settings
from django.db import DataError, connection, transaction
from django.utils import timezone

from flowml_site.asgi import application
from flowml_site.metrics import REQUESTS
from tests.factories import OrganizationFactory, WorkerFactory, make_task
from workers import actions
from workers.api.heartbeat import PATH, thin
from workers.beats import Beat, answer, renew
from workers.fairshare import Room
from workers.models import Task, Worker

pytestmark = pytest.mark.django_db
ROOM = Room(slots=1, light_slots=1, cpu_millis=4000, ram_mib=8192)


def test_each_node_is_answered_for_itself_and_only_its_own_leases_are_renewed():
    nodes = [WorkerFactory() for _ in range(3)]
    tasks = []
    for node in nodes[:2]:
        make_task()
        tasks.append(actions.claim(node, ROOM))
    soon = timezone.now() + timedelta(seconds=1)
    Task.objects.update(lease_expires_at=soon)
    actions.cancel_task(tasks[1], by="ada")
    first, second, thief, void = renew(
        [
            Beat(nodes[0].token_hash, [(tasks[0].pk, 1)], {"load": 1.5}),
            Beat(nodes[1].token_hash, [(tasks[1].pk, 1), (uuid4(), 1)], {}),
            Beat(nodes[2].token_hash, [(tasks[0].pk, 1)], {}),
            Beat("nobody", [(tasks[0].pk, 1)], {}),
        ]
    )
    assert first["tasks"] == {str(tasks[0].pk): "ok"}
    assert set(second["tasks"].values()) == {"cancel", "gone"}
    assert thief["tasks"] == {str(tasks[0].pk): "gone"}
    assert void is None
    for task in tasks:
        task.refresh_from_db()
        assert task.lease_expires_at > soon + timedelta(seconds=settings.LEASE_S / 2)
    assert Worker.objects.get(pk=nodes[0].pk).usage == {"load": 1.5}


def test_a_node_learns_of_work_that_it_may_do_and_of_no_other():
    ours, theirs = OrganizationFactory(), OrganizationFactory()
    nodes = [
        WorkerFactory(),
        WorkerFactory(organization=ours),
        WorkerFactory(organization=theirs),
        WorkerFactory(draining=True),
        WorkerFactory(queues=["gpu"]),
    ]
    beats = [Beat(node.token_hash, [], {}) for node in nodes]
    assert [answer["waiting"] for answer in renew(beats)] == [False] * 5
    make_task(ours)
    assert [answer["waiting"] for answer in renew(beats)] == [True, True, False, False, False]


def test_a_longer_lease_is_not_shortened():
    make_task()
    node = WorkerFactory()
    task = actions.claim(node, ROOM)
    longer = timezone.now() + timedelta(seconds=10 * settings.LEASE_S)
    Task.objects.update(lease_expires_at=longer)
    assert renew([Beat(node.token_hash, [(task.pk, 1)], {})])[0]["tasks"] == {str(task.pk): "ok"}
    task.refresh_from_db()
    assert task.lease_expires_at == longer


@pytest.mark.django_db(transaction=True)
def test_a_heartbeat_waits_for_no_row_and_other_nodes_are_renewed_beside_a_locked_one():
    busy, idle = WorkerFactory(), WorkerFactory()
    tasks = {}
    for node in (busy, idle):
        make_task()
        tasks[node] = actions.claim(node, ROOM)
    soon = timezone.now() + timedelta(seconds=1)
    Task.objects.update(lease_expires_at=soon)
    with ThreadPoolExecutor(1) as pool, transaction.atomic():
        # As another request that is about the node and its task would.
        Worker.objects.select_for_update(no_key=True).get(pk=busy.pk)
        Task.objects.select_for_update(no_key=True).get(pk=tasks[busy].pk)
        answers = pool.submit(
            in_a_thread,
            renew,
            [Beat(node.token_hash, [(task.pk, 1)], {}) for node, task in tasks.items()],
        ).result(20)
    for told, task in zip(answers, tasks.values(), strict=True):
        assert told["tasks"] == {str(task.pk): "ok"}
        task.refresh_from_db()
    assert tasks[busy].lease_expires_at == soon
    assert tasks[idle].lease_expires_at > soon


def test_what_a_node_was_granted_and_never_names_goes_back_unharmed():
    node, busy = WorkerFactory(), WorkerFactory()
    tasks = []
    for one in (node, busy):
        make_task()
        tasks.append(actions.claim(one, ROOM))
    unheard, named = tasks
    renew([Beat(busy.token_hash, [(named.pk, 1)], {})])

    def beats_at(age_s):
        began = timezone.now() - timedelta(seconds=age_s)
        lease = timedelta(seconds=settings.LEASE_S)
        for task in tasks:
            renewed = timedelta(seconds=1) if task == named else timedelta(0)
            Task.objects.filter(pk=task.pk).update(
                started_at=began, lease_expires_at=began + lease + renewed
            )
        renew([Beat(one.token_hash, [], {}) for one in (node, busy)])
        for task in tasks:
            task.refresh_from_db()
        return [(task.state, task.attempt, task.losses) for task in tasks]

    # A heartbeat may have been on its way when the task was granted.
    assert beats_at(0.4 * settings.LEASE_S) == [("running", 1, 0), ("running", 1, 0)]
    # What was named once, and no more, has been begun: that is for its lease to tell.
    assert beats_at(0.6 * settings.LEASE_S) == [("queued", 2, 0), ("running", 1, 0)]
    assert "never heard" in unheard.events.get(type="task.queued", attempt=2).data["why"]


def in_a_thread(work, *args):
    """With a connection of its own, which waits for no lock longer than a moment."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '5s'")
        return work(*args)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("RESET lock_timeout")
        connection.close()


def test_a_thousand_nodes_cost_as_many_queries_as_one(django_assert_num_queries):
    Worker.objects.bulk_create(
        Worker(name=f"n{n}", token_hash=f"h{n}", queues=["cpu"]) for n in range(1000)
    )
    with django_assert_num_queries(4):  # one of them about deployments
        assert len(renew([Beat(f"h{n}", [], {}) for n in range(1000)])) == 1000


SENT = [  # token, body, status
    ("", "{}", 401),
    ("Worker wrong", "{}", 401),
    ("Task x", "{}", 403),
    ("Worker right", "{", 400),
    ("Worker right", '{"running": [{"task": "x"}]}', 400),
    ("Worker right", '{"usage": {"host": "\\u0000"}}', 200),
    ("Worker right", '{"usage": {"cpu_percent": "x"}}', 400),
    ("Worker right", '{"usage": {"ram_used_mib": []}}', 400),
    ("Worker right", f'{{"running": [{{"task": "{UUID(int=1)}", "attempt": {2**40}}}]}}', 400),
    ("Worker right", f'{{"x": "{"x" * 2**20}"}}', 413),
]


@pytest.mark.parametrize(("token", "body", "status"), SENT, ids=range(len(SENT)))
def test_a_heartbeat_over_http(client, token, body, status):
    WorkerFactory(token_hash=Worker.hash_token("right"))
    answer = client.post(
        PATH,
        body,
        content_type="application/json",
        headers={"Authorization": token} if token else {},
    )
    assert answer.status_code == status, answer.content
    if status == 200:
        assert answer.json()["queues"] == ["priority", "pycaret.cpu", "cpu"]
    else:
        assert answer.json()["status"] == status
        assert answer["Content-Type"] == "application/problem+json"


async def over_asgi(token, body, *, method="POST", to=application):
    """Status, headers and JSON of an answer, asked as a node asks."""
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    if token:
        headers.append((b"authorization", token.encode()))
    scope = {
        "type": "http",
        "method": method,
        "path": PATH,
        "query_string": b"",
        "headers": headers,
    }
    call = ApplicationCommunicator(to, scope)
    for n in range(0, len(body) or 1, 1000):  # in pieces, as the network brings it
        more = n + 1000 < len(body)
        piece = body[n : n + 1000].encode()
        await call.send_input({"type": "http.request", "body": piece, "more_body": more})
    start = await call.receive_output(timeout=30)
    rest = await call.receive_output(timeout=30)
    headers = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    return start["status"], headers, json.loads(rest["body"])


@pytest.mark.django_db(transaction=True)
async def test_what_is_answered_around_django_is_what_django_would_answer(async_client):
    node = await sync_to_async(WorkerFactory)(token_hash=Worker.hash_token("right"))
    for token, body, status in SENT:
        here, headers, said = await over_asgi(token, body)
        asked = {"headers": {"Authorization": token}} if token else {}
        there = await async_client.post(PATH, body, content_type="application/json", **asked)
        assert (here, said) == (status, there.json())
        for name in ("content-type", "www-authenticate", "x-content-type-options"):
            assert headers.get(name) == there.headers.get(name)
        assert len(headers["x-request-id"]) == 32
    assert (await over_asgi("Worker right", "", method="GET"))[0] == 405
    await node.arefresh_from_db()
    assert node.last_seen_at > timezone.now() - timedelta(minutes=1)


@pytest.mark.django_db(transaction=True)
async def test_a_heartbeat_needs_nothing_of_django_and_is_counted_like_a_request():
    await sync_to_async(WorkerFactory)(token_hash=Worker.hash_token("right"))

    async def nothing(scope, receive, send):
        raise AssertionError("a heartbeat came to Django")

    counted = []
    to = thin(nothing, lambda *what: counted.append(what[:3]))
    assert (await over_asgi("Worker right", "{}", to=to))[0] == 200
    assert (await over_asgi("Worker wrong", "{}", to=to))[0] == 401
    assert counted == [("POST", PATH, 200), ("POST", PATH, 401)]
    before = REQUESTS.labels("POST", PATH, 200)._value.get()
    await over_asgi("Worker right", "{}")
    assert REQUESTS.labels("POST", PATH, 200)._value.get() == before + 1


async def test_a_fault_of_ours_is_told_and_logged_with_its_number(monkeypatch, caplog):
    async def broken(beats):
        raise OSError("the database is away")

    monkeypatch.setattr("workers.beats._renewed", broken)
    status, headers, said = await over_asgi("Worker right", "{}")
    assert (status, said["code"]) == (500, "internal")
    assert headers["content-type"] == "application/problem+json"
    assert any(getattr(r, "request_id", "") == headers["x-request-id"] for r in caplog.records)


async def test_the_heartbeats_are_renewed_in_no_requests_context(monkeypatch):
    tenant = ContextVar("tenant", default=None)
    seen = []

    async def renewed(beats):
        seen.append(tenant.get())
        return [{}]

    monkeypatch.setattr("workers.beats._renewed", renewed)
    tenant.set("somebody")
    await answer(Beat("x", [], {}))
    assert seen == [None]


@pytest.mark.django_db(transaction=True)
async def test_what_is_wrong_with_one_beat_is_no_other_nodes_trouble():
    node = await sync_to_async(WorkerFactory)()
    bad = Beat(node.token_hash, [(uuid4(), 2**40)], {})
    good = Beat(node.token_hash, [], {})
    refused, answered = await asyncio.gather(answer(bad), answer(good), return_exceptions=True)
    assert isinstance(refused, DataError)
    assert answered["queues"] == node.queues
