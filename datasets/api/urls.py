from django.urls import path

from datasets.api import views

data = views.DatasetViewSet.as_view
collection = data({"get": "list"})
one = data({"get": "retrieve", "patch": "partial_update", "delete": "destroy"})
versions = data({"get": "versions", "post": "add_version"})

urlpatterns = [
    path("datasets", collection, name="dataset-list"),
    path("datasets/upload", data({"post": "upload"}), name="dataset-upload"),
    path("datasets/samples", views.SamplesView.as_view(), name="sample-list"),
    path("datasets/samples/<slug:key>", views.SampleView.as_view(), name="sample-load"),
    path("datasets/<uuid:pk>", one, name="dataset-detail"),
    path(
        "datasets/<uuid:pk>/preview",
        data({"get": "preview"}),
        name="dataset-preview",
    ),
    path("datasets/<uuid:pk>/image", data({"get": "image"}), name="dataset-image"),
    path(
        "datasets/<uuid:pk>/stats",
        data({"get": "stats"}),
        name="dataset-stats",
    ),
    path(
        "datasets/<uuid:pk>/associations",
        data({"get": "associations"}),
        name="dataset-associations",
    ),
    path(
        "datasets/<uuid:pk>/versions",
        versions,
        name="dataset-versions",
    ),
    path(
        "datasets/<uuid:pk>/rejects",
        data({"get": "rejects"}),
        name="dataset-rejects",
    ),
]
