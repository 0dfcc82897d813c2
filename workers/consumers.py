"""The live socket ``/ws``: listen to topics, with replay.

The client sends ``{"subscribe": topic, "after": seq}`` or ``{"unsubscribe": topic}``; it gets the
topic's events above ``after`` and then each new one, in order, none left out: whatever is pushed
only says "there is news", and the events are read from the database by sequence number.
"""

import asyncio
import contextlib
from typing import Any
from urllib.parse import parse_qs

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer

from accounts.models import User
from workers import live
from workers.push import group_name

MAX_TOPICS = 50
POLL_S = 10  # how soon a lost push is made up for
UNAUTHENTICATED = 4401


class LiveConsumer(AsyncJsonWebsocketConsumer):
    user: User
    seen: dict[str, int]

    async def connect(self) -> None:
        self.seen = {}
        self._locks: dict[str, asyncio.Lock] = {}
        user = self.scope.get("user")
        ticket = parse_qs(self.scope["query_string"].decode()).get("ticket")
        if ticket:
            user = await database_sync_to_async(live.take_ticket)(ticket[0])
        elif not self._from_our_pages():
            user = None  # a browser's cookie counts only on our own pages
        await self.accept()
        if not isinstance(user, User) or not user.is_active:
            await self.send_json({"error": "unauthenticated"})
            await self.close(UNAUTHENTICATED)
            return
        self.user = user
        self._poll = asyncio.create_task(self._polling())

    def _from_our_pages(self) -> bool:
        """Whether there is an origin at all. That it is ours, the check before us saw to."""
        return any(name == b"origin" for name, _ in self.scope["headers"])

    async def disconnect(self, code: int) -> None:
        if poll := getattr(self, "_poll", None):
            poll.cancel()
        for topic in self.seen:
            await self.channel_layer.group_discard(group_name(topic), self.channel_name)

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        if not hasattr(self, "user") or not isinstance(content, dict):
            return
        topic = content.get("subscribe") or content.get("unsubscribe")
        if not isinstance(topic, str) or len(topic) > 80 or not topic.isprintable():
            await self.send_json({"error": "bad-message"})
        elif "unsubscribe" in content:
            if self.seen.pop(topic, None) is not None:
                await self.channel_layer.group_discard(group_name(topic), self.channel_name)
        elif len(self.seen) >= MAX_TOPICS and topic not in self.seen:
            await self.send_json({"error": "too-many-topics", "topic": topic})
        elif not await database_sync_to_async(live.may_listen)(self.user, topic):
            await self.send_json({"error": "not-found", "topic": topic})
        else:
            after = content.get("after")
            self.seen[topic] = after if isinstance(after, int) and after >= 0 else 0
            await self.channel_layer.group_add(group_name(topic), self.channel_name)
            await self._catch_up(topic)

    async def live_push(self, message: dict[str, Any]) -> None:
        if message["seq"] > self.seen.get(message["topic"], message["seq"]):
            await self._catch_up(message["topic"])

    async def _catch_up(self, topic: str) -> None:
        async with self._locks.setdefault(topic, asyncio.Lock()):
            while topic in self.seen:
                events = await database_sync_to_async(live.missed)(topic, self.seen[topic])
                for event in events:
                    await self.send_json(event)
                    self.seen[topic] = event["seq"]
                if len(events) < live.PAGE:
                    return

    async def _polling(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                await asyncio.sleep(POLL_S)
                for topic in list(self.seen):
                    # Membership may have ended meanwhile.
                    if await database_sync_to_async(live.may_listen)(self.user, topic):
                        await self._catch_up(topic)
                    else:
                        self.seen.pop(topic, None)
                        await self.send_json({"error": "not-found", "topic": topic})
