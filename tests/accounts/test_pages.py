"""Signing up, in and out on pages."""

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from accounts.models import User
from organizations.models import Role
from tests.factories import PASSWORD, MembershipFactory, OrganizationFactory, UserFactory

pytestmark = pytest.mark.django_db
NEW = {"username": "mira", "email": "mira@example.org", "password": "a long way home 7"}


def test_signing_up_makes_an_organization_and_signs_in(client: Client) -> None:
    response = client.post("/sign-up", NEW | {"next": "/data"})
    assert (response.status_code, response["Location"]) == (302, "/data")
    user = User.objects.get(username="mira")
    assert user.memberships.get().role == Role.ADMIN
    assert client.get("/data").status_code == 200


def test_a_refused_sign_up_keeps_what_was_entered(client: Client) -> None:
    UserFactory(username="mira")
    response = client.post("/sign-up", NEW | {"password": "123"})
    page = response.content.decode()
    assert response.status_code == 422
    assert "too short" in page
    assert 'value="mira@example.org"' in page
    assert "123" not in page.replace("#123", "")
    taken = client.post("/sign-up", NEW).content.decode()
    assert "Somebody has this name already" in taken


def test_closed_sign_ups_offer_no_form(client: Client, settings: Any) -> None:
    settings.ALLOW_SIGNUP = False
    operator = UserFactory()  # without anybody, the page would set the installation up
    assert "<form" not in client.get("/sign-up").content.decode()
    client.post("/sign-up", NEW)
    assert list(User.objects.all()) == [operator]


@pytest.mark.parametrize(
    "evil", ["https://elsewhere.example/", "//elsewhere.example", "javascript:x"]
)
def test_signing_in_never_leads_to_another_host(client: Client, evil: str) -> None:
    member = MembershipFactory(user__username="ada")
    form = {"username": "ada", "password": PASSWORD, "next": evil}
    assert member.user.check_password(PASSWORD)
    assert client.post("/sign-in", form)["Location"] == "/"
    client.post("/sign-out")
    assert client.post("/sign-up", NEW | {"next": evil})["Location"] == "/"


def test_an_address_signs_in_as_well_as_a_name(client: Client) -> None:
    member = MembershipFactory()
    form = {"username": member.user.email.upper(), "password": PASSWORD}
    assert client.post("/sign-in", form).status_code == 302
    assert client.get("/").status_code == 200


def test_a_wrong_password_keeps_the_name_and_says_what_to_do(client: Client) -> None:
    response = client.post("/sign-in", {"username": "ada", "password": "no"})
    page = response.content.decode()
    assert "do not go together" in page
    assert 'value="ada"' in page


def test_signing_out_takes_a_post(client: Client) -> None:
    client.force_login(MembershipFactory().user)
    assert client.get("/sign-out").status_code == 405
    assert client.post("/sign-out")["Location"] == reverse("accounts:sign-in")
    assert client.get("/").status_code == 302


def test_people_in_two_organizations_choose_where_they_work(client: Client) -> None:
    first = MembershipFactory()
    second = MembershipFactory(user=first.user, organization__name="The other lab")
    client.force_login(first.user)
    assert "The other lab" in client.get("/organizations").content.decode()
    url = reverse("organizations:choose", args=[second.organization_id])
    assert "You now work in The other lab" in client.post(url, follow=True).content.decode()
    foreign = reverse("organizations:choose", args=[OrganizationFactory().pk])
    assert client.post(foreign).status_code == 404


def test_somebody_without_an_organization_is_told_so(client: Client) -> None:
    client.force_login(UserFactory())
    response = client.get("/")
    assert response.status_code == 403
    assert "ask for an invite" in response.content.decode()


def test_pages_hold_no_inline_script_style_or_foreign_address(client: Client) -> None:
    client.force_login(MembershipFactory().user)
    for url in ("/", "/data", "/training", "/models", "/organization", "/training/new"):
        page = client.get(url).content.decode()
        for piece in (" style=", "<style", " onclick", "hx-on", "javascript:", "https://"):
            assert piece not in page, (url, piece)
        scripts = page.count("<script")
        assert scripts == page.count("<script src=") + page.count('type="application/json"'), url
