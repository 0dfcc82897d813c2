from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from pipelines import doing, graph, schedules
from pipelines.actions import OVERLAPS
from pipelines.models import NAME, Pipeline, Run, Step

_DEFINITION = (
    '{"stages": [{"key", "stage", "params", "after", "retries", "backoff_s", "fresh"}, ...], '
    f'"notify": {{"to", "on"}}}}. Stages: {", ".join(graph.STAGES)}. See docs/pipelines.md.'
)
_SCHEDULE = (
    '{"cron": "0 3 * * *"} or {"every_s": 3600}, with "time_zone" and "overlap" '
    "(skip, queue, cancel); null: it runs when asked."
)


# --- What is sent ---


class NewPipeline(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=63, validators=[NAME])
    description = serializers.CharField(max_length=300, required=False, allow_blank=True)
    definition = serializers.JSONField(help_text=_DEFINITION)
    schedule = serializers.JSONField(required=False, allow_null=True, help_text=_SCHEDULE)
    is_enabled = serializers.BooleanField(required=False)


class PipelineChange(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=63, validators=[NAME], required=False)
    description = serializers.CharField(max_length=300, required=False, allow_blank=True)
    definition = serializers.JSONField(required=False, help_text=_DEFINITION)
    schedule = serializers.JSONField(required=False, allow_null=True, help_text=_SCHEDULE)
    is_enabled = serializers.BooleanField(
        required=False, help_text="False: its schedule rests. Asked for, it still runs."
    )


class NewRun(serializers.Serializer[Any]):
    overlap = serializers.ChoiceField(
        choices=list(OVERLAPS), default="queue", help_text="While another run of it is going."
    )


class Retry(serializers.Serializer[Any]):
    step = serializers.CharField(
        max_length=40,
        required=False,
        allow_blank=True,
        help_text="Begin again here, and with all that wait for it; empty: where it failed.",
    )


# --- What is shown ---


class LastRun(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    number = serializers.IntegerField()
    state = serializers.CharField()


class PipelineRow(serializers.ModelSerializer[Pipeline]):
    version = serializers.IntegerField(source="version.number", allow_null=True)
    stages = serializers.SerializerMethodField()
    last_run = serializers.SerializerMethodField()
    next_run_at = serializers.SerializerMethodField()
    schedule = serializers.JSONField()

    class Meta:
        model = Pipeline
        fields = (
            "id", "name", "description", "version", "stages", "schedule", "is_enabled",
            "next_run_at", "last_run", "created_at",
        )  # fmt: skip

    @extend_schema_field(serializers.ListField(child=serializers.CharField()))
    def get_stages(self, one: Pipeline) -> list[str]:
        """The keys, in the order of the definition."""
        return [stage["key"] for stage in one.version.definition["stages"]] if one.version else []

    @extend_schema_field(LastRun(allow_null=True))
    def get_last_run(self, one: Any) -> dict[str, Any] | None:
        last: dict[str, Any] | None = one.last_run
        return last

    @extend_schema_field(serializers.DateTimeField(allow_null=True))
    def get_next_run_at(self, one: Pipeline) -> Any:
        return schedules.next_at(one)


class PipelineFull(PipelineRow):
    definition = serializers.JSONField(source="version.definition")

    class Meta(PipelineRow.Meta):
        fields = (*PipelineRow.Meta.fields, "definition")  # type: ignore[assignment]


class RunRow(serializers.ModelSerializer[Run]):
    version = serializers.IntegerField(source="version.number")
    pipeline = serializers.UUIDField(source="pipeline_id")
    started_by = serializers.CharField(source="by_name")

    class Meta:
        model = Run
        fields = (
            "id", "number", "pipeline", "version", "state", "why", "trigger", "started_by",
            "created_at", "started_at", "finished_at",
        )  # fmt: skip


class StepShown(serializers.ModelSerializer[Step]):
    after = serializers.SerializerMethodField()
    output = serializers.DictField()

    class Meta:
        model = Step
        fields = (
            "key", "stage", "after", "state", "attempt", "retry_count", "not_before",
            "started_at", "finished_at", "error", "skipped_because", "output",
        )  # fmt: skip

    @extend_schema_field(serializers.ListField(child=serializers.CharField()))
    def get_after(self, step: Any) -> list[str]:
        """What it waits for."""
        waits: list[str] = self.context["before"].get(step.key, [])
        return waits


class RunFull(RunRow):
    steps = serializers.SerializerMethodField()
    waits = serializers.SerializerMethodField()
    topic = serializers.CharField(help_text="Of /ws, where its events appear as they happen.")

    class Meta(RunRow.Meta):
        fields = (*RunRow.Meta.fields, "topic", "waits", "steps")  # type: ignore[assignment]

    def get_waits(self, run: Run) -> str:
        """Why what runs of it does not get on; empty where it does."""
        return doing.waits(run, run.steps.all())

    @extend_schema_field(StepShown(many=True))
    def get_steps(self, run: Run) -> Any:
        stages = run.version.definition["stages"]
        context = {"before": {one["key"]: graph.before(one) for one in stages}}
        return StepShown(run.steps.order_by("position"), many=True, context=context).data


class LogLine(serializers.Serializer[Any]):
    seq = serializers.IntegerField()
    at = serializers.DateTimeField()
    step = serializers.CharField(help_text='"": of the run itself.')
    level = serializers.CharField()
    message = serializers.CharField()
