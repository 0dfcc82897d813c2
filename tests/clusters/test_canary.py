"""Another model beside the one that runs: its share, its promotion, its end, and its crashes."""

import time
from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction
from django.test import Client
from django.utils import timezone

from clusters import actions, cycle, serving, watch
from clusters.models import Deployment, Replica
from organizations.models import AuditEntry
from tests.clusters import make
from tests.clusters.make import Node, deploy, settle, state
from tests.clusters.test_api import ROW, Api
from tests.training.make import FakeServing
from training import serving as models
from workers.models import Allocation

pytestmark = pytest.mark.django_db


@pytest.fixture
def by():
    return make.member()


@pytest.fixture
def api(by):
    return Api(by)


@pytest.fixture
def site(by, tmp_path):
    """A deployment of two replicas that answer, with room for more, and another model."""
    fake = FakeServing(tmp_path)
    node = Node(make.node(by, ram_gb=8, address=fake.address))
    home = make.cluster(by, node.worker)
    one = deploy(by, make.model(by), "flowers", replicas=2)
    settle(home, node)
    yield one, node, home, make.model(by)
    fake.stop()
    serving._places.clear()
    models._models.clear()
    models._pool = models._Pool()


def there(one):
    """The replicas that answer, by revision."""
    found: dict[int, list] = {}
    rows = Replica.objects.filter(deployment=one, state="running").order_by("number")
    for number, pk in rows.values_list("revision__number", "pk"):
        found.setdefault(number, []).append(pk)
    return found


def begin(api, one, other, percent=50):
    serving._places.clear()
    return api("patch", f"deployments/{one.pk}", {"canary": {"model": str(other.pk),
                                                             "percent": percent}})  # fmt: skip


def test_a_canary_answers_its_share_and_the_others_the_rest(api, site, monkeypatch):
    one, node, home, other = site
    before = there(one)
    told = begin(api, one, other, percent=30)["canary"]
    assert (told["revision"], told["percent"], told["ready"], told["replicas"]) == (2, 30, 0, 1)
    path = f"deployments/{one.pk}/predict"
    assert api("post", path, {"rows": [ROW]})["revision"] == 1  # it is not there yet
    settle(home, node)
    assert there(one)[1] == before[1]
    assert len(there(one)[2]) == 1
    shown = api("get", f"deployments/{one.pk}")
    assert (shown["revision"], shown["ready"], shown["canary"]["ready"]) == (1, 2, 1)
    assert cycle.run(home.pk) == cycle.run(home.pk)
    assert not cycle.run(home.pk).placements
    serving._places.clear()
    draws = iter([0.0, 0.29, 0.31, 0.99])
    monkeypatch.setattr(serving.random, "random", lambda: next(draws))
    answers = [api("post", path, {"rows": [ROW]}) for _ in range(4)]
    assert [answer["revision"] for answer in answers] == [2, 2, 1, 1]
    assert {answer["model"] for answer in answers[:2]} == {str(other.pk)}
    # All of the requests, once the others are gone: nobody is turned away.
    Replica.objects.filter(pk__in=before[1]).update(state="stopping")
    serving._places.clear()
    assert api("post", path, {"rows": [ROW]})["revision"] == 2


def test_promoted_it_stays_and_the_old_ones_go_as_it_has_enough(api, site):
    one, node, home, other = site
    begin(api, one, other)
    settle(home, node)
    [canary] = there(one)[2]
    told = api("post", f"deployments/{one.pk}/promote", status=202)
    assert (told["revision"], told["canary"]) == (2, None)
    for _ in range(8):
        cycle.run(home.pk)
        assert Replica.objects.filter(deployment=one, state="running").count() >= 2
        node.beat()
        node.beat()
    cycle.run(home.pk)
    assert set(there(one)) == {2}
    assert canary in there(one)[2]
    assert len(there(one)[2]) == 2
    assert api("post", f"deployments/{one.pk}/promote", status=409)["code"] == "no-canary"
    verbs = AuditEntry.objects.values_list("verb", flat=True)
    assert "deployment.canary-promoted" in set(verbs)
    # Back to what it was before.
    api("post", f"deployments/{one.pk}/rollback", {}, 202)
    settle(home, node, rounds=8)
    assert set(there(one)) == {1}


def test_abandoned_it_goes_and_the_others_never_notice(api, site):
    one, node, home, other = site
    before = there(one)[1]
    begin(api, one, other, percent=100)
    settle(home, node)
    assert len(there(one)[2]) == 2
    changed = api("patch", f"deployments/{one.pk}", {"canary": {"percent": 10}})
    assert changed["canary"]["percent"] == 10
    settle(home, node)
    assert len(there(one)[2]) == 1
    told = api("post", f"deployments/{one.pk}/abandon", status=202)
    assert told["canary"] is None
    settle(home, node)
    assert there(one) == {1: before}
    assert Allocation.objects.filter(replica__deployment=one).count() == 2


def test_its_crashes_are_its_own(api, site):
    one, node, home, other = site
    begin(api, one, other)
    cycle.run(home.pk)
    node.broken = "It needs a library that is not there."
    node.beat()
    for key, said in node.said.items():  # the others go on
        if Replica.objects.get(pk=key).revision.number == 1:
            said["state"] = "running"
    node.beat()
    cycle.run(home.pk)
    told = api("get", f"deployments/{one.pk}")
    assert (told["state"], told["failures"], told["error"]) == ("running", 0, "")
    assert told["canary"]["failures"] == 1
    assert told["canary"]["error"] == node.broken
    placed = Replica.objects.filter(deployment=one, revision__number=2)
    assert placed.count() == 1
    cycle.run(home.pk)
    assert placed.count() == 1  # it is tried again after a while
    soon = (timezone.now() - timedelta(seconds=1)).isoformat()
    one.refresh_from_db()
    Deployment.objects.filter(pk=one.pk).update(canary_is={**one.canary_is, "not_before": soon})
    cycle.run(home.pk)
    assert placed.count() == 2
    assert api("post", f"deployments/{one.pk}/predict", {"rows": [ROW]})["revision"] == 1


def test_without_room_it_waits_and_says_so_once(api, by, site):
    one, node, home, other = site
    deploy(by, make.model(by), "large", ram_gb=6)
    settle(home, node)
    begin(api, one, other)
    settle(home, node)
    told = api("get", f"deployments/{one.pk}")
    assert "lacks 1 GB of memory" in told["canary"]["waits"]
    assert (told["waits"], state(one)) == (None, "running")
    events = api("get", f"deployments/{one.pk}/events")["results"]
    assert [event["type"] for event in events].count("deployment.waits") == 1


def test_with_the_deployment_it_stops_and_is_deleted(api, site):
    one, node, home, other = site
    begin(api, one, other)
    settle(home, node)
    api("post", f"deployments/{one.pk}/stop", status=202)
    settle(home, node)
    assert (there(one), state(one)) == ({}, "stopped")
    api("post", f"deployments/{one.pk}/start", status=202)
    settle(home, node)
    assert set(there(one)) == {1, 2}
    api("delete", f"deployments/{one.pk}", status=204)
    settle(home, node)
    assert not Deployment.objects.filter(pk=one.pk).exists()
    assert not Allocation.objects.filter(task=None).exists()


def test_what_can_not_be_tried_is_refused(api, site):
    one, _, _, other = site
    path = f"deployments/{one.pk}"
    current = str(one.revision.model_id)
    foreign = make.model(make.member())
    assert "which model" in api("patch", path, {"canary": {"percent": 5}}, 400)["detail"]
    assert "runs already" in api("patch", path, {"canary": {"model": current}}, 400)["detail"]
    api("patch", path, {"canary": {"model": str(foreign.pk)}}, 404)
    api("patch", path, {"canary": {"model": str(other.pk), "percent": 101}}, 400)
    with pytest.raises(IntegrityError), transaction.atomic():
        Deployment.objects.filter(pk=one.pk).update(canary_percent=101)
    assert api("patch", path, {"canary": {"model": str(other.pk)}})["canary"]["percent"] == 10
    assert api("post", f"{path}/abandon", status=202)["canary"] is None


def test_its_page_shows_it_with_what_can_be_done(api, by, site, client: Client):
    one, node, home, other = site
    begin(api, one, other)
    settle(home, node)
    client.force_login(by.user)
    page = client.get(f"/deployments/{one.pk}").content.decode()
    assert "answers 50% of the requests: 1 of 1 replica ready" in page
    client.post(f"/deployments/{one.pk}/abandon")
    one.refresh_from_db()
    assert one.canary is None
    assert actions.dependents(one) == []


def until(holds):
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_shadow_is_asked_as_well_and_nobody_gets_its_answers(api, by, site):
    one, node, home, other = site
    begin(api, one, other, percent=100)
    told = api("patch", f"deployments/{one.pk}", {"canary": {"shadow": True}})["canary"]
    assert (told["shadow"], told["percent"]) == (True, 100)
    settle(home, node)
    serving._places.clear()
    path = f"deployments/{one.pk}/predict"
    for _ in range(3):
        assert api("post", path, {"rows": [ROW]})["revision"] == 1

    def counted():
        watch.flush()
        found = api("get", f"deployments/{one.pk}/metrics")["revisions"]
        return {row["revision"]: row for row in found}

    until(lambda: counted().get(2, {}).get("requests") == 3)
    found = counted()
    assert (found[2]["compared"], found[2]["agreement"]) == (3, 1.0)
    assert (found[1]["requests"], found[1]["compared"], found[1]["agreement"]) == (3, 0, None)
    # With its share at 0 it is asked nothing; promoted, it is nobody's shadow any more.
    api("patch", f"deployments/{one.pk}", {"canary": {"percent": 0}})
    serving._places.clear()
    api("post", path, {"rows": [ROW]})
    api("post", f"deployments/{one.pk}/promote", status=202)
    settle(home, node, rounds=8)
    serving._places.clear()
    assert api("post", path, {"rows": [ROW]})["revision"] == 2
    assert counted()[2]["requests"] == 4
    one.refresh_from_db()
    assert not one.canary_is_shadow


def test_a_shadow_that_fails_is_counted_and_no_one_else_notices(api, site, monkeypatch):
    one, node, home, other = site
    begin(api, one, other, percent=100)
    api("patch", f"deployments/{one.pk}", {"canary": {"shadow": True}})
    settle(home, node)
    serving._places.clear()
    answer = serving._answer

    def broken(model, place, rows, within_s, tries):
        if place.is_shadow:
            raise models.NodeFailed("it broke")
        return answer(model, place, rows, within_s, tries)

    monkeypatch.setattr(serving, "_answer", broken)
    assert api("post", f"deployments/{one.pk}/predict", {"rows": [ROW]})["revision"] == 1

    def errors():
        watch.flush()
        found = api("get", f"deployments/{one.pk}/metrics")["revisions"]
        return {row["revision"]: row["errors"] for row in found}

    until(lambda: errors() == {1: 0, 2: 1})


def test_predictions_are_the_same_to_within_a_thousandth():
    assert serving._is_same("a", "a")
    assert not serving._is_same("a", "b")
    assert serving._is_same(100.0, 100.05)
    assert not serving._is_same(100.0, 101)
