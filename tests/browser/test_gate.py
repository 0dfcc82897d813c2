"""The data gate in a real browser, looked at by a real node."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import NewVisitor
from tests.browser.test_main_journey import sign_up, upload
from tests.training.test_gate import visits

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300), pytest.mark.xdist_group("browser")]


def test_a_leak_is_shown_left_out_by_one_click_and_the_rows_split_by_another(
    visitor: NewVisitor, tmp_path: Path
) -> None:
    table = visits().with_columns(outcome=visits()["sick"].cast(int) * 2)
    table.write_csv(tmp_path / "visits.csv")
    gina = visitor("gate")
    gina.expected.append("422")  # the form that is refused
    page = sign_up(gina, "gina")
    upload(page, tmp_path / "visits.csv")
    page.get_by_role("link", name="Train on this").click()
    page.get_by_label("What should be predicted?").select_option("sick")
    gate = page.locator("#gate")
    expect(gate).to_contain_text("'outcome' alone predicts 'sick'", timeout=60_000)
    gina.shot("01-severe")
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("alert").first).to_contain_text("for what stands in red below")

    gate.get_by_role("button", name="Leave out “outcome”").click()
    expect(gate).not_to_contain_text("alone predicts")
    expect(page.locator('input[name="exclude"][value="outcome"]')).to_be_checked()
    expect(gate.get_by_role("button", name="Split by group: “patient_id”")).to_be_visible()
    gina.shot("02-left-out")
    gate.get_by_role("button", name="Split by group: “patient_id”").click()
    expect(page.get_by_label("By the column")).to_have_value("patient_id")
    expect(gate).not_to_contain_text("Looking at the data", timeout=60_000)
    expect(gate).to_contain_text("What the data says")
    assert not gina.wider_than_the_window()
    gina.shot("03-split-by-group")

    page.locator('input[name="exclude"][value="outcome"]').uncheck()
    expect(gate).to_contain_text("alone predicts")
    gate.get_by_label("Start in spite of what stands in red").check()
    gate.get_by_label("Why it is all right").fill("It is known at admission.")
    gina.shot("04-accepted")
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("heading", name="Predict sick")).to_be_visible()
    expect(page.locator("main")).to_contain_text("It is known at admission.")
    gina.shot("05-started")
    # The machine has one place for races, which the next test wants.
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("button", name="Cancel the training").click()
    expect(page.get_by_text("is being cancelled")).to_be_visible()
