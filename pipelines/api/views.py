"""Pipelines and their runs, for programs."""

from typing import Any, ClassVar
from uuid import UUID

from django.db.models import OuterRef, QuerySet, Subquery
from django.db.models.functions import JSONObject
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django_filters import rest_framework as filters
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.errors import Invalid
from organizations.api.base import OrgViewSet
from organizations.models import Role
from pipelines import actions, logs
from pipelines.api import serializers as said
from pipelines.models import Pipeline, Run

MOST_LINES = 100_000  # of one file


def with_last_run(found: QuerySet[Pipeline]) -> QuerySet[Pipeline]:
    """Each with ``last_run``: {"id", "number", "state"} or None."""
    runs = Run.objects.filter(pipeline=OuterRef("pk")).order_by("-number")
    last = runs.values(said=JSONObject(id="id", number="number", state="state"))[:1]
    return found.annotate(last_run=Subquery(last))


@extend_schema(tags=["pipelines"])
class PipelineViewSet(OrgViewSet):
    """Stages that run one after the other, when asked or by a schedule."""

    roles: ClassVar = {
        "list": Role.VIEWER,
        "retrieve": Role.VIEWER,
        "create": Role.DEVELOPER,
        "partial_update": Role.DEVELOPER,
        "destroy": Role.DEVELOPER,
    }
    queryset = Pipeline.objects.select_related("version", "beat")
    serializer_class = said.PipelineRow
    search_fields = ("name",)
    ordering_fields = ("name", "created_at")
    ordering = ("name",)

    def get_queryset(self) -> QuerySet[Pipeline]:
        return with_last_run(super().get_queryset())

    @extend_schema(responses=said.PipelineRow(many=True))
    def list(self, request: Request) -> Response:
        """The organization's pipelines, by name."""
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset()))
        return self.get_paginated_response(said.PipelineRow(page, many=True).data)

    @extend_schema(responses=said.PipelineFull)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One pipeline, with the definition that runs from now on."""
        return Response(said.PipelineFull(self.get_object()).data)

    @extend_schema(request=said.NewPipeline, responses={201: said.PipelineFull})
    def create(self, request: Request) -> Response:
        """Make a pipeline. What is wrong with its definition is told by field, all at once."""
        form = said.NewPipeline(data=request.data)
        form.is_valid(raise_exception=True)
        made = actions.make(self.membership, **form.validated_data)
        self.kwargs["pk"] = made.pk
        answer = Response(said.PipelineFull(self.get_object()).data, 201)
        answer["Location"] = reverse("pipeline", args=[made.pk])
        return answer

    @extend_schema(request=said.PipelineChange, responses=said.PipelineFull)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Change it. Another definition makes another version; runs keep the one that they ran."""
        form = said.PipelineChange(data=request.data)
        form.is_valid(raise_exception=True)
        actions.change(self.membership, self.get_object(), **form.validated_data)
        return Response(said.PipelineFull(self.get_object()).data)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: UUID) -> Response:
        """Delete it with its runs. Data sets and models that it made stay. 409 while it runs."""
        actions.delete(self.membership, self.get_object())
        return Response(status=204)


class RunFilter(filters.FilterSet):
    state = filters.MultipleChoiceFilter(choices=Run.State.choices)


_AFTER = OpenApiParameter("after", int, description="Only lines of a higher number.")
_STEP = OpenApiParameter("step", str, description="Only lines of this step.")


@extend_schema(tags=["pipelines"])
class RunViewSet(OrgViewSet):
    """The runs of one pipeline."""

    roles: ClassVar = {
        "list": Role.VIEWER,
        "retrieve": Role.VIEWER,
        "logs": Role.VIEWER,
        "log_file": Role.VIEWER,
        "create": Role.DEVELOPER,
        "cancel": Role.DEVELOPER,
        "retry": Role.DEVELOPER,
    }
    queryset = Run.objects.select_related("version", "pipeline")
    serializer_class = said.RunRow
    filterset_class = RunFilter
    ordering_fields = ("number", "created_at")
    ordering = ("-number",)
    lookup_url_kwarg = "run"

    def get_queryset(self) -> QuerySet[Run]:
        found: QuerySet[Run] = super().get_queryset()
        return found.filter(pipeline=self.kwargs["pk"])

    @property
    def object_id(self) -> Any:
        return self.kwargs.get("run")

    def _pipeline(self) -> Pipeline:
        mine = Pipeline.objects.of(self.membership.organization)
        return get_object_or_404(mine, pk=self.kwargs["pk"])

    @extend_schema(responses=said.RunRow(many=True))
    def list(self, request: Request, pk: UUID) -> Response:
        """Its runs, newest first."""
        self._pipeline()
        page = self.paginate_queryset(self.filter_queryset(self.get_queryset()))
        return self.get_paginated_response(said.RunRow(page, many=True).data)

    @extend_schema(request=said.NewRun, responses={202: said.RunFull})
    def create(self, request: Request, pk: UUID) -> Response:
        """Run it now, or as soon as the run that is going has ended."""
        form = said.NewRun(data=request.data)
        form.is_valid(raise_exception=True)
        run = actions.start_run(self.membership, self._pipeline(), **form.validated_data)
        answer = Response(said.RunFull(run).data, 202)
        answer["Location"] = reverse("pipeline-run", args=[run.pipeline_id, run.pk])
        return answer

    @extend_schema(responses=said.RunFull)
    def retrieve(self, request: Request, pk: UUID, run: UUID) -> Response:
        """One run with its steps. Live: the topic ``pipeline-run:<id>`` of ``/ws``."""
        return Response(said.RunFull(self.get_object()).data)

    @extend_schema(request=None, responses={202: said.RunFull})
    def cancel(self, request: Request, pk: UUID, run: UUID) -> Response:
        """End it: what runs is cancelled, the rest is never begun. 409 when it has ended."""
        actions.cancel_run(self.membership, self.get_object())
        return Response(said.RunFull(self.get_object()).data, 202)

    @extend_schema(request=said.Retry, responses={202: said.RunFull})
    def retry(self, request: Request, pk: UUID, run: UUID) -> Response:
        """Let a run that has ended go on: what is done stays done. 409 while it is going."""
        form = said.Retry(data=request.data)
        form.is_valid(raise_exception=True)
        step = form.validated_data.get("step", "")
        actions.retry_run(self.membership, self.get_object(), step)
        return Response(said.RunFull(self.get_object()).data, 202)

    @extend_schema(parameters=[_AFTER, _STEP], responses=said.LogLine(many=True), filters=False)
    def logs(self, request: Request, pk: UUID, run: UUID) -> Response:
        """What has happened, oldest first."""
        after = request.query_params.get("after", "0")
        if not (after.isascii() and after.isdecimal()) or len(after) > 9:
            raise Invalid("after is a number.", errors={"after": ["Give a number."]})
        found = self.get_object()
        step = request.query_params.get("step", "")[:40].replace("\0", "")
        page: Any = self.paginate_queryset(logs.events_of(found, step=step, after=int(after)))
        return self.get_paginated_response(said.LogLine(logs.lines(found, page), many=True).data)

    @extend_schema(responses={(200, "text/plain"): str}, filters=False)
    def log_file(self, request: Request, pk: UUID, run: UUID) -> HttpResponse:
        """The whole log as a text file."""
        found: Run = self.get_object()
        text = "".join(logs.text(found, logs.events_of(found)[:MOST_LINES]))
        answer = HttpResponse(text, content_type="text/plain; charset=utf-8")
        answer["Content-Disposition"] = f'attachment; filename="run-{found.number}.log"'
        return answer
