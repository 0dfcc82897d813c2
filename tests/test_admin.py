"""The operator's console: every table is there, loads, and its buttons do what they say."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from clusters import cycle
from tests.clusters import make as deploying
from tests.factories import MembershipFactory, UserFactory, WorkerFactory, make_task
from tests.pipelines import make as piping
from tests.training import make
from training import curves, general, named
from training.actions import check_data
from workers import actions, joining
from workers.models import Pause, Pulse, Task, Turn

OURS = (
    "accounts", "organizations", "workers", "datasets", "training", "clusters", "pipelines",
)  # fmt: skip
# Pulse and Turn are bookkeeping; memberships are edited inside their organization.
ELSEWHERE = {Pulse, Turn, apps.get_model("organizations.Membership")}
MODELS = [model for label in OURS for model in apps.get_app_config(label).get_models()]

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator(client):
    client.force_login(UserFactory(username="olga", is_staff=True, is_superuser=True))
    return client


def staff(client, *permissions):
    user = UserFactory(is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)
    return client


def a_row_of_each() -> None:
    """One more of everything that an installation has."""
    member = MembershipFactory()
    model = make.scored_model(member)
    task = make_task(member.organization, engine="rare")
    node = Task.objects.filter(worker__isnull=False).latest("started_at").worker
    node.allocations.create(task=task, organization=member.organization, cpu_millis=1, ram_mib=1)
    version = make.version(member)
    check_data(member, version.dataset_id, target="kind")
    upload = version.data
    named.give_name(member, "tree", model)
    named.move_alias(member, "tree", "champion", 1)
    row = {"petal_cm": 1.0, "colour": "red", "weight_g": 50.0}
    general.infer(member, model_id="tree", input_data=row)
    curves.curve_of(member, model)
    apps.get_model("training.EnsembleMember").objects.create(
        ensemble=model, model=model, weight=1.0
    )
    apps.get_model("training.BatchPrediction").objects.create(
        organization=member.organization, model=model, filename="rows.csv", upload=upload
    )

    home = deploying.cluster(member, deploying.node(member), name=f"c{model.pk}")
    first = deploying.deploy(member, model, "first", cluster=home.pk)
    deploying.deploy(member, model, "second", cluster=home.pk, depends_on=[first.pk])
    cycle.run(home.pk)
    now = timezone.now()
    some = [1024, 1000, 0]
    home.loads.create(at=now, nodes=1, online=1, total=some, allocated=some, free=some)
    first.minutes.create(minute=now, revision=1, requests=1)
    first.sampled.create(prediction=uuid4(), row=0, revision=1, at=now, values={}, predicted="x")
    first.drift_reports.create(revision=1, rows=100, columns=[])
    first.outcomes.create(prediction=uuid4(), row=0, revision=1, at=now, predicted="x", truth="y")

    piping.connection(member)
    piping.experiment(member)
    piping.run(member)


def address_of(model):
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist")


def queries(ask: Callable[[], Any]) -> int:
    with CaptureQueriesContext(
        connection,
    ) as seen:
        ask()
    return len(seen)


def test_every_table_is_in_the_console():
    assert {model for model in MODELS if model not in admin.site._registry} == ELSEWHERE


SHOWN = [m for m in MODELS if m not in ELSEWHERE]


@pytest.mark.parametrize("model", SHOWN, ids=lambda m: m.__name__)
def test_every_list_loads_and_can_be_searched_and_filtered(operator, model):
    a_row_of_each()
    shown = admin.site._registry[model]
    assert operator.get(address_of(model)).status_code == 200
    if shown.search_fields:
        assert operator.get(address_of(model), {"q": "x"}).status_code == 200
    for one in shown.list_filter:
        name = getattr(one, "parameter_name", None)
        for value, _ in one.lookups(one, None, shown) if name else ():
            answer = operator.get(address_of(model), {name: value})
            assert answer.status_code == 200, (name, value)


@pytest.mark.parametrize("model", SHOWN, ids=lambda m: m.__name__)
def test_a_long_list_asks_no_more_questions_than_a_short_one(operator, model):
    for _ in range(2):
        a_row_of_each()
    operator.get(address_of(model))  # what is remembered from now on (content types)
    few = queries(lambda: operator.get(address_of(model)))
    for _ in range(5):
        a_row_of_each()
    assert queries(lambda: operator.get(address_of(model))) == few


@pytest.mark.parametrize("model", SHOWN, ids=lambda m: m.__name__)
def test_a_row_of_every_table_can_be_opened_with_its_history(operator, model):
    a_row_of_each()
    row = model.objects.first()
    if row is None:
        pytest.skip("none is made by what runs here")
    names = f"{model._meta.app_label}_{model._meta.model_name}"
    for page in ("change", "history"):
        assert operator.get(reverse(f"admin:{names}_{page}", args=[row.pk])).status_code == 200


def test_no_secret_is_shown(operator):
    node = WorkerFactory()
    page = operator.get(f"/admin/workers/worker/{node.pk}/change/").content.decode()
    assert node.name in page
    assert node.token_hash not in page


# --- Who may come in -----------------------------------------------------------------------------


def test_the_console_is_closed_to_strangers_and_members(client):
    assert client.get("/admin/workers/task/").status_code == 302
    client.force_login(MembershipFactory().user)
    assert client.get("/admin/workers/task/").status_code == 302


def test_staff_see_and_do_what_they_were_given(client):
    task = make_task()
    assert staff(client).get("/admin/workers/task/").status_code == 403
    looks = staff(client, "view_task")
    page = looks.get(f"/admin/workers/task/{task.pk}/change/").content.decode()
    assert "Queue again" not in page
    act(looks, "cancel", task, confirmed=True)
    task.refresh_from_db()
    assert task.state == Task.State.QUEUED
    does = staff(client, "view_task", "change_task")
    page = does.get(f"/admin/workers/task/{task.pk}/change/").content.decode()
    assert "Queue again" in page
    act(does, "cancel", task, confirmed=True)
    task.refresh_from_db()
    assert task.state == Task.State.CANCELLED


# --- Actions -------------------------------------------------------------------------------------


def act(client, action, *tasks, confirmed, **more):
    data = {"action": action, "_selected_action": [str(task.pk) for task in tasks], **more}
    if confirmed:
        data["confirmed"] = "yes"
    return client.post("/admin/workers/task/", data, follow=True)


def test_an_action_asks_before_it_does_anything(operator):
    task = make_task()
    page = act(operator, "cancel", task, confirmed=False).content.decode()
    assert "kills the whole process tree" in page
    assert str(task) in page
    task.refresh_from_db()
    assert task.state == Task.State.QUEUED


def test_what_is_confirmed_is_what_was_shown(operator):
    shown = [make_task() for _ in range(3)]
    page = act(operator, "cancel", *shown[:1], confirmed=False, select_across="1")
    later = make_task()
    keys = page.context["keys"]
    operator.post(
        "/admin/workers/task/", {"action": "cancel", "_selected_action": keys, "confirmed": "yes"}
    )
    assert set(Task.objects.filter(state="cancelled")) == set(shown)
    later.refresh_from_db()
    assert later.state == Task.State.QUEUED


def test_an_operator_cancels_a_task_and_queues_it_again(operator):
    task = make_task()
    act(operator, "cancel", task, confirmed=True)
    task.refresh_from_db()
    assert task.state == Task.State.CANCELLED
    assert task.events.last().data["by"] == "olga"
    act(operator, "requeue", task, confirmed=True)
    again = Task.objects.exclude(pk=task.pk).get()
    assert (again.subject, again.state) == (task.subject, Task.State.QUEUED)
    told = LogEntry.objects.filter(object_id=str(task.pk)).order_by("pk")
    assert [entry.change_message for entry in told] == [
        "cancelled, or about to be",
        f"queued again as {again}",
    ]
    history = operator.get(f"/admin/workers/task/{task.pk}/history/").content.decode()
    assert "cancelled, or about to be" in history


def test_what_cannot_be_queued_again_says_why(operator):
    task = make_task()
    page = act(operator, "requeue", task, confirmed=True).content.decode()
    assert "Only a failed or cancelled task" in page
    assert Task.objects.count() == 1
    assert not LogEntry.objects.exists()


def test_what_left_the_list_meanwhile_is_told(operator):
    task = make_task()
    act(operator, "cancel", task, confirmed=True)
    page = operator.post(
        "/admin/workers/task/?state__exact=queued",
        {"action": "cancel", "_selected_action": [str(task.pk)], "confirmed": "yes"},
        follow=True,
    ).content.decode()
    assert "1 changed meanwhile" in page


def test_an_operator_puts_a_waiting_task_first(operator):
    task, ended = make_task(), make_task()
    asked = act(operator, "set_priority", task, confirmed=False).content.decode()
    assert "with-priority" in asked
    wrong = act(operator, "set_priority", task, confirmed=True, **{"with-priority": "very"})
    assert "Enter a whole number" in wrong.content.decode()
    act(operator, "cancel", ended, confirmed=True)
    page = act(operator, "set_priority", task, ended, confirmed=True, **{"with-priority": "5"})
    assert "Only a waiting task has a place in line" in page.content.decode()
    task.refresh_from_db()
    assert task.priority == 5
    told = task.events.last().data
    assert (told["by"], told["to"]) == ("olga", 5)


def node_act(operator, action, node, **more):
    return operator.post(
        "/admin/workers/worker/",
        {"action": action, "_selected_action": [str(node.pk)], "confirmed": "yes", **more},
        follow=True,
    ).content.decode()


def test_an_operator_drains_resumes_changes_and_removes_a_node(operator):
    node = WorkerFactory()
    node_act(operator, "drain", node)
    node.refresh_from_db()
    assert node.draining
    node_act(operator, "resume", node)
    node_act(operator, "set_concurrency", node, **{"with-concurrency": "3"})
    node_act(operator, "restart", node)
    node.refresh_from_db()
    assert not node.draining
    assert node.wanted == {"concurrency": 3}
    assert node.restart_asked_at is not None
    entries = apps.get_model("organizations.AuditEntry").objects
    verbs = entries.filter(object_id=str(node.pk), actor="olga").values_list("verb", flat=True)
    assert set(verbs) >= {"node.drained", "node.resumed", "node.changed", "node.restarted"}
    make.age_node(node)
    assert "not online" in node_act(operator, "restart", node)
    assert f"{node.name}: removed" in node_act(operator, "remove", node)
    assert not type(node).objects.exists()
    assert LogEntry.objects.filter(object_id=str(node.pk), change_message="removed").exists()


def test_an_operator_revokes_a_join_token(operator):
    token, _ = joining.make_join_token(None, by=UserFactory(is_staff=True, is_superuser=True))
    operator.post(
        "/admin/workers/jointoken/",
        {"action": "revoke", "_selected_action": [str(token.pk)], "confirmed": "yes"},
    )
    assert (
        not apps.get_model("workers.JoinToken")
        .objects.filter(pk=token.pk, expires_at__gt=timezone.now())
        .exists()
    )


def test_an_operator_pauses_a_queue_and_an_organization_and_resumes_them(operator):
    task = make_task()
    node = WorkerFactory()
    for form in ({"queue": "pycaret.cpu"}, {"organization": str(task.organization_id)}):
        data = {"queue": "", "organization": "", "reason": "an upgrade", **form}
        assert operator.post("/admin/workers/pause/add/", data).status_code == 302
        paused = Pause.objects.get()
        assert (paused.by, paused.reason) == ("olga", "an upgrade")
        assert actions.claim(node, make.ROOM) is None
        operator.post(
            "/admin/workers/pause/",
            {"action": "resume", "_selected_action": [str(paused.pk)], "confirmed": "yes"},
        )
        assert not Pause.objects.exists()
    assert actions.claim(node, make.ROOM) == task


def test_an_operator_moves_a_task_to_the_front(operator):
    first = make_task()
    second = make_task(first.organization)
    act(operator, "to_front", second, confirmed=True)
    assert actions.claim(WorkerFactory(), make.ROOM) == second


def test_schedules_are_edited_here(operator):
    interval = apps.get_model("django_celery_beat.IntervalSchedule").objects.create(
        every=5, period="minutes"
    )
    address = "/admin/django_celery_beat/periodictask/"
    page = operator.get(f"{address}add/")
    assert page.status_code == 200
    form = {
        "name": "tidy", "regtask": "workers.tasks.sweep", "task": "", "enabled": "on",
        "interval": interval.pk, "args": "[]", "kwargs": "{}", "headers": "{}",
        "start_time_0": "", "start_time_1": "", "expires_0": "", "expires_1": "",
    }  # fmt: skip
    answer = operator.post(f"{address}add/", form)
    assert answer.status_code == 302, answer.context["errors"]
    made = apps.get_model("django_celery_beat.PeriodicTask").objects.get(name="tidy")
    assert (made.task, made.interval) == ("workers.tasks.sweep", interval)
    assert "tidy" in operator.get(address).content.decode()
    for name in ("intervalschedule", "crontabschedule", "clockedschedule", "solarschedule"):
        assert operator.get(f"/admin/django_celery_beat/{name}/").status_code == 200
        assert operator.get(f"/admin/django_celery_beat/{name}/add/").status_code == 200
    operator.post(
        address, {"action": "disable_tasks", "_selected_action": [made.pk], "confirmed": "yes"}
    )
    made.refresh_from_db()
    assert not made.enabled


def test_what_operators_did_is_listed(operator):
    act(operator, "cancel", make_task(), confirmed=True)
    page = operator.get("/admin/admin/logentry/").content.decode()
    assert "cancelled, or about to be" in page
    assert operator.get("/admin/admin/logentry/add/").status_code == 403


def test_no_state_can_be_edited_by_hand(operator):
    task = make_task()
    answer = operator.post(f"/admin/workers/task/{task.pk}/change/", {"state": "succeeded"})
    task.refresh_from_db()
    assert (answer.status_code, task.state) == (403, Task.State.QUEUED)
