"""The operator's console: every table is there, loads, and its buttons do what they say."""

import pytest
from django.apps import apps
from django.contrib import admin
from django.urls import reverse

from tests.factories import MembershipFactory, UserFactory, WorkerFactory, make_task
from workers.models import Pulse, Task

OURS = ("accounts", "organizations", "workers", "datasets", "training")
# Pulse is one row of bookkeeping; memberships are edited inside their organization.
ELSEWHERE = {Pulse, apps.get_model("organizations.Membership")}
MODELS = [model for label in OURS for model in apps.get_app_config(label).get_models()]

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator(client):
    client.force_login(UserFactory(is_staff=True, is_superuser=True))
    return client


def test_every_table_is_in_the_console():
    assert {model for model in MODELS if model not in admin.site._registry} == ELSEWHERE


@pytest.mark.parametrize(
    "model", [m for m in MODELS if m not in ELSEWHERE], ids=lambda m: m.__name__
)
def test_every_list_loads_and_can_be_searched(operator, model):
    MembershipFactory()
    WorkerFactory()
    make_task()
    opts = model._meta
    address = reverse(f"admin:{opts.app_label}_{opts.model_name}_changelist")
    assert operator.get(address).status_code == 200
    if admin.site._registry[model].search_fields:
        assert operator.get(address, {"q": "x"}).status_code == 200


def test_the_console_is_closed_to_members(client):
    client.force_login(MembershipFactory().user)
    assert client.get("/admin/workers/task/").status_code == 302


def act(operator, action, *tasks):
    return operator.post(
        "/admin/workers/task/",
        {"action": action, "_selected_action": [str(task.pk) for task in tasks]},
        follow=True,
    )


def test_an_operator_cancels_a_task_and_queues_it_again(operator):
    task = make_task()
    act(operator, "cancel", task)
    task.refresh_from_db()
    assert task.state == Task.State.CANCELLED
    act(operator, "requeue", task)
    again = Task.objects.exclude(pk=task.pk).get()
    assert (again.subject, again.state) == (task.subject, Task.State.QUEUED)


def test_what_cannot_be_queued_again_says_why(operator):
    task = make_task()
    page = act(operator, "requeue", task).content.decode()
    assert "Only a failed or cancelled task" in page
    assert Task.objects.count() == 1


def test_no_state_can_be_edited_by_hand(operator):
    task = make_task()
    answer = operator.post(f"/admin/workers/task/{task.pk}/change/", {"state": "succeeded"})
    task.refresh_from_db()
    assert (answer.status_code, task.state) == (403, Task.State.QUEUED)
