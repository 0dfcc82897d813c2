"""HTTP and WebSocket, both through daphne."""

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "flowml_site.settings")
http = get_asgi_application()  # before anything that imports a model

from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402
from channels.sessions import CookieMiddleware, SessionMiddleware  # noqa: E402
from channels.auth import AuthMiddleware  # noqa: E402
from django.urls import path  # noqa: E402

from workers.consumers import LiveConsumer  # noqa: E402

application = ProtocolTypeRouter(
    {
        "http": http,
        "websocket": AllowedHostsOriginValidator(
            CookieMiddleware(
                SessionMiddleware(AuthMiddleware(URLRouter([path("ws", LiveConsumer.as_asgi())])))
            )
        ),
    }
)
