"""Tasks and replicas that come for the same room at the same moment."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from threading import Barrier

import pytest
from django.db import connection
from django.db.models import Sum
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from clusters import cycle, serving
from clusters.models import Replica
from clusters.world import total_of
from tests.clusters import make
from tests.clusters.make import deploy
from tests.clusters.test_api import ROW, Api
from tests.factories import make_task
from tests.training.make import ROOM, FakeServing
from workers.claiming import claim
from workers.models import Allocation, Task, Worker


@pytest.mark.django_db(transaction=True)
def test_a_claim_and_a_cycle_never_both_take_the_last_room() -> None:
    by = make.member()
    model = make.model(by)
    nodes = [
        make.node(by, ram_gb=2, queues=["pycaret.cpu"], name=f"n{number}") for number in range(6)
    ]
    home = make.cluster(by, *nodes)
    deploy(by, model, "one", ram_gb=1.5, replicas=6)
    for _ in nodes:
        make_task(by.organization, ram_mib=1536)
    by.organization.max_concurrent_jobs = 20
    by.organization.save()
    together = Barrier(3)

    def claims(some: list[Worker]) -> None:
        together.wait()
        try:
            for node in some:
                claim(node, ROOM)
        finally:
            connection.close()

    def cycles() -> None:
        together.wait()
        try:
            for _ in range(3):
                cycle.run(home.pk)
        finally:
            connection.close()

    with ThreadPoolExecutor(3) as pool:
        work = [pool.submit(claims, nodes[:3]), pool.submit(claims, nodes[3:]), pool.submit(cycles)]
        for one in work:
            one.result(60)
    taken = Allocation.objects.filter(light=False).values("worker").annotate(ram=Sum("ram_mib"))
    most = total_of(nodes[0].capabilities).ram_mib
    assert {row["ram"] for row in taken} == {1536}
    assert max(row["ram"] for row in taken) <= most
    running = Task.objects.filter(state=Task.State.RUNNING).count()
    assert running + Replica.objects.filter(ended_at=None).count() == len(nodes)


@pytest.mark.django_db(transaction=True)
def test_a_prediction_asks_the_database_who_it_is_for_and_nothing_else(tmp_path: Path) -> None:
    by = make.member()
    fake = FakeServing(tmp_path)
    try:
        node = make.Node(make.node(by, address=fake.address))
        home = make.cluster(by, node.worker)
        one = deploy(by, make.model(by), "one")
        make.settle(home, node)
        Worker.objects.update(last_seen_at=timezone.now() + timedelta(hours=1))
        api = Api(by)
        path, rows = f"deployments/{one.pk}/predict", {"rows": [ROW]}
        api("post", path, rows)
        with CaptureQueriesContext(connection) as asked:
            api("post", path, rows)
        told = [query["sql"].split()[0] for query in asked.captured_queries]
        assert told == ["SELECT", "BEGIN", "SELECT", "COMMIT"]  # the sign-in, the membership
        # What it is asked wrongly costs no more, and is told as ever.
        assert api("post", path, {"rows": [{"a": "no number"}]}, 400)["errors"]
    finally:
        fake.stop()
        serving.forget_places()
