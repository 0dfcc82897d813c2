"""The page of the fleet in a real browser: it renews itself, but not under a person's hands."""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import NewVisitor, sign_in

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600), pytest.mark.xdist_group("browser")]


def test_a_question_stays_while_the_page_renews_itself(visitor: NewVisitor, operator: str) -> None:
    who = visitor("workers")
    page = sign_in(who, operator)
    who.go("/workers")
    expect(page.get_by_role("article", name="local")).to_be_visible()
    renewed = "() => document.getElementById('nodes').setAttribute('data-old', '')"
    page.evaluate(renewed)
    # Each heartbeat of the node may renew it.
    expect(page.locator("#nodes:not([data-old])")).to_be_visible(timeout=60_000)
    page.get_by_role("button", name="Remove", exact=True).click()
    question = page.get_by_role("dialog", name="Remove this node?")
    expect(question).to_be_visible()
    with page.expect_response(lambda answer: answer.url.endswith("/workers"), timeout=60_000):
        pass
    page.wait_for_timeout(500)
    expect(question).to_be_visible()
    question.get_by_role("button", name="Keep it").click()
    page.evaluate(renewed)
    expect(page.locator("#nodes:not([data-old])")).to_be_visible(timeout=60_000)
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 900})
        assert who.wider_than_the_window() == 0
        who.shot(str(width))
