"""A race of two engines as a person sees it: chosen, watched, narrowed, and its ensemble opened."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import ROOT, NewVisitor
from tests.browser.test_main_journey import sign_up, upload

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600), pytest.mark.xdist_group("browser")]


def test_two_engines_are_chosen_watched_and_blended(visitor: NewVisitor) -> None:
    eva = visitor("race")
    page = sign_up(eva, "eva")
    upload(page, ROOT / "data" / "cars.csv")
    page.get_by_role("link", name="Train on this").click()
    page.get_by_label("What should be predicted?").select_option("miles_per_gallon")
    expect(page.locator("#finding")).to_contain_text("Regression")
    eva.shot("01-presets")
    page.get_by_label("Minutes of my own").fill("0.5")
    page.locator("summary", has_text="More choices").click()
    page.get_by_label("PyCaret").check()
    page.get_by_label("scikit-learn").check()
    eva.shot("02-choices")
    page.get_by_role("button", name="Start training").click()
    lanes = page.get_by_role("region", name="Engines")
    expect(lanes.locator(".lane")).to_have_count(2)
    expect(lanes).to_contain_text("15 s")
    expect(lanes).to_contain_text(re.compile(r"\d+ models?, best \d"), timeout=60_000)
    eva.shot("03-race")
    best = page.get_by_role("link", name="Open the best model")
    expect(best).to_be_visible(timeout=120_000)
    board = page.get_by_role("region", name="Leaderboard")
    none = page.get_by_text("There is no ensemble: no blend was better")
    made = board.get_by_role("link", name=re.compile("^Ensemble of"))
    expect(made.first.or_(none)).to_be_visible()
    eva.shot("04-leaderboard")
    if not made.count():  # then the page says so, and there is nothing more to look at
        return
    board.get_by_role("link", name="Ensemble", exact=True).click()
    expect(page).to_have_url(re.compile(r"\?engine=ensemble$"))
    expect(board.locator("tbody tr")).to_have_count(1)
    eva.shot("05-narrowed")
    board.get_by_role("link", name=re.compile("^Ensemble of")).click()
    expect(page.get_by_text("chosen without it")).to_be_visible()
    expect(page.locator("#sample svg")).to_be_visible()
    eva.shot("06-ensemble")
    page.get_by_role("link", name="Details").click()
    expect(page.get_by_role("heading", name=re.compile(r"Blends \d+ models"))).to_be_visible()
    eva.shot("07-members")
    page.get_by_role("link", name="Try it", exact=True).first.click()
    expect(page.locator("#answer .big-answer")).to_be_visible(timeout=60_000)
    page.go_back()
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(page.url)
    assert eva.wider_than_the_window() == 0
    eva.shot("08-narrow")
