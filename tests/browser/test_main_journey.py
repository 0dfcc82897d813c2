"""From signing up to a prediction and a download, in a real browser with real training."""

import re
import zipfile
from pathlib import Path
from uuid import uuid4

import pytest
from playwright.sync_api import Page, WebSocketRoute, expect

from tests.browser.conftest import PASSWORD, ROOT, NewVisitor, Visitor

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600), pytest.mark.xdist_group("browser")]
PENGUINS = ROOT / "data" / "penguins.csv"


def sign_up(who: Visitor, name: str) -> Page:
    """A new account, so that the tests may run again on an installation that stays up."""
    page, name = who.page, f"{name}-{uuid4().hex[:6]}"
    who.go("/")
    page.get_by_role("link", name="Make an account").click()
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_label("E-mail").fill(f"{name}@example.org")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Make the account").click()
    expect(page.get_by_role("heading", name="Train your first model")).to_be_visible()
    return page


def upload(page: Page, file: Path) -> None:
    """Choose the file and wait until its columns show; nothing else is pressed or reloaded."""
    page.get_by_label("Drop a file here or choose one").set_input_files(file)
    expect(page).to_have_url(re.compile("/data/"), timeout=30_000)
    expect(page.get_by_role("link", name="Train on this")).to_be_visible(timeout=60_000)


def train(page: Page, target: str, minutes: str) -> None:
    page.get_by_role("link", name="Train on this").click()
    page.get_by_label("What should be predicted?").select_option(target)
    expect(page.locator("#finding")).to_contain_text("classification")
    page.get_by_label("Minutes of my own").fill(minutes)
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("heading", name=f"Predict {target}")).to_be_visible()


def test_from_sign_up_to_a_prediction_and_a_download(visitor: NewVisitor, tmp_path: Path) -> None:
    mira = visitor("journey")
    page = sign_up(mira, "mira")
    mira.shot("01-first-visit")
    upload(page, PENGUINS)
    expect(page.get_by_role("article", name="Column species")).to_contain_text("Adelie")
    mira.shot("02-columns")
    download_histogram(page)
    page.get_by_role("link", name="Rows", exact=True).click()
    expect(page.locator("#grid")).to_contain_text("Rows 1–50 of 344")
    page.get_by_role("link", name="Next").click()
    expect(page.locator("#grid")).to_contain_text("Rows 51–100 of 344")
    page.go_back()
    expect(page.locator("#grid")).to_contain_text("Rows 1–50 of 344")
    train(page, "species", "1.5")

    # Rows come by themselves: the page is never loaded again while the race runs.
    page.evaluate("window.samePage = true")
    board = page.get_by_role("region", name="Leaderboard")
    expect(board.locator("tbody tr").first).to_be_visible(timeout=120_000)
    mira.shot("03-race")
    expect(board.locator("tbody tr").nth(2)).to_be_visible(timeout=120_000)
    assert page.evaluate("window.samePage") is True
    page.get_by_role("button", name="Stop and keep the best").click()
    best = page.get_by_role("link", name="Open the best model")
    expect(best).to_be_visible(timeout=60_000)
    expect(
        page.get_by_text("Stopped early").or_(page.get_by_text("Succeeded")).first
    ).to_be_visible()
    page.locator("summary", has_text="Log").click()
    expect(page.locator(".log")).to_contain_text("succeeded")
    mira.shot("04-leaderboard")
    compare_two(mira, page)
    best.click()
    expect(page.locator(".headline")).to_contain_text("unseen rows")
    expect(page.locator("#roc svg")).to_be_visible()
    mira.shot("05-model")

    page.get_by_role("link", name="Try it", exact=True).first.click()
    answer = page.locator("#answer")
    expect(answer.locator(".big-answer")).to_be_visible(timeout=60_000)
    expect(answer.locator("dt")).to_have_count(3)
    first = answer.locator("dd").nth(1).inner_text()
    sensitivity = page.locator("#sensitivity")
    expect(sensitivity.locator("#sensitivity-chart svg")).to_be_visible(timeout=30_000)
    page.get_by_label("flipper_length_mm").fill("230")
    page.get_by_label("body_mass_g").fill("6000")
    page.get_by_label("bill_depth_mm").fill("14")
    page.get_by_label("bill_length_mm").fill("50")
    page.get_by_role("button", name="Predict", exact=True).click()
    expect(answer.locator(".big-answer")).to_have_text("Gentoo")
    assert answer.locator("dd").nth(1).inner_text() != first or first == "100%"
    mira.shot("06-prediction")
    page.get_by_role("button", name="Why?").click()
    why = page.locator("#why")
    expect(why).to_contain_text("The probability of Gentoo is", timeout=60_000)
    expect(why.locator("#why-chart svg")).to_be_visible()
    mira.shot("06b-why")
    why.locator("summary").click()
    expect(why.get_by_role("row")).to_have_count(10)  # seven columns, a head and two ends
    why.get_by_label("Probability of", exact=True).select_option("Adelie")
    expect(why).to_contain_text("The probability of Adelie is", timeout=60_000)
    page.get_by_label("body_mass_g").fill("heavy")
    page.get_by_role("button", name="Predict", exact=True).click()
    expect(answer).to_contain_text("takes a number")

    with page.expect_download() as downloading:
        page.get_by_role("link", name="Download", exact=True).click()
    zipped = tmp_path / "model.zip"
    downloading.value.save_as(zipped)
    assert "predict.py" in {Path(name).name for name in zipfile.ZipFile(zipped).namelist()}
    page.get_by_role("link", name="Use it").click()
    expect(page.locator("#curl")).to_contain_text(f"{mira.base}/api/results/model/")
    mira.shot("07-use")


def download_histogram(page: Page) -> None:
    """A picture that the server drew comes as a table, a CSV and a PNG, too."""
    card = page.get_by_role("article", name="Column year")
    card.locator("summary").click()
    expect(card.get_by_role("row")).to_have_count(4)
    with page.expect_download() as downloading:
        card.get_by_role("button", name="Download “year” as CSV").click()
    rows = Path(downloading.value.path()).read_text(encoding="utf-8-sig").splitlines()
    assert rows[:2] == ["From,Below,Rows", "2006.5,2007.5,110"]
    assert sum(int(row.split(",")[-1]) for row in rows[1:]) == 344
    with page.expect_download() as downloading:
        card.get_by_role("button", name="Download “year” as PNG").click()
    assert Path(downloading.value.path()).read_bytes().startswith(b"\x89PNG")


def compare_two(mira: Visitor, page: Page) -> None:
    """From the leaderboard to two models side by side, and back."""
    button = page.get_by_role("button", name="Compare", exact=True)
    expect(button).to_be_disabled()
    for place in range(2):
        page.locator("[data-compare]").nth(place).check()
    button.click()
    expect(page).to_have_url(re.compile(r"/models/compare\?model=.+&model="))
    expect(page.locator("#roc svg")).to_be_visible()
    # Control computes it, and the page asks until it is there.
    expect(page.locator("#differences")).to_contain_text(re.compile("[Cc]lear"), timeout=30_000)
    mira.shot("04b-compared")
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Download “ROC curve” as CSV").click()
    rows = Path(downloading.value.path()).read_text(encoding="utf-8-sig").splitlines()
    assert rows[0] == "series,False alarms,Found"
    assert len(rows) > 4
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Download “ROC curve” as PNG").click()
    assert Path(downloading.value.path()).read_bytes().startswith(b"\x89PNG")
    page.go_back()


def move_the_threshold(page: Page) -> None:
    """By the keyboard: the figures follow without a request, and the address keeps it."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_load_state("networkidle")
    asked.clear()
    slider = page.locator("#threshold-slider")
    slider.focus()
    page.keyboard.press("End")
    expect(page.locator("[data-figure=named]")).not_to_have_text("")
    expect(page).to_have_url(re.compile(r"threshold=1$"))
    page.keyboard.press("Home")
    expect(page.locator("[data-figure=recall]")).to_have_text("100%")
    expect(page.locator("[data-cell=tn]")).to_have_text("0")
    expect(page).to_have_url(re.compile(r"threshold=0$"))
    assert not [url for url in asked if "/models/" in url and "/importance" not in url]
    page.reload()
    expect(page.locator("[data-cell=tn]")).to_have_text("0")


def test_a_file_of_rows_comes_back_with_predictions(visitor: NewVisitor, tmp_path: Path) -> None:
    ada = visitor("file")
    page = sign_up(ada, "ada")
    two = tmp_path / "two.csv"  # of two classes, so that there is a threshold to move
    text = (ROOT / "data" / "iris.csv").read_text(encoding="utf-8")
    two.write_text(text.replace("versicolor", "other").replace("virginica", "other"))
    upload(page, two)
    train(page, "species", "0.4")
    page.get_by_role("link", name="Open the best model").click(timeout=120_000)
    move_the_threshold(page)
    page.get_by_role("link", name="Try it", exact=True).first.click()
    page.get_by_label("CSV or Parquet with the same columns").set_input_files(
        ROOT / "data" / "iris.csv"
    )
    page.get_by_role("button", name="Predict the file").click()
    result = page.get_by_role("link", name="Download 150")
    expect(result).to_be_visible(timeout=60_000)
    with page.expect_download() as downloading:
        result.click()
    lines = Path(downloading.value.path()).read_text(encoding="utf-8").splitlines()
    assert len(lines) == 151
    ada.shot("done")


def test_a_file_that_is_no_table_is_told_in_words(visitor: NewVisitor, tmp_path: Path) -> None:
    eve = visitor("bad-file")
    page = sign_up(eve, "eve")
    broken = tmp_path / "photo.csv"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20)
    page.get_by_label("Drop a file here or choose one").set_input_files(broken)
    expect(page.get_by_text("could not be read")).to_be_visible(timeout=60_000)
    eve.shot("told")


def test_the_race_goes_on_after_a_lost_connection(visitor: NewVisitor) -> None:
    kim = visitor("lost")
    sockets: list[WebSocketRoute] = []
    gone = False

    def pass_on(socket: WebSocketRoute) -> None:
        if gone:
            socket.close(code=1012)
            return
        socket.connect_to_server()
        sockets.append(socket)

    kim.page.route_web_socket(re.compile("/ws$"), pass_on)
    page = sign_up(kim, "kim")
    page.get_by_role("button", name="Train on Palmer penguins").click()
    expect(page.get_by_label("What should be predicted?")).to_have_value("species", timeout=60_000)
    page.get_by_label("Minutes of my own").fill("1")
    page.get_by_role("button", name="Start training").click()
    rows = page.get_by_role("region", name="Leaderboard").locator("tbody tr")
    expect(rows.first).to_be_visible(timeout=60_000)
    page.wait_for_function("window.flowmlLive.state().open")
    topic = page.locator("[data-live]").get_attribute("data-live")
    seen = page.evaluate("topic => window.flowmlLive.state().seen[topic]", topic)

    gone = True
    sockets[-1].close(code=1012)
    expect(page.get_by_text("Reconnecting")).to_be_visible()
    gone = False
    expect(page.get_by_text("Reconnecting")).to_be_hidden(timeout=30_000)
    # What happened meanwhile is told again, from where the page had come to.
    page.wait_for_function("([t, n]) => window.flowmlLive.state().seen[t] > n", arg=[topic, seen])
    expect(rows.nth(1)).to_be_visible(timeout=60_000)

    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("button", name="Cancel the training").click()
    expect(page.locator(".page-head")).to_contain_text("Cancelled", timeout=60_000)
    expect(rows.first).to_be_visible()  # what was finished stays


def test_two_organizations_do_not_see_each_other(visitor: NewVisitor) -> None:
    one, two = visitor("one"), visitor("two")
    page, other = sign_up(one, "olga"), sign_up(two, "otto")
    page.get_by_role("button", name="Train on Iris flowers").click()
    expect(page.get_by_label("What should be predicted?")).to_be_visible(timeout=60_000)
    address = page.get_by_role("link", name="Iris flowers").get_attribute("href")
    two.expected.append("404")
    two.go(str(address))
    expect(other.get_by_role("heading", name="There is nothing here")).to_be_visible()
    two.go("/data")
    expect(other.get_by_text("No data sets yet")).to_be_visible()
