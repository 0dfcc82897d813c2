"""Personal API tokens: what they open, what they don't, and what they cost."""

import logging
import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts import actions, tokens
from accounts.models import PersonalToken, Scope, User
from organizations.models import AuditEntry, Membership, Role
from tests.factories import MembershipFactory, UserFactory

pytestmark = pytest.mark.django_db
FORM = re.compile(r"flowml_pat_[0-9A-Za-z]{36}")  # as docs/api.md gives it to secret scanners


def token_of(user: User, scope: Scope = Scope.ADMIN, days: int = 30) -> str:
    return actions.make_token(user, name="script", scope=scope, days=days)[1]


def ask(secret: str, path: str = "/api/datasets", method: str = "get", **more: Any) -> Any:
    headers = {"Authorization": f"Bearer {secret}"}
    call = getattr(Client(), method)
    return call(path, headers=headers, content_type="application/json", **more)


@pytest.fixture
def member() -> Membership:
    return MembershipFactory()


def test_a_token_is_shown_once_and_kept_as_a_digest(member: Membership, client: Client) -> None:
    client.force_login(member.user)
    made = client.post(
        "/api/auth/tokens", {"name": "ci", "scope": "write"}, content_type="application/json"
    )
    assert made.status_code == 201, made.content
    assert made["Cache-Control"] == "no-store"
    secret = made.json()["token"]
    assert FORM.fullmatch(secret)
    stored = PersonalToken.objects.get()
    assert secret not in str(vars(stored))
    assert stored.digest == tokens.digest(secret)
    listed = client.get("/api/auth/tokens")
    assert [one["name"] for one in listed.json()["results"]] == ["ci"]
    assert secret not in listed.content.decode()
    assert stored.digest not in listed.content.decode()
    assert ask(secret).status_code == 200


def test_a_changed_or_made_up_token_does_not_even_reach_the_database(member: Membership) -> None:
    secret = token_of(member.user)
    for wrong in (secret[:-1] + ("a" if secret[-1] != "a" else "b"), "flowml_pat_x", "flowml_"):
        with CaptureQueriesContext(
            connection,
        ) as queries:
            answer = ask(wrong)
        assert (answer.status_code, answer.json()["code"]) == (401, "token-unknown")
        assert not queries.captured_queries
    unknown = ask(tokens.new("pat"))
    assert unknown.json()["code"] == "token-unknown"
    assert ask(tokens.new("zzz")).json()["code"] == "token-unknown"
    assert unknown["WWW-Authenticate"].startswith("Bearer")


def test_a_token_ends_when_it_expires_is_revoked_or_its_owner_is_switched_off(
    member: Membership, client: Client
) -> None:
    secrets = [token_of(member.user) for _ in range(3)]
    assert {ask(one).status_code for one in secrets} == {200}
    old, revoked, _ = PersonalToken.objects.order_by("created_at")
    PersonalToken.objects.filter(pk=old.pk).update(expires_at=timezone.now())
    client.force_login(member.user)
    assert client.delete(f"/api/auth/tokens/{revoked.pk}").status_code == 204
    assert client.delete(f"/api/auth/tokens/{revoked.pk}").status_code == 404
    codes = [ask(one).json().get("code") for one in secrets]
    assert codes == ["token-expired", "token-revoked", None]
    User.objects.update(is_active=False)
    assert ask(secrets[2]).json()["code"] == "token-unknown"


def test_a_scope_caps_the_role(member: Membership) -> None:
    body = {"name": "x"}
    for scope, status in ((Scope.READ, 403), (Scope.WRITE, 202), (Scope.ADMIN, 202)):
        secret = token_of(member.user, scope)
        assert ask(secret).status_code == 200
        assert ask(secret, "/api/datasets/samples/iris", "post").status_code == status
        assert ask(secret, "/api/live-ticket", "post").status_code == 201
        made = ask(secret, "/api/auth/tokens", "post", data=body).status_code
        assert made == (201 if scope == Scope.ADMIN else 403)


def test_a_scope_lends_nobody_a_role() -> None:
    viewer = MembershipFactory(role=Role.VIEWER)
    secret = token_of(viewer.user, Scope.ADMIN)
    assert ask(secret, "/api/datasets/samples/iris", "post").status_code == 403
    other = MembershipFactory()
    path = "/api/datasets"
    headers = {"Authorization": f"Bearer {secret}", "X-Organization": str(other.organization_id)}
    assert Client().get(path, headers=headers).status_code == 404


def test_a_token_made_with_a_token_ends_no_later(member: Membership) -> None:
    secret = token_of(member.user, Scope.ADMIN, days=2)
    made = ask(secret, "/api/auth/tokens", "post", data={"name": "x", "expires_in_days": 300})
    assert PersonalToken.objects.get(pk=made.json()["id"]).expires_at <= timezone.now() + timedelta(
        days=2
    )


def test_nobody_sees_or_revokes_a_token_of_another(member: Membership, client: Client) -> None:
    actions.make_token(member.user, name="mine", scope=Scope.READ, days=1)
    path = f"/api/auth/tokens/{PersonalToken.objects.get().pk}"
    assert client.get(path).status_code == 401
    client.force_login(UserFactory(is_staff=True, is_superuser=True))
    assert client.get("/api/auth/tokens").json()["results"] == []
    assert client.get(path).status_code == client.delete(path).status_code == 404
    client.force_login(member.user)
    assert client.get(path).json()["name"] == "mine"


def test_what_a_client_may_not_set_is_not_set(member: Membership, client: Client) -> None:
    other = UserFactory()
    client.force_login(member.user)
    body = {
        "name": "x",
        "user": str(other.pk),
        "digest": tokens.digest("known"),
        "expires_at": "2999-01-01T00:00:00Z",
        "token": "flowml_pat_mine",
        "revoked_at": None,
    }
    made = client.post("/api/auth/tokens", body, content_type="application/json")
    token = PersonalToken.objects.get()
    assert (token.user, made.status_code) == (member.user, 201)
    assert token.digest != body["digest"]
    assert token.expires_at < timezone.now() + timedelta(days=91)
    for wrong in (
        {"expires_in_days": 366},
        {"expires_in_days": 0},
        {"scope": "owner"},
        {"name": ""},
    ):
        answer = client.post(
            "/api/auth/tokens", {"name": "x"} | wrong, content_type="application/json"
        )
        assert (answer.status_code, list(answer.json()["errors"])) == (400, list(wrong))


def test_tokens_of_one_person_are_numbered(
    member: Membership, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "MOST_TOKENS", 1)
    token_of(member.user)
    client.force_login(member.user)
    answer = client.post("/api/auth/tokens", {"name": "x"}, content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


def test_a_call_with_a_token_costs_one_query_more_than_its_work(member: Membership) -> None:
    secret = token_of(member.user)
    assert ask(secret, "/api/live-ticket", "post").status_code == 201  # writes when it was used
    with CaptureQueriesContext(connection) as queries:
        ask(secret, "/api/live-ticket", "post")
    told = [query["sql"] for query in queries.captured_queries]
    assert len(told) == 2, told  # the token with its owner, and the membership
    token = PersonalToken.objects.get()
    assert token.last_used_at is not None
    assert token.last_used_from == "127.0.0.1"


def test_the_last_use_is_written_once_a_minute(member: Membership) -> None:
    secret = token_of(member.user)
    ask(secret)
    first = PersonalToken.objects.get().last_used_at
    ask(secret)
    assert PersonalToken.objects.get().last_used_at == first
    PersonalToken.objects.update(last_used_at=timezone.now() - timedelta(minutes=2))
    ask(secret)
    assert PersonalToken.objects.get().last_used_at > first


def test_no_secret_is_logged(member: Membership, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = token_of(member.user)
    ask(secret)
    ask(secret[:-1] + "!")
    assert secret not in caplog.text
    assert secret[:-1] not in caplog.text


def test_the_console_revokes_one_only_when_that_is_confirmed(member: Membership) -> None:
    secret = token_of(member.user)
    token = PersonalToken.objects.get()
    address = "/admin/accounts/personaltoken/"
    wish = {"action": "revoke", "_selected_action": [str(token.pk)]}
    looks = UserFactory(is_staff=True)
    looks.user_permissions.set(Permission.objects.filter(codename="view_personaltoken"))
    console = Client()
    console.force_login(looks)
    console.post(address, {**wish, "confirmed": "yes"})
    assert ask(secret).status_code == 200, "who may only look revokes nothing"
    console.force_login(UserFactory(is_staff=True, is_superuser=True))
    assert "Revoke?" in console.post(address, wish).content.decode()
    assert ask(secret).status_code == 200, "nothing has happened yet"
    console.post(address, {**wish, "confirmed": "yes"})
    assert ask(secret).json()["code"] == "token-revoked"
    assert LogEntry.objects.filter(object_id=str(token.pk)).exists()
    assert AuditEntry.objects.filter(verb="account.token-revoked").count() == 1
    assert console.get(f"{address}{token.pk}/change/").status_code == 200
