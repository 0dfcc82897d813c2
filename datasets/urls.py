from django.urls import path

from datasets import views

app_name = "datasets"
urlpatterns = [
    path("data", views.index, name="list"),
    path("data/upload", views.upload, name="upload"),
    path("data/samples/<slug:key>", views.sample, name="sample"),
    path("data/<uuid:dataset_id>", views.detail, name="detail"),
    path("data/<uuid:dataset_id>/versions", views.new_version, name="new-version"),
    path("data/<uuid:dataset_id>/role", views.role, name="role"),
    path("data/<uuid:dataset_id>/delete", views.delete, name="delete"),
    path("data/versions/<uuid:version_id>/ingest", views.ingest, name="ingest"),
    path("data/versions/<uuid:version_id>/picture", views.picture, name="picture"),
    path("data/versions/<uuid:version_id>/rejects", views.rejects, name="rejects"),
]
