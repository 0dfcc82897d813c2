from typing import Any

from django.urls import path

from pipelines.api import connections, experiments, views, workflow

pipeline = views.PipelineViewSet.as_view
run = views.RunViewSet.as_view
both: dict[str, Any] = {"get": "list", "post": "create"}
one: dict[str, Any] = {"get": "retrieve", "patch": "partial_update", "delete": "destroy"}

urlpatterns: list[Any] = [
    path("pipelines", pipeline(both), name="pipelines"),
    # As some write it; the same, so it stands in the schema once.
    path("pipelines/", pipeline(both, schema=None)),
    path("pipelines/<uuid:pk>", pipeline(one), name="pipeline"),
    path("pipelines/<uuid:pk>/runs", run(both), name="pipeline-runs"),
    path("pipelines/<uuid:pk>/runs/", run(both, schema=None)),
    path("pipelines/<uuid:pk>/runs/<uuid:run>", run({"get": "retrieve"}), name="pipeline-run"),
    path("pipelines/<uuid:pk>/runs/<uuid:run>/", run({"get": "retrieve"}, schema=None)),
    path("pipelines/<uuid:pk>/runs/<uuid:run>/cancel", run({"post": "cancel"})),
    path("pipelines/<uuid:pk>/runs/<uuid:run>/retry", run({"post": "retry"})),
    path("pipelines/<uuid:pk>/runs/<uuid:run>/logs", run({"get": "logs"})),
    path(
        "pipelines/<uuid:pk>/runs/<uuid:run>/log.txt",
        run({"get": "log_file"}),
        name="pipeline-run-log",
    ),
    *connections.urlpatterns,
    *experiments.urlpatterns,
    *workflow.urlpatterns,
]
