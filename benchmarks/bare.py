"""A bare Celery worker, the peer of latency.py: one task that returns at once."""

import os

from celery import Celery

app = Celery("bare", broker=os.environ["BARE_BROKER"], backend=os.environ["BARE_BROKER"])
app.conf.task_default_queue = "bare"


@app.task(name="bare.echo")
def echo(value: int) -> int:
    return value
