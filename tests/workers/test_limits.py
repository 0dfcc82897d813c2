"""What a node that an organization runs itself can't do to the others: fill disk and database."""

from datetime import timedelta

import pytest
from django.utils import timezone

from tests.factories import OrganizationFactory, make_task
from tests.workers.test_joining import claim, joined
from workers import actions, files
from workers.models import Allocation, Artifact, Event, Task, Worker

pytestmark = pytest.mark.django_db


@pytest.fixture
def home():
    return OrganizationFactory(max_storage_bytes=1000)


@pytest.fixture
def held(client, home):
    """An attempt that a node of the organization's own holds."""
    make_task(home)
    return claim(client, joined(client, home)).json()


def put(client, held, name, data, **headers):
    return client.put(
        f"/api/workers/tasks/{held['task']}/artifacts/{name}",
        data,
        content_type="application/octet-stream",
        headers={"Authorization": f"Task {held['token']}", **headers},
    )


def test_what_an_own_node_sends_counts_before_it_is_kept(client, home, held):
    assert put(client, held, "a", b"x" * 600).status_code == 201
    refused = put(client, held, "b", b"x" * 600)
    problem = refused.json()
    # A node takes 429 for "later" and would send the file for ever.
    assert (refused.status_code, problem["code"], problem["quota"]) == (
        413, "quota-reached", "storage_bytes",
    )  # fmt: skip
    assert "600 bytes of 1 kB are used" in problem["detail"]
    assert Artifact.objects.count() == 1
    assert put(client, held, "b", b"x" * 400).status_code == 201
    assert put(client, held, "a", b"x" * 600).status_code == 201, "again, since its answer was lost"
    assert Artifact.objects.count() == 2


def test_what_is_too_large_is_refused_before_it_is_read(client, held, monkeypatch):
    def read(*_, **__):
        raise AssertionError("it was read")

    monkeypatch.setattr(files._Hashing, "chunks", read)
    assert put(client, held, "a", b"x" * 1001).status_code == 413


def test_the_platforms_node_keeps_what_it_has_done_past_the_quota(client, home):
    make_task(home)
    held = claim(client, joined(client)).json()
    assert put(client, held, "model", b"x" * 5000).status_code == 201


def test_a_task_keeps_only_so_many_files(client, held, monkeypatch):
    monkeypatch.setattr(files, "MOST_FILES", 3)
    Worker.objects.update(organization=None)  # whoever's node it is
    assert [put(client, held, str(n), b"x").status_code for n in range(3)] == [201] * 3
    refused = put(client, held, "one more", b"x")
    assert (refused.status_code, refused.json()["code"]) == (413, "too-many-files")
    assert "at most 3 files" in refused.json()["detail"]
    assert put(client, held, "0", b"x").status_code == 201, "it is there already"
    assert put(client, held, "0", b"y").status_code == 413, "another file of the same name"
    assert Artifact.objects.count() == 3


def say(client, held, *events):
    return client.post(
        f"/api/workers/tasks/{held['task']}/events",
        {"attempt": held["attempt"], "events": events},
        content_type="application/json",
        headers={"Authorization": f"Task {held['token']}"},
    )


@pytest.mark.parametrize(("limit", "most"), [("MOST_EVENTS", 4), ("MOST_EVENT_BYTES", 4 * 24)])
def test_a_task_tells_only_so_much_and_its_log_gives_way_first(
    client, held, monkeypatch, limit, most
):
    monkeypatch.setattr(actions, limit, most)
    line = {"type": "log", "data": {"lines": ["12345678"]}}  # 24 bytes
    assert say(client, held, *[line] * 3).status_code == 200
    assert say(client, held, *[line] * 3).status_code == 200, "a chatty task goes on"
    assert Event.objects.filter(type="log").count() == 4
    notice = {"type": "notice", "data": {"message": "1234567"}}
    assert say(client, held, notice).status_code == 200, "there is room for what matters"
    refused = say(client, held, notice)
    assert (refused.status_code, refused.json()["code"]) == (413, "too-many-events")
    assert "has told 5 things" in refused.json()["detail"]
    assert say(client, held, {"type": "progress", "data": {"fraction": 0.5}}).status_code == 200
    assert Task.objects.get().progress == 0.5, "how far it is, is told all the same"
    assert Event.objects.filter(task__isnull=False, type__in=["log", "notice"]).count() == 5


def sweep(after: timedelta, *, web_answers=True):
    """Sweep once a blink until ``after`` from now; the platform hears all the while."""
    now = timezone.now()
    actions.expire_leases(now, web_answers=web_answers)
    Task.objects.filter(state="running").update(lease_expires_at=now + 2 * after)
    actions.Pulse.objects.update(swept_at=now + after)
    actions.expire_leases(now + after, web_answers=True)
    return Task.objects.get()


def test_a_task_that_its_node_never_ends_is_ended(held):
    Task.objects.update(time_limit_s=600)
    assert sweep(timedelta(minutes=39)).state == "running"
    task = sweep(timedelta(minutes=41))
    assert (task.state, task.fault, task.code) == ("failed", "work", "time-limit")
    assert task.error.startswith("It may take 10 minutes, and atlas still ran it")
    assert not Allocation.objects.exists()


def test_who_ignores_that_a_task_was_cancelled_does_not_keep_it_from_being_so(held):
    actions.cancel_task(Task.objects.get(), by="ada")
    assert sweep(timedelta(minutes=41)).state == "cancelled"


def test_what_was_done_while_nobody_could_hear_may_still_be_delivered(held):
    Task.objects.update(started_at=timezone.now() - timedelta(hours=9))
    assert sweep(timedelta(minutes=29), web_answers=False).state == "running"
    assert sweep(timedelta(minutes=31)).state == "failed"


def test_an_empty_file_is_a_file(client, held):
    assert put(client, held, "empty", b"").status_code == 201
    assert Artifact.objects.get().size == 0
    assert Task.objects.get().state == "running"
