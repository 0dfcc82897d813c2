"""That what is asked all the time stays cheap when there is much: by the plans of PostgreSQL."""

import json
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import connection
from django.db.models import Model
from django.utils import timezone

from tests.factories import OrganizationFactory, WorkerFactory, make_task
from workers import actions, beats, claiming
from workers.fairshare import Room
from workers.models import Task, Turn

pytestmark = pytest.mark.django_db
ROOM = Room(slots=1, light_slots=1, cpu_millis=4000, ram_mib=8192)


def rows_read(sql: str, params: Any, of: type[Model] = Task) -> int:
    """How many rows the statement's scans of a table looked at."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT json) {sql}", params)
        (answer,) = cursor.fetchone()
    read = 0
    left = [(answer if isinstance(answer, list) else json.loads(answer))[0]["Plan"]]
    while left:
        node = left.pop()
        left += node.get("Plans", [])
        if node.get("Relation Name") == of._meta.db_table:
            removed = node.get("Rows Removed by Filter", 0)
            read += round((node["Actual Rows"] + removed) * node["Actual Loops"])
    return read


@pytest.fixture
def many():
    """Fifteen hundred that wait on one queue, and as many that have ended."""
    first, at = make_task(OrganizationFactory(), engine=""), timezone.now()
    plain = {
        field.attname: getattr(first, field.attname)
        for field in Task._meta.concrete_fields
        if not field.primary_key
    }
    ended = plain | {"state": "succeeded", "started_at": at, "finished_at": at, "handled_at": at}
    Task.objects.bulk_create(Task(**fields) for fields in [plain] * 1500 + [ended] * 1500)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE workers_task")


@pytest.mark.parametrize("mine", [True, False], ids=["a node of its own", "the platform's"])
def test_a_heartbeat_learns_that_nothing_waits_without_reading_what_does(many, mine):
    asked = {
        "queues": ["cpu" if mine else "gpu"],
        "organizations": [OrganizationFactory().pk if mine else None],
    }
    assert rows_read(beats._WAITING, asked) <= 2


def test_a_claim_reads_each_line_once_even_after_a_quiet_night(monkeypatch):
    """The planner then takes the table of lines for empty, and would join it row by row."""
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE workers_turn")
    full, subject, asked = OrganizationFactory(max_concurrent_jobs=1), uuid4(), []
    for _ in range(3):
        make_task(full, subject=subject)
    for organization in OrganizationFactory.create_batch(40):
        make_task(organization)
    assert actions.claim(WorkerFactory(), ROOM).organization == full
    query = claiming._query
    monkeypatch.setattr(
        claiming,
        "_query",
        lambda sql, **values: asked.append((sql, values)) or query(sql, **values),
    )
    assert actions.claim(WorkerFactory(), ROOM) is not None
    reads = [sql for sql, _ in asked if "workers_turn" in sql and "INSERT" not in sql]
    heads = {sql: values for sql, values in asked if sql in reads}
    assert set(heads) == {claiming._HEADS, claiming._GOING_ON}
    for sql, values in heads.items():
        assert rows_read(sql, values, Turn) <= Turn.objects.count()
    assert rows_read(claiming._HEADS, heads[claiming._HEADS]) <= claiming.PREFIX + 1


def test_the_sweep_reads_what_runs_alone(many):
    make_task(engine="torch")
    assert actions.claim(WorkerFactory(queues=["torch.cpu"]), ROOM) is not None
    overdue = Task.objects.filter(state=Task.State.RUNNING, lease_expires_at__lt=timezone.now())
    assert rows_read(*overdue.query.sql_with_params()) <= 1


def test_recent_durations_are_read_in_their_order(many):
    ended = Task.objects.filter(
        queue="cpu", kind="training.train", state="succeeded", started_at__isnull=False
    )
    assert rows_read(*ended.order_by("-finished_at")[:20].query.sql_with_params()) <= 20
    lately = Task.objects.filter(finished_at__gte=timezone.now() + timedelta(hours=1))
    assert rows_read(*lately.query.sql_with_params()) == 0


def test_heartbeats_write_no_indexed_column():
    """So that PostgreSQL can update rows in place ("heap-only"), without touching an index."""
    written = {"lease_expires_at", "last_seen_at", "usage"}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT indexname, indexdef FROM pg_indexes"
            " WHERE tablename IN ('workers_task', 'workers_worker')"
        )
        indexes = cursor.fetchall()
    assert indexes
    for name, definition in indexes:
        assert not any(column in definition for column in written), name
