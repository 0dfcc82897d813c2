"""A new installation is set up from its pages, by the first who comes, on its own machine only."""

import pytest
from django.test import override_settings

from accounts.models import User
from organizations.actions import SignupClosed, set_up
from tests.factories import UserFactory

pytestmark = pytest.mark.django_db
ADA = {"username": "ada", "email": "ada@example.org", "password": "difference engine 1"}
HERE = override_settings(PUBLIC_URL="http://127.0.0.1:8000", ALLOW_SIGNUP=False)


@HERE
def test_the_first_account_is_the_operators_even_where_sign_ups_are_closed(client):
    assert client.get("/").url == "/sign-up"
    assert "first account" in client.get("/sign-up").content.decode()
    assert client.post("/sign-up", ADA).status_code == 302
    assert User.objects.get().is_superuser
    assert client.get("/admin/").status_code == 200


@HERE
def test_nobody_after_the_first_becomes_operator(client):
    UserFactory()
    assert client.get("/").url == "/sign-in?next=/"
    assert "closed" in client.get("/sign-up").content.decode()
    client.post("/sign-up", ADA)
    assert not User.objects.filter(is_staff=True).exists()
    with pytest.raises(SignupClosed):
        set_up(**ADA)


@override_settings(PUBLIC_URL="https://flowml.example.org")
def test_an_installation_that_others_can_reach_makes_no_operator_of_a_stranger(client):
    client.post("/sign-up", ADA)
    assert not User.objects.get().is_staff


@HERE
def test_the_api_makes_no_operator(client):
    client.post("/api/auth/register", ADA, content_type="application/json")
    assert not User.objects.filter(is_staff=True).exists()
