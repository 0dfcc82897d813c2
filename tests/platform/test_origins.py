"""Only our own pages open sockets: scheme, host and port must fit."""

from typing import Any

import pytest
from channels.testing import WebsocketCommunicator

from flowml_site.asgi import application
from flowml_site.origins import is_ours


def opens(origin: str | None, host: str = "localhost:8000", **more: Any) -> bool:
    headers = [(b"host", host.encode())]
    if origin is not None:
        headers.append((b"origin", origin.encode()))
    headers += more.pop("headers", [])
    return is_ours({"type": "websocket", "scheme": "ws", "headers": headers, **more})


@pytest.fixture(autouse=True)
def site(settings: Any) -> None:
    settings.PUBLIC_URL = "https://flowml.example.org"
    settings.CSRF_TRUSTED_ORIGINS = ["https://flowml.example.org"]
    settings.ALLOWED_HOSTS = ["localhost", "flowml.example.org", ".inside.example"]
    settings.TRUSTED_PROXIES = []


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:8000", "localhost:8000"),
        ("http://localhost", "localhost"),
        ("http://localhost", "localhost:80"),
        ("http://LOCALHOST:8000", "localhost:8000"),
        ("http://a.inside.example:9000", "a.inside.example:9000"),
        ("https://flowml.example.org", "flowml.example.org"),
        ("https://flowml.example.org:443", "10.0.0.7:8000"),  # a proxy that does not pass Host on
        (None, "localhost:8000"),
    ],
)
def test_our_pages_and_programs_may(origin: str | None, host: str) -> None:
    assert opens(origin, host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:8001", "localhost:8000"),  # another program of the same machine
        ("http://localhost", "localhost:8000"),
        ("https://localhost:8000", "localhost:8000"),
        ("http://flowml.example.org", "flowml.example.org:443"),
        ("https://flowml.example.org:8443", "flowml.example.org"),
        ("https://flowml.example.org.evil.example", "flowml.example.org"),
        ("http://evil.example", "evil.example"),  # a name that was made to point at us
        ("http://evil.example", "localhost:8000"),
        ("null", "localhost:8000"),
        ("", "localhost:8000"),
        ("http://localhost:x", "localhost:8000"),
        ("file://localhost:8000", "localhost:8000"),
    ],
)
def test_other_pages_may_not(origin: str, host: str) -> None:
    assert not opens(origin, host)


def test_tls_may_end_at_a_proxy_that_is_trusted(settings: Any) -> None:
    forwarded = {"headers": [(b"x-forwarded-proto", b"https")], "client": ["10.0.0.2", 4711]}
    page, host = "https://a.inside.example", "a.inside.example"
    assert not opens(page, host, **forwarded)
    settings.TRUSTED_PROXIES = ["10.0.0.0/8"]
    assert opens(page, host, **forwarded)
    assert not opens("http://a.inside.example", host, **forwarded)
    assert opens(page, host, scheme="wss")


async def test_the_socket_itself_is_closed_to_other_ports() -> None:
    headers = [(b"host", b"localhost:8000"), (b"origin", b"http://localhost:8001")]
    connected, _ = await WebsocketCommunicator(application, "/ws", headers=headers).connect()
    assert not connected
