"""One's own account in a real browser: tokens, sessions, a second factor, and the way back in."""

import base64
import re
import time

import pytest
from django_otp.oath import totp
from playwright.sync_api import expect

from tests.browser.conftest import PASSWORD, NewVisitor, Visitor
from tests.browser.test_every_page import AXE, LOOKS, serious
from tests.browser.test_main_journey import sign_up

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600), pytest.mark.xdist_group("browser")]
PARTS = ("", "/password", "/second-factor", "/sessions", "/tokens")


def looks_right(who: Visitor, name: str) -> None:
    who.page.wait_for_load_state("networkidle")
    who.shot(name)
    assert who.wider_than_the_window() == 0, name
    if AXE.is_file():
        assert not serious(who), name


def code_for(secret: str) -> str:
    padded = secret + "=" * (-len(secret) % 8)
    return f"{totp(base64.b32decode(padded)):06}"


def test_an_account_is_kept_from_sign_up_to_second_factor(visitor: NewVisitor) -> None:
    who = visitor("account")
    page = sign_up(who, "kim")
    cookies = who.context.cookies()
    page.get_by_title("Your account").click()
    expect(page.get_by_role("heading", name="Your account")).to_be_visible()
    page.get_by_role("link", name="API tokens").click()
    page.get_by_label("Name", exact=True).fill("nightly upload")
    page.get_by_role("button", name="Make the token").click()
    expect(page.locator("#secret")).to_contain_text("flowml_pat_")
    looks_right(who, "token-made")
    page.get_by_role("link", name="Second factor").click()
    page.get_by_label("Your password").fill(PASSWORD)
    page.get_by_role("button", name="Set it up").click()
    expect(page.get_by_role("img", name="QR code")).to_be_visible()
    looks_right(who, "factor-setup")
    secret = page.locator("pre.snippet").inner_text().strip()
    page.get_by_label("Code", exact=True).fill(code_for(secret))
    page.get_by_role("button", name="Turn it on").click()
    expect(page.get_by_role("heading", name="Keep your recovery codes")).to_be_visible()
    recovery = page.locator("#recovery").inner_text().split()
    assert len(recovery) == 10
    looks_right(who, "factor-codes")
    for width, theme in LOOKS:
        again = visitor(f"account-{theme}-{width}", width=width, theme=theme)
        again.context.add_cookies(cookies)
        for part in PARTS:
            again.go(f"/account{part}")
            looks_right(again, part.strip("/") or "profile")
    # Revoked only after a question.
    page.get_by_role("link", name="API tokens").click()
    page.get_by_role("button", name="Revoke nightly upload").click()
    page.get_by_role("button", name="Revoke the token").click()
    expect(page.get_by_text("opens nothing any more")).to_be_visible()
    name = page.locator(".rail-who strong").inner_text()
    page.get_by_role("button", name="Sign out", exact=True).click()
    page.get_by_label("Name or e-mail").fill(name)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Your code")).to_be_visible()
    looks_right(who, "code")
    who.expected.append("422")
    page.get_by_label("Code", exact=True).fill("not a code")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("This code is not right")).to_be_visible()
    time.sleep(1.2)  # for which a wrong code closes the door
    page.get_by_label("Code", exact=True).fill(recovery[0])
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("navigation", name="Main")).to_be_visible()


def test_pages_for_who_can_not_get_in_are_accessible(visitor: NewVisitor) -> None:
    for width, theme in ((360, "light"), (1280, "dark")):
        who = visitor(f"out-{theme}", width=width, theme=theme)
        who.expected.append("404")
        for path in ("/password/forgotten", "/password/reset", "/email/resend", "/email/verify"):
            who.go(path)
            looks_right(who, path.strip("/").replace("/", "-"))
        who.go("/password/forgotten")
        who.page.get_by_label("E-mail").fill("nobody@example.org")
        who.page.get_by_role("button", name="Send the link").click()
        expect(who.page.get_by_role("heading", name="Look into your mail")).to_be_visible()
        looks_right(who, "sent")


def test_another_tab_goes_on_after_a_new_password_and_tells_that_one_is_signed_out(
    visitor: NewVisitor,
) -> None:
    who = visitor("tabs")
    page = sign_up(who, "lee")
    who.go("/workers")
    opened: list[str] = []
    page.on("websocket", lambda socket: opened.append(socket.url))
    page.reload()
    page.wait_for_function("window.flowmlLive.state().open")
    page.evaluate("window.stays = true")
    other = who.context.new_page()
    other.goto(f"{who.base}/account/password")
    other.get_by_label("Your password now").fill(PASSWORD)
    other.get_by_label("New password").fill("another way home 8")
    other.get_by_role("button", name="Change the password").click()
    expect(other.get_by_text("Your password is changed")).to_be_visible()
    # The old session ends with the next look at it, and the new one takes over by itself.
    while len(opened) < 2:
        page.wait_for_timeout(500)
    page.wait_for_function("window.flowmlLive.state().open")
    page.wait_for_timeout(1000)
    assert page.evaluate("window.flowmlLive.state().open && window.stays")
    expect(page.get_by_text("You are signed out")).to_be_hidden()
    # A page that asks for nothing by itself is told by its socket alone.
    who.expected += ["ERR_FAILED", "htmx:"]
    page.route(re.compile("/workers$"), lambda route: route.abort())
    other.get_by_role("button", name="Sign out", exact=True).click()
    expect(other.get_by_role("heading", name="Sign in")).to_be_visible()
    expect(page.get_by_text("You are signed out")).to_be_visible(timeout=60_000)
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 900})
        assert who.wider_than_the_window() == 0
        who.shot(f"signed-out-{width}")
    page.unroute_all()
    page.get_by_role("link", name="Sign in").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_an_export_is_made_watched_and_deleted_after_a_question(visitor: NewVisitor) -> None:
    who = visitor("export")
    page = sign_up(who, "ann")
    who.go("/organization?tab=settings")
    page.get_by_role("button", name="Make an export").click()
    link = page.get_by_role("link", name="Download")
    expect(link).to_be_visible(timeout=60_000)  # without a reload
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 900})
        looks_right(who, f"ready-{width}")
    with page.expect_download() as downloading:
        link.click()
    assert downloading.value.suggested_filename.endswith(".zip")
    page.get_by_role("button", name="Delete this export").click()
    looks_right(who, "asked")
    page.get_by_role("button", name="Delete the export").click()
    expect(page.get_by_text("Expired")).to_be_visible()
    expect(link).to_be_hidden()
