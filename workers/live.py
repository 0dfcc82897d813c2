"""Who may listen to which topic, and what a listener has missed."""

import secrets
from typing import Any
from uuid import UUID

from django.core.cache import cache

from accounts.models import User
from workers.models import Event, Stream

TICKET_S = 60
PAGE = 500


def make_ticket(user: UUID) -> str:
    """A one-time ticket that opens a socket as ``user`` within a minute."""
    ticket = secrets.token_urlsafe(24)
    cache.set(f"live-ticket:{ticket}", str(user), TICKET_S)
    return ticket


def take_ticket(ticket: str) -> User | None:
    """The ticket's user, once; None for a ticket that is unknown, used or too old."""
    key = f"live-ticket:{ticket}"
    user = cache.get(key)
    # Of two who bring the same ticket at once, only one deletes it.
    if user is None or not cache.delete(key):
        return None
    return User.objects.filter(pk=user, is_active=True).first()


def may_listen(user: User, topic: str) -> bool:
    """Members listen to the topics of their organizations."""
    return Stream.objects.filter(
        topic=topic,
        organization__memberships__user=user,
        organization__memberships__user__is_active=True,
    ).exists()


def missed(topic: str, after: int) -> list[dict[str, Any]]:
    """The events of a topic numbered above ``after``, oldest first, at most PAGE of them."""
    events = Event.objects.filter(stream=topic, seq__gt=after).order_by("seq")[:PAGE]
    return [
        {
            "topic": topic,
            "seq": event.seq,
            "type": event.type,
            "at": event.at.isoformat(),
            "data": event.data,
        }
        for event in events
    ]
