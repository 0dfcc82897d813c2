"""HTTP and WebSocket, both through daphne."""

import os

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "flowml_site.settings")
django.setup(set_prefix=False)  # before anything that imports a model

from asgiref.sync import sync_to_async  # noqa: E402
from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.conf import settings  # noqa: E402
from django.core.handlers.asgi import ASGIHandler  # noqa: E402
from django.http import HttpRequest, HttpResponseBase  # noqa: E402
from django.urls import path  # noqa: E402

from flowml_site.bodies import guard_bodies  # noqa: E402
from flowml_site.metrics import count  # noqa: E402
from flowml_site.origins import own_origins_only  # noqa: E402
from pipelines.consumers import WorkflowLogs  # noqa: E402
from workers.api.heartbeat import thin  # noqa: E402
from workers.consumers import LiveConsumer, NodeConsumer  # noqa: E402
from workers.longpoll import waiting_claims  # noqa: E402


class OneThread(ASGIHandler):
    """Django's handler, which goes to a thread once for a request.

    Its own goes there and back for each middleware before and after the view, which took more
    processor time than all that they do. No view of ours is async.
    """

    def __init__(self) -> None:
        super().__init__()
        self.load_middleware(is_async=False)

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        answer: HttpResponseBase = await sync_to_async(self.get_response)(request)
        return answer


http = OneThread()
sockets = URLRouter(
    [
        path("ws/node", NodeConsumer.as_asgi()),
        path("ws", AuthMiddlewareStack(LiveConsumer.as_asgi())),
        path("api/workflow/tasks/<uuid:pk>/logs", AuthMiddlewareStack(WorkflowLogs.as_asgi())),
    ]
)


def most_bytes(path: str) -> int:
    """How large the body of a request may be. Nodes send tables that they have decoded."""
    upload = settings.MAX_UPLOAD_SIZE_MB * 2**20
    return (8 * upload if path.startswith("/api/workers/") else upload) + 2**20


application = ProtocolTypeRouter(
    {
        "http": guard_bodies(thin(waiting_claims(http), count), most_bytes),
        "websocket": own_origins_only(sockets),
    }
)
