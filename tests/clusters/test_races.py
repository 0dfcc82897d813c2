"""Tasks and replicas that come for the same room at the same moment."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from django.db import connection
from django.db.models import Sum

from clusters import cycle
from clusters.models import Replica
from clusters.world import total_of
from tests.clusters import make
from tests.clusters.make import deploy
from tests.factories import make_task
from tests.training.make import ROOM
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
