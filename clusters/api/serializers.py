from datetime import datetime
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from clusters import queue, words
from clusters.actions import MOST_REPLICAS
from clusters.models import (
    NAME,
    Cluster,
    Deployment,
    DriftReport,
    LogLine,
    Priority,
    Replica,
    Revision,
)
from clusters.outcomes import MOST
from clusters.scheduling import Resources

GB = 1024  # MiB
MOST_GB, MOST_CORES = 2**20, 100_000
MOST_SECONDS, MOST_IN_FLIGHT = 110, 1000  # a node waits for its model server for 120 s


def mib(gb: float) -> int:
    return round(gb * GB)


def resources(some: Resources) -> dict[str, Any]:
    """Amounts with the names that the API uses."""
    ram, cpu, gpus = some
    return {
        "ram_gb": round(ram / GB, 3),
        "cpu_cores": round(cpu / 1000, 3),
        "gpu_count": gpus,
    }


# --- Clusters ---


class ClusterWish(serializers.Serializer[Any]):
    """Without totals its deployments may use all that its nodes have."""

    name = serializers.CharField(max_length=63, validators=[NAME])
    total_ram_gb = serializers.FloatField(
        required=False, allow_null=True, min_value=0, max_value=MOST_GB,
        help_text="The most that its deployments may hold together. Null: all of the nodes'.",
    )  # fmt: skip
    total_cpu_cores = serializers.FloatField(
        required=False, allow_null=True, min_value=0, max_value=MOST_CORES
    )
    total_gpu_count = serializers.IntegerField(
        required=False, allow_null=True, min_value=0, max_value=MOST_CORES
    )

    @property
    def limit(self) -> dict[str, int | None]:
        """The limits that were sent, by column."""
        said = self.validated_data
        found: dict[str, int | None] = {}
        for name, column, scale in (
            ("total_ram_gb", "max_ram_mib", GB),
            ("total_cpu_cores", "max_cpu_millis", 1000),
            ("total_gpu_count", "max_gpus", 1),
        ):
            if name in said:
                found[column] = None if said[name] is None else round(said[name] * scale)
        return found


class NewCluster(ClusterWish):
    node_ids = serializers.ListField(
        child=serializers.UUIDField(), max_length=1000, default=list, help_text="Nodes to put in."
    )


class ClusterChange(ClusterWish):
    name = serializers.CharField(max_length=63, validators=[NAME], required=False)


class NodeWish(serializers.Serializer[Any]):
    node_id = serializers.UUIDField()


class Amounts(serializers.Serializer[Any]):
    ram_gb = serializers.FloatField()
    cpu_cores = serializers.FloatField()
    gpu_count = serializers.IntegerField()

    def to_representation(self, instance: Any) -> dict[str, Any]:
        return resources(instance)


class Limit(serializers.Serializer[Any]):
    ram_gb = serializers.FloatField(allow_null=True)
    cpu_cores = serializers.FloatField(allow_null=True)
    gpu_count = serializers.IntegerField(allow_null=True)


class NodeOfCluster(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    name = serializers.CharField()
    state = serializers.CharField()
    total = Amounts()
    allocated = Amounts(help_text="By deployments and by tasks.")
    free = Amounts()


class LoadStep(serializers.Serializer[Any]):
    """Null where nothing was noted then."""

    at = serializers.DateTimeField(help_text="When the step begins.")
    total = Amounts(allow_null=True)
    allocated = Amounts(allow_null=True, help_text="The most in this step.")
    free = Amounts(allow_null=True, help_text="The least in this step.")
    nodes = serializers.IntegerField(allow_null=True)
    online = serializers.IntegerField(allow_null=True, help_text="The fewest nodes in this step.")


class ClusterHistory(serializers.Serializer[Any]):
    step_s = serializers.IntegerField()
    steps = LoadStep(many=True, help_text="Oldest first.")


class ClusterRow(serializers.ModelSerializer[Cluster]):
    total_ram_gb = serializers.SerializerMethodField()
    total_cpu_cores = serializers.SerializerMethodField()
    total_gpu_count = serializers.SerializerMethodField()
    node_count = serializers.IntegerField(read_only=True)
    deployment_count = serializers.IntegerField(read_only=True)

    class Meta:
        model = Cluster
        fields = (
            "id", "name", "total_ram_gb", "total_cpu_cores", "total_gpu_count", "node_count",
            "deployment_count", "created_at",
        )  # fmt: skip

    def get_total_ram_gb(self, cluster: Any) -> float:
        return float(resources(cluster.total)["ram_gb"])

    def get_total_cpu_cores(self, cluster: Any) -> float:
        return float(resources(cluster.total)["cpu_cores"])

    def get_total_gpu_count(self, cluster: Any) -> int:
        return int(cluster.total.gpus)


class ClusterFull(ClusterRow):
    limit = serializers.SerializerMethodField()
    total = Amounts()
    allocated = Amounts()
    free = Amounts()
    nodes = NodeOfCluster(many=True, source="rows")
    history = LoadStep(many=True, help_text="The last day, in steps of 15 min, oldest first.")

    class Meta(ClusterRow.Meta):
        fields = (  # type: ignore[assignment]
            *ClusterRow.Meta.fields, "limit", "total", "allocated", "free", "nodes", "history",
        )  # fmt: skip

    @extend_schema_field(Limit(allow_null=True))
    def get_limit(self, cluster: Cluster) -> dict[str, Any] | None:
        """What was declared; null where it was not."""
        ram, cpu, gpus = cluster.max_ram_mib, cluster.max_cpu_millis, cluster.max_gpus
        if ram is cpu is gpus is None:
            return None
        return {
            "ram_gb": None if ram is None else round(ram / GB, 3),
            "cpu_cores": None if cpu is None else cpu / 1000,
            "gpu_count": gpus,
        }


# --- Deployments ---


PRIORITIES = [(name, name) for name in Priority.names]


class PriorityField(serializers.ChoiceField):
    """By its name, in whatever case."""

    def __init__(self, **options: Any) -> None:
        super().__init__(choices=PRIORITIES, **options)

    def to_internal_value(self, data: Any) -> Any:
        name = data.upper() if isinstance(data, str) else data
        return int(Priority[super().to_internal_value(name)])

    def to_representation(self, value: Any) -> Any:
        return Priority(value).name


class _What(serializers.Serializer[Any]):
    model = serializers.UUIDField(required=False, help_text="A model of the leaderboard.")
    follows = serializers.CharField(
        required=False, max_length=170, allow_blank=True,
        help_text="In place of a model: a name or name@alias (iris@champion), whose model it runs, "
        'and whichever that is later. In a PATCH "" ends that.',
    )  # fmt: skip
    docker_image = serializers.CharField(
        required=False, max_length=300, allow_blank=True,
        help_text="In place of a model: an image of a registry that the operator allows.",
    )  # fmt: skip
    env = serializers.DictField(
        child=serializers.CharField(max_length=32 * 1024, allow_blank=True), required=False,
        help_text="Variables of its process. They are kept encrypted, and never shown again.",
    )  # fmt: skip
    port = serializers.IntegerField(
        required=False, min_value=1, max_value=65535, help_text="Of a container."
    )
    health_path = serializers.RegexField(
        r"^/[!-~]*$", required=False, max_length=200, help_text="Of a container."
    )


class _How(serializers.Serializer[Any]):
    replicas = serializers.IntegerField(required=False, min_value=1, max_value=MOST_REPLICAS)
    priority = PriorityField(required=False)
    preemptible = serializers.BooleanField(
        required=False,
        help_text="Whether something more urgent may take its place. If not, it counts twice "
        "against the quota.",
    )
    spread = serializers.BooleanField(required=False, help_text="Replicas over many nodes.")
    depends_on = serializers.ListField(
        child=serializers.UUIDField(), required=False, max_length=100,
        help_text="Deployments that must run first.",
    )  # fmt: skip
    required_ram_gb = serializers.FloatField(
        required=False, min_value=0.0625, max_value=MOST_GB, help_text="Of each replica."
    )
    required_cpu_cores = serializers.FloatField(
        required=False, min_value=0.05, max_value=MOST_CORES
    )
    required_gpu_count = serializers.IntegerField(required=False, min_value=0, max_value=64)
    timeout_s = serializers.IntegerField(
        required=False, min_value=1, max_value=MOST_SECONDS,
        help_text="A request that is not answered within so many seconds gets 504. Usually 30.",
    )  # fmt: skip
    max_in_flight = serializers.IntegerField(
        required=False, min_value=1, max_value=MOST_IN_FLIGHT,
        help_text="So many requests may wait for an answer at a time; the next gets 429. "
        "Usually 64.",
    )  # fmt: skip
    samples = serializers.BooleanField(
        required=False,
        help_text="Keep some of the rows and answers, to watch for drift. On unless it is turned "
        "off, which deletes those that were kept.",
    )
    drift_threshold = serializers.FloatField(
        required=False, min_value=0.01, max_value=10,
        help_text="A column whose PSI is past it has drifted, which makes an event. Usually 0.2.",
    )  # fmt: skip

    def needs(self, ram_mib: int, cpu_millis: int, gpus: int) -> Resources:
        """What was sent, and these where nothing was."""
        said = self.validated_data
        ram, cpu = said.pop("required_ram_gb", None), said.pop("required_cpu_cores", None)
        devices = said.pop("required_gpu_count", None)
        return Resources(
            ram_mib if ram is None else mib(ram),
            cpu_millis if cpu is None else round(cpu * 1000),
            gpus if devices is None else devices,
        )


class NewDeployment(_How, _What):
    name = serializers.CharField(max_length=63, validators=[NAME])
    cluster_id = serializers.UUIDField(
        required=False, help_text="May be left out where there is one cluster."
    )


class Canary(serializers.Serializer[Any]):
    model = serializers.UUIDField(required=False, help_text="The one that is to be tried.")
    docker_image = serializers.CharField(
        required=False, max_length=300, help_text="Where the deployment runs a container."
    )
    percent = serializers.IntegerField(
        required=False, min_value=0, max_value=100,
        help_text="Of the requests, that it answers. 10 unless another share is said.",
    )  # fmt: skip
    shadow = serializers.BooleanField(
        required=False,
        help_text="It is only asked that share as well, after the answer: nobody gets its own.",
    )


class DeploymentChange(_How, _What):
    canary = Canary(
        required=False,
        help_text="Try another model beside it, or change that one's share of the requests.",
    )


class CanaryShown(serializers.Serializer[Any]):
    revision = serializers.IntegerField()
    model = serializers.UUIDField(allow_null=True)
    docker_image = serializers.CharField()
    percent = serializers.IntegerField()
    shadow = serializers.BooleanField()
    ready = serializers.IntegerField(help_text="Its replicas that answer.")
    replicas = serializers.IntegerField()
    failures = serializers.IntegerField()
    error = serializers.CharField()
    waits = serializers.CharField(help_text="Why one of its replicas has no place.")


def canary(one: Deployment) -> dict[str, Any] | None:
    """What is tried beside it, and how that is."""
    tried = one.canary
    if tried is None:
        return None
    known = one.canary_is
    return {
        "revision": tried.number,
        "model": tried.model_id,
        "docker_image": tried.image,
        "percent": one.canary_percent,
        "shadow": one.canary_is_shadow,
        "ready": known.get("ready", 0),
        "replicas": one.canary_replicas,
        "failures": known.get("failures", 0),
        "error": known.get("error", ""),
        "waits": words.reason(known["wait"]) if known.get("wait") else "",
    }


class Rollback(serializers.Serializer[Any]):
    revision = serializers.IntegerField(
        required=False, min_value=1, max_value=2**31 - 1, help_text="Without it, the one before."
    )


class RevisionShown(serializers.ModelSerializer[Revision]):
    model_name = serializers.CharField(source="model.name", default="", read_only=True)
    env = serializers.ListField(source="env_names", help_text="Names alone.")
    docker_image = serializers.CharField(source="image")

    class Meta:
        model = Revision
        fields = (
            "number", "model", "model_name", "docker_image", "env", "port", "health_path",
            "made_by", "created_at",
        )  # fmt: skip


class ReplicaShown(serializers.ModelSerializer[Replica]):
    revision = serializers.IntegerField(source="revision.number")
    node = serializers.CharField(source="node_name")

    class Meta:
        model = Replica
        fields = (
            "id", "number", "generation", "revision", "node", "state", "why", "fault",
            "created_at", "running_since", "ended_at",
        )  # fmt: skip


class Lacking(serializers.Serializer[Any]):
    code = serializers.CharField(help_text="dependencies, backoff, closed, labels, limit, room …")
    reason = serializers.CharField()
    change = serializers.CharField(help_text="The least that would let it run.")


class DeploymentRow(serializers.ModelSerializer[Deployment]):
    cluster_id = serializers.UUIDField()
    cluster = serializers.CharField(source="cluster.name")
    priority = PriorityField()
    revision = serializers.IntegerField(source="revision.number", default=None)
    required_ram_gb = serializers.SerializerMethodField()
    required_cpu_cores = serializers.SerializerMethodField()
    required_gpu_count = serializers.IntegerField(source="gpus")
    waits = serializers.SerializerMethodField()

    class Meta:
        model = Deployment
        fields = (
            "id", "name", "cluster_id", "cluster", "state", "ready", "replicas", "priority",
            "preemptible", "spread", "revision", "required_ram_gb", "required_cpu_cores",
            "required_gpu_count", "waiting_since", "waits", "preempted_by", "created_at",
        )  # fmt: skip

    def get_required_ram_gb(self, one: Deployment) -> float:
        return float(resources(one.needs)["ram_gb"])

    def get_required_cpu_cores(self, one: Deployment) -> float:
        return float(resources(one.needs)["cpu_cores"])

    @extend_schema_field(Lacking(allow_null=True))
    def get_waits(self, one: Deployment) -> dict[str, str] | None:
        return waits(one)


def waits(one: Deployment) -> dict[str, str] | None:
    """Why a replica of it has no place, in words."""
    if one.waiting_since is None or not one.is_started:
        return None
    return {
        "code": one.wait.get("code", ""),
        "reason": words.reason(one.wait),
        "change": words.change(one.wait, one.priority),
    }


class DeploymentFull(DeploymentRow):
    depends_on = serializers.SerializerMethodField()
    dependents = serializers.SerializerMethodField()
    model = serializers.UUIDField(source="revision.model_id", default=None)
    docker_image = serializers.CharField(source="revision.image", default="")
    not_followed = serializers.CharField(
        source="not_followed.why", default="", help_text="Why what it follows does not run."
    )
    retraining = serializers.UUIDField(
        source="retraining_id", allow_null=True, help_text="A training job."
    )
    env = serializers.ListField(source="revision.env_names", default=list)
    port = serializers.IntegerField(source="revision.port", default=None)
    health_path = serializers.CharField(source="revision.health_path", default="")
    placed = serializers.SerializerMethodField()
    queue_position = serializers.SerializerMethodField()
    canary = serializers.SerializerMethodField()

    class Meta(DeploymentRow.Meta):
        fields = (  # type: ignore[assignment]
            *DeploymentRow.Meta.fields, "model", "follows", "not_followed", "retraining",
            "docker_image", "env", "port", "health_path",
            "timeout_s", "max_in_flight", "samples", "drift_threshold", "depends_on",
            "dependents", "placed", "queue_position", "failures", "error", "not_before", "canary",
        )  # fmt: skip

    @extend_schema_field(serializers.ListField(child=serializers.UUIDField()))
    def get_depends_on(self, one: Deployment) -> list[str]:
        return [str(edge.needs_id) for edge in one.dependencies.all()]

    @extend_schema_field(serializers.ListField(child=serializers.UUIDField()))
    def get_dependents(self, one: Deployment) -> list[str]:
        return [str(edge.deployment_id) for edge in one.dependents.all()]

    @extend_schema_field(ReplicaShown(many=True))
    def get_placed(self, one: Deployment) -> Any:
        """Its replicas that are there, and the last that have ended."""
        last = one.placed.select_related("revision").order_by("-generation")
        active = list(last.filter(ended_at__isnull=True))
        ended = list(last.filter(ended_at__isnull=False)[:10])
        return ReplicaShown([*active, *ended], many=True).data

    @extend_schema_field(CanaryShown(allow_null=True))
    def get_canary(self, one: Deployment) -> dict[str, Any] | None:
        return canary(one)

    def get_queue_position(self, one: Deployment) -> int | None:
        """Its place among those that wait in its cluster, from 1."""
        found = queue.place(one)
        return found[0] if found else None


class Done(DeploymentFull):
    warnings = serializers.SerializerMethodField()

    class Meta(DeploymentFull.Meta):
        fields = (*DeploymentFull.Meta.fields, "warnings")  # type: ignore[assignment]

    @extend_schema_field(serializers.ListField(child=serializers.CharField()))
    def get_warnings(self, one: Any) -> list[str]:
        return list(getattr(one, "warnings", []))


class Retraining(serializers.Serializer[Any]):
    job = serializers.UUIDField()


class EventShown(serializers.Serializer[Any]):
    seq = serializers.IntegerField()
    at = serializers.DateTimeField()
    type = serializers.CharField()
    data = serializers.DictField()  # type: ignore[assignment]


class LogLineShown(serializers.ModelSerializer[LogLine]):
    class Meta:
        model = LogLine
        fields = ("id", "at", "replica", "revision", "text")


class Log(serializers.Serializer[Any]):
    results = LogLineShown(many=True)


class Printed(serializers.Serializer[Any]):
    """What a node says that a replica has printed."""

    generation = serializers.IntegerField(min_value=1, max_value=2**31 - 1)
    lines = serializers.ListField(
        child=serializers.ListField(min_length=2, max_length=2), max_length=1000
    )

    def validate_lines(self, lines: list[Any]) -> list[tuple[datetime, str]]:
        when, text = serializers.DateTimeField(), serializers.CharField(
            allow_blank=True, trim_whitespace=False, max_length=4000
        )  # fmt: skip
        return [(when.run_validation(at), text.run_validation(said)) for at, said in lines]


class Served(serializers.Serializer[Any]):
    """Requests, and how long they took: percentiles in steps of 19%."""

    requests = serializers.IntegerField()
    refused = serializers.IntegerField(help_text="Of these, answered with 4xx.")
    errors = serializers.IntegerField(help_text="Of these, answered with 5xx.")  # type: ignore[assignment]
    p50_ms = serializers.FloatField(allow_null=True)
    p95_ms = serializers.FloatField(allow_null=True)
    p99_ms = serializers.FloatField(allow_null=True)


class ServedStep(Served):
    at = serializers.DateTimeField()
    rows = serializers.IntegerField()


class ServedRevision(Served):
    revision = serializers.IntegerField(help_text="0: no replica answered.")
    compared = serializers.IntegerField(help_text="Rows that it predicted as a shadow.")
    agreement = serializers.FloatField(
        allow_null=True, help_text="The share of these that was as the other's, to 0.1%."
    )


class DeploymentMetrics(serializers.Serializer[Any]):
    step_s = serializers.IntegerField()
    steps = ServedStep(many=True, help_text="Oldest first.")
    revisions = ServedRevision(many=True)


class DriftShown(serializers.ModelSerializer[DriftReport]):
    """``columns``: psi, Jensen-Shannon distance, the PSI that chance alone may give, and the share
    of each bin in training and now."""

    class Meta:
        model = DriftReport
        fields = ("at", "revision", "rows", "drifted", "columns")


class DeploymentDrift(serializers.Serializer[Any]):
    samples = serializers.BooleanField(help_text="Whether rows are kept.")
    kept = serializers.IntegerField(help_text="Rows that are kept now.")
    threshold = serializers.FloatField()
    latest = DriftShown(allow_null=True)


class _AnyValue(serializers.JSONField):
    """A text, a number, true or false."""

    def to_internal_value(self, data: Any) -> Any:
        if data is None or isinstance(data, list | dict):
            raise serializers.ValidationError("Give one value: a text, a number, true or false.")
        return data


class OutcomeSent(serializers.Serializer[Any]):
    id = serializers.UUIDField(help_text="Of the answer.")
    row = serializers.IntegerField(
        default=0, min_value=0, max_value=10**6, help_text="Of the request, from 0."
    )
    truth = _AnyValue(help_text="What became true.")


class Outcomes(serializers.Serializer[Any]):
    outcomes = OutcomeSent(many=True, allow_empty=False)

    def validate_outcomes(self, value: list[Any]) -> list[Any]:
        if len(value) > MOST:
            raise serializers.ValidationError(f"At most {MOST:,} at a time.")
        return value


class OutcomesTaken(serializers.Serializer[Any]):
    taken = serializers.IntegerField()
    unknown = serializers.IntegerField(help_text="Not sampled, or too long ago.")
    unknown_ids = serializers.ListField(child=serializers.CharField(), help_text="Up to 20.")


class _Right(serializers.Serializer[Any]):
    count = serializers.IntegerField()
    accuracy = serializers.FloatField(allow_null=True, help_text="Of classes.")
    mae = serializers.FloatField(allow_null=True, help_text="Of numbers: mean absolute error.")
    rmse = serializers.FloatField(allow_null=True)


class RightOnDay(_Right):
    day = serializers.DateField()


class HowRight(serializers.Serializer[Any]):
    task = serializers.CharField()
    days = RightOnDay(many=True, help_text="By the day of the prediction, oldest first.")
    total = _Right()


class Answer(serializers.Serializer[Any]):
    """What a replica answered, and which."""

    id = serializers.UUIDField(help_text="Of this answer.")
    deployment = serializers.CharField()
    revision = serializers.IntegerField()
    replica = serializers.IntegerField()
    model = serializers.UUIDField()
    predictions = serializers.ListField()
    probabilities = serializers.ListField(allow_null=True)
    classes = serializers.ListField(allow_null=True)
    ms = serializers.DictField()
