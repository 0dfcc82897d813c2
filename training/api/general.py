"""Training by kind of model, and inference: jobs whose fields do not depend on the engine."""

import json
from typing import Any, ClassVar
from uuid import UUID

from django.db.models import QuerySet
from django.http import QueryDict
from django.urls import reverse
from django_filters import rest_framework as filters
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.parsers import MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.errors import Invalid
from accounts.parsers import JSONParser
from datasets.uploads import take
from organizations.api.base import OrgViewSet
from organizations.models import Role
from training import general
from training.actions import wait_of_job
from training.api.serializers import Waiting
from training.api.visualization import PREFER, wait_of
from training.jobrequests import JobRequest


class TrainingWish(serializers.Serializer[Any]):
    model_type = serializers.CharField(max_length=40, help_text="Such as random_forest or bert.")
    dataset = serializers.CharField(
        default="", allow_blank=True, max_length=200, help_text="A data set's name or id."
    )
    data_path = serializers.CharField(
        default="",
        allow_blank=True,
        max_length=1000,
        help_text="The same, or a file under a storage root that the operator allowed.",
    )
    target = serializers.CharField(
        default="",
        allow_blank=True,
        max_length=255,
        help_text="Without it, the column called target, label, class or y.",
    )
    hyperparameters = serializers.DictField(default=dict)
    description = serializers.CharField(default="", allow_blank=True, max_length=160)
    requires_gpu = serializers.BooleanField(default=False)
    framework_override = serializers.CharField(
        default="", allow_blank=True, max_length=40, help_text="Such as pytorch-2.1 or sklearn-1.4."
    )
    time_budget = serializers.FloatField(required=False, allow_null=True, help_text="Seconds.")


class InferenceWish(serializers.Serializer[Any]):
    model_id = serializers.CharField(max_length=200, help_text="An id, a name or name@alias.")
    input_data = serializers.JSONField(
        required=False,
        help_text="A row, a list of rows, text, CSV text, or {'dataset': its name or id}. "
        "Of a picture: base64 text, {'dataset', 'row'} or {'image_path'}; or it comes as the file "
        "`image` of a form, whose `parameters` are JSON.",
    )
    parameters = serializers.DictField(
        default=dict,
        help_text="top_k, confidence_threshold, temperature, probability; of texts max_length.",
    )


class Output(serializers.Serializer[Any]):
    id = serializers.UUIDField()
    name = serializers.CharField()
    state = serializers.CharField()


class AskedJob(serializers.ModelSerializer[JobRequest]):
    job_id = serializers.UUIDField(source="id")
    kind = serializers.CharField(help_text="training or inference")
    status = serializers.ChoiceField(JobRequest.State.choices, source="now")
    model_id = serializers.SerializerMethodField(
        help_text="That was asked, or that the training gave."
    )
    engine = serializers.SerializerMethodField()
    progress = serializers.SerializerMethodField(help_text="0 to 1.")
    error = serializers.SerializerMethodField()
    training_job = serializers.UUIDField(source="training_id", allow_null=True)
    status_url = serializers.SerializerMethodField()

    class Meta:
        model = JobRequest
        fields: ClassVar = [
            "job_id", "kind", "status", "model_type", "model_id", "engine", "description",
            "progress", "error", "training_job", "cached", "created_at", "started_at",
            "finished_at", "status_url",
        ]  # fmt: skip

    @extend_schema_field(serializers.UUIDField(allow_null=True))
    def get_model_id(self, asked: JobRequest) -> str | None:
        found = asked.training.best_model_id if asked.training else asked.model_id
        return str(found) if found else None

    def get_engine(self, asked: JobRequest) -> str:
        if asked.model is not None:
            return str(asked.model.engine)
        return str(asked.training.engines[0]) if asked.training else ""

    def get_progress(self, asked: JobRequest) -> float:
        if asked.now == JobRequest.State.SUCCEEDED:
            return 1.0
        return float(getattr(asked, "done", None) or 0.0)

    def get_error(self, asked: JobRequest) -> str:
        became = asked.training or asked.batch
        return asked.error or (became.error if became else "")

    def get_status_url(self, asked: JobRequest) -> str:
        return reverse("jobs-status", args=[asked.pk])


class AskedJobDetail(AskedJob):
    waiting_for = serializers.SerializerMethodField(help_text="Why it does not start; else null.")
    result = serializers.JSONField(
        allow_null=True, help_text='Of an inference over rows: {"answers": one per row, "ms"}.'
    )
    output = Output(allow_null=True, help_text="The data set that came of a whole one.")

    class Meta(AskedJob.Meta):
        fields: ClassVar = [*AskedJob.Meta.fields, "waiting_for", "result", "output"]

    @extend_schema_field(Waiting(allow_null=True))
    def get_waiting_for(self, asked: JobRequest) -> dict[str, Any] | None:
        wait = wait_of_job(asked.training) if asked.training else None
        return dict(Waiting(wait).data) if wait else None


def _json(text: object) -> Any:
    try:
        return json.loads(str(text))
    except (ValueError, RecursionError):
        sentence = "Give the parameters as a JSON object."
        raise Invalid(sentence, errors={"parameters": [sentence]}) from None


class RequestFilter(filters.FilterSet):
    status = filters.MultipleChoiceFilter(choices=JobRequest.State.choices)

    class Meta:
        model = JobRequest
        fields: ClassVar = ["kind", "model_type"]


@extend_schema(tags=["jobs"])
class JobRequestViewSet(OrgViewSet):
    parser_classes = (JSONParser, MultiPartParser)
    roles: ClassVar = {
        "list": Role.VIEWER,
        "retrieve": Role.VIEWER,
        "train": Role.DEVELOPER,
        "infer": Role.DEVELOPER,
    }
    # What a token may see of them is narrowed down in get_queryset.
    serves: ClassVar = {"infer": "of-model", "retrieve": "of-model"}
    queryset = JobRequest.objects.for_list()
    serializer_class = AskedJob
    filterset_class = RequestFilter
    search_fields = ("description", "model_type")
    ordering_fields = ("created_at", "finished_at")
    ordering = ("-created_at", "id")

    def get_queryset(self) -> QuerySet[JobRequest]:
        found: QuerySet[JobRequest] = general.visible(self.membership)
        return found

    @extend_schema(request=TrainingWish, responses={202: AskedJobDetail})
    def train(self, request: Request) -> Response:
        """Train one model of a kind, with its hyperparameters, where its framework is."""
        form = TrainingWish(data=request.data)
        form.is_valid(raise_exception=True)
        return self._told(general.train(self.membership, **form.validated_data), 202)

    @extend_schema(
        request=InferenceWish,
        responses={200: AskedJobDetail, 202: AskedJobDetail},
        parameters=[PREFER],
    )
    def infer(self, request: Request) -> Response:
        """Ask a model. 200 with the answer where it is there already, or comes within the time that
        ``Prefer: wait=5`` gives; else 202."""
        given: Any = request.data
        if isinstance(given, QueryDict):  # a form
            given = {**given.dict(), "parameters": _json(given.get("parameters") or "{}")}
            given = {name: given[name] for name in ("model_id", "parameters") if name in given}
        form = InferenceWish(data=given)
        form.is_valid(raise_exception=True)
        wish = form.validated_data | self._uploaded(request, "input_data" in form.validated_data)
        asked = general.infer(self.membership, **wish, wait_s=wait_of(request))
        return self._told(asked, 200 if asked.state == JobRequest.State.SUCCEEDED else 202)

    @extend_schema(responses=AskedJob(many=True))
    def list(self, request: Request) -> Response:
        """Trainings and inferences that were asked for here, newest first."""
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset()))
        return self.get_paginated_response(AskedJob(page, many=True).data)

    @extend_schema(responses=AskedJobDetail)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One job: how far it is, why it waits, and what came of it."""
        return self._told(self.get_object(), 200)

    @staticmethod
    def _uploaded(request: Request, told: bool) -> dict[str, Any]:
        """The picture that came as a file, or nothing where the input came as JSON."""
        picture = take(request, "image") if request.FILES else None
        if picture is None and not told:
            sentence = "Give 'input_data', or upload the picture as 'image'."
            raise Invalid(sentence, errors={"input_data": [sentence]})
        if picture is None:
            return {}
        return {"input_data": general.picture_of(picture, "image")}

    def _told(self, asked: JobRequest, status: int) -> Response:
        if asked.training is not None:
            asked.training.organization = self.membership.organization  # spares a query
        answer = Response(AskedJobDetail(asked).data, status)
        answer["Location"] = reverse("jobs-status", args=[asked.pk])
        return answer
