"""A deployment follows an alias, is trained again, and lets a bad canary go by itself."""

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from clusters import actions, cycle
from clusters.canaries import CRASHES, LEAST, Asked, why_abandon
from clusters.models import Deployment, ServedMinute
from clusters.tasks import sweep
from datasets.models import DatasetVersion
from organizations.models import AuditEntry, Role
from tests.clusters import make
from tests.clusters.make import Node, deploy, settle
from tests.clusters.test_api import Api
from training import named as names
from training.models import TrainedModel, TrainingJob
from training.names import NamedModel, NamedVersion
from workers.models import Event


@pytest.fixture
def by(db):
    return make.member()


@pytest.fixture
def api(by):
    return Api(by)


@pytest.fixture
def node(by):
    node = Node(make.node(by))
    make.cluster(by, node.worker)
    return node


def add_version(by, name):
    """A new version of a named model."""
    model = make.model(by)
    of, _ = NamedModel.objects.get_or_create(organization=by.organization, name=name)
    number = of.versions.count() + 1
    NamedVersion.objects.create(
        organization=by.organization, named=of, number=number, job=model.job, key=model.key,
        model=model,
    )  # fmt: skip
    return model


def reasons(one, type):
    return [event.data for event in Event.objects.filter(stream=one.topic, type=type)]


# --- Aliases -------------------------------------------------------------------------------------


def test_moving_the_alias_rolls_the_model_out_under_the_same_name(api, by, node):
    first, second = add_version(by, "kind"), add_version(by, "kind")
    names.move_alias(by, "kind", "champion", 1)
    told = api("post", "deployments/", {"name": "kinds", "follows": "kind@champion"}, 201)
    assert (told["model"], told["follows"]) == (str(first.pk), "kind@champion")
    one = Deployment.objects.get()
    settle(one.cluster, node)
    sweep()
    one.refresh_from_db()
    assert one.revision.number == 1
    names.move_alias(by, "kind", "champion", 2)
    sweep()
    one.refresh_from_db()
    assert (one.revision.number, one.revision.model) == (2, second)
    cycle.run(one.cluster_id)
    assert make.where(one)  # the old one answers till then
    settle(one.cluster, node)
    running = one.placed.filter(state="running").values_list("revision__number", flat=True)
    assert list(running) == [2]
    entry = AuditEntry.objects.filter(verb="deployment.changed").latest("created_at")
    assert entry.actor == "kind@champion"
    sweep()
    one.refresh_from_db()
    assert one.revision.number == 2


def test_an_alias_that_can_not_be_followed_leaves_what_runs_and_says_so_once(api, by, node):
    add_version(by, "kind")
    names.move_alias(by, "kind", "champion", 1)
    one = deploy(by, TrainedModel.objects.get(), "kinds")
    api("patch", f"deployments/{one.pk}", {"follows": "kind@champion"})
    assert "no version or alias" in api(
        "patch", f"deployments/{one.pk}", {"follows": "kind@absent"}, 404
    )["detail"]  # fmt: skip
    other = add_version(by, "kind")
    TrainedModel.objects.filter(pk=other.pk).update(engine="flaml")
    names.move_alias(by, "kind", "champion", 2)
    for _ in range(3):
        sweep()
    [told] = reasons(one, "deployment.alias-not-followed")
    assert "flaml" in told["why"]
    shown = api("get", f"deployments/{one.pk}")
    assert (shown["revision"], "flaml" in shown["not_followed"]) == (1, True)
    names.remove_alias(by, "kind", "champion")
    sweep()
    assert "no version or alias" in api("get", f"deployments/{one.pk}")["not_followed"]
    assert one.revisions.count() == 1


def test_whoever_chooses_a_model_or_goes_back_follows_no_more(api, by, node):
    first, second = add_version(by, "kind"), add_version(by, "kind")
    names.move_alias(by, "kind", "champion", 1)
    both = {"name": "x", "follows": "kind", "model": str(first.pk)}
    assert "one of them" in api("post", "deployments/", both, 400)["detail"]
    made = api("post", "deployments/", {"name": "kinds", "follows": "kind@champion"}, 201)
    path = f"deployments/{made['id']}"
    assert api("patch", path, {"model": str(second.pk)})["follows"] == ""
    assert api("patch", path, {"follows": "kind@champion"})["model"] == str(first.pk)
    api("post", f"{path}/rollback", {}, 202)
    shown = api("get", path)
    assert (shown["follows"], shown["model"]) == ("", str(second.pk))
    api("patch", path, {"follows": "kind@champion"})
    assert api("patch", path, {"follows": ""})["model"] == str(first.pk)
    sweep()
    assert api("get", path)["model"] == str(first.pk)


def test_another_organizations_names_are_not_followed(api, by, node):
    stranger = make.member(Role.ADMIN)
    add_version(stranger, "theirs")
    api("post", "deployments/", {"name": "x", "follows": "theirs"}, 404)


# --- Training again ------------------------------------------------------------------------------


def test_it_is_trained_again_on_the_newest_data_and_tried_by_one_click(client, api, by, node):
    model = make.model(by)
    one = deploy(by, model, "kinds")
    old = model.job.dataset_version
    newer = DatasetVersion.objects.get(pk=old.pk)
    newer.pk, newer.number, newer._state.adding = None, 2, True
    newer.save()
    type(newer.dataset).objects.filter(pk=newer.dataset_id).update(latest=newer)
    told = api("post", f"deployments/{one.pk}/retrain", None, 202)
    job = TrainingJob.objects.get(pk=told["job"])
    assert (job.dataset_version, job.target, job.engines) == (newer, model.job.target, ["pycaret"])
    twice = api("post", f"deployments/{one.pk}/retrain", None, 409)
    assert twice["code"] == "retraining"
    client.force_login(by.user)
    assert "it is under way" in client.get(f"/deployments/{one.pk}").content.decode()
    better = TrainedModel.objects.create(
        organization=by.organization, job=job, key="pycaret:best", name="Better", engine="pycaret",
        state="scored", score=0.95, order_score=-0.95, artifact=model.artifact,
    )  # fmt: skip
    TrainingJob.objects.filter(pk=job.pk).update(
        state="succeeded", best_model=better, finished_at=timezone.now()
    )
    page = client.get(f"/deployments/{one.pk}").content.decode()
    assert "Try it as a canary" in page
    client.post(f"/deployments/{one.pk}/canary", {"model": better.pk})
    one.refresh_from_db()
    assert (one.canary.model, one.canary_percent) == (better, actions.CANARY_PERCENT)
    assert "Try it as a canary" not in client.get(f"/deployments/{one.pk}").content.decode()
    client.post(f"/deployments/{one.pk}/canary", {"percent": "40", "shadow": "on"})
    one.refresh_from_db()
    assert (one.canary_percent, one.canary_is_shadow) == (40, True)
    stranger = make.member(Role.ADMIN)
    theirs = make.model(stranger)
    assert client.post(f"/deployments/{one.pk}/canary", {"model": theirs.pk}).status_code == 404
    assert Client().post(f"/deployments/{one.pk}/retrain").status_code == 302  # to sign in


def test_what_has_no_training_to_repeat_says_so(api, by, node):
    model = make.model(by)
    one = deploy(by, model, "kinds")
    model.job.dataset_version.delete()
    assert "is gone" in api("post", f"deployments/{one.pk}/retrain", None, 409)["detail"]


# --- Bad canaries --------------------------------------------------------------------------------

counts = st.integers(0, 10_000)


def asked(requests, failed):
    return Asked(requests, min(requests, failed))


@given(counts, counts, counts, counts)
def test_no_canary_goes_that_is_no_worse(requests, failed, more, failed_too):
    canary, current = asked(requests, failed), asked(more, failed_too)
    if why_abandon(0, "", canary, current):
        assert canary.requests >= LEAST
        assert canary.share >= 2 * current.share
        assert not why_abandon(0, "", current, canary)


def test_what_makes_a_canary_go():
    fine = Asked(1000, 2)
    assert not why_abandon(CRASHES - 1, "boom", Asked(0, 0), fine)
    assert "3 times in a row: boom" in why_abandon(CRASHES, "boom", Asked(0, 0), fine)
    assert "30% of its requests failed (30 of 100)" in why_abandon(0, "", Asked(100, 30), fine)
    assert why_abandon(0, "", Asked(100, 30), Asked(0, 0))
    assert not why_abandon(0, "", Asked(LEAST - 1, LEAST - 1), fine)  # too few to say
    assert not why_abandon(0, "", Asked(100, 4), fine)  # few are let be
    assert not why_abandon(0, "", Asked(100, 30), Asked(1000, 290))  # the other does no better
    assert not why_abandon(0, "", Asked(20, 2), Asked(20, 1))  # chance may do that


@pytest.fixture
def tried(by, node):
    one = deploy(by, make.model(by), "kinds")
    actions.change(by, one, canary={"model": make.model(by).pk, "percent": 50})
    settle(one.cluster, node)
    one.refresh_from_db()
    return one


def minute(one, revision, requests, *, errors=0, failed=0, ago=timedelta(minutes=1)):
    ServedMinute.objects.create(
        deployment=one, revision=revision, minute=(timezone.now() - ago).replace(second=0),
        requests=requests, errors=errors, failed=failed,
    )  # fmt: skip


def test_one_that_fails_much_more_is_abandoned_and_the_reason_told(by, tried):
    minute(tried, 1, 200, errors=1)
    minute(tried, 2, 0, failed=60, ago=timedelta(hours=1))  # long ago, and another matter
    minute(tried, 2, 60, errors=1)
    actions.judge_canaries()
    tried.refresh_from_db()
    assert tried.canary is not None
    minute(tried, 2, 10, failed=30, ago=timedelta(minutes=2))  # others answered in its place
    actions.judge_canaries()
    tried.refresh_from_db()
    assert (tried.canary, tried.canary_percent, tried.revision.number) == (None, 0, 1)
    [told] = reasons(tried, "deployment.canary-abandoned")
    assert (told["by"], told["revision"]) == ("FlowML", 2)
    assert "31%" in told["why"]
    assert AuditEntry.objects.filter(verb="deployment.canary-abandoned", actor="FlowML").exists()


def test_one_that_crashes_again_and_again_is_abandoned(client, by, tried):
    tried.canary_is = {"failures": CRASHES, "error": "Its process was killed by signal 11."}
    tried.save(update_fields=["canary_is"])
    actions.judge_canaries()
    tried.refresh_from_db()
    assert tried.canary is None
    client.force_login(by.user)
    page = client.get(f"/deployments/{tried.pk}").content.decode()
    assert "FlowML abandoned the canary, revision 2" in page
    assert "killed by signal 11" in page
