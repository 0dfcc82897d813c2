"""What people do with clusters and deployments. Whatever follows from it, the cycle does."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Case, IntegerField, Q, Sum, Value, When
from django.utils import timezone

from accounts import sealing
from accounts.errors import Conflict, FlowError, Invalid, NotFound
from clusters import canaries, cycle, images, scheduling, watch, words
from clusters.models import (
    CONTAINERS,
    Cluster,
    ClusterNode,
    Dependency,
    Deployment,
    Priority,
    Revision,
)
from clusters.nodes import parts_of
from clusters.scheduling import Resources
from clusters.world import labels_of, total_of
from organizations import quotas, rls
from organizations.audit import record
from organizations.models import Membership, Organization
from organizations.naming import unique
from training import named
from training.actions import start_job
from training.models import TrainedModel, TrainingJob
from training.offers import Ask
from workers.actions import open_stream
from workers.models import Worker, emit

log = logging.getLogger(__name__)

MOST_REPLICAS = 100
JUDGED = timedelta(minutes=10)  # of a canary's requests
CANARY_PERCENT = 10  # where no share was said
MOST_VARIABLES, MOST_ENV_BYTES = 100, 32 * 1024
# Variables that would change how our own code in the process starts.
KEPT_NAMES = ("FLOWML", "PYTHON", "LD_", "PATH", "HOME", "TMPDIR")
NO_CONTAINERS = (
    "Containers can't be deployed yet: the operator allows no registry of images "
    "(FLOWML_CONTAINER_REGISTRIES). Models can be."
)


class Follower(NamedTuple):
    """In whose name a deployment follows an alias: nobody's, but within its organization."""

    organization: Organization
    name: str


class Impossible(Invalid):
    """No node of the cluster could ever run it."""

    code = "impossible"


class InUse(Conflict):
    code = "in-use"


class NoCanary(Conflict):
    code = "no-canary"


def used(home: Organization) -> float:
    """Of the quota ``deployments``: one that nothing may evict counts twice."""
    cost = Case(When(preemptible=True, then=Value(1)), default=Value(2))
    started = Deployment.objects.of(home).there().filter(is_started=True)
    return float(started.aggregate(n=Sum(cost, output_field=IntegerField()))["n"] or 0)


def _cost(preemptible: bool) -> int:
    return 1 if preemptible else 2


def _hours(cluster: Cluster, needs: Resources) -> dict[str, float]:
    """The quotas of hours of which some must be left: none where all nodes are one's own."""
    if not cluster.nodes.filter(worker__organization=None).exists():
        return {}
    return {"cpu_hours": 0, "gpu_hours": 0} if needs.gpus else {"cpu_hours": 0}


# --- Clusters ---


@transaction.atomic
def make_cluster(
    by: Membership,
    *,
    name: str,
    limit: Mapping[str, int | None] | None = None,
    nodes: Sequence[UUID] = (),
    operator: bool = False,
) -> Cluster:
    """A pool of nodes. ``limit``: max_ram_mib, max_cpu_millis, max_gpus. Raises as add_node."""
    with unique("cluster", name):
        cluster = Cluster.objects.create(
            organization=by.organization, name=name, **dict(limit or {})
        )
    record("cluster.made", cluster, by=by, changes={"limit": dict(limit or {})})
    for node in nodes:
        add_node(by, cluster, node, operator=operator)
    return cluster


@transaction.atomic
def change_cluster(
    by: Membership, cluster: Cluster, *, name: str | None = None, **limit: int | None
) -> Cluster:
    """Rename it, or set its limits (None: no limit). What runs over a lower limit goes on."""
    stored = _lock(cluster)
    changes: dict[str, Any] = dict(limit) | ({"name": name} if name is not None else {})
    for key, value in changes.items():
        setattr(stored, key, value)
    if changes:
        with unique("cluster", stored.name):
            stored.save(update_fields=list(changes))
        record("cluster.changed", stored, by=by, changes=changes)
        cycle.ask(stored.pk)
    return stored


@transaction.atomic
def delete_cluster(by: Membership, cluster: Cluster) -> None:
    """Raises InUse while it has deployments."""
    stored = _lock(cluster)
    names = list(stored.deployments.order_by("name").values_list("name", flat=True)[:5])
    if names:
        raise InUse(
            f"The cluster {stored} has deployments ({', '.join(names)}): delete them first."
        )
    record("cluster.deleted", stored, by=by)
    stored.delete()


def placeable(by: Membership, *, operator: bool) -> Any:
    """Nodes that the caller may put into a cluster: the organization's; an operator the platform's.

    ``home`` is the cluster that they are in.
    """
    whose = Q(organization=by.organization)
    if operator:
        whose |= Q(organization=None)
    return Worker.objects.filter(whose)


@transaction.atomic
def add_node(by: Membership, cluster: Cluster, node: UUID, *, operator: bool) -> ClusterNode:
    """Put a node into the cluster.

    Raises NotFound for one that the caller does not see or may not give away, InUse for one that is
    in another cluster.
    """
    stored = _lock(cluster)
    worker = placeable(by, operator=operator).filter(pk=node).first()
    if worker is None:
        if Worker.objects.filter(pk=node, organization=None).exists():
            raise FlowError(
                "This node is the platform's: its operator puts it into a cluster.",
                code="not-your-node",
                status=403,
            )
        raise NotFound("There is no such node here.")
    with rls.platform():  # it may be in another organization's, which the caller does not see
        there = ClusterNode.objects.filter(worker=worker).select_related("cluster").first()
    if there is not None:
        if there.cluster_id == stored.pk:
            return there
        mine = there.organization_id == by.organization_id
        where = f"the cluster {there.cluster}" if mine else "another organization's cluster"
        raise InUse(f"The node {worker} is in {where}: a node is in one at most.")
    made: ClusterNode = ClusterNode.objects.create(
        organization=stored.organization, cluster=stored, worker=worker
    )
    record("cluster.node-added", stored, by=by, changes={"node": worker.name})
    cycle.ask(stored.pk)
    return made


@transaction.atomic
def remove_node(by: Membership, cluster: Cluster, node: UUID) -> None:
    """Take a node out: what runs there moves to the others first, and goes on till then."""
    stored = _lock(cluster)
    there = stored.nodes.select_related("worker").filter(worker=node).first()
    if there is None:
        raise NotFound("There is no such node in this cluster.")
    name = there.worker.name
    there.delete()
    record("cluster.node-removed", stored, by=by, changes={"node": name})
    cycle.ask(stored.pk)


def _lock(cluster: Cluster) -> Cluster:
    """The cluster's row, locked: whoever changes a deployment holds it, as the cycle does."""
    found = Cluster.objects.select_for_update(no_key=True).filter(pk=cluster.pk).first()
    if found is None:
        raise NotFound("There is no such cluster.")
    return found


def cluster_for(home: Organization, cluster: UUID | None) -> Cluster:
    """The cluster of that id, or the organization's only one. Raises NotFound, Invalid."""
    mine = Cluster.objects.of(home)
    if cluster is not None:
        found = mine.filter(pk=cluster).first()
        if found is None:
            raise NotFound("There is no such cluster.")
        return found
    some = list(mine[:2])
    if len(some) == 1:
        return some[0]
    sentence = (
        "Say in which cluster it is to run."
        if some
        else "Your organization has no cluster yet: an admin makes one, with nodes in it."
    )
    raise Invalid(sentence, errors={"cluster_id": [sentence]})


# --- Deployments ---


@transaction.atomic
def deploy(
    by: Membership,
    *,
    name: str,
    cluster: UUID | None = None,
    model: UUID | None = None,
    follows: str = "",
    docker_image: str = "",
    needs: Resources,
    priority: int = Priority.MEDIUM,
    depends_on: Sequence[UUID] = (),
    replicas: int = 1,
    preemptible: bool = True,
    spread: bool = False,
    timeout_s: int = 30,
    max_in_flight: int = 64,
    samples: bool = True,
    drift_threshold: float = 0.2,
    env: Mapping[str, str] | None = None,
    port: int = 8080,
    health_path: str = "/health",
) -> Deployment:
    """Accept a deployment, which runs as soon as there is room, or say at once why it never could.

    Raises Invalid, Impossible, NotFound (cluster, model, dependencies), NameTaken, QuotaReached.
    """
    home = by.organization
    where = _lock(cluster_for(home, cluster))
    made = Deployment(
        organization=home, cluster=where, name=name, ram_mib=needs.ram_mib,
        cpu_millis=needs.cpu_millis, gpus=needs.gpus, priority=priority, preemptible=preemptible,
        spread=spread, replicas=replicas, timeout_s=timeout_s, max_in_flight=max_in_flight,
        samples=samples, drift_threshold=drift_threshold, created_by=by.author, follows=follows,
    )  # fmt: skip
    if follows:
        model = _followed(home, follows, other=model or docker_image)
    revision = _revision(by, model, docker_image, env or {}, port, health_path)
    refuse_impossible(where, needs, revision.labels)
    needed = _dependencies(home, depends_on)
    quotas.reserve(home, deployments=_cost(preemptible), **_hours(where, needs))
    with unique("deployment", name):
        made.save(force_insert=True)
    _add_revision(made, revision)
    Dependency.objects.bulk_create(Dependency(deployment=made, needs=one) for one in needed)
    open_stream(made.topic, home)
    emit(made.topic, "deployment.pending", {"state": made.state, "by": by.name})
    record("deployment.made", made, by=by, changes=_told(made))
    cycle.ask(where.pk)
    return made


def _followed(home: Organization, follows: str, *, other: object = None) -> UUID:
    """The model that a name or an alias means now. Raises Invalid, NotFound, Conflict."""
    if other:
        sentence = "Give a model, an image or an alias to follow: one of them."
        raise Invalid(sentence, errors={"follows": [sentence]})
    version = named.find(home, follows)
    if version.model_id is None:
        raise Conflict(f"{follows} has no model.")
    return UUID(str(version.model_id))


def _told(one: Deployment) -> dict[str, Any]:
    return {
        "cluster": one.cluster.name,
        "needs": words.amounts(one.needs),
        "replicas": one.replicas,
        "priority": Priority(one.priority).label,
        "preemptible": one.preemptible,
    }


def _revision(
    by: Membership | Follower,
    model: UUID | None,
    image: str,
    env: Mapping[str, str],
    port: int,
    health_path: str,
) -> Revision:
    if image:
        allowed = _allowed(image)
        if model is not None:
            sentence = "Give a model or an image, not both."
            raise Invalid(sentence, errors={"docker_image": [sentence]})
        _check_env(env, ("FLOWML",))
        return Revision(
            image=str(allowed),
            env_sealed=sealing.seal(dict(env)) if env else "",
            env_names=sorted(env),
            port=port,
            health_path=health_path,
            engines=[CONTAINERS],
            made_by=by.name[:160],
        )
    if model is None:
        sentence = "Say which model to deploy, or which docker_image."
        raise Invalid(sentence, errors={"model": [sentence]})
    found = (
        TrainedModel.objects.of(by.organization).select_related("artifact").filter(pk=model).first()
    )
    if found is None:
        raise NotFound("There is no such model.")
    parts = parts_of(found)
    if not found.is_usable or any(part.artifact is None for part in parts):
        sentence = "This model can't predict, so it can't be deployed."
        raise Invalid(sentence, errors={"model": [sentence]})
    _check_env(env, KEPT_NAMES)
    return Revision(
        model=found,
        env_sealed=sealing.seal(dict(env)) if env else "",
        env_names=sorted(env),
        port=port,
        health_path=health_path,
        engines=sorted({part.engine for part in parts}),
        own_nodes=any(part.artifact.own_node for part in parts),
        made_by=by.name[:160],
    )


def _allowed(image: str) -> images.Image:
    """The image of that name, if the operator lets it run. Raises Invalid."""
    registries = settings.CONTAINER_REGISTRIES
    if not registries:
        raise Invalid(NO_CONTAINERS, code="no-containers", errors={"docker_image": [NO_CONTAINERS]})
    try:
        found = images.parse(image)
    except ValueError as problem:
        raise Invalid(str(problem), errors={"docker_image": [str(problem)]}) from None
    if not images.is_allowed(found, registries):
        sentence = (
            f"Images of {found.registry}/{found.path} may not run here. The operator allows: "
            f"{', '.join(registries)}."
        )
        raise Invalid(sentence, code="registry-not-allowed", errors={"docker_image": [sentence]})
    return found


def _check_env(env: Mapping[str, str], kept: tuple[str, ...]) -> None:
    problem = ""
    for name in env:
        if not (name.isascii() and name.isidentifier()):
            problem = f"{name[:40]!r} is no name of a variable: letters, digits and underscores."
        elif name.upper().startswith(kept):
            problem = f"{name[:40]} is set by FlowML itself."
        elif "\0" in env[name]:
            problem = f"The value of {name[:40]} holds a zero byte."
    if len(env) > MOST_VARIABLES or sum(map(len, [*env, *env.values()])) > MOST_ENV_BYTES:
        problem = f"At most {MOST_VARIABLES} variables, of {MOST_ENV_BYTES // 1024} KiB together."
    if problem:
        raise Invalid(problem, errors={"env": [problem]})


def _number(one: Deployment, revision: Revision) -> None:
    last = one.revisions.order_by("-number").values_list("number", flat=True).first()
    revision.deployment, revision.number = one, (last or 0) + 1
    revision.save(force_insert=True)


def _add_revision(one: Deployment, revision: Revision) -> None:
    _number(one, revision)
    one.revision = revision
    one.save(update_fields=["revision"])


def refuse_impossible(cluster: Cluster, needs: Resources, labels: frozenset[str]) -> None:
    """Raise Impossible for what no node of the cluster could run though it were empty."""
    has = [
        (total_of(capabilities), labels_of(capabilities, organization))
        for capabilities, organization in Worker.objects.filter(
            cluster_node__cluster=cluster
        ).values_list("capabilities", "organization_id")
    ]
    if not has:
        raise Impossible(
            f"The cluster {cluster} has no nodes yet: an admin adds some.",
            errors={"cluster_id": ["It has no nodes."]},
        )
    good = [scheduling.Node(str(i), total) for i, (total, its) in enumerate(has) if labels <= its]
    if not good:
        sentence = words.reason({"code": "labels", "names": sorted(labels)})
        sentence = sentence.replace(" that is online", "")
        field = "docker_image" if CONTAINERS in labels else "model"
        raise Impossible(sentence, errors={field: [sentence]})
    lacks = scheduling.impossible(needs, good, cluster.limit)
    if lacks is not None:
        sentence = (
            f"No node of the cluster {cluster} could ever run this: even where it is nearest, "
            f"{words.amounts(lacks)} are lacking. Ask for less, or add a larger node."
        )
        fields = ("required_ram_gb", "required_cpu_cores", "required_gpu_count")
        short = [field for field, lack in zip(fields, lacks, strict=True) if lack]
        more = {field: ["More than there is."] for field in short}
        raise Impossible(sentence, errors=more)


def _dependencies(
    home: Organization, wanted: Sequence[UUID], of: Deployment | None = None
) -> list[Deployment]:
    """The deployments that must run first. Raises NotFound, and Invalid for a circle."""
    ids = list(dict.fromkeys(wanted))
    found = list(Deployment.objects.of(home).there().filter(pk__in=ids))
    if len(found) < len(ids):
        raise NotFound("There is no such deployment to depend on.")
    if of is not None:
        # Two who each add half of a circle must not both be let in.
        Organization.objects.select_for_update(no_key=True).get(pk=home.pk)
        edges: dict[UUID, list[UUID]] = {}
        for dependent, needs in Dependency.objects.filter(
            deployment__organization=home
        ).values_list("deployment_id", "needs_id"):
            edges.setdefault(dependent, []).append(needs)
        names = dict(Deployment.objects.of(home).values_list("pk", "name"))
        for one in found:
            if path := _path(edges, one.pk, of.pk):
                circle = " → ".join(names[pk] for pk in [of.pk, *path])
                sentence = f"That would be a circle, in which none could start: {circle}."
                raise Invalid(sentence, code="circle", errors={"depends_on": [sentence]})
    return found


def _path(edges: Mapping[UUID, Iterable[UUID]], start: UUID, end: UUID) -> list[UUID]:
    """A way along the edges, both ends included; [] where there is none."""
    came: dict[UUID, UUID | None] = {start: None}
    left = [start]
    while left:
        one = left.pop()
        if one == end:
            way: list[UUID] = []
            step: UUID | None = one
            while step is not None:
                way.append(step)
                step = came[step]
            return way[::-1]
        for other in edges.get(one, ()):
            if other not in came:
                came[other] = one
                left.append(other)
    return []


@contextmanager
def _held(one: Deployment) -> Iterator[Deployment]:
    """The deployment as it is stored, under its cluster's lock; a cycle follows."""
    with transaction.atomic():
        _lock(one.cluster)
        found = Deployment.objects.there().select_related("cluster", "revision", "canary")
        stored: Deployment | None = found.filter(pk=one.pk).first()
        if stored is None:
            raise NotFound("There is no such deployment any more.")
        stored.organization = one.organization
        yield stored
        cycle.ask(stored.cluster_id)


def change(
    by: Membership,
    one: Deployment,
    *,
    replicas: int | None = None,
    priority: int | None = None,
    preemptible: bool | None = None,
    spread: bool | None = None,
    timeout_s: int | None = None,
    max_in_flight: int | None = None,
    samples: bool | None = None,
    drift_threshold: float | None = None,
    needs: Resources | None = None,
    depends_on: Sequence[UUID] | None = None,
    canary: Mapping[str, Any] | None = None,
    follows: str | None = None,
    **revision: Any,
) -> Deployment:
    """Scale it, change its urgency, or give it a new revision (model, env, port, health_path).

    ``canary`` {model, percent, shadow} tries another model beside it, or changes that one's share.
    ``follows`` is a name or an alias whose model it runs from now on; "" ends that, as does a model
    of its own.

    A new revision's replicas come up beside the old ones, which stop as they answer. What it needs
    changes only while it is stopped. Raises as ``deploy`` does.
    """
    with _held(one) as stored:
        plain = {"replicas": replicas, "priority": priority, "preemptible": preemptible,
                 "spread": spread, "timeout_s": timeout_s,
                 "max_in_flight": max_in_flight, "samples": samples,
                 "drift_threshold": drift_threshold}  # fmt: skip
        changes: dict[str, Any] = {
            key: value
            for key, value in plain.items()
            if value is not None and value != getattr(stored, key)
        }
        if changes.get("preemptible") is False and stored.is_started:
            quotas.reserve(stored.organization, deployments=1)
        if stored.is_started and (replicas or 0) > stored.replicas:
            quotas.reserve(stored.organization, **_hours(stored.cluster, stored.needs))
        if needs is not None and needs != stored.needs:
            if stored.state != Deployment.State.STOPPED:
                raise Conflict(
                    "Stop it first: what a replica needs can't change while it runs.",
                    code="running",
                )
            changes |= dict(zip(("ram_mib", "cpu_millis", "gpus"), needs, strict=True))
        for key, value in changes.items():
            setattr(stored, key, value)
        if changes:
            stored.save(update_fields=list(changes))
        if changes.get("samples") is False:
            stored.sampled.all().delete()
        if depends_on is not None:
            needed = _dependencies(stored.organization, depends_on, of=stored)
            stored.dependencies.exclude(needs__in=needed).delete()
            Dependency.objects.bulk_create(
                [Dependency(deployment=stored, needs=other) for other in needed],
                ignore_conflicts=True,
            )
            changes["depends_on"] = [other.name for other in needed]
        if follows:
            other = revision.get("model") or revision.get("docker_image")
            wanted = _followed(stored.organization, follows, other=other)
            if stored.revision is None or stored.revision.model_id != wanted:
                revision["model"] = wanted
        elif revision.get("model") or revision.get("docker_image"):
            follows = ""
        if follows is not None and follows != stored.follows:
            changes |= {"follows": follows or "nothing"}
            _follow(stored, follows)
        if revision:
            changes |= _revise(by, stored, **revision)
        if canary is not None:
            changes |= _try_canary(by, stored, **canary)
        if changes:
            assert stored.revision is not None
            refuse_impossible(stored.cluster, stored.needs, stored.revision.labels)
            told = {"by": by.name, "changes": {key: str(value) for key, value in changes.items()}}
            emit(stored.topic, "deployment.changed", told)
            record("deployment.changed", stored, by=by, changes=changes)
    return stored


def _follow(stored: Deployment, follows: str) -> None:
    stored.follows, stored.not_followed = follows, {}
    stored.save(update_fields=["follows", "not_followed"])


def follow_all() -> None:
    """Let every deployment that follows an alias run the model that this means now.

    What can't be run is tried once, and told with an event.
    """
    following = Deployment.objects.there().exclude(follows="")
    for one in following.select_related("organization", "revision"):
        try:
            _keep_up(one)
        except FlowError as refusal:
            log.warning(
                "an alias is not followed", extra={"deployment": str(one.pk), "why": str(refusal)}
            )


def _keep_up(one: Deployment) -> None:
    home = one.organization
    try:
        model = _followed(home, one.follows)
    except FlowError as refusal:  # the alias is gone, or means what can't be used: it runs on
        _not_followed(one, "", refusal.detail)
        return
    if one.revision is not None and one.revision.model_id == model:
        if one.not_followed:
            Deployment.objects.filter(pk=one.pk).update(not_followed={})
        return
    if one.not_followed.get("model") == str(model):
        return
    by = Follower(home, one.follows)
    try:
        with _held(one) as stored:
            if stored.follows != one.follows:
                return
            changes = _revise(by, stored, model=model)
            assert stored.revision is not None
            refuse_impossible(stored.cluster, stored.needs, stored.revision.labels)
            told = {key: str(value) for key, value in changes.items()}
            emit(stored.topic, "deployment.changed", {"by": by.name, "changes": told})
            record("deployment.changed", stored, organization=home, by=by.name, changes=changes)
    except FlowError as refusal:
        _not_followed(one, str(model), refusal.detail)


def _not_followed(one: Deployment, model: str, why: str) -> None:
    told = {"model": model, "why": why}
    if one.not_followed == told:
        return
    with transaction.atomic():
        Deployment.objects.filter(pk=one.pk).update(not_followed=told)
        emit(one.topic, "deployment.alias-not-followed", {"alias": one.follows, "why": why})


def retrain(by: Membership, one: Deployment) -> TrainingJob:
    """Train what it runs again, as it was trained, on the newest version of the data set.

    Raises Conflict without a training to repeat or while one runs, and as ``start_job`` does.
    """
    model = one.revision.model if one.revision else None
    if model is None:
        raise Conflict(f"{one} runs no model that could be trained again.", code="no-training")
    if one.retraining is not None and one.retraining.state in TrainingJob.ACTIVE:
        raise Conflict(f"{one} is being trained again already.", code="retraining")
    asked = dict(model.job.request)
    dataset = asked.pop("dataset", None)
    if model.job.dataset_version is None or dataset is None:
        raise Conflict("The data set that it was trained on is gone.", code="no-training")
    asks = [Ask(**ask) for ask in asked.pop("asks", ())]
    asked |= {"version": None, "name": f"{one.name}, again"[:160]}
    with transaction.atomic():
        job = start_job(by, UUID(str(dataset)), asks=asks, **asked)
        Deployment.objects.filter(pk=one.pk).update(retraining=job)
        told = {"by": by.name, "job": str(job.pk)}
        emit(one.topic, "deployment.retraining", told)
        record("deployment.retrained", one, by=by, changes={"job": job.pk})
    return job


def judge_canaries() -> None:
    """Let canaries go that have shown that they are worse than what runs beside them."""
    tried = Deployment.objects.there().filter(canary__isnull=False, is_started=True)
    for one in tried.select_related("canary", "revision", "cluster", "organization"):
        if one.canary is None or one.revision is None:
            continue
        asked = watch.failures(one, timezone.now() - JUDGED)
        nobody = canaries.Asked(0, 0)
        why = canaries.why_abandon(
            int(one.canary_is.get("failures") or 0),
            str(one.canary_is.get("error") or ""),
            asked.get(one.canary.number, nobody),
            asked.get(one.revision.number, nobody),
        )
        if why:
            try:
                abandon("FlowML", one, why=why, number=one.canary.number)
            except NoCanary:
                pass  # somebody was quicker


def _try_canary(
    by: Membership,
    stored: Deployment,
    *,
    model: UUID | None = None,
    docker_image: str = "",
    percent: int | None = None,
    shadow: bool | None = None,
) -> dict[str, Any]:
    """Begin one, or change its share. Raises Invalid without a model where there is none yet."""
    current, tried = stored.revision, stored.canary
    assert current is not None
    image = str(_allowed(docker_image)) if docker_image else ""
    if tried is None and model is None and not image:
        sentence = "Say which model to try."
        raise Invalid(sentence, errors={"canary": [sentence]})
    is_other = tried is None or (tried.model_id, tried.image) != (model, image)
    if (model is not None or image) and is_other:
        if (model, image) == (current.model_id, current.image):
            sentence = "This runs already: try another one."
            raise Invalid(sentence, errors={"canary": [sentence]})
        if bool(image) != bool(current.image):
            sentence = "A model is tried beside a model, and an image beside an image."
            raise Invalid(sentence, errors={"canary": [sentence]})
        tried = _revision(by, model, image, current.env, current.port, current.health_path)
        refuse_impossible(stored.cluster, stored.needs, tried.labels)
        _number(stored, tried)
        stored.canary, stored.canary_is = tried, {}
        stored.canary_percent = CANARY_PERCENT
    if percent is not None:
        stored.canary_percent = percent
    if shadow is not None:
        if shadow and current.image:
            sentence = "Containers have no shadows: asking them twice may do something twice."
            raise Invalid(sentence, errors={"canary": [sentence]})
        stored.canary_is_shadow = shadow
    stored.save(update_fields=["canary", "canary_is", "canary_percent", "canary_is_shadow"])
    assert tried is not None
    share = f"revision {tried.number}, {stored.canary_percent}% of the requests"
    return {"canary": share + (" as a shadow" if stored.canary_is_shadow else "")}


def promote(by: Membership, one: Deployment) -> Deployment:
    """The canary takes all requests: its revision is the deployment's from now on, and the replicas
    of the old one go as it has enough. Raises NoCanary."""
    with _held(one) as stored:
        tried = _canary_of(stored)
        old = stored.revision.number if stored.revision else 0
        stored.revision = tried
        if stored.follows:
            _follow(stored, "")
        _end_canary(stored)
        _fresh_start(stored)
        told = {"revision": tried.number, "from": old}
        emit(stored.topic, "deployment.changed", {"by": by.name, "changes": told})
        record("deployment.canary-promoted", stored, by=by, changes=told)
    return stored


def abandon(
    by: Membership | str, one: Deployment, *, why: str = "", number: int | None = None
) -> Deployment:
    """The canary goes, and gets no request any more.

    Raises NoCanary, where ``number`` is given also when the canary is another revision by now.
    """
    with _held(one) as stored:
        tried = _canary_of(stored)
        if number is not None and tried.number != number:
            raise NoCanary(f"The canary of {stored} is another one by now.")
        _end_canary(stored)
        told = {"by": _name(by), "revision": tried.number, "why": why}
        emit(stored.topic, "deployment.canary-abandoned", told)
        changes = {"revision": tried.number, **({"why": why} if why else {})}
        record("deployment.canary-abandoned", stored, by=by, changes=changes)
    return stored


def _canary_of(stored: Deployment) -> Revision:
    if stored.canary is None:
        raise NoCanary(f"{stored} has no canary: begin one with PATCH.")
    return stored.canary


def _end_canary(stored: Deployment) -> None:
    stored.canary, stored.canary_percent, stored.canary_is = None, 0, {}
    stored.canary_is_shadow = False
    stored.save(
        update_fields=["revision", "canary", "canary_percent", "canary_is", "canary_is_shadow"]
    )


def follow_nothing(by: Membership, one: Deployment) -> Deployment:
    """Stay with the model that runs, whatever the alias means later."""
    return change(by, one, follows="")


def keep_no_samples(by: Membership, one: Deployment) -> Deployment:
    """Keep none from now on, and delete those that there are."""
    return change(by, one, samples=False)


def _revise(by: Membership | Follower, stored: Deployment, **new: Any) -> dict[str, Any]:
    old = stored.revision
    assert old is not None
    env = new.get("env")
    model, image = new.get("model"), new.get("docker_image") or ""
    if not model and not image:
        model, image = old.model_id, old.image
    _add_revision(
        stored,
        _revision(
            by,
            model,
            image,
            old.env if env is None else env,
            new.get("port") or old.port,
            new.get("health_path") or old.health_path,
        ),
    )
    _fresh_start(stored)
    assert stored.revision is not None
    return {"revision": stored.revision.number}


def _fresh_start(stored: Deployment) -> None:
    """Forget earlier crashes: it is something else by now, or somebody has seen to it."""
    stored.failures, stored.not_before, stored.error = 0, None, ""
    stored.save(update_fields=["failures", "not_before", "error"])


def roll_back(by: Membership, one: Deployment, number: int | None = None) -> Deployment:
    """Run an earlier revision again: that of ``number``, or the one before. Raises NotFound."""
    with _held(one) as stored:
        current = stored.revision.number if stored.revision else 0
        earlier = stored.revisions.exclude(number=current)
        earlier = earlier.filter(number=number) if number else earlier.filter(number__lt=current)
        found = earlier.order_by("-number").first()
        if found is None:
            raise NotFound("There is no such revision to go back to.")
        refuse_impossible(stored.cluster, stored.needs, found.labels)
        stored.revision = found
        stored.save(update_fields=["revision"])
        if stored.follows:
            _follow(stored, "")  # or the alias would take it forward again at once
        if stored.canary_id == found.pk:
            _end_canary(stored)
        _fresh_start(stored)
        told = {"revision": found.number, "from": current}
        emit(stored.topic, "deployment.changed", {"by": by.name, "changes": told})
        record("deployment.rolled-back", stored, by=by, changes=told)
    return stored


def stop(by: Membership | str, one: Deployment) -> Deployment:
    """Let its replicas end. It keeps its name and revisions. Again: nothing changes."""
    with _held(one) as stored:
        if stored.is_started:
            stored.is_started = False
            stored.save(update_fields=["is_started"])
            emit(stored.topic, "deployment.stop-asked", {"by": _name(by)})
            record("deployment.stopped", stored, by=by)
    return stored


def start(by: Membership, one: Deployment) -> Deployment:
    """Let it run again. Raises QuotaReached, Impossible."""
    with _held(one) as stored:
        if not stored.is_started:
            assert stored.revision is not None
            refuse_impossible(stored.cluster, stored.needs, stored.revision.labels)
            hours = _hours(stored.cluster, stored.needs)
            quotas.reserve(stored.organization, deployments=_cost(stored.preemptible), **hours)
            stored.is_started, stored.waiting_since = True, timezone.now()
            stored.state = Deployment.State.PENDING
            stored.save(update_fields=["is_started", "waiting_since", "state"])
            _fresh_start(stored)
            emit(stored.topic, "deployment.pending", {"state": "pending", "by": by.name})
            record("deployment.started", stored, by=by)
    return stored


def delete(by: Membership | str, one: Deployment) -> Deployment:
    """Let it end, and forget it then. Its name is free at once. Raises InUse."""
    with _held(one) as stored:
        if names := dependents(stored):
            raise InUse(
                f"{', '.join(names)} can't start without {stored}: delete those first, or let them "
                "depend on something else."
            )
        stored.deleted_at, stored.is_started = timezone.now(), False
        stored.save(update_fields=["deleted_at", "is_started"])
        record("deployment.deleted", stored, by=by)
        if not stored.placed.filter(ended_at__isnull=True).exists():
            cycle.forget([str(stored.pk)])
    return stored


def dependents(one: Deployment) -> list[str]:
    """The names of those that start only while it runs."""
    return list(
        Deployment.objects.there()
        .filter(dependencies__needs=one)
        .order_by("name")
        .values_list("name", flat=True)
    )


def _name(by: Membership | str) -> str:
    return by if isinstance(by, str) else by.name
