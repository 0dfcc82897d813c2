"""The operator's dashboard in a real browser: drawn in both themes, and it renews itself."""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import NewVisitor, sign_in
from tests.browser.test_every_page import AXE, serious

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600), pytest.mark.xdist_group("browser")]


def test_the_dashboard_is_drawn_and_renews_itself(visitor: NewVisitor, operator: str) -> None:
    who = visitor("console")
    page = sign_in(who, operator)
    who.go("/admin/")
    head = page.locator(".console-head")
    expect(head).to_contain_text("As of")
    for chart in ("ended", "waiting"):
        expect(page.locator(f"#chart-{chart} svg")).to_be_visible()
    said = head.locator("p").inner_text()
    expect(head.locator("p")).not_to_have_text(said, timeout=30_000)
    expect(page.locator("#chart-ended svg")).to_be_visible()  # what is renewed is drawn again
    who.shot("overview")

    dark = visitor("console-dark", width=390, theme="dark")
    dark.context.add_cookies(who.context.cookies())
    dark.go("/admin/")
    expect(dark.page.locator("#chart-ended svg")).to_be_visible()
    assert dark.wider_than_the_window() == 0
    dark.shot("overview")
    if AXE.is_file():
        # Unfold's own frame is not ours to mend.
        assert not [one for one in serious(dark) if "#console" in one or ".console" in one]

    who.expected.append("500")
    page.route("**/admin/", lambda route: route.fulfill(status=500, body="gone"))
    expect(page.locator("#console-stale")).to_be_visible(timeout=30_000)
