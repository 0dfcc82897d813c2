"""manage.py doctor: break something, and it says so with a remedy."""

import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import connection
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from flowml_site import doctor, embedded
from flowml_site.findings import Severity
from flowml_site.processes import free_port
from tests.factories import MembershipFactory, UserFactory, WorkerFactory, make_task
from tests.training import make
from workers.models import Allocation, Artifact, Pulse, Task


def titles(check):
    return [one.title for one in check()]


def told(*arguments):
    out, code = StringIO(), 0
    try:
        call_command("doctor", *arguments, stdout=out)
    except SystemExit as end:
        code = end.code
    return code, out.getvalue()


@pytest.fixture
def well(db, settings, tmp_path):
    """An installation that nothing is wrong with, but for what the machine's disk is like."""
    settings.FLOWML_VAR = tmp_path
    settings.FILE_UPLOAD_TEMP_DIR = tmp_path
    UserFactory(is_superuser=True)
    WorkerFactory(version="0.1.0")
    Pulse.objects.create(pk=1, swept_at=timezone.now())


def about(report, *areas):
    return [one for one in report.found if one.area in areas and one.severity > Severity.NOTE]


def test_nothing_is_said_of_what_is_well(well):
    report = doctor.examine()
    left = [one for one in report.found if one.severity > Severity.NOTE]
    assert {one.area for one in left} <= {"disk", "storage", "versions"}, left  # of this machine
    assert not report.skipped
    assert {"database", "migrations", "broker", "storage", "fleet", "artifacts"} <= {
        *report.checked
    }


def test_it_ends_with_1_and_tells_each_finding_with_its_remedy(well):
    make_task(engine="rare")
    code, text = told()
    assert code == 1
    assert "critical  Nobody serves rare.cpu" in text
    assert "→ Start or resume a node" in text
    code, text = told("--json")
    said = json.loads(text)
    assert (code, said["ok"], said["version"]) == (1, False, "0.1.0")
    assert all(
        set(one) == {"severity", "area", "title", "detail", "remedy"} and one["remedy"]
        for one in said["findings"]
    )


def test_it_ends_with_0_when_only_notes_are_left(well, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", [("operators", doctor._operators, "database")])
    code, text = told()
    assert code == 0, text
    assert "nothing is wrong" in text


@pytest.mark.django_db
def test_a_missing_migration_is_named_and_what_needs_it_left_out():
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'training'")
    report = doctor.examine()
    [one] = about(report, "migrations")
    assert "training.0001_initial" in one.detail
    assert "manage.py migrate" in one.remedy
    assert report.skipped["fleet"] == "migrations are missing"


@pytest.mark.django_db
def test_a_database_that_is_newer_than_the_code_is_named():
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO django_migrations (app, name, applied) VALUES"
            " ('workers', '9999_from_the_future', now())"
        )
    assert "The database is newer than this code" in titles(doctor._migrations)


def test_a_broker_that_is_away_is_named(settings):
    settings.REDIS_URL = f"redis://127.0.0.1:{free_port()}/0"
    assert titles(doctor._broker) == ["The broker can't be used"]


def test_a_broker_that_may_forget_is_named(monkeypatch):
    import redis

    real = redis.Redis.info
    monkeypatch.setattr(
        redis.Redis, "info", lambda self: real(self) | {"maxmemory_policy": "allkeys-lru"}
    )
    assert titles(doctor._broker) == ["The broker may throw messages away"]


@pytest.mark.parametrize(
    ("queue", "waiting", "said"),
    [
        ("control", 1001, ["Control does not keep up"]),
        ("control-long", 241, ["Nobody makes exports and deletes organizations"]),
        ("control-long", 240, []),
    ],
)
def test_a_process_that_does_not_keep_up_is_named(monkeypatch, queue, waiting, said):
    import redis

    monkeypatch.setattr(redis.Redis, "llen", lambda self, name: waiting if name == queue else 0)
    assert titles(doctor._broker) == said


def test_a_storage_that_can_not_be_written_is_named(settings, tmp_path):
    assert titles(doctor._storage) == []
    blocked = tmp_path / "a-file"
    blocked.write_text("in the way")
    settings.STORAGES = {
        **settings.STORAGES,
        "default": {
            "BACKEND": "django.core.files.storage.FileSystemStorage",
            "OPTIONS": {"location": blocked / "storage"},
        },
    }
    assert titles(doctor._storage) == ["The storage can't be written"]


def test_a_folder_that_is_gone_is_named(settings, tmp_path):
    settings.FLOWML_VAR = tmp_path / "gone"
    assert f"{tmp_path / 'gone'} can't be written" in titles(doctor._disk)


@pytest.mark.django_db
def test_leases_and_allocations_that_nobody_took_back_are_named():
    task = make_task()
    task.move_to(
        Task.State.RUNNING, lease_expires_at=timezone.now() - timedelta(minutes=5),
        started_at=timezone.now(),
    )  # fmt: skip
    Allocation.objects.create(
        worker=WorkerFactory(), task=make_task(), organization=task.organization,
        cpu_millis=1, ram_mib=1,
    )  # fmt: skip
    assert titles(doctor._leases) == [
        "1 lease ran out and not taken back",
        "1 allocation of tasks that do not run",
    ]


@pytest.mark.django_db
def test_files_without_rows_and_rows_without_files_are_named():
    from django.core.files.storage import default_storage

    data = make.version(MembershipFactory()).data
    stray = Path(default_storage.location) / "artifacts" / "stray"
    stray.write_bytes(b"x" * 100)
    assert titles(doctor._artifacts) == []  # it may be on its way
    os.utime(stray, (time.time() - 7200,) * 2)
    assert titles(doctor._artifacts) == ["1 file without a row"]
    data.file.storage.delete(data.file.name)
    found = list(doctor._artifacts())
    assert found[0].title == "1 stored file missing"
    assert str(data.pk) in found[0].detail
    assert Artifact.objects.filter(pk=data.pk).exists()


@pytest.mark.django_db
def test_a_schedule_that_is_off_is_named():
    from django_celery_beat.models import IntervalSchedule

    every = IntervalSchedule.objects.create(every=2, period="seconds")
    PeriodicTask.objects.create(
        name="workers-sweep", task="workers.tasks.sweep", interval=every, enabled=False
    )
    assert titles(doctor._schedule) == ["The schedule “workers-sweep” is switched off"]


def test_a_process_that_nobody_watches_is_named(settings, tmp_path):
    from flowml_site.platform import TAG, tag_of

    settings.FLOWML_VAR = tmp_path
    assert titles(doctor._processes) == []
    left = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE,
        env={**os.environ, TAG: tag_of(tmp_path)},
    )  # fmt: skip
    try:
        [found] = doctor._processes()
        assert found.title == "1 process left behind"
        assert str(left.pid) in found.detail
    finally:
        left.kill()
        left.wait()


@pytest.mark.parametrize(
    ("changed", "title"),
    [
        ({"DEBUG": True}, "DEBUG is on"),
        ({"SECRET_KEY": "short"}, "SECRET_KEY is weak"),
        ({"HOST": "0.0.0.0"}, "People come without TLS"),
        ({"ALLOWED_HOSTS": ["*"]}, "ALLOWED_HOSTS is *"),
        ({"TRUSTED_PROXIES": ["0.0.0.0/0"]}, "Everybody is a trusted proxy"),
        ({"SIGNING_KEY": ""}, "FLOWML_SIGNING_KEY is not set"),
    ],
)
def test_settings_that_are_unsafe_are_named(settings, changed, title):
    assert titles(doctor._settings) == []
    for name, value in changed.items():
        setattr(settings, name, value)
    assert titles(doctor._settings) == [title]


@pytest.mark.django_db
def test_djangos_own_checks_are_among_it(settings):
    settings.PUBLIC_URL = "https://flowml.example.org"
    settings.SESSION_COOKIE_SECURE = False
    assert any("SESSION_COOKIE_SECURE" in title for title in titles(doctor._deployment))


def test_a_check_that_fails_is_a_finding_and_stops_no_other(well, monkeypatch):
    def fails():
        raise RuntimeError("no luck")

    monkeypatch.setattr(
        doctor, "CHECKS", [("fails", fails, ""), ("operators", doctor._operators, "database")]
    )
    report = doctor.examine()
    assert [one.title for one in report.found] == ["The check “fails” could not be made"]
    assert report.checked[-1] == "operators"


@pytest.mark.slow
def test_with_nothing_running_it_says_so_and_starts_nothing(tmp_path):
    """The whole command, on an installation that was set up and is stopped."""
    embedded.make_secrets(tmp_path)
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in {"DATABASE_URL", "REDIS_URL", "DJANGO_SETTINGS_MODULE"}
    }
    env |= {"FLOWML_VAR": str(tmp_path), "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics")}
    ended = subprocess.run(
        [sys.executable, "manage.py", "doctor", "--json"], cwd=embedded.BASE_DIR, env=env,
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    said = json.loads(ended.stdout)
    found = {one["title"]: one for one in said["findings"]}
    assert "`make up`" in found["The database does not answer"]["remedy"]
    assert "The broker can't be used" in found
    assert said["skipped"]["fleet"] == "the database is down"
    assert not (tmp_path / "postgres").exists()
