"""Who may listen to which topic, and what a listener has missed."""

import secrets
from typing import Any

from django.core.cache import cache
from django.db.models import Count, Q

from accounts.credentials import Credential
from accounts.models import User
from workers.fleet import is_operator, state_of
from workers.models import Event, Stream, Worker

FLEET = "workers"  # the one topic that has no stream: each message tells how things are now
TICKET_S = 60
PAGE = 500


def make_ticket(credential: Credential) -> str:
    """A one-time ticket that opens a socket within a minute, for as long as the credential does."""
    ticket = secrets.token_urlsafe(24)
    cache.set(f"live-ticket:{ticket}", credential.told(), TICKET_S)
    return ticket


def take_ticket(ticket: str) -> Credential | None:
    """What the ticket was made with, once; None for one that is unknown, used or too old."""
    key = f"live-ticket:{ticket}"
    told = cache.get(key)
    # Of two who bring the same ticket at once, only one deletes it.
    return None if told is None or not cache.delete(key) else Credential(**told)


def may_listen(user: User, topic: str, auth: Any = None) -> bool:
    """Members listen to the topics of their organizations, and to the fleet that works for them.

    As over HTTP: not where an organization's deletion was asked for. ``auth`` is the credential.
    """
    if topic == FLEET:
        homes = user.memberships.filter(organization__delete_after=None)
        return user.is_active and (is_operator(user, auth) or homes.exists())
    return Stream.objects.filter(
        topic=topic,
        organization__delete_after=None,
        organization__memberships__user=user,
        organization__memberships__user__is_active=True,
    ).exists()


def fleet_now(user: User, auth: Any = None) -> list[dict[str, Any]]:
    """The nodes that the person may see, how busy they are, and what of theirs runs there."""
    nodes = Worker.objects.all()
    mine = user.memberships.values("organization")
    running = Q()
    if not is_operator(user, auth):
        nodes = nodes.filter(Q(organization=None) | Q(organization__in=mine))
        running = Q(allocations__organization__in=mine)
    nodes = nodes.annotate(running=Count("allocations__task", filter=running, distinct=True))
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
