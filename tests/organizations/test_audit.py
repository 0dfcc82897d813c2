"""The audit log: it tells who did what from where, and nobody rewrites it."""

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django_otp.oath import totp
from django_otp.plugins.otp_totp.models import TOTPDevice

from accounts.signals import account_changed
from datasets import actions as data
from organizations.audit import record, record_account
from organizations.csvs import defused
from organizations.models import AuditEntry, Role
from tests.factories import PASSWORD, MembershipFactory, UserFactory
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


# --- Reading it ----------------------------------------------------------------------------------


@pytest.fixture
def ask(client):
    admin = make.member(Role.ADMIN)
    client.force_login(admin.user)
    for verb, name in (("dataset.created", "cars"), ("dataset.deleted", "iris"), ("a.b", "=1+1")):
        record(verb, None, organization=admin.organization, by=admin, name=name)
    record("dataset.created", None, organization=make.member().organization, name="not theirs")

    def ask(path="", **query):
        return client.get(f"/api/organizations/{admin.organization_id}/audit{path}", query)

    return ask


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({}, ["=1+1", "iris", "cars"]),
        ({"verb": "dataset"}, ["iris", "cars"]),
        ({"verb": "dataset.created"}, ["cars"]),
        ({"search": "RIS"}, ["iris"]),
        ({"since": "2001-01-01", "verb": "a"}, ["=1+1"]),
        ({"until": "2001-01-01"}, []),
        ({"actor": "nobody of this name"}, []),
    ],
)
def test_the_log_is_filtered_and_newest_first(ask, query, names):
    assert [row["object_name"] for row in ask(**query).json()["results"]] == names


@pytest.mark.parametrize("moment", ["yesterday", "2026-13-01", "9999-12-31T23:00:00-12:00"])
def test_a_time_that_is_none_is_refused(ask, moment):
    answer = ask(since=moment)
    assert (answer.status_code, list(answer.json()["errors"])) == (400, ["since"])


def test_the_log_costs_the_same_whatever_its_length(ask, django_assert_max_num_queries):
    ask()
    with django_assert_max_num_queries(5):
        ask()


def test_as_csv_no_cell_is_a_formula(ask):
    answer = ask("/export")
    assert answer["Content-Type"].startswith("text/csv")
    table = answer.content.decode().splitlines()
    assert table[0].startswith("created_at,actor")
    assert ",'=1+1," in table[1]
    assert len(table) == 4


@pytest.mark.parametrize(
    ("cell", "written"),
    [("=1", "'=1"), ("@a", "'@a"), ("+a", "'+a"), ("-a", "'-a"), ("\ta", "'\ta"),
     ("-1.5e3", "-1.5e3"), ("+4", "+4"), (-4, -4), ("a=1", "a=1"), (None, None), ("", "")],
)  # fmt: skip
def test_formulas_are_defused_and_numbers_are_not(cell, written):
    assert defused(cell) == written


def test_what_an_operator_does_in_the_console_is_told(client):
    admin = make.member(Role.ADMIN)
    root = UserFactory(is_staff=True, is_superuser=True)
    client.force_login(root)
    organization = admin.organization
    form = {
        "name": "Renamed", "memberships-TOTAL_FORMS": "0", "memberships-INITIAL_FORMS": "0",
    }  # fmt: skip
    address = f"/admin/organizations/organization/{organization.pk}/change/"
    assert client.post(address, form).status_code == 302
    entry = AuditEntry.objects.get()
    assert (entry.verb, entry.actor_kind, entry.actor) == (
        "console.changed", "operator", root.username,
    )  # fmt: skip
    assert entry.organization == organization
    assert "Name" in entry.changes["what"]


def test_a_change_of_an_account_reaches_the_log_by_its_signal():
    ada = make.member()
    account_changed.send(
        sender=type(ada.user), user=ada.user, verb="account.token-made", name="ci", request=None
    )
    entry = AuditEntry.objects.get()
    assert (entry.organization, entry.verb) == (ada.organization, "account.token-made")
    assert (entry.actor, entry.changes) == (ada.user.username, {"name": "ci"})


@pytest.mark.parametrize("path", ["/sign-in", "/api/auth/login"])
@pytest.mark.parametrize("with_code", [False, True])
def test_a_sign_in_is_told_once_it_is_through_and_says_from_where(client, path, with_code):
    ada = make.member()
    given = {"username": ada.user.username, "password": "not it"}
    client.post(path, given)
    assert not AuditEntry.objects.exists()
    given["password"] = PASSWORD
    if with_code:
        device = TOTPDevice.objects.create(user=ada.user, confirmed=True)
        client.post(path, given)
        assert not AuditEntry.objects.exists(), "the password alone is no sign-in"
        code = f"{totp(device.bin_key):06}"
        if path == "/sign-in":
            path, given = "/sign-in/code", {"code": code}
        else:
            given["otp"] = code
    assert client.post(path, given).status_code in {200, 302}
    entry = AuditEntry.objects.get()
    assert (entry.organization, entry.verb) == (ada.organization, "account.signed-in")
    assert (entry.actor, entry.actor_kind, entry.address) == (
        ada.user.username, "person", "127.0.0.1",
    )  # fmt: skip
