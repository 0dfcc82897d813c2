"""The addresses of the Open Inference Protocol, below /v2."""

from django.urls import path

from clusters.api import protocol

urlpatterns = [
    path("", protocol.ServerView.as_view()),
    path("/health/live", protocol.LiveView.as_view()),
    path("/health/ready", protocol.ReadyView.as_view()),
    path("/models/<str:name>", protocol.ModelView.as_view()),
    path("/models/<str:name>/ready", protocol.ModelReadyView.as_view()),
    path("/models/<str:name>/infer", protocol.InferView.as_view()),
]
