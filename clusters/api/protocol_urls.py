"""The addresses of the Open Inference Protocol, below /v2."""

from django.urls import path

from clusters.api import protocol

urlpatterns = [
    path("v2", protocol.ServerView.as_view()),
    path("v2/health/live", protocol.LiveView.as_view()),
    path("v2/health/ready", protocol.ReadyView.as_view()),
    path("v2/models/<str:name>", protocol.ModelView.as_view()),
    path("v2/models/<str:name>/ready", protocol.ModelReadyView.as_view()),
    path("v2/models/<str:name>/infer", protocol.InferView.as_view()),
]
