from django.urls import path

from training.views import about, compare, jobs, models, names, new

app_name = "training"
urlpatterns = [
    path("training", jobs.jobs, name="list"),
    path("training/new", new.new, name="new"),
    path("training/new/finding", new.finding, name="finding"),
    path("training/new/estimate", new.estimate, name="new-estimate"),
    path("training/new/check", new.check_data, name="new-check"),
    path("training/checks/<uuid:check_id>", new.checked, name="check"),
    path("training/<uuid:job_id>", jobs.job, name="job"),
    path("training/<uuid:job_id>/live", jobs.job_live, name="job-live"),
    path("training/<uuid:job_id>/leaderboard", jobs.leaderboard, name="leaderboard"),
    path("training/<uuid:job_id>/log", jobs.job_log, name="job-log"),
    path("training/<uuid:job_id>/cancel", jobs.cancel, name="cancel"),
    path("training/<uuid:job_id>/stop", jobs.stop, name="stop"),
    path("training/<uuid:job_id>/front", jobs.front, name="front"),
    path("models", models.models, name="models"),
    path("models/compare", compare.compare, name="compare"),
    path("models/compare/differences", compare.differing, name="compare-differences"),
    path("models/<uuid:model_id>", models.model, name="model"),
    path("models/<uuid:model_id>/predict", models.predict, name="predict"),
    path("models/<uuid:model_id>/sensitivity", models.sensitivity, name="sensitivity"),
    path("models/<uuid:model_id>/explain", models.explain, name="explain"),
    *(
        path(f"models/<uuid:model_id>/{what}{end}", view, {"what": what}, name=f"{ask}{what}")
        for what in about.PARTS
        for end, view, ask in (("", about.part, ""), ("/ask", about.ask, "ask-"))
    ),
    path("models/<uuid:model_id>/predict-file", models.predict_file, name="predict-file"),
    path("models/<uuid:model_id>/download", models.download, name="download"),
    path("models/versions/<uuid:version_id>/champion", names.champion, name="champion"),
    path("predictions/<uuid:batch_id>", models.batch, name="batch"),
    path("predictions/<uuid:batch_id>/result", models.batch_result, name="batch-result"),
]
