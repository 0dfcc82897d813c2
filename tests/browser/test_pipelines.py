"""A pipeline by hand: begun from a template, mended where it is wrong, watched until it is done."""

import json

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import NewVisitor, sign_in
from tests.browser.test_every_page import AXE, serious

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300), pytest.mark.xdist_group("browser")]
TRAIN = {
    "data": "Palmer penguins",
    "target": "species",
    "engines": ["sklearn"],
    "time_budget": 5,
}


def test_a_pipeline_is_made_mended_run_and_watched(visitor: NewVisitor, operator: str) -> None:
    who = visitor("pipelines")
    page = sign_in(who, operator)
    who.go("/organizations")  # a new one, where nothing is yet
    page.get_by_label("Name", exact=True).fill("Birds")
    page.get_by_role("button", name="Make it").click()
    who.go("/")
    page.get_by_role("button", name="Train on Palmer penguins").click()
    expect(page.get_by_label("What should be predicted?")).to_have_value("species", timeout=60_000)

    page.get_by_role("link", name="Pipelines", exact=True).click()
    expect(page.get_by_text("No pipelines yet")).to_be_visible()
    who.shot("empty")
    page.get_by_role("link", name="Retrain every night").click()
    page.get_by_label("Name", exact=True).fill("nightly")
    promote = {"key": "promote", "stage": "promote", "params": {"model": "$trian", "name": "birds"}}
    stages = [{"key": "train", "stage": "train", "params": TRAIN}, promote]
    page.get_by_role("button", name="As text").click()
    field = page.get_by_role("textbox", name="Stages")
    field.fill(json.dumps({"stages": stages}, indent=2))
    who.expected.append("400 (Bad Request)")
    page.get_by_role("button", name="Make the pipeline").click()
    expect(page.get_by_text("There is no stage 'trian'.")).to_be_visible()
    who.shot("wrong")
    # In the other view, by the keyboard alone: the stage is marked, and says what is wrong.
    page.get_by_role("button", name="As a graph").press("Enter")
    page.get_by_role("button", name="promote Promote if better").press("Enter")
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    expect(page.get_by_text("There is no stage 'trian'.")).to_be_visible()
    model = page.get_by_label("Model", exact=True)
    model.press("ArrowUp")
    expect(model).to_have_value("$train")
    page.get_by_role("button", name="Check it").press("Enter")
    expect(page.get_by_role("button", name="promote Promote if better after train")).to_be_visible()
    expect(page.get_by_text("There is no stage 'trian'.")).to_be_hidden()
    page.get_by_role("button", name="Add a stage after promote").press("Enter")
    expect(page.get_by_role("heading", name="sql: SQL to data set")).to_be_visible()
    who.shot("editor")
    page.get_by_role("button", name="Remove sql").press("Enter")
    expect(page.get_by_role("heading", name="sql: SQL to data set")).to_be_hidden()
    page.get_by_role("button", name="Make the pipeline").click()

    expect(page.get_by_text("It has not run yet")).to_be_visible()
    pipeline = page.url
    page.get_by_role("button", name="Run now").click()
    expect(page.get_by_role("img", name="train (Train): Running")).to_be_visible(timeout=30_000)
    who.shot("running")
    done = "train (Train): Succeeded; promote (Promote if better): Succeeded"
    expect(page.get_by_role("img", name=done)).to_be_visible(timeout=120_000)
    expect(page.get_by_text("Promoted. There was no champion.")).to_be_visible()
    run = page.url
    who.shot("done")
    if not AXE.is_file():
        return
    for width, theme in ((360, "light"), (1280, "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        for name, address in (
            ("list", f"{who.base}/pipelines"),
            ("form", f"{pipeline}/edit"),
            ("text", f"{pipeline}/edit?view=text"),
            ("pipeline", pipeline),
            ("run", run),
        ):
            page.goto(address)
            page.wait_for_load_state("load")
            who.shot(f"{name}-{width}-{theme}")
            assert not serious(who), name
            assert who.wider_than_the_window() == 0, name
