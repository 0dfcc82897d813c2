"""The audit log: it tells who did what from where, and nobody rewrites it."""

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext

from datasets import actions as data
from organizations.audit import record, record_account
from organizations.models import AuditEntry, Role
from tests.factories import MembershipFactory, UserFactory
from tests.training import make

pytestmark = pytest.mark.django_db


def test_a_change_over_the_api_says_who_what_where_and_when(client):
    ada = make.member(Role.DEVELOPER)
    client.force_login(ada.user)
    version = make.version(ada, name="flowers")
    answer = client.delete(
        f"/api/datasets/{version.dataset_id}",
        headers={"X-Request-ID": "from-the-test"},
        REMOTE_ADDR="192.0.2.7",
    )
    assert answer.status_code == 204
    entry = AuditEntry.objects.get()
    assert (entry.actor, entry.actor_id, entry.actor_kind) == (
        ada.user.username, ada.user_id, "person",
    )  # fmt: skip
    assert (entry.verb, entry.object_name, entry.object_kind) == (
        "dataset.deleted", "flowers", "dataset",
    )  # fmt: skip
    assert entry.organization_id == ada.organization_id
    assert (entry.address, entry.request_id) == ("192.0.2.7", "from-the-test")


def test_what_did_not_happen_is_not_told():
    ada = make.member()
    with transaction.atomic():
        data.load_sample(ada, "iris")
        transaction.set_rollback(True)
    assert not AuditEntry.objects.exists()


def test_outside_of_a_request_it_was_the_system_or_whom_the_caller_names():
    ada = MembershipFactory()
    record("organization.swept", ada.organization)
    record("organization.paused", ada.organization, by="root")
    record("organization.renamed", ada.organization, by=ada)
    kinds = AuditEntry.objects.values_list("actor_kind", "actor").order_by("created_at")
    assert list(kinds) == [
        ("system", "FlowML"), ("operator", "root"), ("person", ada.user.username),
    ]  # fmt: skip


def test_secrets_stay_out():
    ada = MembershipFactory()
    changes = {"role": 30, "password": "x", "invite_code": "y", "token": "z", "expires_at": None}
    record("member.changed", ada.user, organization=ada.organization, changes=changes)
    assert AuditEntry.objects.get().changes == {"role": 30, "expires_at": None}


def test_an_entry_is_one_insert():
    ada = MembershipFactory()
    with CaptureQueriesContext(connection) as queries:
        record("organization.renamed", ada.organization, by=ada)
    assert [query["sql"][:6] for query in queries] == ["INSERT"]


def test_a_change_of_an_account_is_told_in_each_of_its_organizations():
    ada = MembershipFactory()
    other = MembershipFactory(user=ada.user)
    record_account("account.password-changed", ada.user)
    homes = AuditEntry.objects.values_list("organization", flat=True)
    assert set(homes) == {ada.organization_id, other.organization_id}
    record_account("account.password-changed", UserFactory())
    assert AuditEntry.objects.filter(organization=None).count() == 1


def test_the_database_refuses_to_change_or_delete_an_entry():
    ada = MembershipFactory()
    record("organization.renamed", ada.organization, by=ada)
    entry = AuditEntry.objects.get()
    for attempt in (
        lambda: AuditEntry.objects.update(actor="somebody else"),
        entry.delete,
        ada.organization.delete,
    ):
        with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
            attempt()
    assert AuditEntry.objects.get().actor == ada.user.username


def test_entries_outlive_whom_they_tell_of():
    ada = MembershipFactory()
    record("organization.renamed", ada.organization, by=ada)
    name = ada.user.username
    ada.user.delete()
    assert AuditEntry.objects.get().actor == name
