"""When this machine's spare node is wanted. tests/e2e/test_spare.py starts a real one."""

from datetime import timedelta

import pytest
from django.utils import timezone

from tests.factories import OrganizationFactory, WorkerFactory, make_task
from workers import actions, lines, spare
from workers.fairshare import Room
from workers.models import Task, Worker

pytestmark = pytest.mark.django_db
HAS = {"cpu": 2, "ram_mib": 8192, "gpus": [], "engines": ["pycaret"], "llm": False}


@pytest.fixture(autouse=True)
def offered(settings, tmp_path, monkeypatch):
    """A machine on which a node may start, with two cores and PyCaret."""
    settings.SPARE_FILE = str(tmp_path / "spare-wanted")
    monkeypatch.setattr(spare, "capabilities", lambda: HAS)
    return tmp_path / "spare-wanted"


def waits(organization=None, *, for_s=60, queue="", **fields):
    task = make_task(organization, **fields)
    changes = {"queued_at": timezone.now() - timedelta(seconds=for_s)}
    Task.objects.filter(pk=task.pk).update(**changes | ({"queue": queue} if queue else {}))
    return task


def test_it_is_wanted_for_what_waits_and_nobody_else_can_do(offered):
    assert (spare.look_after(), offered.exists()) == (False, False)
    waits()
    assert (spare.look_after(), offered.exists()) == (True, True)


def test_it_is_not_wanted_where_it_is_not_offered(settings, offered):
    settings.SPARE_FILE = ""
    waits()
    assert (spare.look_after(), offered.exists()) == (False, False)


@pytest.mark.parametrize(
    "task",
    [
        {"for_s": 1},  # a node may just be starting again
        {"engine": "torch"},
        {"device": "gpu"},
        {"cpu_millis": 64_000},
        {"queue": "own.pycaret.cpu"},
    ],
    ids=lambda task: next(iter(task)),
)
def test_it_is_not_wanted_for_what_it_could_not_do(task):
    waits(**task)
    assert not spare.look_after()
    waits()
    assert spare.look_after()


def test_it_is_not_wanted_for_what_an_operator_paused():
    organization = OrganizationFactory()
    waits(organization)
    lines.pause(organization=organization, by="ops")
    assert not spare.look_after()
    lines.resume(organization=organization, by="ops")
    assert spare.look_after()


def test_a_node_that_fits_is_left_the_work_and_its_own_row_is_no_such_node():
    waits()
    mine = WorkerFactory(name=spare.NAME)
    assert spare.look_after(), "it was here before, and serves the queue itself"
    other = WorkerFactory()
    assert not spare.look_after()
    Worker.objects.filter(pk=other.pk).update(last_seen_at=timezone.now() - timedelta(minutes=1))
    assert spare.look_after()
    task = actions.claim(mine, Room(slots=1, light_slots=1, cpu_millis=2000, ram_mib=4096))
    Worker.objects.filter(pk=other.pk).update(last_seen_at=timezone.now())
    assert spare.look_after(), "what it has begun it ends"
    actions.end_task(task.pk, 1, outcome="succeeded", result={})
    assert not spare.look_after()
