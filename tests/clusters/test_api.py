"""What programs say of clusters and deployments, and what is refused at once, with the reason."""

import threading
import time
from typing import Any

import pytest
import redis
from django.test import Client

from clusters import actions, cycle, inflight, queue, serving, watch
from clusters.models import Dependency, Deployment, Replica, Revision
from organizations.models import AuditEntry, Role
from tests.clusters import make
from tests.clusters.make import Node, deploy, settle
from tests.factories import UserFactory, WorkerFactory, bearer
from tests.training.make import FakeServing
from training import serving as models

pytestmark = pytest.mark.django_db


@pytest.fixture
def by():
    return make.member()


@pytest.fixture
def model(by):
    return make.model(by)


class Api:
    def __init__(self, member: Any) -> None:
        self.client = Client(headers=bearer(member.user))

    def __call__(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        more = {} if body is None else {"data": body, "content_type": "application/json"}
        answer = getattr(self.client, method)(f"/api/{path}", **more)
        assert answer.status_code == status, answer.content
        return answer.json() if answer.content else None


@pytest.fixture
def api(by):
    return Api(by)


def test_a_cluster_tells_what_it_has_what_is_taken_and_what_is_free(api, by, model):
    node = Node(make.node(by, ram_gb=8, cpu=4, gpus=1))
    made = api("post", "clusters/", {"name": "lab", "node_ids": [str(node.worker.pk)]}, 201)
    assert (made["total_ram_gb"], made["total_cpu_cores"], made["total_gpu_count"]) == (8, 4, 1)
    wish = {"name": "one", "model": str(model.pk), "required_ram_gb": 3, "required_gpu_count": 1}
    api("post", "deployments/", wish, 201)
    settle(Deployment.objects.get().cluster, node)
    told = api("get", f"clusters/{made['id']}")
    assert told["total"] == {"ram_gb": 8, "cpu_cores": 4, "gpu_count": 1}
    assert told["allocated"] == {"ram_gb": 3, "cpu_cores": 0.5, "gpu_count": 1}
    assert told["free"] == {"ram_gb": 5, "cpu_cores": 3.5, "gpu_count": 0}
    assert told["nodes"][0]["free"] == told["free"]
    limited = api("patch", f"clusters/{made['id']}", {"total_ram_gb": 4})
    assert (limited["total_ram_gb"], limited["free"]["ram_gb"]) == (4, 1)
    assert limited["limit"] == {"ram_gb": 4, "cpu_cores": None, "gpu_count": None}
    assert api("patch", f"clusters/{made['id']}", {"total_ram_gb": None})["limit"] is None
    refused = api("delete", f"clusters/{made['id']}", status=409)
    assert refused["code"] == "in-use"
    assert "one" in refused["detail"]


def test_nodes_that_are_not_the_organizations_stay_out(api, by):
    home = make.cluster(by)
    foreign, platforms = make.node(make.member()), WorkerFactory()
    place = f"clusters/{home.pk}/nodes"
    api("post", place, {"node_id": str(foreign.pk)}, 404)
    told = api("post", place, {"node_id": str(platforms.pk)}, 403)
    assert "operator" in told["detail"]
    mine = make.node(by)
    make.cluster(by, mine, name="other")
    taken = api("post", place, {"node_id": str(mine.pk)}, 409)
    assert "in the cluster other" in taken["detail"]
    boss = UserFactory(is_staff=True, is_superuser=True)
    make.member(Role.ADMIN, organization=by.organization, user=boss)
    operator = Client(headers=bearer(boss))
    sent = {"data": {"node_id": str(platforms.pk)}, "content_type": "application/json"}
    assert operator.post(f"/api/{place}", **sent).status_code == 200
    # In nobody else's, though it is another organization's cluster that has it.
    theirs = make.member()
    boss_there = make.member(Role.ADMIN, organization=theirs.organization, user=boss)
    with pytest.raises(actions.InUse, match="another organization's cluster"):
        actions.add_node(boss_there, make.cluster(theirs), platforms.pk, operator=True)


REFUSED = [
    ({"required_ram_gb": 64}, 400, "impossible", "56 GB of memory are lacking"),
    ({"required_gpu_count": 1}, 400, "impossible", "1 GPU are lacking"),
    ({"docker_image": "nginx"}, 400, "no-containers", "Containers can't be deployed yet"),
    ({"cluster_id": "00000000-0000-4000-8000-000000000000"}, 404, "not-found", "cluster"),
    ({"depends_on": ["00000000-0000-4000-8000-000000000000"]}, 404, "not-found", "depend"),
    ({"env": {"PYTHONPATH": "/x"}}, 400, "invalid", "set by FlowML"),
    ({"env": {"A B": "x"}}, 400, "invalid", "no name of a variable"),
    ({"name": "no spaces"}, 400, "invalid", ""),
    ({"name": "there"}, 409, "name-taken", "choose another name"),
    ({"priority": "VERY"}, 400, "invalid", ""),
    ({"replicas": 0}, 400, "invalid", ""),
]


@pytest.mark.parametrize(("wrong", "status", "code", "word"), REFUSED)
def test_what_can_not_be_is_refused_at_once(api, by, model, wrong, status, code, word):
    make.cluster(by, make.node(by, ram_gb=8))
    deploy(by, model, "there")
    good = {"name": "new", "model": str(model.pk)}
    api("post", "deployments/", good, 201)
    told = api("post", "deployments/", {**good, "name": "next", **wrong}, status)
    assert (told["code"], word in told["detail"]) == (code, True), told


def test_a_model_needs_a_node_with_its_engine(api, by, model):
    node = make.node(by, capabilities={"cpu": 4, "ram_mib": 9000, "engines": [], "gpus": []})
    make.cluster(by, node)
    told = api("post", "deployments/", {"name": "new", "model": str(model.pk)}, 400)
    assert told["detail"] == "No node of the cluster has pycaret."


def test_a_circle_is_refused_and_shown(api, by, model):
    make.cluster(by, make.node(by))
    first = deploy(by, model, "first")
    second = deploy(by, model, "second", depends_on=[first.pk])
    third = deploy(by, model, "third", depends_on=[second.pk])
    told = api("patch", f"deployments/{first.pk}", {"depends_on": [str(third.pk)]}, 400)
    assert told["code"] == "circle"
    assert "first → third → second → first" in told["detail"]
    assert Dependency.objects.count() == 2
    api("patch", f"deployments/{third.pk}", {"depends_on": [str(first.pk)]})
    assert api("get", f"deployments/{third.pk}")["depends_on"] == [str(first.pk)]
    told = api("post", f"deployments/{first.pk}/stop", status=202)
    assert told["warnings"] == [
        "second does not start while this is stopped.",
        "third does not start while this is stopped.",
    ]
    assert api("delete", f"deployments/{first.pk}", status=409)["code"] == "in-use"


def test_the_quota_counts_what_may_not_be_evicted_twice(api, by, model):
    make.cluster(by, make.node(by))
    by.organization.max_deployments = 3
    by.organization.save()
    make_ = {"model": str(model.pk)}
    api("post", "deployments/", {**make_, "name": "a", "preemptible": False}, 201)
    one = api("post", "deployments/", {**make_, "name": "b"}, 201)
    told = api("post", "deployments/", {**make_, "name": "c"}, 429)
    assert (told["code"], told["quota"]) == ("quota-reached", "deployments")
    api("patch", f"deployments/{one['id']}", {"preemptible": False}, 429)
    api("post", f"deployments/{one['id']}/stop", status=202)
    api("post", "deployments/", {**make_, "name": "c"}, 201)
    api("post", f"deployments/{one['id']}/start", status=429)


def test_whoever_waits_reads_why_and_what_would_help(api, by, model):
    node = Node(make.node(by, ram_gb=4))
    home = make.cluster(by, node.worker)
    deploy(by, model, "large", ram_gb=3)
    settle(home, node)
    wish = {"name": "late", "model": str(model.pk), "required_ram_gb": 2}
    late = api("post", "deployments/", wish, 201)
    cycle.run(home.pk)
    told = api("get", f"deployments/{late['id']}")
    assert told["state"] == "pending"
    assert told["waits"]["reason"] == (
        f"No node has room for it. The nearest is {node.worker.name}, which lacks 1 GB of memory."
    )
    assert told["waits"]["change"] == (
        "Ask for 1 GB of memory less, or free as much; or raise its priority to HIGH: less urgent "
        "ones would make room."
    )
    assert told["queue_position"] == 1
    api("patch", f"deployments/{late['id']}", {"priority": "high"})
    settle(home, node)
    assert api("get", f"deployments/{late['id']}")["state"] == "running"


def test_variables_are_kept_encrypted_and_shown_to_the_node_alone(api, by, model):
    node = make.node(by)
    home = make.cluster(by, node)
    wish = {"name": "one", "model": str(model.pk), "env": {"API_KEY": "very-secret"}}
    made = api("post", "deployments/", wish, 201)
    assert made["env"] == ["API_KEY"]
    stored = Revision.objects.get()
    assert "very-secret" not in stored.env_sealed
    assert stored.env == {"API_KEY": "very-secret"}
    assert "very-secret" not in str(list(AuditEntry.objects.values("changes")))
    cycle.run(home.pk)
    node.token_hash = type(node).hash_token("mine")
    node.save()
    other = make.node(by, token_hash=type(node).hash_token("other"))
    path = f"/api/workers/replicas/{Replica.objects.get().pk}"
    told = Client(headers={"Authorization": "Worker mine"}).get(path)
    assert told.json()["env"] == {"API_KEY": "very-secret"}
    assert told.json()["limits"] == {"ram_mib": 1024, "cpu_millis": 500, "gpus": 0}
    assert Client(headers={"Authorization": "Worker other"}).get(path).status_code == 404
    assert other.pk
    # A later revision keeps them unless others are sent.
    api("patch", f"deployments/{made['id']}", {"model": str(model.pk)})
    assert Revision.objects.get(number=2).env == {"API_KEY": "very-secret"}
    shown = api("get", f"deployments/{made['id']}/revisions")["results"]
    assert [one["number"] for one in shown] == [2, 1]
    assert "very-secret" not in str(shown)


def test_what_people_did_is_in_the_audit_log(api, by, model):
    home = make.cluster(by, make.node(by))
    one = deploy(by, model, "one")
    api("patch", f"deployments/{one.pk}", {"replicas": 2})
    api("patch", f"deployments/{one.pk}", {"env": {}})
    api("post", f"deployments/{one.pk}/rollback", {}, 202)
    api("post", f"deployments/{one.pk}/stop", status=202)
    api("delete", f"deployments/{one.pk}", status=204)
    api("delete", f"clusters/{home.pk}", status=204)
    verbs = list(AuditEntry.objects.order_by("created_at").values_list("verb", flat=True))
    assert [verb for verb in verbs if verb.startswith(("cluster", "deployment"))] == [
        "cluster.made", "cluster.node-added", "deployment.made", "deployment.changed",
        "deployment.changed", "deployment.rolled-back", "deployment.stopped",
        "deployment.deleted", "cluster.deleted",
    ]  # fmt: skip


def test_lists_ask_as_many_questions_for_many_as_for_one(by, model, django_assert_num_queries):
    home = make.cluster(by, make.node(by))
    client = Client()
    client.force_login(by.user)
    paths = ["/api/deployments", "/api/clusters"]

    def count(path: str) -> int:
        from django.db import connection
        from django.test.utils import CaptureQueriesContext

        with CaptureQueriesContext(connection) as seen:
            assert client.get(path).status_code == 200
        return len(seen)

    deploy(by, model, "first")
    few = [count(path) for path in paths]
    few = [count(path) for path in paths]
    for number in range(4):
        make.cluster(by, make.node(by), name=f"c{number}")
        deploy(by, model, f"d{number}", cluster=home.pk)
    assert [count(path) for path in paths] == few


# --- Predictions ---


@pytest.fixture
def served(by, model, tmp_path):
    """A deployment of two replicas on two nodes that answer."""
    fakes = [FakeServing(tmp_path) for _ in range(2)]
    nodes = [Node(make.node(by, address=fake.address)) for fake in fakes]
    home = make.cluster(by, *(node.worker for node in nodes))
    one = deploy(by, model, "flowers", replicas=2, spread=True)
    settle(home, *nodes)
    yield one, dict(zip([node.worker.name for node in nodes], fakes, strict=True))
    for fake in fakes:
        fake.stop()
    for kept in (serving._places, models._models, models._nodes):
        kept.clear()
    models._pool = models._Pool()


ROW = {"petal_cm": 1.0, "colour": "red", "weight_g": 50.0}


def test_replicas_answer_in_turn_and_for_one_that_does_not(api, served):
    one, fakes = served
    path = f"deployments/{one.pk}/predict"
    answers = [api("post", path, {"rows": [ROW]}) for _ in range(4)]
    assert [len(fake.asked) for fake in fakes.values()] == [2, 2]
    assert {answer["replica"] for answer in answers} == {0, 1}
    assert answers[0]["predictions"] == ["kind 1"]
    first, second = fakes.values()
    asked = first.asked[0]
    assert asked["replica"] in {str(pk) for pk in Replica.objects.values_list("pk", flat=True)}
    first.status, first.answer = 410, {"detail": "This replica is not here any more."}
    assert all(api("post", path, {"rows": [ROW]})["predictions"] for _ in range(4))
    assert len(second.asked) == 6


def test_nobody_who_answers_is_told_with_the_reason(api, served, monkeypatch):
    one, fakes = served
    monkeypatch.setattr(serving, "PATIENCE_S", 0.1)
    path = f"deployments/{one.pk}/predict"
    told = api("post", path, {"rows": [{"petal_cm": "long"}]}, 400)
    assert told["code"] == "bad-rows"
    for fake in fakes.values():
        fake.status, fake.answer = 502, {"detail": "This replica ended before it answered."}
    told = api("post", path, {"rows": [ROW]}, 503)
    assert (told["code"], told["retry_after_s"]) == ("no-replica", 5)
    assert "ended before it answered" in told["detail"]
    Replica.objects.all().delete()
    serving._places.clear()
    assert "it is running" in api("post", path, {"rows": [ROW]}, 503)["detail"]


def test_a_request_keeps_its_id_and_an_answer_has_one_of_its_own(by, served):
    one, _ = served
    client = Client(headers=bearer(by.user))
    sent = {"data": {"rows": [ROW]}, "content_type": "application/json"}
    path = f"/api/deployments/{one.pk}/predict"
    answers = [
        client.post(path, headers={"X-Request-ID": name}, **sent)
        for name in ("mine-0001", "not\tsane")
    ]
    assert answers[0]["X-Request-ID"] == "mine-0001"
    assert len(answers[1]["X-Request-ID"]) == 32
    assert len({answer.json()["id"] for answer in answers}) == 2


def test_what_is_wrong_is_told_by_row_and_column(api, served):
    one, fakes = served
    rows = [ROW, {"petal_cm": "long", "colour": "red", "weight": 1}]
    told = api("post", f"deployments/{one.pk}/predict", {"rows": rows}, 400)
    assert told["errors"] == {
        "rows[1].weight": ["The model has no column 'weight'. Did you mean 'weight_g'?"],
        "rows[1].petal_cm": ["Column 'petal_cm' takes a number, not 'long'."],
        "rows[1].weight_g": [
            "Column 'weight_g' is missing. Send null when its value is not known."
        ],
    }
    assert not any(fake.asked for fake in fakes.values())


def test_past_its_limit_a_deployment_says_when_to_come_again(api, by, served, monkeypatch):
    one, _ = served
    monkeypatch.setattr(inflight, "WAIT_S", 0.1)
    changed = api("patch", f"deployments/{one.pk}", {"max_in_flight": 1})
    assert changed["max_in_flight"] == 1
    serving._places.clear()
    client = Client(headers=bearer(by.user))
    path = f"/api/deployments/{one.pk}/predict"

    def ask():
        return client.post(path, {"rows": [ROW]}, content_type="application/json")

    with inflight.slot(one.pk, 1, 30):
        answer = ask()
        assert (answer.status_code, answer["Retry-After"]) == (429, "1")
        assert answer.json()["code"] == "too-many-predictions"
    assert ask().status_code == 200
    # One whose web process was killed counts until its time is over.
    queue.valkey().zadd(inflight.key(one.pk), {"lost": time.time() - 1})
    assert ask().status_code == 200
    # One that is answered in a moment is waited for.
    monkeypatch.setattr(inflight, "WAIT_S", 20)
    queue.valkey().zadd(inflight.key(one.pk), {"soon over": time.time() + 0.2})
    assert ask().status_code == 200


def test_without_valkey_nobody_is_kept_out(api, served, monkeypatch):
    one, _ = served

    def away():
        raise redis.ConnectionError("away")

    monkeypatch.setattr(inflight, "valkey", away)
    monkeypatch.setattr(inflight, "_enter", away)
    assert api("post", f"deployments/{one.pk}/predict", {"rows": [ROW]})["predictions"]


def test_an_answer_costs_two_turns_to_valkey(api, served, monkeypatch):
    """One to be let in, and one for all that it leaves there: it is over, it counts, a sample."""
    one, _ = served
    api("post", f"deployments/{one.pk}/predict", {"rows": [ROW]})
    sent = []
    send = redis.Connection.send_packed_command

    def count(connection, command, *args, **kwargs):
        sent.append(command)
        return send(connection, command, *args, **kwargs)

    monkeypatch.setattr(redis.Connection, "send_packed_command", count)
    watch._taken.clear()
    api("post", f"deployments/{one.pk}/predict", {"rows": [ROW]})
    assert len(sent) == 2
    assert b"RPUSH" in b"".join(sent[1]), "it was sampled"
    assert not queue.valkey().zcard(inflight.key(one.pk))


def test_the_only_replica_is_asked_with_patience_and_one_of_many_is_not(api, served, monkeypatch):
    one, _ = served
    tried = []

    def ask_node(node, body, tries, within_s):
        tried.append(tries)
        if len(tried) == 1:
            raise models.NotConnected("is not connected")
        return models.Answer(["kind 1"], None, None, {}, node.name)

    monkeypatch.setattr(models, "ask_node", ask_node)
    assert api("post", f"deployments/{one.pk}/predict", {"rows": [ROW]})["predictions"]
    assert tried == [1, models.PATIENT_TRIES]


class Slow(FakeServing):
    """Answers when it may."""

    @property
    def answer(self):
        self.may.wait(30)
        return {"predictions": ["late"]}

    @answer.setter
    def answer(self, _):
        self.may = threading.Event()


def test_a_model_that_takes_too_long_is_given_up_and_nobody_else_asked(api, by, model, tmp_path):
    fakes = [Slow(tmp_path) for _ in range(2)]
    nodes = [Node(make.node(by, address=fake.address)) for fake in fakes]
    home = make.cluster(by, *(node.worker for node in nodes))
    one = deploy(by, model, "flowers", replicas=2, spread=True, timeout_s=1)
    settle(home, *nodes)
    try:
        told = api("post", f"deployments/{one.pk}/predict", {"rows": [ROW]}, 504)
        assert (told["code"], told["title"]) == ("no-answer-in-time", "No answer in time")
        assert "within 1 s" in told["detail"]
        assert sum(len(fake.asked) for fake in fakes) == 1
        assert not queue.valkey().zcard(inflight.key(one.pk))
    finally:
        for fake in fakes:
            fake.may.set()
            fake.stop()
        serving._places.clear()
        models._models.clear()
        models._pool = models._Pool()
