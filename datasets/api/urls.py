from django.urls import path

from datasets.api import views

collection = views.DatasetViewSet.as_view({"get": "list"})
one = {"get": "retrieve", "patch": "partial_update", "delete": "destroy"}
versions = {"get": "versions", "post": "add_version"}

urlpatterns = [
    path("datasets", collection, name="dataset-list"),
    path(
        "datasets/upload", views.DatasetViewSet.as_view({"post": "upload"}), name="dataset-upload"
    ),
    path("datasets/samples", views.SamplesView.as_view(), name="sample-list"),
    path("datasets/samples/<slug:key>", views.SampleView.as_view(), name="sample-load"),
    path("datasets/<uuid:pk>", views.DatasetViewSet.as_view(one), name="dataset-detail"),
    path(
        "datasets/<uuid:pk>/preview",
        views.DatasetViewSet.as_view({"get": "preview"}),
        name="dataset-preview",
    ),
    path(
        "datasets/<uuid:pk>/stats",
        views.DatasetViewSet.as_view({"get": "stats"}),
        name="dataset-stats",
    ),
    path(
        "datasets/<uuid:pk>/versions",
        views.DatasetViewSet.as_view(versions),
        name="dataset-versions",
    ),
    path(
        "datasets/<uuid:pk>/rejects",
        views.DatasetViewSet.as_view({"get": "rejects"}),
        name="dataset-rejects",
    ),
]
