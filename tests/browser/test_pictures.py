"""A zip of pictures as a person sees it: uploaded, and looked at on its page."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import NewVisitor
from tests.browser.test_main_journey import sign_up, upload
from tests.datasets.test_pictures import classes, zipped

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600), pytest.mark.xdist_group("browser")]


def test_uploaded_pictures_are_shown(visitor: NewVisitor, tmp_path: Path) -> None:
    eva = visitor("pictures")
    page = sign_up(eva, "iris")
    archive = tmp_path / "pets.zip"
    archive.write_bytes(zipped(classes("pets/") | {"pets/cats/broken.jpg": b"no picture"}))
    upload(page, archive)
    column = page.get_by_role("article", name="Column image")
    expect(column.locator("img")).to_have_count(12)
    expect(page.get_by_text("cats/broken.jpg")).to_be_visible()
    eva.shot("01-column")
    page.get_by_role("link", name="Rows", exact=True).click()
    shown = page.locator("img.thumbnail")
    expect(shown).to_have_count(24)
    expect(shown.first).to_be_visible()
    assert shown.first.evaluate("image => image.complete && image.naturalWidth") == 24
    eva.shot("02-rows")
