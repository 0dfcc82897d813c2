"""GET /metrics: who may look, what is counted, and that nothing tells one tenant from another."""

import glob
import os
import subprocess
import sys
from datetime import timedelta

import pytest
from django.db import OperationalError
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families

from flowml_site import metrics
from flowml_site.platform import NOT_FOR_NODES
from tests.factories import (
    MembershipFactory,
    OrganizationFactory,
    UserFactory,
    WorkerFactory,
    make_task,
)
from tests.training import make
from workers import actions
from workers.models import Pulse, Task

pytestmark = pytest.mark.django_db
TOKEN = "a-token-for-prometheus"


@pytest.fixture
def scrape(client, settings):
    settings.METRICS_TOKEN = TOKEN

    def read():
        answer = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 200, answer.content
        families = text_string_to_metric_families(answer.content.decode())
        return {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    return read


def test_it_is_closed_to_all_but_operators_and_the_token(client, settings):
    def ask(token=None):
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        return client.get("/metrics", headers=headers).status_code

    settings.METRICS_TOKEN = TOKEN
    assert (ask(), ask("wrong"), ask(""), ask(TOKEN)) == (401, 401, 401, 200)
    settings.METRICS_TOKEN = ""
    assert (ask(), ask(""), ask(TOKEN)) == (401, 401, 401)
    client.force_login(MembershipFactory().user)
    assert ask() == 403
    client.force_login(UserFactory(is_staff=True))
    assert ask() == 200
    assert client.post("/metrics").status_code == 405


def test_requests_are_counted_under_their_route_and_never_their_address(client, scrape):
    member = MembershipFactory()
    client.force_login(member.user)
    secret = make.version(member).dataset_id
    page = client.get(f"/data/{secret}")
    route = page.resolver_match.route
    key = ("flowml_http_requests_total", ("method", "GET"), ("route", f"/{route}"))
    before = scrape()[(*key, ("status", "200"))]
    client.get(f"/data/{secret}")
    client.get("/not-here/of-somebody@example.org")
    after = scrape()
    assert after[(*key, ("status", "200"))] == before + 1
    assert any(("route", "unmatched") in name for name in after)
    told = " ".join(str(name) for name in after)
    assert str(secret) not in told
    assert "somebody" not in told
    timed = ("flowml_http_request_seconds_count", ("method", "GET"), ("route", f"/{route}"))
    assert after[timed] >= 2


def test_an_odd_method_makes_no_label_of_its_own(client, scrape):
    client.generic("BREW", "/health/live")
    names = str(list(scrape()))
    assert "BREW" not in names
    assert "'other'" in names


def test_queues_tasks_nodes_and_the_sweep_are_told(scrape):
    WorkerFactory(draining=True, capabilities={"gpus": [{"memory_mib": 1}] * 2})
    task = make_task(engine="rare")
    Task.objects.filter(pk=task.pk).update(queued_at=timezone.now() - timedelta(hours=1))
    Pulse.objects.create(pk=1, swept_at=timezone.now() - timedelta(minutes=2))
    seen = scrape()
    assert seen["flowml_queue_depth", ("queue", "rare.cpu")] == 1
    assert seen["flowml_queue_unserved", ("queue", "rare.cpu")] == 1
    assert seen["flowml_queue_oldest_wait_seconds", ("queue", "rare.cpu")] == pytest.approx(
        3600, 0.1
    )
    assert seen["flowml_tasks", ("state", "queued")] == 1
    assert seen["flowml_nodes", ("state", "draining")] == 1
    assert seen["flowml_gpus", ("use", "idle")] == 2
    assert seen["flowml_sweep_age_seconds",] == pytest.approx(120, abs=30)
    assert seen["flowml_database_up",] == 1


def test_claims_and_moves_are_counted(scrape):
    claimed = ("flowml_claim_seconds_count", ("result", "task"))
    empty = ("flowml_claim_seconds_count", ("result", "empty"))
    moved = (
        "flowml_task_moves_total",
        ("fault", ""),
        ("kind", "training.train"),
        ("to", "running"),
    )
    before = scrape()
    make_task()
    node = make.Node()
    node.claim()
    assert actions.claim(node.worker, make.ROOM) is None
    after = scrape()
    for key in (claimed, empty, moved):
        assert after[key] == before.get(key, 0) + 1, key


def test_no_organization_is_named(scrape):
    organization = OrganizationFactory(name="Very Secret Ltd")
    make_task(organization)
    told = str(scrape())
    assert "Very Secret" not in told
    assert str(organization.pk) not in told


def test_counts_of_other_processes_are_added(scrape, tmp_path):
    """Web and control are several processes: one answers for all."""
    key = ("flowml_task_moves_total", ("fault", ""), ("kind", "elsewhere"), ("to", "lost"))
    code = (
        "from workers import metrics\n"
        "metrics.MOVES.labels('elsewhere', 'lost', '').inc(3)\n"
        "metrics.SOCKETS.labels('live').inc(2)\n"
        "import os; print(os.getpid())"
    )
    pids = [
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True,
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": os.environ["PROMETHEUS_MULTIPROC_DIR"]},
        ).stdout.strip()
        for _ in range(2)
    ]  # fmt: skip
    seen = scrape()
    assert seen[key] == 6
    assert seen["flowml_live_connections", ("socket", "live")] >= 4
    for pid in pids:
        for file in glob.glob(f"{os.environ['PROMETHEUS_MULTIPROC_DIR']}/gauge_live*_{pid}.db"):
            os.unlink(file)


def test_without_the_database_it_says_so_and_tells_the_rest(scrape, monkeypatch):
    def gone(now):
        raise OperationalError("gone")

    monkeypatch.setattr(metrics.figures, "queues", gone)
    seen = scrape()
    assert seen["flowml_database_up",] == 0
    assert not any(name[0] == "flowml_nodes" for name in seen)


def test_the_token_is_kept_from_nodes():
    assert "METRICS_TOKEN" in NOT_FOR_NODES
