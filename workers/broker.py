"""Each node's own user at the broker, who may wait for bells on its queues and do nothing else.

So a node's password opens no control message, no other queue, nobody's pushes, no cached answer.
The password is made when the node registers and kept nowhere: the row has its SHA-256, which is
what Valkey takes. So the sweep puts right whatever the broker lost (a restart) or did not hear of
while it was away: users that are missing, that may listen to other queues than their node serves,
and those whose node is gone.
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
OURS = "flowml:node-users"  # all that this installation made: others may share the broker
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
    url = settings.NODE_BROKER_URL or settings.REDIS_URL
    out_of_reach = _is_loopback(urlsplit(url).hostname) and not _is_loopback(caller)
    if settings.SCHEDULER_BACKEND != "celery" or worker.organization_id or out_of_reach:
        leave(worker)
        return None
    password = secrets.token_urlsafe(24)
    worker.broker_hash = hashlib.sha256(password.encode()).hexdigest()
    worker.save(update_fields=["broker_hash"])  # first, or the sweep would take the user away
    try:
        with _client() as client:
            _set(client, worker)
    except redis.ResponseError as problem:
        # A managed broker may forbid it: the node can do without.
        log.warning("node gets no broker user", extra={"problem": str(problem)})
        worker.broker_hash = ""
        worker.save(update_fields=["broker_hash"])
    except redis.RedisError as problem:  # it is away; the sweep makes the user when it is back
        log.warning("broker user not made yet", extra={"problem": str(problem)})
    return _as_user(url, user_of(worker), password) if worker.broker_hash else None


def leave(worker: Worker) -> None:
    """The node does without the broker from now on."""
    if worker.broker_hash:
        worker.broker_hash = ""
        worker.save(update_fields=["broker_hash"])
        dismiss(user_of(worker))


def renew(worker: Worker) -> None:
    """The node's queues have changed: so must what it may listen to. Never raises: the sweep."""
    if worker.broker_hash:
        try:
            with _client() as client:
                _set(client, worker)
        except redis.RedisError as problem:
            log.warning("broker user not changed yet", extra={"problem": str(problem)})


def dismiss(user: str) -> None:
    """Take a node's user away, and its connections with it. Never raises: the sweep does it."""
    try:
        with _client() as client:
            _remove(client, user)
    except redis.RedisError as problem:
        log.warning("broker user not removed yet", extra={"problem": str(problem)})


def restore() -> int:
    """Make the broker's users what the nodes say; how many were not. Raises RedisError."""
    nodes = Worker.objects.exclude(broker_hash="").only("broker_hash", "queues")
    wanted = {user_of(node): node for node in nodes}
    with _client() as client:
        gone = client.smembers(OURS) - wanted.keys()
        for user in gone:
            _remove(client, user)
        if not wanted:
            return len(gone)
        there = {words[1]: words[2:] for line in client.acl_list() if (words := line.split())}
        wrong = [node for user, node in wanted.items() if not _fits(there.get(user, []), node)]
        for node in wrong:
            _set(client, node)
    return len(gone) + len(wrong)


def _fits(words: Sequence[str], worker: Worker) -> bool:
    """Whether a user is what ``_set`` makes of it. ``words`` are of ACL LIST."""
    told = {word for word in words if word[0] in "#~+&" or word in {"on", "off"}}
    wanted = set(rules(worker.broker_hash, worker.queues))
    return told == wanted - {"reset", "resetchannels", "-@all"}


def _set(client: Any, worker: Worker) -> None:
    user = user_of(worker)
    client.sadd(OURS, user)
    client.execute_command("ACL", "SETUSER", user, *rules(worker.broker_hash, worker.queues))


def _remove(client: Any, user: str) -> None:
    client.execute_command("ACL", "DELUSER", user)
    client.srem(OURS, user)


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
