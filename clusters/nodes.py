"""What nodes and the platform say to each other about replicas.

The answer to a heartbeat names those that should be on the node, each with its generation: the node
makes it so, and reports how they are with its next heartbeats, again and again. So nothing here
has to arrive, and nothing waits for a row that the cycle has locked: the next heartbeat says it
again.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db.models import Q
from django.utils import timezone

from accounts.errors import NotFound
from clusters import images
from clusters.models import LogLine, Replica
from workers.models import Worker

KEPT_LINES = 5000  # of a deployment's log
LAST_WORDS = timedelta(minutes=2)  # what a replica printed may arrive after its end

_SAID = """
WITH free AS (
  SELECT r.id, r.deployment_id, said.state, said.why
    FROM clusters_replica r
    JOIN unnest(%(ids)s::uuid[], %(generations)s::int[], %(nodes)s::uuid[], %(states)s::text[],
                %(whys)s::text[]) AS said(id, generation, node, state, why)
      ON r.id = said.id AND r.generation = said.generation AND r.node_id = said.node
   WHERE r.ended_at IS NULL AND r.said <> said.state
   ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED
), told AS (
  UPDATE clusters_replica r SET said = free.state, said_why = free.why
    FROM free WHERE r.id = free.id
)
SELECT DISTINCT d.cluster_id FROM free JOIN clusters_deployment d ON d.id = free.deployment_id
"""
_WANTED = """
SELECT node_id::text, id::text, generation, CASE state WHEN 'stopping' THEN 'stop' ELSE 'run' END,
       greatest(0, extract(epoch FROM stop_by - now()))::float8
  FROM clusters_replica
 WHERE node_id = ANY(%(nodes)s::uuid[]) AND ended_at IS NULL
   AND (state <> 'scheduled' OR has_room)
 ORDER BY node_id, generation
"""


def beat(cursor: Any, beats: Sequence[tuple[str, Any]]) -> Mapping[str, dict[str, Any]]:
    """Take in what nodes (id, Beat) report; tell each what should be on it."""
    from clusters import cycle  # it asks for the fleet, which asks for this

    said = [(one, node) for node, beat in beats for one in beat.replicas]
    if said:
        cursor.execute(
            _SAID,
            {
                "ids": [one["replica"] for one, _ in said],
                "generations": [one["generation"] for one, _ in said],
                "nodes": [node for _, node in said],
                "states": [one["state"] for one, _ in said],
                "whys": [one["why"] for one, _ in said],
            },
        )
        for (cluster,) in cursor.fetchall():
            cycle.ask_now(cluster)
    told: dict[str, list[dict[str, Any]]] = {}
    cursor.execute(_WANTED, {"nodes": [node for node, _ in beats]})
    for node, replica, generation, wish, grace_s in cursor.fetchall():
        one = {"replica": replica, "generation": generation, "wish": wish}
        if wish == "stop":
            one["grace_s"] = round(grace_s or 0.0, 1)
        told.setdefault(node, []).append(one)
    return {node: {"replicas": told.get(node, [])} for node, _ in beats}


def what_to_run(node: Worker, replica: UUID) -> dict[str, Any]:
    """All that a node needs to start one of its replicas. Raises NotFound for any other."""
    found = (
        Replica.objects.select_related("deployment", "revision__model__artifact")
        .filter(pk=replica, node=node, ended_at__isnull=True)
        .first()
    )
    if found is None or not found.has_room:
        raise NotFound("This replica is not for this node, or not any more.")
    deployment, revision = found.deployment, found.revision
    told = {
        "replica": str(found.pk),
        "generation": found.generation,
        "deployment": str(deployment.pk),
        "name": deployment.name,
        "organization": str(deployment.organization_id),
        "limits": {
            "ram_mib": deployment.ram_mib,
            "cpu_millis": deployment.cpu_millis,
            "gpus": deployment.gpus,
        },
        "env": revision.env,
    }
    if not revision.image:
        models = [what_is(model) for model in parts_of(revision.model)]
        return {**told, "runtime": "process", "models": models}
    if not images.is_allowed(images.parse(revision.image), settings.CONTAINER_REGISTRIES):
        raise NotFound("The operator does not allow images of this registry any more.")
    lines = LogLine.objects.filter(deployment=deployment, generation=found.generation)
    last = lines.order_by("-id").values_list("at", flat=True).first()
    return {
        **told,
        "runtime": "container",
        "image": revision.image,
        "port": revision.port,
        "health_path": revision.health_path,
        "logged_until": last.isoformat() if last else "",
    }


def take_log(
    node: Worker, replica: UUID, generation: int, lines: Sequence[tuple[datetime, str]]
) -> None:
    """Keep what a replica of the node has printed. Raises NotFound for any other."""
    still = Q(ended_at__isnull=True) | Q(ended_at__gte=timezone.now() - LAST_WORDS)
    found = (
        Replica.objects.select_related("revision")
        .filter(still, pk=replica, node=node, generation=generation)
        .first()
    )
    if found is None:
        raise NotFound("This replica is not for this node, or not any more.")
    LogLine.objects.bulk_create(
        LogLine(
            deployment_id=found.deployment_id, replica=found.number, generation=generation,
            revision=found.revision.number, at=at, text=text,
        )
        for at, text in lines
    )  # fmt: skip
    mine = LogLine.objects.filter(deployment=found.deployment_id).order_by("-id")
    oldest = mine.values_list("id", flat=True)[KEPT_LINES : KEPT_LINES + 1]
    for pk in oldest:
        mine.filter(id__lte=pk).delete()


def what_is(model: Any) -> dict[str, str]:
    """A model as nodes know it: what to fetch, and what shows that it may be loaded."""
    return {
        "artifact": str(model.artifact.pk),
        "sha256": model.artifact.sha256,
        "signature": model.artifact.signature,
        "engine": model.engine,
        "organization": str(model.organization_id),
    }


def parts_of(model: Any) -> list[Any]:
    """The models that have files of their own: itself, or the members of an ensemble."""
    if model.is_ensemble:
        return [part.model for part in model.parts()]
    return [model]
