from typing import Any, ClassVar

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from training import learned as stored
from training import presets, splits
from training.actions import PRIORITIES, wait_of_job
from training.checks import TASK_TYPES
from training.importances import rows_of
from training.models import BatchPrediction, EnsembleMember, TrainedModel, TrainingJob
from workers.models import Task


class Split(serializers.Serializer[Any]):
    """How the rows are cut. Leave out what should be chosen for you."""

    kind = serializers.ChoiceField(
        list(splits.KINDS),
        required=False,
        help_text="random is stratified; time: what ranks and is sealed comes later; group: rows "
        "with one value of the column stay together.",
    )
    column = serializers.CharField(required=False, help_text="To split by, for time and group.")
    seed = serializers.IntegerField(required=False)
    test = serializers.FloatField(
        required=False, help_text="Share of rows sealed for the winner's honest figure, 0 to 0.5."
    )
    validation = serializers.FloatField(
        required=False, help_text="Share of rows that rank, up to 0.5. Not together with folds."
    )
    folds = serializers.IntegerField(
        required=False, help_text="Rank by out-of-fold predictions of so many folds, 2 to 20."
    )

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise serializers.ValidationError("Give an object.")
        return data  # training/checks.py judges it, and says more


_NAMES = {"type": "array", "items": {"type": "string"}}


@extend_schema_field({"oneOf": [_NAMES, {"type": "string", "enum": [presets.ALL]}]})
class Engines(serializers.ListField):
    """Names of engines, or "all"."""

    child = serializers.CharField()

    def to_internal_value(self, data: Any) -> Any:
        return data if data == presets.ALL else super().to_internal_value(data)


class Start(serializers.Serializer[Any]):
    dataset = serializers.UUIDField()
    version = serializers.IntegerField(
        required=False, allow_null=True, min_value=1, help_text="Without it, the latest."
    )
    target = serializers.CharField(max_length=255, help_text="The column to predict.")
    name = serializers.CharField(max_length=160, required=False, allow_blank=True)
    task_type = serializers.CharField(default="auto", help_text=f"One of: {', '.join(TASK_TYPES)}.")
    preset = serializers.ChoiceField(
        list(presets.PRESETS),
        default=presets.DEFAULT,
        help_text="What holds where the request is silent: engines, time, ensemble, refit.",
    )
    engines = Engines(
        default=list, help_text='Names, or "all" that fit. Without it, as the preset says.'
    )
    time_budget = serializers.FloatField(
        required=False, allow_null=True, help_text="Seconds. Without it, as the preset says."
    )
    budget_mode = serializers.ChoiceField(
        list(presets.BUDGET_MODES),
        required=False,
        help_text="Whether the time is for each engine, or in all: then in equal parts. Without "
        "it, as the preset says.",
    )
    metric = serializers.CharField(
        default="", allow_blank=True, help_text="What ranks. Without it: roc_auc, log_loss or rmse."
    )
    priority = serializers.ChoiceField(choices=list(PRIORITIES), default="normal")
    exclude = serializers.ListField(child=serializers.CharField(), default=list)
    column_types = serializers.DictField(
        child=serializers.CharField(),
        default=dict,
        help_text="Column to numeric, categorical, text, datetime or boolean.",
    )
    positive_class = serializers.JSONField(required=False, allow_null=True, default=None)
    split = Split(required=False, allow_null=True)
    ensemble = serializers.BooleanField(
        required=False,
        allow_null=True,
        default=None,
        help_text="After the race, try to blend models of several engines into a better one. "
        "Without it, as the preset says.",
    )
    refit = serializers.BooleanField(
        required=False,
        allow_null=True,
        default=None,
        help_text="After the race, fit the winner again on the validation rows too. Takes at most "
        "half as long again as the time budget. Out of fold nothing is left to add. "
        "Without it, as the preset says.",
    )
    accept_findings = serializers.BooleanField(
        default=False,
        help_text="Start in spite of what a check found severe. Kept with the job and in the "
        "audit log, with the reason.",
    )
    reason = serializers.CharField(
        default="", allow_blank=True, max_length=1000, help_text="Why the findings are accepted."
    )


class ModelName(serializers.ModelSerializer[TrainedModel]):
    score = serializers.FloatField(
        source="ranked_score",
        allow_null=True,
        help_text="By which it ranks; for a refit, its origin's.",
    )

    class Meta:
        model = TrainedModel
        fields: ClassVar = ["id", "name", "engine", "family", "score"]


class Notice(serializers.Serializer[Any]):
    message = serializers.CharField()
    engine = serializers.CharField()


class TrainedOn(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    name = serializers.CharField()
    version = serializers.IntegerField()
    version_id = serializers.UUIDField()
    sha256 = serializers.CharField()


class JobRow(serializers.ModelSerializer[TrainingJob]):
    dataset = TrainedOn()
    best_model = ModelName(allow_null=True)
    model_count = serializers.SerializerMethodField()
    progress = serializers.SerializerMethodField()
    created_by = serializers.StringRelatedField[Any]()
    greater_is_better = serializers.BooleanField(source="metric_info.greater_is_better")
    budgets = serializers.DictField(
        child=serializers.FloatField(), help_text="Seconds by engine: what each got."
    )

    class Meta:
        model = TrainingJob
        fields: ClassVar = [
            "id", "name", "dataset", "target", "task", "metric", "greater_is_better", "engines",
            "preset", "budget_s", "budget_mode", "budgets", "ensemble", "priority", "state",
            "stopped_early", "progress", "model_count", "best_model", "error", "created_by",
            "created_at", "started_at", "finished_at",
        ]  # fmt: skip

    def get_model_count(self, job: TrainingJob) -> int:
        return int(getattr(job, "model_count", 0))

    def get_progress(self, job: TrainingJob) -> float:
        return 1.0 if job.has_ended else float(getattr(job, "progress", 0.0))


class FeatureColumn(serializers.Serializer[Any]):
    name = serializers.CharField()
    role = serializers.CharField()
    dtype = serializers.CharField()


class Waiting(serializers.Serializer[Any]):
    reason = serializers.ChoiceField(
        ["paused", "no-node", "too-large", "limit", "held", "behind", "room"]
    )
    text = serializers.CharField(help_text="The reason, for a person.")
    position = serializers.IntegerField(help_text="From 1, in the organization's own line.")
    expected_start_at = serializers.DateTimeField(
        allow_null=True, help_text="A guess from recent durations; null without any."
    )


class Job(JobRow):
    notices = Notice(many=True)
    waiting = serializers.SerializerMethodField(
        help_text="Why it does not start; null when it runs, has ended or was just queued."
    )
    columns = FeatureColumn(many=True)
    accepted = serializers.JSONField(
        allow_null=True,
        help_text="Severe findings with which it was started: by, reason, at, findings.",
    )
    topic = serializers.CharField(help_text="Where its live events appear.")

    class Meta(JobRow.Meta):
        fields: ClassVar = [
            *JobRow.Meta.fields, "task_reason", "classes", "positive_class", "columns", "rows",
            "split", "seed", "refit", "accepted", "notices", "cancel_requested_at",
            "stop_requested_at", "topic", "waiting",
        ]  # fmt: skip

    @extend_schema_field(Waiting(allow_null=True))
    def get_waiting(self, job: TrainingJob) -> dict[str, Any] | None:
        wait = wait_of_job(job)
        return dict(Waiting(wait).data) if wait else None


class EngineProgress(serializers.ModelSerializer[Task]):
    fraction = serializers.FloatField(source="progress")

    class Meta:
        model = Task
        fields: ClassVar = [
            "id", "kind", "engine", "state", "attempt", "fraction", "message", "started_at",
            "finished_at", "error", "fault",
        ]  # fmt: skip


class Progress(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    state = serializers.ChoiceField(choices=TrainingJob.State.choices)
    fraction = serializers.FloatField()
    message = serializers.CharField()
    waiting_for = serializers.CharField(help_text="Why nothing runs yet; empty otherwise.")
    elapsed_s = serializers.FloatField()
    budget_s = serializers.FloatField()
    left_s = serializers.FloatField(
        allow_null=True,
        help_text="Until the race is likely over, by the past of this installation; a refit or an "
        "ensemble comes on top. Null once it is.",
    )
    model_count = serializers.IntegerField()
    best_model = ModelName(allow_null=True)
    tasks = EngineProgress(many=True)
    topic = serializers.CharField()
    seq = serializers.IntegerField(help_text="Last event of the topic: listen after it.")


class LeaderboardRow(serializers.ModelSerializer[TrainedModel]):
    rank = serializers.SerializerMethodField(help_text="Null for a model without a score.")
    interval = serializers.SerializerMethodField(help_text="95% bootstrap interval of the score.")
    refit_of = serializers.PrimaryKeyRelatedField[TrainedModel](
        source="origin",
        read_only=True,
        allow_null=True,
        help_text="The model whose recipe this is, fitted on the validation rows as well: so it "
        "has no score or rank of its own, only figures on the sealed rows.",
    )

    class Meta:
        model = TrainedModel
        fields: ClassVar = [
            "rank", "id", "key", "name", "family", "engine", "state", "refit_of", "reason", "score",
            "interval", "metrics", "scored_rows", "fit_s", "predict_ms_row", "train_rows",
            "created_at",
        ]  # fmt: skip

    def get_rank(self, model: TrainedModel) -> int | None:
        return getattr(model, "rank", None) if model.is_scored else None

    def get_interval(self, model: TrainedModel) -> list[float] | None:
        return list(model.interval) if model.interval else None


class Part(serializers.ModelSerializer[EnsembleMember]):
    id = serializers.UUIDField(source="model_id")
    name = serializers.CharField(source="model.name")
    engine = serializers.CharField(source="model.engine")

    class Meta:
        model = EnsembleMember
        fields: ClassVar = ["id", "name", "engine", "weight"]


class ModelJob(serializers.ModelSerializer[TrainingJob]):
    dataset = TrainedOn()

    class Meta:
        model = TrainingJob
        fields: ClassVar = [
            "id", "name", "dataset", "target", "task", "metric", "classes", "positive_class",
            "state", "split",
        ]  # fmt: skip


class Model(LeaderboardRow):
    job = ModelJob()
    schema = FeatureColumn(many=True, help_text="The columns that a prediction takes.")
    is_best = serializers.SerializerMethodField()
    members = serializers.SerializerMethodField(
        help_text="Of an ensemble: its models and their weights, which add up to 1; else null."
    )
    test_metrics = serializers.SerializerMethodField(
        help_text="On the sealed rows; for the winner of a job that has ended, and its refit, "
        "else null."
    )
    test_score = serializers.SerializerMethodField()
    test_interval = serializers.SerializerMethodField()
    test_rows = serializers.SerializerMethodField()
    test_curves = serializers.SerializerMethodField()

    class Meta(LeaderboardRow.Meta):
        fields: ClassVar = [
            *LeaderboardRow.Meta.fields, "job", "is_best", "members", "params", "schema", "curves",
            "test_score", "test_interval", "test_metrics", "test_rows", "test_curves",
        ]  # fmt: skip

    def get_is_best(self, model: TrainedModel) -> bool:
        return model.job.best_model_id == model.pk

    @extend_schema_field(Part(many=True, allow_null=True))
    def get_members(self, model: TrainedModel) -> Any:
        return Part(model.parts(), many=True).data if model.is_ensemble else None

    def _test(self, model: TrainedModel, what: str) -> Any:
        return (model.test or {}).get(what)

    @extend_schema_field(serializers.DictField(child=serializers.FloatField(), allow_null=True))
    def get_test_metrics(self, model: TrainedModel) -> Any:
        return self._test(model, "metrics")

    @extend_schema_field(serializers.FloatField(allow_null=True))
    def get_test_score(self, model: TrainedModel) -> Any:
        return self._test(model, "score")

    @extend_schema_field(serializers.ListField(child=serializers.FloatField(), allow_null=True))
    def get_test_interval(self, model: TrainedModel) -> Any:
        return self._test(model, "interval")

    @extend_schema_field(serializers.IntegerField(allow_null=True))
    def get_test_rows(self, model: TrainedModel) -> Any:
        return self._test(model, "rows")

    @extend_schema_field(serializers.JSONField(allow_null=True))
    def get_test_curves(self, model: TrainedModel) -> Any:
        return self._test(model, "curves")


class Rows(serializers.Serializer[Any]):
    rows = serializers.ListField(
        child=serializers.DictField(),
        help_text="Objects that name every column of the model's schema, in any order.",
    )


class RowsFile(serializers.Serializer[Any]):
    file = serializers.FileField(help_text="CSV or Parquet, with the model's columns.")


class Prediction(serializers.Serializer[Any]):
    model = ModelName()
    predictions = serializers.ListField(help_text="A class name or a number per row.")
    probabilities = serializers.ListField(
        child=serializers.DictField(child=serializers.FloatField()), allow_null=True
    )
    classes = serializers.ListField(child=serializers.CharField(), allow_null=True)
    ms = serializers.DictField(child=serializers.FloatField())


class Explain(serializers.Serializer[Any]):
    row = serializers.DictField(
        help_text="An object that names every column of the model's schema, in any order."
    )

    def get_fields(self) -> dict[str, Any]:
        wish = serializers.CharField(
            required=False,
            allow_null=True,
            help_text="The class whose probability is explained. Without it, the predicted one.",
        )
        return {**super().get_fields(), "class": wish}  # a word of Python's


class Contribution(serializers.Serializer[Any]):
    column = serializers.CharField()
    value = serializers.JSONField(allow_null=True, help_text="Of the row, as it was understood.")
    contribution = serializers.FloatField(help_text="What the column adds to the output.")
    error = serializers.FloatField(
        allow_null=True, help_text="Its standard error: 0 when exact, null when it can't be told."
    )


class Explanation(serializers.Serializer[Any]):
    model = serializers.SerializerMethodField()
    prediction = serializers.JSONField(help_text="A class name or a number.")
    probabilities = serializers.DictField(child=serializers.FloatField(), allow_null=True)
    base = serializers.FloatField(help_text="The mean output over rows of the training data.")
    output = serializers.FloatField(help_text="The base and all contributions together.")
    contributions = Contribution(many=True, help_text="Each column once, the largest first.")
    exact = serializers.BooleanField(help_text="Over all combinations of columns, not drawn.")
    background = serializers.IntegerField(help_text="Rows that were compared with.")
    evaluations = serializers.IntegerField(help_text="Predictions that it took.")
    ms = serializers.DictField(child=serializers.FloatField())

    def get_fields(self) -> dict[str, Any]:
        explained = serializers.CharField(
            source="of_class",
            allow_null=True,
            help_text="The class whose probability the output is; null for a number.",
        )
        return {**super().get_fields(), "class": explained}

    @extend_schema_field(ModelName)
    def get_model(self, _: object) -> dict[str, Any]:
        return dict(ModelName(self.context["model"]).data)


class ColumnImportance(serializers.Serializer[Any]):
    column = serializers.CharField()
    mean = serializers.FloatField(help_text="By how much the job's metric gets worse.")
    drops = serializers.ListField(
        child=serializers.FloatField(), help_text="The same for each shuffle: their spread."
    )


class Importance(serializers.ModelSerializer[stored.Importance]):
    metric = serializers.CharField(source="model.job.metric")
    columns = serializers.SerializerMethodField(help_text="The most important first.")

    class Meta:
        model = stored.Importance
        fields: ClassVar = [
            "state", "metric", "score", "rows", "unseen", "columns", "error", "finished_at"
        ]  # fmt: skip

    @extend_schema_field(ColumnImportance(many=True))
    def get_columns(self, found: stored.Importance) -> list[dict[str, Any]]:
        return rows_of(found)


class JobCounts(serializers.Serializer[Any]):
    total = serializers.IntegerField()
    queued = serializers.IntegerField()
    running = serializers.IntegerField()
    succeeded = serializers.IntegerField()
    failed = serializers.IntegerField()
    cancelled = serializers.IntegerField()


class LastWeek(serializers.Serializer[Any]):
    datasets = serializers.IntegerField()
    jobs = serializers.IntegerField()
    models = serializers.IntegerField()


class Overview(serializers.Serializer[Any]):
    datasets = serializers.IntegerField()
    jobs = JobCounts()
    models = serializers.IntegerField()
    file_predictions = serializers.IntegerField()
    nodes_alive = serializers.IntegerField()
    success_rate = serializers.FloatField(
        allow_null=True, help_text="Succeeded out of succeeded and failed jobs, 0 to 1."
    )
    last_7_days = LastWeek()


class JobDay(serializers.Serializer[Any]):
    day = serializers.DateField()
    created = serializers.IntegerField()
    succeeded = serializers.IntegerField()
    failed = serializers.IntegerField()


class JobStats(serializers.Serializer[Any]):
    by_state = JobCounts()
    by_task = serializers.DictField(child=serializers.IntegerField())
    success_rate = serializers.FloatField(allow_null=True)
    median_duration_s = serializers.FloatField(allow_null=True, help_text="From start to end.")
    median_wait_s = serializers.FloatField(allow_null=True, help_text="From request to start.")
    per_day = JobDay(many=True, help_text="The last 30 days, oldest first, none left out.")


class ModelGroup(serializers.Serializer[Any]):
    name = serializers.CharField()
    models = serializers.IntegerField()
    invalid = serializers.IntegerField()
    wins = serializers.IntegerField(help_text="Jobs whose best model it gave.")
    median_fit_s = serializers.FloatField(allow_null=True)


class ModelStats(serializers.Serializer[Any]):
    total = serializers.IntegerField()
    by_engine = ModelGroup(many=True)
    by_family = ModelGroup(many=True)


class Batch(serializers.ModelSerializer[BatchPrediction]):
    model = ModelName()
    progress = serializers.SerializerMethodField()
    topic = serializers.CharField()

    class Meta:
        model = BatchPrediction
        fields: ClassVar = [
            "id", "model", "filename", "state", "progress", "rows", "error", "created_at",
            "finished_at", "topic",
        ]  # fmt: skip

    def get_progress(self, batch: BatchPrediction) -> float:
        return batch.task.progress if batch.task else 0.0
