"""The six stages in one request, as ``/api/workflow/tasks``."""

from typing import Any, ClassVar
from uuid import UUID

from django.db.models import QuerySet
from django.urls import path, reverse
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from organizations.api.base import OrgViewSet
from organizations.models import Role
from pipelines import graph, workflow
from pipelines.models import NAME, Run


class NewWorkflow(serializers.Serializer[Any]):
    name = serializers.CharField(max_length=63, validators=[NAME])
    experiment_id = serializers.UUIDField(
        required=False,
        help_text="An experiment, or a training: its target, engines and budget are used again. "
        "Needed where no commands are given.",
    )
    sample_sql = serializers.CharField(max_length=graph.MOST_TEXT, help_text="Rows to train on.")
    infer_sql = serializers.CharField(max_length=graph.MOST_TEXT, help_text="Rows to score.")
    hive_table = serializers.CharField(
        max_length=400, help_text="The table of the warehouse that gets the scored rows."
    )
    hdfs_path = serializers.CharField(
        max_length=1000, required=False, allow_blank=True,
        help_text="The folder of the files, within that of the connection 'machine'; "
        "workflow/<name>. Without a machine, files go through FlowML's own storage.",
    )  # fmt: skip
    connection = serializers.CharField(
        max_length=63, required=False, allow_blank=True,
        help_text="Of the organization's warehouses, by name; needed where there are several.",
    )  # fmt: skip
    machine = serializers.CharField(
        max_length=63, required=False, allow_blank=True,
        help_text="A connection to a machine or a place with files: sample.csv, infer.csv and the "
        "result lie there.",
    )  # fmt: skip
    train_command = serializers.CharField(
        max_length=graph.MOST_TEXT, required=False, allow_blank=True,
        help_text="Trains on the machine, in the folder with sample.csv; FlowML trains where there "
        "is none.",
    )  # fmt: skip
    infer_command = serializers.CharField(
        max_length=graph.MOST_TEXT, required=False, allow_blank=True,
        help_text="Scores infer.csv there, and writes result_file.",
    )  # fmt: skip
    result_file = serializers.RegexField(
        r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z", required=False, help_text="result.csv"
    )
    time_limit_s = serializers.IntegerField(
        required=False, min_value=1, max_value=7 * 24 * 3600, help_text="Of each command; 3600."
    )


class WorkflowStep(serializers.Serializer[Any]):
    step = serializers.IntegerField(help_text="0 to 5.")
    name = serializers.ChoiceField(choices=list(workflow.STEPS))
    status = serializers.ChoiceField(choices=workflow.STATUSES)
    started_at = serializers.DateTimeField(allow_null=True)
    finished_at = serializers.DateTimeField(allow_null=True)
    error = serializers.CharField()
    retry_count = serializers.IntegerField()


class WorkflowTask(serializers.Serializer[Any]):
    task_id = serializers.UUIDField()
    number = serializers.IntegerField(help_text="Counted within the tasks of this name.")
    name = serializers.CharField()
    pipeline_id = serializers.UUIDField()
    status = serializers.ChoiceField(choices=workflow.STATUSES)
    current_step = serializers.IntegerField()
    error = serializers.CharField()
    created_at = serializers.DateTimeField()
    finished_at = serializers.DateTimeField(allow_null=True)
    steps = WorkflowStep(many=True)


@extend_schema(tags=["workflow"])
class WorkflowViewSet(OrgViewSet):
    """Query, train, infer and write to a table: a pipeline in one request."""

    roles: ClassVar = {
        "list": Role.VIEWER,
        "retrieve": Role.VIEWER,
        "create": Role.DEVELOPER,
    }
    queryset = (
        Run.objects.filter(trigger=Run.Trigger.WORKFLOW)
        .select_related("pipeline")
        .prefetch_related("steps")
    )
    serializer_class = WorkflowTask
    ordering_fields = ("created_at",)
    ordering = ("-created_at", "id")

    @extend_schema(responses=WorkflowTask(many=True))
    def list(self, request: Request) -> Response:
        """The organization's tasks, newest first."""
        found: QuerySet[Run] = self.filter_queryset(self.get_queryset())
        page: Any = self.paginate_queryset(found)
        rows = [workflow.told(run) for run in page]
        return self.get_paginated_response(WorkflowTask(rows, many=True).data)

    @extend_schema(responses=WorkflowTask)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One task with its six steps. Its log: the run's, at its pipeline."""
        return Response(WorkflowTask(workflow.told(self.get_object())).data)

    @extend_schema(request=NewWorkflow, responses={202: WorkflowTask})
    def create(self, request: Request) -> Response:
        """Start the six stages. The same name again runs the same pipeline, changed if need be."""
        form = NewWorkflow(data=request.data)
        form.is_valid(raise_exception=True)
        run = workflow.start(self.membership, **form.validated_data)
        answer = Response(WorkflowTask(workflow.told(run)).data, 202)
        answer["Location"] = reverse("workflow-task", args=[run.pk])
        return answer


_view = WorkflowViewSet.as_view
_both: dict[str, Any] = {"get": "list", "post": "create"}

urlpatterns: list[Any] = [
    path("workflow/tasks", _view(_both), name="workflow-tasks"),
    path("workflow/tasks/<uuid:pk>", _view({"get": "retrieve"}), name="workflow-task"),
]
