"""A hand in the database of a platform that runs beside the tests: JSON lines in, JSON lines out.

``Desk`` is the caller's side; the module itself runs with that platform's settings.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Desk:
    """Calls of the functions below, in a process that has the platform's settings."""

    def __init__(self, env: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "tests.chaos.desk"]
        self._process = subprocess.Popen(
            command, env=dict(env), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._lock = threading.Lock()

    def __call__(self, name: str, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            assert self._process.stdin
            assert self._process.stdout
            self._process.stdin.write(json.dumps([name, args, kwargs]).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        assert line, "the desk has ended"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def rows(self, sql: str, *params: Any) -> list[Any]:
        """What a query gives, as lists. Times are seconds since 1970."""
        return list(self("rows", sql, list(params)))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def main() -> None:
    import django

    django.setup()

    import time
    from uuid import UUID, uuid4

    from django.db import close_old_connections, connection

    from organizations.models import Organization
    from workers import actions, bells
    from workers.models import Task, Worker

    def organizations(count: int) -> list[str]:
        made = [Organization.objects.create(name=f"Organization {n}") for n in range(count)]
        return [str(one.pk) for one in made]

    def add(organization: str, kind: str = "toy.work", **fields: Any) -> str:
        subject = uuid4()
        needs = {"payload": {}, "cpu_millis": 100, "ram_mib": 256, "time_limit_s": 120} | fields
        task = actions.add_task(
            Organization.objects.get(pk=organization),
            kind=kind,
            subject=subject,
            topic=f"job:{subject}",
            **needs,
        )
        return str(task.pk)

    def add_many(
        organizations: list[str], tasks: list[dict[str, Any]], kind: str = "toy.work"
    ) -> list[str]:
        """One after the other in turn: task n is organization n's, and so on."""
        return [
            add(organizations[n % len(organizations)], kind, payload=payload)
            for n, payload in enumerate(tasks)
        ]

    def cancel(task: str) -> None:
        actions.cancel_task(Task.objects.get(pk=task), by="the test")

    def drain(node: str, draining: bool) -> None:
        Worker.objects.filter(name=node).update(draining=draining)

    def ring(queue: str, times: int) -> None:
        for _ in range(times):
            bells.ring(queue)

    def react(task: str, times: int) -> None:
        for _ in range(times):
            bells.send("workers.tasks.handle_end", args=[task], queue="control")

    def rows(sql: str, params: list[Any]) -> list[Any]:
        with connection.cursor() as cursor:
            cursor.execute(sql, params)
            return [list(row) for row in cursor.fetchall()]

    calls = {
        call.__name__: call
        for call in (organizations, add, add_many, cancel, drain, ring, react, rows)
    }

    def plain(value: Any) -> Any:
        if isinstance(value, UUID):
            return str(value)
        return value.timestamp() if hasattr(value, "timestamp") else float(value)

    for line in sys.stdin:
        name, args, kwargs = json.loads(line)
        answer: dict[str, Any] = {}
        for wait_s in (0.5, 1, 2, 4, 8, 8, 8, None):  # PostgreSQL may be one of those that die
            close_old_connections()
            try:
                answer = {"value": calls[name](*args, **kwargs)}
                break
            except Exception as error:
                answer = {"error": f"{name}: {type(error).__name__}: {error}"}
                if wait_s is None or "OperationalError" not in answer["error"]:
                    break
                connection.close()
                time.sleep(wait_s)
        print(json.dumps(answer, default=plain), flush=True)


if __name__ == "__main__":
    main()
