"""Each node's own user at the broker, who may wait for bells on its queues and do nothing else.

So a node's password opens no control message, no other queue, nobody's pushes, no cached answer.
The password is made when the node registers and kept nowhere: the row has its SHA-256, which is
what Valkey takes, so that a broker that lost its users (a restart) gets them again from the sweep.
Where the broker lets us make no users, nodes get none of its passwords and long-poll.
"""

import hashlib
import ipaddress
import logging
import secrets
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import redis
from django.conf import settings

from workers.models import Worker

log = logging.getLogger(__name__)

PREFIX = "flowml-node-"
# All that a Celery worker without acknowledgements, events and remote control needs.
COMMANDS = ("+brpop", "+ping", "+select", "+client|setinfo", "+client|setname")


def user_of(worker: Worker) -> str:
    """The node's name at the broker."""
    return f"{PREFIX}{worker.pk.hex}"


def rules(password_hash: str, queues: Sequence[str]) -> list[str]:
    """What ACL SETUSER gets: one password, these queues' lists, the few commands, no channel."""
    keys = [f"~{queue}" for queue in queues]
    return ["reset", "on", f"#{password_hash}", "resetchannels", *keys, "-@all", *COMMANDS]


def admit(worker: Worker, *, caller: str | None) -> str | None:
    """Make the node's user with a new password; its address of the broker, or None: long-poll.

    ``caller`` is the network address that the node comes from.
    """
    if settings.SCHEDULER_BACKEND != "celery" or worker.organization_id is not None:
        return None
    url = settings.NODE_BROKER_URL or settings.REDIS_URL
    if _is_loopback(urlsplit(url).hostname) and not _is_loopback(caller):
        return None  # that machine can't reach it
    password = secrets.token_urlsafe(24)
    worker.broker_hash = hashlib.sha256(password.encode()).hexdigest()
    try:
        with _client() as client:
            _set(client, worker)
    except redis.ResponseError as problem:
        # A managed broker may forbid it: the node can do without.
        log.warning("node gets no broker user", extra={"problem": str(problem)})
        worker.broker_hash = ""
    except redis.RedisError as problem:  # it is away; the sweep makes the user when it is back
        log.warning("broker user not made yet", extra={"problem": str(problem)})
    worker.save(update_fields=["broker_hash"])
    return _as_user(url, user_of(worker), password) if worker.broker_hash else None


def renew(worker: Worker) -> None:
    """The node's queues have changed: so must what it may listen to. Never raises."""
    if worker.broker_hash:
        try:
            with _client() as client:
                _set(client, worker)
        except redis.RedisError as problem:
            log.warning("broker user not changed", extra={"problem": str(problem)})


def dismiss(worker: Worker) -> None:
    """Take the node's user away, and its connections with it. Never raises."""
    try:
        with _client() as client:
            client.execute_command("ACL", "DELUSER", user_of(worker))
    except redis.RedisError as problem:
        log.warning("broker user not removed", extra={"problem": str(problem)})


def restore() -> int:
    """Make the users that the broker has lost; how many. Raises RedisError."""
    wanted = {user_of(node): node for node in Worker.objects.exclude(broker_hash="")}
    if not wanted:
        return 0
    with _client() as client:
        lost = wanted.keys() - set(client.acl_users())
        for name in lost:
            _set(client, wanted[name])
    return len(lost)


def _set(client: Any, worker: Worker) -> None:
    client.execute_command(
        "ACL", "SETUSER", user_of(worker), *rules(worker.broker_hash, worker.queues)
    )


def _client() -> Any:
    return redis.Redis.from_url(
        settings.REDIS_URL, socket_timeout=2, socket_connect_timeout=2, decode_responses=True
    )


def _as_user(url: str, user: str, password: str) -> str:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}"))


def _is_loopback(host: str | None) -> bool:
    if not host or host == "localhost":
        return True  # a Unix socket
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
