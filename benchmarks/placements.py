"""How many placements a second are made durable in PostgreSQL.

On a PostgreSQL of its own: a cluster of 200 nodes, and deployments that wait for a place. One cycle
takes all of them: it reads the cluster, plans, and writes replicas, allocations, states and events
in one transaction, which is what a crash then leaves in place. Timed from its beginning to the
commit, for several lengths of the line; every cycle begins with the same empty nodes.

    python -m benchmarks.placements [--times 5] [--lines 50 500 2000]

Limit: 400 a second (published for whole systems: kube-scheduler's release gate about 100 pods a
second, Kueue 43 admissions, Nomad's C2M challenge 1,500).
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.common import django_here, tell_load

LIMIT = 400
NODES = 200


def a_cluster() -> Any:
    """200 nodes of 16 cores and 64 GiB, in a cluster of one organization."""
    from django.utils import timezone

    from clusters.models import Cluster, ClusterNode
    from organizations.models import Organization
    from workers.models import Worker

    has = {"cpu": 16, "ram_mib": 65536, "engines": ["pycaret"], "gpus": []}
    home = Organization.objects.create(name="bench")
    cluster = Cluster.objects.create(organization=home, name="bench")
    workers = Worker.objects.bulk_create(
        Worker(
            name=f"node {n}",
            token_hash=f"hash {n}",
            capabilities=has,
            concurrency=100,
            last_seen_at=timezone.now(),
        )
        for n in range(NODES)
    )
    ClusterNode.objects.bulk_create(
        ClusterNode(organization=home, cluster=cluster, worker=worker) for worker in workers
    )
    return cluster


def a_line(cluster: Any, count: int) -> None:
    """So many deployments that wait, small enough to fit all at once."""
    from clusters.models import Deployment, Revision
    from workers.models import Stream

    made = Deployment.objects.bulk_create(
        Deployment(
            organization_id=cluster.organization_id, cluster=cluster, name=f"d{n}",
            ram_mib=512 + 64 * (n % 8), cpu_millis=100 + 50 * (n % 8), priority=n % 4,
        )
        for n in range(count)
    )  # fmt: skip
    revisions = Revision.objects.bulk_create(
        Revision(deployment=one, number=1, engines=["pycaret"]) for one in made
    )
    for one, revision in zip(made, revisions, strict=True):
        one.revision = revision
    Deployment.objects.bulk_update(made, ["revision"], batch_size=1000)
    Stream.objects.bulk_create(
        Stream(topic=one.topic, organization_id=cluster.organization_id) for one in made
    )


def measure(cluster: Any, count: int) -> tuple[float, float]:
    """Seconds of one cycle that places so many: by the clock, and of this process's processor."""
    from django.utils import timezone

    from clusters import cycle
    from clusters.models import Deployment, Replica
    from workers.models import Allocation, Stream, Worker

    a_line(cluster, count)
    Worker.objects.update(last_seen_at=timezone.now())
    began, cpu = time.perf_counter(), time.process_time()
    cycle.run(cluster.pk)
    took = time.perf_counter() - began, time.process_time() - cpu
    placed = Replica.objects.filter(state="scheduled", allocation__isnull=False).count()
    assert placed == count, f"{placed} of {count} were placed"
    Allocation.objects.all().delete()
    Deployment.objects.all().delete()
    Stream.objects.all().delete()
    return took


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--lines", type=int, nargs="+", default=[50, 500, 2000])
    asked = parser.parse_args(arguments)
    rates = []
    with django_here():
        tell_load()
        cluster = a_cluster()
        measure(cluster, 20)  # what is remembered from now on
        for count in asked.lines:
            took = [measure(cluster, count) for _ in range(asked.times)]
            clock, cpu = (statistics.median(some) for some in zip(*took, strict=True))
            rates.append(count / clock)
            print(
                f"{count:>6,} placed in one cycle   {1000 * clock:7.0f} ms   "
                f"{1000 * cpu:7.0f} ms of processor here   {count / clock:7,.0f} a second",
                flush=True,
            )
    good = min(rates) >= LIMIT
    print(f"limit {LIMIT} a second: {'within' if good else 'NOT within'}")


if __name__ == "__main__":
    main()
