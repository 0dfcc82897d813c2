"""Whose turn it is, where one slot is all there is; and the lines that a claim looks at."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.db.models import F
from django.utils import timezone

from organizations import rls
from tests.factories import OrganizationFactory, WorkerFactory, make_task
from workers import actions, claiming, lines
from workers.claiming import PREFIX, Snapshot, heads, running_now
from workers.fairshare import PATIENCE_S, Room
from workers.models import Task, Turn

pytestmark = pytest.mark.django_db
ROOM = Room(slots=1, light_slots=0, cpu_millis=4000, ram_mib=8192)


def test_who_queued_a_hundred_first_does_not_go_a_hundred_times_first():
    early, late = OrganizationFactory(), OrganizationFactory()
    for organization in (early, late):
        for _ in range(3):
            make_task(organization)
    node, served = WorkerFactory(), []
    while (task := actions.claim(node, ROOM)) is not None:
        served.append(task.organization)
        actions.end_task(task.pk, task.attempt, outcome="succeeded", result={})
    assert served == [early, late] * 3


def ends_after(task, seconds):
    began = timezone.now() - timedelta(seconds=seconds)
    Task.objects.filter(pk=task.pk).update(started_at=began)
    actions.end_task(task.pk, task.attempt, outcome="succeeded", result={})


def test_who_used_more_waits_until_the_others_have_used_as_much():
    """Turns alone would give twice as much to whose tasks take twice as long."""
    long, short = OrganizationFactory(), OrganizationFactory()
    for organization, count in ((long, 3), (short, 8)):
        for _ in range(count):
            make_task(organization)
    node, served = WorkerFactory(), []
    for _ in range(9):
        task = actions.claim(node, ROOM)
        served.append("long" if task.organization == long else "short")
        ends_after(task, 60 if task.organization == long else 20)
    assert served == ["long", "short", "short", "short"] * 2 + ["long"]


def test_what_was_used_long_ago_counts_little_and_on_a_node_of_ones_own_nothing():
    much, little, own = (OrganizationFactory() for _ in range(3))
    for organization in (much, little, own):
        make_task(organization)
    ends_after(actions.claim(WorkerFactory(organization=own), ROOM), 3600)
    node = WorkerFactory()
    ends_after(actions.claim(node, ROOM), 600)
    Turn.objects.filter(organization=much).update(log_used=F("log_used") - 12)
    ends_after(actions.claim(node, ROOM), 1)
    for organization in (little, own, much):
        make_task(organization)
    served = []
    for _ in range(3):
        task = actions.claim(node, ROOM)
        served.append(task.organization)
        ends_after(task, 1)
    assert served == [own, much, little]


def test_the_end_of_what_ran_long_finds_its_line():
    ours = OrganizationFactory()
    make_task(ours)
    task = actions.claim(WorkerFactory(), ROOM)
    Turn.objects.all().update(at=timezone.now() - timedelta(hours=1))
    assert lines.forget_idle() == 0, "it runs"
    ends_after(task, 3600)
    assert lines.forget_idle() == 0, "much was used of it"
    Turn.objects.all().update(log_used=F("log_used") - 40)
    assert lines.forget_idle() == 1


def waiting_for_hours(organization, count):
    long_ago = timezone.now() - timedelta(hours=5)
    for n in range(count):
        task = make_task(organization)
        at = long_ago + timedelta(seconds=n)
        Task.objects.filter(pk=task.pk).update(queued_at=at, line_at=at)
    Turn.objects.filter(organization=organization).update(since=long_ago)


def test_who_queued_a_hundred_first_goes_not_first_for_hours_either():
    """Tasks that have ended leave nothing that runs: the turn of their line is remembered."""
    early, late = OrganizationFactory(), OrganizationFactory()
    waiting_for_hours(early, 4)
    waiting_for_hours(late, 4)
    Turn.objects.filter(organization=late).update(since=timezone.now() - timedelta(hours=4))
    node, served = WorkerFactory(), []
    while (task := actions.claim(node, ROOM)) is not None:
        served.append(task.organization)
        actions.end_task(task.pk, task.attempt, outcome="succeeded", result={})
    assert served == [early, late] * 4


def test_what_waited_long_goes_before_urgent_work_but_every_other_time():
    patient, urgent = [OrganizationFactory() for _ in range(3)], OrganizationFactory()
    for organization in patient:
        waiting_for_hours(organization, 1)
    for _ in range(3):
        make_task(urgent, priority=1)
    node, served = WorkerFactory(), []
    while (task := actions.claim(node, ROOM)) is not None:
        served.append(task.organization == urgent)
        actions.end_task(task.pk, task.attempt, outcome="succeeded", result={})
    assert served == [False, True] * 3


def test_two_nodes_do_not_start_more_jobs_at_once_than_an_organization_may_run(monkeypatch):
    """Both saw nothing of it running; one of them is a moment earlier."""
    ours = OrganizationFactory(max_concurrent_jobs=1)
    first, second = make_task(ours), make_task(ours)
    lock, early = claiming._lock, []

    def later(organization, *, wait):
        if not early:
            early.append(None)
            early[0] = actions.claim(WorkerFactory(), ROOM)
        return lock(organization, wait=wait)

    monkeypatch.setattr(claiming, "_lock", later)
    assert actions.claim(WorkerFactory(), ROOM) is None
    assert early == [first]
    actions.end_task(first.pk, 1, outcome="succeeded", result={})
    assert actions.claim(WorkerFactory(), ROOM) == second


# --- Which lines there are ---


def lines_of(organization):
    return set(
        Turn.objects.filter(organization=organization).values_list("queue", "light", "priority")
    )


def test_every_way_into_a_queue_opens_the_line():
    ours = OrganizationFactory()
    task = make_task(ours)
    assert lines_of(ours) == {("pycaret.cpu", False, 0)}
    actions.change_priority(task, 1, by="ada")
    assert ("pycaret.cpu", False, 1) in lines_of(ours)
    Turn.objects.all().delete()
    task = actions.claim(WorkerFactory(), ROOM)
    assert task is None, "nothing finds what has no line: so all depends on these rows"
    task = make_task(ours, light=True)
    assert lines_of(ours) == {("pycaret.cpu", True, 0)}
    task.pk = uuid4()
    task.queue = "cpu"
    Task.objects.bulk_create([task])
    assert ("cpu", True, 0) in lines_of(ours)


def test_a_tenants_request_opens_the_line_too():
    """It acts with the rights of tenants, under row-level security."""
    ours = OrganizationFactory()
    with rls.tenant(ours.pk):
        task = make_task(ours)
        assert lines_of(ours) == {("pycaret.cpu", False, 0)}
    assert actions.claim(WorkerFactory(), ROOM) == task


def test_a_task_that_comes_back_finds_its_line_again():
    node, ours = WorkerFactory(), OrganizationFactory()
    make_task(ours)
    task = actions.claim(node, ROOM)
    Turn.objects.all().delete()
    actions.end_task(task.pk, 1, outcome="returned", result={})
    assert actions.claim(node, ROOM) == task


def test_idle_lines_are_forgotten_and_no_others():
    waits, served, idle = (OrganizationFactory() for _ in range(3))
    long_ago = timezone.now() - timedelta(seconds=PATIENCE_S + 1)
    for organization in (served, idle):
        task = make_task(organization)
        actions.cancel_task(task, by="ada")
    make_task(waits)
    Turn.objects.filter(organization=waits).update(at=long_ago)
    Turn.objects.filter(organization=served).update(at=timezone.now())
    assert lines.forget_idle() == 1
    assert lines_of(waits)
    assert lines_of(served)
    assert not lines_of(idle)
    make_task(idle)
    assert lines_of(idle)


def test_what_fits_is_found_behind_many_that_do_not():
    """Two small GPUs are looked for in vain by many, and only the exact rule can tell."""
    gpus = [{"memory_mib": 24_564}, {"memory_mib": 4096}]
    has = {"cpu": 8, "ram_mib": 32_768, "engines": [], "gpus": gpus}
    node = WorkerFactory(capabilities=has, queues=["gpu.vram24", "gpu"], concurrency=4)
    room = Room(slots=4, light_slots=2, cpu_millis=8000, ram_mib=29_000, gpus=(4096, 24_564))
    need = {"engine": "", "device": "gpu", "gpu_ram_mib": 20 * 1024}
    for _ in range(PREFIX + 1):
        both = make_task(OrganizationFactory(), **need)
        Task.objects.filter(pk=both.pk).update(gpus=2)
    one = make_task(OrganizationFactory(), **need)
    assert actions.claim(node, room) == one


def test_a_claim_reads_the_first_tasks_of_a_few_lines_only():
    for _ in range(PREFIX + 4):
        make_task(OrganizationFactory())
    node, now = WorkerFactory(), timezone.now()
    overdue = now - timedelta(seconds=PATIENCE_S)
    seen = Snapshot(node, [True, False], ROOM, ROOM, running_now(), overdue)
    first, cut = heads(seen)
    assert (len(first), cut) == (PREFIX, True)
    everything, cut = heads(seen, None)
    assert (len(everything), cut) == (PREFIX + 4, False)
    assert [one.since for one in first] == sorted(one.since for one in everything)[:PREFIX]
