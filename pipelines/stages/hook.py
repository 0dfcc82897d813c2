"""A message to a web hook: the handler of ``pipeline.hook``. No Django."""

from collections.abc import Mapping
from typing import Any

from pipelines import reach
from pipelines.connectors.webhook import WebHook
from workers.node.channel import WorkError

KIND = "webhook"


def opened(task: Mapping[str, Any]) -> WebHook:
    """The web hook of ``task``. Raises WorkError where there is none."""
    told = task.get("confidential") or {}
    if problem := told.get("problem"):
        raise WorkError(str(problem), code="connection")
    if told.get("kind") != KIND:
        raise WorkError("This connection is no web hook.", code="connection")
    rules = reach.parse(str(told.get("reach") or ""))
    return WebHook(told.get("settings") or {}, told.get("secrets") or {}, rules)


def run(task: Mapping[str, Any], channel: Any) -> dict[str, Any]:
    """Send ``payload["body"]``, which tells of ``payload["event"]``."""
    payload = task.get("payload") or {}
    tries = opened(task).send(str(payload["event"]), payload["body"], str(task["task"]))
    return {"data": {"tries": tries}, "files": {}}
