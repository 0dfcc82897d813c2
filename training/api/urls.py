from django.urls import path

from training.api import gate, general, named, views, visualization

job = views.JobViewSet.as_view
model = views.ModelViewSet.as_view
batch = views.BatchViewSet.as_view
name = named.NameViewSet.as_view
ask = named.AskViewSet.as_view
metrics = named.MetricsViewSet.as_view
asked = general.JobRequestViewSet.as_view

urlpatterns = [
    path("training", job({"get": "list"}), name="training-jobs"),
    path("training/start", job({"post": "start"}), name="training-start"),
    path("training/estimate", gate.EstimateView.as_view(), name="training-estimate"),
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
    path("results/model/<uuid:pk>/explain", model({"post": "explain"}), name="training-explain"),
    path(
        "results/model/<uuid:pk>/importance",
        model({"get": "importance", "post": "ask_importance"}),
        name="training-importance",
    ),
    path("results/model/<uuid:pk>/download", model({"get": "download"}), name="training-download"),
    path("results/predictions", batch({"get": "list"}), name="training-batches"),
    path("results/predictions/<uuid:pk>", batch({"get": "retrieve"}), name="training-batch"),
    path(
        "results/predictions/<uuid:pk>/download",
        batch({"get": "download"}),
        name="training-batch-download",
    ),
    path("train", name({"post": "train"}), name="named-train"),
    path("models", name({"get": "list", "post": "create"}), name="named-models"),
    path("models/<str:model_name>", name({"get": "retrieve"}), name="named-model"),
    path(
        "models/<str:model_name>/aliases/<str:alias>",
        name({"put": "move", "delete": "remove"}),
        name="named-alias",
    ),
    path("predict/all", ask({"post": "predict_all"}), name="named-predict-all"),
    path(
        "predict/all/<str:dataset>", ask({"post": "predict_dataset"}), name="named-predict-dataset"
    ),
    path("predict/<str:model_name>", ask({"post": "predict"}), name="named-predict"),
    path("metrics/all", metrics({"get": "list"}), name="named-metrics-all"),
    path("metrics/<str:model_name>", metrics({"get": "retrieve"}), name="named-metrics"),
    path("visualization/all", visualization.PageView.as_view(), name="named-visualization-all"),
    path(
        "visualization/<str:model_name>/roc",
        visualization.PictureView.as_view(kind="roc"),
        name="named-roc",
    ),
    path(
        "visualization/<str:model_name>/learning_curve",
        visualization.LearningCurveView.as_view(),
        name="named-learning-curve",
    ),
    path("jobs", asked({"get": "list"}), name="jobs"),
    path("jobs/training", asked({"post": "train"}), name="jobs-training"),
    path("jobs/inference", asked({"post": "infer"}), name="jobs-inference"),
    path("jobs/<uuid:pk>/status", asked({"get": "retrieve"}), name="jobs-status"),
    path("stats/overview", views.OverviewView.as_view(), name="stats-overview"),
    path("stats/jobs", views.JobStatsView.as_view(), name="stats-jobs"),
    path("stats/models", views.ModelStatsView.as_view(), name="stats-models"),
]
