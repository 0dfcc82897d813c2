"""What a cluster had, what was taken and what was free is kept for a week, and told in steps."""

from datetime import UTC, datetime, timedelta

import pytest

from clusters import actions, history
from clusters.models import ClusterLoad
from tests.clusters import make
from tests.clusters.make import Node, deploy, settle
from tests.clusters.test_api import Api
from workers.models import Worker

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def by(db):
    return make.member()


def test_steps_tell_the_most_that_was_taken_the_least_that_was_free_and_who_was_away(by):
    node, other = Node(make.node(by, ram_gb=8)), Node(make.node(by, ram_gb=2))
    home = make.cluster(by, node.worker, other.worker)
    history.note(NOON)
    one = deploy(by, make.model(by), "one", ram_gb=3)
    settle(home, node, other)
    history.note(NOON + 5 * MINUTE)
    history.note(NOON + 6 * MINUTE)  # again, or by two at once: noted once
    Worker.objects.filter(pk=other.worker.pk).update(last_seen_at=NOON)
    actions.stop(by, one)
    settle(home, node)
    history.note(NOON + 10 * MINUTE)
    assert ClusterLoad.objects.count() == 3
    history.note(NOON + 50 * MINUTE)
    first, gap, _, last = history.steps(home, 24, NOON + 55 * MINUTE)
    assert first.at == NOON
    assert (first.total.ram_mib, first.allocated.ram_mib) == (10 * 1024, 3 * 1024)
    assert first.free.ram_mib == 7 * 1024
    assert (first.nodes, first.online) == (2, 1)
    assert gap.total is None  # nobody looked: nothing is made up
    assert last.allocated.ram_mib == 0
    [week] = history.steps(home, 168, NOON + 55 * MINUTE)
    assert week.allocated == first.allocated


def test_a_week_is_kept_and_no_more(by):
    home = make.cluster(by, make.node(by))
    for day in range(12):
        history.note(NOON + timedelta(days=day))
    now = NOON + timedelta(days=11)
    assert ClusterLoad.objects.count() == 8
    assert len(history.steps(home, 168, now)) == 6 * 12 + 1
    assert len(history.steps(home, 24, now)) == 1


def test_programs_and_pages_get_it(by, client):
    api = Api(by)
    client.force_login(by.user)
    home = make.cluster(by, make.node(by, ram_gb=8, gpus=1))
    path = f"/clusters/{home.pk}/history"
    assert "Nothing was noted yet" in client.get(path).content.decode()
    history.note()
    told = api("get", f"clusters/{home.pk}/history?hours=168")
    assert told["step_s"] == 7200
    free = {"ram_gb": 8, "cpu_cores": 4, "gpu_count": 1}
    assert [step["free"] for step in told["steps"]] == [free]
    assert "hours" in api("get", f"clusters/{home.pk}/history?hours=3", None, 400)["errors"]
    [step] = api("get", f"clusters/{home.pk}")["history"]
    assert (step["total"], step["allocated"]["ram_gb"], step["online"]) == (free, 0, 1)
    shown = client.get(path).content.decode()
    assert shown.count('data-chart="steps"') == 3
    assert "8 GB of memory, 4 CPU cores and 1 GPU" in shown  # the table says the same
    assert "1 of 1" in shown
    assert path in client.get(f"/clusters/{home.pk}").content.decode()
