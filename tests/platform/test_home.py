"""The first page says what needs attention, and only to whom it belongs."""

from datetime import timedelta

import pytest
from django.core.cache import caches
from django.utils import timezone

from clusters import cycle
from clusters.models import Deployment
from organizations.models import Role
from tests.clusters import make
from tests.clusters.make import Node, deploy, settle
from tests.factories import MembershipFactory
from tests.pipelines import make as piping
from workers.models import Artifact

pytestmark = pytest.mark.django_db
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def nothing_kept():
    caches["process"].clear()


@pytest.fixture
def by(client):
    member = make.member()
    client.force_login(member.user)
    return member


def home(client) -> str:
    answer = client.get("/")
    assert answer.status_code == 200
    return answer.content.decode()


def test_a_deployment_that_waits_for_room_is_named_with_the_reason(client, by):
    node = Node(make.node(by, ram_gb=8))
    cluster = make.cluster(by, node.worker)
    model = make.model(by)
    deploy(by, model, "first", ram_gb=4)
    settle(cluster, node)
    assert "Needs attention" not in home(client)
    deploy(by, model, "second", ram_gb=6)
    cycle.run(cluster.pk)
    assert "Needs attention" not in home(client), "it has waited for a moment only"
    Deployment.objects.filter(name="second").update(waiting_since=timezone.now() - HOUR)
    shown = home(client)
    assert "Needs attention" in shown
    assert ">second<" in shown
    assert ">first<" not in shown
    assert "of memory" in shown


def test_what_crashes_comes_before_what_waits(client, by):
    node = Node(make.node(by, ram_gb=8))
    make.cluster(by, node.worker)
    for name in ("waits", "crashes"):
        deploy(by, make.model(by), name)
    waiting = {"waiting_since": timezone.now() - HOUR, "wait": {"code": "room"}}
    Deployment.objects.filter(name="waits").update(**waiting)
    Deployment.objects.filter(name="crashes").update(state="failed", failures=3, error="It broke.")
    shown = home(client)
    assert 0 < shown.index(">crashes<") < shown.index(">waits<")
    assert "It broke." in shown


def test_a_quota_that_is_nearly_used_up_is_named(client, by, settings):
    settings.MAX_STORAGE_BYTES = None
    by.organization.max_storage_bytes = 1000
    by.organization.save()
    Artifact.objects.create(organization=by.organization, name="a", size=850)
    assert "Needs attention" not in home(client)
    Artifact.objects.create(organization=by.organization, name="b", size=100)
    assert "Needs attention" not in home(client), "sums over tables are kept for a minute"
    caches["process"].clear()
    shown = home(client)
    assert "95% of the quota is used" in shown
    assert "/organization?tab=usage" in shown


def test_a_pipeline_is_named_until_a_newer_run_goes_well(client, by):
    home_of = piping.pipeline(by, piping.TRAINS)
    failed = piping.run_of(home_of, "failed")
    piping.run_of(home_of, "cancelled")
    assert f'href="/pipelines/runs/{failed.pk}"' in home(client)
    piping.run_of(home_of, "running")
    assert "Needs attention" not in home(client)


def test_nobody_sees_what_is_wrong_elsewhere(client, by):
    node = Node(make.node(by, ram_gb=8))
    make.cluster(by, node.worker)
    deploy(by, make.model(by), "ours")
    Deployment.objects.update(state="failed", failures=1, error="It broke.")
    assert "It broke." in home(client)
    client.force_login(MembershipFactory(role=Role.ADMIN).user)
    assert "It broke." not in home(client)


def test_what_needs_attention_costs_two_queries(client, by, django_assert_num_queries):
    node = Node(make.node(by, ram_gb=8))
    make.cluster(by, node.worker)
    model = make.model(by)
    for number in range(4):
        deploy(by, model, f"d{number}", ram_gb=1)
    Deployment.objects.update(state="failed", failures=1, error="It broke.")
    home(client)
    with django_assert_num_queries(8):
        assert home(client).count("It broke.") == 4
