"""The second factor: set up, asked for wherever one signs in, and good once."""

import time
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from django_otp.oath import totp
from django_otp.plugins.otp_totp.models import TOTPDevice

from accounts import second_factor
from accounts.models import PersonalToken, RecoveryCode, User
from tests.accounts.mails import link_in
from tests.factories import PASSWORD, MembershipFactory, UserFactory

pytestmark = pytest.mark.django_db


def post(path: str, data: Any = None, client: Client | None = None) -> Any:
    return (client or Client()).post(
        f"/api/auth/{path}", data or {}, content_type="application/json"
    )


def code_of(user: User, *, steps: int = 0) -> str:
    """What the person's phone shows; ``steps`` of 30 s later."""
    device = TOTPDevice.objects.get(user=user)
    return f"{totp(device.bin_key, t0=-30 * steps):06}"


def wait(user: User) -> None:
    """Let the time pass for which a wrong code closes the door, and codes start anew."""
    TOTPDevice.objects.filter(user=user).update(
        throttling_failure_timestamp=timezone.now() - timedelta(hours=1),
    )


@pytest.fixture
def member(mails: Any) -> Any:
    """Somebody with a second factor, and their recovery codes."""
    member = MembershipFactory()
    second_factor.begin(member.user)
    member.codes = second_factor.confirm(member.user, code_of(member.user))
    TOTPDevice.objects.update(last_t=-1)  # as some time later
    return member


def sign_in(user: User, otp: str | None = None) -> Any:
    more = {} if otp is None else {"otp": otp}
    return post("login", {"username": user.username, "password": PASSWORD} | more)


def test_it_is_set_up_with_the_password_and_a_first_code(client: Client, mails: Any) -> None:
    user = UserFactory()
    client.force_login(user)
    assert post("second-factor", {"password": "wrong"}, client).status_code == 400
    setup = post("second-factor", {"password": PASSWORD}, client)
    assert setup.status_code == 201
    assert setup["Cache-Control"] == "no-store"
    assert setup.json()["uri"].startswith("otpauth://totp/FlowML")
    assert setup.json()["secret"] in setup.json()["uri"]
    assert " style=" not in setup.json()["qr_svg"]
    assert sign_in(user).status_code == 200  # not yet
    wrong = post("second-factor/confirm", {"code": "abc"}, client)
    assert (wrong.status_code, wrong.json()["code"]) == (400, "otp-wrong")
    made = post("second-factor/confirm", {"code": code_of(user)}, client)
    assert len(set(made.json()["recovery_codes"])) == 10
    assert client.get("/api/auth/second-factor").json() == {"on": True, "recovery_codes_left": 10}
    assert sign_in(user).status_code == 401
    assert post("second-factor", {"password": PASSWORD}, client).status_code == 409
    assert "turned on" in mails[-1].subject
    stored = str(list(RecoveryCode.objects.values()))
    assert not any(one.replace("-", "") in stored for one in made.json()["recovery_codes"])


def test_the_api_asks_for_a_code_and_takes_each_once(member: Any) -> None:
    asked = sign_in(member.user)
    assert (asked.status_code, asked.json()["code"]) == (401, "otp-required")
    wrong_password = post("login", {"username": member.user.username, "password": "x"})
    assert wrong_password.json()["code"] == "no-active-account"  # tells nothing of the factor
    code = code_of(member.user)
    assert sign_in(member.user, code).status_code == 200
    again = sign_in(member.user, code)
    assert (again.status_code, again.json()["code"]) == (401, "otp-wrong")


def test_wrong_codes_are_slowed_down(member: Any) -> None:
    for _ in range(3):
        wait(member.user)
        assert sign_in(member.user, "000000").status_code == 401
    refused = sign_in(member.user, code_of(member.user))
    assert refused.status_code == 429
    assert 0 < int(refused["Retry-After"]) <= 8
    # A recovery code is no way round it.
    assert sign_in(member.user, member.codes[0]).status_code == 429
    wait(member.user)
    assert sign_in(member.user, "no-such-code-here").status_code == 401
    assert sign_in(member.user, code_of(member.user)).status_code == 429
    wait(member.user)
    assert sign_in(member.user, code_of(member.user)).status_code == 200


@pytest.mark.parametrize("odd", ["１２３４５６", "-12345", "+12345", "1e5", " ", "0" * 40])
def test_only_six_digits_are_a_code(member: Any, odd: str) -> None:
    assert sign_in(member.user, odd).status_code in {400, 401}


def test_a_recovery_code_stands_in_once_and_is_nobody_elses(member: Any, mails: Any) -> None:
    other = UserFactory()
    second_factor.begin(other)
    second_factor.confirm(other, code_of(other))
    assert sign_in(other, member.codes[0]).status_code == 401
    assert sign_in(member.user, member.codes[0].upper()).status_code == 200
    assert "recovery code" in mails[-1].subject
    assert sign_in(member.user, member.codes[0]).status_code == 401
    wait(member.user)
    assert sign_in(member.user, member.codes[1].replace("-", " ")).status_code == 200
    assert second_factor.codes_left(member.user) == 8


def test_the_page_signs_in_only_with_the_code(member: Any, client: Client) -> None:
    form = {"username": member.user.username, "password": PASSWORD, "next": "/data"}
    assert client.post("/sign-in", form)["Location"] == "/sign-in/code"
    assert client.get("/data").status_code == 302
    assert client.get("/sign-in/code").status_code == 200
    assert client.post("/sign-in/code", {"code": "000000"}).status_code == 422
    closed = client.post("/sign-in/code", {"code": code_of(member.user)})
    assert closed.status_code == 429
    assert int(closed["Retry-After"]) >= 1
    wait(member.user)
    assert client.post("/sign-in/code", {"code": code_of(member.user)})["Location"] == "/data"
    assert client.get("/data").status_code == 200


def test_half_a_sign_in_ends_by_itself(
    member: Any, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = {"username": member.user.username, "password": PASSWORD}
    assert client.get("/sign-in/code")["Location"] == "/sign-in"
    client.post("/sign-in", form)
    later = time.time() + 11 * 60
    with monkeypatch.context() as patch:
        patch.setattr("accounts.views.time.time", lambda: later)
        assert client.get("/sign-in/code")["Location"] == "/sign-in"
    client.post("/sign-in", form)
    member.user.set_password("changed meanwhile 1")
    member.user.save()
    answer = client.post("/sign-in/code", {"code": code_of(member.user)})
    assert answer["Location"] == "/sign-in"
    assert client.get("/").status_code == 302


def test_the_console_has_no_way_in_of_its_own(member: Any, client: Client) -> None:
    User.objects.filter(pk=member.user.pk).update(is_staff=True, is_superuser=True)
    assert client.get("/admin/", follow=True).redirect_chain[-1][0] == "/sign-in?next=/admin/"
    form = {"username": member.user.username, "password": PASSWORD}
    for path in ("/admin/login/", "/admin/login/?next=/admin/"):
        assert client.post(path, form)["Location"] == "/sign-in?next=/admin/"
    assert client.get("/admin/").status_code == 302
    answer = client.post("/sign-in", form | {"next": "/admin/"})
    assert client.post(answer["Location"], {"code": code_of(member.user)})["Location"] == "/admin/"
    assert client.get("/admin/").status_code == 200
    stranger = Client()
    stranger.force_login(UserFactory())
    assert stranger.get("/admin/", follow=True).status_code == 403


def test_the_console_shows_no_secret_and_lets_an_operator_turn_it_off(
    member: Any, client: Client
) -> None:
    client.force_login(UserFactory(is_staff=True, is_superuser=True))
    device = TOTPDevice.objects.get()
    for path in ("", f"{device.pk}/change/"):
        page = client.get(f"/admin/otp_totp/totpdevice/{path}").content.decode()
        assert member.user.username in page
        assert device.key not in page
        assert "otpauth" not in page
    client.post(f"/admin/otp_totp/totpdevice/{device.pk}/delete/", {"post": "yes"})
    assert sign_in(member.user).status_code == 200


@pytest.mark.parametrize("way", ["a new password", "the confirmed address"])
def test_who_first_shows_the_mail_to_be_theirs_is_rid_of_what_others_set_up(
    member: Any, mails: Any, way: str
) -> None:
    """Somebody else may have made the account with one's address, to wait in it."""
    user, thief = member.user, Client()
    thief.force_login(user)
    made = PersonalToken.issue(user=user, name="x", expires_at=timezone.now() + timedelta(days=1))
    if way == "a new password":
        post("password/reset", {"email": user.email})
        assert Client().post(link_in(mails[-1]), {"password": "my own place 7"}).status_code == 302
        password = "my own place 7"
    else:
        post("email/resend", {"email": user.email})
        assert Client().post(link_in(mails[-1])).status_code == 302
        password = PASSWORD
    assert thief.get("/account").status_code == 302
    bearer = {"Authorization": f"Bearer {made[1]}"}
    assert Client().get("/api/auth/me", headers=bearer).status_code == 401
    asked = {"username": user.username, "password": password}
    assert post("login", asked).status_code == 200, "without the thief's phone"
    assert not RecoveryCode.objects.exists()
    assert any(to.subject.endswith("second factor was turned off") for to in mails)


def test_later_links_leave_the_second_factor_alone(member: Any, mails: Any) -> None:
    user = member.user
    User.objects.update(email_verified_at=timezone.now())
    post("password/reset", {"email": user.email})
    assert Client().post(link_in(mails[-1]), {"password": "my own place 7"}).status_code == 302
    refused = post("login", {"username": user.username, "password": "my own place 7"})
    assert refused.json()["code"] == "otp-required"


def test_who_is_signed_in_confirms_the_address_and_keeps_what_they_set_up(
    member: Any, mails: Any
) -> None:
    browser = Client()
    browser.force_login(member.user)
    post("email/resend", {"email": member.user.email})
    assert browser.post(link_in(mails[-1]))["Location"] == "/account"
    assert browser.get("/account").status_code == 200
    assert second_factor.is_on(member.user)
    member.user.refresh_from_db()
    assert member.user.email_verified_at is not None


def test_turning_it_off_and_new_codes_take_the_password(member: Any, client: Client) -> None:
    client.force_login(member.user)
    for path in ("second-factor/recovery-codes", "second-factor/disable"):
        assert post(path, {"password": "wrong"}, client).status_code == 400
    fresh = post("second-factor/recovery-codes", {"password": PASSWORD}, client).json()
    assert not set(fresh["recovery_codes"]) & set(member.codes)
    assert sign_in(member.user, member.codes[0]).status_code == 401
    assert post("second-factor/disable", {"password": PASSWORD}, client).status_code == 204
    assert sign_in(member.user).status_code == 200
    assert not RecoveryCode.objects.exists()


def test_the_pages_set_it_up_show_the_codes_once_and_turn_it_off(
    client: Client, mails: Any
) -> None:
    user = MembershipFactory().user
    client.force_login(user)
    path = "/account/second-factor"
    assert "is off" in client.get(path).content.decode()
    assert client.post(path, {"do": "begin", "password": "no"}).status_code == 422
    client.post(path, {"do": "begin", "password": PASSWORD})
    page = client.get(path)
    assert page["Cache-Control"] == "no-store"
    assert 'class="qr"' in page.content.decode()
    assert " style=" not in page.content.decode()
    assert client.post(path, {"do": "confirm", "code": "1"}).status_code == 422
    wait(user)
    page = client.post(path, {"do": "confirm", "code": code_of(user)}).content.decode()
    assert "Keep your recovery codes" in page
    assert "Keep your recovery codes" not in client.get(path).content.decode()
    assert "Keep" in client.post(path, {"do": "codes", "password": PASSWORD}).content.decode()
    client.post(path, {"do": "off", "password": PASSWORD})
    assert not second_factor.is_on(user)
    assert client.post(path, {"do": "nonsense", "password": PASSWORD}).status_code == 302
