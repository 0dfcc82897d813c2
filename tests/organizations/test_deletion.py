"""Taking an organization along, and deleting it: with days of grace, and then for good."""

import asyncio
import io
import json
import re
import zipfile
from datetime import timedelta

import pytest
from django.core.files.storage import default_storage
from django.utils import timezone

from datasets.models import Dataset
from organizations import (
    deletion,
    exports,
    invites,
    parts,
    quotas,
    rls,
    service,
    tasks,
    usage,
)
from organizations.models import (
    AuditEntry,
    Membership,
    Organization,
    OrganizationExport,
    Role,
    ServiceToken,
    UsageEntry,
    UsageMonth,
)
from tests.factories import UserFactory
from tests.organizations.test_quotas import note
from tests.organizations.threads import at_once
from tests.training import make
from training.models import TrainingJob
from workers.models import Artifact, Task

pytestmark = pytest.mark.django_db


@pytest.fixture
def admin(client):
    admin = make.member(Role.ADMIN, organization__name="Delta")
    client.force_login(admin.user)
    return admin


@pytest.fixture
def ask(client, admin):
    def ask(method, path, **data):
        address = f"/api/organizations/{admin.organization_id}{path}"
        return getattr(client, method)(address, data, content_type="application/json")

    return ask


def zipped(answer):
    async def read():
        return b"".join([piece async for piece in answer.streaming_content])

    return zipfile.ZipFile(io.BytesIO(asyncio.run(read())))


def rows(archive, name):
    return [json.loads(line) for line in archive.read(f"{name}.jsonl").splitlines()]


def due(organization):
    Organization.objects.filter(pk=organization.pk).update(
        delete_after=timezone.now() - timedelta(hours=1)
    )


# --- Export --------------------------------------------------------------------------------------


def test_an_export_holds_everything_of_this_organization_and_nothing_secret(ask, admin, client):
    model = make.scored_model(admin)
    secret = service.make(admin, name="ci", actions="read")[1]
    code = invites.renew(admin).code
    other = make.version(make.member(), name="not theirs")
    asked = ask("post", "/exports")
    assert (asked.status_code, asked.json()["state"]) == (202, "queued")
    watch = asked["Location"]
    assert client.get(f"{watch}/download").status_code == 409
    tasks.build_export(asked.json()["id"])
    assert client.get(watch).json()["state"] == "ready"
    archive = zipped(client.get(f"{watch}/download"))
    assert archive.testzip() is None
    about = json.loads(archive.read("about.json"))
    assert about["organization"]["name"] == "Delta"
    assert set(about["files"]) | {"about.json"} == set(archive.namelist())
    assert [row["username"] for row in rows(archive, "members")] == [admin.user.username]
    assert [row["name"] for row in rows(archive, "datasets")] == ["flowers"]
    assert archive.read(f"models/{model.pk}.zip") == model.artifact.file.open().read()
    version = model.job.dataset_version
    stored = archive.read(f"datasets/{version.dataset_id}/v1.parquet")
    assert len(stored) == version.size_bytes
    text = b" ".join(archive.read(name) for name in archive.namelist()).decode("latin-1")
    token = ServiceToken.objects.get()
    for hidden in (secret, code, token.digest, str(other.dataset_id), "not theirs"):
        assert hidden not in text
    assert AuditEntry.objects.filter(verb="organization.exported").count() == 1


# What an export leaves out, with the reason.
NOT_TAKEN_ALONG = {
    "Membership": "members.jsonl has them, with names",
    "Stream": "says which events belong together, and events name it themselves",
    "Allocation": "what runs this minute",
    "Turn": "what is to run next",
    "Pause": "the operator's, for the time being",
    "JoinToken": "lets a machine in for a day",
}


def test_an_export_takes_every_table_along_or_says_why_not(admin, monkeypatch):
    taken, add = set(), parts.Bundle.add_table

    def told(bundle, name, found, *without):
        taken.add(found.model.__name__)
        columns = {field.name for field in found.model._meta.concrete_fields} - set(without)
        secret = {name for name in columns if re.search("hash|digest|sealed|secret", name)}
        assert secret <= {"content_hash", "sha256"}, (found.model, secret)
        add(bundle, name, found, *without)

    monkeypatch.setattr(parts.Bundle, "add_table", told)
    exports.build(exports.ask(admin).pk)
    assert OrganizationExport.objects.get().state == "ready"
    of_tenants = {model.__name__ for model in rls.plan()}
    assert of_tenants - taken == set(NOT_TAKEN_ALONG)


def test_while_one_is_made_asking_again_gives_the_same(ask):
    first = ask("post", "/exports").json()["id"]
    assert ask("post", "/exports").json()["id"] == first
    exports.build(OrganizationExport.objects.get().pk)
    assert ask("post", "/exports").json()["id"] != first


def test_only_the_newest_is_kept_and_it_counts_as_storage(
    ask, admin, django_capture_on_commit_callbacks
):
    before = quotas.used(admin.organization, "storage_bytes")
    first = ask("post", "/exports").json()["id"]
    exports.build(first)
    path = OrganizationExport.objects.get(pk=first).file.name
    second = ask("post", "/exports").json()["id"]
    assert default_storage.exists(path), "until the next is there"
    with django_capture_on_commit_callbacks(execute=True):
        exports.build(second)
    assert not default_storage.exists(path)
    assert ask("get", f"/exports/{first}").json()["state"] == "expired"
    kept = OrganizationExport.objects.get(pk=second)
    assert kept.size > 0
    assert quotas.used(admin.organization, "storage_bytes") == before + kept.size
    usage.note_storage()
    assert UsageMonth.objects.get().storage_bytes == before + kept.size
    with django_capture_on_commit_callbacks(execute=True):
        assert ask("delete", f"/exports/{second}").status_code == 204
    assert not default_storage.exists(kept.file.name)
    assert quotas.used(admin.organization, "storage_bytes") == before
    assert ask("delete", f"/exports/{second}").status_code == 409
    assert AuditEntry.objects.filter(verb="organization.export-deleted").count() == 1


def test_three_a_day_are_enough(ask):
    for _ in range(exports.A_DAY):
        exports.build(ask("post", "/exports").json()["id"])
    refused = ask("post", "/exports")
    assert (refused.status_code, refused.json()["code"]) == (409, "exported-too-often")
    assert "at most 3 times in 24 hours" in refused.json()["detail"]
    newest = OrganizationExport.objects.first()
    OrganizationExport.objects.filter(pk=newest.pk).update(state="failed")
    assert ask("post", "/exports").status_code == 202, "one that failed takes no turn"
    yesterday = timezone.now() - timedelta(hours=24, minutes=1)
    OrganizationExport.objects.update(created_at=yesterday, state="expired")
    assert ask("post", "/exports").status_code == 202


def test_what_takes_long_keeps_nothing_short_waiting(ask, monkeypatch, settings):
    sent = []
    monkeypatch.setattr(
        exports.current_app, "send_task", lambda name, **more: sent.append((name, more["queue"]))
    )
    pk = ask("post", "/exports").json()["id"]
    exports.hasten(pk)
    assert ("organizations.tasks.build_export", "control-long") in sent
    assert {queue for _, queue in sent} == {"control-long"}
    swept = settings.CELERY_BEAT_SCHEDULE["organizations-sweep"]
    assert swept["options"]["queue"] == "control-long"


def test_one_that_fails_is_tried_again_and_then_says_so(ask, monkeypatch):
    pk = ask("post", "/exports").json()["id"]
    monkeypatch.setattr(exports, "_written", lambda export: 1 / 0)
    for state in ("queued", "queued", "failed"):
        exports.build(pk)
        assert OrganizationExport.objects.get().state == state
    assert "Tell the operator" in ask("get", f"/exports/{pk}").json()["error"]


def test_one_whose_maker_died_is_made_again_and_an_old_one_goes(
    ask, client, django_capture_on_commit_callbacks
):
    pk = ask("post", "/exports").json()["id"]
    long_ago = timezone.now() - timedelta(days=1)
    OrganizationExport.objects.update(state="running", started_at=long_ago)
    assert [str(one) for one in exports.waiting()] == [pk]
    exports.build(pk)
    path = OrganizationExport.objects.get().file.name
    assert default_storage.exists(path)
    OrganizationExport.objects.update(expires_at=long_ago)
    with django_capture_on_commit_callbacks(execute=True):
        tasks.sweep()
    assert not default_storage.exists(path)
    assert ask("get", f"/exports/{pk}").json()["state"] == "expired"
    assert ask("get", f"/exports/{pk}/download").status_code == 409


@pytest.mark.django_db(transaction=True)
def test_two_who_make_the_same_export_make_it_once():
    admin = make.member(Role.ADMIN)
    pk = exports.ask(admin).pk
    at_once(*(lambda: exports.build(pk) for _ in range(3)))
    export = OrganizationExport.objects.get()
    assert (export.state, export.tries) == ("ready", 1)


# --- Deletion ------------------------------------------------------------------------------------


def test_deleting_takes_the_name_closes_everything_and_can_be_taken_back(ask, admin, client):
    job = make.job(admin)
    viewer = make.member(Role.VIEWER, organization=admin.organization)
    code = invites.renew(admin).code
    secret = service.make(admin, name="ci", actions="read")[1]
    assert ask("post", "/deletion", name="delta").status_code == 400
    gone = ask("post", "/deletion", name="Delta")
    assert gone.status_code == 202
    left = timezone.datetime.fromisoformat(gone.json()["delete_after"]) - timezone.now()
    assert timedelta(days=6, hours=23) < left < timedelta(days=7, minutes=1)
    assert TrainingJob.objects.get(pk=job.pk).cancel_requested_at is not None
    assert not Task.objects.exclude(state="cancelled").exists()

    refused = client.get("/api/datasets")
    assert (refused.status_code, refused.json()["code"]) == (409, "organization-being-deleted")
    assert ask("get", "/members").status_code == 409
    assert ask("patch", "", name="x").status_code == 409
    assert ask("get", "").json()["delete_after"] == gone.json()["delete_after"]
    assert ask("post", "/exports").status_code == 202
    assert ask("post", "/deletion", name="Delta").status_code == 409
    assert client.get("/data").url == "/organization"
    text = client.get("/organization").content.decode()
    assert "will be deleted after" in text
    assert "Restore it" in text
    bearer = {"Authorization": f"Bearer {secret}"}
    client.force_login(viewer.user)
    assert ask("delete", "/deletion").status_code == 403
    assert "Restore it" not in client.get("/organization").content.decode()
    client.logout()
    assert client.get("/api/datasets", headers=bearer).status_code == 409
    with pytest.raises(invites.BadCode):
        invites.look(code)

    client.force_login(admin.user)
    assert ask("delete", "/deletion").json()["delete_after"] is None
    assert ask("delete", "/deletion").status_code == 409
    assert client.get("/api/datasets").json()["count"] == 1
    verbs = set(AuditEntry.objects.values_list("verb", flat=True))
    assert {"organization.deletion-asked", "organization.restored"} <= verbs


def test_whoever_has_another_organization_works_there(admin, client):
    other = make.member(Role.VIEWER, user=admin.user)
    deletion.ask(admin, admin.organization, name="Delta")
    assert client.get("/api/datasets").status_code == 200
    assert client.get("/organization").context["organization"] == other.organization


def test_after_its_days_everything_goes_and_nothing_of_others(admin):
    make.scored_model(admin)
    note(admin.organization)
    exports.build(exports.ask(admin).pk)
    service.make(admin, name="ci", actions="read")
    neighbour = make.version(make.member(), name="theirs")
    files = [one.file.name for one in Artifact.objects.of(admin.organization)]
    files.append(OrganizationExport.objects.get().file.name)
    deletion.ask(admin, admin.organization, name="Delta")
    tasks.sweep()
    assert Organization.objects.filter(pk=admin.organization_id).exists()

    due(admin.organization)
    tasks.sweep()
    assert not Organization.objects.filter(pk=admin.organization_id).exists()
    assert not any(default_storage.exists(name) for name in files)
    assert [one.name for one in Dataset.objects.all()] == ["theirs"]
    assert default_storage.exists(neighbour.data.file.name)
    assert not UsageEntry.objects.exists()
    assert not Membership.objects.filter(user=admin.user).exists()
    kept = AuditEntry.objects.get(verb="organization.deleted")
    assert (kept.organization, kept.object_name) == (None, "Delta")


def test_what_is_due_can_not_be_restored(ask, admin):
    deletion.ask(admin, admin.organization, name="Delta")
    due(admin.organization)
    answer = ask("delete", "/deletion")
    assert (answer.status_code, "too late" in answer.json()["detail"]) == (409, True)


def test_it_is_the_databases_clock_that_says_what_is_due(ask, admin, monkeypatch):
    deletion.ask(admin, admin.organization, name="Delta")
    due(admin.organization)
    slow = timezone.now() - timedelta(hours=1)
    monkeypatch.setattr(deletion.timezone, "now", lambda: slow)
    with pytest.raises(deletion.Conflict, match="too late"):
        deletion.restore(admin, admin.organization)


def test_what_is_restored_just_before_it_is_deleted_stays(admin, monkeypatch):
    kept, purged = admin.organization, []
    monkeypatch.setattr(deletion, "purges", [purged.append])
    due(kept)
    listed = list(deletion._due())
    # An admin restored it between the list and its turn.
    Organization.objects.filter(pk=kept.pk).update(delete_after=None)
    monkeypatch.setattr(deletion, "_due", lambda _due=deletion._due: _Listed(listed, _due()))
    assert deletion.purge_due() == 0
    assert purged == []
    assert Organization.objects.filter(pk=kept.pk).exists()


class _Listed:
    """A list as it was a moment ago, and the question as it is answered now."""

    def __init__(self, listed, now):
        self.listed, self.now = listed, now

    def __iter__(self):
        return iter(self.listed)

    def __getattr__(self, name):
        return getattr(self.now, name)


def test_one_that_fails_does_not_keep_the_others(admin, monkeypatch):
    other = make.member(Role.ADMIN)
    for home in (admin.organization, other.organization):
        due(home)

    def purge(home):
        if home == admin.organization:
            raise OSError("the disk is gone")

    monkeypatch.setattr(deletion, "purges", [*deletion.purges, purge])
    assert deletion.purge_due() == 1
    assert Organization.objects.get() == admin.organization
    monkeypatch.undo()
    assert deletion.purge_due() == 1


def test_the_page_deletes_and_restores_and_exports(admin, client):
    client.post("/organization/exports")
    exports.build(OrganizationExport.objects.get().pk)
    text = client.get("/organization", {"tab": "settings"}).content.decode()
    link = f"/organization/exports/{OrganizationExport.objects.get().pk}"
    assert link in text
    assert "about.json" in zipped(client.get(link)).namelist()
    client.post("/organization/delete", {"name": "wrong"})
    admin.organization.refresh_from_db()
    assert admin.organization.delete_after is None
    client.post("/organization/delete", {"name": "Delta"})
    assert "is closed" in client.get("/organization").content.decode()
    answer = client.post("/organization/restore", follow=True)
    assert "Delta is restored" in answer.content.decode()


def test_an_operator_closes_and_restores_after_a_question_and_deletes_nothing_at_once(
    admin, client
):
    client.force_login(UserFactory(is_staff=True, is_superuser=True))
    place = "/admin/organizations/organization/"

    def act(action, **more):
        chosen = {"action": action, "_selected_action": [str(admin.organization_id)], **more}
        answer = client.post(place, chosen)
        admin.organization.refresh_from_db()
        return answer

    assert b"nobody gets in any more" in act("close").content
    assert admin.organization.delete_after is None
    act("close", confirmed="yes")
    assert admin.organization.delete_after is not None
    act("restore", confirmed="yes")
    assert admin.organization.delete_after is None
    assert (
        client.post(f"{place}{admin.organization_id}/delete/", {"post": "yes"}).status_code == 403
    )
