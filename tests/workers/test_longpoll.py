"""A claim that waits, as a node without a broker makes it."""

import asyncio
import json
import threading
import time

import pytest
from asgiref.sync import sync_to_async
from channels.testing import ApplicationCommunicator

from flowml_site.asgi import http
from tests.factories import OrganizationFactory, WorkerFactory, make_task
from workers import actions, joining, longpoll
from workers.models import Worker

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(60)]
ROOM = {"slots": 1, "light_slots": 1, "cpu_millis": 2000, "ram_mib": 4096}
held = longpoll.waiting_claims(http)


@pytest.fixture(autouse=True)
def only_bells(monkeypatch):
    """What comes within the test came by a bell."""
    monkeypatch.setattr(longpoll, "AGAIN_S", 20.0)


@sync_to_async
def a_node(name, organization=None):
    return WorkerFactory(name=name, organization=organization, token_hash=Worker.hash_token(name))


def asks(name, *, wait_s=20.0, room=ROOM):
    body = json.dumps({"room": room}).encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/workers/claim",
        "query_string": f"wait_s={wait_s}".encode(),
        "headers": [
            (b"host", b"localhost"),
            (b"authorization", f"Worker {name}".encode()),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ],
    }
    call = ApplicationCommunicator(held, scope)

    async def answer():
        await call.send_input({"type": "http.request", "body": body})
        start = await call.receive_output(timeout=30)
        rest = await call.receive_output(timeout=30)
        return start["status"], json.loads(rest["body"] or b"null")

    return call, asyncio.create_task(answer())


async def settled():
    """Until all that asked do wait."""
    await asyncio.sleep(1.0)


async def test_a_waiting_node_gets_work_when_it_is_queued():
    await a_node("one")
    _, answer = asks("one")
    await settled()
    assert not answer.done()
    task = await sync_to_async(make_task)()
    status, claim = await asyncio.wait_for(answer, 15)
    assert (status, claim["task"]) == (200, str(task.pk))


async def test_what_waits_already_comes_at_once_and_nothing_is_said_in_the_end():
    await a_node("one")
    began = time.monotonic()
    _, answer = asks("one", wait_s=1)
    assert await answer == (204, None)
    assert time.monotonic() - began >= 0.9
    task = await sync_to_async(make_task)()
    _, answer = asks("one")
    assert (await asyncio.wait_for(answer, 15))[1]["task"] == str(task.pk)


async def test_a_bell_goes_on_to_whoever_can_take_the_work():
    """More nodes than are woken together wait for another organization; one waits for ours."""
    ours, theirs = [await sync_to_async(OrganizationFactory)() for _ in range(2)]
    foreign = []
    for n in range(longpoll.AT_ONCE + 1):
        await a_node(f"theirs {n}", theirs)
        foreign.append(asks(f"theirs {n}"))
    await settled()
    await a_node("ours", ours)
    _, answer = asks("ours")
    await settled()
    task = await sync_to_async(make_task)(ours)
    assert (await asyncio.wait_for(answer, 20))[1]["task"] == str(task.pk)
    assert not any(other.done() for _, other in foreign)
    for call, other in foreign:
        other.cancel()
        await call.send_input({"type": "http.disconnect"})


async def test_two_tasks_wake_two_nodes():
    for name in ("one", "two"):
        await a_node(name)
    answers = [asks(name)[1] for name in ("one", "two")]
    await settled()
    tasks = {str((await sync_to_async(make_task)()).pk) for _ in range(2)}
    claims = await asyncio.wait_for(asyncio.gather(*answers), 20)
    assert {claim["task"] for _, claim in claims} == tasks


async def test_a_token_that_becomes_void_ends_the_wait_and_a_wrong_one_gets_none():
    node = await a_node("one")
    _, answer = asks("nobody")
    assert (await answer)[0] == 401
    _, answer = asks("one")
    await settled()
    await sync_to_async(joining.remove)(node, by=None)
    await sync_to_async(make_task)()
    assert (await asyncio.wait_for(answer, 15))[0] == 401


async def test_a_node_that_is_gone_takes_nothing_more():
    await a_node("one")
    call, answer = asks("one")
    await settled()
    answer.cancel()
    await call.send_input({"type": "http.disconnect"})
    await settled()
    task = await sync_to_async(make_task)()
    await settled()
    await sync_to_async(task.refresh_from_db)()
    assert task.state == "queued"


@pytest.mark.parametrize("wait_s", [0, 20])
@pytest.mark.parametrize("how", ["disconnects", "is cancelled"])
async def test_a_task_that_is_granted_to_a_node_that_just_went_is_handed_back(
    monkeypatch, wait_s, how
):
    await a_node("one")
    task = await sync_to_async(make_task)()
    granted, go_on = threading.Event(), threading.Event()
    claim = actions.claim

    def slow(*args):
        task = claim(*args)
        granted.set()
        go_on.wait(30)
        return task

    monkeypatch.setattr(actions, "claim", slow)
    call, answer = asks("one", wait_s=wait_s)
    assert await asyncio.to_thread(granted.wait, 30)
    answer.cancel()
    if how == "disconnects":
        await call.send_input({"type": "http.disconnect"})
    else:  # as the server does to what does not end after a disconnect
        call.future.cancel()
    await settled()
    go_on.set()
    await eventually_queued(task)
    assert (task.attempt, task.losses, task.worker_id) == (2, 0, None)
    assert await task.events.filter(type="task.lost").acount() == 0


async def eventually_queued(task):
    async with asyncio.timeout(30):
        while task.state != "queued" or task.attempt == 1:
            await asyncio.sleep(0.1)
            await task.arefresh_from_db()


async def test_waiting_nodes_hold_no_threads():
    for n in range(20):
        await a_node(f"node {n}")
    calls = [asks(f"node {n}") for n in range(20)]
    await settled()
    await settled()
    assert threading.active_count() < 20
    for call, answer in calls:
        answer.cancel()
        await call.send_input({"type": "http.disconnect"})
