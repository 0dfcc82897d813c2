"""Who may listen to which topic, and what a listener has missed."""

import secrets
from typing import Any
from uuid import UUID

from django.core.cache import cache
from django.db.models import Count, Q

from accounts.models import User
from workers.fleet import is_operator, state_of
from workers.models import Event, Stream, Worker

FLEET = "workers"  # the one topic that has no stream: each message tells how things are now
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
    """Members listen to the topics of their organizations, and to the fleet that works for them."""
    if topic == FLEET:
        return user.is_active and (user.is_staff or user.memberships.exists())
    return Stream.objects.filter(
        topic=topic,
        organization__memberships__user=user,
        organization__memberships__user__is_active=True,
    ).exists()


def fleet_now(user: User) -> list[dict[str, Any]]:
    """The nodes that the person may see, how busy they are, and what of theirs runs there."""
    nodes = Worker.objects.all()
    mine = user.memberships.values("organization")
    running = Q()
    if not is_operator(user):
        nodes = nodes.filter(Q(organization=None) | Q(organization__in=mine))
        running = Q(allocations__organization__in=mine)
    nodes = nodes.annotate(running=Count("allocations", filter=running, distinct=True))
    return [
        {
            "id": str(node.pk),
            "name": node.name,
            "state": state_of(node),
            "running": node.running,
            "concurrency": node.concurrency,
            "cpu_percent": node.usage.get("cpu_percent"),
            "ram_used_mib": node.usage.get("ram_used_mib"),
            "gpus": node.usage.get("gpus", []),
        }
        for node in nodes.order_by("name")
    ]


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
