"""What nodes say. Answers are plain dictionaries made by the actions."""

from typing import Any

from rest_framework import serializers

from workers.node.handlers import ENGINE_NAME

MOST_ATTEMPTS = 2**15 - 1  # what the column holds


class Measured(serializers.FloatField):
    """A figure that a node may leave out; infinities and the like are refused."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            **{"min_value": 0, "max_value": 1e15, "required": False, "allow_null": True} | options
        )


class Capabilities(serializers.Serializer[Any]):
    cpu = serializers.FloatField(min_value=0, max_value=100_000)
    ram_mib = serializers.IntegerField(min_value=0, max_value=2**31 - 1)
    gpus = serializers.ListField(child=serializers.DictField(), max_length=64, default=list)
    engines = serializers.ListField(
        child=serializers.RegexField(ENGINE_NAME, max_length=40), max_length=64, default=list
    )
    llm = serializers.BooleanField(default=False)
    models = serializers.ListField(
        child=serializers.CharField(max_length=200), max_length=200, default=list
    )
    system = serializers.CharField(max_length=200, default="", allow_blank=True)
    containers = serializers.CharField(max_length=80, default="", allow_blank=True)

    def validate_gpus(self, gpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
        memories = [gpu.get("memory_mib", 0) for gpu in gpus]
        if not all(isinstance(mib, int) and 0 <= mib < 2**24 for mib in memories):
            raise serializers.ValidationError("A GPU's memory_mib is a whole number.")
        return gpus


class Registration(serializers.Serializer[Any]):
    join_token = serializers.CharField(max_length=200, default="", allow_blank=True)
    name = serializers.CharField(max_length=80)
    version = serializers.CharField(max_length=40, default="")
    protocol = serializers.IntegerField(min_value=0, default=1)
    capabilities = Capabilities()
    address = serializers.CharField(max_length=255, default="", allow_null=True, allow_blank=True)
    concurrency = serializers.IntegerField(min_value=1, max_value=1000, default=1)
    queues = serializers.ListField(child=serializers.CharField(max_length=80), default=list)
    poll = serializers.BooleanField(default=False)


class Running(serializers.Serializer[Any]):
    task = serializers.UUIDField()
    attempt = serializers.IntegerField(min_value=1, max_value=MOST_ATTEMPTS)


class GpuUse(serializers.Serializer[Any]):
    index = serializers.IntegerField(min_value=0, max_value=1024)
    percent = Measured()
    memory_used_mib = Measured()
    memory_mib = Measured()


class Usage(serializers.Serializer[Any]):
    """A node may be a tenant's own: nothing of what it says is taken as it comes."""

    cpu_percent = Measured()
    ram_used_mib = Measured()
    load = Measured()
    disk_free_mib = Measured()
    clock = Measured()
    gpus = GpuUse(many=True, max_length=64, required=False)  # type: ignore[call-arg]


class Placed(serializers.Serializer[Any]):
    """How a replica of a deployment is on its node."""

    replica = serializers.UUIDField()
    generation = serializers.IntegerField(min_value=1, max_value=2**31 - 1)
    state = serializers.ChoiceField(["starting", "running", "failed", "gone"])
    why = serializers.CharField(default="", allow_blank=True, max_length=4000)


class Heartbeat(serializers.Serializer[Any]):
    running = Running(many=True, default=list, max_length=2000)  # type: ignore[call-arg]
    replicas = Placed(many=True, default=list, max_length=2000)  # type: ignore[call-arg]
    usage = Usage(default=dict)


class RoomLeft(serializers.Serializer[Any]):
    slots = serializers.IntegerField(min_value=0)
    light_slots = serializers.IntegerField(min_value=0)
    cpu_millis = serializers.IntegerField(min_value=0)
    ram_mib = serializers.IntegerField(min_value=0)
    # MiB of each device that no task holds. Left out: the ledger tells how many are free.
    gpus = serializers.ListField(
        child=serializers.IntegerField(min_value=0), max_length=64, default=None, allow_null=True
    )


class Claim(serializers.Serializer[Any]):
    room = RoomLeft()


class SaidEvent(serializers.Serializer[Any]):
    type = serializers.ChoiceField(["started", "progress", "notice", "log", "candidate"])
    at = serializers.DateTimeField(default=None, allow_null=True)
    data = serializers.DictField(default=dict)  # type: ignore[assignment]
    files = serializers.DictField(child=serializers.UUIDField(), default=dict)
    key = serializers.CharField(max_length=120, default="", allow_blank=True, allow_null=True)


class Events(serializers.Serializer[Any]):
    attempt = serializers.IntegerField(min_value=1, max_value=MOST_ATTEMPTS)
    events = SaidEvent(many=True, max_length=5000)  # type: ignore[call-arg]


class Result(serializers.Serializer[Any]):
    data = serializers.DictField(default=dict)  # type: ignore[assignment]
    files = serializers.DictField(child=serializers.UUIDField(), default=dict)


class End(serializers.Serializer[Any]):
    attempt = serializers.IntegerField(min_value=1, max_value=MOST_ATTEMPTS)
    outcome = serializers.ChoiceField(["succeeded", "failed", "cancelled", "returned"])
    result = Result(default=dict, allow_null=True)
    error = serializers.CharField(default="", allow_blank=True, allow_null=True)
    code = serializers.CharField(default="", allow_blank=True, allow_null=True, max_length=60)
    fault = serializers.ChoiceField(["", "work", "platform"], default="", allow_null=True)
    usage = serializers.DictField(default=dict, allow_null=True)
    events = SaidEvent(many=True, max_length=5000, default=list)  # type: ignore[call-arg]
