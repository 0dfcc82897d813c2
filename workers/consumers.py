"""The live socket ``/ws``: listen to topics, with replay; and ``/ws/node``, which nodes open.

The client sends ``{"subscribe": topic, "after": seq}`` or ``{"unsubscribe": topic}``; it gets the
topic's events above ``after`` and then each new one, in order, none left out: whatever is pushed
only says "there is news", and the events are read from the database by sequence number.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer, AsyncWebsocketConsumer

from accounts import credentials
from accounts.credentials import Credential
from accounts.models import User
from workers import live, metrics, relay
from workers.models import Worker
from workers.push import group_name

log = logging.getLogger(__name__)

MAX_TOPICS = 50
MAX_SOCKETS = 50  # of one person, in each web process: every one asks the database at each poll
POLL_S = 10  # how soon a lost push is made up for
FLEET_S = 2.0
UNAUTHENTICATED = 4401
REPLACED = 4409
TOO_MANY = 4429
_open: Counter[UUID] = Counter()  # sockets in this process, by person


class LiveConsumer(AsyncJsonWebsocketConsumer):
    """One socket of a person. It lives as long as what it was opened with: a session that is signed
    out, a token that is revoked, a person who is switched off end it with the next poll."""

    user: User  # as they are stored now; read anew at each poll, with what limits them
    auth: Any
    seen: dict[str, int]
    _counted: UUID | None = None
    _poll: asyncio.Task[None] | None = None
    _fleet: asyncio.Task[None] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen = {}
        self._later: dict[str, Any] = {}  # wishes that could not be looked at: topic, after
        self._locks: dict[str, asyncio.Lock] = {}

    async def __call__(self, *channel: Any) -> None:
        metrics.SOCKETS.labels("live").inc()
        try:
            await super().__call__(*channel)
        finally:  # nobody says goodbye to a socket that an error ends
            metrics.SOCKETS.labels("live").dec()
            await self._over()

    async def connect(self) -> None:
        self._credential = await self._shown()
        await self.accept()
        if not await self._is_let_in():
            await self._turn_away()
            return
        if _open[self.user.pk] >= MAX_SOCKETS:
            await self.send_json({"error": "too-many-sockets"})
            await self.close(TOO_MANY)
            return
        self._counted = self.user.pk
        _open[self._counted] += 1
        self._poll = asyncio.create_task(self._polling())

    async def _shown(self) -> Credential | None:
        ticket = parse_qs(self.scope["query_string"].decode()).get("ticket")
        if ticket:
            return await database_sync_to_async(live.take_ticket)(ticket[0])
        user = self.scope.get("user")
        # A browser's cookie counts only on our own pages.
        if not self._from_our_pages() or not isinstance(user, User):
            return None
        return credentials.of_request(user, None, self.scope.get("session"))

    async def _is_let_in(self) -> bool:
        """Look again whether the credential still opens, and who the person is by now."""
        shown = self._credential
        holder = await database_sync_to_async(shown.holder)() if shown else None
        if holder is None:
            return False
        self.user, self.auth = holder
        return True

    async def _turn_away(self) -> None:
        await self._forget_all()
        await self.send_json({"error": "unauthenticated"})
        await self.close(UNAUTHENTICATED)

    async def _forget_all(self) -> None:
        self._stop_fleet()
        self._later.clear()
        topics, self.seen = list(self.seen), {}
        for topic in topics:
            await self.channel_layer.group_discard(group_name(topic), self.channel_name)

    def _from_our_pages(self) -> bool:
        """Whether there is an origin at all. That it is ours, the check before us saw to."""
        return any(name == b"origin" for name, _ in self.scope["headers"])

    async def _over(self) -> None:
        if (person := self._counted) is not None:
            self._counted = None
            _open[person] -= 1
            if not _open[person]:
                del _open[person]
        if self._poll is not None:
            self._poll.cancel()
        with _going_on():
            await self._forget_all()

    def _stop_fleet(self) -> None:
        if self._fleet is not None:
            self._fleet.cancel()
            self._fleet = None

    async def receive(
        self, text_data: str | None = None, bytes_data: bytes | None = None, **kwargs: Any
    ) -> None:
        content = None
        with contextlib.suppress(ValueError, RecursionError):
            content = await self.decode_json(text_data or "")
        await self.receive_json(content)

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        if self._counted is None:  # turned away, and about to be closed
            return
        said = content if isinstance(content, dict) else {}
        topic = said.get("subscribe") or said.get("unsubscribe")
        if not isinstance(topic, str) or len(topic) > 80 or not topic.isprintable():
            await self.send_json({"error": "bad-message"})
        elif "unsubscribe" in said:
            self._later.pop(topic, None)
            if topic == live.FLEET:
                self._stop_fleet()
            if self.seen.pop(topic, None) is not None:
                with _going_on():
                    await self.channel_layer.group_discard(group_name(topic), self.channel_name)
        elif len({topic, *self.seen, *self._later}) > MAX_TOPICS:
            await self.send_json({"error": "too-many-topics", "topic": topic})
        else:
            await self._subscribe(topic, said.get("after"))

    async def _subscribe(self, topic: str, after: Any) -> None:
        """Begin to tell of a topic; with the next poll if the database or Valkey is away now."""
        self._later[topic] = after
        with _going_on():
            allowed = await self._may_listen(topic)
            if allowed and topic != live.FLEET:
                await self.channel_layer.group_add(group_name(topic), self.channel_name)
            if self._later.pop(topic, self) is self:
                return  # taken back meanwhile
            if not allowed:
                await self.send_json({"error": "not-found", "topic": topic})
            elif topic != live.FLEET:
                self.seen[topic] = after if isinstance(after, int) and after >= 0 else 0
                await self._catch_up(topic)
            elif self._fleet is None:
                self._fleet = asyncio.create_task(self._telling_of_the_fleet())

    async def _may_listen(self, topic: str) -> bool:
        return await database_sync_to_async(live.may_listen)(self.user, topic, self.auth)

    async def _telling_of_the_fleet(self) -> None:
        """Tell how the nodes are, when that has changed and at most every two seconds."""
        told: Any = None
        while True:
            with _going_on():
                if not await self._may_listen(live.FLEET):
                    await self.send_json({"error": "not-found", "topic": live.FLEET})
                    self._fleet = None
                    return
                nodes = await database_sync_to_async(live.fleet_now)(self.user, self.auth)
                if nodes != told:
                    told, now = nodes, time.time()
                    at = datetime.fromtimestamp(now, UTC).isoformat()
                    event = {"topic": live.FLEET, "seq": int(now * 10), "type": "fleet", "at": at}
                    await self.send_json({**event, "data": {"nodes": nodes}})
            await asyncio.sleep(FLEET_S)

    async def live_push(self, message: dict[str, Any]) -> None:
        if message["seq"] > self.seen.get(message["topic"], message["seq"]):
            with _going_on():  # the next poll makes up for it
                await self._catch_up(message["topic"])

    async def _missed(self, topic: str, after: int) -> list[dict[str, Any]]:
        """What is sent of the topic's events above ``after``, each with its number as "seq"."""
        return await database_sync_to_async(live.missed)(topic, after)

    async def _catch_up(self, topic: str) -> None:
        async with self._locks.setdefault(topic, asyncio.Lock()):
            while topic in self.seen:
                events = await self._missed(topic, self.seen[topic])
                for event in events:
                    await self.send_json(event)
                    self.seen[topic] = event["seq"]
                if len(events) < live.PAGE:
                    return

    async def _polling(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                await asyncio.sleep(POLL_S)
                with _going_on():
                    if not await self._is_let_in():
                        await self._turn_away()
                        return
                    for topic, after in list(self._later.items()):
                        await self._subscribe(topic, after)
                    for topic in list(self.seen):
                        # Membership may have ended meanwhile.
                        if await self._may_listen(topic):
                            await self._catch_up(topic)
                        else:
                            self.seen.pop(topic, None)
                            await self.send_json({"error": "not-found", "topic": topic})


@contextlib.contextmanager
def _going_on() -> Iterator[None]:
    """Whatever is wrong for a while, as a database that is started again, ends no loop."""
    try:
        yield
    except Exception as problem:
        log.warning("a socket missed a turn", extra={"problem": str(problem)})


class NodeConsumer(AsyncWebsocketConsumer):
    """``/ws/node``: a node's own socket, on which it is asked what web cannot ask it directly.

    Binary messages, a line of head and then the body: ``<id>`` with a prediction request to the
    node, ``<id> <status>`` with its answer back. Text to the node is JSON: {"forget": id}, and
    {"beat": true} where there is something to hear.
    """

    async def connect(self) -> None:
        self.asked: dict[str, str] = {}  # who waits for which answer
        self.node: Any = None
        self._check: asyncio.Task[None] | None = None
        headers = dict(self.scope["headers"])
        scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        self.token_hash = Worker.hash_token(token)
        self.node = await self._owner() if scheme == "Worker" and token else None
        if self.node is None:
            await self.close(UNAUTHENTICATED)
            return
        group = relay.group(self.node)
        await self.channel_layer.group_add(group, self.channel_name)
        # An older socket of the same node may look alive for a while: it must not take questions.
        self.opened_at = time.time()
        await self.channel_layer.group_send(group, {"type": "relay.opened", "at": self.opened_at})
        await self.accept()
        self._check = asyncio.create_task(self._checking())

    @database_sync_to_async
    def _owner(self) -> Any:
        """The id of the node whose token this is, if it is any node's."""
        found = Worker.objects.filter(token_hash=self.token_hash)
        return found.values_list("pk", flat=True).first()

    async def _checking(self) -> None:
        """Close when the token is void: the node was removed, or joined again."""
        while True:
            await asyncio.sleep(POLL_S)
            with contextlib.suppress(Exception):  # the database may be away for a while
                if await self._owner() is None:
                    await self._end(UNAUTHENTICATED)
                    return

    async def _end(self, code: int) -> None:
        """Take no more questions, and close."""
        await self.channel_layer.group_discard(relay.group(self.node), self.channel_name)
        await self.close(code)

    async def disconnect(self, code: int) -> None:
        if self._check is not None:
            self._check.cancel()
        if self.node is not None:
            await self.channel_layer.group_discard(relay.group(self.node), self.channel_name)
            self.node = None
        for number in list(self.asked):
            await self._answer(number, 503, b'{"detail": "lost its connection"}')

    async def relay_opened(self, message: dict[str, Any]) -> None:
        if message["at"] > self.opened_at:
            await self._end(REPLACED)

    async def relay_check(self, message: dict[str, Any]) -> None:
        if await self._owner() is None:
            await self._end(UNAUTHENTICATED)

    async def relay_beat(self, message: dict[str, Any]) -> None:
        await self.send(text_data=json.dumps({"beat": True}))

    async def relay_ask(self, message: dict[str, Any]) -> None:
        number = message["id"]
        if number in self.asked:
            return
        self.asked[number] = message["reply"]
        if len(self.asked) > relay.MAX_IN_FLIGHT:
            await self._answer(number, 503, b'{"detail": "has too many requests waiting"}')
            return
        await self.send(bytes_data=number.encode() + b"\n" + message["body"])
        await self._reply(message["reply"], {"type": "relay.taken", "id": number})

    async def relay_forget(self, message: dict[str, Any]) -> None:
        if self.asked.pop(message["id"], None) is not None:
            await self.send(text_data=json.dumps({"forget": message["id"]}))

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        head, _, body = (bytes_data or b"").partition(b"\n")
        number, _, status = head.decode("latin-1").partition(" ")
        if status.isdigit():
            await self._answer(number, int(status), body)

    async def _answer(self, number: str, status: int, body: bytes) -> None:
        # A node can only answer what it was asked.
        if reply := self.asked.pop(number, None):
            answer = {"type": "relay.answer", "id": number, "status": status, "body": body}
            await self._reply(reply, answer)

    async def _reply(self, channel: str, message: dict[str, Any]) -> None:
        try:
            await self.channel_layer.send(channel, message)
        except Exception as problem:
            log.warning("asker not answered", extra={"problem": str(problem)})
