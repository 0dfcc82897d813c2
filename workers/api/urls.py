from django.urls import path

from workers.api import views

urlpatterns = [
    path("workers/register", views.RegisterView.as_view()),
    path("workers/heartbeat", views.HeartbeatView.as_view()),
    path("workers/claim", views.ClaimView.as_view()),
    path("workers/tasks/<uuid:task>/events", views.EventsView.as_view()),
    path("workers/tasks/<uuid:task>/end", views.EndView.as_view()),
    path("workers/tasks/<uuid:task>/artifacts/<str:name>", views.UploadView.as_view()),
    path("workers/artifacts/<uuid:artifact>", views.ArtifactView.as_view()),
    path("live-ticket", views.LiveTicketView.as_view(), name="live-ticket"),
]
