"""What nodes say. Answers are plain dictionaries made by the actions."""

from typing import Any

from rest_framework import serializers


class Capabilities(serializers.Serializer[Any]):
    cpu = serializers.FloatField(min_value=0)
    ram_mib = serializers.IntegerField(min_value=0)
    gpus = serializers.ListField(child=serializers.DictField(), default=list)
    engines = serializers.ListField(child=serializers.SlugField(max_length=40), default=list)
    llm = serializers.BooleanField(default=False)
    models = serializers.ListField(
        child=serializers.CharField(max_length=200), max_length=200, default=list
    )
    system = serializers.CharField(max_length=200, default="", allow_blank=True)

    def validate_gpus(self, gpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not all(isinstance(gpu.get("memory_mib", 0), int) for gpu in gpus):
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
    attempt = serializers.IntegerField(min_value=1)


class Heartbeat(serializers.Serializer[Any]):
    running = Running(many=True, default=list)
    usage = serializers.DictField(default=dict)


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
    attempt = serializers.IntegerField(min_value=1)
    events = SaidEvent(many=True)


class Result(serializers.Serializer[Any]):
    data = serializers.DictField(default=dict)  # type: ignore[assignment]
    files = serializers.DictField(child=serializers.UUIDField(), default=dict)


class End(serializers.Serializer[Any]):
    attempt = serializers.IntegerField(min_value=1)
    outcome = serializers.ChoiceField(["succeeded", "failed", "cancelled", "returned"])
    result = Result(default=dict, allow_null=True)
    error = serializers.CharField(default="", allow_blank=True, allow_null=True)
    code = serializers.CharField(default="", allow_blank=True, allow_null=True, max_length=60)
    fault = serializers.ChoiceField(["", "work", "platform"], default="", allow_null=True)
    usage = serializers.DictField(default=dict, allow_null=True)
