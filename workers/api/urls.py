from django.urls import path

from workers.api import bootstrap, fleet, views
from workers.api.heartbeat import heartbeat

urlpatterns = [
    path("workers", fleet.NodesView.as_view(), name="workers"),
    path("workers/stats", fleet.StatsView.as_view()),
    path("workers/queues", fleet.QueuesView.as_view()),
    path("workers/local/info", fleet.LocalView.as_view()),
    path("workers/join-tokens", fleet.JoinTokensView.as_view()),
    path("workers/join-tokens/<uuid:token>", fleet.JoinTokenView.as_view()),
    path("workers/<uuid:node>", fleet.NodeView.as_view()),
    *(
        path(f"workers/<uuid:node>/{action}", fleet.NodeActionView.as_view(), {"action": action})
        for action in fleet.ACTIONS
    ),
    path("workers/join.sh", bootstrap.ScriptView.as_view()),
    path("workers/bundle", bootstrap.BundleView.as_view()),
    path("workers/register", views.RegisterView.as_view()),
    path("workers/heartbeat", heartbeat),
    path("workers/claim", views.ClaimView.as_view()),
    path("workers/tasks/<uuid:task>/events", views.EventsView.as_view()),
    path("workers/tasks/<uuid:task>/end", views.EndView.as_view()),
    path("workers/tasks/<uuid:task>/artifacts/<str:name>", views.UploadView.as_view()),
    path("workers/artifacts/<uuid:artifact>", views.ArtifactView.as_view()),
    path("live-ticket", views.LiveTicketView.as_view(), name="live-ticket"),
]
