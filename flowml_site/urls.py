from django.contrib import admin
from django.urls import include, path
from drf_spectacular.views import (
    SpectacularAPIView,
    SpectacularRedocView,
    SpectacularSwaggerSplitView,
)

from flowml_site import health
from flowml_site.home import home
from flowml_site.metrics import metrics

# Django compares one pattern after the other: first stands what is asked most often.
api = [
    path("", include("clusters.api.urls")),
    path("", include("accounts.api.urls")),
    path("", include("organizations.api.urls")),
    path("", include("workers.api.urls")),
    path("", include("datasets.api.urls")),
    path("", include("training.api.urls")),
    path("", include("pipelines.api.urls")),
    path("schema", SpectacularAPIView.as_view(), name="schema"),
    path("docs", SpectacularSwaggerSplitView.as_view(), name="docs"),
    path("redoc", SpectacularRedocView.as_view(), name="redoc"),
]

urlpatterns = [
    path("api/", include(api)),
    path("", home, name="home"),
    path("", include("accounts.urls")),
    path("", include("organizations.urls")),
    path("", include("workers.urls")),
    path("", include("datasets.urls")),
    path("", include("training.urls")),
    path("", include("clusters.urls")),
    path("", include("pipelines.urls")),
    path("health", health.health, name="health"),
    path("health/live", health.live, name="health-live"),
    path("metrics", metrics, name="metrics"),
    path("", include("clusters.api.protocol_urls")),  # where the protocol has it: /v2
    path("admin/", admin.site.urls),
]

handler404 = "flowml_site.errors.not_found"
handler500 = "flowml_site.errors.server_error"
