"""Service tokens: what each may do, in which organization, and for how long."""

from datetime import timedelta

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.utils import timezone

from datasets.models import Dataset
from organizations import service
from organizations.models import AuditEntry, Role, ServiceToken
from tests.clusters import make as deploying
from tests.training import make
from training.models import BatchPrediction

pytestmark = pytest.mark.django_db


@pytest.fixture
def admin():
    return make.member(Role.ADMIN)


@pytest.fixture
def by(client):
    """Ask with a token."""

    def by(secret, method, address, data=None, **headers):
        headers["Authorization"] = f"Bearer {secret}"
        kind = (
            {}
            if method == "get" or "file" in (data or {})
            else {"content_type": "application/json"}
        )
        return getattr(client, method)(address, data, headers=headers, **kind)

    return by


def token(admin, **wish):
    return service.make(admin, **({"name": "ci", "actions": "read"} | wish))[1]


def test_an_admin_makes_one_sees_its_secret_once_and_revokes_it(client, admin, by):
    client.force_login(admin.user)
    address = f"/api/organizations/{admin.organization_id}/tokens"
    made = client.post(
        address, {"name": "ci", "actions": "read"}, content_type="application/json"
    ).json()
    listed = client.get(address).json()["results"]
    assert [(one["name"], one["hint"]) for one in listed] == [("ci", made["token"][-4:])]
    assert made["token"] not in str(listed)
    client.logout()
    assert by(made["token"], "get", "/api/datasets").status_code == 200
    client.force_login(admin.user)
    assert client.delete(f"{address}/{made['id']}").status_code == 204
    client.logout()
    assert by(made["token"], "get", "/api/datasets").status_code == 401
    verbs = AuditEntry.objects.values_list("verb", flat=True).order_by("created_at")
    assert list(verbs) == ["service-token.made", "service-token.revoked"]


def test_it_outlives_who_made_it_and_its_deeds_are_its_own(admin, by):
    secret = token(admin, name="nightly", actions="write")
    admin.user.delete()
    file = SimpleUploadedFile("t.csv", b"a\n1\n")
    assert by(secret, "post", "/api/datasets/upload", {"file": file}).status_code == 202
    assert Dataset.objects.get().created_by is None
    entry = AuditEntry.objects.get(verb="dataset.created")
    assert (entry.actor, entry.actor_kind) == ("nightly", "service")


def test_reading_is_no_writing_and_writing_no_administration(admin, by):
    home = f"/api/organizations/{admin.organization_id}"
    reads, writes = token(admin), token(admin, actions="write")
    assert by(reads, "get", f"{home}/members").status_code == 200
    assert by(reads, "post", "/api/datasets/samples/iris").status_code == 403
    assert by(writes, "post", "/api/datasets/samples/iris").status_code == 202
    for secret in (reads, writes):
        assert by(secret, "get", f"{home}/tokens").status_code == 403
        assert by(secret, "post", f"{home}/leave").status_code == 403
        assert by(secret, "post", "/api/live-ticket").status_code == 403
        assert by(secret, "get", "/api/organizations").status_code == 403
        assert by(secret, "get", "/api/auth/tokens").status_code in {403, 404}


def test_another_organization_stays_closed(admin, by):
    other = make.member(Role.ADMIN)
    version = make.version(other)
    secret = token(admin, actions="write")
    assert by(secret, "get", f"/api/datasets/{version.dataset_id}").status_code == 404
    assert by(secret, "delete", f"/api/datasets/{version.dataset_id}").status_code == 404
    foreign = {"X-Organization": str(other.organization_id)}
    assert by(secret, "get", "/api/datasets", **foreign).status_code == 404
    assert by(secret, "get", f"/api/organizations/{other.organization_id}").status_code == 404
    mine = {"X-Organization": str(admin.organization_id)}
    assert by(secret, "get", "/api/datasets", **mine).status_code == 200


def test_one_that_only_predicts_predicts_and_nothing_else(admin, by):
    model = make.scored_model(admin)
    secret = token(admin, actions="predict")
    rows = {"rows": [{"petal_cm": 1.0, "colour": "red", "weight_g": 50.0}]}
    asked = by(secret, "post", f"/api/results/model/{model.pk}/predict", rows)
    assert asked.status_code == 503, asked.content  # let in, though no node is there to answer
    for address in (
        "/api/datasets",
        "/api/training",
        f"/api/results/model/{model.pk}",
        f"/api/results/model/{model.pk}/download",
        "/api/results/predictions",
    ):
        assert by(secret, "get", address).status_code == 403, address


def test_one_for_one_model_opens_that_one_and_its_results(admin, by):
    version = make.version(admin)
    mine, other = make.scored_model(admin, of=version), make.scored_model(admin, of=version)
    secret = token(admin, actions="predict", model=mine.pk)

    def file():
        return {"file": SimpleUploadedFile("t.csv", b"petal_cm,colour,weight_g\n1,red,2\n")}

    assert by(secret, "post", f"/api/results/model/{other.pk}/predict", file()).status_code == 403
    answer = by(secret, "post", f"/api/results/model/{mine.pk}/predict", file())
    assert answer.status_code == 202
    watch = answer.json()["id"]
    assert by(secret, "get", f"/api/results/predictions/{watch}").status_code == 200
    BatchPrediction.objects.filter(pk=watch).update(model=other)
    assert by(secret, "get", f"/api/results/predictions/{watch}").status_code == 404


def test_one_for_one_deployment_predicts_with_that_one_alone(admin, by, client):
    deploying.cluster(admin, deploying.node(admin))
    mine, other = (deploying.deploy(admin, deploying.model(admin), name) for name in ("a", "b"))
    client.force_login(admin.user)
    made = client.post(
        f"/api/organizations/{admin.organization_id}/tokens",
        {"name": "shop", "deployment": str(mine.pk)},
        content_type="application/json",
    )
    assert made.status_code == 201, made.content
    assert (made.json()["only_kind"], made.json()["only_name"]) == ("deployment", "a")
    secret, rows = made.json()["token"], {"rows": [{"petal_cm": 1.0}]}
    asked = by(secret, "post", f"/api/deployments/{mine.pk}/predict", rows)
    assert asked.status_code == 503, asked.content  # let in, though nothing runs yet
    assert by(secret, "post", f"/api/deployments/{other.pk}/predict", rows).status_code == 403
    model = f"/api/results/model/{mine.revision.model_id}/predict"
    assert by(secret, "post", model, rows).status_code == 403, "nor past the deployment"
    for method, address in (
        ("get", f"/api/deployments/{mine.pk}"),
        ("post", f"/api/deployments/{mine.pk}/stop"),
        ("delete", f"/api/deployments/{mine.pk}"),
        ("get", "/api/deployments"),
    ):
        assert by(secret, method, address).status_code == 403, address


@pytest.mark.parametrize("change", [
    {"expires_at": timezone.now() - timedelta(1)}, {"revoked_at": timezone.now()}, {"digest": "x"},
])  # fmt: skip
def test_one_that_is_over_opens_nothing(admin, by, change):
    secret = token(admin)
    assert by(secret, "get", "/api/datasets").status_code == 200
    ServiceToken.objects.update(**change)
    assert by(secret, "get", "/api/datasets").status_code == 401


def test_what_makes_no_sense_is_refused(client, admin):
    foreign = make.scored_model(make.member())
    client.force_login(admin.user)
    address = f"/api/organizations/{admin.organization_id}/tokens"
    for wish, field in (
        ({"name": ""}, "name"),
        ({"name": "x", "actions": "admin"}, "actions"),
        ({"name": "x", "model": str(foreign.pk)}, "model"),
        ({"name": "x", "actions": "read", "model": str(foreign.pk)}, "actions"),
        ({"name": "x", "deployment": str(foreign.pk)}, "deployment"),
        ({"name": "x", "deployment": str(foreign.pk), "model": str(foreign.pk)}, "deployment"),
    ):
        answer = client.post(address, wish, content_type="application/json")
        assert (answer.status_code, list(answer.json()["errors"])) == (400, [field])
    assert not ServiceToken.objects.exists()
