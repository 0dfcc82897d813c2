"""Tasks: claim, lease, fence, cancel. Against the real database."""

from dataclasses import replace
from datetime import timedelta
from unittest.mock import ANY

import pytest
from django.conf import settings
from django.utils import timezone

from tests.factories import OrganizationFactory, WorkerFactory, make_task
from workers import actions, bells, tasks
from workers.beats import Beat, renew
from workers.fairshare import Room
from workers.models import Allocation, Event, IllegalMove, StaleWrite, Task
from workers.signals import task_ended, task_event

pytestmark = pytest.mark.django_db
ROOM = Room(slots=1, light_slots=1, cpu_millis=4000, ram_mib=8192)
State = Task.State


def claimed(**fields) -> Task:
    make_task(**fields)
    task = actions.claim(WorkerFactory(), ROOM)
    assert task is not None
    return task


def silence(task: Task) -> None:
    """Let the lease of ``task`` run out while the sweep runs as it should."""
    now = timezone.now()
    actions.expire_leases(now, web_answers=True)
    Task.objects.filter(pk=task.pk).update(lease_expires_at=now - timedelta(seconds=1))
    actions.expire_leases(now, web_answers=True)
    task.refresh_from_db()


def test_a_claim_gives_a_lease_and_books_what_the_task_takes():
    task = claimed()
    assert task.state == State.RUNNING
    assert task.lease_expires_at > timezone.now()
    booked = Allocation.objects.get(task=task)
    assert (booked.cpu_millis, booked.ram_mib) == (task.cpu_millis, task.ram_mib)


def test_a_repeated_claim_gets_nothing_more():
    worker = WorkerFactory()
    make_task()
    assert actions.claim(worker, ROOM) is not None
    assert actions.claim(worker, ROOM) is None


def test_a_claim_says_whether_to_ask_again():
    """A node whose last heavy slot is filled asks once more only if light work is there as well."""
    for _ in range(3):
        make_task(cpu_millis=500, ram_mib=512)
    two = WorkerFactory(concurrency=2)
    room = replace(ROOM, slots=2)
    # After the first its line may go on, and a slot is left.
    assert [actions.claim_answer(actions.claim(two, room))["more"] for _ in "12"] == [True, False]
    make_task(light=True, kind="dataset.ingest", engine="")
    node = WorkerFactory()
    claims = [actions.claim(node, ROOM) for _ in "12"]
    assert {task.light for task in claims} == {True, False}
    assert [task.more for task in claims] == [True, False]


def test_a_node_gets_no_task_of_an_engine_that_it_lacks():
    make_task(engine="torch")
    assert actions.claim(WorkerFactory(), ROOM) is None


def test_a_light_task_starts_beside_a_heavy_one_but_no_second_heavy_one_does():
    make_task(light=True, kind="dataset.ingest", engine="")
    full = Room(slots=0, light_slots=1, cpu_millis=0, ram_mib=0)
    assert actions.claim(WorkerFactory(), full) is not None
    make_task()
    assert actions.claim(WorkerFactory(), full) is None


def test_priority_goes_first_and_then_the_organization_that_uses_least():
    busy, idle = OrganizationFactory(), OrganizationFactory()
    make_task(busy)
    running = actions.claim(WorkerFactory(), ROOM)
    assert running is not None
    assert running.organization == busy
    make_task(busy)
    make_task(idle)
    assert actions.claim(WorkerFactory(), ROOM).organization == idle
    make_task(idle)
    urgent = make_task(busy, priority=1)
    assert actions.claim(WorkerFactory(), ROOM) == urgent


def test_an_organization_at_its_limit_waits_while_others_go_on():
    limited = OrganizationFactory(max_concurrent_jobs=1)
    make_task(limited)
    assert actions.claim(WorkerFactory(), ROOM) is not None
    waiting = make_task(limited)
    assert actions.claim(WorkerFactory(), ROOM) is None
    # A second task of the job that runs already doesn't count against the limit.
    sibling = make_task(limited, subject=Task.objects.exclude(pk=waiting.pk).get().subject)
    Task.objects.filter(pk=waiting.pk).delete()
    assert actions.claim(WorkerFactory(), ROOM) == sibling


def heartbeat(worker, running):
    return renew([Beat(worker.token_hash, running, {})])[0]


def test_heartbeats_renew_leases_and_carry_wishes():
    task = claimed()
    Task.objects.filter(pk=task.pk).update(lease_expires_at=timezone.now())
    answer = heartbeat(task.worker, [(task.pk, 1)])
    assert answer["tasks"] == {str(task.pk): "ok"}
    task.refresh_from_db()
    assert task.lease_expires_at > timezone.now() + timedelta(seconds=settings.LEASE_S / 2)
    actions.stop_task(task, by="ada")
    answer = heartbeat(task.worker, [(task.pk, 1)])
    assert answer["tasks"] == {str(task.pk): "stop"}
    actions.cancel_task(task, by="ada")
    answer = heartbeat(task.worker, [(task.pk, 1), (task.pk, 2)])
    assert answer["tasks"] == {str(task.pk): "cancel"}


def test_a_report_renews_the_lease_and_never_shortens_it():
    task = claimed()
    said = [{"type": "log", "data": {"line": "x"}}]
    Task.objects.filter(pk=task.pk).update(lease_expires_at=timezone.now())
    actions.record_events(task.pk, 1, said)
    task.refresh_from_db()
    assert task.lease_expires_at > timezone.now() + timedelta(seconds=settings.LEASE_S / 2)
    longer = timezone.now() + timedelta(hours=1)
    Task.objects.filter(pk=task.pk).update(lease_expires_at=longer)
    actions.record_events(task.pk, 1, said)
    task.refresh_from_db()
    assert task.lease_expires_at == longer


def test_a_heartbeat_says_gone_for_what_the_node_no_longer_holds():
    task = claimed()
    stranger = WorkerFactory()
    answer = heartbeat(stranger, [(task.pk, 1)])
    assert answer["tasks"] == {str(task.pk): "gone"}


def test_a_lost_task_runs_again_and_its_late_writer_changes_nothing():
    task = claimed()
    silence(task)
    assert (task.state, task.attempt, task.losses) == (State.QUEUED, 2, 1)
    assert not Allocation.objects.exists()
    late = [{"type": "candidate", "key": "m", "data": {}}]
    with pytest.raises(actions.NotYours):
        actions.record_events(task.pk, 1, late)
    with pytest.raises(actions.NotYours):
        actions.end_task(task.pk, 1, outcome="succeeded", result={})
    task.refresh_from_db()
    assert task.state == State.QUEUED
    assert not Event.objects.filter(type="candidate").exists()


def test_a_task_that_is_lost_too_often_fails_by_fault_of_the_platform():
    task = claimed()
    for _ in range(task.max_losses):
        silence(task)
        if task.state == State.QUEUED:
            assert actions.claim(WorkerFactory(), ROOM) == task
    assert (task.state, task.fault) == (State.FAILED, Task.Fault.PLATFORM)
    assert "tried this 3 times and failed each time" in task.error


@pytest.mark.parametrize("deafness", ["the sweep was away", "web does not answer"])
def test_time_in_which_the_platform_could_not_hear_does_not_count(deafness):
    task = claimed()
    now = timezone.now()
    actions.expire_leases(now, web_answers=True)
    Task.objects.filter(pk=task.pk).update(lease_expires_at=now - timedelta(seconds=1))
    gap = settings.LEASE_S if deafness == "the sweep was away" else 0
    actions.expire_leases(now + timedelta(seconds=gap), web_answers=gap > 0)
    task.refresh_from_db()
    assert task.state == State.RUNNING
    assert task.lease_expires_at > now + timedelta(seconds=settings.LEASE_S / 2)


def test_candidates_are_stored_once_however_often_they_are_reported():
    task = claimed()
    report = [{"type": "candidate", "key": "pycaret:lr", "data": {"fit_s": 1}}]
    actions.record_events(task.pk, 1, report)
    actions.record_events(task.pk, 1, report)
    assert task.events.filter(type="candidate").count() == 1


def test_the_next_attempt_learns_what_is_done():
    task = claimed()
    actions.record_events(task.pk, 1, [{"type": "candidate", "key": "pycaret:lr", "data": {}}])
    silence(task)
    again = actions.claim(WorkerFactory(), ROOM)
    answer = actions.claim_answer(again)
    assert (answer["attempt"], answer["done"]) == (2, ["pycaret:lr"])
    assert answer["spent_s"] > 0


@pytest.mark.parametrize("hours", [-1, 1])
def test_an_event_is_dated_within_its_attempt_whatever_the_nodes_clock_says(hours):
    task = claimed()
    said = {"type": "notice", "data": {}, "at": timezone.now() + timedelta(hours=hours)}
    actions.record_events(task.pk, 1, [said])
    assert task.started_at <= task.events.get(type="notice").at <= timezone.now()
    honest = timezone.now()
    actions.record_events(task.pk, 1, [{**said, "type": "candidate", "key": "m", "at": honest}])
    assert task.events.get(type="candidate").at == honest


def test_an_end_brings_what_came_before_it_once():
    task = claimed()
    said = [{"type": "started", "data": {"pid": 1}}, {"type": "notice", "data": {"message": "m"}}]
    for _ in range(2):
        ended = actions.end_task(task.pk, 1, outcome="succeeded", result={}, events=said)
        assert ended.state == State.SUCCEEDED
    told = list(task.events.order_by("seq").values_list("type", flat=True))
    assert told[-3:] == ["started", "notice", "task.succeeded"]
    assert told.count("started") == 1


def test_control_is_called_once_for_an_end_and_what_came_with_it(
    monkeypatch, django_capture_on_commit_callbacks
):
    calls = []
    monkeypatch.setattr(bells, "send", lambda name, **how: calls.append(name))
    said = [{"type": "started", "data": {"pid": 1}}]
    for outcome, expected in (
        ("succeeded", ["workers.tasks.handle_end"]),
        ("returned", ["workers.tasks.handle_event"]),  # it goes on, elsewhere
    ):
        task, calls[:] = claimed(), []
        with django_capture_on_commit_callbacks(execute=True):
            actions.end_task(task.pk, 1, outcome=outcome, result={}, events=said)
        assert [one for one in calls if "handle" in one] == expected
    tasks.handle_end(str(Task.objects.get(state=State.SUCCEEDED).pk))
    handled = Event.objects.filter(type="started", task__state=State.SUCCEEDED)
    assert handled.get().handled_at is not None


def test_progress_never_goes_back():
    task = claimed()
    for fraction in (0.5, 0.2):
        actions.record_events(
            task.pk, 1, [{"type": "progress", "data": {"fraction": fraction, "message": "x"}}]
        )
    task.refresh_from_db()
    assert task.progress == 0.5


def test_ending_twice_is_ending_once():
    task = claimed()
    for _ in range(2):
        actions.end_task(task.pk, 1, outcome="succeeded", result={"data": {"a": 1}})
    task.refresh_from_db()
    assert (task.state, task.progress, task.result) == (State.SUCCEEDED, 1.0, {"data": {"a": 1}})
    assert task.events.filter(type="task.succeeded").count() == 1
    assert not Allocation.objects.exists()


def test_a_task_that_was_handed_back_waits_again_and_is_not_counted_as_lost():
    task = claimed()
    actions.end_task(task.pk, 1, outcome="returned", result={})
    task.refresh_from_db()
    assert (task.state, task.attempt, task.losses) == (State.QUEUED, 2, 0)


def test_a_task_that_was_handed_back_says_why():
    task = claimed()
    actions.end_task(task.pk, 1, outcome="returned", result={}, error="It needs a GPU.")
    task.refresh_from_db()
    assert (task.state, task.losses) == (State.QUEUED, 0)
    assert task.events.get(type="task.queued", attempt=2).data["why"] == "It needs a GPU."


def test_a_waiting_task_is_cancelled_at_once_and_a_running_one_by_its_node():
    waiting = make_task()
    actions.cancel_task(waiting, by="ada")
    waiting.refresh_from_db()
    assert waiting.state == State.CANCELLED
    running = claimed()
    actions.cancel_task(running, by="ada")
    running.refresh_from_db()
    assert running.state == State.RUNNING
    actions.end_task(running.pk, 1, outcome="cancelled", result={})
    running.refresh_from_db()
    assert running.state == State.CANCELLED


def test_a_report_about_a_task_that_is_gone_is_refused_like_a_late_one():
    task = claimed()
    Task.objects.all().delete()
    with pytest.raises(actions.NotYours):
        actions.end_task(task.pk, 1, outcome="succeeded", result={})


def test_a_wish_rings_the_node_that_runs_the_task(monkeypatch, django_capture_on_commit_callbacks):
    rung = []
    monkeypatch.setattr(actions.bells, "ring", rung.append)
    task = claimed()
    with django_capture_on_commit_callbacks(execute=True):
        actions.stop_task(task, by="ada")
    assert rung == [task.queue]


def test_a_cancelled_task_whose_node_died_ends_as_cancelled():
    task = claimed()
    actions.cancel_task(task, by="ada")
    silence(task)
    assert task.state == State.CANCELLED


def test_moves_that_the_table_lacks_are_refused_and_stale_ones_too():
    task = make_task()
    with pytest.raises(IllegalMove):
        task.move_to(State.SUCCEEDED)
    stale = Task.objects.get(pk=task.pk)
    actions.claim(WorkerFactory(), ROOM)
    with pytest.raises(StaleWrite):
        stale.move_to(State.CANCELLED)


def test_events_are_numbered_without_a_gap():
    task = claimed()
    actions.record_events(task.pk, 1, [{"type": "log", "data": {"line": "x"}}] * 3)
    numbers = list(Event.objects.filter(stream=task.stream).values_list("seq", flat=True))
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.fixture
def heard():
    news = []

    def on_event(event, task, **_):
        news.append(event.key or event.type)

    def on_end(task, **_):
        news.append(task.state)

    task_event.connect(on_event)
    task_ended.connect(on_end)
    yield news
    task_event.disconnect(on_event)
    task_ended.disconnect(on_end)


def test_an_end_is_told_after_the_events_before_it_and_each_once(heard):
    # No receiver of another app knows this kind of task, so only ours hears.
    task = claimed(kind="test.kind")
    actions.record_events(task.pk, 1, [{"type": "candidate", "key": "m", "data": {}}])
    event = task.events.get(type="candidate")
    actions.end_task(task.pk, 1, outcome="succeeded", result={})
    tasks.handle_end(str(task.pk))
    tasks.handle_event(event.pk)
    tasks.handle_end(str(task.pk))
    assert heard == ["m", State.SUCCEEDED]


def test_a_reaction_that_fails_is_tried_again(heard):
    task = claimed(kind="test.kind")
    actions.end_task(task.pk, 1, outcome="succeeded", result={})

    def broken(**_):
        raise RuntimeError("not now")

    task_ended.connect(broken)
    try:
        tasks.handle_end(str(task.pk))
    finally:
        task_ended.disconnect(broken)
    task.refresh_from_db()
    assert (task.handled_at, task.tries) == (None, 1)
    tasks.handle_end(str(task.pk))
    task.refresh_from_db()
    assert (task.handled_at, task.tries) == (ANY, 2)
    assert task.handled_at is not None


def test_what_was_reacted_to_stays_when_the_process_dies_at_a_later_event(heard):
    task = claimed(kind="test.kind")
    said = [{"type": "candidate", "key": key, "data": {}} for key in "ab"]
    actions.record_events(task.pk, 1, said)
    actions.end_task(task.pk, 1, outcome="succeeded", result={})

    def dies(event, **_):
        if event.key == "b":
            raise SystemExit

    task_event.connect(dies)
    try:
        with pytest.raises(SystemExit):
            tasks.handle_end(str(task.pk))
    finally:
        task_event.disconnect(dies)
    handled = dict(task.events.filter(type="candidate").values_list("key", "handled_at"))
    assert handled == {"a": ANY, "b": None}
    assert handled["a"] is not None
    del heard[:]
    tasks.handle_end(str(task.pk))
    assert heard == ["b", State.SUCCEEDED]


def test_a_claim_costs_a_fixed_number_of_queries(django_assert_max_num_queries):
    worker = WorkerFactory()
    for _ in range(12):
        make_task(OrganizationFactory())
    with django_assert_max_num_queries(21):  # of which 4 are savepoints
        assert actions.claim(worker, ROOM) is not None
