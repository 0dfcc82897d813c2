"""An application for test_bodies: counts the bytes of each body, or sends 200 MiB."""

from typing import Any

from flowml_site.bodies import guard_bodies


async def count(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/download":
        for _ in range(200):
            await send({"type": "http.response.body", "body": b"a" * (1 << 20), "more_body": True})
    await send({"type": "http.response.body", "body": str(size).encode()})


application = guard_bodies(count, lambda path: (200 if path == "/large" else 1) << 20)
