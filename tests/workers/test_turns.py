"""Whose turn it is, where one slot is all there is."""

import pytest

from tests.factories import OrganizationFactory, WorkerFactory, make_task
from workers import actions
from workers.fairshare import Room

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
