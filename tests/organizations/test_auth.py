import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection
from django.test import Client, override_settings

from accounts.models import User
from organizations import invites
from organizations.models import Membership, Role
from tests.factories import PASSWORD, MembershipFactory, UserFactory

pytestmark = pytest.mark.django_db
NEW = {"username": "ada", "email": "ada@example.org", "password": "difference engine 1"}


def post(client, path, data, **kwargs):
    return client.post(f"/api/auth/{path}", data, **kwargs)


def test_registering_signs_in_and_makes_a_personal_organization(client):
    answer = post(client, "register", NEW, content_type="application/json")
    assert answer.status_code == 201, answer.content
    membership = Membership.objects.get(user__username="ada")
    assert membership.role == Role.ADMIN
    assert answer.json()["organization"] == str(membership.organization_id)
    token = answer.json()["tokens"]["access"]
    tickets = client.post("/api/live-ticket", headers={"Authorization": f"Bearer {token}"})
    assert tickets.status_code == 201


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"username": "ADA2"}, "username"),
        ({"email": "ADA2@example.org"}, "email"),
        ({"password": "12345"}, "password"),
        ({"password": "ada@example.org"}, "password"),
        ({"email": "nobody"}, "email"),
        ({"username": "a b<c>"}, "username"),
    ],
)
def test_a_bad_registration_names_the_field_and_makes_nothing(client, change, field):
    UserFactory(username="ada2", email="ada2@example.org")
    answer = post(client, "register", NEW | change, content_type="application/json")
    assert answer.status_code == 400
    assert answer["Content-Type"] == "application/problem+json"
    assert list(answer.json()["errors"]) == [field]
    assert User.objects.count() == 1


@override_settings(ALLOW_SIGNUP=False)
def test_a_closed_installation_takes_no_registrations(client):
    answer = post(client, "register", NEW, content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (403, "signup-closed")
    assert not User.objects.exists()


@pytest.mark.parametrize("form", [True, False])
def test_signing_in_takes_json_and_forms_and_a_refresh_token_renews(client, form):
    UserFactory(username="ada")
    data = {"username": "ada", "password": PASSWORD}
    kind = {} if form else {"content_type": "application/json"}
    tokens = post(client, "login", data, **kind).json()
    renewed = post(client, "refresh", {"refresh": tokens["refresh"]})
    assert set(tokens) == {"access", "refresh"}
    assert set(renewed.json()) == {"access", "refresh"}


@pytest.mark.parametrize("role", ["admin", 30, {"a": 1}, None])
def test_a_role_is_ignored_and_says_so(client, role):
    answer = post(client, "register", NEW | {"role": role}, content_type="application/json")
    assert answer.status_code == 201, answer.content
    assert ("role was ignored" in str(answer.json()["notices"])) == (role is not None)
    user = User.objects.get()
    assert not user.is_staff
    assert user.memberships.count() == 1


def test_an_invite_code_opens_the_organization_that_one_then_works_in(client):
    admin = MembershipFactory()
    code = invites.current(admin).code
    body = NEW | {"invite_code": "no-such-code"}
    refused = post(client, "register", body, content_type="application/json")
    assert (refused.status_code, list(refused.json()["errors"])) == (400, ["invite_code"])
    assert not User.objects.filter(username="ada").exists()
    made = post(
        client, "register", NEW | {"invite_code": code}, content_type="application/json"
    ).json()
    assert made["organization"] == str(admin.organization_id)
    headers = {"Authorization": f"Bearer {made['tokens']['access']}"}
    me = client.get("/api/auth/me", headers=headers).json()
    roles = [(one["name"], one["role"]) for one in me["organizations"]]
    assert roles == [(admin.organization.name, "viewer"), ("ada's organization", "admin")]


@pytest.mark.django_db(transaction=True)
def test_of_two_who_take_a_name_at_once_one_is_told_so():
    start = threading.Barrier(6)

    def sign_up(number: int) -> tuple[int, list[str]]:
        body = NEW | {"email": f"ada{number % 3}@example.org"}
        start.wait(timeout=30)
        try:
            answer = Client().post("/api/auth/register", body, content_type="application/json")
            return answer.status_code, sorted(answer.json().get("errors", {}))
        finally:
            connection.close()

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(sign_up, range(6)))
    assert sorted(status for status, _ in found) == [201] + [400] * 5
    # Which of the two is told of depends on when the first one was through.
    assert all(fields and set(fields) <= {"username", "email"} for s, fields in found if s == 400)
    assert User.objects.count() == 1


def test_a_wrong_password_and_an_unknown_name_are_answered_alike(client):
    UserFactory(username="ada")
    answers = [
        post(client, "login", {"username": name, "password": "wrong"}).json()
        for name in ("ada", "nobody")
    ]
    assert answers[0] == answers[1]
    assert answers[0]["status"] == 401


def test_the_header_chooses_among_the_organizations_of_a_member_only(client):
    mine = MembershipFactory(role=Role.VIEWER)
    other = MembershipFactory()
    client.force_login(mine.user)

    def ask(organization) -> int:
        return client.post("/api/live-ticket", headers={"X-Organization": organization}).status_code

    assert ask(str(mine.organization_id)) == 201
    assert ask(str(other.organization_id)) == 404
    assert ask("nonsense") == 400
    assert client.post("/api/live-ticket").status_code == 201


def test_who_is_in_no_organization_may_do_nothing(client):
    client.force_login(UserFactory())
    assert client.post("/api/live-ticket").status_code == 403
    client.logout()
    assert client.post("/api/live-ticket").status_code == 401
