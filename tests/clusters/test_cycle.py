"""The durable part: what is deployed comes to run, moves, makes room and comes back."""

from datetime import timedelta

import pytest
from django.core.cache import cache
from django.utils import timezone

from clusters import actions, cycle, queue
from clusters.models import Deployment, Replica
from tests.clusters import make
from tests.clusters.make import Node, deploy, settle, state, where
from tests.factories import make_task
from tests.training.make import ROOM, age_node
from workers.claiming import claim
from workers.models import Allocation, Event, Pulse, Worker

pytestmark = pytest.mark.django_db


@pytest.fixture
def by():
    return make.member()


@pytest.fixture
def model(by):
    return make.model(by)


def events(one):
    return list(
        Event.objects.filter(stream=one.topic).order_by("seq").values_list("type", flat=True)
    )


def test_a_deployment_comes_to_run_and_tells_each_step(by, model):
    node = Node(make.node(by))
    home = make.cluster(by, node.worker)
    one = deploy(by, model, "flowers", replicas=2)
    assert state(one) == "pending"
    cycle.run(home.pk)
    assert state(one) == "scheduled"
    settle(home, node)
    assert state(one) == "running"
    assert (one.ready, one.waiting_since, one.wait) == (2, None, {})
    assert where(one) == {0: node.worker.name, 1: node.worker.name}
    told = events(one)
    assert told[0] == "deployment.pending"
    assert [kind for kind in told if kind.startswith("deployment")] == [
        "deployment.pending", "deployment.scheduled", "deployment.running",
    ]  # fmt: skip
    assert told.count("replica.running") == 2


def test_tasks_and_replicas_draw_on_one_ledger(by, model):
    node = Node(make.node(by, ram_gb=4, cpu=4))
    home = make.cluster(by, node.worker)
    deploy(by, model, "flowers", ram_gb=3)
    settle(home, node)
    node.worker.queues = ["pycaret.cpu"]
    node.worker.save()
    small, large = (make_task(by.organization, ram_mib=mib) for mib in (512, 2048))
    assert claim(node.worker, ROOM) == small
    assert claim(node.worker, ROOM) is None
    large.refresh_from_db()
    assert large.state == "queued"
    # The planner sees what the task holds, and when it will be gone at the latest.
    other = deploy(by, model, "other", ram_gb=1)
    settle(home, node)
    assert state(other) == "pending"
    assert other.wait["code"] == "room"
    assert Allocation.objects.filter(worker=node.worker).count() == 2


def test_a_task_that_came_first_overtakes_the_plan(by, model, monkeypatch):
    node = Node(make.node(by, ram_gb=2))
    home = make.cluster(by, node.worker)
    one = deploy(by, model, "flowers", ram_gb=1)
    node.worker.queues = ["pycaret.cpu"]
    node.worker.save()
    task = make_task(by.organization, ram_mib=2000)
    planned = cycle.scheduling.plan

    def and_meanwhile(snapshot):
        made = planned(snapshot)
        assert claim(node.worker, ROOM) == task
        return made

    monkeypatch.setattr(cycle.scheduling, "plan", and_meanwhile)
    cycle.run(home.pk)
    assert state(one) == "pending"
    assert not Replica.objects.exists()


def test_the_urgent_takes_the_place_and_the_victim_comes_back(by, model):
    node = Node(make.node(by, ram_gb=2))
    home = make.cluster(by, node.worker)
    low = deploy(by, model, "low", ram_gb=2, priority=0)
    settle(home, node)
    assert state(low) == "running"
    high = deploy(by, model, "high", ram_gb=2, priority=3)
    node.stubborn = True
    settle(home, node)
    # The victim has its time to end; until it is gone, the other is not started beside it.
    assert (state(low), state(high)) == ("stopping", "scheduled")
    assert not high.placed.get().has_room
    node.stubborn = False
    settle(home, node)
    assert (state(low), state(high)) == ("preempted", "running")
    assert low.preempted_by == "high"
    assert "replica.preempted" in events(low)
    ended = low.placed.get()
    assert (ended.state, ended.room_for) == ("preempted", high)
    assert ended.why == "It makes room for high, which is CRITICAL."
    actions.stop(by, high)
    settle(home, node)
    assert (state(low), state(high)) == ("running", "stopped")
    assert low.preempted_by == ""


def test_one_that_may_not_be_preempted_stays(by, model):
    node = Node(make.node(by, ram_gb=2))
    home = make.cluster(by, node.worker)
    low = deploy(by, model, "low", ram_gb=2, priority=0, preemptible=False)
    settle(home, node)
    high = deploy(by, model, "high", ram_gb=2, priority=3)
    settle(home, node)
    assert (state(low), state(high)) == ("running", "pending")
    assert high.wait["code"] == "room"


def test_a_new_revision_answers_before_the_old_one_stops(by, model):
    node = Node(make.node(by))
    home = make.cluster(by, node.worker)
    one = deploy(by, model, "flowers", replicas=2)
    settle(home, node)
    actions.change(by, one, model=model.pk, env={"A": "1"})
    for _ in range(12):
        cycle.run(home.pk)
        node.beat()
        ready = one.placed.filter(state="running").count()
        assert ready >= 2
        old_gone = one.placed.filter(revision__number=1, ended_at=None, state="stopping")
        for gone in old_gone:
            assert one.placed.filter(
                number=gone.number, revision__number=2, state="running"
            ).exists()
    settle(home, node)
    running = one.placed.filter(state="running")
    assert set(running.values_list("revision__number", flat=True)) == {2}
    assert running.count() == 2
    actions.roll_back(by, one)
    settle(home, node)
    assert set(running.values_list("revision__number", flat=True)) == {1}


def test_a_broken_new_revision_leaves_the_old_one_running(by, model):
    node = Node(make.node(by))
    home = make.cluster(by, node.worker)
    one = deploy(by, model, "flowers")
    settle(home, node)
    old = one.placed.get()
    actions.change(by, one, env={"A": "1"})
    cycle.run(home.pk)
    node.beat()
    bad = one.placed.get(revision__number=2)
    Replica.objects.filter(pk=bad.pk).update(said="failed", said_why="It does not load.")
    cycle.run(home.pk)
    old.refresh_from_db()
    assert (state(one), old.state, one.error) == ("running", "running", "It does not load.")
    assert one.failures == 1


def test_crashes_back_off_ever_longer_and_are_forgotten_after_a_good_while(by, model):
    node = Node(make.node(by))
    home = make.cluster(by, node.worker)
    one = deploy(by, model, "flowers")
    node.broken = "It ran out of memory."
    settle(home, node)
    assert (state(one), one.failures, one.error) == ("failed", 1, "It ran out of memory.")
    assert one.wait["code"] == "backoff"
    first = (one.not_before - timezone.now()).total_seconds()
    assert 5 < first <= 10
    for _ in range(3):
        Deployment.objects.update(not_before=timezone.now())
        settle(home, node)
    one.refresh_from_db()
    assert one.failures == 4
    assert 70 < (one.not_before - timezone.now()).total_seconds() <= 80
    assert cycle.backoff_s(50) == 300
    node.broken = ""
    Deployment.objects.update(not_before=timezone.now())
    settle(home, node)
    assert (state(one), one.failures) == ("running", 4)
    long_ago = timezone.now() - timedelta(minutes=6)
    Replica.objects.filter(state="running").update(running_since=long_ago)
    cycle.run(home.pk)
    assert (state(one), one.failures) == ("running", 0)


def test_what_a_dead_node_ran_runs_elsewhere_and_is_no_fault_of_the_deployment(by, model):
    first, second = Node(make.node(by)), Node(make.node(by))
    home = make.cluster(by, first.worker, second.worker)
    one = deploy(by, model, "flowers")
    settle(home, first, second)
    [name] = where(one).values()
    dead, other = (first, second) if first.worker.name == name else (second, first)
    age_node(dead.worker)
    settle(home, other)
    assert where(one) == {0: other.worker.name}
    lost = one.placed.get(state="failed")
    assert (lost.fault, one.failures) == ("node", 0)
    assert "does not answer" in lost.why
    # It was only cut off: it is told of nothing to run, and so ends what it has.
    assert dead.beat() == []


def test_after_a_time_in_which_the_platform_was_deaf_no_node_counts_as_dead(by, model):
    node = Node(make.node(by))
    home = make.cluster(by, node.worker)
    one = deploy(by, model, "flowers")
    settle(home, node)
    age_node(node.worker)
    now = timezone.now()
    Pulse.objects.update_or_create(pk=1, defaults={"swept_at": now, "heard_since": now})
    cycle.run(home.pk)
    assert state(one) == "running"
    Pulse.objects.update(heard_since=now - timedelta(minutes=1))
    cycle.run(home.pk)
    assert state(one) == "pending"


def test_a_drained_node_is_left_only_when_the_new_place_answers(by, model):
    first, second = Node(make.node(by)), Node(make.node(by))
    home = make.cluster(by, first.worker)
    one = deploy(by, model, "flowers")
    settle(home, first)
    Worker.objects.filter(pk=first.worker.pk).update(draining=True)
    settle(home, first)
    assert where(one) == {0: first.worker.name}  # nowhere to go yet
    actions.add_node(by, home, second.worker.pk, operator=False)
    cycle.run(home.pk)
    assert where(one) == {0: first.worker.name}
    settle(home, first, second)
    assert where(one) == {0: second.worker.name}


def test_a_node_that_is_taken_out_of_the_cluster_is_left_too(by, model):
    first, second = Node(make.node(by)), Node(make.node(by))
    home = make.cluster(by, first.worker)
    one = deploy(by, model, "flowers")
    settle(home, first)
    actions.remove_node(by, home, first.worker.pk)
    actions.add_node(by, home, second.worker.pk, operator=False)
    settle(home, first, second)
    assert where(one) == {0: second.worker.name}
    assert not Allocation.objects.filter(worker=first.worker).exists()


def test_dependencies_start_one_after_the_other(by, model):
    node = Node(make.node(by))
    home = make.cluster(by, node.worker)
    base = deploy(by, model, "base")
    top = deploy(by, model, "top", depends_on=[base.pk])
    cycle.run(home.pk)
    assert (state(base), state(top)) == ("scheduled", "pending")
    assert (top.wait["code"], top.wait["names"]) == ("dependencies", ["base"])
    settle(home, node)
    assert (state(base), state(top)) == ("running", "running")


def test_scaling_down_stopping_and_deleting_give_the_room_back(by, model):
    node = Node(make.node(by))
    home = make.cluster(by, node.worker)
    one = deploy(by, model, "flowers", replicas=3)
    settle(home, node)
    assert Allocation.objects.count() == 3
    actions.change(by, one, replicas=1)
    settle(home, node)
    assert where(one) == {0: node.worker.name}
    assert Allocation.objects.count() == 1
    actions.stop(by, one)
    settle(home, node)
    assert (state(one), Allocation.objects.count()) == ("stopped", 0)
    actions.start(by, one)
    settle(home, node)
    assert state(one) == "running"
    actions.delete(by, one)
    again = deploy(by, model, "flowers")  # its name is free at once
    settle(home, node)
    assert not Deployment.objects.filter(pk=one.pk).exists()
    assert state(again) == "running"


def test_a_report_about_an_earlier_placement_changes_nothing(by, model):
    node = Node(make.node(by))
    home = make.cluster(by, node.worker)
    one = deploy(by, model, "flowers")
    settle(home, node)
    replica = one.placed.get()
    for wrong in ({"generation": 9}, {"replica": one.pk}):
        node.said = {
            "x": {"replica": replica.pk, "generation": 1, "state": "failed", "why": "", **wrong}
        }
        node.beat()
    foreign = Node(make.node(by))
    foreign.said = {"x": {"replica": replica.pk, "generation": 1, "state": "failed", "why": ""}}
    foreign.beat()
    replica.refresh_from_db()
    assert replica.said == "running"


def test_a_node_that_began_anew_starts_it_again_in_its_place(by, model):
    node = Node(make.node(by))
    home = make.cluster(by, node.worker)
    one = deploy(by, model, "flowers")
    settle(home, node)
    replica = one.placed.get()
    Replica.objects.update(said="starting")
    cycle.run(home.pk)
    assert state(one) == "starting"
    settle(home, node)
    assert (state(one), one.placed.get()) == ("running", replica)
    assert one.failures == 0


def test_the_line_in_valkey_is_made_anew_and_losing_it_loses_nothing(
    by, model, django_capture_on_commit_callbacks
):
    node = Node(make.node(by, ram_gb=1))
    home = make.cluster(by, node.worker)
    first = deploy(by, model, "first", priority=1)
    settle(home, node)
    later = deploy(by, model, "later", priority=1)
    urgent = deploy(by, model, "urgent", priority=2, preemptible=True)
    Deployment.objects.filter(pk=first.pk).update(preemptible=False)

    def cycled():
        with django_capture_on_commit_callbacks(execute=True):
            cycle.run(home.pk)

    cycled()
    waiting = [Deployment.objects.get(pk=one.pk) for one in (urgent, later)]
    valkey = queue._valkey(cycle.queue.settings.REDIS_URL)
    assert [name.decode() for name in valkey.zrange(queue.key(home.pk), 0, -1)] == [
        str(one.pk) for one in waiting
    ]
    assert [queue.place(one) for one in waiting] == [(1, 2), (2, 2)]
    valkey.flushdb()
    assert [queue.place(one) for one in waiting] == [(1, 2), (2, 2)]  # counted in PostgreSQL
    cycled()
    assert valkey.zcard(queue.key(home.pk)) == 2
    assert queue.place(Deployment.objects.get(pk=first.pk)) is None
    cache.clear()


def test_a_cycle_asks_as_many_questions_for_many_as_for_few(
    by, model, django_assert_max_num_queries
):
    node = Node(make.node(by, ram_gb=1000, cpu=400))
    home = make.cluster(by, node.worker)
    for number in range(30):
        deploy(by, model, f"d{number}", replicas=3)
    with django_assert_max_num_queries(25):
        cycle.run(home.pk)
    assert Replica.objects.count() == 90
    node.beat(), node.beat()
    with django_assert_max_num_queries(20):
        cycle.run(home.pk)
    assert Replica.objects.filter(state="running").count() == 90
