"""The live socket: who may listen, and that nothing is ever missed."""

import asyncio
import contextlib

import pytest
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from django.db import OperationalError
from django.test import Client

from accounts import actions as accounts
from accounts.models import BrowserSession, PersonalToken, Scope, TokenFamily, User
from flowml_site.asgi import application
from organizations.models import Membership, Organization
from tests.factories import MembershipFactory, WorkerFactory, bearer, make_task
from workers import consumers, live
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


def ticket_of(membership, **headers):
    """A ticket as a program gets it, with a JWT or with what ``headers`` say."""
    answer = Client().post("/api/live-ticket", headers=headers or bearer(membership.user))
    assert answer.status_code == 201, answer.content
    return answer.json()["ticket"]


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
    ticket = await sync_to_async(ticket_of)(membership)
    ws = await opened(query=f"?ticket={ticket}")
    await ws.send_json_to({"subscribe": task.stream_id, "after": 0})
    assert (await ws.receive_json_from())["seq"] == 1
    await ws.disconnect()
    assert await refused(socket(query=f"?ticket={ticket}"))


def token_of(membership, scope=Scope.READ):
    made, secret = accounts.make_token(membership.user, name="ci", scope=scope, days=1)
    return made, ticket_of(membership, Authorization=f"Bearer {secret}")


async def heard_closing(ws):
    """What is said last, and the code that the socket closes with."""
    said = await ws.receive_json_from(timeout=5)
    return said, (await ws.receive_output(timeout=5))["code"]


ENDED = ({"error": "unauthenticated"}, 4401)
ENDINGS = {
    "revoked": lambda one: accounts.revoke_token(PersonalToken.objects.get()),
    "expired": lambda one: PersonalToken.objects.update(expires_at=one.joined_at),
    "signed out": lambda one: TokenFamily.objects.all().delete(),
    "session ended": lambda one: BrowserSession.objects.all().delete(),
    "switched off": lambda one: User.objects.update(is_active=False),
    "another password": lambda one: (one.user.set_password("another one"), one.user.save()),
}


@pytest.mark.parametrize(
    ("by", "ending"),
    [
        ("token", "revoked"), ("token", "expired"), ("token", "switched off"),
        ("family", "signed out"), ("family", "switched off"), ("family", "another password"),
        ("cookie", "session ended"), ("cookie", "switched off"), ("cookie", "another password"),
    ],
)  # fmt: skip
async def test_a_socket_ends_with_what_it_was_opened_with(monkeypatch, by, ending):
    monkeypatch.setattr("workers.consumers.POLL_S", 0.2)
    membership, task, cookie = await setup()
    if by == "cookie":
        ws = await opened(OUR_PAGE, cookie)
    elif by == "family":
        ws = await opened(query=f"?ticket={await sync_to_async(ticket_of)(membership)}")
    else:
        _, ticket = await sync_to_async(token_of)(membership)
        ws = await opened(query=f"?ticket={ticket}")
    await ws.send_json_to({"subscribe": task.stream_id, "after": 1})
    assert await ws.receive_nothing(timeout=0.6), "it stays open over several polls"
    await sync_to_async(ENDINGS[ending])(membership)
    assert await heard_closing(ws) == ENDED
    await ws.disconnect()


async def test_a_ticket_is_worth_what_it_was_made_with():
    membership, _, _ = await setup()
    token, ticket = await sync_to_async(token_of)(membership)
    await sync_to_async(accounts.revoke_token)(token)
    assert await refused(socket(query=f"?ticket={ticket}"))


async def test_a_token_limits_a_socket_as_it_limits_http(monkeypatch):
    monkeypatch.setattr("workers.consumers.FLEET_S", 0.1)
    membership, _, _ = await setup()
    await User.objects.aupdate(is_staff=True, is_superuser=True)
    foreign = await sync_to_async(MembershipFactory)()
    await sync_to_async(WorkerFactory)(name="theirs", organization=foreign.organization)
    for scope, sees in ((Scope.READ, []), (Scope.ADMIN, ["theirs"])):
        _, ticket = await sync_to_async(token_of)(membership, scope)
        ws = await opened(query=f"?ticket={ticket}")
        await ws.send_json_to({"subscribe": live.FLEET})
        told = await ws.receive_json_from(timeout=5)
        assert [node["name"] for node in told["data"]["nodes"]] == sees
        await ws.disconnect()


async def test_who_is_no_operator_any_more_sees_the_fleet_as_others_do(monkeypatch):
    monkeypatch.setattr("workers.consumers.POLL_S", 0.2)
    monkeypatch.setattr("workers.consumers.FLEET_S", 0.1)
    membership, _, cookie = await setup()
    await User.objects.aupdate(is_staff=True, is_superuser=True)
    foreign = await sync_to_async(MembershipFactory)()
    await sync_to_async(WorkerFactory)(name="theirs", organization=foreign.organization)
    ws = await opened(OUR_PAGE, cookie)
    await ws.send_json_to({"subscribe": live.FLEET})
    assert len((await ws.receive_json_from(timeout=5))["data"]["nodes"]) == 1
    await User.objects.aupdate(is_staff=False, is_superuser=False)
    assert (await ws.receive_json_from(timeout=5))["data"]["nodes"] == []
    await Membership.objects.filter(user=membership.user).adelete()
    assert await ws.receive_json_from(timeout=5) == {"error": "not-found", "topic": live.FLEET}
    await ws.disconnect()


async def test_staff_of_no_organization_hear_what_they_may_run_alone():
    membership, _, cookie = await setup()
    await Membership.objects.all().adelete()
    await User.objects.filter(pk=membership.user_id).aupdate(is_staff=True)
    ws = await opened(OUR_PAGE, cookie)
    await ws.send_json_to({"subscribe": live.FLEET})
    assert await ws.receive_json_from(timeout=5) == {"error": "not-found", "topic": live.FLEET}
    await ws.disconnect()


async def test_an_organization_that_is_being_deleted_is_closed_here_too(monkeypatch):
    monkeypatch.setattr("workers.consumers.POLL_S", 0.2)
    membership, task, cookie = await setup()
    ws = await opened(OUR_PAGE, cookie)
    await ws.send_json_to({"subscribe": task.stream_id, "after": 1})
    assert await ws.receive_nothing(timeout=0.4)
    await Organization.objects.aupdate(delete_after=membership.joined_at)
    refusal = {"error": "not-found", "topic": task.stream_id}
    assert await ws.receive_json_from(timeout=5) == refusal
    await ws.disconnect()


async def test_one_person_opens_only_so_many(monkeypatch):
    monkeypatch.setattr(consumers, "MAX_SOCKETS", 2)
    _, _, cookie = await setup()
    *_, others = await setup()
    first, second = [await opened(OUR_PAGE, cookie) for _ in range(2)]
    third = await opened(OUR_PAGE, cookie)
    assert await heard_closing(third) == ({"error": "too-many-sockets"}, 4429)
    await third.disconnect()
    fourth = await opened(OUR_PAGE, others)
    assert await fourth.receive_nothing(timeout=0.3), "another person's is open"
    await first.disconnect()
    again = await opened(OUR_PAGE, cookie)
    assert await again.receive_nothing(timeout=0.3), "there is room again"
    for one in (second, fourth, again):
        await one.disconnect()
    assert not consumers._open


async def test_a_database_that_is_away_for_a_while_ends_no_socket(monkeypatch):
    monkeypatch.setattr("workers.consumers.POLL_S", 0.1)
    monkeypatch.setattr("workers.models.push.notify", lambda *_: None)
    _, task, cookie = await setup()
    ws = await opened(OUR_PAGE, cookie)
    await ws.send_json_to({"subscribe": task.stream_id, "after": 0})
    assert (await ws.receive_json_from(timeout=5))["seq"] == 1
    asked, real = [], live.may_listen

    def away(*said):
        asked.append(said)
        if len(asked) < 3:
            raise OperationalError("the connection is lost")
        return real(*said)

    monkeypatch.setattr(live, "may_listen", away)
    assert await ws.receive_nothing(timeout=0.5)
    await sync_to_async(emit)(task.stream_id, "log", {})
    assert (await ws.receive_json_from(timeout=5))["seq"] == 2
    assert len(asked) >= 3
    await ws.disconnect()


async def test_who_subscribes_while_the_database_is_away_is_told_once_it_is_back(monkeypatch):
    monkeypatch.setattr("workers.consumers.POLL_S", 0.1)
    _, task, cookie = await setup()
    ws = await opened(OUR_PAGE, cookie)
    asked, real = [], live.may_listen

    def away(*said):
        asked.append(said)
        if len(asked) < 3:
            raise OperationalError("the connection is lost")
        return real(*said)

    monkeypatch.setattr(live, "may_listen", away)
    await ws.send_json_to({"subscribe": task.stream_id, "after": 0})
    assert (await ws.receive_json_from(timeout=5))["seq"] == 1
    assert await ws.receive_nothing(timeout=0.3), "once"
    await ws.disconnect()


async def test_what_was_taken_back_while_the_database_was_away_is_not_told(monkeypatch):
    monkeypatch.setattr("workers.consumers.POLL_S", 0.2)
    _, task, cookie = await setup()
    ws = await opened(OUR_PAGE, cookie)
    real = live.may_listen

    def away(*said):
        raise OperationalError("the connection is lost")

    monkeypatch.setattr(live, "may_listen", away)
    await ws.send_json_to({"subscribe": task.stream_id, "after": 0})
    await ws.send_json_to({"unsubscribe": task.stream_id})
    await ws.send_json_to({"subscribe": "job:nowhere", "after": 0})
    assert await ws.receive_nothing(timeout=0.3)
    monkeypatch.setattr(live, "may_listen", real)
    refusal = {"error": "not-found", "topic": "job:nowhere"}
    assert await ws.receive_json_from(timeout=5) == refusal
    assert await ws.receive_nothing(timeout=0.3)
    await ws.disconnect()


async def test_a_socket_that_an_error_ends_leaves_nothing_behind(monkeypatch):
    _, _, cookie = await setup()
    monkeypatch.setattr(consumers.LiveConsumer, "_subscribe", None)  # anything that was forgotten
    ws = await opened(OUR_PAGE, cookie)
    polls = []
    while not polls:  # it is let in a moment after it is open
        await asyncio.sleep(0.05)
        polls = [one for one in asyncio.all_tasks() if "_polling" in str(one.get_coro())]
    await ws.send_json_to({"subscribe": "job:x"})
    with pytest.raises(TypeError):
        await ws.receive_output(timeout=5)
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait_for(polls[0], 5)
    assert not consumers._open


async def test_nonsense_is_answered_and_does_no_harm():
    _, task, cookie = await setup()
    ws = await opened(OUR_PAGE, cookie)
    for nonsense in ('{"subscribe": 7}', "no JSON", "[" * 100_000, "[]", b"\0"):
        kind = "bytes" if isinstance(nonsense, bytes) else "text"
        await ws.send_input({"type": "websocket.receive", kind: nonsense})
        assert await ws.receive_json_from(timeout=5) == {"error": "bad-message"}, nonsense[:20]
    await ws.send_json_to({"subscribe": task.stream_id, "after": "x"})
    assert (await asyncio.wait_for(ws.receive_json_from(), 5))["seq"] == 1
    await ws.disconnect()
