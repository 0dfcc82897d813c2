"""What happens to a data set when its work on a node has ended. Runs in control."""

from typing import Any

from datasets import actions
from workers.models import Task
from workers.signals import task_ended


def connect() -> None:
    task_ended.connect(_ingest_ended, dispatch_uid="datasets.ingest_ended")


def _ingest_ended(task: Task, **_: Any) -> None:
    if task.kind == actions.INGEST:
        actions.finish_ingest(task)
