"""The log of a workflow task, live: ``/api/workflow/tasks/{id}/logs``."""

from typing import Any
from urllib.parse import parse_qs

from channels.db import database_sync_to_async

from pipelines import workflow
from pipelines.models import Run
from workers import live
from workers.consumers import LiveConsumer

NOT_FOUND = 4404


class WorkflowLogs(LiveConsumer):
    """What was said of the task so far, and then what comes, as {"task_id", "step", "message",
    "level", "timestamp", "seq"}; ``?after=`` a ``seq`` leaves out what one has. Nothing is heard.

    It is let in as ``/ws`` is (a session on our own pages, or ``?ticket=``), and ends with what it
    was opened with. Who may not see the task, or may no more, is told that there is none.
    """

    async def connect(self) -> None:
        await super().connect()
        if self._counted is None:
            return  # turned away
        pk = self.scope["url_route"]["kwargs"]["pk"]
        self._run = await database_sync_to_async(
            Run.objects.filter(pk=pk, trigger=Run.Trigger.WORKFLOW).first
        )()
        if self._run is None:
            await self.send_json({"error": "not-found"})
            return
        asked = parse_qs(self.scope["query_string"].decode("latin-1"))
        after = asked.get("after", ["0"])[0]
        known = int(after) if after.isascii() and after.isdecimal() and len(after) < 10 else 0
        await self._subscribe(self._run.topic, known)

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        """Nothing can be asked for here."""

    async def send_json(self, content: Any, close: bool = False) -> None:
        await super().send_json(content, close)
        if isinstance(content, dict) and content.get("error") == "not-found":
            await self.close(NOT_FOUND)

    async def _missed(self, topic: str, after: int) -> list[dict[str, Any]]:
        assert self._run is not None
        return await database_sync_to_async(workflow.said)(self._run, after, live.PAGE)
