from typing import Any

from django.urls import path

from pipelines import connection_views, experiment_views, form_views, views

app_name = "pipelines"
urlpatterns: list[Any] = [
    path("pipelines", views.pipelines, name="pipelines"),
    path("pipelines/new", form_views.new, name="new"),
    path("pipelines/<uuid:pipeline>", views.pipeline, name="pipeline"),
    path("pipelines/<uuid:pipeline>/edit", form_views.edit, name="edit"),
    path("pipelines/<uuid:pipeline>/run", views.start, name="start"),
    path("pipelines/<uuid:pipeline>/switch", views.switch, name="switch"),
    path("pipelines/<uuid:pipeline>/delete", views.delete, name="delete"),
    path("pipelines/runs/<uuid:run>", views.run, name="run"),
    path("pipelines/runs/<uuid:run>/live", views.live, name="live"),
    path("pipelines/runs/<uuid:run>/cancel", views.cancel, name="cancel"),
    path("pipelines/runs/<uuid:run>/retry", views.retry, name="retry"),
    path("connections", connection_views.connections, name="connections"),
    path("connections/new", connection_views.new_connection, name="new-connection"),
    path("connections/<uuid:connection>", connection_views.detail, name="connection"),
    path("connections/<uuid:connection>/change", connection_views.change, name="change-connection"),
    path("connections/<uuid:connection>/test", connection_views.test, name="test-connection"),
    path("connections/<uuid:connection>/tested", connection_views.tested, name="connection-tested"),
    path("connections/<uuid:connection>/delete", connection_views.delete, name="delete-connection"),
    path("experiments", experiment_views.listed, name="experiments"),
    path("experiments/new", experiment_views.new, name="new-experiment"),
    path("experiments/<uuid:experiment>", experiment_views.detail, name="experiment"),
    path("experiments/<uuid:experiment>/change", experiment_views.change, name="change-experiment"),
    path("experiments/<uuid:experiment>/delete", experiment_views.delete, name="delete-experiment"),
]
