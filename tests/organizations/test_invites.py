"""Invite codes: who may make one, what it opens, and for how long and how many."""

from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from organizations import invites
from organizations.models import Invite, Membership, Role
from tests.factories import UserFactory
from tests.organizations.threads import at_once
from tests.training import make

pytestmark = pytest.mark.django_db


@pytest.fixture
def admin():
    return make.member(Role.ADMIN, organization__name="Delta")


def join(client, code, user=None, **more):
    if user is not None:
        client.force_login(user)
    data = {"code": code, **more}
    return client.post("/api/organizations/join", data, content_type="application/json")


def invite(client, admin, **wish):
    client.force_login(admin.user)
    address = f"/api/organizations/{admin.organization_id}/invite-code"
    return client.post(address, wish, content_type="application/json")


def test_a_new_person_joins_by_the_code_with_the_role_that_it_grants(client, admin):
    code = invite(client, admin, role="developer").json()["code"]
    ada = UserFactory()
    answer = join(client, code, ada)
    assert (answer.status_code, answer.json()["name"], answer.json()["role"]) == (
        201, "Delta", "developer",
    )  # fmt: skip
    # However it is typed.
    assert join(client, f" {code.lower().replace('-', ' ')} ", UserFactory()).status_code == 201


def test_nobody_chooses_their_own_role_or_organization(client, admin):
    code = invite(client, admin).json()["code"]
    other = make.member(Role.ADMIN)
    ada = UserFactory()
    join(client, code, ada, role="admin", organization=str(other.organization_id), uses=0)
    membership = Membership.objects.get(user=ada)
    assert (membership.organization, membership.role) == (admin.organization, Role.VIEWER)


def test_a_member_who_joins_again_stays_what_they_are_and_uses_nothing_up(client, admin):
    code = invite(client, admin, max_uses=1).json()["code"]
    answer = join(client, code, admin.user)
    assert (answer.status_code, answer.json()["role"]) == (200, "admin")
    assert join(client, code, UserFactory()).status_code == 201


def test_getting_shows_the_same_code_until_it_is_renewed_or_withdrawn(client, admin):
    client.force_login(admin.user)
    address = f"/api/organizations/{admin.organization_id}/invite-code"
    first = client.get(address).json()
    assert client.get(address).json()["code"] == first["code"]
    assert first["role"] == "viewer"
    assert first["expires_at"] is not None
    second = invite(client, admin, role="admin", valid_days=None, max_uses=3).json()
    assert (second["expires_at"], second["max_uses"], second["uses"]) == (None, 3, 0)
    assert join(client, first["code"], UserFactory()).status_code == 400
    client.force_login(admin.user)
    assert client.delete(address).status_code == 204
    assert client.get(address).json()["code"] == "no-invite-code"
    assert join(client, second["code"], UserFactory()).status_code == 400


@pytest.mark.parametrize(
    "wish", [{"role": "owner"}, {"valid_days": 0}, {"valid_days": 366}, {"max_uses": 0}]
)
def test_an_invite_that_makes_no_sense_is_refused(client, admin, wish):
    answer = invite(client, admin, **wish)
    assert (answer.status_code, list(answer.json()["errors"])) == (400, list(wish))


def test_a_code_that_is_too_old_or_used_up_says_so(client, admin):
    code = invite(client, admin, max_uses=1).json()["code"]
    join(client, code, UserFactory())
    assert "as often as it may" in join(client, code, UserFactory()).json()["detail"]
    code = invite(client, admin).json()["code"]
    Invite.objects.filter(withdrawn_at=None).update(expires_at=timezone.now() - timedelta(1))
    assert "expired" in join(client, code, UserFactory()).json()["detail"]


def test_codes_are_long_and_not_in_the_database(admin):
    code = invites.renew(admin).code
    assert len(code.replace("-", "")) == 16
    with connection.cursor() as cursor:
        cursor.execute("SELECT row_to_json(i)::text FROM organizations_invite i")
        stored = " ".join(row for (row,) in cursor.fetchall())
    assert code not in stored
    assert code.replace("-", "") not in stored


def test_guessing_is_limited_and_says_for_how_long(client, admin):
    code = invite(client, admin).json()["code"]
    ada = UserFactory()
    client.force_login(ada)
    for number in range(invites.GUESSES):
        assert join(client, f"0000-0000-0000-{number:04}").status_code == 400
    refused = join(client, code)
    assert refused.status_code == 429
    assert int(refused["Retry-After"]) > 0
    # Neither by the page, nor as somebody else from the same address.
    assert client.get("/join", {"code": code}).status_code == 429
    assert join(client, code, UserFactory()).status_code == 429


@pytest.mark.django_db(transaction=True)
def test_of_two_who_take_the_last_place_one_gets_it():
    admin = make.member(Role.ADMIN)
    for _ in range(3):
        code = invites.renew(admin, max_uses=1).code
        people = [UserFactory() for _ in range(4)]
        answers = at_once(*(lambda ada=ada, code=code: invites.accept(ada, code) for ada in people))
        assert sum(isinstance(answer, Membership) for answer in answers) == 1, answers
        assert sum(isinstance(answer, invites.BadCode) for answer in answers) == 3
        assert Membership.objects.filter(user__in=people).count() == 1


# --- The page ------------------------------------------------------------------------------------


def test_a_link_shows_who_invites_and_joins_and_works_there(client, admin):
    link = invite(client, admin, role="developer").json()["url"]
    path = link.partition("//")[2].partition("/")[2]
    client.logout()
    page = client.get(f"/{path}").content.decode()
    assert "Join Delta" in page
    assert "/sign-in?next=%2Fjoin%3Fcode%3D" in page
    ada = UserFactory()
    client.force_login(ada)
    code = link.partition("code=")[2]
    answer = client.post("/join", {"code": code}, follow=True)
    assert "You have joined Delta" in answer.content.decode()
    assert client.get("/organization").context["organization"] == admin.organization


def test_a_wrong_link_says_so_and_asks_for_another_code(client):
    page = client.get("/join", {"code": "no-such-code"})
    assert page.status_code == 400
    assert "opens nothing" in page.content.decode()
    assert 'name="code"' in page.content.decode()
