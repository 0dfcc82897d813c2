from django.urls import path

from training.api import gate, views

job = views.JobViewSet.as_view
model = views.ModelViewSet.as_view
batch = views.BatchViewSet.as_view

urlpatterns = [
    path("training", job({"get": "list"}), name="training-jobs"),
    path("training/start", job({"post": "start"}), name="training-start"),
    path("training/check", gate.CheckViewSet.as_view({"post": "create"}), name="training-checks"),
    path(
        "training/check/<uuid:pk>",
        gate.CheckViewSet.as_view({"get": "retrieve"}),
        name="training-check",
    ),
    path("training/<uuid:pk>", job({"get": "retrieve"}), name="training-job"),
    path("training/<uuid:pk>/progress", job({"get": "progress"}), name="training-progress"),
    path("training/<uuid:pk>/cancel", job({"post": "cancel"}), name="training-cancel"),
    path("training/<uuid:pk>/stop", job({"post": "stop"}), name="training-stop"),
    path("training/<uuid:pk>/front", job({"post": "front"}), name="training-front"),
    path(
        "results/job/<uuid:job_id>/leaderboard",
        views.LeaderboardViewSet.as_view({"get": "list"}),
        name="training-leaderboard",
    ),
    path("results/model/<uuid:pk>", model({"get": "retrieve"}), name="training-model"),
    path("results/model/<uuid:pk>/predict", model({"post": "predict"}), name="training-predict"),
    path("results/model/<uuid:pk>/download", model({"get": "download"}), name="training-download"),
    path("results/predictions", batch({"get": "list"}), name="training-batches"),
    path("results/predictions/<uuid:pk>", batch({"get": "retrieve"}), name="training-batch"),
    path(
        "results/predictions/<uuid:pk>/download",
        batch({"get": "download"}),
        name="training-batch-download",
    ),
    path("stats/overview", views.OverviewView.as_view(), name="stats-overview"),
    path("stats/jobs", views.JobStatsView.as_view(), name="stats-jobs"),
    path("stats/models", views.ModelStatsView.as_view(), name="stats-models"),
]
