"""Who is in an organization, what they may do, and that somebody is always in charge."""

import contextlib

import pytest

from organizations import actions, invites
from organizations.actions import LastAdmin, NotAllowed, TooManyOrganizations
from organizations.models import AuditEntry, Membership, Organization, Role
from tests.factories import MembershipFactory, UserFactory
from tests.organizations.threads import at_once
from tests.training import make

pytestmark = pytest.mark.django_db


@pytest.fixture
def admin():
    return make.member(Role.ADMIN)


@pytest.fixture
def ask(client):
    def ask(method, membership, path="", **data):
        client.force_login(membership.user)
        address = f"/api/organizations/{membership.organization_id}{path}"
        return getattr(client, method)(address, data, content_type="application/json")

    return ask


def role_of(membership):
    return Membership.objects.filter(pk=membership.pk).values_list("role", flat=True).first()


@pytest.mark.parametrize("slash", ["", "/"])
def test_somebody_makes_organizations_and_is_their_admin(client, slash):
    ada = UserFactory()
    client.force_login(ada)
    address = f"/api/organizations{slash}"
    made = client.post(address, {"name": "  Delta   Team "}, content_type="application/json")
    assert (made.status_code, made.json()["name"], made.json()["role"]) == (
        201, "Delta Team", "admin",
    )  # fmt: skip
    assert [one["id"] for one in client.get(address).json()["results"]] == [made.json()["id"]]
    assert AuditEntry.objects.get().verb == "organization.created"


def test_one_person_makes_only_so_many_organizations(client, settings):
    settings.MAX_ORGANIZATIONS = 2
    ada = UserFactory()
    client.force_login(ada)

    def made():
        return client.post("/api/organizations", {"name": "x"}, content_type="application/json")

    MembershipFactory(user=ada, role=Role.DEVELOPER)  # of somebody else's
    assert [made().status_code for _ in range(2)] == [201, 201]
    refused = made()
    assert (refused.status_code, refused.json()["code"]) == (409, "too-many-organizations")
    assert "at most 2" in refused.json()["detail"]
    assert Organization.objects.filter(memberships__user=ada).count() == 3
    Membership.objects.filter(user=ada, role=Role.ADMIN).first().delete()
    assert made().status_code == 201


@pytest.mark.django_db(transaction=True)
def test_of_two_who_make_the_last_organization_at_once_one_is_refused(settings):
    settings.MAX_ORGANIZATIONS = 1
    ada = UserFactory()

    def make_one():
        with contextlib.suppress(TooManyOrganizations):
            actions.make_organization(ada, name="x")

    at_once(make_one, make_one, make_one)
    assert Organization.objects.count() == 1


def test_everybody_who_signs_up_has_an_organization(settings):
    settings.MAX_ORGANIZATIONS = 1
    invite = invites.renew(make.member(Role.ADMIN), role=Role.ADMIN)
    ada = actions.register(
        username="ada", email="ada@example.org", password="a long way home 7",
        allowed=True, invite_code=invite.code,
    )  # fmt: skip
    assert ada.memberships.count() == 2


def test_what_only_the_installation_may_say_is_not_taken_from_a_client(client, admin, ask):
    client.force_login(admin.user)
    wish = {"name": "x", "max_concurrent_jobs": 999, "role": "viewer", "id": str(admin.pk),
            "organization": str(admin.organization_id), "created_at": "2001-01-01"}  # fmt: skip
    made = client.post("/api/organizations", wish, content_type="application/json").json()
    stored = Organization.objects.get(pk=made["id"])
    assert (stored.max_concurrent_jobs, made["role"]) == (None, "admin")
    assert stored.created_at.year > 2001
    ask("patch", admin, name="y", max_concurrent_jobs=999, organization=made["id"])
    admin.organization.refresh_from_db()
    assert (admin.organization.name, admin.organization.max_concurrent_jobs) == ("y", None)


@pytest.mark.parametrize("name", ["", "   ", "a\nb" * 60, "x" * 121, "\u202eevil"])
def test_a_name_that_nobody_could_read_is_refused(admin, ask, name):
    answer = ask("patch", admin, name=name)
    assert (answer.status_code, list(answer.json()["errors"])) == (400, ["name"])


def test_members_are_listed_in_a_few_queries(client, admin, ask, django_assert_max_num_queries):
    for _ in range(12):
        make.member(Role.VIEWER, organization=admin.organization)
    ask("get", admin, "/members")  # what a process looks up once
    with django_assert_max_num_queries(5):
        page = client.get(f"/api/organizations/{admin.organization_id}/members").json()
    assert (page["count"], page["results"][0]["role"]) == (13, "admin")
    assert page["results"][0]["email"] == admin.user.email


def test_an_admin_changes_a_role_and_it_counts_at_once(client, admin, ask):
    ada = make.member(Role.VIEWER, organization=admin.organization)
    assert ask("patch", admin, f"/members/{ada.user_id}", role="developer").status_code == 200
    assert role_of(ada) == Role.DEVELOPER
    client.force_login(ada.user)
    assert client.post("/api/datasets/samples/iris").status_code == 202
    entry = AuditEntry.objects.get(verb="member.role-changed")
    assert entry.changes == {"from": "viewer", "to": "developer"}
    assert ask("patch", admin, f"/members/{ada.user_id}", role="owner").status_code == 400


def test_a_member_of_another_organization_is_no_member_of_this_one(admin, ask):
    stranger = make.member(Role.VIEWER)
    for method in ("patch", "delete"):
        answer = ask(method, admin, f"/members/{stranger.user_id}", role="admin")
        assert answer.status_code == 404
    assert ask("post", admin, "/transfer", user=str(stranger.user_id)).status_code == 404
    assert role_of(stranger) == Role.VIEWER


def test_who_was_removed_is_out_and_gets_no_way_back(client, admin, ask):
    ada = make.member(Role.VIEWER, organization=admin.organization)
    code = ask("get", admin, "/invite-code").json()["code"]
    assert ask("delete", admin, f"/members/{ada.user_id}").status_code == 204
    assert role_of(ada) is None
    client.force_login(ada.user)
    assert client.get(f"/api/organizations/{admin.organization_id}").status_code == 404
    back = client.post("/api/organizations/join", {"code": code}, content_type="application/json")
    assert back.status_code == 400
    assert ask("get", admin, "/invite-code").status_code == 404
    verbs = set(AuditEntry.objects.values_list("verb", flat=True))
    assert verbs == {"invite.made", "member.removed", "invite.withdrawn"}


def test_nobody_takes_back_by_a_code_what_was_taken_from_them(client, admin, ask):
    ada = make.member(Role.DEVELOPER, organization=admin.organization)
    code = ask("get", admin, "/invite-code").json()["code"]
    ask("patch", admin, f"/members/{ada.user_id}", role="viewer")
    assert ask("post", ada, "/leave").status_code == 204
    back = client.post("/api/organizations/join", {"code": code}, content_type="application/json")
    assert back.status_code == 400


@pytest.mark.parametrize("gone", ["/transfer", "/leave"])
def test_an_admin_who_goes_leaves_no_code_behind(client, admin, ask, gone):
    ada = make.member(Role.ADMIN, organization=admin.organization)
    code = ask("get", admin, "/invite-code").json()["code"]
    assert ask("post", admin, gone, user=str(ada.user_id)).status_code in {200, 204}
    client.force_login(UserFactory())
    back = client.post("/api/organizations/join", {"code": code}, content_type="application/json")
    assert back.status_code == 400


def test_the_last_admin_stays(admin, ask):
    make.member(Role.DEVELOPER, organization=admin.organization)
    switched_off = make.member(Role.ADMIN, organization=admin.organization)
    switched_off.user.is_active = False
    switched_off.user.save()
    me = f"/members/{admin.user_id}"
    answers = [
        ask("patch", admin, me, role="viewer"),
        ask("delete", admin, me),
        ask("post", admin, "/leave"),
    ]
    assert [(one.status_code, one.json()["code"]) for one in answers] == [(409, "last-admin")] * 3
    assert role_of(admin) == Role.ADMIN


def test_a_member_leaves(admin, ask):
    ada = make.member(Role.VIEWER, organization=admin.organization)
    assert ask("post", ada, "/leave").status_code == 204
    assert role_of(ada) is None
    assert AuditEntry.objects.get().verb == "member.left"


def test_an_admin_hands_over(admin, ask):
    ada = make.member(Role.VIEWER, organization=admin.organization)
    assert ask("post", admin, "/transfer", user=str(ada.user_id)).json()["role"] == "admin"
    assert (role_of(ada), role_of(admin)) == (Role.ADMIN, Role.DEVELOPER)
    assert ask("post", ada, "/transfer", user=str(ada.user_id)).status_code == 400


@pytest.mark.django_db(transaction=True)
def test_two_admins_who_go_at_the_same_moment_leave_one_behind():
    for _ in range(3):
        one = MembershipFactory(role=Role.ADMIN)
        two = MembershipFactory(role=Role.ADMIN, organization=one.organization)
        answers = at_once(lambda one=one: actions.leave(one), lambda two=two: actions.leave(two))
        assert sorted(type(answer) for answer in answers if answer) == [LastAdmin]
        assert Membership.objects.filter(organization=one.organization).count() == 1


@pytest.mark.django_db(transaction=True)
def test_two_admins_who_demote_each_other_at_the_same_moment_leave_one_in_charge():
    for _ in range(3):
        one = MembershipFactory(role=Role.ADMIN)
        two = MembershipFactory(role=Role.ADMIN, organization=one.organization)
        answers = at_once(
            lambda one=one, two=two: actions.change_role(one, two.user_id, Role.VIEWER),
            lambda one=one, two=two: actions.change_role(two, one.user_id, Role.VIEWER),
        )
        refused = [answer for answer in answers if isinstance(answer, Exception)]
        assert [type(answer) for answer in refused] == [NotAllowed]
        left = Membership.objects.filter(organization=one.organization, role=Role.ADMIN)
        assert left.count() == 1
