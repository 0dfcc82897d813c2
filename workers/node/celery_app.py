"""The doorbell: a Celery worker whose only task says "there may be work for you".

The supervisor runs ``celery -A workers.node.celery_app worker -P solo -Q <queues>`` beside itself
and hears each message as a datagram on the socket FLOWML_BELL_FD. A message carries nothing: lost,
doubled or late, it does no harm, since what to do is only ever learnt by claiming. So nothing is
acknowledged and no queue is declared: the node's user at the broker may take from its queues and
do nothing else (workers/broker.py).

Started by hand, the same command becomes a whole node: the supervisor takes this process over.
"""

import os
import signal
import socket
import sys
from typing import Any

from celery import Celery
from celery.signals import celeryd_init, worker_ready
from kombu import Exchange, Queue

from workers.node import procs

app = Celery("flowml_node")
app.conf.update(
    broker_url=os.environ.get("FLOWML_BROKER_URL") or "redis://127.0.0.1:6379/0",
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    # Notice a connection that died without a word.
    broker_transport_options={
        "socket_connect_timeout": 5,
        "socket_timeout": 15,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "ack_emulation": False,
        "priority_steps": [0],
    },
    task_queues=[
        Queue(name, Exchange("", no_declare=True), routing_key=name, no_declare=True)
        for name in os.environ.get("FLOWML_BELL_QUEUES", "").split(",")
        if name
    ],
    task_ignore_result=True,
    task_acks_late=False,
    worker_prefetch_multiplier=8,
    worker_send_task_events=False,
    worker_enable_remote_control=False,
    worker_hijack_root_logger=False,
)


@celeryd_init.connect
def _become_a_node(options: dict[str, Any] | None = None, **_: Any) -> None:
    """``celery … worker -Q cpu -c 2`` typed by a person: be the supervisor instead."""
    if _bell is not None:
        return
    said = options or {}
    command = [sys.executable, "-m", "workers.cli"]
    queues = said.get("queues")
    if queues:
        command += ["--queues", queues if isinstance(queues, str) else ",".join(queues)]
    if said.get("concurrency"):
        command += ["--concurrency", str(said["concurrency"])]
    os.execv(sys.executable, command)  # noqa: S606


_bell: socket.socket | None = None
if os.environ.get("FLOWML_BELL_FD"):
    _bell = socket.socket(fileno=int(os.environ["FLOWML_BELL_FD"]))
    _bell.setblocking(False)
    _bell.set_inheritable(False)
    procs.die_with_parent(os.getppid(), signal.SIGKILL)


def _forward(word: bytes) -> None:
    if _bell is not None:
        try:
            _bell.send(word)
        except OSError:
            pass  # the supervisor's queue is full of bells, or it is gone


@app.task(name="workers.ring", ignore_result=True)
def ring(*_args: Any, **_kwargs: Any) -> None:
    """Someone put work on a queue of ours."""
    _forward(b"ring")


@worker_ready.connect
def _ready(**_: Any) -> None:
    _forward(b"ready")
