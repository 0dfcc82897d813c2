"""Passwords: how they are kept, guessed at, changed and set anew; and e-mail addresses."""

import logging
from collections import Counter
from typing import Any

import bcrypt
import pytest
from django.contrib.auth import hashers
from django.test import Client
from django.utils import timezone

from accounts import limits, mail, tasks
from accounts.backends import find
from accounts.hashers import BcryptHasher
from accounts.models import BrowserSession, PersonalToken, User
from tests.accounts.mails import link_in
from tests.factories import PASSWORD, MembershipFactory, UserFactory, bearer

pytestmark = pytest.mark.django_db
NEW = "another way home 8"


@pytest.fixture
def real_hashers(settings: Any) -> None:
    settings.PASSWORD_HASHERS = [
        "django.contrib.auth.hashers.Argon2PasswordHasher",
        "accounts.hashers.BcryptHasher",
        "django.contrib.auth.hashers.BCryptSHA256PasswordHasher",
    ]


def post(path: str, data: Any, client: Client | None = None, **more: Any) -> Any:
    return (client or Client()).post(
        f"/api/auth/{path}", data, content_type="application/json", **more
    )


def sign_in(name: str, password: str) -> Any:
    return post("login", {"username": name, "password": password})


# --- Hashes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", ["", "bcrypt$"])
@pytest.mark.parametrize("kind", ["$2b$", "$2a$", "$2y$"])
def test_imported_bcrypt_signs_in_and_becomes_argon2id(
    real_hashers: None, before: str, kind: str
) -> None:
    made = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    user = UserFactory(password=before + kind + made[4:])
    assert sign_in(user.username, "wrong").status_code == 401
    assert sign_in(user.username, PASSWORD).status_code == 200
    user.refresh_from_db()
    assert user.password.startswith("argon2$argon2id$")
    assert sign_in(user.username, PASSWORD).status_code == 200


def test_a_bcrypt_password_past_its_72_bytes_signs_in(real_hashers: None) -> None:
    long = "ü" * 50
    made = bcrypt.hashpw(long.encode()[:72], bcrypt.gensalt(4)).decode()
    user = UserFactory(password=made)
    assert sign_in(user.username, long).status_code == 200


def test_what_is_no_hash_lets_nobody_in(real_hashers: None) -> None:
    for odd in ("bcrypt$junk", "$2b$04$short", "bcrypt$$2b$99$x", "plain", ""):
        user = UserFactory(password=odd)
        for guess in (odd, "", "x"):
            assert sign_in(user.username, guess or "x").status_code == 401


@pytest.mark.parametrize("imported", [False, True])
def test_a_wrong_password_costs_the_same_hashing_as_an_unknown_name(
    real_hashers: None, monkeypatch: pytest.MonkeyPatch, imported: bool
) -> None:
    old = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    kinds = {
        "argon2": hashers.make_password(PASSWORD),
        "unusable": hashers.make_password(None),
        **({"imported": old} if imported else {}),
    }
    names = {name: UserFactory(password=one).username for name, one in kinds.items()}
    names["off"] = UserFactory(password=kinds["argon2"], is_active=False).username
    work: Counter[str] = Counter()
    for hasher in (hashers.Argon2PasswordHasher, BcryptHasher):
        for method in ("encode", "verify"):
            real = getattr(hasher, method)

            def counted(self: Any, *a: Any, real: Any = real, **k: Any) -> Any:
                before = work.total()
                answer = real(self, *a, **k)
                if work.total() == before:  # verify of bcrypt encodes
                    work[self.algorithm] += 1
                return answer

            monkeypatch.setattr(hasher, method, counted)
    costs, answers = {}, set()
    for name in [*names.values(), "nobody", "nobody@example.org"]:
        work.clear()
        answer = sign_in(name, "wrong")
        costs[name] = dict(work)
        answers.add((answer.status_code, answer.content))
    assert len(answers) == 1
    expected = {"argon2": 1, "bcrypt": 1} if imported else {"argon2": 1}
    assert all(cost == expected for cost in costs.values()), costs


def test_a_name_comes_before_somebody_elses_address() -> None:
    one = UserFactory(username="Ada@example.org", email="other@example.org")
    two = UserFactory(username="ada", email="ada@example.org")
    assert find("ada@EXAMPLE.org") == one
    assert find("ADA") == two
    assert find("nobody") is None


def test_name_and_address_share_their_tries() -> None:
    user = UserFactory()
    for n in range(10):
        sign_in(user.email if n % 2 else user.username, "wrong")
    answer = sign_in(user.username, PASSWORD)
    assert (answer.status_code, answer.json()["code"]) == (429, "too-many-tries")
    assert 0 < int(answer["Retry-After"]) <= 900
    page = Client().post("/sign-in", {"username": user.email, "password": PASSWORD})
    assert page.status_code == 429
    assert 0 < int(page["Retry-After"]) <= 900


def test_right_passwords_are_not_counted() -> None:
    user = UserFactory()
    for _ in range(12):
        assert sign_in(user.username, PASSWORD).status_code == 200


# --- Changing it ---------------------------------------------------------------------------------


def test_a_new_password_ends_every_other_sign_in(client: Client, mails: Any) -> None:
    member = MembershipFactory()
    elsewhere, headers = Client(), bearer(member.user)
    for one in (client, elsewhere):
        one.force_login(member.user)
    form = {"current_password": PASSWORD, "new_password": NEW}
    for wrong, field in (
        ({"current_password": "no"}, "current_password"),
        ({"new_password": "123"}, "new_password"),
        ({"new_password": member.user.email}, "new_password"),
    ):
        answer = post("password", form | wrong, client)
        assert (answer.status_code, list(answer.json()["errors"])) == (400, [field])
        assert client.post("/account/password", form | wrong).status_code == 422
    assert client.post("/account/password", form).status_code == 302
    assert client.get("/account").status_code == 200
    assert elsewhere.get("/account").status_code == 302
    assert Client().get("/api/auth/me", headers=headers).status_code == 401
    assert BrowserSession.objects.filter(user=member.user).count() == 1
    assert sign_in(member.user.username, NEW).status_code == 200


def test_the_password_is_not_guessed_by_who_has_a_session(client: Client) -> None:
    client.force_login(UserFactory())
    form = {"current_password": "wrong", "new_password": NEW}
    codes = [post("password", form, client).status_code for _ in range(11)]
    assert codes == [400] * 10 + [429]


# --- A forgotten one -----------------------------------------------------------------------------


def test_a_forgotten_password_is_set_by_the_link_once(client: Client, mails: Any) -> None:
    user = UserFactory()
    client.force_login(user)
    assert post("password/reset", {"email": user.email.upper()}).status_code == 202
    link = link_in(mails[-1])
    assert mails[-1].to == [user.email]
    visitor = Client()
    assert visitor.get(link).status_code == 200
    assert visitor.post(link, {"password": "123"}).status_code == 422
    assert visitor.post(link, {"password": NEW})["Location"] == "/sign-in"
    assert visitor.get("/account").status_code == 302  # the link signs nobody in
    assert client.get("/account").status_code == 302  # and signs out whoever was
    assert visitor.post(link, {"password": "once more 99"}).status_code == 404
    assert sign_in(user.username, NEW).status_code == 200
    assert "was changed" in mails[-1].subject


def test_the_api_sets_it_by_the_same_link(mails: Any) -> None:
    user = UserFactory()
    Client().post("/password/forgotten", {"email": user.email})
    query = link_in(mails[-1]).partition("?")[2]
    given = dict(part.split("=") for part in query.split("&")) | {"password": NEW}
    other = UserFactory()
    tokens = [PersonalToken.issue(user=one, name="script")[1] for one in (user, other)]
    for wrong in ({"token": given["token"][:-1] + "x"}, {"uid": "x"}, {"uid": "%%"}, {"token": ""}):
        assert post("password/reset/confirm", given | wrong).status_code == 400
    assert post("password/reset/confirm", given).status_code == 204
    assert post("password/reset/confirm", given).status_code == 400
    assert sign_in(user.username, NEW).status_code == 200
    assert sign_in(other.username, PASSWORD).status_code == 200
    # Who lost a password may have been robbed: what the thief made goes, too.
    asked = [
        Client(headers={"Authorization": f"Bearer {token}"}).get("/api/auth/me") for token in tokens
    ]
    assert [answer.status_code for answer in asked] == [401, 200]


def test_a_link_is_good_for_an_hour_and_for_nobody_switched_off(mails: Any, settings: Any) -> None:
    user = UserFactory()
    tasks.reset(user.email)
    link = link_in(mails[-1])
    assert Client().get(link).status_code == 200
    settings.PASSWORD_RESET_TIMEOUT = -1
    assert Client().get(link).status_code == 404
    settings.PASSWORD_RESET_TIMEOUT = 3600
    User.objects.update(is_active=False)
    assert Client().get(link).status_code == 404
    tasks.reset(user.email)
    assert len(mails) == 1


def test_nobody_learns_whether_an_address_has_an_account(mails: Any) -> None:
    user = UserFactory()
    for path in ("password/reset", "email/resend"):
        known, unknown = (
            post(path, {"email": email}) for email in (user.email, "nobody@example.org")
        )
        assert known.status_code == unknown.status_code == 202
        assert known.content == unknown.content
    assert [one.to for one in mails] == [[user.email], [user.email]]
    # Neither is flooded.
    for email in (user.email, "nobody@example.org"):
        codes = [post("password/reset", {"email": email}).status_code for _ in range(3)]
        assert codes[-1] == 429


def test_a_forged_host_is_in_no_link(mails: Any, settings: Any) -> None:
    settings.ALLOWED_HOSTS = ["*"]
    settings.PUBLIC_URL = "https://flowml.example.org"
    user = UserFactory()
    post("password/reset", {"email": user.email}, headers={"Host": "evil.example"})
    assert "https://flowml.example.org/password/reset?" in mails[-1].body
    assert "evil" not in mails[-1].body


# --- E-mail addresses ----------------------------------------------------------------------------

ADA = {"username": "ada", "email": "ada@example.org", "password": "difference engine 1"}


def test_an_address_is_confirmed_before_the_first_sign_in(mails: Any, settings: Any) -> None:
    settings.REQUIRE_VERIFIED_EMAIL = True
    made = post("register", ADA)
    assert (made.status_code, made.json()["tokens"]) == (201, None)
    assert "link" in made.json()["notices"][0]
    refused = sign_in("ada", ADA["password"])
    assert (refused.status_code, refused.json()["code"]) == (403, "email-unverified")
    assert sign_in("ada", "wrong").status_code == 401
    page = Client().post("/sign-in", ADA)
    assert "Open the link" in page.content.decode()
    link = link_in(mails[-1])
    assert Client().get(link).status_code == 200  # a program that looks through mail
    assert sign_in("ada", ADA["password"]).status_code == 403
    assert Client().post(link)["Location"] == "/sign-in"
    assert sign_in("ada", ADA["password"]).status_code == 200
    assert Client().post(link).status_code == 404
    post("email/resend", {"email": ADA["email"]})
    assert len(mails) == 1  # it waits for nothing any more


def test_a_page_that_signs_up_sends_the_link_too(mails: Any, settings: Any) -> None:
    settings.REQUIRE_VERIFIED_EMAIL = True
    UserFactory()
    client = Client()
    assert client.post("/sign-up", ADA)["Location"] == "/sign-in"
    assert client.get("/account").status_code == 302
    token = link_in(mails[-1]).partition("token=")[2].replace("%3A", ":")
    assert post("email/verify", {"token": token + "x"}).status_code == 400
    assert post("email/verify", {"token": token}).status_code == 204
    assert post("email/verify", {"token": token}).status_code == 400


def test_a_new_password_voids_the_links_that_another_asked_for(mails: Any, settings: Any) -> None:
    settings.REQUIRE_VERIFIED_EMAIL = True
    user = UserFactory()
    thiefs = mail.verification(user, "thief@example.org")
    assert mail.read_verification(thiefs) == (user, "thief@example.org")
    user.set_password("another long pass phrase")
    user.save()
    assert mail.read_verification(thiefs) is None


def test_another_address_takes_the_password_and_the_old_one_is_told(
    client: Client, mails: Any
) -> None:
    user, other = UserFactory(), UserFactory()
    client.force_login(user)

    def change(**body: str) -> Any:
        return client.patch("/api/auth/me", body, content_type="application/json")

    assert change(email="new@example.org").status_code == 400
    assert change(email="new@example.org", password="wrong").status_code == 400
    taken = change(email=other.email.upper(), password=PASSWORD)
    assert (taken.status_code, list(taken.json()["errors"])) == (400, ["email"])
    answer = change(email="new@example.org", password=PASSWORD, first_name="Ada")
    assert answer.status_code == 200, answer.content
    assert (answer.json()["email"], answer.json()["first_name"]) == ("new@example.org", "Ada")
    assert mails[-1].to == [user.email]
    assert "password" not in answer.json()


def test_another_address_is_confirmed_first_where_that_is_set(
    client: Client,
    mails: Any,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings.REQUIRE_VERIFIED_EMAIL = True
    user = UserFactory()
    client.force_login(user)
    form = {"email": "new@example.org", "password": PASSWORD}
    assert client.post("/account", form | {"password": "no"}).status_code == 422
    assert client.post("/account", form).status_code == 302
    user.refresh_from_db()
    assert user.email != "new@example.org"
    link = link_in(mails[-1])
    assert mails[-1].to == ["new@example.org"]
    with monkeypatch.context() as patch:
        patch.setattr(mail, "VERIFY_S", -1)
        assert Client().post(link).status_code == 404
    late = UserFactory(email="new@example.org")  # somebody else took it meanwhile
    Client().post(link)
    user.refresh_from_db()
    assert user.email != "new@example.org"
    late.delete()
    Client().post(link)
    user.refresh_from_db()
    assert user.email == "new@example.org"
    assert user.email_verified_at is not None


@pytest.mark.parametrize("confirmed", [True, False])
def test_nobody_is_flooded_with_messages_of_an_account_that_is_not_theirs(
    client: Client, mails: Any, settings: Any, confirmed: bool
) -> None:
    settings.REQUIRE_VERIFIED_EMAIL = confirmed
    user = UserFactory(email_verified_at=timezone.now())
    client.force_login(user)
    answers = []
    for turn in range(5):
        for email in ("victim@example.org", f"other{turn}@example.org"):
            body = {"email": email, "password": PASSWORD}
            answers.append(client.patch("/api/auth/me", body, content_type="application/json"))
    assert {answer.status_code for answer in answers} == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["Retry-After"]) > 0
    assert sum(message.to == ["victim@example.org"] for message in mails) == 3


def test_notices_are_many_at_most(mails: Any, caplog: pytest.LogCaptureFixture) -> None:
    user = UserFactory()
    for _ in range(limits.NOTICES + 5):
        tasks.notice(str(user.pk), user.email, "password-changed")
    assert len(mails) == limits.NOTICES
    assert "a notice was not sent" in caplog.text
    tasks.notice(str(user.pk), "another@example.org", "password-changed")
    assert len(mails) == limits.NOTICES + 1


def test_only_what_is_ones_own_to_change_changes(client: Client) -> None:
    user = UserFactory()
    client.force_login(user)
    body = {"is_staff": True, "is_superuser": True, "username": "root", "id": str(UserFactory().pk)}
    body |= {"email_verified_at": "2020-01-01T00:00:00Z", "is_active": False, "last_name": "L"}
    answer = client.patch("/api/auth/me", body, content_type="application/json")
    assert answer.status_code == 200
    before = user.username
    user.refresh_from_db()
    assert (user.username, user.is_staff, user.is_superuser) == (before, False, False)
    assert (user.email_verified_at, user.last_name) == (None, "L")


# --- Nothing secret is logged --------------------------------------------------------------------


def test_no_password_code_or_link_is_logged(
    client: Client,
    mails: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    user = UserFactory()
    secrets = [PASSWORD, NEW]
    tokens = sign_in(user.username, PASSWORD).json()
    secrets += tokens.values()
    post("refresh", {"refresh": tokens["refresh"]})
    client.force_login(user)
    secrets.append(client.session.session_key)
    post("password/reset", {"email": user.email})
    link = link_in(mails[-1])
    secrets.append(link.partition("token=")[2])
    client.get(link)
    client.post(link, {"password": NEW})
    post("password/reset/confirm", {"uid": "x", "token": "y", "password": NEW})
    assert "request" in caplog.text
    for secret in secrets:
        assert secret not in caplog.text
