"""The pages of one's own account."""

import pytest
from django.test import Client

from accounts.models import PersonalToken
from tests.factories import MembershipFactory, UserFactory

pytestmark = pytest.mark.django_db


def test_a_token_is_made_shown_once_and_revoked(client: Client) -> None:
    member = MembershipFactory()
    client.force_login(member.user)
    form = {"name": "<b>nightly</b>", "scope": "write", "days": "30"}
    assert "No tokens yet" in client.get("/account/tokens").content.decode()
    assert client.post("/account/tokens", form | {"scope": "all"}).status_code == 422
    made = client.post("/account/tokens", form)
    page = made.content.decode()
    assert "flowml_pat_" in page
    assert made["Cache-Control"] == "no-store"
    assert "<b>nightly" not in page
    page = client.get("/account/tokens").content.decode()
    token = PersonalToken.objects.get()
    assert page.count("flowml_pat_") == 0
    assert f"…{token.hint}" in page
    path = f"/account/tokens/{token.pk}/revoke"
    assert client.get(path).status_code == 405
    stranger = Client()
    stranger.force_login(UserFactory())
    assert stranger.post(path).status_code == 404
    assert client.post(path).status_code == 302
    assert "opens nothing" in client.get("/account/tokens").content.decode()
    assert not PersonalToken.objects.filter(revoked_at=None).exists()


def test_the_account_is_open_to_who_is_in_no_organization(client: Client) -> None:
    client.force_login(UserFactory())
    for part in ("", "/password", "/tokens", "/sessions", "/second-factor"):
        answer = client.get(f"/account{part}")
        assert answer.status_code == 200
        page = answer.content.decode()
        for piece in (" style=", "<style", " onclick", "hx-on", "javascript:"):
            assert piece not in page, part


def test_a_name_is_saved(client: Client) -> None:
    user = UserFactory()
    client.force_login(user)
    client.post("/account", {"first_name": "Ada", "last_name": "Lovelace", "is_staff": "on"})
    user.refresh_from_db()
    assert (user.get_full_name(), user.is_staff) == ("Ada Lovelace", False)


def test_what_is_written_to_one_is_chosen_on_the_page_and_by_the_api(client: Client) -> None:
    user = UserFactory()
    client.force_login(user)
    assert '<option value="10" selected>' in client.get("/account").content.decode()
    for said, kept in (("60", 60), ("", None), ("0", 0)):
        assert client.post("/account", {"mail_after_min": said}).status_code == 302
        user.refresh_from_db()
        assert user.mail_after_min == kept
    assert client.post("/account", {"mail_after_min": "7"}).status_code == 422
    body = {"mail_after_min": 30}
    answer = client.patch("/api/auth/me", body, content_type="application/json")
    assert answer.json()["mail_after_min"] == 30
    assert '<option value="30" selected>' in client.get("/account").content.decode()
    user.refresh_from_db()
    assert user.get_full_name() == "", "the other forms of the page changed nothing"


def test_the_frame_of_the_account_says_where_one_works(client: Client) -> None:
    member = MembershipFactory(organization__name="The third lab")
    client.force_login(member.user)
    assert "The third lab" in client.get("/account").content.decode()
