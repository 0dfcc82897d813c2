"""Whose turn it is, where one slot is all there is."""

from datetime import timedelta

import pytest
from django.utils import timezone

from tests.factories import OrganizationFactory, WorkerFactory, make_task
from workers import actions
from workers.fairshare import Room
from workers.models import Task

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


def waiting_for_hours(organization, count):
    long_ago = timezone.now() - timedelta(hours=5)
    for n in range(count):
        task = make_task(organization)
        at = long_ago + timedelta(seconds=n)
        Task.objects.filter(pk=task.pk).update(queued_at=at, line_at=at)


def test_who_queued_a_hundred_first_goes_not_first_for_hours_either():
    """Tasks that have ended leave nothing that runs: the turn of their line is remembered."""
    early, late = OrganizationFactory(), OrganizationFactory()
    waiting_for_hours(early, 4)
    waiting_for_hours(late, 4)
    Task.objects.filter(organization=late).update(queued_at=timezone.now() - timedelta(hours=4))
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
