from django.urls import path

from training import views

app_name = "training"
urlpatterns = [
    path("training", views.jobs, name="list"),
    path("training/new", views.new, name="new"),
    path("training/new/finding", views.finding, name="finding"),
    path("training/<uuid:job_id>", views.job, name="job"),
    path("training/<uuid:job_id>/live", views.job_live, name="job-live"),
    path("training/<uuid:job_id>/leaderboard", views.leaderboard, name="leaderboard"),
    path("training/<uuid:job_id>/log", views.job_log, name="job-log"),
    path("training/<uuid:job_id>/cancel", views.cancel, name="cancel"),
    path("training/<uuid:job_id>/stop", views.stop, name="stop"),
    path("models", views.models, name="models"),
    path("models/<uuid:model_id>", views.model, name="model"),
    path("models/<uuid:model_id>/predict", views.predict, name="predict"),
    path("models/<uuid:model_id>/predict-file", views.predict_file, name="predict-file"),
    path("models/<uuid:model_id>/download", views.download, name="download"),
    path("predictions/<uuid:batch_id>", views.batch, name="batch"),
    path("predictions/<uuid:batch_id>/result", views.batch_result, name="batch-result"),
]
