"""The Open Inference Protocol (version 2) over HTTP, with deployments by name as its models.

Errors have the protocol's shape: {"error": text}.
"""

from typing import Any, ClassVar
from uuid import UUID

from django.conf import settings
from django.db import DatabaseError, connection
from django.http import Http404
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.errors import Invalid, problem_response
from clusters import serving, tensors
from clusters.models import Deployment
from organizations.api.base import OrgAPIView
from organizations.models import Role
from training import serving as models
from training.models import TrainedModel

_ids: "models.Kept[tuple[UUID, str], UUID | None]" = models.Kept(1, 500)


def as_protocol(error: Exception, context: dict[str, Any]) -> Response | None:
    """DRF's exception handler: what all of the API answers, in the protocol's shape."""
    response = problem_response(error, context)
    if response is not None:
        data = response.data if isinstance(response.data, dict) else {}
        response.data = {"error": str(data.get("detail") or "The request failed.")}
        response.content_type = "application/json"
    return response


class ProtocolError(serializers.Serializer[Any]):
    error = serializers.CharField()


class Live(serializers.Serializer[Any]):
    live = serializers.BooleanField()


class Ready(serializers.Serializer[Any]):
    ready = serializers.BooleanField()


class ModelReady(Ready):
    name = serializers.CharField()


class Server(serializers.Serializer[Any]):
    name = serializers.CharField()
    version = serializers.CharField()
    extensions = serializers.ListField(child=serializers.CharField())


class MetadataTensor(serializers.Serializer[Any]):
    name = serializers.CharField()
    datatype = serializers.CharField()
    shape = serializers.ListField(child=serializers.IntegerField())


class ModelMetadata(serializers.Serializer[Any]):
    name = serializers.CharField()
    platform = serializers.CharField()
    inputs = MetadataTensor(many=True)
    outputs = MetadataTensor(many=True)


class Tensor(MetadataTensor):
    data = serializers.ListField(help_text="Flat or nested; null: missing.")  # type: ignore[assignment]


class WantedOutput(serializers.Serializer[Any]):
    name = serializers.CharField()


class InferenceRequest(serializers.Serializer[Any]):
    id = serializers.CharField(required=False)
    parameters = serializers.DictField(required=False)
    inputs = Tensor(many=True)
    outputs = WantedOutput(many=True, required=False)


class InferenceResponse(serializers.Serializer[Any]):
    model_name = serializers.CharField()
    id = serializers.CharField()
    parameters = serializers.DictField()
    outputs = Tensor(many=True)


class _Open(APIView):
    permission_classes = (AllowAny,)
    authentication_classes = ()

    def get_exception_handler(self) -> Any:
        return as_protocol


@extend_schema(tags=["open inference protocol"])
class ServerView(_Open):
    @extend_schema(responses=Server)
    def get(self, request: Request) -> Response:
        """What server this is."""
        version = settings.SPECTACULAR_SETTINGS["VERSION"]
        return Response({"name": "flowml", "version": version, "extensions": []})


@extend_schema(tags=["open inference protocol"])
class LiveView(_Open):
    @extend_schema(responses=Live)
    def get(self, request: Request) -> Response:
        """Whether it answers at all."""
        return Response({"live": True})


@extend_schema(tags=["open inference protocol"])
class ReadyView(_Open):
    @extend_schema(responses=Ready)
    def get(self, request: Request) -> Response:
        """Whether it can answer for models: 503 while its database is away."""
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
            ready = True
        except DatabaseError:
            ready = False
        return Response({"ready": ready}, 200 if ready else 503)


class _ModelView(OrgAPIView):
    """A deployment by its name, in the caller's organization."""

    def get_exception_handler(self) -> Any:
        return as_protocol

    @property
    def object_id(self) -> UUID | None:
        """Of the deployment; None where there is none of this name."""
        home, name = self.membership.organization, self.kwargs["name"]
        there = Deployment.objects.of(home).there().filter(name=name).values_list("pk", flat=True)
        return _ids.get((home.pk, name), there.first)

    def found(self) -> UUID:
        if (found := self.object_id) is None:
            raise Http404
        return found

    def model(self) -> TrainedModel:
        """One that answers now, or else that of its current revision."""
        home = self.membership.organization
        places = serving.places_of(home, self.found())
        pk = (
            places[0].model
            if places
            else (
                Deployment.objects.of(home)
                .filter(pk=self.found())
                .values_list("revision__model_id", flat=True)
                .first()
            )
        )
        model = models.servable(home, pk) if pk else None
        if model is None:
            raise Http404
        return model


@extend_schema(tags=["open inference protocol"])
class ModelView(_ModelView):
    roles: ClassVar = {"get": Role.VIEWER}
    serves: ClassVar = {"get": "deployment"}

    @extend_schema(responses={200: ModelMetadata, "4XX": ProtocolError})
    def get(self, request: Request, name: str) -> Response:
        """The tensors that a deployment takes, and those that it gives."""
        model = self.model()
        return Response(
            {
                "name": name,
                "platform": f"{model.engine}_flowml",
                "inputs": tensors.inputs_of(model.schema),
                "outputs": tensors.outputs_of(model.job.classes),
            }
        )


@extend_schema(tags=["open inference protocol"])
class ModelReadyView(_ModelView):
    roles: ClassVar = {"get": Role.VIEWER}
    serves: ClassVar = {"get": "deployment"}

    @extend_schema(responses={200: ModelReady, 503: ModelReady, "4XX": ProtocolError})
    def get(self, request: Request, name: str) -> Response:
        """Whether a replica of the deployment answers: 503 while none does."""
        ready = bool(serving.places_of(self.membership.organization, self.found()))
        return Response({"name": name, "ready": ready}, 200 if ready else 503)


@extend_schema(tags=["open inference protocol"])
class InferView(_ModelView):
    roles: ClassVar = {"post": Role.DEVELOPER}
    serves: ClassVar = {"post": "deployment"}

    @extend_schema(
        request=InferenceRequest,
        responses={200: InferenceResponse, "4XX": ProtocolError, "5XX": ProtocolError},
    )
    def post(self, request: Request, name: str) -> Response:
        """Predict: a tensor for each column, or one of rows x columns where all are numbers."""
        said: Any = request.data
        try:
            rows = tensors.rows_of(self.model().schema, said)
            name_of = said.get("id")
            if name_of is not None and not isinstance(name_of, str):
                raise tensors.BadTensors("The id is a text.")
            answer = serving.predict(self.membership.organization, self.found(), rows)
            outputs = tensors.outputs_for(said, answer)
        except tensors.BadTensors as bad:
            raise Invalid(str(bad)) from None
        return Response(
            {
                "model_name": name,
                "id": answer["id"] if name_of is None else name_of,
                "parameters": {"prediction_id": answer["id"], "revision": answer["revision"]},
                "outputs": outputs,
            }
        )
