"""What is said while an organization's own nodes are away, and while a node restarts."""

from datetime import timedelta

import pytest
from django.utils import timezone

from tests.factories import OrganizationFactory, WorkerFactory, make_task
from workers import actions, fairshare
from workers.beats import Beat, renew
from workers.models import Task, Worker
from workers.waiting import wait_of

pytestmark = pytest.mark.django_db
ROOM = fairshare.Room(slots=1, light_slots=1, cpu_millis=4000, ram_mib=8192)


@pytest.fixture
def ours():
    return OrganizationFactory()


def told(task):
    long_ago = timezone.now() - timedelta(minutes=1)
    Task.objects.filter(pk=task.pk).update(queued_at=long_ago)
    task.refresh_from_db()
    return wait_of([task], task.organization)


def own_task(ours, **fields):
    """One that needs a file which a node of the organization wrote."""
    task = make_task(ours, **fields)
    Task.objects.filter(pk=task.pk).update(queue=f"own.{task.queue}")
    return task


def test_work_for_the_organizations_own_nodes_says_so_and_names_no_queue(ours):
    task = own_task(ours, engine="torch", device="gpu", gpu_ram_mib=12 * 1024)
    WorkerFactory(name="shared", queues=["torch.gpu.vram12", "gpu", "cpu"])
    wait = told(task)
    assert wait.reason == "no-node"
    assert wait.text == (
        "Waits for a node of your organization's own, which made a file that it needs, with the "
        "engine torch and a GPU of 12 GiB: none is connected. Start one of them, or add one on the "
        "page Workers."
    )


def test_of_the_organizations_own_nodes_the_nearest_is_named_and_no_other(ours):
    task = own_task(ours, engine="torch", device="gpu", gpu_ram_mib=12 * 1024)
    WorkerFactory(name="shared", queues=["torch.gpu.vram12", "gpu"])
    WorkerFactory(
        name="lab", organization=ours, queues=["torch.gpu.vram8", "own.torch.gpu.vram8", "own.gpu"]
    )
    text = told(task).text
    assert text.endswith("none is online; nearest: torch.gpu.vram8 on node lab.")
    assert "own." not in text
    Worker.objects.filter(name="lab").update(queues=["own.torch.gpu.vram12"], draining=True)
    assert told(task).text.endswith("lab could do it, but takes no new work at the moment.")


def test_a_node_that_was_asked_to_restart_gets_nothing_and_is_told_of_nothing(ours):
    task, node = make_task(ours), WorkerFactory(name="b")
    Worker.objects.filter(pk=node.pk).update(restart_asked_at=timezone.now())
    (answer,) = renew([Beat(node.token_hash, [], {})])
    assert (answer["restart"], answer["waiting"]) == (True, False)
    assert actions.claim(node, ROOM) is None
    wait = told(task)
    assert (wait.reason, wait.text.rpartition(": ")[2]) == (
        "no-node",
        "b restarts, and will do it then.",
    )
    Worker.objects.filter(pk=node.pk).update(restart_asked_at=None)
    assert renew([Beat(node.token_hash, [], {})])[0]["waiting"] is True
    assert told(task).reason == "room"
    assert actions.claim(node, ROOM) == task


def test_no_task_waits_for_a_node_that_restarts(ours):
    task, node = make_task(ours), WorkerFactory()
    Task.objects.filter(pk=task.pk).update(held_on=node)
    actions.ring_waiting()
    task.refresh_from_db()
    assert task.held_on_id == node.pk
    Worker.objects.filter(pk=node.pk).update(restart_asked_at=timezone.now())
    actions.ring_waiting()
    task.refresh_from_db()
    assert task.held_on_id is None
