"""Another language: chosen by the reader, whole where it is there, and never in the API."""

import gettext
import re
import shutil
from pathlib import Path

import pytest
from django.conf import settings
from django.test import Client

from organizations.models import Role
from tests.training import make
from tools import messages

LOCALE = settings.BASE_DIR / "locale"
PO = Path("de") / "LC_MESSAGES" / "django.po"


def texts(file: Path) -> dict[str, str]:
    """The translations in a .po file, by what they translate."""
    told = file.read_text(encoding="utf-8")
    return dict(re.findall(r'^msgid "(.+)"\nmsgstr "(.*)"$', told, re.MULTILINE))


@pytest.mark.skipif(not shutil.which("xgettext"), reason="gettext is not installed")
def test_the_messages_are_gathered_translated_and_compiled(tmp_path: Path) -> None:
    shutil.copytree(LOCALE, tmp_path / "locale")
    kept = list(settings.LOCALE_PATHS)
    try:
        messages.gather(tmp_path / "locale")
    finally:
        settings.LOCALE_PATHS = kept
    gathered, committed = texts(tmp_path / "locale" / PO), texts(LOCALE / PO)
    assert gathered == committed, "run `python tools/messages.py`, and translate what is new"
    assert "#, fuzzy" not in (LOCALE / PO).read_text(encoding="utf-8")
    untranslated = [text for text, said in committed.items() if not said]
    assert not untranslated
    with (LOCALE / PO).with_suffix(".mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)
    for text, said in committed.items():
        assert compiled.gettext(text) == said, "run `python tools/messages.py`"


def test_a_translation_has_the_same_places_for_values() -> None:
    places = re.compile(r"%\(\w+\)s|\{\w*\}")
    for text, said in texts(LOCALE / PO).items():
        assert sorted(places.findall(text)) == sorted(places.findall(said)), text


@pytest.mark.django_db
def test_the_language_is_chosen_on_the_account_page_and_kept() -> None:
    by = make.member(Role.DEVELOPER)
    make.version(by)
    client = Client(headers={"Accept-Language": "de"})
    client.force_login(by.user)
    assert '<html lang="en"' in client.get("/").content.decode(), "nobody has asked for another"
    assert client.post("/account", {"language": "xx"}).status_code in {200, 302, 422}
    assert '<html lang="en"' in client.get("/").content.decode()
    chosen = client.post("/account", {"language": "de"})
    assert chosen["Location"] == "/account"
    assert chosen.cookies[settings.LANGUAGE_COOKIE_NAME]["httponly"]
    pages = {
        "/": "Neueste Datensätze",
        "/data": "Nach Namen suchen",
        "/training": "Noch keine Trainings",
        "/account": "Sprache der Seiten",
    }
    for address, words in pages.items():
        page = client.get(address)
        assert page["Content-Language"] == "de"
        assert '<html lang="de"' in page.content.decode()
        assert words in page.content.decode(), address
    client.logout()
    client.cookies[settings.LANGUAGE_COOKIE_NAME] = "de"
    assert "Passwort vergessen?" in client.get("/sign-in").content.decode()
    wrong = client.post("/sign-in", {"username": "nobody", "password": "nothing"})
    assert "passen nicht zusammen" in wrong.content.decode()


@pytest.mark.django_db
def test_programs_are_answered_in_english_and_numbers_stay_as_they_are() -> None:
    by = make.member()
    client = Client()
    client.cookies[settings.LANGUAGE_COOKIE_NAME] = "de"
    refused = client.post("/api/auth/login", {}, content_type="application/json")
    assert "This field is required" in refused.content.decode()
    client.force_login(by.user)
    model = make.scored_model(by)
    page = client.get(f"/models/{model.pk}?tab=try").content.decode()
    assert '<html lang="de"' in page
    assert not re.search(r'value="\d+,\d+"', page)
