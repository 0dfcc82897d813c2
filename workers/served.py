"""Which queues somebody serves."""

from collections import defaultdict
from uuid import UUID

from django.db.models import Q, QuerySet

from workers.models import Task, Worker


def served(*, but: str = "") -> dict[UUID | None, set[str]]:
    """The queues of the nodes that are alive and take work, by the organization they work for.

    Under None stand those that serve everybody, ``but`` the one of this name.
    """
    found: dict[UUID | None, set[str]] = defaultdict(set)
    nodes = Worker.objects.filter(last_seen_at__gte=Worker.alive_since(), draining=False)
    nodes = nodes.exclude(name=but, organization=None)
    for organization, queues in nodes.values_list("organization", "queues"):
        found[organization].update(queues)
    return found


def unserved(tasks: QuerySet[Task], *, but: str = "") -> QuerySet[Task]:
    """Those of ``tasks`` that wait on a queue which no node serves for their organization."""
    by_whom = served(but=but)
    helped = Q(queue__in=by_whom.pop(None, set()))
    for organization, queues in by_whom.items():
        helped |= Q(organization=organization, queue__in=queues)
    return tasks.filter(~helped, state=Task.State.QUEUED)
