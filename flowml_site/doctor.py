"""What ``manage.py doctor`` looks at. Each check yields findings; none stops the others.

Nothing is started and nothing mended: a doctor who changes what is looked at can't be believed.
Without a database, what needs one is left out and said to be.
"""

import contextlib
import fcntl
import importlib.metadata
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
import redis
from django.apps import apps
from django.conf import settings
from django.core import checks
from django.core.files.storage import FileSystemStorage, default_storage
from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from accounts.models import User
from flowml_site import embedded, figures, health, platform
from flowml_site.findings import SKEW_S, Finding, Severity, findings, size, some
from organizations import exports
from workers.models import Allocation, Artifact, Task

POSTGRES = 14_00_00  # as PostgreSQL itself writes 14.0
VALKEY = (6, 2)
YOUNG_S = 3600  # a file may be on its way, before its row is
MOST_FILES = 500_000
BACKLOG = 1000  # messages that control has not got round to
LONG_BACKLOG = 240  # of its process for what takes hours: a message a minute, and exports
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)

Check = Callable[[], Iterator[Finding]]
LOCAL = {"127.0.0.1", "localhost", "::1", "[::1]"}


@dataclass
class Report:
    """What was found, by which checks; ``skipped`` says why the others were not made."""

    found: list[Finding] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def well(self) -> bool:
        return all(one.severity < Severity.WARNING for one in self.found)


def examine() -> Report:
    """Make every check that can be made now."""
    report = Report()
    database = list(_database())
    report.found += database
    report.checked.append("database")
    down = any(one.severity == Severity.CRITICAL for one in database)
    ready = False
    if not down:
        _make(report, "migrations", _migrations)
        ready = not any(one.area == "migrations" for one in report.found)
    for name, check, needs in CHECKS:
        if needs == "database" and (down or not ready):
            report.skipped[name] = "the database is down" if down else "migrations are missing"
        else:
            _make(report, name, check)
    report.found.sort(key=lambda one: one.order)
    return report


def _make(report: Report, name: str, check: Check) -> None:
    report.checked.append(name)
    try:
        report.found += check()
    except Exception as error:
        report.found.append(
            Finding(
                Severity.WARNING, name, f"The check “{name}” could not be made",
                f"{type(error).__name__}: {error}"[:300],
                "See whether the other findings explain it; else report it as a fault of FlowML.",
            )
        )  # fmt: skip


def _database() -> Iterator[Finding]:
    try:
        health.database_answers()
    except Exception as error:
        why = str(error).strip().splitlines() or [type(error).__name__]
        ours = not embedded.is_given("DATABASE_URL")
        yield Finding(
            Severity.CRITICAL, "database", "The database does not answer", why[0][:300],
            "Start FlowML with `make up`; if it runs, see postgres.log."
            if ours and not _up_runs()
            else "Start PostgreSQL, and see that DATABASE_URL names it and the network lets it.",
            weight=1e9,
        )  # fmt: skip
        return
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('server_version_num')::int, current_setting('server_version'),"
            " current_setting('max_connections')::int,"
            " (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),"
            " extract(epoch FROM clock_timestamp()), pg_is_in_recovery()"
        )
        number, version, most, used, clock, replica = cursor.fetchone()
    if number < POSTGRES:
        yield Finding(
            Severity.WARNING, "versions", f"PostgreSQL {version} is too old",
            "FlowML is made for 14 and newer.", "Upgrade PostgreSQL.",
        )  # fmt: skip
    if used > 0.9 * most:
        yield Finding(
            Severity.WARNING, "database", "The database is nearly out of connections",
            f"{used} of {most} are used.",
            "Raise max_connections, or run fewer web and control processes.",
        )  # fmt: skip
    if replica:
        yield Finding(
            Severity.CRITICAL, "database", "The database is a read-only replica",
            "Nothing can be written.", "Let DATABASE_URL name the primary.",
        )  # fmt: skip
    yield from _clock("PostgreSQL", float(clock))


def _clock(what: str, theirs: float) -> Iterator[Finding]:
    ahead = theirs - time.time()
    if abs(ahead) > SKEW_S:
        yield Finding(
            Severity.WARNING, "clocks", f"The clocks of {what} and of this machine differ",
            f"By {abs(ahead):.0f} s.", "Set up NTP (chrony or systemd-timesyncd) on both.",
        )  # fmt: skip


def _migrations() -> Iterator[Finding]:
    executor = MigrationExecutor(connection)
    loader = executor.loader
    missing = [m for m, _ in executor.migration_plan(loader.graph.leaf_nodes())]
    if missing:
        names = ", ".join(f"{m.app_label}.{m.name}" for m in missing[:3])
        yield Finding(
            Severity.CRITICAL, "migrations", f"{some(len(missing), 'migration')} not applied",
            f"{names}{' …' if len(missing) > 3 else ''}.",
            "Run `manage.py migrate`; `make up` does it at its start.",
        )  # fmt: skip
    ours = {config.label for config in apps.get_app_configs()}
    unknown = [
        f"{app}.{name}"
        for app, name in loader.applied_migrations
        if app in ours and (app, name) not in (loader.disk_migrations or {})
    ]
    if unknown:
        yield Finding(
            Severity.WARNING, "versions", "The database is newer than this code",
            f"It has {', '.join(sorted(unknown)[:3])}.",
            "Run the version of FlowML that made it, or a newer one.",
        )  # fmt: skip


def _packages() -> Iterator[Finding]:
    locked = settings.BASE_DIR / "requirements" / "web.txt"
    if not locked.is_file():
        return
    wrong = []
    for name, wanted in _PIN.findall(locked.read_text(encoding="utf-8")):
        try:
            has = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            has = "not installed"
        if has != wanted:
            wrong.append(f"{name} {wanted} ({has})")
    if wrong:
        yield Finding(
            Severity.WARNING, "versions", "Installed packages differ from requirements/web.txt",
            f"{', '.join(wrong[:5])}{' …' if len(wrong) > 5 else ''}.", "Run `make venvs`.",
        )  # fmt: skip


def _broker() -> Iterator[Finding]:
    trouble = figures.broker_trouble()
    if trouble:
        yield Finding(
            Severity.CRITICAL, "broker", "The broker can't be used", trouble,
            "Start FlowML with `make up`; if it runs, see valkey.log."
            if not embedded.is_given("REDIS_URL") and not _up_runs()
            else "Start Valkey (or Redis) at REDIS_URL again, and look at its disk.",
            weight=1e8,
        )  # fmt: skip
        return
    with redis.Redis.from_url(settings.REDIS_URL, socket_timeout=3) as broker:
        info: dict[str, Any] = broker.info()  # type: ignore[assignment]
        seconds, _ = broker.time()  # type: ignore[misc]
        backlog = int(broker.llen(settings.CELERY_TASK_DEFAULT_QUEUE))  # type: ignore[arg-type]
        waits_long = int(broker.llen(exports.QUEUE))  # type: ignore[arg-type]
    version = str(info.get("valkey_version") or info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) < VALKEY:
        yield Finding(
            Severity.WARNING, "versions", f"Valkey or Redis {version} is too old",
            "FlowML is made for 6.2 and newer.", "Upgrade it.",
        )  # fmt: skip
    if info.get("maxmemory_policy", "noeviction") != "noeviction":
        yield Finding(
            Severity.WARNING, "broker", "The broker may throw messages away",
            f"Its maxmemory-policy is {info['maxmemory_policy']}.", "Set it to noeviction.",
        )  # fmt: skip
    most, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    if most and used > 0.9 * most:
        yield Finding(
            Severity.WARNING, "broker", "The broker's memory is nearly full",
            f"{size(used)} of {size(most)}.", "Raise its maxmemory.",
        )  # fmt: skip
    if backlog > BACKLOG:
        yield Finding(
            Severity.WARNING, "control", "Control does not keep up",
            f"{backlog:,} messages wait for it.",
            "See that control runs (control.log); raise CONTROL_PROCESSES.", weight=backlog,
        )  # fmt: skip
    if waits_long > LONG_BACKLOG:
        yield Finding(
            Severity.WARNING, "control", "Nobody makes exports and deletes organizations",
            f"{waits_long:,} messages wait for control-long, one a minute.",
            "See that it runs (control-long.log), and with what it is busy.", weight=waits_long,
        )  # fmt: skip
    yield from _clock("the broker", float(seconds))


def _storage() -> Iterator[Finding]:
    name = f"doctor/{os.getpid()}"
    try:
        stored = default_storage.save(name, BytesIO(b"x"))
        default_storage.delete(stored)
        if isinstance(default_storage, FileSystemStorage):
            with contextlib.suppress(OSError):
                (Path(default_storage.location) / "doctor").rmdir()
    except Exception as error:
        yield Finding(
            Severity.CRITICAL, "storage", "The storage can't be written",
            f"{type(error).__name__}: {error}"[:300],
            "Look at the disk, its mount and the rights of its folder: uploads and results are "
            "refused meanwhile.", weight=1e6,
        )  # fmt: skip


def _disk() -> Iterator[Finding]:
    seen = set()
    for folder in (settings.FLOWML_VAR, settings.FILE_UPLOAD_TEMP_DIR):
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            yield Finding(
                Severity.CRITICAL, "disk", f"{folder} can't be written",
                "It is missing, or belongs to somebody else.",
                "Make it, or give it to the user that FlowML runs as.",
            )  # fmt: skip
            continue
        usage, device = shutil.disk_usage(folder), folder.stat().st_dev
        if device not in seen and (usage.free < 2 * 2**30 or usage.free < 0.05 * usage.total):
            yield Finding(
                Severity.WARNING, "disk", f"The disk of {folder} is nearly full",
                f"{size(usage.free)} of {size(usage.total)} free.",
                "Make room: PostgreSQL stops when it is full. Old logs are in logs/.",
            )  # fmt: skip
        seen.add(device)


def _fleet() -> Iterator[Finding]:
    """What the dashboard says too; the broker has its own check here."""
    yield from (one for one in findings(figures.look()) if one.area != "broker")


def _leases() -> Iterator[Finding]:
    late = timezone.now() - timedelta(seconds=60)
    held = Task.objects.filter(state=Task.State.RUNNING)
    overdue = held.filter(lease_expires_at__lt=late).count()
    if overdue:
        yield Finding(
            Severity.CRITICAL, "leases", f"{some(overdue, 'lease')} ran out and not taken back",
            "Their tasks look as if they still ran.",
            "Control's sweep does that: see that control and beat run.", weight=overdue,
        )  # fmt: skip
    of_tasks = Allocation.objects.filter(task__isnull=False)  # the others are deployments
    stale = of_tasks.exclude(task__state=Task.State.RUNNING).count()
    if stale:
        yield Finding(
            Severity.WARNING, "leases", f"{some(stale, 'allocation')} of tasks that do not run",
            "Room on nodes is counted as taken and is not.",
            "Delete them: `manage.py shell -c \"from workers.models import Allocation; "
            "Allocation.objects.filter(task__isnull=False).exclude(task__state='running')"
            ".delete()\"`, and report it.",
            weight=stale,
        )  # fmt: skip


def _schedule() -> Iterator[Finding]:
    wanted = settings.CELERY_BEAT_SCHEDULE
    off = set(PeriodicTask.objects.filter(enabled=False).values_list("name", flat=True))
    for name in sorted(off & set(wanted)):
        yield Finding(
            Severity.CRITICAL if name == "workers-sweep" else Severity.WARNING,
            "control", f"The schedule “{name}” is switched off", "FlowML counts on it.",
            "Enable it in the console: Periodic tasks.",
        )  # fmt: skip


def _artifacts() -> Iterator[Finding]:
    """Rows without files, and files without rows."""
    if not isinstance(default_storage, FileSystemStorage):
        return
    root = Path(default_storage.location)
    begun = time.time()
    names = set(Artifact.objects.values_list("file", flat=True)[:MOST_FILES])
    strays, stray_bytes, on_disk = [], 0, set()
    for folder, _, files in os.walk(root):
        for file in files:
            path = Path(folder) / file
            name = path.relative_to(root).as_posix()
            on_disk.add(name)
            if name not in names:
                with contextlib.suppress(OSError):
                    known = path.stat()
                    if known.st_mtime < begun - YOUNG_S:
                        strays.append(name)
                        stray_bytes += known.st_size
    # Twice: what was deleted, or stored, while we looked is neither.
    missing = [
        artifact
        for artifact in Artifact.objects.filter(file__in=names - on_disk).only("name", "file")
        if not (root / str(artifact.file.name)).exists()
    ]
    if missing:
        told = ", ".join(f"{one.name} ({one.pk})" for one in missing[:3])
        yield Finding(
            Severity.CRITICAL, "artifacts", f"{some(len(missing), 'stored file')} missing",
            f"{told}{' …' if len(missing) > 3 else ''}: what needs them fails.",
            "Restore them from a backup of the storage, or delete the models and data sets that "
            "they belong to.", "admin:workers_artifact_changelist", weight=len(missing),
        )  # fmt: skip
    if len(names) < MOST_FILES and strays:
        yield Finding(
            Severity.NOTE, "artifacts", f"{some(len(strays), 'file')} without a row",
            f"{size(stray_bytes)} in {root}: {', '.join(sorted(strays)[:3])}"
            f"{' …' if len(strays) > 3 else ''}.",
            "Uploads that were cut off leave such files. Delete those that are older than a day.",
            weight=len(strays),
        )  # fmt: skip


def _up_runs() -> bool:
    """Whether ``manage.py up`` runs for our folder: it holds a lock."""
    try:
        with (settings.FLOWML_VAR / "run" / "up.lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _processes() -> Iterator[Finding]:
    """Processes of this installation that nobody watches any more."""
    ours = {one.pid: one for one in platform.of_installation(settings.FLOWML_VAR)}
    ours.pop(os.getpid(), None)
    if _up_runs():
        known = platform.read_state(settings.FLOWML_VAR)
        with contextlib.suppress(psutil.Error):
            up = psutil.Process(int(known.get("pid", -1)))
            for child in up.children(recursive=True):
                ours.pop(child.pid, None)
            left = [one for one in ours.values() if one.is_alive]
            yield from _orphans([one.pid for one in left])
    else:
        yield from _orphans([pid for pid, one in ours.items() if one.is_alive])


def _orphans(pids: list[int]) -> Iterator[Finding]:
    if pids:
        yield Finding(
            Severity.WARNING, "processes", f"{some(len(pids), 'process')} left behind",
            f"Nobody watches {', '.join(map(str, sorted(pids)[:8]))}; they take memory and may "
            "hold files.",
            "Start FlowML again (`make up` ends them first), or end them with `kill`.",
            weight=len(pids),
        )  # fmt: skip


def _settings() -> Iterator[Finding]:
    def unsafe(title: str, detail: str, remedy: str, bad: bool = True) -> Finding:
        severity = Severity.CRITICAL if bad else Severity.WARNING
        return Finding(severity, "settings", title, detail, remedy)

    public = settings.HOST not in LOCAL or settings.PUBLIC_URL.startswith("https://")
    if settings.DEBUG:
        yield Finding(
            Severity.CRITICAL if public else Severity.WARNING, "settings", "DEBUG is on",
            "Error pages show source and settings.", "Unset DEBUG.",
        )  # fmt: skip
    if len(settings.SECRET_KEY) < 40 or settings.SECRET_KEY.startswith("insecure-"):
        yield unsafe(
            "SECRET_KEY is weak", "Whoever guesses it signs in as anybody.",
            "Set it to 50 random characters.",
        )  # fmt: skip
    if public and not settings.PUBLIC_URL.startswith("https://"):
        yield unsafe(
            "People come without TLS",
            f"HOST is {settings.HOST} and PUBLIC_URL {settings.PUBLIC_URL}: passwords pass in "
            "the clear.", "Put a proxy with TLS in front and set PUBLIC_URL to its https address.",
            bad=False,
        )  # fmt: skip
    if "*" in settings.ALLOWED_HOSTS:
        yield unsafe(
            "ALLOWED_HOSTS is *", "Links in mails may be made to lead elsewhere.",
            "Name the host names that people use.", bad=False,
        )  # fmt: skip
    if {"0.0.0.0/0", "::/0"} & set(settings.TRUSTED_PROXIES):
        yield unsafe(
            "Everybody is a trusted proxy", "Anybody may forge the address that limits count by.",
            "Name the proxy's own address in TRUSTED_PROXIES.", bad=False,
        )  # fmt: skip
    if not settings.SIGNING_KEY:
        yield Finding(
            Severity.NOTE, "settings", "FLOWML_SIGNING_KEY is not set",
            "Models are signed with a key made of SECRET_KEY: it can't be changed without them.",
            "Set it before the first model that you want to keep.",
        )  # fmt: skip


def _operators() -> Iterator[Finding]:
    if not User.objects.filter(is_active=True, is_superuser=True).exists():
        yield Finding(
            Severity.WARNING, "accounts", "Nobody is an operator",
            "No active account may open the console and do everything there.",
            "`manage.py createsuperuser`, or open the first page of a new installation.",
        )  # fmt: skip


def _deployment() -> Iterator[Finding]:
    """Django's own checks, those for production and of the database among them."""
    for message in checks.run_checks(include_deployment_checks=True, databases=["default"]):
        # Over plain http on one's own machine, cookies and redirects can't be as these want.
        if message.level < checks.WARNING or _only_for_tls(message):
            continue
        yield Finding(
            Severity.CRITICAL if message.is_serious() else Severity.WARNING, "settings",
            str(message.msg).split("\n", 1)[0][:200], str(message.id or ""),
            str(message.hint or "See the documentation of that check."),
        )  # fmt: skip


def _only_for_tls(message: checks.CheckMessage) -> bool:
    own = {f"security.W{number:03}" for number in (4, 8, 10, 11, 12, 16, 18)}
    return message.id in own and not settings.PUBLIC_URL.startswith("https://")


CHECKS: list[tuple[str, Check, str]] = [
    ("broker", _broker, ""),
    ("storage", _storage, ""),
    ("disk", _disk, ""),
    ("processes", _processes, ""),
    ("packages", _packages, ""),
    ("settings", _settings, ""),
    ("deployment", _deployment, "database"),
    ("fleet", _fleet, "database"),
    ("leases", _leases, "database"),
    ("schedule", _schedule, "database"),
    ("operators", _operators, "database"),
    ("artifacts", _artifacts, "database"),
]


def as_json(report: Report) -> dict[str, Any]:
    """The report for machines: its shape is in docs/operating.md."""
    return {
        "version": settings.VERSION,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "ok": report.well,
        "checked": report.checked,
        "skipped": report.skipped,
        "findings": [
            {
                "severity": one.severity.word,
                "area": one.area,
                "title": one.title,
                "detail": one.detail,
                "remedy": one.remedy,
            }
            for one in report.found
        ],
    }
