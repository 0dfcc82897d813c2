"""Questions that reach a node over its own WebSocket, across processes' channel layers."""

import asyncio
import json
import time
from uuid import uuid4

import pytest
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator

from flowml_site.asgi import application
from tests.factories import WorkerFactory
from workers import relay
from workers.models import Worker

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(60)]


def socket(token):
    headers = [(b"host", b"localhost"), (b"authorization", f"Worker {token}".encode())]
    return WebsocketCommunicator(application, "/ws/node", headers=headers)


async def joined(token="the node's"):
    node = await sync_to_async(WorkerFactory)(token_hash=Worker.hash_token(token))
    return node, await opened(token)


async def opened(token):
    ws = socket(token)
    assert (await ws.connect(timeout=5))[0]
    return ws


def asked(node, body=b"{}", *, tries=6, timeout_s=20.0):
    question = asyncio.to_thread(relay.ask, node.pk, body, tries=tries, timeout_s=timeout_s)
    return asyncio.create_task(question)


async def heard(ws):
    """Number and body of the question that the node gets next."""
    head, _, body = (await ws.receive_from(timeout=10)).partition(b"\n")
    return head.decode(), body


async def say(ws, number, body, status=200):
    await ws.send_to(bytes_data=f"{number} {status}\n".encode() + body)


async def test_questions_are_answered_each_to_its_asker():
    node, ws = await joined()
    questions = [asked(node, f"question {n}".encode()) for n in range(5)]
    for number, body in reversed([await heard(ws) for _ in questions]):
        await say(ws, number, b"answer to " + body, status=201)
    answers = await asyncio.gather(*questions)
    assert answers == [(201, f"answer to question {n}".encode()) for n in range(5)]
    await ws.disconnect()


async def test_a_node_that_connects_anew_is_waited_for_and_the_older_socket_gets_nothing():
    node, first = await joined()
    second = await opened("the node's")
    assert (await first.receive_output(timeout=5))["type"] == "websocket.close"
    question = asked(node)
    number, _ = await heard(second)
    await second.disconnect()  # it had taken the question: the asker hears of it at once
    status, body = await question
    assert (status, json.loads(body)["detail"]) == (503, "lost its connection")

    question = asked(node)
    await asyncio.sleep(0.3)
    third = await opened("the node's")
    number, _ = await heard(third)
    await say(third, number, b"back")
    assert await question == (200, b"back")
    await third.disconnect()


async def test_nobody_there_is_told_and_so_is_a_question_that_is_too_large():
    node = await sync_to_async(WorkerFactory)()
    with pytest.raises(relay.NotConnected):
        await asked(node, tries=1)
    with pytest.raises(relay.TooLarge):
        await asked(node, b"x" * (relay.MAX_ASKED + 1))


async def test_who_gives_up_is_forgotten_on_the_whole_way():
    node, ws = await joined()
    question = asked(node, timeout_s=0.5)
    number, _ = await heard(ws)
    with pytest.raises(TimeoutError):
        await question
    assert json.loads(await ws.receive_from(timeout=5)) == {"forget": number}
    await say(ws, number, b"too late")  # does no harm
    question = asked(node)
    await say(ws, (await heard(ws))[0], b"in time")
    assert await question == (200, b"in time")
    await ws.disconnect()


async def test_no_more_than_so_many_wait_for_one_node():
    node, ws = await joined()
    questions = [asked(node, timeout_s=10) for _ in range(4)]
    numbers = [(await heard(ws))[0] for _ in questions]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relay, "MAX_IN_FLIGHT", 4)
        status, body = await asked(node)
    assert (status, "too many" in json.loads(body)["detail"]) == (503, True)
    for number in numbers:
        await say(ws, number, b"ok")
    assert set(await asyncio.gather(*questions)) == {(200, b"ok")}
    await ws.disconnect()


async def test_a_node_answers_only_what_it_was_asked():
    """Another node's question can't be answered by one that guesses or overhears its number."""
    node, ws = await joined()
    _, other = await joined("another's")
    question = asked(node)
    number, _ = await heard(ws)
    await say(other, number, b"forged")
    for nonsense in (b"\n", b"x", b"1 2 3\n", f"{number} OK\n".encode(), uuid4().bytes):
        await other.send_to(bytes_data=nonsense)
    await other.send_to(text_data="{")
    await say(ws, number, b"right")
    assert await question == (200, b"right")
    assert await other.receive_nothing()
    await ws.disconnect()
    await other.disconnect()


@pytest.mark.parametrize("scheme", ["Worker wrong", "Worker ", "Task x", ""])
async def test_only_nodes_may_open_it(scheme):
    node = await sync_to_async(WorkerFactory)(token_hash=Worker.hash_token(""))
    headers = [(b"host", b"localhost")]
    headers += [(b"authorization", scheme.encode())] if scheme else []
    stranger = WebsocketCommunicator(application, "/ws/node", headers=headers)
    assert (await stranger.connect(timeout=5))[0] is False
    assert node.pk


async def test_a_void_token_closes_the_socket(monkeypatch):
    node, ws = await joined()
    await sync_to_async(Worker.objects.filter(pk=node.pk).update)(token_hash="new")
    began = time.monotonic()
    relay.tell(node.pk, {"type": "relay.check"})
    assert (await ws.receive_output(timeout=5))["type"] == "websocket.close"
    assert time.monotonic() - began < 5
