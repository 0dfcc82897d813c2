"""The log of a workflow task: live by its own socket, and as files."""

import json
import os
import time

import pytest
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from django.test import Client

from flowml_site.asgi import application
from organizations.models import Membership
from pipelines import logs, tasks
from pipelines.models import Run
from tests.factories import MembershipFactory, bearer
from tests.pipelines import make as piping
from workers import consumers
from workers.models import emit

SQL = [
    {
        "key": "data_fetch",
        "stage": "sql",
        "params": {"connection": "house", "sql": "SELECT 1", "dataset": "d"},
    },
]


def task_of(by: Membership, state: str = "running", trigger: str = "workflow") -> Run:
    found = piping.run_of(piping.pipeline(by, SQL), state)
    found.trigger = trigger
    found.save()
    return found


# --- Live ---


async def listen(by: Membership, run: Run, more: str = "") -> WebsocketCommunicator:
    def ticket() -> str:
        answer = Client().post("/api/live-ticket", headers=bearer(by.user))
        return str(answer.json()["ticket"])

    shown = await sync_to_async(ticket)()
    path = f"/api/workflow/tasks/{run.pk}/logs?ticket={shown}{more}"
    ws = WebsocketCommunicator(application, path, headers=[(b"host", b"localhost")])
    assert (await ws.connect())[0]
    return ws


live = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(30)]


def a_socket(test):
    for mark in live:
        test = mark(test)
    return test


@a_socket
async def test_what_was_said_comes_first_and_then_what_is_said_now():
    by = await sync_to_async(MembershipFactory)()
    run = await sync_to_async(task_of)(by)
    ws = await listen(by, run)
    first = await ws.receive_json_from(5)
    at = first.pop("timestamp")
    assert at[:2] == "20"
    seq = first.pop("seq")
    assert first == {
        "task_id": str(run.pk), "step": "", "message": "Begins.", "level": "info",
    }  # fmt: skip
    failed = {"step": "data_fetch", "state": "failed", "error": "No such table."}
    await sync_to_async(emit)(run.topic, "step.failed", failed)
    then = await ws.receive_json_from(5)
    assert (then["step"], then["level"]) == ("data_fetch", "error")
    assert then["message"] == "Failed. No such table."
    await ws.send_json_to({"subscribe": "workers"})  # nothing else is to be had here
    assert await ws.receive_nothing(0.3)
    await ws.disconnect()
    again = await listen(by, run, f"&after={seq}")
    assert (await again.receive_json_from(5))["seq"] == then["seq"]
    await again.disconnect()


@a_socket
async def test_others_and_other_runs_have_no_such_log():
    by, other = await sync_to_async(MembershipFactory)(), await sync_to_async(MembershipFactory)()
    run = await sync_to_async(task_of)(by)
    plain = await sync_to_async(task_of)(by, "running", "person")
    for who, which in ((other, run), (by, plain)):
        ws = await listen(who, which)
        assert await ws.receive_json_from(5) == {"error": "not-found"} | (
            {"topic": run.topic} if which is run else {}
        )
        assert (await ws.receive_output(5)) == {"type": "websocket.close", "code": 4404}
    nobody = WebsocketCommunicator(
        application, f"/api/workflow/tasks/{run.pk}/logs", headers=[(b"host", b"localhost")]
    )
    await nobody.connect()
    assert await nobody.receive_json_from(5) == {"error": "unauthenticated"}


@a_socket
async def test_it_ends_with_the_membership(monkeypatch):
    monkeypatch.setattr(consumers, "POLL_S", 0.2)
    by = await sync_to_async(MembershipFactory)()
    run = await sync_to_async(task_of)(by)
    ws = await listen(by, run)
    await ws.receive_json_from(5)
    await sync_to_async(Membership.objects.filter(pk=by.pk).delete)()
    assert (await ws.receive_json_from(5))["error"] == "not-found"
    assert (await ws.receive_output(5))["code"] == 4404


# --- Files ---


@pytest.fixture
def by(db, settings, tmp_path) -> Membership:
    settings.FLOWML_VAR = tmp_path
    return MembershipFactory()


def text_of(run: Run) -> list[str]:
    return [one.read_text() for one in sorted(logs.folder_of(run.pk).glob("*.log"))]


def test_the_log_is_a_file_to_which_each_line_goes_once(by):
    run = task_of(by)
    logs.write(run)
    logs.write(run)
    emit(run.topic, "step.failed", {"step": "data_fetch", "error": "No.\n2026 INFO not so"})
    logs.write(run)
    [text] = text_of(run)
    first, second, third = text.splitlines()
    assert first.endswith("INFO    -            Begins.")
    assert "ERROR   data_fetch   Failed. No." in second
    assert third == "    2026 INFO not so", "no text is taken for a line"


def test_a_crash_while_it_is_written_doubles_and_loses_nothing(by, settings):
    run = task_of(by)
    logs.write(run)
    home = logs.folder_of(run.pk)
    [file] = home.glob("*.log")
    with file.open("a") as broken:
        broken.write("2026-01-01 00:00:00Z INFO half a li")
    (home / "29990101T000000.0Z.log").write_text("begun, and not marked")
    emit(run.topic, "run.failed", {"why": "So it is."})
    logs.write(run)
    [text] = text_of(run)
    assert text.count("\n") == 2
    assert "half a li" not in text
    assert text.endswith("So it is.\n")


def test_files_are_rotated_and_let_go(by, settings):
    run, quiet = task_of(by), task_of(by)
    for one in (run, quiet):
        logs.write(one)
    settings.LOG_ROTATION_SIZE_MB = 0
    emit(run.topic, "run.failed", {"why": "So it is."})
    logs.write(run)
    first, second = text_of(run)
    assert "Begins." in first
    assert "So it is." in second
    old = time.time() - 40 * 24 * 3600
    for file in logs.folder_of(quiet.pk).iterdir():
        os.utime(file, (old, old))
    tasks.tidy()
    assert logs.folder_of(run.pk).exists()
    assert not logs.folder_of(quiet.pk).exists()


def test_files_go_with_their_run(by, django_capture_on_commit_callbacks):
    run = task_of(by, "failed")
    tasks.ended(str(run.pk))
    assert "Begins." in json.dumps(text_of(run))
    with django_capture_on_commit_callbacks(execute=True):
        run.pipeline.delete()
    assert not logs.folder_of(run.pk).exists()
