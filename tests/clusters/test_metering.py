"""Hours that deployments hold: entered while they run, each second once, and counted as quota."""

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from clusters import actions, cycle, metering
from clusters.models import Cluster, Deployment, Replica
from organizations import usage
from organizations.models import Organization, UsageEntry, UsageMonth
from organizations.quotas import QuotaReached
from tests.clusters import make
from tests.clusters.make import Node, deploy, settle
from workers.models import Worker

MOMENTS = st.timedeltas(timedelta(0), timedelta(days=3000)).map(
    lambda since: datetime(2024, 1, 1, tzinfo=UTC) + since
)
HOUR = timedelta(hours=1)


@given(MOMENTS, st.timedeltas(timedelta(0), timedelta(days=70)))
def test_a_time_is_cut_at_each_midnight_and_nowhere_else(since, long):
    parts = list(usage.days_of(since, since + long))
    assert sum((until - start for start, until in parts), timedelta(0)) == long
    assert len({start.date() for start, _ in parts}) == len(parts)
    for start, until in parts:
        assert (until - timedelta(microseconds=1)).date() == start.date()


# --- With a database -----------------------------------------------------------------------------


@pytest.fixture
def by(db):
    return make.member()


@pytest.fixture
def node(by):
    """A node of the platform's, in a cluster."""
    worker = make.node(by, gpus=2)
    Worker.objects.filter(pk=worker.pk).update(organization=None)
    worker.refresh_from_db()
    home = actions.make_cluster(by, name="main", nodes=[worker.pk], operator=True)
    assert home.nodes.count() == 1
    return Node(worker)


@pytest.fixture
def one(by, node):
    """A deployment whose two replicas hold 0.5 cores and a GPU each, as of now."""
    made = deploy(by, make.model(by), "one", replicas=2, gpus=1)
    settle(made.cluster, node)
    return made


def used(by):
    """CPU and GPU hours of all months."""
    cpu, gpu = 0.0, 0.0
    for month in UsageMonth.objects.of(by.organization):
        cpu, gpu = cpu + month.cpu_s / 3600, gpu + month.gpu_s / 3600
    entries = UsageEntry.objects.of(by.organization)
    assert sum(entry.cpu_s for entry in entries) == pytest.approx(cpu * 3600)
    return cpu, gpu


def began(one, at):
    Replica.objects.filter(deployment=one).update(metered_until=at)


def test_what_is_held_counts_while_it_runs_and_each_second_once(by, one):
    start = timezone.now()
    began(one, start)
    metering.meter_all(start + HOUR)
    assert used(by) == pytest.approx((1, 2))
    metering.meter_all(start + HOUR)
    metering.meter_all(start + 1.5 * HOUR)
    metering.meter_all(start + HOUR)  # a clock that is behind takes nothing back
    assert used(by) == pytest.approx((1.5, 3))
    days = {(start + hours * HOUR).date() for hours in (0, 1, 1.5)}
    assert UsageEntry.objects.count() == 2 * len(days)  # one a replica and day
    assert {entry.kind for entry in UsageEntry.objects.all()} == {"deployment"}


def test_a_process_that_dies_on_the_way_counts_nothing_twice_and_loses_nothing(
    by, one, monkeypatch
):
    start = timezone.now()
    began(one, start)
    with monkeypatch.context() as broken:
        note = usage.note_held
        broken.setattr(usage, "note_held", lambda held: (note(held), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            metering.meter_all(start + HOUR)
    assert used(by) == (0, 0)
    metering.meter_all(start + HOUR)
    assert used(by) == pytest.approx((1, 2))


def test_each_month_has_what_was_held_in_it(by, one):
    began(one, datetime(2026, 1, 31, 23, tzinfo=UTC))
    metering.meter_all(datetime(2026, 2, 1, 2, tzinfo=UTC))
    hours = {str(row.month): row.cpu_s / 3600 for row in UsageMonth.objects.all()}
    assert hours == pytest.approx({"2026-01-01": 1, "2026-02-01": 2})
    last = UsageEntry.objects.order_by("ended_at").first()
    assert last.ended_at.date().isoformat() == "2026-01-31"


@pytest.mark.parametrize("act", [actions.stop, actions.delete])
def test_the_rest_counts_when_it_ends(by, one, node, act):
    began(one, timezone.now() - HOUR)
    act(by, one)
    settle(one.cluster, node)
    assert not Replica.objects.filter(deployment=one, ended_at=None).exists()
    assert used(by) == pytest.approx((1, 2), rel=0.02)
    metering.meter_all()
    assert used(by) == pytest.approx((1, 2), rel=0.02)


def test_a_node_that_went_costs_nothing_since_it_was_metered(by, one, node):
    start = timezone.now()
    began(one, start - HOUR)
    metering.meter_all(start)
    began(one, start - HOUR)
    Worker.objects.filter(pk=node.worker.pk).update(last_seen_at=start - HOUR)
    cycle.run(one.cluster_id)
    assert Replica.objects.filter(deployment=one, fault="node").count() == 2
    metering.meter_all()
    assert used(by) == pytest.approx((1, 2))


def test_machines_of_ones_own_cost_nothing_and_hours_are_no_matter_there(by):
    node = Node(make.node(by))
    home = make.cluster(by, node.worker)
    model = make.model(by)
    Organization.objects.filter(pk=by.organization_id).update(max_cpu_hours=0)
    by.organization.refresh_from_db()
    one = deploy(by, model, "one")
    settle(home, node)
    began(one, timezone.now() - HOUR)
    metering.meter_all()
    actions.stop(by, one)
    settle(home, node)
    assert used(by) == (0, 0)
    actions.start(by, one)


def test_without_hours_what_runs_goes_on_and_nothing_more_comes(by, one, node):
    model = make.model(by)
    Organization.objects.filter(pk=by.organization_id).update(max_cpu_hours=1)
    by.organization.refresh_from_db()
    start = timezone.now()
    began(one, start - HOUR)
    month = usage.month_of(start)
    metering.meter_all(start)
    UsageMonth.objects.filter(month=month).update(cpu_s=3600)
    with pytest.raises(QuotaReached, match="CPU hours this month"):
        deploy(by, model, "two", cluster=one.cluster_id)
    with pytest.raises(QuotaReached):
        actions.change(by, one, replicas=3)
    actions.change(by, one, env={"A": "1"})
    settle(one.cluster, node)
    assert make.where(one)
    actions.change(by, one, replicas=1)
    actions.stop(by, one)
    with pytest.raises(QuotaReached):
        actions.start(by, one)
    Organization.objects.filter(pk=by.organization_id).update(max_cpu_hours=9, max_gpu_hours=0)
    with pytest.raises(QuotaReached, match="GPU hours"):
        actions.start(by, one)
    assert Deployment.objects.get(pk=one.pk).is_started is False
    assert Cluster.objects.count() == 1


def test_the_usage_page_tells_hours_though_no_task_ran(by, one, client):
    began(one, timezone.now() - HOUR)
    metering.meter_all()
    client.force_login(by.user)
    shown = client.get("/organization?tab=usage").content.decode()
    assert "Nothing used yet" not in shown
    told = client.get(f"/api/organizations/{by.organization_id}/usage").json()
    assert sum(day["cpu_hours"] for day in told["days"]) == pytest.approx(1, rel=0.02)
    assert sum(day["tasks"] for day in told["days"]) == 0
