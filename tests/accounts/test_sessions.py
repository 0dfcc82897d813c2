"""Where somebody is signed in: told, ended here and there, and no token outlives it."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts import jwt, tasks
from accounts.devices import name_of
from accounts.models import BrowserSession, TokenFamily, User
from organizations.models import Membership
from tests.factories import PASSWORD, MembershipFactory, UserFactory, bearer

pytestmark = pytest.mark.django_db
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


@pytest.fixture
def member() -> Membership:
    return MembershipFactory()


def post(path: str, data: Any = None, client: Client | None = None, **headers: str) -> Any:
    return (client or Client()).post(
        f"/api/auth/{path}", data or {}, content_type="application/json", headers=headers
    )


def login(user: User) -> dict[str, str]:
    answer = post("login", {"username": user.username, "password": PASSWORD})
    assert answer.status_code == 200, answer.content
    assert answer["Cache-Control"] == "no-store"
    return dict(answer.json())


def works(access: str) -> bool:
    headers = {"Authorization": f"Bearer {access}"}
    return Client().get("/api/auth/me", headers=headers).status_code == 200


def test_a_refresh_token_is_good_once_and_one_that_comes_back_ends_the_sign_in(
    member: Membership,
) -> None:
    first = login(member.user)
    second = post("refresh", {"refresh": first["refresh"]}).json()
    assert works(second["access"])
    again = post("refresh", {"refresh": first["refresh"]})
    assert again.status_code == 401
    assert again["WWW-Authenticate"].startswith("Bearer")
    # Two tabs at the same moment: the second is refused, but nobody is signed out.
    assert works(second["access"])
    TokenFamily.objects.update(rotated_at=timezone.now() - timedelta(minutes=1))
    assert post("refresh", {"refresh": first["refresh"]}).status_code == 401
    assert not works(second["access"])
    assert not works(first["access"])
    assert post("refresh", {"refresh": second["refresh"]}).status_code == 401


@pytest.mark.parametrize("bad", ["", "x", "a.b.c", None, 5])
def test_what_is_no_refresh_token_renews_nothing(member: Membership, bad: Any) -> None:
    assert post("refresh", {"refresh": bad}).status_code in {400, 401}
    access = login(member.user)["access"]
    assert post("refresh", {"refresh": access}).status_code == 401


def test_signing_out_ends_the_tokens_at_once(member: Membership, client: Client) -> None:
    one, two, three = (login(member.user) for _ in range(3))
    assert post("logout", {"refresh": one["refresh"]}).status_code == 204
    assert post("logout", Authorization=f"Bearer {two['access']}").status_code == 204
    assert [works(each["access"]) for each in (one, two, three)] == [False, False, True]
    assert post("refresh", {"refresh": one["refresh"]}).status_code == 401
    client.force_login(member.user)
    assert post("logout", client=client).status_code == 204
    assert client.get("/api/auth/me").status_code == 401
    assert post("logout").status_code == 401
    assert post("logout", ["refresh"]).status_code == 401
    # Also with an access token that has expired.
    expired = {"Authorization": "Bearer a.b.c"}
    assert post("logout", {"refresh": three["refresh"]}, **expired).status_code == 204
    assert not works(three["access"])


def test_sessions_tell_device_address_and_which_is_this_one(
    member: Membership, client: Client
) -> None:
    client.post(
        "/sign-in",
        {"username": member.user.username, "password": PASSWORD},
        headers={"User-Agent": FIREFOX},
        REMOTE_ADDR="203.0.113.9",
    )
    tokens = login(member.user)
    UserFactory()
    found = client.get("/api/auth/sessions").json()
    told = {(one["kind"], one["device"], one["address"], one["current"]) for one in found}
    assert ("browser", "Firefox on Linux", "203.0.113.9", True) in told
    assert len(found) == 2
    headers = {"Authorization": f"Bearer {tokens['access']}"}
    found = Client().get("/api/auth/sessions", headers=headers).json()
    assert [one["kind"] for one in found if one["current"]] == ["api"]
    page = client.get("/account/sessions").content.decode()
    assert "Firefox on Linux" in page
    assert "this one" in page
    for row in BrowserSession.objects.all():
        assert row.session_key not in page


def test_a_session_ends_when_its_owner_ends_it_and_at_nobody_elses_word(
    member: Membership, client: Client
) -> None:
    elsewhere = Client()
    elsewhere.force_login(member.user)
    tokens = login(member.user)
    client.force_login(UserFactory(is_staff=True, is_superuser=True))
    ids = [
        BrowserSession.objects.get(user=member.user).pk,
        TokenFamily.objects.get(user=member.user).pk,
    ]
    for one in ids:
        assert client.delete(f"/api/auth/sessions/{one}").status_code == 404
        assert client.post(f"/account/sessions/{one}/end").status_code == 404
    assert works(tokens["access"])
    client.force_login(member.user)
    for one in ids:
        assert client.delete(f"/api/auth/sessions/{one}").status_code == 204
    assert not works(tokens["access"])
    assert elsewhere.get("/").status_code == 302
    assert client.get("/").status_code == 200


def test_signing_out_everywhere_else_leaves_this_browser(
    member: Membership, client: Client
) -> None:
    elsewhere = Client()
    elsewhere.force_login(member.user)
    tokens, others = login(member.user), bearer(UserFactory())
    client.force_login(member.user)
    assert client.post("/account/sessions/end").status_code == 302
    assert client.get("/account").status_code == 200
    assert elsewhere.get("/account").status_code == 302
    assert not works(tokens["access"])
    assert Client().get("/api/auth/me", headers=others).status_code == 200
    assert client.delete("/api/auth/sessions").status_code == 204
    assert client.get("/account").status_code == 302


def test_a_session_says_once_a_minute_that_it_is_used(member: Membership, client: Client) -> None:
    client.force_login(member.user)
    client.get("/account")
    row = BrowserSession.objects.get()
    assert row.device == ""  # force_login came from no browser
    long_ago = timezone.now() - timedelta(hours=1)
    BrowserSession.objects.update(last_seen_at=long_ago)
    client.get("/account", headers={"User-Agent": FIREFOX})
    row = BrowserSession.objects.get()
    assert row.last_seen_at > long_ago
    assert row.device == FIREFOX
    seen = row.last_seen_at
    client.get("/account")
    assert BrowserSession.objects.get().last_seen_at == seen


def test_a_call_with_an_access_token_costs_two_queries(member: Membership) -> None:
    headers = bearer(member.user)
    with CaptureQueriesContext(connection) as queries:
        assert Client().post("/api/live-ticket", headers=headers).status_code == 201
    work = [q["sql"] for q in queries.captured_queries if "family" in q["sql"].lower()]
    assert len(work) == 1
    assert "accounts_user" in work[0]


def test_what_has_expired_is_deleted(member: Membership, client: Client) -> None:
    client.force_login(member.user)
    jwt.issue(member.user)
    tasks.tidy()
    assert BrowserSession.objects.count() == TokenFamily.objects.count() == 1
    BrowserSession.objects.update(expire_date=timezone.now() - timedelta(days=1))
    TokenFamily.objects.update(expires_at=timezone.now() - timedelta(days=1))
    tasks.tidy()
    assert BrowserSession.objects.count() == TokenFamily.objects.count() == 0


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        (FIREFOX, "Firefox on Linux"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) Safari/604.1", "Safari on iPhone"),
        ("Mozilla/5.0 (Windows NT 10.0) Chrome/140 Safari/537.36 Edg/140", "Edge on Windows"),
        ("curl/8.5.0", "curl 8.5.0"),
        ("<script>alert(1)</script>", "Unknown device"),
        ("", "Unknown device"),
    ],
)
def test_a_device_is_named_for_people(agent: str, words: str) -> None:
    assert name_of(agent) == words
