"""Training jobs, their models and their predictions, for programs."""

from datetime import UTC, datetime
from typing import Any, ClassVar
from uuid import UUID

from django.db.models import QuerySet
from django.http import Http404, StreamingHttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django_filters import rest_framework as filters
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.parsers import MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.errors import Invalid
from accounts.parsers import JSONParser
from datasets.uploads import take
from organizations.api.base import OrgAPIView, OrgViewSet
from organizations.models import Role
from training import actions, explaining, importances, serving, stats
from training.api import serializers as said
from training.models import BatchPrediction, TrainedModel, TrainingJob

_KEY = OpenApiParameter(
    "Idempotency-Key",
    str,
    OpenApiParameter.HEADER,
    description="The same key with the same request gives the job that it made before.",
)


_ENGINE = OpenApiParameter(
    "engine",
    str,
    description='The models of one engine, or "ensemble", with their ranks among all.',
)


class Moment(filters.IsoDateTimeFilter):
    """A time with its zone, as long as it is one in UTC too."""

    def filter(self, qs: QuerySet[Any], value: datetime | None) -> QuerySet[Any]:
        try:
            return super().filter(qs, value.astimezone(UTC) if value else None)
        except OverflowError:
            raise Invalid(f"{self.field_name} is out of range.") from None


class JobFilter(filters.FilterSet):
    dataset = filters.UUIDFilter(field_name="dataset_version__dataset")
    state = filters.MultipleChoiceFilter(choices=TrainingJob.State.choices)
    created_after = Moment(field_name="created_at", lookup_expr="gte")
    created_before = Moment(field_name="created_at", lookup_expr="lt")

    class Meta:
        model = TrainingJob
        fields: ClassVar = ["state", "task", "metric", "target"]


@extend_schema(tags=["training"])
class JobViewSet(OrgViewSet):
    roles: ClassVar = {
        "list": Role.VIEWER,
        "retrieve": Role.VIEWER,
        "progress": Role.VIEWER,
        "start": Role.DEVELOPER,
        "cancel": Role.DEVELOPER,
        "stop": Role.DEVELOPER,
        "front": Role.DEVELOPER,
    }
    queryset = TrainingJob.objects.for_list()
    serializer_class = said.Job
    filterset_class = JobFilter
    search_fields = ("name", "target")
    ordering_fields = ("created_at", "started_at", "finished_at", "name", "state")
    ordering = ("-created_at", "id")

    @extend_schema(request=said.Start, responses={202: said.Job}, parameters=[_KEY])
    def start(self, request: Request) -> Response:
        """Start a race. Everything is checked before anything is queued."""
        form = said.Start(data=request.data)
        form.is_valid(raise_exception=True)
        wish = dict(form.validated_data)
        job = actions.start_job(
            self.membership,
            wish.pop("dataset"),
            **wish,
            idempotency_key=_idempotency_key(request),
        )
        answer = Response(said.Job(job).data, 202)
        answer["Location"] = reverse("training-job", args=[job.pk])
        return answer

    @extend_schema(responses=said.JobRow(many=True))
    def list(self, request: Request) -> Response:
        """The organization's jobs, newest first."""
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset()))
        return self.get_paginated_response(said.JobRow(page, many=True).data)

    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One job, with its columns, split and notices, and what it waits for."""
        return Response(said.Job(self._job()).data)

    @extend_schema(responses=said.Progress)
    def progress(self, request: Request, pk: UUID) -> Response:
        """How far a job has come, engine by engine, and what it waits for."""
        return Response(said.Progress(actions.progress_of(self._job())).data)

    @extend_schema(request=None, responses={202: said.Job})
    def cancel(self, request: Request, pk: UUID) -> Response:
        """Kill the job's work now. Models that are stored already stay."""
        return Response(said.Job(actions.cancel_job(self.membership, self._job())).data, 202)

    @extend_schema(request=None, responses={202: said.Job})
    def stop(self, request: Request, pk: UUID) -> Response:
        """End now and keep the best model so far: the job succeeds, early."""
        return Response(said.Job(actions.stop_job(self.membership, self._job())).data, 202)

    @extend_schema(request=None, responses={202: said.Job})
    def front(self, request: Request, pk: UUID) -> Response:
        """Go before all else of the organization that is as urgent. 409 when nothing waits."""
        return Response(said.Job(actions.front_job(self.membership, self._job())).data, 202)

    def _job(self) -> TrainingJob:
        job: TrainingJob = self.get_object()
        job.organization = self.membership.organization  # spares a query
        return job


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("Idempotency-Key", "").strip()
    if len(key) > 255 or not (key.isascii() and key.isprintable()):
        raise Invalid("An Idempotency-Key has at most 255 printable ASCII characters.")
    return key or None


@extend_schema(tags=["results"])
class LeaderboardViewSet(OrgViewSet):
    roles: ClassVar = {"list": Role.VIEWER}
    queryset = TrainedModel.objects.all()
    serializer_class = said.LeaderboardRow
    filter_backends = ()

    @extend_schema(parameters=[_ENGINE])
    def list(self, request: Request, job_id: UUID) -> Response:
        """A job's models, best first, while they come in and after; ensembles among them."""
        job = get_object_or_404(
            TrainingJob.objects.of(self.membership.organization).only("pk"), pk=job_id
        )
        engine = request.query_params.get("engine", "")
        page = self.paginate_queryset(TrainedModel.objects.leaderboard(job.pk, engine))
        return self.get_paginated_response(said.LeaderboardRow(page, many=True).data)


@extend_schema(tags=["results"])
class ModelViewSet(OrgViewSet):
    roles: ClassVar = {
        "retrieve": Role.VIEWER,
        "download": Role.VIEWER,
        "predict": Role.DEVELOPER,
        "explain": Role.DEVELOPER,
        "importance": Role.VIEWER,
        "ask_importance": Role.DEVELOPER,
    }
    serves: ClassVar = {"predict": "model", "explain": "model"}
    queryset = TrainedModel.objects.select_related("job", "artifact")
    serializer_class = said.Model
    parser_classes = (JSONParser, MultiPartParser)

    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One model: figures, curves, and the columns that a prediction takes."""
        model = self.get_object()
        model.rank = actions.rank_of(model)
        return Response(said.Model(model).data)

    @extend_schema(
        request={"application/json": said.Rows, "multipart/form-data": said.RowsFile},
        responses={
            200: said.Prediction,
            202: said.Batch,
        },
    )
    def predict(self, request: Request, pk: UUID) -> Response:
        """Predict rows (JSON, answered at once) or a file (answered with 202 and what to watch)."""
        model = serving.servable(self.membership.organization, pk)
        if model is None:
            raise Http404
        if upload := take(request):
            batch = actions.predict_file(self.membership, model, upload)
            answer = Response(said.Batch(batch).data, 202)
            answer["Location"] = reverse("training-batch", args=[batch.pk])
            return answer
        rows = request.data.get("rows") if isinstance(request.data, dict) else request.data
        found = actions.predict(model, rows)
        return Response(
            {
                "model": {name: getattr(model, name) for name in said.ModelName.Meta.fields},
                "predictions": found.predictions,
                "probabilities": found.by_class,
                "classes": found.classes,
                "ms": found.ms,
            }
        )

    @extend_schema(request=said.Explain, responses=said.Explanation)
    def explain(self, request: Request, pk: UUID) -> Response:
        """What each column adds to the answer to one row.

        Shapley values beside rows of the training data, computed where the model is loaded: the
        base and all contributions add up to the output. Takes up to a few seconds.
        """
        form = said.Explain(data=request.data)
        form.is_valid(raise_exception=True)
        models = self.get_queryset().select_related("job__dataset_version")
        model = get_object_or_404(models.defer("curves", "test", "params"), pk=pk)
        wish = form.validated_data
        found = explaining.explain(model, wish["row"], wish.get("class"))
        return Response(said.Explanation(found, context={"model": model}).data)

    @extend_schema(responses=said.Importance)
    def importance(self, request: Request, pk: UUID) -> Response:
        """How much worse the model gets when a column is shuffled. 409 until it was asked for."""
        return Response(said.Importance(importances.of(self._model())).data)

    @extend_schema(request=None, responses={202: said.Importance})
    def ask_importance(self, request: Request, pk: UUID) -> Response:
        """Have nodes shuffle the columns, once. The best model of a training is not asked for."""
        model = get_object_or_404(
            self.get_queryset().select_related("job__dataset_version__data", "task"), pk=pk
        )
        return Response(said.Importance(importances.ask(self.membership, model)).data, 202)

    @extend_schema(responses={(200, "application/zip"): OpenApiTypes.BINARY})
    def download(self, request: Request, pk: UUID) -> StreamingHttpResponse:
        """The model as a zip that works without FlowML."""
        return actions.download(self._model())

    def _model(self) -> TrainedModel:
        models: QuerySet[TrainedModel] = self.get_queryset().defer("curves", "test", "params")
        return get_object_or_404(models, pk=self.kwargs["pk"])


class BatchFilter(filters.FilterSet):
    # By id alone: whether a model of another organization exists is not told.
    model = filters.UUIDFilter(field_name="model_id")

    class Meta:
        model = BatchPrediction
        fields: ClassVar = ["state"]


@extend_schema(tags=["results"])
class BatchViewSet(OrgViewSet):
    roles: ClassVar = {"list": Role.VIEWER, "retrieve": Role.VIEWER, "download": Role.VIEWER}
    serves: ClassVar = {"retrieve": "of-model", "download": "of-model"}
    queryset = BatchPrediction.objects.select_related("task", "model").defer(
        "model__curves", "model__test", "model__params", "task__payload", "task__result"
    )
    serializer_class = said.Batch
    filterset_class = BatchFilter

    def get_queryset(self) -> QuerySet[BatchPrediction]:
        found: QuerySet[BatchPrediction] = super().get_queryset()
        token = self.membership.token
        return found.filter(model=token.only_id) if token and token.only_id else found

    search_fields = ("filename",)
    ordering_fields = ("created_at", "finished_at")
    ordering = ("-created_at", "id")

    def list(self, request: Request) -> Response:
        """Files that were sent to be predicted, newest first."""
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset()))
        return self.get_paginated_response(said.Batch(page, many=True).data)

    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One file's prediction, and how far it is."""
        return Response(said.Batch(self.get_object()).data)

    @extend_schema(
        parameters=[OpenApiParameter("as", str, enum=actions.FORMATS, default="csv")],
        responses={
            (200, "text/csv"): OpenApiTypes.BINARY,
            (200, "application/vnd.apache.parquet"): OpenApiTypes.BINARY,
        },
    )
    def download(self, request: Request, pk: UUID) -> StreamingHttpResponse:
        """The file's own columns and what was predicted, as CSV or Parquet."""
        batch = get_object_or_404(
            self.get_queryset().select_related("csv", "parquet"), pk=self.kwargs["pk"]
        )
        return actions.download_result(batch, request.query_params.get("as", "csv"))


class _StatsView(OrgAPIView):
    roles: ClassVar = {"get": Role.VIEWER}


@extend_schema(tags=["stats"])
class OverviewView(_StatsView):
    @extend_schema(responses=said.Overview)
    def get(self, request: Request) -> Response:
        """Counts of everything the organization has, and what is new since a week."""
        return Response(stats.overview(self.membership.organization))


@extend_schema(tags=["stats"])
class JobStatsView(_StatsView):
    @extend_schema(responses=said.JobStats)
    def get(self, request: Request) -> Response:
        """Jobs by state, task and day; how many succeed, how long they take and wait."""
        return Response(stats.jobs(self.membership.organization))


@extend_schema(tags=["stats"])
class ModelStatsView(_StatsView):
    @extend_schema(responses=said.ModelStats)
    def get(self, request: Request) -> Response:
        """Models by engine and by family, and how often each kind wins."""
        return Response(stats.models(self.membership.organization))
