"""What the dashboard and doctor say about figures, and where the figures come from."""

import io
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from flowml_site import figures
from flowml_site.findings import (
    Failures,
    Node,
    Paused,
    Queue,
    Quota,
    Severity,
    Slow,
    Snapshot,
    ago,
    findings,
)
from organizations import usage
from organizations.models import UsageMonth
from tests.factories import OrganizationFactory, UserFactory, WorkerFactory, make_task
from workers.files import store_artifact
from workers.models import Pause, Pulse, Task, Worker

NOW = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)
WELL = Node("1", "a", "alive", version="1", queues=("cpu",))


def said(**figures_):
    return findings(
        Snapshot(**({"at": NOW, "version": "1", "swept_s": 1.0, "nodes": [WELL]} | figures_))
    )


def test_nothing_is_said_of_an_installation_that_is_well():
    busy = [Queue("cpu", waiting=3, oldest_s=30, nodes=1, running=2)]
    roomy = {"disk_free_bytes": 50 * 2**30, "disk_total_bytes": 100 * 2**30}
    assert said(queues=busy, quotas=[Quota("1", "Acme", "jobs", 1, 4)], **roomy) == []


def test_the_worst_comes_first_and_each_says_what_to_do():
    found = said(
        queues=[
            Queue("cpu", waiting=9, oldest_s=4000, nodes=1),
            Queue("torch.gpu", waiting=3, unserved=3, oldest_s=7200),
        ],
        nodes=[WELL, Node("2", "b", "gone", silent_s=900, version="1", queues=("torch.gpu",))],
        swept_s=400.0,
        quotas=[Quota("1", "Acme", "trainings at once", 4, 4)],
        failures=[Failures("platform", "lost-too-often", 2, "lost"), Failures("work", "oom", 1)],
        pauses=[Paused("the queue llm", "olga", "upgrade", 60, 0)],
    )
    assert [one.severity for one in found] == sorted((o.severity for o in found), reverse=True)
    assert found[0].title == "Control does not sweep"
    assert found[1].title == "Nobody serves torch.gpu"
    assert "for 2 h" in found[1].detail
    assert "served by b" in found[1].detail
    assert found[-1].severity == Severity.NOTE
    assert all(one.remedy for one in found)


@pytest.mark.parametrize(
    ("figures_", "title"),
    [
        ({"broker": "ConnectionError: refused"}, "The broker can't be used"),
        ({"swept_s": None}, "Control does not sweep"),
        ({"unhandled": 2}, "2 reports not reacted to"),
        ({"nodes": []}, "No node has joined"),
        ({"nodes": [Node("1", "a", "gone", silent_s=60)]}, "No node is alive"),
        ({"nodes": [Node("1", "a", "draining")]}, "a is drained"),
        ({"nodes": [Node("1", "a", "alive", ahead_s=-3600)]}, "The clock of a is wrong"),
        ({"nodes": [Node("1", "a", "alive", disk_free_mib=100)]}, "a has little disk left"),
        ({"nodes": [Node("1", "a", "alive", version="0.9")]}, "a runs version 0.9"),
        (
            {"slow": [Slow("1", "train 1", "train", "a", 9000, 60, 600)]},
            "1 task runs beyond the usual time",
        ),
        ({"disk_free_bytes": 2**20, "disk_total_bytes": 2**40}, "The storage is full"),
        ({"disk_free_bytes": 2**32, "disk_total_bytes": 2**33}, "The storage is nearly full"),
        (
            {"quotas": [Quota("1", "Acme", "Storage", 95, 100, "bytes")]},
            "Acme: 95% of its quota “Storage”",
        ),
        ({"pauses": [Paused("every queue", "olga", "", 60, 4)]}, "Paused: every queue"),
    ],
)
def test_each_trouble_is_named(figures_, title):
    assert title in [one.title for one in said(**figures_)]


def test_many_failures_of_the_work_alone_are_a_warning():
    few = said(failures=[Failures("work", "oom", 3)], ended=100)
    many = said(failures=[Failures("work", "oom", 60)], ended=100)
    assert [one.severity for one in few + many] == [Severity.NOTE, Severity.WARNING]


def test_lengths_of_time_are_short():
    assert [ago(s) for s in (3, 90, 600, 7200, 86400, 400_000)] == [
        "3 s", "2 min", "10 min", "2 h", "24 h", "5 days",
    ]  # fmt: skip


# --- Where the figures come from ------------------------------------------------------------------


def running(node, **fields):
    task = make_task(**{"kind": "training.train", **fields})
    now = timezone.now()
    task.move_to(
        Task.State.RUNNING, worker=node, started_at=now, lease_expires_at=now + timedelta(hours=9)
    )
    return task


def ended(state, took=timedelta(seconds=10), **fields):
    task = running(None)
    now = timezone.now()
    task.move_to(state, lease_expires_at=None, handled_at=now, finished_at=now, **fields)
    Task.objects.filter(pk=task.pk).update(started_at=now - took)
    return task


def aged(task, **by):
    Task.objects.filter(pk=task.pk).update(
        **{name: timezone.now() - length for name, length in by.items()}
    )


@pytest.mark.django_db
def test_figures_tell_who_waits_for_whom():
    everybody, theirs = WorkerFactory(queues=["cpu"]), OrganizationFactory()
    WorkerFactory(queues=["rare.cpu"], organization=theirs)
    gone = WorkerFactory(queues=["gone.cpu"])
    Worker.objects.filter(pk=gone.pk).update(last_seen_at=timezone.now() - timedelta(hours=1))
    aged(make_task(engine=""), queued_at=timedelta(hours=2))
    make_task(theirs, engine="rare")
    make_task(engine="rare")
    make_task(engine="gone")
    running(everybody, engine="")
    seen = figures.look()
    queues = {queue.name: queue for queue in seen.queues}
    assert (queues["cpu"].waiting, queues["cpu"].unserved, queues["cpu"].running) == (1, 0, 1)
    assert queues["cpu"].oldest_s == pytest.approx(7200, abs=60)
    assert (queues["rare.cpu"].waiting, queues["rare.cpu"].unserved) == (2, 1)
    assert queues["gone.cpu"].unserved == 1
    assert [node.state for node in seen.nodes].count("gone") == 1
    titles = {one.title for one in findings(seen)}
    assert {"Nobody serves rare.cpu", "Nobody serves gone.cpu", f"{gone.name} is gone"} <= titles


@pytest.mark.django_db
def test_a_task_is_slow_by_what_its_like_take():
    for _ in range(5):
        ended(Task.State.SUCCEEDED)
    node = WorkerFactory()
    usual, slow = running(node, time_limit_s=600), running(node, time_limit_s=600)
    aged(usual, started_at=timedelta(seconds=45))
    aged(slow, started_at=timedelta(seconds=400))
    other = running(node, kind="rare", time_limit_s=600)  # nothing is known of its like
    aged(other, started_at=timedelta(seconds=400))
    found = figures.look().slow
    assert [one.id for one in found] == [str(slow.pk)]
    assert found[0].usual_s == pytest.approx(10, abs=1)


@pytest.mark.django_db
def test_failures_are_told_by_fault_and_code_with_the_newest_words():
    ended(Task.State.FAILED, fault="work", code="oom", error="Needed more than 4.0 GiB.")
    ended(Task.State.FAILED, fault="platform", code="lost-too-often", error="Lost.")
    old = ended(Task.State.FAILED, fault="work", code="oom", error="Old.")
    aged(old, finished_at=timedelta(days=3))
    seen = figures.look()
    assert {(f.fault, f.code, f.count, f.example) for f in seen.failures} == {
        ("work", "oom", 1, "Needed more than 4.0 GiB."),
        ("platform", "lost-too-often", 1, "Lost."),
    }
    assert (seen.hours[-1].failed_work, seen.hours[-1].failed_platform, seen.ended) == (1, 1, 2)


@pytest.mark.django_db
def test_the_lines_of_the_last_day_are_reckoned_back():
    aged(make_task(), queued_at=timedelta(hours=30))
    aged(make_task(), queued_at=timedelta(hours=5))
    done = ended(Task.State.SUCCEEDED)
    aged(done, queued_at=timedelta(hours=10), started_at=timedelta(hours=2))
    waiting = [hour.waiting for hour in figures.look().hours]
    assert (waiting[0], waiting[-7], waiting[-4], waiting[-1]) == (1, 2, 3, 2)


@pytest.mark.django_db
def test_ends_that_nothing_reacted_to_and_a_late_sweep_are_seen():
    aged(ended(Task.State.SUCCEEDED), finished_at=timedelta(minutes=5))
    Task.objects.update(handled_at=None)
    Pulse.objects.create(pk=1, swept_at=timezone.now() - timedelta(minutes=3))
    Pause.objects.create(queue="cpu", by="olga", reason="upgrade")
    titles = {one.title for one in findings(figures.look())}
    assert {"1 report not reacted to", "Control does not sweep", "Paused: the queue cpu"} <= titles


@pytest.mark.django_db
def test_quotas_near_their_limit_are_seen(settings):
    full, roomy = OrganizationFactory(max_storage_bytes=100), OrganizationFactory()
    roomy.refresh_from_db()
    for one in (full, roomy):
        store_artifact(one, "a", io.BytesIO(b"x" * 95))
    UsageMonth.objects.create(organization=full, month=usage.month_of(timezone.now()), cpu_s=7200.0)
    full.max_cpu_hours = 2
    full.save()
    found = [one for one in findings(figures.look()) if one.area == "quotas"]
    assert [(one.severity, one.title) for one in found] == [
        (Severity.WARNING, f"{full.name}: 100% of its quota “CPU hours this month”"),
        (Severity.NOTE, f"{full.name}: 95% of its quota “Storage”"),
    ]


@pytest.mark.django_db
def test_a_broker_that_is_away_is_told_and_soon(settings):
    from flowml_site.processes import free_port

    assert figures.broker_trouble() == ""
    settings.REDIS_URL = f"redis://127.0.0.1:{free_port()}/0"
    assert "Connection" in figures.broker_trouble()


# --- The page -------------------------------------------------------------------------------------


@pytest.fixture
def operator(client):
    client.force_login(UserFactory(is_staff=True, is_superuser=True))
    return client


def many_tasks(count, **fields):
    """Copies of one task, as fast as rows can be made."""
    first = make_task()
    now = timezone.now()
    Task.objects.bulk_create(
        Task(
            organization=first.organization, stream=first.stream, kind="training.train",
            subject=first.subject, queue=f"q{n % 7}.cpu", **{
                "state": "succeeded", "finished_at": now, "handled_at": now, "started_at": now,
                **fields,
            },
        )
        for n in range(count)
    )  # fmt: skip


@pytest.mark.django_db
def test_the_dashboard_asks_a_fixed_number_of_queries(operator):
    def asked():
        with CaptureQueriesContext(connection) as seen:
            assert operator.get("/admin/").status_code == 200
        return len(seen)

    WorkerFactory()
    make_task()
    asked()
    few = asked()
    for _ in range(5):
        running(WorkerFactory())
        ended(Task.State.FAILED, fault="work", code="oom")
        make_task(engine="rare")
    assert asked() == few
    assert few <= 30


@pytest.mark.django_db
def test_the_figures_of_ten_thousand_tasks_come_at_once():
    many_tasks(9_000)
    many_tasks(1_000, state="queued", finished_at=None, handled_at=None, started_at=None)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
    with CaptureQueriesContext(connection) as seen:
        told = figures.look()
    assert told.waiting == 1002
    # What the database itself says it took: a quiet machine needs a fiftieth of this.
    assert sum(float(query["time"]) for query in seen) < 10.0


@pytest.mark.django_db
def test_the_page_tells_trouble_with_its_remedy_and_the_filtered_list(operator):
    make_task(engine="rare")
    page = operator.get("/admin/").content.decode()
    assert "Nobody serves rare.cpu" in page
    link = "/admin/workers/task/?trouble=unserved&amp;queue=rare.cpu"
    assert link in page
    listed = operator.get(link.replace("&amp;", "&"))
    assert listed.context["cl"].result_count == 1


@pytest.mark.django_db
def test_every_finding_leads_to_a_list_that_opens(operator):
    from flowml_site.console import row

    found = said(
        broker="x", swept_s=None, unhandled=1, disk_free_bytes=1, disk_total_bytes=2**40,
        queues=[Queue("a", 1, 1, 9999), Queue("b", 1, 0, 9999, 1)],
        nodes=[Node("1", "a", "gone", 60), Node("2", "b", "draining", ahead_s=99)],
        slow=[Slow(str(make_task().pk), "t", "k", "a", 9, 1, 1)],
        failures=[Failures("platform", "lost-too-often", 1), Failures("work", "oom", 1)],
        quotas=[Quota("1", "Acme", "jobs", 1, 1)], pauses=[Paused("all", "o", "", 1, 1)],
    )  # fmt: skip
    hrefs = {one["href"] for one in map(row, found) if one["href"]}
    assert len(hrefs) >= 9
    for href in hrefs:
        answer = operator.get(href)
        assert answer.status_code == 200, href


@pytest.mark.django_db
def test_all_clear_is_said_only_when_it_is(operator):
    assert "All clear" not in operator.get("/admin/").content.decode()
    WorkerFactory(version="0.1.0")
    Pulse.objects.create(pk=1, swept_at=timezone.now())
    page = operator.get("/admin/").content.decode()
    assert ("All clear" in page) == ("nearly full" not in page and "is full" not in page)


@pytest.mark.django_db
def test_staff_without_permission_see_no_figures(client):
    client.force_login(UserFactory(is_staff=True))
    make_task(engine="rare")
    page = client.get("/admin/").content.decode()
    assert "may not look at tasks" in page
    assert "rare.cpu" not in page


@pytest.mark.django_db
def test_the_page_has_no_script_of_its_own_in_it(operator):
    page = operator.get("/admin/").content.decode()
    ours = page[page.index('id="console"') :]
    ours = ours[: ours.index('class="console-history"')]
    assert "onclick" not in ours
    assert "<script" not in ours.replace('<script id="console-data" type="application/json">', "")
