"""What knowing the caller costs: authentication and tenancy as a share of an API call.

``GET /api/datasets`` with ten data sets, through all of FlowML's middleware, on a PostgreSQL of its
own, its connection given back to the pool after each call as in production. Beside it the same view
open to everybody (no sign-in, no organization, no transaction) and, as the peer, a bare Django view
that reads the same rows. Then the same call with row-level security switched off, and what the
policies cost where a table has no organization of its own: 500 events of one topic.

The ways take turns, so that what else the machine does falls on all alike; processor time (this
process's and the database's) is printed beside the clock for the same reason.

    python -m benchmarks.auth [--calls 400]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil

from benchmarks.common import django_here, tell_load

EVENTS, PAGE = 50_000, 500


@dataclass
class Way:
    name: str
    work: Callable[[], object]
    clock: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def ms(self) -> float:
        return 1000 * statistics.median(self.clock)

    @property
    def cpu_ms(self) -> float:
        return 1000 * sum(self.cpu) / len(self.cpu)  # ticks are coarse: the mean

    def row(self, beside: "Way | None" = None) -> None:
        share = ""
        if beside is not None:
            share = f"{self.ms - beside.ms:+6.2f} ms, {1 - beside.ms / self.ms:4.0%} of it"
        print(
            f"{self.name:<54} {self.ms:6.2f} ms   cpu {self.cpu_ms:5.2f} ms   {share}", flush=True
        )


def cpu_s() -> float:
    """Processor time (s) of this process and of the database's processes."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
        pids = [pid for (pid,) in cursor.fetchall()]
    connection.close()
    total = time.process_time()
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:  # it has ended meanwhile
            continue
        total += times.user + times.system
    return total


def measure(ways: list[Way], calls: int, *, block: int = 20) -> None:
    for way in ways:
        for _ in range(block):
            way.work()  # warm
    for _ in range(max(1, calls // block)):
        for way in ways:
            before = cpu_s()
            for _ in range(block):
                began = time.perf_counter()
                way.work()
                way.clock.append(time.perf_counter() - began)
            way.cpu.append((cpu_s() - before) / block)


def compare(calls: int) -> None:
    from django.contrib.auth import get_user_model
    from django.core.handlers.base import BaseHandler
    from django.db import connection
    from django.http import HttpRequest, JsonResponse
    from django.test import Client, RequestFactory
    from django.urls import path

    from datasets.api.views import DatasetViewSet
    from datasets.models import Dataset
    from flowml_site import urls
    from organizations import rls
    from organizations.actions import register

    person = register(
        username="bench", email="bench@example.org", password="a long way home 7", allowed=True
    )
    home = person.memberships.select_related("organization").get()
    others = [
        register(username=f"o{n}", email=f"o{n}@example.org", password="x", allowed=True)
        for n in range(3)
    ]
    assert get_user_model().objects.count() == 1 + len(others)
    for member in [home, *(other.memberships.get() for other in others)]:
        Dataset.objects.bulk_create(
            Dataset(organization_id=member.organization_id, name=f"d{n}") for n in range(10)
        )

    class Open(DatasetViewSet):
        authentication_classes = permission_classes = ()
        membership = home

    def bare(request: HttpRequest) -> JsonResponse:
        rows = Dataset.objects.filter(organization=home.organization)
        fields = ("id", "name", "description", "state", "created_at", "updated_at", "latest")
        return JsonResponse({"count": rows.count(), "results": list(rows.values(*fields)[:50])})

    urls.urlpatterns += [path("open", Open.as_view({"get": "list"})), path("bare", bare)]
    handler = BaseHandler()
    handler.load_middleware()
    factory = RequestFactory(headers={"Host": "localhost"})

    def call(address: str, **headers: Any) -> Callable[[], object]:
        def once() -> None:
            answer = handler.get_response(factory.get(address, headers=headers))
            assert answer.status_code == 200, answer.content
            connection.close()

        return once

    client = Client(headers={"Host": "localhost"})
    signed = client.post("/api/auth/login", {"username": "bench", "password": "a long way home 7"})
    client.force_login(person)
    made = client.post("/api/auth/tokens", {"name": "b"}, content_type="application/json").json()
    jwt = {"Authorization": f"Bearer {signed.json()['access']}"}
    token = {"Authorization": f"Bearer {made['token']}"}
    session = {"Cookie": f"sessionid={client.cookies['sessionid'].value}"}

    def without() -> None:
        rls._found, kept = (float("inf"), False), rls._found
        try:
            by_jwt()
        finally:
            rls._found = kept

    assert rls.is_ready()
    by_jwt = call("/api/datasets", **jwt)
    peer = Way("peer: a bare Django view of the same rows", call("/bare"))
    open_ = Way("the view, open to everybody", call("/open"))
    plain = Way("by JWT, filters alone", without)
    ways = [
        Way("by JWT, row-level security behind it", by_jwt),
        Way("by session", call("/api/datasets", **session)),
        Way("by personal token", call("/api/datasets", **token)),
    ]
    measure([peer, open_, plain, *ways], calls)
    tell_load()
    print(f"medians of {len(peer.clock)} calls each")
    peer.row()
    open_.row()
    for way in (plain, *ways):
        way.row(open_)
    print(
        f"row-level security, of a call by JWT: {ways[0].ms - plain.ms:+.2f} ms "
        f"({1 - plain.ms / ways[0].ms:.0%}), cpu {ways[0].cpu_ms - plain.cpu_ms:+.2f} ms"
    )
    compare_events(home.organization, max(40, calls // 4))


def compare_events(organization: Any, calls: int) -> None:
    """Rows whose tenant is their parent's: the policy looks at the parent of each."""
    from django.db import connection, transaction

    from organizations import rls
    from workers.actions import open_stream
    from workers.live import missed
    from workers.models import Event

    open_stream("job:bench", organization)
    Event.objects.bulk_create(
        [Event(stream_id="job:bench", seq=n + 1, type="log", data={"n": n}) for n in range(EVENTS)],
        batch_size=5000,
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")

    def as_platform() -> None:
        with transaction.atomic():
            assert len(missed("job:bench", EVENTS // 2)) == PAGE

    def as_tenant() -> None:
        with rls.tenant(organization.pk):
            assert len(missed("job:bench", EVENTS // 2)) == PAGE

    plain = Way(f"{PAGE} of {EVENTS:,} events, as the platform", as_platform)
    tenant = Way(f"{PAGE} of {EVENTS:,} events, as a tenant", as_tenant)
    measure([plain, tenant], calls)
    plain.row()
    tenant.row(plain)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=400)
    asked = parser.parse_args()
    with django_here():
        compare(asked.calls)


if __name__ == "__main__":
    main()
