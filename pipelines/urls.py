from typing import Any

app_name = "pipelines"
urlpatterns: list[Any] = []
