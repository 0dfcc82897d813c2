"""What a waiting task is told, moves to the front, and what an operator pauses."""

from datetime import timedelta
from uuid import uuid4

import pytest
from django.utils import timezone

from organizations.models import AuditEntry
from tests.factories import OrganizationFactory, WorkerFactory, make_task
from workers import actions, fairshare, lines
from workers.fairshare import Room
from workers.models import Pause, Task, Turn, Worker
from workers.waiting import wait_of, waits_for

pytestmark = pytest.mark.django_db
ROOM = Room(slots=1, light_slots=1, cpu_millis=4000, ram_mib=8192)


def waiting(organization, **fields) -> Task:
    """A task that waits for a minute already."""
    task = make_task(organization, **fields)
    ago = timezone.now() - timedelta(minutes=1)
    Task.objects.filter(pk=task.pk).update(queued_at=ago, line_at=ago)
    task.refresh_from_db()
    return task


def waits_for_long(task: Task) -> None:
    """Nothing of its line was started for longer than anybody should wait."""
    long_ago = timezone.now() - timedelta(seconds=fairshare.PATIENCE_S + 1)
    Task.objects.filter(pk=task.pk).update(queued_at=long_ago, line_at=long_ago)
    Turn.objects.filter(organization=task.organization, queue=task.queue).update(since=long_ago)


def told(task: Task):
    task.refresh_from_db()
    wait = wait_of([task], task.organization)
    assert wait is not None
    return wait


@pytest.fixture
def ours():
    return OrganizationFactory()


def test_a_short_wait_is_not_worth_a_sentence(ours):
    assert waits_for([make_task(ours)], ours) == ""
    assert wait_of([], ours) is None


def test_without_a_fitting_node_it_names_what_is_missing_and_what_is_nearest(ours):
    task = waiting(ours, engine="torch", device="gpu", gpu_ram_mib=12 * 1024)
    assert "no node is connected" in told(task).text
    WorkerFactory(name="b", queues=["priority", "torch.gpu.vram8", "torch.gpu", "gpu", "cpu"])
    wait = told(task)
    assert wait.reason == "no-node"
    assert wait.text == (
        "Waits for a node with the engine torch and a GPU of 12 GiB (queue torch.gpu.vram12): "
        "none is online; nearest: torch.gpu.vram8 on node b."
    )
    assert wait.expected_start_at is None


def test_another_organization_s_node_is_none_for_it(ours):
    task = waiting(ours)
    WorkerFactory(organization=OrganizationFactory())
    assert told(task).reason == "no-node"
    WorkerFactory(organization=ours)
    assert told(task).reason == "room"


def test_a_node_that_drains_is_told(ours):
    task = waiting(ours)
    WorkerFactory(name="tired", draining=True)
    assert "tired could do it, but takes no new work" in told(task).text


def test_what_fits_no_node_is_told_with_what_the_largest_has(ours):
    WorkerFactory()
    wait = told(waiting(ours, cpu_millis=64_000))
    assert wait.reason == "too-large"
    assert "64 cores" in wait.text
    assert "4 cores" in wait.text


def test_at_its_limit_it_says_so_and_when_a_place_may_be_free():
    ours = OrganizationFactory(max_concurrent_jobs=1)
    node = WorkerFactory(concurrency=4)
    done = make_task(ours)
    assert actions.claim(node, ROOM) == done
    actions.end_task(done.pk, 1, outcome="succeeded", result={})
    at = timezone.now()
    Task.objects.filter(pk=done.pk).update(started_at=at - timedelta(minutes=10), finished_at=at)
    make_task(ours)
    assert actions.claim(node, ROOM) is not None
    wait = told(waiting(ours))
    assert wait.reason == "limit"
    assert "has 1 of 1 jobs running" in wait.text
    assert 9 < (wait.expected_in_s or 0) / 60 <= 10


def test_it_says_how_many_jobs_of_its_own_organization_are_before_it(ours):
    WorkerFactory(name="n1")
    first = waiting(ours)
    Task.objects.filter(pk=first.pk).update(line_at=first.line_at - timedelta(seconds=9))
    waiting(OrganizationFactory())
    second = waiting(ours)
    assert (told(first).position, told(first).reason) == (1, "room")
    assert "which other organizations wait for, too (1)" in told(first).text
    wait = told(second)
    assert (wait.position, wait.text) == (
        2,
        "Waits behind 1 job of your organization, for room on n1.",
    )
    lines.move_to_front(ours, second.subject, by="ada")
    assert (told(second).position, told(first).position) == (1, 2)
    assert actions.claim(WorkerFactory(), ROOM).organization in {ours, first.organization}


def test_the_front_is_of_the_own_line_only(ours):
    theirs = waiting(OrganizationFactory())
    mine = [waiting(ours) for _ in range(2)]
    urgent = waiting(ours, priority=1)
    before = {task.pk: told(task).position for task in [theirs, urgent]}
    assert lines.move_to_front(ours, mine[1].subject, by="ada") == 1
    assert {task.pk: told(task).position for task in [theirs, urgent]} == before
    Task.objects.filter(pk__in=[theirs.pk, urgent.pk]).delete()
    assert actions.claim(WorkerFactory(), ROOM) == mine[1]
    with pytest.raises(lines.NothingWaits):
        lines.move_to_front(ours, mine[1].subject, by="ada")
    with pytest.raises(lines.NothingWaits):
        lines.move_to_front(ours, uuid4(), by="ada")


@pytest.mark.parametrize("what", ["everything", "queue", "organization", "both"])
def test_a_pause_holds_what_waits_and_says_why_and_ends(ours, what, monkeypatch):
    node, task = WorkerFactory(concurrency=3), waiting(ours)
    scope = {}
    if what in {"queue", "both"}:
        scope["queue"] = task.queue
    if what in {"organization", "both"}:
        scope["organization"] = ours
    lines.pause(**scope, by="op", reason="new driver")
    lines.pause(**scope, by="op", reason="driver update")
    assert Pause.objects.count() == 1
    assert actions.claim(node, ROOM) is None
    wait = told(task)
    assert wait.reason == "paused"
    assert "(driver update)" in wait.text
    other = make_task(OrganizationFactory(), engine="")
    assert (actions.claim(node, ROOM) == other) == (what != "everything")
    assert lines.resume(**scope, by="op")
    assert not lines.resume(**scope, by="op")
    assert actions.claim(node, ROOM) == task
    assert list(
        AuditEntry.objects.filter(verb__startswith="work.")
        .order_by("created_at")
        .values_list("verb", flat=True)
    ) == ["work.paused", "work.paused", "work.resumed"]


def test_what_runs_goes_on_while_everything_is_paused(ours):
    make_task(ours)
    task = actions.claim(WorkerFactory(), ROOM)
    lines.pause(by="op")
    actions.end_task(task.pk, 1, outcome="succeeded", result={})
    task.refresh_from_db()
    assert task.state == Task.State.SUCCEEDED


def test_a_node_is_held_for_a_large_task_that_waited_long_and_told_so(ours):
    node = WorkerFactory(name="big", concurrency=2)
    make_task(OrganizationFactory(), cpu_millis=2000)
    room = Room(slots=2, light_slots=1, cpu_millis=4000, ram_mib=7000)
    small = actions.claim(node, room)
    assert small is not None
    large = waiting(ours, cpu_millis=4000)
    left = Room(slots=1, light_slots=1, cpu_millis=2000, ram_mib=4000)
    tiny = make_task(OrganizationFactory())
    assert actions.claim(node, left) == tiny
    actions.end_task(tiny.pk, 1, outcome="succeeded", result={})
    waits_for_long(large)
    make_task(OrganizationFactory())
    assert actions.claim(node, left) is None
    assert told(large).reason == "held"
    assert told(large).text.startswith("big is kept free for it")
    actions.end_task(small.pk, 1, outcome="succeeded", result={})
    assert actions.claim(node, room) == large
    large.refresh_from_db()
    assert large.held_on is None


def test_a_node_that_is_gone_is_held_for_nobody(ours):
    node, task = WorkerFactory(), waiting(ours)
    Task.objects.filter(pk=task.pk).update(held_on=node)
    actions.ring_waiting()
    assert Task.objects.get(pk=task.pk).held_on == node
    Worker.objects.filter(pk=node.pk).update(last_seen_at=timezone.now() - timedelta(hours=1))
    actions.ring_waiting()
    assert Task.objects.get(pk=task.pk).held_on is None


@pytest.mark.parametrize(
    "change",
    [{"draining": True}, {"restart_asked_at": timezone.now()}, {"queues": ["priority", "cpu"]}],
    ids=["drains", "restarts", "other queues"],
)
def test_a_node_that_will_not_take_it_is_not_held_for_it(ours, change):
    node, task = WorkerFactory(), waiting(ours)
    Task.objects.filter(pk=task.pk).update(held_on=node)
    actions.ring_waiting()
    assert Task.objects.get(pk=task.pk).held_on == node
    Worker.objects.filter(pk=node.pk).update(**change)
    actions.ring_waiting()
    assert Task.objects.get(pk=task.pk).held_on is None


def test_a_node_whose_gpu_another_program_uses_is_not_held_for_gpu_work(ours):
    gpu = {"cpu": 8, "ram_mib": 16384, "engines": [], "gpus": [{"memory_mib": 8188}]}
    node = WorkerFactory(capabilities=gpu, queues=["gpu.vram8", "gpu", "cpu"], concurrency=4)
    room = Room(slots=4, light_slots=2, cpu_millis=8000, ram_mib=14000, gpus=(8000,))
    need = {"engine": "", "device": "gpu", "gpu_ram_mib": 8192}
    train, late = make_task(ours, **need), waiting(OrganizationFactory(), **need)
    plain = [make_task(OrganizationFactory(), engine="") for _ in range(3)]
    assert actions.claim(node, room) in {train, late}
    train, late = Task.objects.filter(device="gpu").order_by("-state")
    waits_for_long(late)
    busy = Room(slots=3, light_slots=2, cpu_millis=7000, ram_mib=11000, gpus=())
    # Ours will end: the node waits for that.
    assert actions.claim(node, busy) is None
    assert told(late).reason == "held"
    actions.end_task(train.pk, 1, outcome="succeeded", result={})
    # But now another program has the GPU, and may have it for months.
    taken = Room(slots=4, light_slots=2, cpu_millis=8000, ram_mib=14000, gpus=(300,))
    assert actions.claim(node, taken) in plain
    assert told(late).reason != "held"


def test_a_node_that_is_to_restart_gets_nothing_new(ours):
    node, task = WorkerFactory(), make_task(ours)
    Worker.objects.filter(pk=node.pk).update(restart_asked_at=timezone.now())
    assert actions.claim(node, ROOM) is None
    Worker.objects.filter(pk=node.pk).update(restart_asked_at=None)
    assert actions.claim(node, ROOM) == task


def test_two_nodes_share_the_ledger_of_one_only_with_itself(ours):
    """What a node says that it has left is believed only as far as the ledger agrees."""
    node = WorkerFactory(concurrency=1)
    make_task(ours)
    make_task(ours)
    assert actions.claim(node, ROOM) is not None
    assert actions.claim(node, ROOM) is None
    assert actions.claim(WorkerFactory(), ROOM) is not None


def test_a_gpu_goes_to_one_task_and_cores_are_kept_for_it(ours):
    gpu = {"cpu": 4, "ram_mib": 8192, "engines": [], "gpus": [{"memory_mib": 8188}]}
    node = WorkerFactory(capabilities=gpu, queues=["gpu.vram8", "gpu", "cpu"], concurrency=4)
    room = Room(slots=4, light_slots=2, cpu_millis=4000, ram_mib=7000, gpus=(8188,))
    plain = [make_task(ours, engine="", ram_mib=512) for _ in range(4)]
    started = [actions.claim(node, room) for _ in plain]
    assert [task is not None for task in started] == [True, True, True, False]
    need = {"engine": "", "device": "gpu", "gpu_ram_mib": 8192}
    first = make_task(OrganizationFactory(), **need)
    make_task(OrganizationFactory(), **need)
    assert actions.claim(node, room) == first
    assert actions.claim(node, room) is None
