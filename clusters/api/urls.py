from typing import Any

from django.urls import path

from clusters.api import views

cluster = views.ClusterViewSet.as_view
deployment = views.DeploymentViewSet.as_view
both: dict[str, Any] = {"get": "list", "post": "create"}

urlpatterns = [
    path("clusters", cluster(both), name="clusters"),
    # As some write it; the same, so it stands in the schema once.
    path("clusters/", cluster(both, schema=None)),
    path(
        "clusters/<uuid:pk>",
        cluster({"get": "retrieve", "patch": "partial_update", "delete": "destroy"}),
        name="cluster",
    ),
    path("clusters/<uuid:pk>/history", cluster({"get": "history"})),
    path("clusters/<uuid:pk>/nodes", cluster({"post": "add_node"})),
    path("clusters/<uuid:pk>/nodes/<uuid:node>", cluster({"delete": "remove_node"})),
    path("deployments", deployment(both), name="deployments"),
    path("deployments/", deployment(both, schema=None)),
    path(
        "deployments/<uuid:pk>",
        deployment({"get": "retrieve", "patch": "partial_update", "delete": "destroy"}),
        name="deployment",
    ),
    path("deployments/<uuid:pk>/stop", deployment({"post": "stop"})),
    path("deployments/<uuid:pk>/start", deployment({"post": "start"})),
    path("deployments/<uuid:pk>/rollback", deployment({"post": "rollback"})),
    path("deployments/<uuid:pk>/promote", deployment({"post": "promote"})),
    path("deployments/<uuid:pk>/abandon", deployment({"post": "abandon"})),
    path("deployments/<uuid:pk>/retrain", deployment({"post": "retrain"})),
    path("deployments/<uuid:pk>/revisions", deployment({"get": "revisions"})),
    path("deployments/<uuid:pk>/events", deployment({"get": "events"})),
    path("deployments/<uuid:pk>/metrics", deployment({"get": "metrics"})),
    path("deployments/<uuid:pk>/drift", deployment({"get": "drift"})),
    path("deployments/<uuid:pk>/feedback", deployment({"get": "outcomes", "post": "feedback"})),
    path("deployments/<uuid:pk>/predict", deployment({"post": "predict"}), name="predict"),
    path("deployments/<uuid:pk>/logs", deployment({"get": "logs"})),
    path("deployments/<uuid:pk>/http", views.ContainerView.as_view()),
    path("deployments/<uuid:pk>/http/", views.ContainerView.as_view()),
    path("deployments/<uuid:pk>/http/<path:path>", views.ContainerView.as_view()),
    path("workers/replicas/<uuid:replica>", views.ReplicaView.as_view()),
    path("workers/replicas/<uuid:replica>/log", views.ReplicaLogView.as_view()),
]
