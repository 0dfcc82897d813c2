"""HTTP and WebSocket, both through daphne."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "flowml_site.settings")
http = get_asgi_application()  # before anything that imports a model

from channels.auth import AuthMiddlewareStack  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.conf import settings  # noqa: E402
from django.urls import path  # noqa: E402

from flowml_site.bodies import guard_bodies  # noqa: E402
from flowml_site.metrics import count  # noqa: E402
from flowml_site.origins import own_origins_only  # noqa: E402
from workers.api.heartbeat import thin  # noqa: E402
from workers.consumers import LiveConsumer, NodeConsumer  # noqa: E402
from workers.longpoll import waiting_claims  # noqa: E402

sockets = URLRouter(
    [
        path("ws/node", NodeConsumer.as_asgi()),
        path("ws", AuthMiddlewareStack(LiveConsumer.as_asgi())),
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
