"""What a race would take, by what ended here before: over HTTP, in tasks and while it runs."""

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from accounts.errors import Invalid
from tests.training import make
from training import actions, history
from training.estimate import usual_ram_mib
from workers.models import Task, Worker

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def anew(monkeypatch):
    """Each look is a fresh one."""
    monkeypatch.setattr(history, "KEPT_S", -1.0)


@pytest.fixture
def by():
    return make.member()


@pytest.fixture
def version(by):
    return make.version(by)


def ended_before(seconds, ram_mib, times=6, *, state="succeeded", code="", budget_s=60.0):
    """Races of somebody else that ended with such figures."""
    other = make.member()
    made = make.version(other)
    node = make.Node()
    for _ in range(times):
        make.job(other, made, time_budget=budget_s)
        task = node.claim()
        now = timezone.now()
        Task.objects.filter(pk=task.pk).update(started_at=now - timedelta(seconds=seconds))
        outcome = {"code": code, "error": "x", "fault": "work"} if state == "failed" else {}
        node.end(task, state, usage={"ram_peak_mib": ram_mib}, **outcome)
    return node.worker


def asked(by, version, **wish):
    wish = {"target": "kind", "time_budget": 60.0, "engines": ["pycaret"]} | wish
    return actions.estimate_job(by, version.dataset_id, **wish)


def test_without_history_it_says_so_and_tells_the_budget(by, version):
    make.Node()
    found = asked(by, version)
    assert (found["seconds"], found["from_history"], found["seconds_error"]) == (60.0, False, None)
    assert "Nothing was trained here yet" in found["explanation"]
    (engine,) = found["engines"]
    assert engine["queue"] == "pycaret.cpu"
    assert len(engine["nodes"]) == 1
    assert (engine["starts_in_s"], engine["waits"]) == (0.0, "")
    assert engine["ram_mib"] >= usual_ram_mib(1)
    assert not Task.objects.exists()


def test_with_history_it_follows_it_and_tells_how_far_off_it_was(by, version):
    ended_before(6.0, 400.0, times=12)
    found = asked(by, version)
    assert found["from_history"]
    assert 4 < found["seconds"] < 15
    assert found["seconds_error"].runs == 11
    assert found["seconds_error"].median < 2
    assert "off by a factor of" in found["explanation"]
    assert 400 < found["ram_mib"] < 2048


def test_memory_is_asked_as_history_shows_it(by, version):
    assert make.job(by, version).tasks.get().ram_mib >= 2048
    ended_before(6.0, 400.0, times=12)
    assert 400 < make.job(by, version).tasks.get().ram_mib < 2048
    assert make.job(by, version, target="weight_g").tasks.get().ram_mib < 2048


def test_a_task_that_ran_out_of_memory_makes_the_next_ask_for_more(by, version):
    ended_before(6.0, 400.0, times=8)
    ended_before(6.0, 900.0, times=1, state="failed", code="memory")
    assert make.job(by, version).tasks.get().ram_mib > 900 * 1.25


def test_a_cancelled_or_lost_task_teaches_nothing(by, version):
    ended_before(6.0, 400.0, times=3, state="failed", code="crash")
    assert not history.past().runs


def test_no_node_is_told_and_leaves_the_time_open(by, version):
    found = asked(by, version)
    assert found["seconds"] is None
    (engine,) = found["engines"]
    assert engine["nodes"] == []
    assert "no node is connected" in engine["waits"]
    assert engine["starts_in_s"] is None


def test_a_busy_node_makes_it_wait(by, version):
    worker = ended_before(30.0, 400.0)
    Worker.objects.filter(pk=worker.pk).update(concurrency=1)
    other = make.member()
    make.job(other)
    worker.refresh_from_db()
    make.Node(worker).claim()
    found = asked(by, version)
    (engine,) = found["engines"]
    assert engine["waits"].startswith("Waits for room on")
    assert 20 < engine["starts_in_s"] <= 31


def test_what_cannot_be_started_is_not_estimated(by, version):
    with pytest.raises(Invalid):
        asked(by, version, target="kinds")


def test_progress_tells_what_is_left(by, version):
    ended_before(20.0, 400.0, times=12)
    job = make.job(by, version, time_budget=60.0)
    node = make.Node()
    waiting = actions.progress_of(job)["left_s"]
    assert 12 < waiting < 40
    task = node.claim()
    Task.objects.filter(pk=task.pk).update(started_at=timezone.now() - timedelta(seconds=10))
    job.refresh_from_db()
    assert actions.progress_of(job)["left_s"] == pytest.approx(waiting - 10, abs=2)
    Task.objects.filter(pk=task.pk).update(started_at=timezone.now() - timedelta(seconds=50))
    assert 1 < actions.progress_of(job)["left_s"] < 30  # longer than thought: budget's rest
    node.end(task, "failed", error="No memory.")
    job.refresh_from_db()
    assert actions.progress_of(job)["left_s"] is None


def test_what_waits_follows_what_runs(by, version):
    """One engine runs, two wait: as many side by side as now, so one after the other."""
    job = make.job(by, version, time_budget=60.0)
    first = job.tasks.get()
    for engine in ("flaml", "sklearn"):
        first.pk, first.engine = None, engine
        first._state.adding = True
        first.save()
    assert actions.progress_of(job)["left_s"] == pytest.approx(180, abs=1)
    task = make.Node().claim()
    Task.objects.filter(pk=task.pk).update(started_at=timezone.now() - timedelta(seconds=20))
    job.refresh_from_db()
    assert actions.progress_of(job)["left_s"] == pytest.approx(160, abs=1)
    page = Client()
    page.force_login(by.user)
    assert "about 2 min left" in page.get(job.get_absolute_url()).content.decode()


def test_programs_get_it_in_a_bounded_number_of_queries(by, version, django_assert_max_num_queries):
    make.Node()
    client = Client()
    client.force_login(by.user)
    wish = {"dataset": str(version.dataset_id), "target": "kind", "time_budget": 60}
    with django_assert_max_num_queries(24):
        answer = client.post("/api/training/estimate", wish, content_type="application/json")
    assert answer.status_code == 200
    told = answer.json()
    assert told["engines"][0]["engine"] == "pycaret"
    assert told["seconds_error"] is None


def test_the_past_is_looked_at_once_a_minute(by, version, monkeypatch, django_assert_num_queries):
    monkeypatch.setattr(history, "KEPT_S", 60.0)
    monkeypatch.setattr(history, "_kept", [])
    history.past()
    with django_assert_num_queries(0):
        history.past()


def test_the_form_tells_it_and_where_it_would_run_as_choices_change(by, version, client):
    client.force_login(by.user)
    form = {"dataset": version.dataset_id, "engines": "pycaret", "preset": "own", "minutes": "1"}
    assert client.post("/training/new/estimate", form).content.decode().strip() == ""
    nowhere = client.post("/training/new/estimate", form | {"target": "kind"}).content.decode()
    assert "No node can do this now" in nowhere
    node = ended_before(12, 900)
    text = client.post("/training/new/estimate", form | {"target": "kind"}).content.decode()
    assert node.name in text
    assert "estimates were off by a factor" in text
    assert "About" in text
    refused = client.post("/training/new/estimate", form | {"target": "kind", "minutes": "no"})
    assert (refused.status_code, refused.content.decode().strip()) == (200, "")
    page = client.get(f"/training/new?dataset={version.dataset_id}").content.decode()
    assert 'hx-post="/training/new/estimate"' in page
