"""Clusters with nodes that do by hand what a node does."""

import io
from typing import Any
from uuid import UUID

from django.db import connection

from clusters import actions, cycle, nodes
from clusters.models import Cluster, Deployment, Replica
from clusters.scheduling import Resources
from organizations.models import Membership, Role
from tests.factories import WorkerFactory
from tests.training import make
from training import actions as training
from training.models import TrainedModel
from workers.beats import Beat
from workers.files import store_artifact
from workers.models import Worker

GB = 1024


def member(role: int = Role.ADMIN, **fields: Any) -> Membership:
    return make.member(role, **fields)


def node(
    by: Membership, *, ram_gb: float = 10, cpu: float = 4, gpus: int = 0, **more: Any
) -> Worker:
    """A node of the organization's own, with so much room for work."""
    has = {
        "cpu": cpu,
        "ram_mib": int(ram_gb * GB / 0.9) + 1,
        "engines": ["pycaret"],
        "gpus": [{"name": "G", "memory_mib": 8192}] * gpus,
    }
    made: Worker = WorkerFactory(
        organization=by.organization, **{"capabilities": has, "concurrency": 4, **more}
    )
    return made


def cluster(by: Membership, *workers: Worker, **wish: Any) -> Cluster:
    wish = {"name": "main", "nodes": [worker.pk for worker in workers], **wish}
    return actions.make_cluster(by, **wish)


def model(by: Membership) -> TrainedModel:
    """Any model with a file: what it can do is the node's matter."""
    job = make.job(by)
    training.cancel_job(by, job)  # nobody is to claim its task
    file = store_artifact(by.organization, "model", io.BytesIO(b"a model"))
    made: TrainedModel = TrainedModel.objects.create(
        organization=by.organization, job=job, key="pycaret:tree", name="Tree", engine="pycaret",
        state="scored", score=0.9, order_score=-0.9, artifact=file,
    )  # fmt: skip
    type(job).objects.filter(pk=job.pk).update(best_model=made)
    return made


def deploy(
    by: Membership,
    of: TrainedModel,
    name: str,
    *,
    ram_gb: float = 1,
    cpu: float = 0.5,
    gpus: int = 0,
    **wish: Any,
) -> Deployment:
    needs = Resources(int(ram_gb * GB), int(cpu * 1000), gpus)
    return actions.deploy(by, name=name, model=of.pk, needs=needs, **wish)


class Node:
    """A node that starts and ends at once what it is told to, unless it is told otherwise."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.runs: dict[str, int] = {}
        self.said: dict[str, dict[str, Any]] = {}
        self.broken: str = ""  # why all that starts here fails
        self.stubborn = False  # what it is to stop goes on

    def beat(self) -> list[dict[str, Any]]:
        """One heartbeat; returns what it was told."""
        Worker.objects.filter(pk=self.worker.pk).update(last_seen_at=_now())
        beat = Beat("", [], {}, list(self.said.values()))
        with connection.cursor() as cursor:
            answer = nodes.beat(cursor, [(str(self.worker.pk), beat)])
        told = answer[str(self.worker.pk)]["replicas"]
        named = {one["replica"] for one in told}
        self.said = {key: one for key, one in self.said.items() if key in named}
        for one in told:
            key, state = one["replica"], "running"
            if one["wish"] == "stop":
                state = "running" if self.stubborn else "gone"
            elif self.broken:
                state = "failed"
            self.said[key] = {
                "replica": UUID(key),
                "generation": one["generation"],
                "state": state,
                "why": self.broken if state == "failed" else "",
            }
        return told


def _now() -> Any:
    from django.utils import timezone

    return timezone.now()


def settle(home: Cluster, *those: Node, rounds: int = 6) -> None:
    """Heartbeats and cycles until nothing changes any more, or so many rounds."""
    for _ in range(rounds):
        cycle.run(home.pk)
        for one in those:
            one.beat()
            one.beat()
    cycle.run(home.pk)


def state(one: Deployment) -> str:
    one.refresh_from_db()
    return str(one.state)


def where(one: Deployment) -> dict[int, str]:
    """Which node has which of its replicas that answer."""
    there = Replica.objects.filter(deployment=one, state="running")
    return dict(there.values_list("number", "node_name"))


def running(by: Membership, of: TrainedModel, name: str, on: Worker) -> Deployment:
    """A deployment of two revisions whose only replica answers on this node."""
    home = Cluster.objects.get(nodes__worker=on)
    made = deploy(by, of, name, cluster=home.pk)
    actions.change(by, made, env={"A": "1"})
    seen = on.last_seen_at
    settle(home, Node(on))
    Worker.objects.filter(pk=on.pk).update(last_seen_at=seen)
    assert state(made) == "running"
    return made
