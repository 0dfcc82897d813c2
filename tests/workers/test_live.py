"""The live socket: who may listen, and that nothing is ever missed."""

import asyncio

import pytest
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from django.test import Client

from flowml_site.asgi import application
from tests.factories import MembershipFactory, make_task
from workers import live
from workers.models import emit

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(30)]
OUR_PAGE = (b"origin", b"http://localhost")


def socket(*headers, query=""):
    return WebsocketCommunicator(
        application, f"/ws{query}", headers=[(b"host", b"localhost"), *headers]
    )


def signed_in(membership):
    client = Client()
    client.force_login(membership.user)
    return (b"cookie", f"sessionid={client.cookies['sessionid'].value}".encode())


async def setup():
    membership = await sync_to_async(MembershipFactory)()
    task = await sync_to_async(make_task)(membership.organization)
    cookie = await sync_to_async(signed_in)(membership)
    return membership, task, cookie


async def opened(*headers, query=""):
    ws = socket(*headers, query=query)
    connected, _ = await ws.connect()
    assert connected
    return ws


async def test_a_listener_gets_what_was_before_and_then_what_comes():
    _, task, cookie = await setup()
    ws = await opened(OUR_PAGE, cookie)
    await ws.send_json_to({"subscribe": task.stream_id, "after": 0})
    first = await ws.receive_json_from()
    assert (first["seq"], first["type"]) == (1, "task.queued")
    for number in range(20):
        await sync_to_async(emit)(task.stream_id, "log", {"n": number})
    heard = [await ws.receive_json_from(timeout=5) for _ in range(20)]
    assert [event["seq"] for event in heard] == list(range(2, 22))
    assert [event["data"]["n"] for event in heard] == list(range(20))
    await ws.disconnect()


async def test_who_reconnects_misses_nothing_and_gets_nothing_twice():
    _, task, cookie = await setup()
    for number in range(5):
        await sync_to_async(emit)(task.stream_id, "log", {"n": number})
    ws = await opened(OUR_PAGE, cookie)
    await ws.send_json_to({"subscribe": task.stream_id, "after": 3})
    heard = [(await ws.receive_json_from(timeout=5))["seq"] for _ in range(3)]
    assert heard == [4, 5, 6]
    assert await ws.receive_nothing()
    await ws.disconnect()


async def test_a_lost_push_is_made_up_for(monkeypatch):
    monkeypatch.setattr("workers.models.push.notify", lambda *_: None)
    monkeypatch.setattr("workers.consumers.POLL_S", 0.2)
    _, task, cookie = await setup()
    ws = await opened(OUR_PAGE, cookie)
    await ws.send_json_to({"subscribe": task.stream_id, "after": 1})
    await sync_to_async(emit)(task.stream_id, "log", {})
    assert (await ws.receive_json_from(timeout=5))["seq"] == 2
    await ws.disconnect()


async def test_another_organizations_topic_is_not_found_and_so_is_one_that_is_nowhere():
    _, _, cookie = await setup()
    foreign = await sync_to_async(make_task)()
    ws = await opened(OUR_PAGE, cookie)
    for topic in (foreign.stream_id, "job:nowhere"):
        await ws.send_json_to({"subscribe": topic, "after": 0})
        assert await ws.receive_json_from() == {"error": "not-found", "topic": topic}
    await sync_to_async(emit)(foreign.stream_id, "log", {})
    assert await ws.receive_nothing(timeout=0.3)
    await ws.disconnect()


async def refused(ws):
    connected, _ = await ws.connect()
    if not connected:
        return True
    said = await ws.receive_json_from()
    closed = await ws.receive_output()
    return said == {"error": "unauthenticated"} and closed["type"] == "websocket.close"


async def test_anonymous_people_and_strange_pages_are_refused():
    _, _, cookie = await setup()
    assert await refused(socket(OUR_PAGE))
    assert await refused(socket((b"origin", b"http://evil.example"), cookie))
    assert await refused(socket(cookie)), "a cookie without an Origin is no browser page of ours"


async def test_a_ticket_opens_one_connection():
    membership, task, _ = await setup()
    ticket = await sync_to_async(live.make_ticket)(membership.user_id)
    ws = await opened(query=f"?ticket={ticket}")
    await ws.send_json_to({"subscribe": task.stream_id, "after": 0})
    assert (await ws.receive_json_from())["seq"] == 1
    await ws.disconnect()
    assert await refused(socket(query=f"?ticket={ticket}"))


async def test_nonsense_is_answered_and_does_no_harm():
    _, task, cookie = await setup()
    ws = await opened(OUR_PAGE, cookie)
    await ws.send_json_to({"subscribe": 7})
    assert await ws.receive_json_from() == {"error": "bad-message"}
    await ws.send_json_to({"subscribe": task.stream_id, "after": "x"})
    assert (await asyncio.wait_for(ws.receive_json_from(), 5))["seq"] == 1
    await ws.disconnect()
