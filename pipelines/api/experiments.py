"""Experiments, for programs."""

from typing import Any, ClassVar
from uuid import UUID

from django.urls import path, reverse
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from organizations.api.base import OrgViewSet
from organizations.models import Role
from pipelines import experimenting, experiments
from pipelines.models import NAME, Experiment, ExperimentVersion

_CONFIG = (
    "YAML: model, target, and what you want otherwise than usual: engine (fuxictr), metric, "
    "time_budget (seconds), seed, refit, features (lists of columns by role) or exclude, and the "
    "model's hyperparameters."
)


class NewExperiment(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=63, validators=[NAME])
    config = serializers.CharField(
        max_length=experiments.MOST_TEXT, help_text=_CONFIG, trim_whitespace=False
    )


class ExperimentChange(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=63, validators=[NAME], required=False)
    config = serializers.CharField(
        max_length=experiments.MOST_TEXT, help_text=_CONFIG, required=False, trim_whitespace=False
    )


class ExperimentVersionShown(serializers.ModelSerializer[ExperimentVersion]):
    config = serializers.CharField(source="text", help_text="YAML, as it was written.")
    settings = serializers.DictField(source="config", help_text="What it says, read.")

    class Meta:
        model = ExperimentVersion
        fields = ("number", "config", "settings", "made_by", "created_at")


class ExperimentShown(serializers.ModelSerializer[Experiment]):
    version = serializers.IntegerField(source="version.number")
    config = serializers.CharField(source="version.text", help_text="YAML, as it was written.")
    settings = serializers.DictField(source="version.config", help_text="What it says, read.")
    changed_at = serializers.DateTimeField(source="version.created_at")

    class Meta:
        model = Experiment
        fields = ("id", "name", "version", "config", "settings", "created_at", "changed_at")


@extend_schema(tags=["experiments"])
class ExperimentViewSet(OrgViewSet):
    """Models with their hyperparameters, under names: what trainings of pipelines are told."""

    roles: ClassVar = {
        "list": Role.VIEWER,
        "retrieve": Role.VIEWER,
        "versions": Role.VIEWER,
        "create": Role.DEVELOPER,
        "partial_update": Role.DEVELOPER,
        "destroy": Role.DEVELOPER,
    }
    queryset = Experiment.objects.exclude(version=None).select_related("version", "organization")
    serializer_class = ExperimentShown
    search_fields = ("name",)
    ordering_fields = ("name", "created_at")
    ordering = ("name",)

    @extend_schema(responses=ExperimentShown(many=True))
    def list(self, request: Request) -> Response:
        """The organization's experiments, by name."""
        page: Any = self.paginate_queryset(self.filter_queryset(self.get_queryset()))
        return self.get_paginated_response(ExperimentShown(page, many=True).data)

    @extend_schema(responses=ExperimentShown)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One experiment, as it is now."""
        return Response(ExperimentShown(self.get_object()).data)

    @extend_schema(responses=ExperimentVersionShown(many=True))
    def versions(self, request: Request, pk: UUID) -> Response:
        """What it said, the newest first."""
        page: Any = self.paginate_queryset(self.get_object().versions.order_by("-number"))
        return self.get_paginated_response(ExperimentVersionShown(page, many=True).data)

    @extend_schema(request=NewExperiment, responses={201: ExperimentShown})
    def create(self, request: Request) -> Response:
        """Make an experiment. Every mistake of its text is told, with the line."""
        form = NewExperiment(data=request.data)
        form.is_valid(raise_exception=True)
        made = experimenting.make(self.membership, **form.validated_data)
        answer = Response(ExperimentShown(made).data, 201)
        answer["Location"] = reverse("experiment", args=[made.pk])
        return answer

    @extend_schema(request=ExperimentChange, responses=ExperimentShown)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Rename it, or give it another text: that makes a new version."""
        form = ExperimentChange(data=request.data)
        form.is_valid(raise_exception=True)
        changed = experimenting.change(self.membership, self.get_object(), **form.validated_data)
        return Response(ExperimentShown(changed).data)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: UUID) -> Response:
        """Forget it. 409 while a pipeline trains by it."""
        experimenting.delete(self.membership, self.get_object())
        return Response(status=204)


_view = ExperimentViewSet.as_view
_both: dict[str, Any] = {"get": "list", "post": "create"}
_one: dict[str, Any] = {"get": "retrieve", "patch": "partial_update", "delete": "destroy"}

urlpatterns: list[Any] = [
    path("experiments", _view(_both), name="experiments"),
    # As some write it; the same, so it stands in the schema once.
    path("experiments/", _view(_both, schema=None)),
    path("experiments/<uuid:pk>", _view(_one), name="experiment"),
    path("experiments/<uuid:pk>/versions", _view({"get": "versions"})),
]
