from django.urls import path

from workers import views
from workers.api.fleet import ACTIONS

app_name = "workers"
urlpatterns = [
    path("workers", views.nodes, name="list"),
    path("workers/join", views.join, name="join"),
    *(
        path(f"workers/<uuid:node>/{action}", views.act, {"action": action}, name=action)
        for action in ACTIONS
    ),
]
